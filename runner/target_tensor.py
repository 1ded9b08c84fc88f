"""What is damaged: a tensor of a model, or some units along an axis of it."""

from collections.abc import Iterable
from typing import Self

import torch
from attrs import frozen
from torch import Tensor


@frozen(kw_only=True, eq=False)
class UnitSet:
    """Units along an axis of a tensor, in any combination: slices of a fused tensor, heads, rows, columns.

    Read the tensor's flat storage as [..., size, inner], size being the length of `chosen`; a unit is an index of that
    axis. Rows of a matrix have `inner` columns, columns of a matrix have `inner = 1`.
    """

    inner: int
    chosen: Tensor  # bool [size]

    @classmethod
    def of(cls, size: int, inner: int, units: Iterable[int]) -> Self:
        """The set of these units out of `size`.

        Raises:
            ValueError: there is none, or one of them is not from 0 to size - 1.
        """
        found = sorted(set(units))
        if not found or found[0] < 0 or found[-1] >= size:
            raise ValueError(f"units {found} are not some of {size}, counted from 0")
        chosen = torch.zeros(size, dtype=torch.bool)
        chosen[found] = True
        return cls(inner=inner, chosen=chosen)

    @property
    def size(self) -> int:
        """How many units there are along the axis."""
        return len(self.chosen)

    def select(self, first: int, count: int, device: torch.device) -> Tensor:
        """Which of the flat indices `first` to `first + count` belong to chosen units, bool [count]."""
        along = torch.arange(first, first + count, device=device) // self.inner % self.size
        return self.chosen.to(device)[along]


@frozen
class Target:
    """A tensor of a parameter group and the units of it that are damaged; its canonical name seeds its random numbers.

    The random number of a weight belongs to its flat index in the whole tensor, also where only some units are damaged.
    """

    name: str
    weight: Tensor
    units: UnitSet | None = None  # None: all of the tensor

    @property
    def count(self) -> int:
        """How many weights are damaged."""
        if self.units is None:
            return self.weight.numel()
        return self.weight.numel() // self.units.size * int(self.units.chosen.sum())
