"""The digest tells any two sets of weights apart, by values that are the same on every device."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from runner import damage_digest, philox
from runner.damage_digest import BLOCK, digest_of, fingerprint

SIZE = 2 * BLOCK + 100  # two whole blocks and a tail
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.uint8]
INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}
NUMPY_INTEGERS = {8: np.int64, 4: np.int32, 2: np.int16, 1: np.uint8}


def weights(dtype: torch.dtype = torch.float32, size: int = SIZE) -> Tensor:
    """Fixed weights of any type: arbitrary bits, so NaN and infinity of many kinds are among them."""
    drawn = philox.words(1, 2, 0, 2 * size).view(NUMPY_INTEGERS[dtype.itemsize])[:size].copy()
    return torch.from_numpy(drawn).view(dtype)


def of(tensor: Tensor, name: str = "a") -> str:
    """The digest of one tensor."""
    return digest_of([(name, tensor)])


def reference(tensor: Tensor) -> int:
    """The fingerprint as its definition says, in NumPy's unsigned 64-bit integers, which wrap silently."""
    size = tensor.element_size()
    bits = tensor.contiguous().view(INTEGERS[size]).numpy().reshape(-1).astype(np.int64).view(np.uint64)
    coefficients = philox.words(0, 0, 0, 2 * BLOCK).view(np.uint64) | np.uint64(1)
    total = 0
    for number, first in enumerate(range(0, len(bits), BLOCK)):
        block = bits[first : first + BLOCK]
        value = (int((block * coefficients[: len(block)]).sum()) + number * 0x9E3779B97F4A7C15) % 2**64
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
        total += value ^ value >> 31
    return total % 2**64


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_fingerprint_is_its_definition(dtype: torch.dtype) -> None:
    """Torch's signed integers give what unsigned arithmetic gives, for one weight, a full block and a tail."""
    for size in (1, BLOCK - 1, BLOCK, BLOCK + 1, SIZE):
        assert fingerprint(weights(dtype, size)) == reference(weights(dtype, size)), size


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_single_flipped_bit_changes_the_digest(dtype: torch.dtype, data: st.DataObject) -> None:
    """One bit of one weight, the sign of a zero or of a NaN included, is never overlooked."""
    before = weights(dtype)
    bits = before.clone().view(torch.uint8)
    index = data.draw(st.integers(0, len(bits) - 1), label="byte")
    bits[index] ^= 1 << data.draw(st.integers(0, 7), label="bit")
    assert of(bits.view(dtype)) != of(before)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(places=st.lists(st.integers(0, SIZE - 1), min_size=2, max_size=2, unique=True))
def test_two_swapped_weights_change_the_digest(places: list[int]) -> None:
    """The same weights in another order are another model, within a block and across blocks."""
    left, right = places
    tensor = torch.arange(SIZE, dtype=torch.float32)
    swapped = tensor.clone()
    swapped[left], swapped[right] = tensor[right], tensor[left]
    assert of(swapped) != of(tensor)


def test_swapped_blocks_change_the_digest() -> None:
    """Whole blocks that change places, and weights that keep their place within another block, are noticed."""
    first, second, tail = weights().split(BLOCK)
    assert of(torch.cat([second, first, tail])) != of(torch.cat([first, second, tail]))
    crossed = torch.cat([second[:1], first[1:], first[:1], second[1:], tail])
    assert of(crossed) != of(weights())


def test_name_shape_and_dtype_belong_to_the_digest() -> None:
    """The same bits under another name, in another shape or read as another type are not the same tensor."""
    tensor = weights(torch.float16, 24)
    variants = {
        "itself": of(tensor),
        "name": of(tensor, "b"),
        "matrix": of(tensor.view(4, 6)),
        "transposed shape": of(tensor.view(6, 4)),
        "row": of(tensor.view(1, 24)),
        "type of the same size": of(tensor.view(torch.bfloat16)),
        "type of another size": of(tensor.view(torch.float32)),
    }
    assert len(set(variants.values())) == len(variants), variants


def test_the_order_and_number_of_tensors_belong_to_the_digest() -> None:
    """Tensors that swap places, or weights, or are missing, make another digest."""
    a, b = ("a", weights(size=10)), ("b", weights(size=20)[10:])
    variants = [[a, b], [b, a], [a], [b], [], [("a", b[1]), ("b", a[1])], [a, a, b]]
    digests = [digest_of(variant) for variant in variants]
    assert len(set(digests)) == len(digests), digests


def test_trailing_zeros_change_the_digest() -> None:
    """Padding of the last block looks like zeros: the sum does not see weights of zero, the shape does."""
    tensor = weights(size=100)
    longer = torch.nn.functional.pad(tensor, (0, 1))
    assert fingerprint(longer) == fingerprint(tensor)
    assert of(longer) != of(tensor)
    assert of(torch.zeros(3)) != of(torch.zeros(4))


def test_special_values_are_told_apart() -> None:
    """Infinities, every kind of NaN and both zeros have bits of their own, and equal bits have equal digests."""
    patterns = [0x7FC00000, 0xFFC00000, 0x7FC00001, 0x7F800001, 0x7F800000, 0xFF800000, 0x80000000, 0, 1]
    specials = [torch.from_numpy(np.array([pattern], dtype=np.uint32).view(np.float32)) for pattern in patterns]
    digests = [of(special) for special in specials]
    assert len(set(digests)) == len(patterns), dict(zip(patterns, digests, strict=True))
    assert [of(special.clone()) for special in specials] == digests


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_the_digest_does_not_depend_on_how_much_is_summed_at_once(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of blocks per step is about memory only."""
    tensor = weights(size=5 * BLOCK + 7)
    expected = of(tensor)
    monkeypatch.setattr(damage_digest, "BLOCKS_AT_ONCE", at_once)
    assert of(tensor) == expected


def test_the_digest_does_not_depend_on_memory_layout() -> None:
    """What counts is the flat order of the weights, not strides, not the place in a storage, not a gradient."""
    tensor = torch.randn(300, 200, generator=torch.Generator().manual_seed(3))
    column_major = tensor.t().contiguous().t()
    wider = torch.cat([tensor, tensor], dim=1)[:, :200]
    assert not column_major.is_contiguous()
    assert not wider.is_contiguous()
    layouts = [column_major, wider, torch.cat([tensor, tensor])[300:], torch.nn.Parameter(tensor.clone())]
    assert [of(layout) for layout in layouts] == [of(tensor)] * len(layouts)
    assert of(tensor.t().contiguous().view(300, 200)) != of(tensor)


def test_the_digest_is_the_one_of_the_first_release() -> None:
    """Pinned: `degrade verify` compares with digests that older results files hold."""
    named = [("layers.0.mlp.up_proj.weight", weights(torch.bfloat16).view(4, -1)), ("embed_tokens.weight", weights())]
    assert digest_of(named) == "a26500359a9b05ae", digest_of(named)
