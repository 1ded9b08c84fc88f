"""The formula of each method, the baseline in memory, and damage in place.

Damage is computed in float32 from the baseline, rounded once to the dtype of the weights, and written into the storage
that the model already uses. It is a pure function of baseline, method, level, seed and tensor name. What stands here is
plain and runs on every device; `damage_kernels` does the same, bit for bit, in one pass on CUDA.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from attrs import frozen
from torch import Tensor

from runner import philox
from runner.spec_methods import METHODS, Draws, Method, is_no_op
from runner.target_tensor import Target

BLOCK = 2**24  # weights at a time: bounds the memory that damage needs beside the model

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
    chosen: Sequence[Tensor] | None = None,
) -> None:
    """Write the damaged weights of one condition, whatever was there before.

    `chosen` says for every target which of its units are damaged in this condition, bool [units]; without it, all that
    the target names. What is measured of a target, such as its greatest weight, is that of all units that it names.
    """
    if is_no_op(method, level):
        restore(targets, baseline)
        return
    with torch.no_grad():
        for index, (target, original) in enumerate(zip(targets, baseline, strict=True)):
            damaged = _of_target(target, original, method, level, seed)
            meant = target if chosen is None else target.choosing(chosen[index])
            for first, kept, destination in blocks(original, target.weight):
                source = kept.to(destination.device)
                _write(meant, first, source, damaged(first, source), destination)


def _of_target(
    target: Target, original: Tensor, method: Method, level: float, seed: int
) -> Callable[[int, Tensor], Tensor]:
    """From the flat index at which a block of the target starts, and its weights, to the damaged ones."""
    formula, draws = FORMULAS[method], METHODS[method].draws
    parameter = formula.parameter(level)
    if isinstance(formula, WithBounds):
        extremes = bounds(target, original)
        return lambda _, weights: formula.damaged(weights, extremes, parameter)
    stream = philox.stream_id("damage", target.name)
    return lambda first, weights: formula.damaged(weights, _drawn(draws, seed, stream, first, weights), parameter)


def bounds(target: Target, original: Tensor) -> tuple[float, float]:
    """The least and the greatest undamaged weight of a target."""
    if target.units is None:
        low, high = original.aminmax()
        return float(low), float(high)
    found = []
    for first, source, _ in blocks(original, target.weight):
        chosen = source[target.units.select(first, source.numel(), source.device)]
        if chosen.numel():
            found.append(torch.stack(chosen.aminmax()))
    low, high = torch.stack(found).amin(dim=0)[0], torch.stack(found).amax(dim=0)[1]
    return float(low), float(high)


def blocks(original: Tensor, weight: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Flat views of the same block of both tensors, with the flat index at which it starts."""
    source, destination = original.view(-1), weight.view(-1)
    for first in range(0, source.numel(), BLOCK):
        yield first, source[first : first + BLOCK], destination[first : first + BLOCK]


def _write(target: Target, first: int, source: Tensor, damaged: Tensor, destination: Tensor) -> None:
    """Round once and store; what is not of the target's units stays as it was."""
    damaged = damaged.to(destination.dtype)
    if target.units is not None:
        chosen = target.units.select(first, source.numel(), source.device)
        damaged = torch.where(chosen, damaged, source)
    destination.copy_(damaged)


def _drawn(draws: Draws, seed: int, stream: int, first: int, weights: Tensor) -> Tensor:
    """What is drawn for the weights of a block: normals [count] float32, words [count] int64, or nothing [0]."""
    if draws == "nothing":
        return weights.new_empty(0)
    draw = philox.normals if draws == "normals" else philox.words
    drawn = torch.from_numpy(draw(seed, stream, first, weights.numel())).to(weights.device)
    return drawn.to(torch.int64) if draws == "words" else drawn


@frozen
class Elementwise:
    """A method that makes of each weight, and what is drawn for it, the damaged one."""

    damaged: Callable[[Tensor, Tensor, float], Tensor]  # of weights, what is drawn for them, and the parameter
    parameter: Callable[[float], float]  # from a level to the number that formula and kernel compute with


@frozen
class WithBounds:
    """A method that draws nothing and has to know the least and the greatest weight of a target."""

    damaged: Callable[[Tensor, tuple[float, float], float], Tensor]  # of weights, their bounds and the parameter
    parameter: Callable[[float], float]


def multiply_gauss(weights: Tensor, z: Tensor, sigma: float) -> Tensor:
    """Weight times (1 + sigma z) in float32: three operations, each rounded, none fused."""
    scaled = z * torch.tensor(sigma, dtype=torch.float32, device=z.device)
    return weights.float() * (scaled + 1.0)


def ablate(weights: Tensor, words: Tensor, last: float) -> Tensor:
    """Zero where the word is at most `last`."""
    return weights.masked_fill(words <= last, 0.0)


def last_ablated(probability: float) -> int:
    """The greatest word that ablates: u = word / 2**32 < p, decided on integers without rounding."""
    return math.ceil(probability * 2**32) - 1


def quantise(weights: Tensor, extremes: tuple[float, float], most: float) -> Tensor:
    """The nearest of `most + 1` equally spaced values from the least to the greatest weight.

    Which value is nearest is decided in float64, the values themselves are float32 numbers. Of two equally near values
    the one of even index is taken.
    """
    low, high = extremes
    if low == high:
        return weights
    step = (high - low) / most
    # A tensor, since a division by a number is a multiplication by its reciprocal on CUDA, and not exact.
    span = torch.tensor(high - low, dtype=torch.float64, device=weights.device)
    index = ((weights.double() - low) * most / span).round().clamp_(0, most)
    return torch.where(index == most, high, (index * step + low).float())


FORMULAS: dict[Method, Elementwise | WithBounds] = {
    "mult_gauss": Elementwise(multiply_gauss, parameter=float),
    "ablation": Elementwise(ablate, parameter=last_ablated),
    "uni_quant": WithBounds(quantise, parameter=lambda levels: float(levels - 1)),
}
