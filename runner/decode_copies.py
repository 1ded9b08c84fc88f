"""Several conditions in one batch: each has rows, and its own copies of the matrices that are damaged in it.

All other weights are read once for the rows of all conditions. Where damage touches a small part of a model, as that of
value projections or of one layer does, a step of many conditions takes little longer than that of one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from runner.decode_batch import BatchShape

LEAST = 16  # numbers in each direction that a product in Triton takes
ALIGNMENT = 8  # numbers of two bytes and more in what a kernel reads at once


@frozen
class Cut:
    """How a product is cut into programs; `depth` decides how sums round."""

    rows: int  # of x at most
    width: int  # rows of weights
    depth: int  # numbers of both at a time
    stages: int  # blocks of weights on their way from memory
    warps: int


CUT = Cut(rows=64, width=64, depth=128, stages=3, warps=4)  # the fastest of eight (tests/benchmarks/conditions.py)


class Copies:
    """The damaged matrices of every condition of a batch, in memory that is allocated once."""

    def __init__(self, shape: BatchShape, matrices: Mapping[str, Tensor], room: int) -> None:
        """`matrices` are all that may be damaged, as `matrices_of_step` has them, of one dtype.

        A condition damages at most `room` numbers of them.
        """
        self._matrices, self._shape, some = matrices, shape, next(iter(matrices.values()))
        self._index = {matrix.data_ptr(): index for index, matrix in enumerate(matrices.values())}
        room, device = _aligned(room + ALIGNMENT * len(matrices)), some.device
        self._room = torch.empty((shape.conditions, room), dtype=some.dtype, device=device)
        self._addresses = torch.zeros((len(matrices), shape.conditions), dtype=torch.int64, device=device)

    def keep(self, condition: int, damaged: Iterable[Tensor]) -> None:
        """Let the rows of a condition be multiplied by what these matrices hold now, and by no other of their own.

        What is no matrix of a decoding step, such as a weight of the vision tower, needs no copy.
        """
        addresses, begin, room = [0] * len(self._index), 0, self._room[condition:].view(-1)
        for matrix in {matrix.data_ptr(): matrix for matrix in damaged}.values():
            index = self._index.get(matrix.data_ptr())
            if index is not None:
                place = room[begin : begin + matrix.numel()]
                place.copy_(matrix.reshape(-1))
                addresses[index] = place.data_ptr()
                begin += _aligned(matrix.numel())
        self._addresses[:, condition] = torch.tensor(addresses, device=self._addresses.device)

    def forget(self) -> None:
        """Let all conditions be multiplied by the model's own weights."""
        self._addresses.zero_()

    def samples(self) -> list[Sequence[Tensor]]:
        """Matrices to try copies with before there are conditions: of each kind as many as all places hold."""
        kinds: dict[str, list[Tensor]] = {}
        for name, matrix in self._matrices.items():
            kinds.setdefault(name.partition(".")[2], []).append(matrix)
        sizes = {kind: accumulate(_aligned(matrix.numel()) for matrix in some) for kind, some in kinds.items()}
        found = [
            [matrix for matrix, size in zip(some, sizes[kind], strict=True) if size <= self._room.numel()]
            for kind, some in kinds.items()
        ]
        return [some for some in found if some]

    def write(self, x: Tensor, out: Tensor, modules: Iterable[Any]) -> Tensor:
        """Write over the rows of conditions that have copies, in the product of x and the weights of some modules.

        x is [rows, length]; `out` [rows, size] has the outputs of all modules side by side, and is given back.
        """
        begin = 0
        for module in modules:
            index = self._index.get(module.weight.data_ptr())
            if index is not None:
                self._launch(x, self._addresses[index], module, out[:, begin:])
            begin += len(module.weight)
        return out

    def _launch(self, x: Tensor, addresses: Tensor, module: Any, out: Tensor) -> None:
        import triton  # not everywhere

        from runner.decode_gemm_kernels import own_product

        size, length = module.weight.shape
        rows = self._shape.rows_each
        padded = min(CUT.rows, max(LEAST, triton.next_power_of_2(rows)))
        depth = min(CUT.depth, max(LEAST, triton.next_power_of_2(length)))
        own_product[(triton.cdiv(size, CUT.width), self._shape.conditions, triton.cdiv(rows, padded))](
            x,
            addresses,
            x if module.bias is None else module.bias,
            out,
            size,
            out.stride(0),
            K=length,
            ROWS=rows,
            BM=padded,
            BN=CUT.width,
            BK=depth,
            STAGES=CUT.stages,
            ALIGNED=length % ALIGNMENT == 0,
            BIAS=module.bias is not None,
            num_warps=CUT.warps,
        )


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


@contextmanager
def damaged(matrices: Sequence[Tensor]) -> Iterator[Callable[[], None]]:
    """Every second row of some matrices is zero, which no norm behind them cancels; gives what makes them whole."""
    originals = [matrix.clone() for matrix in matrices]

    def restore() -> None:
        for matrix, original in zip(matrices, originals, strict=True):
            matrix.copy_(original)

    try:
        for matrix in matrices:
            matrix[::2].zero_()
        yield restore
    finally:
        restore()


def matrices_of_step(model: Any) -> dict[str, Tensor]:
    """The matrices between the residual stream and itself, of which a decoding step can use copies: `3.v_proj`."""
    return {
        f"{number}.{name}": module.weight
        for number, layer in enumerate(model.get_decoder().layers)
        for block in (layer.self_attn, layer.mlp)
        for name, module in block.named_children()
        if type(module) is torch.nn.Linear
    }
