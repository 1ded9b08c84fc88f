"""From scores of weights to scores of units: the mean of all weights of a unit, in all its tensors."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from runner.target_choice import name_of
from runner.target_tensor import Target, UnitSet
from runner.target_units import Units


def sums_along(units: UnitSet, scores: Tensor) -> Tensor:
    """The sums of a tensor's scores over all that belongs to one unit: float64 [repeats * size], on the CPU."""
    scores = scores.double()
    if units.repeats == 1:
        return scores.reshape(-1, units.size, units.inner).sum(dim=(0, 2)).cpu()
    gap = units.period // (units.size * units.inner)
    read = scores.reshape(-1, units.repeats, gap, units.size, units.inner)
    return read.sum(dim=(0, 2, 4)).flatten().cpu()


def unit_scores(units: Units, targets: Sequence[Target], scored: Iterable[tuple[Target, Tensor]]) -> dict[str, Tensor]:
    """The mean score of the weights of each unit, float32, by the names that `target_choice` reads.

    `targets` are those of `units`; those that are not scored do not count. A layer that the group has not gets 0 where
    one tensor has all layers. NaN for a unit of which no weight is scored.
    """
    totals, weights = torch.zeros(2, units.total, dtype=torch.float64)
    owners = {target.name: ids for target, ids in zip(targets, units.ids, strict=True)}
    for target, scores in scored:
        ids = owners[target.name].cpu()
        inside = ids >= 0
        totals.index_add_(0, ids[inside], sums_along(target.all_units, scores)[inside])
        each = torch.full((int(inside.sum()),), target.weight.numel() / len(ids), dtype=torch.float64)
        weights.index_add_(0, ids[inside], each)
    means = (totals / weights).float()
    if units.kind == "layer":
        whole = torch.zeros(units.layers)
        whole[[*units.counts]] = means
        return {units.kind: whole}
    return {name_of(units, layer): means[place].clone() for layer, place in units.slices.items()}
