"""The weights of a tensor a block at a time, and what is drawn for them there: the same numbers on every device."""

from collections.abc import Iterator
from importlib.util import find_spec

import torch
from torch import Tensor

from runner import philox
from runner.spec_methods import Draws

BLOCK = 2**24  # weights at a time: bounds the memory that damage needs beside the model
TILE = 512  # Philox counters per program of the kernel that draws


def blocks(original: Tensor, weight: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Flat views of the same block of both tensors, with the flat index at which it starts."""
    source, destination = original.view(-1), weight.view(-1)
    for first in range(0, source.numel(), BLOCK):
        yield first, source[first : first + BLOCK], destination[first : first + BLOCK]


def drawn(draws: Draws, seed: int, stream: int, first: int, weights: Tensor) -> Tensor:
    """What is drawn for the weights of a block: normals [count] float32, words [count] int64, or nothing [0]."""
    count, device = weights.numel(), weights.device
    if draws == "nothing":
        return weights.new_empty(0)
    if has_kernels(device):
        return _drawn_there(draws, seed, stream, first, count, device)
    draw = philox.normals if draws == "normals" else philox.words
    made = torch.from_numpy(draw(seed, stream, first, count)).to(device)
    return made.to(torch.int64) if draws == "words" else made


def has_kernels(device: torch.device) -> bool:
    """Whether numbers are drawn on the device itself, by a kernel; else on the CPU."""
    return device.type == "cuda" and find_spec("triton") is not None


def _drawn_there(draws: Draws, seed: int, stream: int, first: int, count: int, device: torch.device) -> Tensor:
    from runner import philox_kernels  # Triton is not everywhere

    out = torch.empty(count, dtype=torch.float32 if draws == "normals" else torch.int64, device=device)
    with torch.cuda.device(device):
        philox_kernels.fill[(-(-count // (4 * TILE)),)](
            out, seed, signed(stream), first, count, DRAWS=draws, TILE=TILE, num_warps=4, enable_fp_fusion=False
        )
    return out


def signed(word: int) -> int:
    """The signed integer with the same 64 bits."""
    return word - 2**64 if word >= 2**63 else word
