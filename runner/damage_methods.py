"""The formula of each method, the baseline in memory, and damage in place.

Damage is computed from the baseline, rounded once to the dtype of the weights, and written into the storage that the
model already uses. It is a pure function of baseline, method, level, options, seed and tensor name. What stands here is
plain and runs on every device; `damage_kernels` does the same, bit for bit, in one pass on CUDA.
"""

import math
from collections.abc import Callable, Sequence

import torch
from attrs import frozen
from torch import Tensor

from runner import philox
from runner.damage_blocks import blocks, drawn
from runner.damage_rearranging import Change, prune, shuffle
from runner.damage_statistics import Statistic, statistic
from runner.errors import SpecError
from runner.spec_methods import METHODS, PLAIN, Bits, Method, Options, bit_positions, is_no_op
from runner.target_tensor import Target

Baseline = list[Tensor]


def keep_baseline(targets: Sequence[Target], *, pinned: bool = False) -> Baseline:
    """A copy of the undamaged weights: beside them, or in memory of the host that the GPU can read."""
    if not pinned:
        return [target.weight.detach().clone() for target in targets]
    return [torch.empty_like(t.weight, device="cpu", pin_memory=True).copy_(t.weight) for t in targets]


def restore(targets: Sequence[Target], baseline: Baseline) -> None:
    """Bring back every bit of the undamaged weights."""
    with torch.no_grad():
        for target, original in zip(targets, baseline, strict=True):
            target.weight.copy_(original)


def restore_protected(targets: Sequence[Target], baseline: Baseline) -> None:
    """Bring back the weights that are to stay whole."""
    with torch.no_grad():
        for target, original in zip(targets, baseline, strict=True):
            if target.protected is not None:
                places = target.protected.to(target.weight.device)
                kept = original.view(-1)[target.protected.to(original.device)]
                target.weight.view(-1)[places] = kept.to(target.weight.device)


def damage(
    targets: Sequence[Target],
    baseline: Baseline,
    method: Method,
    level: float,
    seed: int,
    *,
    options: Options = PLAIN,
    chosen: Sequence[Tensor] | None = None,
) -> None:
    """Write the damaged weights of one condition, whatever was there before.

    `chosen` says for every target which of its units are damaged in this condition, bool [units]; without it, all that
    the target names. What is measured of a target, such as its greatest weight, is that of all units that it names.
    """
    if is_no_op(method, level, options):
        restore(targets, baseline)
        return
    with torch.no_grad():
        parts = targets if chosen is None else [t.choosing(table) for t, table in zip(targets, chosen, strict=True)]
        for target, part, original in zip(targets, parts, baseline, strict=True):
            if part.count == 0:
                part.weight.copy_(original)
                continue
            change = _change_of(target, part, original, method, level, seed, options)
            for first, kept, destination in blocks(original, target.weight):
                source = kept.to(destination.device)
                _write(part, first, source, change(first, source), destination, seed, options.share)


def _write(
    part: Target, first: int, source: Tensor, damaged: Tensor, destination: Tensor, seed: int, share: float | None
) -> None:
    """Round once and store; what is not of the units, or of the share that is chosen, stays as it was."""
    damaged = damaged.to(destination.dtype)
    if part.units is not None:
        damaged = torch.where(part.units.select(first, source.numel(), source.device), damaged, source)
    if share is not None:
        words = drawn("words", seed, philox.stream_id("share", part.name), first, source)
        damaged = torch.where(words <= last_chosen(share), damaged, source)
    destination.copy_(damaged)


def _change_of(
    target: Target, part: Target, original: Tensor, method: Method, level: float, seed: int, options: Options
) -> Change:
    """From the flat index at which a block starts, and its weights, to the damaged ones.

    Statistics are those of the target, also where a condition damages a part of it only.
    """
    formula, draws = FORMULAS[method], METHODS[method].draws
    if isinstance(formula, Rearranging):
        return formula.prepared(part, original, level, seed, options)
    parameter, stream = formula.parameter(level), philox.stream_id("damage", target.name)
    if isinstance(formula, Elementwise):
        return lambda first, weights: formula.damaged(weights, drawn(draws, seed, stream, first, weights), parameter)
    if isinstance(formula, BitFlips):
        masks = bit_masks(formula.bits or options.bits, original.dtype).to(target.weight.device)
        other = philox.stream_id("bits", target.name)
        return lambda first, weights: flip_bits(
            weights,
            drawn("words", seed, stream, first, weights),
            drawn("words", seed, other, first, weights) if len(masks) > 1 else None,
            int(parameter),
            masks,
        )
    details = statistic(formula.statistic, target, original, options.per).to(target.weight.device)

    def with_statistics(first: int, weights: Tensor) -> Tensor:
        found = details
        if options.per == "row":
            rows = torch.arange(first, first + weights.numel(), device=weights.device) // original.shape[-1]
            found = details[rows]
        return formula.damaged(weights, drawn(draws, seed, stream, first, weights), found, parameter)

    return with_statistics


@frozen
class Elementwise:
    """A method that makes of each weight, and what is drawn for it, the damaged one."""

    damaged: Callable[[Tensor, Tensor, float], Tensor]  # of weights, what is drawn for them, and the parameter
    parameter: Callable[[float], float]  # from a level to the number that formula and kernel compute with


