"""What is damaged: a tensor of a model, or some units along an axis of it."""

from collections.abc import Iterable
from typing import Self

import torch
from attrs import evolve, frozen
from torch import Tensor


@frozen(kw_only=True, eq=False)
class UnitSet:
    """Units along one axis of a tensor, or two, in any combination: slices of a fused tensor, heads, rows, columns.

    Read the tensor's flat storage as [lead, repeats, gap, size, inner], `period` being gap x size x inner; a unit is an
    index (repeat, index of the axis), its number repeat x size + index. Rows of a matrix have `inner` columns, columns
    of a matrix have `inner = 1`; the columns of each of several experts in one tensor have `repeats` experts.
    """

    inner: int
    chosen: Tensor  # bool [repeats * size]
    repeats: int = 1
    period: int = 1  # without meaning where repeats is 1

    @classmethod
    def of(cls, size: int, inner: int, units: Iterable[int], *, repeats: int = 1, period: int = 1) -> Self:
        """The set of the units of these numbers out of repeats x `size`.

        Raises:
            ValueError: there is none, or one of them does not exist.
        """
        found = sorted(set(units))
        if not found or found[0] < 0 or found[-1] >= repeats * size:
            raise ValueError(f"units {found} are not some of {repeats * size}, counted from 0")
        chosen = torch.zeros(repeats * size, dtype=torch.bool)
        chosen[found] = True
        return cls(inner=inner, chosen=chosen, repeats=repeats, period=period)

    @property
    def size(self) -> int:
        """How many units there are along the axis, in each repeat."""
        return len(self.chosen) // self.repeats

    def select(self, first: int, count: int, device: torch.device) -> Tensor:
        """Which of the flat indices `first` to `first + count` belong to chosen units, bool [count]."""
        flat = torch.arange(first, first + count, device=device)
        unit = flat // self.inner % self.size
        if self.repeats > 1:
            unit += flat // self.period % self.repeats * self.size
        return self.chosen.to(device)[unit]


WHOLE = UnitSet.of(1, 1, [0])  # a whole tensor: one unit, chosen


@frozen
class Target:
    """A tensor of a parameter group and the units of it that are damaged; its canonical name seeds its random numbers.

    The random number of a weight belongs to its flat index in the whole tensor, also where only some units are damaged.
    """

    name: str
    weight: Tensor
    units: UnitSet | None = None  # None: all of the tensor
    protected: Tensor | None = None  # flat indices of weights that stay whole, int64

    @property
    def all_units(self) -> UnitSet:
        """Its units; a whole tensor is one."""
        return self.units or WHOLE

    @property
    def count(self) -> int:
        """How many weights are damaged."""
        if self.units is None:
            return self.weight.numel()
        return self.weight.numel() // len(self.units.chosen) * int(self.units.chosen.sum())

    def choosing(self, chosen: Tensor) -> Self:
        """The same tensor with these of its units, bool [units that it has]; a whole tensor is one unit.

        Raises:
            ValueError: the table has another length.
        """
        if len(chosen) != len(self.all_units.chosen):
            raise ValueError(f"{self.name}: {len(chosen)} units are marked of {len(self.all_units.chosen)}")
        return evolve(self, units=evolve(self.all_units, chosen=chosen))
