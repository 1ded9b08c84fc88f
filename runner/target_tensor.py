"""What is damaged: a tensor of a model, or a part of a fused one."""

import torch
from attrs import frozen
from torch import Tensor


@frozen(kw_only=True)
class UnitSet:
    """Some of the weights of a fused tensor.

    Read the tensor's flat storage as [..., size, inner]; the part is `range(start, stop, step)` along the axis of
    `size`. Rows of a matrix have `inner` columns, columns of a matrix have `inner = 1`.
    """

    size: int
    inner: int
    start: int
    stop: int
    step: int = 1

    def select(self, first: int, count: int, device: torch.device) -> Tensor:
        """Which of the flat indices `first` to `first + count` belong to the part, bool [count]."""
        along = torch.arange(first, first + count, device=device) // self.inner % self.size
        return (along >= self.start) & (along < self.stop) & ((along - self.start) % self.step == 0)


@frozen
class Target:
    """A tensor of a parameter group; its canonical name seeds its random numbers.

    The random number of a weight belongs to its flat index in the whole tensor, also where only a part is damaged.
    """

    name: str
    weight: Tensor
    part: UnitSet | None = None

    @property
    def count(self) -> int:
        """How many weights are damaged."""
        if self.part is None:
            return self.weight.numel()
        chosen = len(range(self.part.start, self.part.stop, self.part.step))
        return self.weight.numel() // self.part.size * chosen
