"""Bounds, mean and standard deviation of the undamaged weights of a target, the same bits on every device.

A sum is made in float64 by folding: the values, filled up with zeros to a power of two, are halved and the halves
added element by element until one is left. Every addition is one IEEE operation at a fixed place, so that no device
may choose an order of its own, as it may in `torch.sum`.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from runner.damage_blocks import blocks
from runner.spec_methods import Per
from runner.target_tensor import Target

Statistic = Literal["bounds", "mean", "deviation"]

CHUNK = 2**24  # weights that are folded together; the sum depends on it, so it never changes


def statistic(kind: Statistic, target: Target, original: Tensor, per: Per = "tensor") -> Tensor:
    """Float64 [1 or rows, 2] on the host: the least and the greatest weight; or mean, or standard deviation, and 0.

    Of all weights of the target, or of those in each row. What is said of a row that has none has no meaning.
    """
    if kind == "bounds":
        return _row_bounds(target, original) if per == "row" else torch.tensor([bounds(target, original)]).double()
    found = _mean_of_squares(target, original, per, None)
    if kind == "deviation":
        # Of the population: the root of the mean square of what is left when the mean is taken away.
        found = torch.from_numpy(np.sqrt(_mean_of_squares(target, original, per, found).numpy()))
    return torch.stack([found, torch.zeros_like(found)], dim=1)


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


def folded(values: Tensor) -> Tensor:
    """Sums over the last dimension of float64 values, each addition at a fixed place."""
    length = 1 << max(values.shape[-1] - 1, 0).bit_length()
    values = torch.nn.functional.pad(values, (0, length - values.shape[-1]))
    while length > 1:
        length //= 2
        values = values[..., :length] + values[..., length:]
    return values[..., 0]


def _mean_of_squares(target: Target, original: Tensor, per: Per, around: Tensor | None) -> Tensor:
    """Float64 [1 or rows]: the mean of the weights, or of the squares of their distances from `around`."""
    sums, counts, row = [], [], 0
    for weights, counted in _stretches(target, original, per):
        values = weights.double()
        if around is not None:
            middle = around[row : row + len(values)] if per == "row" else around
            values = values - middle.to(values.device)[:, None]
            values = values * values
        if counted is not None:
            values = values.where(counted, 0.0)
        sums.append(folded(values).cpu())
        whole = torch.full((len(values),), values.shape[1])
        counts.append(whole if counted is None else counted.sum(dim=1).cpu())
        row += len(values)
    total, count = torch.cat(sums), torch.cat(counts)
    return total / count if per == "row" else folded(total).view(1) / count.sum()


def _row_bounds(target: Target, original: Tensor) -> Tensor:
    found = []
    for weights, counted in _stretches(target, original, "row"):
        low = weights if counted is None else weights.where(counted, torch.inf)
        high = weights if counted is None else weights.where(counted, -torch.inf)
        found.append(torch.stack([low.amin(dim=1), high.amax(dim=1)], dim=1).double().cpu())
    return torch.cat(found)


def _stretches(target: Target, original: Tensor, per: Per) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The weights, and which of them count if not all: whole rows [rows, columns], or a chunk of the tensor as one."""
    flat, device = original.view(-1), target.weight.device
    columns = original.shape[-1] if per == "row" else CHUNK
    step = columns * max(1, CHUNK // columns)
    for first in range(0, flat.numel(), step):
        weights = flat[first : first + step].to(device)
        counted = target.units.select(first, weights.numel(), device) if target.units is not None else None
        shape = (-1, columns) if per == "row" else (1, -1)
        yield weights.view(shape), None if counted is None else counted.view(shape)
