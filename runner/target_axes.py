"""The axes of a tensor by name, in the order of its storage: where units lie, also in a part of a fused tensor."""

import itertools
import math
import re
from collections.abc import Collection, Mapping, Sequence

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from runner.errors import SpecError
from runner.target_tensor import Target, UnitSet

_PART = re.compile(r"\[(?P<slice>[^\]]*)\]|(?P<name>\S+)")
_NOWHERE = -(2**62)  # so low that no sum of unit numbers rises above it


@frozen
class WeightLocation:
    """A tensor, or a part of a fused one, and the names of its axes as its flat storage has them.

    "channel neuron" is a matrix whose rows are channels. "kv [query] d channel" is a part of a fused tensor: along the
    axis in brackets it has as many slices as the names in them say (`[]`: one), `before` and `behind` them lie those of
    other parts. `lengths` says how long axes are; that of one axis may be missing, and follows from the tensor.
    """

    name: str
    axes: str
    lengths: Mapping[str, int] = field(factory=dict, eq=False)
    before: int = 0
    behind: int = 0

    @property
    def names(self) -> set[str]:
        """The names of all axes."""
        return set(re.findall(r"\w+", self.axes))

    def target(self, weight: Tensor) -> Target:
        """What of this tensor is damaged.

        Raises:
            SpecError: the tensor cannot be divided so; it is not what the configuration says.
        """
        if not self.before + self.behind:
            return Target(self.name, weight)
        units, _ = unit_set(*self.numbers(weight, ()))
        return Target(self.name, weight, units)

    def numbers(self, weight: Tensor, unit: Sequence[str]) -> tuple[Tensor, list[int]]:
        """The number of the unit that each weight belongs to, -1 outside this part, and the shape of the flat storage.

        Units are counted along the axes named `unit`, the last one fastest. The numbers, int64, have the length 1 along
        axes on which they do not depend.

        Raises:
            SpecError: the tensor cannot be divided so.
        """
        lengths = self._lengths(weight)
        steps = {name: math.prod(lengths.get(later, 1) for later in unit[i + 1 :]) for i, name in enumerate(unit)}
        numbers, shape = torch.zeros((), dtype=torch.int64), []
        for part in _PART.finditer(self.axes):
            names = (part["slice"] if part["name"] is None else part["name"]).split()
            before, behind = (0, 0) if part["name"] else (self.before, self.behind)
            along = torch.zeros(1, dtype=torch.int64)
            if before + behind or not steps.keys().isdisjoint(names):
                for name in names:
                    along = (along[:, None] + torch.arange(lengths[name]) * steps.get(name, 0)).flatten()
                along = torch.nn.functional.pad(along, (before, behind), value=_NOWHERE)
            numbers = numbers.unsqueeze(-1) + along
            shape.append(before + math.prod(lengths[name] for name in names) + behind)
        return numbers.clamp(min=-1), shape

    def _lengths(self, weight: Tensor) -> dict[str, int]:
        """The length of each axis, a missing one computed from the size of the tensor."""
        lengths = dict(self.lengths)
        missing = self.names - lengths.keys()
        known = 1
        for part in _PART.finditer(self.axes):
            slices = math.prod(lengths.get(name, 1) for name in re.findall(r"\w+", part[0]))
            known *= slices if part["name"] else self.before + slices + self.behind
        lengths |= dict.fromkeys(missing, weight.numel() // known)
        if len(missing) > 1 or (known * math.prod(lengths[name] for name in missing) != weight.numel()):
            shown = {name: lengths[name] for name in re.findall(r"\w+", self.axes)}
            raise SpecError(
                f"{self.name} {list(weight.shape)} is not divided into {self.axes!r} with {shown}, as the model's "
                "configuration says"
            )
        return lengths

    def without(self, axes: Collection[str], *, name: str) -> "WeightLocation":
        """A tensor of another name that has all axes but these."""
        kept = [part[0] for part in _PART.finditer(self.axes) if part["name"] not in axes]
        return evolve(self, name=name, axes=" ".join(kept))


def slices_of(axes: str, lengths: Mapping[str, int]) -> int:
    """How many slices of a fused tensor its part has: the product of the axes in brackets."""
    inside = re.search(r"\[(.*)\]", axes)
    if inside is None:
        raise AssertionError(f"{axes!r} is not part of a fused tensor")
    return math.prod(lengths[name] for name in inside[1].split())


def unit_set(numbers: Tensor, shape: Sequence[int]) -> tuple[UnitSet, Tensor]:
    """The set of all weights that have a number, and the number of each of its units, int64 [repeats * size].

    `numbers`, -1 where there is none, has a length of 1 or that of `shape` along each axis of the flat storage.
    """
    for axis in range(numbers.ndim):
        first = numbers.narrow(axis, 0, 1)
        numbers = first if torch.equal(first.expand_as(numbers), numbers) else numbers
    wide = [axis for axis, length in enumerate(numbers.shape) if length > 1]
    if not wide:
        table = numbers.reshape(1)
        return UnitSet(inner=1, chosen=table >= 0), table
    # Two runs of axes at most can be told apart: the widest gap stays one, numbers are repeated along all others.
    gaps = [(math.prod(shape[a + 1 : b]), a, b) for a, b in itertools.pairwise(wide) if b > a + 1]
    _, left, right = max(gaps, default=(1, wide[0] - 1, wide[0]))
    listed = [
        length if wide[0] <= axis <= wide[-1] and not left < axis < right else 1 for axis, length in enumerate(shape)
    ]
    table = numbers.expand(listed).reshape(-1)
    units = UnitSet(
        inner=math.prod(shape[wide[-1] + 1 :]),
        chosen=table >= 0,
        repeats=math.prod(shape[wide[0] : left + 1]),
        period=math.prod(shape[left + 1 :]),
    )
    return units, table
