"""From the selection of a sweep to the exact tensors of a model, and the units of each.

A group means the text decoder, unless it says otherwise: the vision tower of a multimodal model has tensors whose names
end alike (27 more value projections in Gemma 3 4B), and a search by suffix would hit them too.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from attrs import evolve

from runner.errors import SpecError
from runner.spec_targets import BUILT_IN, Group, Selection, layers_in
from runner.target_axes import WeightLocation
from runner.target_families import FAMILIES, Role
from runner.target_tensor import Target

Named = Mapping[str, torch.nn.Parameter]


def resolve_targets(model: Any, selection: Selection) -> tuple[Target, ...]:
    """The tensors of a selection, in the order of the model, layers ascending, by their canonical name.

    The name is relative to the text decoder, whether that stands alone or inside a multimodal model; that of a vision
    tensor is relative to `model.base_model`, that of the output head is `lm_head.weight`. Where `untie` gave the head
    its own copy of the embeddings, both copies have the name of the embeddings, so that they are damaged alike.

    Raises:
        SpecError: the family is unknown, the number of tensors is not what it explains, or there is nothing to damage.
    """
    if selection.definition is None:
        found = _built_in(model, selection.group)
    else:
        found = _of_patterns(model, selection.group, selection.definition)
    if selection.layers is not None:
        vision = selection.definition is not None and selection.definition.tower == "vision"
        found = _in_layers(model, found, selection.layers, f"{selection.key}.layers", vision=vision)
    order = {name: index for index, name in enumerate([*text_of(model), *head_of(model), *vision_of(model)])}
    merged = [_merged([target for target in found if target.name == name]) for name in {t.name for t in found}]
    return _copies(model, sorted(merged, key=lambda target: order[target.name]), selection)


def is_tied(model: Any) -> bool:
    """Whether the token embedding is the output head as well, or was before `untie`: damage hits both ends."""
    head = model.get_output_embeddings()
    if head is None:
        return False
    return head.weight is model.get_input_embeddings().weight or getattr(head, "untied", False)


def untie(model: Any) -> None:
    """Give the output head of a model with tied embeddings its own copy of them; other models stay as they are."""
    head = model.get_output_embeddings()
    if head is None or head.weight is not model.get_input_embeddings().weight:
        return
    weight = head.weight
    head.weight = torch.nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    head.untied = True
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


def untie_where_asked(model: Any, selections: Iterable[Selection]) -> None:
    """Untie the embeddings if any selection means one side of them alone."""
    if any(selection.tied != "both" for selection in selections):
        untie(model)


def text_of(model: Any) -> Named:
    """The tensors of the text decoder by their canonical name."""
    return dict(model.get_decoder().named_parameters())


def head_of(model: Any) -> Named:
    """The tensors of the output head by their canonical name; none where it is tied to the embeddings."""
    head = model.get_output_embeddings()
    if head is None:
        return {}
    shared = {id(weight) for weight in text_of(model).values()}
    named = {f"lm_head.{name}": weight for name, weight in head.named_parameters() if id(weight) not in shared}
    return {name: weight for name, weight in named.items() if not (name == "lm_head.weight" and is_tied(model))}


def vision_of(model: Any) -> Named:
    """What a multimodal model has beside text decoder and head, by canonical name: vision tower and projector."""
    head = model.get_output_embeddings()
    known = {id(weight) for weight in [*text_of(model).values(), *(head.parameters() if head is not None else ())]}
    return {name: weight for name, weight in model.base_model.named_parameters() if id(weight) not in known}


def _built_in(model: Any, group: str) -> list[Target]:
    """What plays the roles of a built-in group; of several roles the family may lack some."""
    text, config = text_of(model), model.config.get_text_config()
    if config.model_type not in FAMILIES:
        raise SpecError(
            f"group {group}: model family {config.model_type!r} is not known; a table [groups.NAME] with "
            f'include = ["PATTERN"] can name its tensors; the decoder has:\n  {_shapes_of(text)}'
        )
    family = FAMILIES[config.model_type](config)
    roles: list[Role] = ["embed" if role == "head" and is_tied(model) else role for role in BUILT_IN[group]]
    places = [place for role in roles for place in family.get(role, ())]
    _check_count(group, places, text, config.num_hidden_layers)
    found = [place.target(text[place.name]) for place in places]
    if "decoder" in roles:
        found += _whole(text)
    if "head" in roles:
        found += _whole(head_of(model), "*" if "decoder" in roles else "lm_head.weight")
    if "vision_v" in roles:
        found += _vision_values(model, group)
    if not found:
        raise SpecError(f"group {group}: the family {config.model_type!r} has none; it has:\n  {_shapes_of(text)}")
    return found


def _check_count(group: str, places: Sequence[WeightLocation], text: Named, layers: int) -> None:
    """Refuse a model that has other tensors of these names than its configuration explains."""
    expected = {place.name for place in places}
    patterns = {_folded(name) for name in expected}
    found = {name for name in text if _folded(name) in patterns}
    if found != expected:
        raise SpecError(
            f"group {group}: {len(found)} tensors match, {len(expected)} were expected in {layers} layers; "
            f"the decoder has:\n  {_shapes_of(text)}"
        )


def _vision_values(model: Any, group: str) -> list[Target]:
    """The value projections of the vision tower, one per layer."""
    vision = vision_of(model)
    found = _whole(vision, "*.v_proj.weight")
    layers = getattr(getattr(model.config, "vision_config", None), "num_hidden_layers", 0)
    if not found or len(found) != layers:
        has = f"beside the decoder it has:\n  {_shapes_of(vision)}" if vision else "it has no vision tower"
        raise SpecError(
            f"group {group}: {len(found)} value projections of a vision tower in {type(model).__name__}, {layers} were "
            f"expected; {has}"
        )
    return found


def _of_patterns(model: Any, name: str, group: Group) -> list[Target]:
    """What a group of one's own includes, less what it excludes."""
    named = {**text_of(model), **head_of(model)} if group.tower != "vision" else {}
    if group.tower != "text":
        named |= vision_of(model)
    found: list[Target] = []
    for pattern in group.include:
        if pattern in BUILT_IN:
            meant = Selection(group=pattern)
            matches = [target for target in resolve_targets(model, meant) if target.name in named]
        else:
            matches = _whole(named, pattern)
        found += matches or _nothing(f"groups.{name}.include", pattern, named, group.tower)
    for pattern in group.exclude:
        kept = [target for target in found if not fnmatchcase(target.name, pattern)]
        if len(kept) == len(found):
            _nothing(f"groups.{name}.exclude", pattern, {t.name: t.weight for t in found}, group.tower)
        found = kept
    if not found:
        raise SpecError(f"groups.{name}.exclude: {list(group.exclude)} leaves nothing of {list(group.include)}")
    if group.layers is not None:
        return _in_layers(model, found, group.layers, f"groups.{name}.layers", vision=group.tower == "vision")
    return found


