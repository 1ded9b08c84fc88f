"""Which units of a model are damaged: an exact share of them, at random, by a score, or as a file says.

All of this is done on the CPU, so that it is the same wherever the model is.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from runner import philox
from runner.errors import SpecError
from runner.spec_choice import Within
from runner.spec_methods import exact_count
from runner.target_units import NO_LAYER, Units

SHOWN = 6


def chosen_units(units: Units, amount: float, *, order: Tensor, within: Within) -> Tensor:
    """The first units in `order`, a share `amount` of all units or of those in each layer: bool [units].

    For one order, whatever is chosen at an amount is chosen at every greater one.
    """
    chosen = torch.zeros(units.total, dtype=torch.bool)
    if within == "group":
        chosen[order[: exact_count(amount, units.total)]] = True
        return chosen
    for layer, inside in _by_layer(units, order):
        chosen[inside[: exact_count(amount, units.counts[layer])]] = True
    return chosen


def random_order(units: Units, seed: int) -> Tensor:
    """All units in a random order, int64 [units]: ascending by a 32-bit word that each has, then by number.

    The words of a layer are those of the stream ("units", "KIND LAYER") of the seed, so that they do not depend on what
    other layers the group has.
    """
    words = [
        torch.from_numpy(philox.words(seed, philox.stream_id("units", f"{units.kind} {layer}"), 0, count)).long()
        for layer, count in units.counts.items()
    ]
    return torch.cat(words).argsort(stable=True)


def score_order(units: Units, scores: Mapping[str, Tensor], *, highest: bool, key: str = "scores") -> Tensor:
    """All units by their score, the highest or the lowest first, equal ones by number: int64 [units].

    `scores` has a tensor for each layer, `KIND.LAYER`, and one for all where layers have one unit each, or share them:
    `layer` [layers of the model], `channel` [channels]. `key` is the path in the spec, for errors.

    Raises:
        SpecError: a score is missing, or is no number.
    """
    found = in_order(units, scores, key).to(torch.float64)
    if found.isnan().any():
        layer = next(layer for layer, place in units.slices.items() if found[place].isnan().any())
        raise SpecError(f"{key}: {name_of(units, layer)} has scores that are no number (NaN)")
    return found.argsort(descending=highest, stable=True)


def marked_units(units: Units, masks: Mapping[str, Tensor], *, key: str = "mask") -> Tensor:
    """The units that a file marks, in tensors named as those of scores: bool [units].

    Raises:
        SpecError: a mask is missing, is not boolean, or marks nothing.
    """
    found = in_order(units, masks, key)
    if found.dtype != torch.bool:
        raise SpecError(f"{key}: {name_of(units, next(iter(units.counts)))} has values of {found.dtype}, not bool")
    if not found.any():
        raise SpecError(f"{key}: marks no {units.kind} of the group")
    return found


def matched_random(units: Units, chosen: Tensor, seed: int) -> Tensor:
    """As many random units in every layer as `chosen` has there, bool [units]; some may be the same ones."""
    found = torch.zeros(units.total, dtype=torch.bool)
    for layer, inside in _by_layer(units, random_order(units, seed)):
        found[inside[: int(chosen[units.slices[layer]].sum())]] = True
    return found


def name_of(units: Units, layer: int) -> str:
    """The name of the tensor in a file that speaks of the units of a layer."""
    return units.kind if layer == NO_LAYER or units.kind == "layer" else f"{units.kind}.{layer}"


def in_order(units: Units, tensors: Mapping[str, Tensor], key: str) -> Tensor:
    """What a file says of each unit, [units]; `key` is the path of the file in the spec, for errors.

    Raises:
        SpecError: a tensor is missing, or has not one value for each unit.
    """
    found = []
    for layer, count in units.counts.items():
        name = name_of(units, layer)
        length = units.layers if units.kind == "layer" else count
        if name not in tensors:
            listed = ", ".join(sorted(tensors)[:SHOWN]) or "none"
            raise SpecError(f"{key}: there is no tensor {name!r}; there are: {listed}")
        if tuple(tensors[name].shape) != (length,):
            shape = list(tensors[name].shape)
            raise SpecError(f"{key}: {name} has the shape {shape}, [{length}] is needed: one value for each unit")
        found.append(tensors[name][layer].view(1) if units.kind == "layer" else tensors[name])
    return torch.cat([values.cpu() for values in found])


def _by_layer(units: Units, order: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The units of each layer in this order."""
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    for layer, place in units.slices.items():
        yield layer, rank[place].argsort() + place.start
