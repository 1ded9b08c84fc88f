"""Units of a model, such as neurons and heads: which weights of a group belong to which."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, get_args

import torch
from attrs import evolve, frozen
from torch import Tensor

from runner.errors import SpecError
from runner.spec_choice import UnitKind
from runner.target_axes import WeightLocation, unit_set
from runner.target_families import FAMILIES, Role, inexact
from runner.target_groups import head_of, layer_of, text_of
from runner.target_tensor import Target

# The axes along which units of a kind are counted, and the roles of the tensors in which they have weights. A tensor
# takes part if it has the last of the axes. A channel runs through all layers, in whatever reads or writes it.
KINDS: dict[UnitKind, tuple[tuple[str, ...], tuple[Role, ...]]] = {
    "neuron": (("expert", "neuron"), ("gate", "up", "down")),
    "head": (("kv", "query"), ("q", "o")),
    "kv_head": (("kv",), ("q", "k", "v", "o")),
    "channel": (("channel",), ("q", "k", "v", "o", "gate", "up", "down", "embed", "norms", "head", "rest")),
    "expert": (("expert",), ("gate", "up", "down")),
    "layer": ((), ("o", "down")),
}
WRITERS: tuple[Role, ...] = ("o", "down")  # of the residual stream: their biases have its channels
HAVE_NO_BIAS: tuple[Role, ...] = ("embed", "head", "rest")  # none with an axis of units
NO_LAYER = -1  # the layer of channels


@frozen(eq=False)
class Units:
    """Which unit each index along the axes of the targets belongs to; the numbers of units run through the layers."""

    kind: UnitKind
    counts: Mapping[int, int]  # units in each layer that the group has, ascending; all channels are in layer -1
    layers: int  # of the model
    ids: tuple[Tensor, ...]  # for each target, of each index of its `UnitSet` the unit, -1 where there is none: int64

    @cached_property
    def total(self) -> int:
        """How many units there are."""
        return sum(self.counts.values())

    @cached_property
    def slices(self) -> dict[int, slice]:
        """The numbers of the units of each layer."""
        found, begin = {}, 0
        for layer, count in self.counts.items():
            found[layer] = slice(begin, begin + count)
            begin += count
        return found


@frozen(eq=False)
class _Part:
    """What of one tensor belongs to units: parts of a fused one may be several locations."""

    name: str
    weight: Tensor
    places: dict[Role, WeightLocation]


def find_units(model: Any, targets: Sequence[Target], kind: UnitKind, key: str) -> tuple[tuple[Target, ...], Units]:
    """The tensors of a group that have units of a kind, each with the set of all its units, and whose these are.

    A bias goes with its matrix, also where the group does not name it. Tensors without such units are left out.
    An ablated head, kv_head, neuron or expert adds exactly nothing to the residual stream, a layer neither. A channel
    that is ablated in all of the model is neither written nor read, except by the normalisation layers, whose mean and
    variance are still over all channels. Where heads are normalised together (the q_norm and k_norm of OLMo 2 and 3),
    the queries of other heads are scaled by other numbers once the rows of a head are damaged.

    Args:
        model: Of a known family.
        targets: Of the group.
        kind: Of the units.
        key: What asks for units in the spec, for errors.

    Raises:
        SpecError: the family is unknown, or no tensor of the group has such units, or they cannot be taken out exactly.
    """
    config = model.config.get_text_config()
    if config.model_type not in FAMILIES:
        raise SpecError(
            f"{key}: the units of model family {config.model_type!r} are not known; known are "
            f"{', '.join(sorted(FAMILIES))}"
        )
    reason = inexact(config).get(kind)
    if reason is not None:
        raise SpecError(f"{key}: {reason}")
    known = _known(model)
    parts = _parts(model, known, targets, kind)
    if not parts:
        others = [other for other in get_args(UnitKind) if _parts(model, known, targets, other)]
        raise SpecError(_refusal(kind, others, key))
    axes, _ = KINDS[kind]
    tables = [_numbers(part, axes) for part in parts]
    counts = dict(sorted({_layer(kind, part): _count(part, axes) for part in parts}.items()))
    units = Units(kind, counts, config.num_hidden_layers, ())
    begins = {layer: numbers.start for layer, numbers in units.slices.items()}
    found, ids = [], []
    for part, (numbers, shape) in zip(parts, tables, strict=True):
        chosen, table = unit_set(numbers, shape)
        found.append(Target(part.name, part.weight, chosen))
        ids.append(torch.where(table >= 0, table + begins[_layer(kind, part)], -1))
    return tuple(found), evolve(units, ids=tuple(ids))


def masks_of(units: Units, selected: Tensor) -> list[Tensor]:
    """For each target which indices of its `UnitSet` belong to the selected units, bool; `selected` is bool [units]."""
    return [(ids >= 0) & selected[ids.clamp(min=0)] for ids in units.ids]


def _known(model: Any) -> dict[str, dict[Role, WeightLocation]]:
    """What stands where in each tensor of decoder and head, biases included, by its canonical name."""
    config, named = model.config.get_text_config(), text_of(model)
    found: dict[str, dict[Role, WeightLocation]] = {}
    for role, places in FAMILIES[config.model_type](config).items():
        for place in places:
            found.setdefault(place.name, {})[role] = place
            bias = _bias(role, place)
            if bias is not None and bias.name in named:
                found.setdefault(bias.name, {})[role] = bias
    if "lm_head.weight" in head_of(model):
        embed = FAMILIES[config.model_type](config)["embed"][0]
        found["lm_head.weight"] = {"head": evolve(embed, name="lm_head.weight")}
    return found


def _bias(role: Role, place: WeightLocation) -> WeightLocation | None:
    """The bias of a matrix: it has those of the axes that the outputs have."""
    if role in HAVE_NO_BIAS:
        return None
    inputs = {"kv", "query", "d", "neuron"} if role in WRITERS else {"channel"} if role != "norms" else set()
    stem, weight, _ = place.name.rpartition(".weight")
    return place.without(inputs, name=f"{stem}.bias" if weight else f"{place.name}_bias")


def _parts(
    model: Any, known: Mapping[str, dict[Role, WeightLocation]], targets: Sequence[Target], kind: UnitKind
) -> list[_Part]:
    """What the group has of units of a kind, in the order of the model."""
    axes, roles = KINDS[kind]
    text = text_of(model)
    found: dict[tuple[str, int], _Part] = {}
    for target in targets:
        for role, place in known.get(target.name, {}).items():
            if role not in roles or (axes and axes[-1] not in place.names) or not _has(target, place):
                continue
            bias = _bias(role, place)
            with_bias = [(place, target.weight)]
            if bias is not None and bias.name in text and target.name != bias.name:
                with_bias.append((bias, text[bias.name]))
            for own, weight in with_bias:
                if not axes or axes[-1] in own.names:
                    part = found.setdefault((own.name, id(weight)), _Part(own.name, weight, {}))
                    part.places[role] = own
    order = {name: index for index, name in enumerate([*text, *head_of(model)])}
    return sorted(found.values(), key=lambda part: order[part.name])


def _has(target: Target, place: WeightLocation) -> bool:
    """Whether a part of a tensor is among what the group has of it."""
    own = place.target(target.weight).units
    if target.units is None or own is None:
        return target.units is None
    return bool((target.units.chosen | ~own.chosen).all())


def _numbers(part: _Part, axes: tuple[str, ...]) -> tuple[Tensor, list[int]]:
    """The number of the unit in its layer for all weights of a tensor, as `WeightLocation.numbers` gives it."""
    found = [place.numbers(part.weight, axes) for place in part.places.values()]
    numbers, shape = found[0]
    for other, same in found[1:]:
        if same != shape:
            raise AssertionError(f"{part.name}: parts of several shapes: {shape} and {same}")
        numbers = torch.maximum(numbers, other)
    return numbers, shape


def _layer(kind: UnitKind, part: _Part) -> int:
    return NO_LAYER if kind == "channel" else layer_of(part.name)


def _count(part: _Part, axes: tuple[str, ...]) -> int:
    """How many units there are in the layer of a tensor."""
    place = next(iter(part.places.values()))
    return math.prod(place.lengths.get(axis, 1) for axis in axes)


def _refusal(kind: UnitKind, others: Sequence[UnitKind], key: str) -> str:
    has = f"it has units of the kinds {', '.join(others)}" if others else "it has units of no kind but weights"
    hint = ""
    if kind == "head" and "kv_head" in others:
        hint = "; keys and values belong to a kv_head, which serves several heads"
    return f"{key}: no tensor of the group has units of the kind {kind}: {has}{hint}"
