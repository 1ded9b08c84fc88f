"""Random words and normals as a pure function of (seed, stream, index): the same bits on every machine.

Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns a 128-bit counter and a
64-bit key into four 32-bit words. The key is the seed. The lower half of the counter numbers the block of four words,
the upper half is the stream: a hash of what the numbers are for. Nothing depends on the order of drawing.

Two words make two normals (Box and Muller 1958). Logarithm, sine and cosine are the single-precision polynomials of
Cephes (Moshier 1989) as separate IEEE multiplications and additions, the square root is correctly rounded: whatever
keeps IEEE 754 and fuses nothing gives the same bits.
"""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]  # 32-bit words, held in 64 bits so that a product keeps its upper half
Floats = NDArray[np.float32]

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
WORDS_PER_BLOCK = 4
CHUNK = 65_536  # words at a time: the arrays of a chunk stay in the cache
LOG_COEFFICIENTS = (
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)

_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def stream_id(purpose: str, name: str) -> int:
    """The 64-bit stream number of a purpose ("damage", "sampling") and a name within it."""
    return int.from_bytes(hashlib.sha256(f"{purpose}\0{name}".encode()).digest()[:8], "little")


def philox(counter: tuple[Words, Words, Words, Words], seed: int) -> tuple[Words, Words, Words, Words]:
    """Philox 4x32-10 of counters (four arrays of 32-bit words) under one 64-bit key."""
    c0, c1, c2, c3 = counter
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(ROUNDS):
        product0 = c0 * np.uint64(MULTIPLIERS[0])
        product1 = c2 * np.uint64(MULTIPLIERS[1])
        c0 = (product1 >> _SHIFT) ^ c1 ^ np.uint64(key[0])
        c1 = product1 & _LOW
        c2 = (product0 >> _SHIFT) ^ c3 ^ np.uint64(key[1])
        c3 = product0 & _LOW
        key = [(word + step) & 0xFFFFFFFF for word, step in zip(key, KEY_STEPS, strict=True)]
    return c0, c1, c2, c3


def words(seed: int, stream: int, first: int, count: int) -> NDArray[np.uint32]:
    """Words `first` to `first + count` of a stream, on all cores; `first` is a multiple of four."""
    return _in_chunks(_words_chunk, np.dtype(np.uint32), seed, stream, first, count)


def normals(seed: int, stream: int, first: int, count: int) -> Floats:
    """Standard normals `first` to `first + count` of a stream, on all cores; `first` is a multiple of four."""
    return _in_chunks(_normals_chunk, np.dtype(np.float32), seed, stream, first, count)


def _in_chunks(
    draw: Callable[[int, int, int, int], NDArray[Any]],
    dtype: np.dtype[Any],
    seed: int,
    stream: int,
    first: int,
    count: int,
) -> NDArray[Any]:
    """What `draw` gives for every chunk, in order; NumPy lets go of the interpreter lock, so threads help."""
    if first % WORDS_PER_BLOCK:
        raise ValueError(f"first = {first} is not a multiple of {WORDS_PER_BLOCK}")
    out = np.empty(count, dtype)

    def fill(start: int) -> None:
        size = min(CHUNK, count - start)
        out[start : start + size] = draw(seed, stream, first + start, size)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fill, range(0, count, CHUNK)))
    return out


def _normals_chunk(seed: int, stream: int, first: int, count: int) -> Floats:
    even = count + count % 2
    return normals_of(_words_chunk(seed, stream, first, even))[:count]


def _words_chunk(seed: int, stream: int, first: int, count: int) -> NDArray[np.uint32]:
    block = np.arange(first // WORDS_PER_BLOCK, -(-(first + count) // WORDS_PER_BLOCK), dtype=np.uint64)
    upper = [np.full_like(block, half) for half in (stream & 0xFFFFFFFF, stream >> 32)]
    four = philox((block & _LOW, block >> _SHIFT, upper[0], upper[1]), seed)
    out = np.empty((len(block), WORDS_PER_BLOCK), dtype=np.uint32)
    for column, word in enumerate(four):
        out[:, column] = word
    return out.reshape(-1)[:count]


def normals_of(pairs: NDArray[np.uint32]) -> Floats:
    """Standard normals from an even number of words: word 2k gives the radius of the pair, word 2k+1 its angle."""
    radius = np.sqrt(np.float32(-2.0) * _log_of_uniform(pairs[0::2]))
    sine, cosine = _sine_cosine(pairs[1::2])
    out = np.empty(pairs.shape, dtype=np.float32)
    np.multiply(radius, cosine, out=out[0::2])
    np.multiply(radius, sine, out=out[1::2])
    return out


def _log_of_uniform(word: NDArray[np.uint32]) -> Floats:
    """log(u) for u = (word + 1/2) / 2**32 in float32, in (0, 1]; Cephes logf."""
    uniform = word.astype(np.float32) * np.float32(2.0**-32) + np.float32(2.0**-33)
    bits = uniform.view(np.int32)
    # u = m * 2**e with m in [0.5, 1), then m in [sqrt(1/2), sqrt(2)) - 1
    exponent = (bits >> np.int32(23)) - np.int32(126)
    mantissa = ((bits & np.int32(0x007FFFFF)) | np.int32(0x3F000000)).view(np.float32)
    small = mantissa < np.float32(0.707106781186547524)
    exponent = (exponent - small.astype(np.int32)).astype(np.float32)
    x = mantissa - np.float32(1.0)
    x = np.where(small, x + mantissa, x)
    square = x * x
    y = np.full_like(x, 7.0376836292e-2)
    for coefficient in LOG_COEFFICIENTS:
        y = y * x + np.float32(coefficient)
    y = y * x * square
    y = y + exponent * np.float32(-2.12194440e-4)
    y = y - np.float32(0.5) * square
    return np.asarray((x + y) + exponent * np.float32(0.693359375))


def _sine_cosine(word: NDArray[np.uint32]) -> tuple[Floats, Floats]:
    """Sine and cosine of 2 pi word / 2**32; Cephes sinf and cosf on [-pi/4, pi/4], turned by whole quarters.

    The two highest bits, rounded, are the quarter; the signed rest is exact as an integer before it becomes a float.
    """
    quarter = (word + np.uint32(0x20000000)) >> np.uint32(30)
    rest = (word << np.uint32(2)).view(np.int32)  # in units of a quarter turn / 2**32, around the nearest quarter
    x = rest.astype(np.float32) * np.float32(np.pi / 2 * 2.0**-32)
    square = x * x
    sine = (np.float32(-1.9515295891e-4) * square + np.float32(8.3321608736e-3)) * square
    sine = (sine + np.float32(-1.6666654611e-1)) * square * x + x
    cosine = (np.float32(2.443315711809948e-5) * square + np.float32(-1.388731625493765e-3)) * square
    cosine = (cosine + np.float32(4.166664568298827e-2)) * square * square
    cosine = cosine - np.float32(0.5) * square + np.float32(1.0)
    swapped = (quarter & np.uint32(1)).astype(bool)
    turned_sine = np.where(swapped, cosine, sine)
    turned_cosine = np.where(swapped, sine, cosine)
    turned_sine = np.where(quarter >= np.uint32(2), -turned_sine, turned_sine)
    turned_cosine = np.where((quarter == np.uint32(1)) | (quarter == np.uint32(2)), -turned_cosine, turned_cosine)
    return turned_sine, turned_cosine
