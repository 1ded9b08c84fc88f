"""Files of scores and masks, read for a model: a number or a yes for each unit or weight of its targets."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from attrs import evolve
from safetensors import SafetensorError, safe_open
from torch import Tensor

from runner.errors import SpecError
from runner.spec_methods import exact_count
from runner.target_tensor import Target, UnitSet
from runner.task_files import TargetFile, file_digest

Tensors = Mapping[str, Tensor]
ReadFile = Callable[[str, str], Tensors]  # of the name of a file in the spec, and the path there, for messages


def read_tensors(file: TargetFile, key: str) -> Tensors:
    """Every tensor of a file; `key` is the path in the spec, for messages.

    Raises:
        SpecError: it is no such file, or changed since its digest was taken.
    """
    if file_digest(file.path, key) != file.digest:
        raise SpecError(f"{key}: {file.path} changed while the run began, or is another file on this host")
    try:
        with safe_open(file.path, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no dictionary
    except (SafetensorError, OSError) as error:
        raise SpecError(f"{key}: {file.path} is no safetensors file: {error}") from None


def reads_once(files: Mapping[str, TargetFile]) -> ReadFile:
    """`read_tensors` of files by their name in the spec, each read for the first curve that names it."""
    known: dict[str, Tensors] = {}

    def read(name: str, key: str) -> Tensors:
        if name not in known:
            known[name] = read_tensors(files[name], key)
        return known[name]

    return read


def values_of_weights(target: Target, tensors: Tensors, key: str) -> Tensor:
    """The values of all weights of a tensor, flat.

    Raises:
        SpecError: the file has none for it, or of another shape.
    """
    values = _tensor(target.name, tensors, key)
    if values.shape != target.weight.shape:
        shapes = f"{list(values.shape)}, and the tensor is {list(target.weight.shape)}"
        raise SpecError(f"{key}: {target.name} is {shapes}")
    return _checked(values.reshape(-1), key)


def _tensor(name: str, tensors: Tensors, key: str) -> Tensor:
    if name not in tensors:
        listed = ", ".join(list(tensors)[:4])
        raise SpecError(f"{key}: holds no tensor {name}, but {len(tensors)} others: {listed} ...")
    return tensors[name]


def _checked(values: Tensor, key: str) -> Tensor:
    """Refuse what has no order."""
    if values.is_floating_point() and bool(values.isnan().any()):
        raise SpecError(f"{key}: some of its numbers are NaN, which is neither more nor less than another")
    return values


def masked(targets: Sequence[Target], tensors: Tensors, key: str) -> tuple[Target, ...]:
    """The targets with those of their weights alone that a mask allows; tensors without any are left out.

    A tensor that the mask does not name is left out too.

    Raises:
        SpecError: nothing is left, or the mask is not boolean or of another shape.
    """
    named = [target for target in targets if target.name in tensors]
    kept = [_only(target, _boolean(values_of_weights(target, tensors, key), key)) for target in named]
    found = tuple(target for target in kept if target.count)
    if not found:
        raise SpecError(f"{key}: allows no weight of the group, whose tensors are {targets[0].name} ...")
    return found


def _boolean(values: Tensor, key: str) -> Tensor:
    if values.dtype != torch.bool:
        raise SpecError(f"{key}: a mask is boolean, and this one is {values.dtype}")
    return values


def at_coordinates(
    targets: Sequence[Target], coordinates: Sequence[Sequence[str | int]], key: str
) -> tuple[Target, ...]:
    """The targets with these weights alone, in the order of the model.

    Raises:
        SpecError: one of them is not in the group.
    """
    by_name = {target.name: target for target in targets}
    flat: dict[str, list[int]] = {}
    for name, *indices in coordinates:
        if (target := by_name.get(str(name))) is None:
            raise SpecError(f"{key}: {name} is not in the group: {', '.join([*by_name][:3])} ...")
        flat.setdefault(target.name, []).append(_flat_index(target, [int(index) for index in indices], key))
    found = []
    for target in targets:
        if target.name in flat:
            allowed = torch.zeros(target.weight.numel(), dtype=torch.bool)
            allowed[flat[target.name]] = True
            found.append(_only(target, allowed))
            if found[-1].count < len({*flat[target.name]}):
                raise SpecError(f"{key}: some of {target.name} are in another part of that tensor than the group's")
    return tuple(found)


def _flat_index(target: Target, indices: Sequence[int], key: str) -> int:
    """The place of a weight in the flat storage of its tensor."""
    shape = list(target.weight.shape)
    if len(indices) != len(shape) or any(index >= size for index, size in zip(indices, shape, strict=True)):
        raise SpecError(f"{key}: {target.name} has no weight {list(indices)}: it is {shape}")
    return sum(index * math.prod(shape[axis + 1 :]) for axis, index in enumerate(indices))


def by_weight(target: Target) -> Target:
    """The same target, its units being single weights."""
    return _only(target, torch.ones(target.weight.numel(), dtype=torch.bool))


def _only(target: Target, allowed: Tensor) -> Target:
    """A target with those of its weights that are allowed, bool [weights]."""
    own = allowed if target.units is None else allowed & target.units.select(0, allowed.numel(), torch.device("cpu"))
    return evolve(target, units=UnitSet(inner=1, chosen=own.cpu()))


def first_weights(target: Target, values: Tensor, share: float) -> Tensor:
    """Exactly a share of a target's weights, of least value, ties in the order of their flat index; bool [weights].

    The target's units are single weights.
    """
    own = target.all_units.chosen
    places = own.nonzero().squeeze(1)
    count = exact_count(share, len(places))
    chosen = torch.zeros_like(own)
    chosen[places[torch.argsort(values[places], stable=True)[:count]]] = True
    return chosen


def protect(target: Target, which: str, share: float) -> Target:
    """The target with a share of its weights, of largest or smallest absolute value, marked to stay whole."""
    alone = by_weight(target)
    size = target.weight.detach().reshape(-1).abs().float().cpu()
    chosen = first_weights(alone, -size if which == "largest" else size, share)
    return evolve(target, protected=chosen.nonzero().squeeze(1))