@frozen
class WithStatistics:
    """A method that has to know a statistic of the target, or of each of its rows.

    It is given as float64 [1, 2], or for each weight that of its row, [count, 2].
    """

    statistic: Statistic
    damaged: Callable[[Tensor, Tensor, Tensor, float], Tensor]  # of weights, what is drawn, statistic and parameter
    parameter: Callable[[float], float]


@frozen
class BitFlips:
    """A method that flips one bit of the weights that it chooses."""

    bits: Bits | None  # None: those of the options
    parameter: Callable[[float], float]


@frozen
class Rearranging:
    """A method that looks at a whole tensor before it damages any of its weights."""

    prepared: Callable[[Target, Tensor, float, int, Options], Change]  # of part, baseline, level, seed and options


def multiply_gauss(weights: Tensor, z: Tensor, sigma: float) -> Tensor:
    """Weight times (1 + sigma z) in float32: three operations, each rounded, none fused."""
    scaled = z * torch.tensor(sigma, dtype=torch.float32, device=z.device)
    return weights.float() * (scaled + 1.0)


def add_gauss(weights: Tensor, z: Tensor, deviation: Tensor, sigma: float) -> Tensor:
    """Weight plus sigma times the standard deviation of target or row times z.

    Four roundings to float32: deviation, its product with sigma, that with z, and the sum.
    """
    scale = deviation[:, 0].float() * torch.tensor(sigma, dtype=torch.float32, device=z.device)
    return weights.float() + z * scale


def ablate(weights: Tensor, words: Tensor, last: float) -> Tensor:
    """Zero where the word is at most `last`."""
    return weights.masked_fill(words <= last, 0.0)


def replace_by_mean(weights: Tensor, words: Tensor, mean: Tensor, last: float) -> Tensor:
    """The mean of the target, rounded to float32 and then to the dtype, where the word is at most `last`."""
    return torch.where(words <= last, mean[:, 0].float().to(weights.dtype), weights)


def last_chosen(probability: float) -> int:
    """The greatest word that chooses a weight: u = word / 2**32 < p, decided on integers without rounding."""
    return math.ceil(probability * 2**32) - 1


def quantise(weights: Tensor, _: Tensor, extremes: Tensor, most: float) -> Tensor:
    """The nearest of `most + 1` equally spaced values from the least to the greatest weight of target or row.

    Which value is nearest is decided in float64, the values themselves are float32 numbers. Of two equally near values
    the one of even index is taken.
    """
    low, high = extremes.unbind(dim=-1)
    span = high - low
    # A tensor, since a division by a number is a multiplication by its reciprocal on CUDA, and not exact.
    step = span / torch.tensor(most, dtype=torch.float64, device=weights.device)
    index = ((weights.double() - low) * most / span).round().clamp_(0, most)
    values = torch.where(index == most, high.float(), (index * step + low).float())
    return torch.where(span == 0, weights.float(), values)


def flip_bits(weights: Tensor, words: Tensor, others: Tensor | None, last: int, masks: Tensor) -> Tensor:
    """One bit of the weight as it is stored is flipped, where the word is at most `last`.

    Random bit flips, as memory faults and Rakin et al. 2019, "Bit-Flip Attack" (arXiv:1903.12269), make them; which of
    the masks flips is drawn uniformly, to 2**-27: (other word * masks) // 2**32.
    """
    stored = weights.view(masks.dtype)
    mask = masks if others is None else masks[others * len(masks) >> 32]
    return torch.where(words <= last, stored ^ mask, stored).view(weights.dtype)


def bit_masks(bits: Bits, dtype: torch.dtype) -> Tensor:
    """One mask for each bit that may flip, as signed integers of the length of the dtype.

    Raises:
        SpecError: the dtype has no such bit.
    """
    try:
        positions = bit_positions(bits, str(dtype).removeprefix("torch."))
    except ValueError as error:
        raise SpecError(f"bits: {error}") from None
    integer = torch.int16 if dtype.itemsize == torch.int16.itemsize else torch.int32
    half = 2 ** (8 * dtype.itemsize - 1)
    return torch.tensor([(2**position + half) % (2 * half) - half for position in positions], dtype=integer)


FORMULAS: dict[Method, Elementwise | WithStatistics | BitFlips | Rearranging] = {
    "mult_gauss": Elementwise(multiply_gauss, parameter=float),
    "ablation": Elementwise(ablate, parameter=last_chosen),
    "uni_quant": WithStatistics("bounds", quantise, parameter=lambda levels: float(levels - 1)),
    "add_gauss": WithStatistics("deviation", add_gauss, parameter=float),
    "mean": WithStatistics("mean", replace_by_mean, parameter=last_chosen),
    "sign_flip": BitFlips("sign", parameter=last_chosen),
    "bit_flip": BitFlips(None, parameter=last_chosen),
    "prune": Rearranging(prune),
    "shuffle": Rearranging(shuffle),
}


def in_kernel(method: Method, options: Options) -> bool:
    """Whether `damage_kernels` has the method with these options."""
    return not isinstance(FORMULAS[method], Rearranging) and options.per == "tensor" and options.share is None