def _nothing(key: str, pattern: str, named: Mapping[str, Any], tower: str) -> list[Target]:
    """Refuse a pattern without a match."""
    near = get_close_matches(_folded(pattern), [*BUILT_IN, *{_folded(name): None for name in named}], n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise SpecError(f"{key}: {pattern!r} matches nothing{hint} In {tower} there is:\n  {_shapes_of(named)}")


def _in_layers(model: Any, targets: Iterable[Target], layers: str, key: str, *, vision: bool) -> list[Target]:
    """The targets that stand in these layers: the first number in a name is its layer."""
    indices = {name: layer_of(name) for name in vision_of(model)} if vision else {}
    count = max(indices.values(), default=-1) + 1 if vision else model.config.get_text_config().num_hidden_layers
    try:
        chosen = layers_in(layers, count)
    except ValueError as error:
        raise SpecError(f"{key}: {error}") from None
    found = [target for target in targets if layer_of(target.name) in chosen]
    if not found:
        raise SpecError(f"{key}: {layers!r} leaves nothing: the group has no tensors in these of the {count} layers")
    return found


def _merged(targets: Sequence[Target]) -> Target:
    """One target for all that was chosen of one tensor."""
    sets = [target.units for target in targets if target.units is not None]
    if len(sets) < len(targets):
        return evolve(targets[0], units=None)
    if len({(units.size, units.inner) for units in sets}) > 1:
        raise AssertionError(f"{targets[0].name}: units of several sizes")
    chosen = torch.stack([units.chosen for units in sets]).any(dim=0)
    return evolve(targets[0], units=None if chosen.all() else evolve(sets[0], chosen=chosen))


def _copies(model: Any, targets: Sequence[Target], selection: Selection) -> tuple[Target, ...]:
    """Of embeddings that were tied, both copies or one, under one name."""
    head, embed = model.get_output_embeddings(), model.get_input_embeddings().weight
    untied = head is not None and getattr(head, "untied", False)
    if selection.tied != "both" and not untied:
        if is_tied(model):
            raise AssertionError(f"{selection.label} needs a model that went through untie()")
        raise SpecError(
            f"{selection.key}.tied: {selection.tied!r} means one side of tied embeddings, and this model does not tie "
            "them; use the groups embed_only and lm_head"
        )
    if not untied:
        return tuple(targets)
    sides = {"both": (embed, head.weight), "input": (embed,), "output": (head.weight,)}[selection.tied]
    copied = [[evolve(t, weight=side) for side in sides] if t.weight is embed else [t] for t in targets]
    return tuple(target for copies in copied for target in copies)


def _whole(named: Named, pattern: str = "*") -> list[Target]:
    return [Target(name, weight) for name, weight in named.items() if fnmatchcase(name, pattern)]


def layer_of(name: str) -> int:
    """The layer that a tensor stands in, -1 for one outside the layers."""
    number = re.search(r"\.(\d+)\.", name)
    return int(number.group(1)) if number else -1


def _folded(name: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", name)


def _shapes_of(named: Mapping[str, Any]) -> str:
    """The tensors, layers of one shape folded: `layers.*.mlp.up_proj.weight [64, 16] x 4`."""
    folded: dict[tuple[str, tuple[int, ...]], int] = {}
    for key, weight in named.items():
        pattern = (_folded(key), tuple(weight.shape))
        folded[pattern] = folded.get(pattern, 0) + 1
    return "\n  ".join(f"{key} {list(shape)} x {count}" for (key, shape), count in folded.items())
