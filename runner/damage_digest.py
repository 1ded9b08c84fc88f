"""A digest of weights that any device computes in one parallel pass: equal digests, equal model.

The bits of every weight are read as an integer. Within a block they are multiplied by fixed odd 64-bit coefficients
and summed modulo 2**64 (multilinear hashing; Carter and Wegman 1979), each block's sum is mixed with the block's number
(the finaliser of SplitMix64; Steele et al. 2014) and summed again. Sums of integers do not depend on the order of
summation. SHA-256 binds the sums of all tensors to their names, shapes and dtype.
"""

import hashlib
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from runner.philox import words

BLOCK = 2**15
BLOCKS_AT_ONCE = 2**9
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def digest_of(named: Sequence[tuple[str, Tensor]]) -> str:
    """16 hexadecimal digits for tensors in the given order."""
    return bind([(name, tensor, fingerprint(tensor)) for name, tensor in named])


def bind(printed: Sequence[tuple[str, Tensor, int]]) -> str:
    """The digest of tensors whose fingerprints are known."""
    whole = hashlib.sha256()
    for name, tensor, number in printed:
        shape = "x".join(map(str, tensor.shape))
        whole.update(f"{name} {shape} {tensor.dtype} {number:016x}\n".encode())
    return whole.hexdigest()[:16]


def fingerprint(tensor: Tensor) -> int:
    """The 64-bit sum over all weights of one tensor, in the order of their flat indices."""
    bits = tensor.detach().contiguous().view(-1).view(_BITS[tensor.element_size()])
    coefficients = coefficients_on(bits.device)
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for first in range(0, bits.numel(), BLOCK * BLOCKS_AT_ONCE):
        part = bits[first : first + BLOCK * BLOCKS_AT_ONCE]
        padded = torch.nn.functional.pad(part, (0, -part.numel() % BLOCK)).view(-1, BLOCK)
        sums = (padded * coefficients).sum(dim=1)
        number = torch.arange(len(padded), device=bits.device) + first // BLOCK
        total += _mix(sums + number * _signed(0x9E3779B97F4A7C15)).sum()
    return int(total) % 2**64


@cache
def coefficients_on(device: torch.device) -> Tensor:
    """BLOCK odd 64-bit integers, the same on every device."""
    drawn = words(0, 0, 0, 2 * BLOCK).view(np.int64) | 1
    return torch.from_numpy(drawn).to(device)


def _mix(value: Tensor) -> Tensor:
    """The finaliser of SplitMix64 on 64-bit words held as signed integers."""
    value = (value ^ _shift_right(value, 30)) * _signed(0xBF58476D1CE4E5B9)
    value = (value ^ _shift_right(value, 27)) * _signed(0x94D049BB133111EB)
    return value ^ _shift_right(value, 31)


def _shift_right(value: Tensor, places: int) -> Tensor:
    """Shift in zeros; torch shifts in the sign."""
    shifted: Tensor = (value >> places) & (2 ** (64 - places) - 1)
    return shifted


def _signed(word: int) -> int:
    """The signed integer with the same 64 bits."""
    return word - 2**64 if word >= 2**63 else word
