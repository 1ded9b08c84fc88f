"""What a sweep damages in a model: its tensors, the units that a condition chooses of them, and what stays whole."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from attrs import evolve, frozen
from torch import Tensor

from runner import philox
from runner.spec_choice import Within
from runner.spec_methods import METHODS, PLAIN, Method, Options
from runner.spec_targets import Selection
from runner.target_choice import chosen_units, marked_units, matched_random, random_order, score_order
from runner.target_groups import resolve_targets
from runner.target_scores import (
    ReadFile,
    at_coordinates,
    by_weight,
    first_weights,
    masked,
    protect,
    reads_once,
    values_of_weights,
)
from runner.target_tensor import Target
from runner.target_units import Units, find_units, masks_of

NO_FILES = reads_once({})


@frozen(kw_only=True, eq=False)
class Lesion:
    """The tensors that a sweep damages, and how each of its conditions chooses units, or weights, of them.

    Of `units` or `scores` there is one at most; without, each condition damages all units of the targets. `order` has
    the ids of units, the first to be damaged first; without, every seed has its own. `scores` are of single weights.
    """

    targets: tuple[Target, ...]
    options: Options = PLAIN
    within: Within = "group"
    units: Units | None = None
    order: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None  # flat, one for each target; the highest are damaged first
    matched: bool = False  # as many at random in every layer, or tensor, as would be chosen by score

    def tables(self, method: Method, level: float, seed: int) -> list[Tensor] | None:
        """Which units each target loses in a condition, as `UnitSet.chosen`; None where that are all of them."""
        share = level if METHODS[method].level_is_share else self.options.share
        if share is None:
            return None
        if self.units is not None:
            order = random_order(self.units, seed) if self.order is None else self.order
            selected = chosen_units(self.units, share, order=order, within=self.within)
            if self.matched:
                selected = matched_random(self.units, selected, seed)
            return masks_of(self.units, selected)
        if self.scores is None:
            return None
        return [
            first_weights(target, _words(target, seed) if self.matched else -scores, share)
            for target, scores in zip(self.targets, self.scores, strict=True)
        ]

    def told(self, method: Method, level: float) -> tuple[float, Options]:
        """The level and the options of a method where `tables` chose what it damages: all of that."""
        return (1.0 if METHODS[method].level_is_share else level), evolve(self.options, share=None)


def make_lesion(
    model: Any,
    selection: Selection,
    read: ReadFile = NO_FILES,
    *,
    locate: Callable[[Sequence[Target]], Sequence[Target]] = tuple,
) -> Lesion:
    """What a selection means in an intact model; on the meta device without the weights that stay whole.

    `read` gives the tensors of files that the selection names, `locate` targets whose weights can be read and written.

    Raises:
        SpecError: the model does not have what it names, or a file is not about this model.
    """
    choice, targets = selection.choice, resolve_targets(model, selection)
    units: Units | None = None
    if choice.unit != "weight":
        targets, units = find_units(model, targets, choice.unit, f"{selection.key}.unit")
    targets = tuple(locate(targets))
    if choice.coordinates:
        targets = at_coordinates(targets, choice.coordinates, f"{selection.key}.coordinates")
    lesion = _of_units(targets, units, selection, read) if units else _of_weights(targets, selection, read)
    if choice.protect is not None and not targets[0].weight.is_meta:
        which, share = choice.protect.split()
        lesion = evolve(lesion, targets=tuple(protect(target, which, float(share)) for target in lesion.targets))
    return evolve(lesion, options=selection.options, within=choice.within, matched=choice.select == "matched")


def _of_units(targets: tuple[Target, ...], units: Units, selection: Selection, read: ReadFile) -> Lesion:
    choice, order = selection.choice, None
    if choice.scores is not None:
        key = f"{selection.key}.scores"
        order = score_order(units, read(choice.scores, key), highest=choice.select != "lowest", key=key)
    if choice.mask is not None:
        key = f"{selection.key}.mask"
        marked = marked_units(units, read(choice.mask, key), key=key)
        targets, units, order = _restricted(targets, units, order, marked)
    return Lesion(targets=targets, units=units, order=order)


def _of_weights(targets: tuple[Target, ...], selection: Selection, read: ReadFile) -> Lesion:
    choice = selection.choice
    if choice.mask is not None:
        key = f"{selection.key}.mask"
        targets = masked(targets, read(choice.mask, key), key)
    if choice.scores is None:
        return Lesion(targets=targets)
    key = f"{selection.key}.scores"
    targets, tensors = tuple(map(by_weight, targets)), read(choice.scores, key)
    values = [values_of_weights(target, tensors, key).double() for target in targets]
    return Lesion(targets=targets, scores=tuple(-value if choice.select == "lowest" else value for value in values))


def _restricted(
    targets: Sequence[Target], units: Units, order: Tensor | None, marked: Tensor
) -> tuple[tuple[Target, ...], Units, Tensor | None]:
    """The same with the marked units alone, numbered anew; tensors that have none of them are left out."""
    numbers = torch.where(marked, marked.cumsum(0) - 1, -1)
    counts = {layer: int(marked[place].sum()) for layer, place in units.slices.items()}
    tables = [torch.where(ids >= 0, numbers[ids.clamp(min=0)], -1) for ids in units.ids]
    kept = [
        (evolve(target, units=evolve(target.all_units, chosen=table >= 0)), table)
        for target, table in zip(targets, tables, strict=True)
        if bool((table >= 0).any())
    ]
    left = evolve(
        units, counts={layer: count for layer, count in counts.items() if count}, ids=tuple(table for _, table in kept)
    )
    return tuple(target for target, _ in kept), left, None if order is None else numbers[order[marked[order]]]


def _words(target: Target, seed: int) -> Tensor:
    """A random number for every weight of a target, int64."""
    stream = philox.stream_id("units", f"weight {target.name}")
    return torch.from_numpy(philox.words(seed, stream, 0, target.weight.numel()).astype("int64"))
