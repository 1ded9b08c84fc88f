"""The three methods, the baseline in memory, and damage in place.

Damage is computed in float32 from the baseline, rounded once to the dtype of the weights, and written into the storage
that the model already uses. It is a pure function of baseline, method, level, seed and tensor name. What stands here is
plain and runs on every device; `kernels` does the same, bit for bit, in one pass on CUDA.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from runner import philox
from runner.spec_methods import Method, is_no_op
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


def damage(targets: Sequence[Target], baseline: Baseline, method: Method, level: float, seed: int) -> None:
    """Write the damaged weights of one condition, whatever was there before."""
    if is_no_op(method, level):
        restore(targets, baseline)
        return
    with torch.no_grad():
        for target, original in zip(targets, baseline, strict=True):
            if method == "uni_quant":
                _quantise(target, original, int(level))
            else:
                _randomise(target, original, method, level, seed)


def ablation_threshold(probability: float) -> int:
    """The words below which a weight is ablated: u = word / 2**32 < p, decided on integers without rounding."""
    return math.ceil(probability * 2**32)


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


def _randomise(target: Target, original: Tensor, method: Method, level: float, seed: int) -> None:
    stream = philox.stream_id("damage", target.name)
    for first, kept, destination in blocks(original, target.weight):
        source, count = kept.to(destination.device), kept.numel()
        if method == "mult_gauss":
            z = torch.from_numpy(philox.normals(seed, stream, first, count)).to(source.device)
            damaged = multiply_gauss(source.float(), z, level)
        else:
            words = torch.from_numpy(philox.words(seed, stream, first, count)).to(source.device)
            damaged = source.masked_fill(words.to(torch.int64) < ablation_threshold(level), 0.0)
        _write(target, first, source, damaged, destination)


def multiply_gauss(weight: Tensor, z: Tensor, sigma: float) -> Tensor:
    """Weight times (1 + sigma z) in float32: three operations, each rounded, none fused."""
    scaled = z * torch.tensor(sigma, dtype=torch.float32, device=z.device)
    return weight * (scaled + 1.0)


def _quantise(target: Target, original: Tensor, levels: int) -> None:
    """Replace every weight by the nearest of `levels` equally spaced values from the least to the greatest.

    Which value is nearest is decided in float64, the values themselves are float32 numbers. Of two equally near values
    the one of even index is taken.
    """
    low, high = bounds(target, original)
    if low == high:
        target.weight.copy_(original)
        return
    most, step = levels - 1, (high - low) / (levels - 1)
    # A tensor, since a division by a number is a multiplication by its reciprocal on CUDA, and not exact.
    span = torch.tensor(high - low, dtype=torch.float64, device=target.weight.device)
    for first, kept, destination in blocks(original, target.weight):
        source = kept.to(destination.device)
        index = ((source.double() - low) * most / span).round().clamp_(0, most)
        value = (index * step + low).float()
        _write(target, first, source, torch.where(index == most, high, value), destination)
