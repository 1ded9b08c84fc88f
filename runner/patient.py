"""A model under damage, one condition at a time: where its baseline lies, which code damages it, what came of it."""

import logging
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Protocol, Self

import torch
from torch import Tensor

from runner import vram
from runner.damage import Baseline, damage, is_deterministic, keep_baseline, restore
from runner.digest import bind, fingerprint
from runner.evidence import Evidence, Sums, add, evidence, sums_of
from runner.sweep import Method
from runner.target import Target

logger = logging.getLogger(__name__)


class Ward(Protocol):
    """The tensors of a group on one device with one dtype, their baseline, and the code that serves them."""

    targets: Sequence[Target]
    baseline: Baseline

    def damage(self, method: Method, level: float, seed: int) -> None:
        """Write the damaged weights of a condition."""

    def fingerprints(self) -> list[int]:
        """The fingerprint of each tensor."""

    def sums(self) -> Sums:
        """What changed."""


class PlainWard:
    """Any device, with NumPy and PyTorch alone."""

    def __init__(self, targets: Sequence[Target], baseline: Baseline) -> None:
        """Take over the targets and their baseline."""
        self.targets, self.baseline = targets, baseline

    def damage(self, method: Method, level: float, seed: int) -> None:
        """Write the damaged weights of a condition."""
        damage(self.targets, self.baseline, method, level, seed)

    def fingerprints(self) -> list[int]:
        """The fingerprint of each tensor."""
        return [fingerprint(target.weight) for target in self.targets]

    def sums(self) -> Sums:
        """What changed."""
        return sums_of(self.targets, self.baseline)


class Patient:
    """A model whose groups are damaged one condition at a time; leaving the `with` block restores every bit."""

    def __init__(self, find_targets: Callable[[str], Sequence[Target]]) -> None:
        """`find_targets` gives the tensors of a group by its name."""
        self._find_targets = find_targets
        self._group = ""
        self._targets: Sequence[Target] = ()
        self._wards: list[Ward] = []
        self._state: tuple[str, Method, float, int | None] | None = None
        self._digest = ""
        self._evidence: Evidence | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    @property
    def baseline_places(self) -> list[str]:
        """Where the baseline of the group lies: `cuda:0`, `cpu`, or `pinned` memory that the GPU reads directly."""
        places = {"pinned" if t.is_pinned() else str(t.device) for ward in self._wards for t in ward.baseline}
        return sorted(places)

    def damage(self, group: str, method: Method, level: float, seed: int) -> str:
        """Bring the model into a condition and return the digest of the group's tensors.

        Conditions of the same weights (all repeats of a deterministic level) are damaged once.
        """
        state = (group, method, level, None if is_deterministic(method, level) else seed)
        if state == self._state:
            return self._digest
        self._state = None  # should damage be interrupted, the next condition must not trust what is there
        if group != self._group:
            self._choose(group)
        for ward in self._wards:
            ward.damage(method, level, seed)
        self._digest, self._evidence = self._read_digest(), None
        self._state = state
        return self._digest

    def evidence(self, method: Method) -> Evidence:
        """What the damage that is there now did; measured once, however many conditions share it."""
        if self._evidence is None:
            sums = add(ward.sums() for ward in self._wards)
            self._evidence = evidence(self._targets, sums, count_values=method == "uni_quant")
        return self._evidence

    def _read_digest(self) -> str:
        prints: dict[str, tuple[Tensor, int]] = {}
        for ward in self._wards:
            for target, number in zip(ward.targets, ward.fingerprints(), strict=True):
                prints[target.name] = (target.weight, number)
        # In the order of the targets, whatever device they are on; two copies of a tied tensor are one.
        names = dict.fromkeys(target.name for target in self._targets)
        return bind([(name, *prints[name]) for name in names])

    def _restore(self) -> None:
        for ward in self._wards:
            restore(ward.targets, ward.baseline)

    def _choose(self, group: str) -> None:
        """Make another group the one that is damaged."""
        self._restore()
        self._group, self._targets, self._wards = "", (), []
        self._targets = self._find_targets(group)
        self._wards = admit(self._targets)
        self._group = group


def admit(targets: Sequence[Target]) -> list[Ward]:
    """Keep the baseline of targets, and choose for each device the code that damages them there."""
    shared: dict[tuple[torch.device, torch.dtype], list[Target]] = {}
    for target in targets:
        shared.setdefault((target.weight.device, target.weight.dtype), []).append(target)
    return [_ward(device, together) for (device, _), together in shared.items()]


def _ward(device: torch.device, targets: Sequence[Target]) -> Ward:
    size = sum(target.weight.nbytes for target in targets)
    pinned = device.type == "cuda" and not vram.has_room(device, size)
    if pinned:
        logger.info("the baseline of %.1f GiB does not fit on %s: it is kept in pinned memory", size / vram.GIB, device)
    baseline = keep_baseline(targets, pinned=pinned)
    if device.type == "cuda" and find_spec("triton"):
        from runner.kernels import KernelWard

        return KernelWard(targets, baseline)
    return PlainWard(targets, baseline)
