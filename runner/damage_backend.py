"""The tensors of a group on one device, their baseline, and the code that damages and measures them there."""

import logging
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from runner import model_memory, philox
from runner.damage_blocks import has_kernels, signed
from runner.damage_digest import BLOCK as DIGEST_BLOCK
from runner.damage_digest import coefficients_on, fingerprint
from runner.damage_effect import ChangeSums, change_sums
from runner.damage_methods import (
    FORMULAS,
    Baseline,
    BitFlips,
    Rearranging,
    WithStatistics,
    bit_masks,
    damage,
    in_kernel,
    keep_baseline,
    restore,
)
from runner.damage_statistics import Statistic, statistic
from runner.spec_methods import METHODS, PLAIN, Method, Options, is_no_op
from runner.target_tensor import Target

logger = logging.getLogger(__name__)

DIGEST_STEP = 2048  # numbers of a block at a time; a power of two


class DamageBackend(Protocol):
    """The tensors of a group on one device with one dtype, their baseline, and the code that serves them."""

    targets: Sequence[Target]
    baseline: Baseline

    def damage(
        self,
        method: Method,
        level: float,
        seed: int,
        *,
        options: Options = PLAIN,
        chosen: Sequence[Tensor] | None = None,
    ) -> None:
        """Write the damaged weights of a condition; `chosen` as in `damage_methods.damage`."""

    def fingerprints(self) -> list[int]:
        """The fingerprint of each tensor."""

    def sums(self) -> ChangeSums:
        """What changed."""


class TorchBackend:
    """Any device, with NumPy and PyTorch alone."""

    def __init__(self, targets: Sequence[Target], baseline: Baseline) -> None:
        """Take over the targets and their baseline."""
        self.targets, self.baseline = targets, baseline

    def damage(
        self,
        method: Method,
        level: float,
        seed: int,
        *,
        options: Options = PLAIN,
        chosen: Sequence[Tensor] | None = None,
    ) -> None:
        """Write the damaged weights of a condition."""
        damage(self.targets, self.baseline, method, level, seed, options=options, chosen=chosen)

    def fingerprints(self) -> list[int]:
        """The fingerprint of each tensor."""
        return [fingerprint(target.weight) for target in self.targets]

    def sums(self) -> ChangeSums:
        """What changed."""
        return change_sums(self.targets, self.baseline)


