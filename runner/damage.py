"""The three methods, the baseline in memory, and damage in place.

Damage is computed in float32 from the baseline, rounded once to the dtype of the weights, and written into the storage
that the model already uses. It is a pure function of baseline, method, level, seed and tensor name.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Self

import torch
from torch import Tensor

from runner import noise
from runner.digest import digest_of
from runner.target import Target
from runner.sweep import Method

BLOCK = 2**24  # weights at a time: bounds the memory that damage needs beside the model


Baseline = list[Tensor]


def keep_baseline(targets: Sequence[Target]) -> Baseline:
    """A copy of the undamaged weights, in memory beside the model (`subset_in_memory`)."""
    return [target.weight.detach().clone() for target in targets]


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
                _quantise(original, target.weight, int(level))
            else:
                _randomise(original, target.weight, method, level, seed, noise.stream_of("damage", target.name))


def is_no_op(method: Method, level: float) -> bool:
    """Whether a level leaves every weight as it is."""
    return method != "uni_quant" and level == 0


def is_deterministic(method: Method, level: float) -> bool:
    """Whether all repeats of a level share one damaged model."""
    return method == "uni_quant" or is_no_op(method, level)


def _randomise(original: Tensor, weight: Tensor, method: Method, level: float, seed: int, stream: int) -> None:
    for first, source, destination in _blocks(original, weight):
        count = source.numel()
        if method == "mult_gauss":
            z = torch.from_numpy(noise.normals(seed, stream, first, count)).to(source.device)
            destination.copy_(multiply_gauss(source.float(), z, level))
        else:
            words = torch.from_numpy(noise.words(seed, stream, first, count)).to(source.device)
            destination.copy_(ablate(source, words, level))


def multiply_gauss(weight: Tensor, z: Tensor, sigma: float) -> Tensor:
    """W * (1 + sigma * z) in float32: three operations, each rounded, none fused."""
    scaled = z * torch.tensor(sigma, dtype=torch.float32, device=z.device)
    return weight * (scaled + 1.0)


def ablate(weight: Tensor, words: Tensor, probability: float) -> Tensor:
    """Zero where u < p for u = word / 2**32, compared as integers: no rounding decides."""
    return torch.where(words.to(torch.int64) < math.ceil(probability * 2**32), torch.zeros_like(weight), weight)


def _quantise(original: Tensor, weight: Tensor, levels: int) -> None:
    """Replace every weight by the nearest of `levels` equally spaced values from the tensor's minimum to its maximum.

    Which value is nearest is decided in float64, the values themselves are float32 numbers. Of two equally near values
    the one of even index is taken.
    """
    low, high = (float(bound) for bound in original.aminmax())
    if low == high:
        weight.copy_(original)
        return
    step = (high - low) / (levels - 1)
    # A tensor, since a division by a number is a multiplication by its reciprocal on CUDA, and not exact.
    span = torch.tensor(high - low, dtype=torch.float64, device=original.device)
    for _, source, destination in _blocks(original, weight):
        index = ((source.double() - low) * (levels - 1) / span).round().clamp_(0, levels - 1)
        value = (index * step + low).float()
        destination.copy_(torch.where(index == levels - 1, high, value))


def _blocks(original: Tensor, weight: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Flat views of the same block of both tensors, with the flat index at which it starts."""
    source, destination = original.view(-1), weight.view(-1)
    for first in range(0, source.numel(), BLOCK):
        yield first, source[first : first + BLOCK], destination[first : first + BLOCK]


class Patient:
    """A model whose groups are damaged one condition at a time; leaving the `with` block restores every bit."""

    def __init__(self, find_targets: Callable[[str], Sequence[Target]]) -> None:
        """`find_targets` gives the tensors of a group by its name."""
        self._find_targets = find_targets
        self._group = ""
        self._targets: Sequence[Target] = ()
        self._baseline: Baseline = []
        self._state: tuple[str, Method, float, int | None] | None = None
        self._digest = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        restore(self._targets, self._baseline)

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
        damage(self._targets, self._baseline, method, level, seed)
        self._digest = digest_of([(target.name, target.weight) for target in self._targets])
        self._state = state
        return self._digest

    def _choose(self, group: str) -> None:
        """Make another group the one that is damaged."""
        restore(self._targets, self._baseline)
        self._group, self._targets, self._baseline = "", (), []
        self._targets = self._find_targets(group)
        self._baseline = keep_baseline(self._targets)
        self._group = group