class TritonBackend:
    """A group on one GPU; its baseline lies there too, or in pinned memory of the host, which the kernels can read."""

    def __init__(self, targets: Sequence[Target], baseline: Baseline) -> None:
        """All weights have one dtype and lie on one GPU."""
        from runner import damage_kernels as kernels  # Triton is not everywhere

        self._kernels = kernels
        self.targets, self.baseline = targets, baseline
        self.device, self.dtype = targets[0].weight.device, targets[0].weight.dtype
        self._known: dict[Statistic, Tensor] = {}
        self._counts = [target.weight.numel() for target in targets]
        self._parts = any(target.units is not None for target in targets)
        sets = [target.all_units for target in targets]
        self._units = torch.cat([units.chosen for units in sets]).to(self.device, torch.uint8)
        first_units = [0, *accumulate(len(units.chosen) for units in sets[:-1])]
        sources, destinations = [t.data_ptr() for t in baseline], [t.weight.data_ptr() for t in targets]
        self._aligned = all(address % 16 == 0 for address in (*sources, *destinations))
        streams, bit_streams = (
            [signed(philox.stream_id(purpose, target.name)) for target in targets] for purpose in ("damage", "bits")
        )
        geometry = [[units.size, units.inner, units.repeats, units.period] for units in sets]
        self._index = kernels.index_type(max(map(max, geometry)), len(self._units))
        columns = [list(column) for column in zip(*geometry, strict=True)]
        self._rows = [sources, destinations, self._counts, [], streams, *columns, first_units, bit_streams]
        self._tables, self._tiles = self._tabulate(4 * self._kernels.TILE)
        self._digest_tables, self._digest_tiles = self._tabulate(DIGEST_BLOCK)

    def _tabulate(self, tile: int) -> tuple[Tensor, Tensor]:
        """What the kernels know of every tensor, row 3 being its first tile; and the tensor that each tile is of."""
        tiles = torch.tensor([-(-count // tile) for count in self._counts])
        rows = [*self._rows[:3], (tiles.cumsum(0) - tiles).tolist(), *self._rows[4:]]
        owner = torch.repeat_interleave(torch.arange(len(tiles), dtype=torch.int32), tiles)
        return torch.tensor(rows, dtype=torch.int64, device=self.device), owner.to(self.device)

    def _details(self, method: Method, options: Options) -> Tensor:
        """What the formula has to know of the weights or of the bits."""
        formula = FORMULAS[method]
        if isinstance(formula, BitFlips):
            return bit_masks(formula.bits or options.bits, self.dtype).to(self.device, torch.int32)
        return self._statistics(formula.statistic) if isinstance(formula, WithStatistics) else self._tables

    def _statistics(self, kind: Statistic) -> Tensor:
        """A statistic of the undamaged weights of each target, float64 [targets, 2], found once."""
        if kind not in self._known:
            found = [statistic(kind, t, original) for t, original in zip(self.targets, self.baseline, strict=True)]
            self._known[kind] = torch.cat(found).to(self.device)
        return self._known[kind]

    @cached_property
    def _chosen(self) -> Tensor:
        """Room for the units of a condition, as `_units` has all."""
        return torch.empty_like(self._units)

    def _mark(self, chosen: Sequence[Tensor]) -> Tensor:
        """The units of a condition, as the kernels read them."""
        lengths = [len(target.all_units.chosen) for target in self.targets]
        for target, table, place in zip(self.targets, chosen, torch.split(self._chosen, lengths), strict=True):
            place.copy_(target.choosing(table).all_units.chosen)
        return self._chosen

    def damage(
        self,
        method: Method,
        level: float,
        seed: int,
        *,
        options: Options = PLAIN,
        chosen: Sequence[Tensor] | None = None,
    ) -> None:
        """Restore and damage in one pass: read the baseline, write the weights."""
        formula = FORMULAS[method]
        if is_no_op(method, level, options):
            restore(self.targets, self.baseline)
            return
        if isinstance(formula, Rearranging) or not in_kernel(method, options):
            damage(self.targets, self.baseline, method, level, seed, options=options, chosen=chosen)
            return
        details = self._details(method, options)
        with torch.cuda.device(self.device):
            self._kernels.damage[(len(self._tiles),)](
                self._tables,
                self._units if chosen is None else self._mark(chosen),
                self._tiles,
                details,
                seed,
                formula.parameter(level),
                METHOD=method,
                DRAWS=METHODS[method].draws,
                TYPE=self._kernels.TYPES[self.dtype],
                WORD=self._kernels.WORDS[self.dtype],
                TENSORS=len(self.targets),
                PARTS=self._parts or chosen is not None,
                INDEX=self._index,
                BITS=len(details) if isinstance(formula, BitFlips) else 0,
                ALIGNED=self._aligned,
                TILE=self._kernels.TILE,
                num_warps=4,
                enable_fp_fusion=False,
            )

    def fingerprints(self) -> list[int]:
        """The fingerprint of each tensor."""
        sums = torch.zeros(len(self.targets), dtype=torch.int64, device=self.device)
        with torch.cuda.device(self.device):
            self._kernels.fingerprint[(len(self._digest_tiles),)](
                self._digest_tables,
                self._digest_tiles,
                coefficients_on(self.device),
                sums,
                TYPE=self._kernels.WORDS[self.dtype],
                TENSORS=len(self.targets),
                BLOCK=DIGEST_BLOCK,
                STEP=DIGEST_STEP,
                num_warps=8,
            )
        return [value % 2**64 for value in sums.tolist()]

    def sums(self) -> ChangeSums:
        """What changed; partial sums of a tile are added in a fixed order."""
        partial = torch.empty((len(self._tiles), 4), dtype=torch.float64, device=self.device)
        with torch.cuda.device(self.device):
            self._kernels.sums[(len(self._tiles),)](
                self._tables,
                self._units,
                self._tiles,
                partial,
                TYPE=self._kernels.TYPES[self.dtype],
                TENSORS=len(self.targets),
                PARTS=self._parts,
                INDEX=self._index,
                WEIGHTS=4 * self._kernels.TILE,
                num_warps=8,
            )
        changed, zeroed, change_squared, original_squared = partial.sum(dim=0).tolist()
        return ChangeSums(int(changed), int(zeroed), change_squared, original_squared)


def make_backends(targets: Sequence[Target]) -> list[DamageBackend]:
    """Keep the baseline of targets, and choose for each device the code that damages them there."""
    shared: dict[tuple[torch.device, torch.dtype], list[Target]] = {}
    for target in targets:
        shared.setdefault((target.weight.device, target.weight.dtype), []).append(target)
    return [_backend(device, together) for (device, _), together in shared.items()]


def _backend(device: torch.device, targets: Sequence[Target]) -> DamageBackend:
    size = sum(target.weight.nbytes for target in targets)
    pinned = device.type == "cuda" and not model_memory.has_room(device, size)
    if pinned:
        logger.info(
            "the baseline of %.1f GiB does not fit on %s: it is kept in pinned memory", size / model_memory.GIB, device
        )
    baseline = keep_baseline(targets, pinned=pinned)
    if has_kernels(device):
        return TritonBackend(targets, baseline)
    return TorchBackend(targets, baseline)
