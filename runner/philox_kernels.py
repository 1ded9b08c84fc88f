"""Philox 4x32-10 in Triton, for the kernels of damage and of decoding: what `philox` gives on the CPU."""

import triton
import triton.language as tl


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, tl.full((), 0xD2511F53, tl.uint32)), c0 * tl.full((), 0xD2511F53, tl.uint32)
        high1, low1 = tl.umulhi(c2, tl.full((), 0xCD9E8D57, tl.uint32)), c2 * tl.full((), 0xCD9E8D57, tl.uint32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = k0 + tl.full((), 0x9E3779B9, tl.uint32)
        k1 = k1 + tl.full((), 0xBB67AE85, tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def _log_of_uniform(word):
    uniform = word.to(tl.float32) * 2.0**-32 + 2.0**-33
    bits = uniform.to(tl.int32, bitcast=True)
    exponent = (bits >> 23) - 126
    mantissa = ((bits & 0x007FFFFF) | 0x3F000000).to(tl.float32, bitcast=True)
    small = mantissa < 0.707106781186547524
    exponent = (exponent - small.to(tl.int32)).to(tl.float32)
    x = mantissa - 1.0
    x = tl.where(small, x + mantissa, x)
    square = x * x
    y = x * 7.0376836292e-2 + -1.1514610310e-1
    y = y * x + 1.1676998740e-1
    y = y * x + -1.2420140846e-1
    y = y * x + 1.4249322787e-1
    y = y * x + -1.6668057665e-1
    y = y * x + 2.0000714765e-1
    y = y * x + -2.4999993993e-1
    y = y * x + 3.3333331174e-1
    y = y * x * square
    y = y + exponent * -2.12194440e-4
    y = y - 0.5 * square
    return (x + y) + exponent * 0.693359375


@triton.jit
def _normal_pair(word0, word1):
    radius = tl.sqrt_rn(-2.0 * _log_of_uniform(word0))
    quarter = (word1 + tl.full((), 0x20000000, tl.uint32)) >> 30
    rest = (word1 << 2).to(tl.int32, bitcast=True)
    x = rest.to(tl.float32) * 3.65729529994141e-10
    square = x * x
    sine = (square * -1.9515295891e-4 + 8.3321608736e-3) * square
    sine = (sine + -1.6666654611e-1) * square * x + x
    cosine = (square * 2.443315711809948e-5 + -1.388731625493765e-3) * square
    cosine = (cosine + 4.166664568298827e-2) * square * square
    cosine = cosine - 0.5 * square + 1.0
    swapped = (quarter & 1) == 1
    turned_sine = tl.where(swapped, cosine, sine)
    turned_cosine = tl.where(swapped, sine, cosine)
    turned_sine = tl.where(quarter >= 2, -turned_sine, turned_sine)
    turned_cosine = tl.where((quarter == 1) | (quarter == 2), -turned_cosine, turned_cosine)
    return radius * turned_cosine, radius * turned_sine


@triton.jit
def _columns(a, b, c, d):
    """Four arrays [counters] as one [counters, 4]."""
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (a.shape[0], 4))


@triton.jit
def draw(first, stream, seed, DRAWS: tl.constexpr, TILE: tl.constexpr):
    """Words or normals number `first` to `first + 4 TILE` of a stream, [TILE, 4]: a row per counter."""
    block = first // 4  # the first counter; a tile never crosses a multiple of 2**32
    zero = tl.zeros((TILE,), tl.uint32)
    key = seed.to(tl.int64)
    w0, w1, w2, w3 = philox(
        block.to(tl.uint32) + tl.arange(0, TILE).to(tl.uint32), zero + (block >> 32).to(tl.uint32),
        zero + stream.to(tl.uint32), zero + (stream >> 32).to(tl.uint32),
        key.to(tl.uint32), (key >> 32).to(tl.uint32),
    )  # fmt: skip
    if DRAWS == "words":
        drawn = _columns(w0, w1, w2, w3)
    else:
        z0, z1 = _normal_pair(w0, w1)
        z2, z3 = _normal_pair(w2, w3)
        drawn = _columns(z0, z1, z2, z3)
    return drawn


@triton.jit(do_not_specialize=["seed", "stream", "first", "count"])
def fill(out, seed, stream, first, count, DRAWS: tl.constexpr, TILE: tl.constexpr):
    """Words, int64, or normals, float32, `first` to `first + count` of a stream; `first` is a multiple of a tile."""
    start = tl.program_id(0).to(tl.int64) * (4 * TILE)
    drawn = draw(start + first, stream.to(tl.int64), seed, DRAWS, TILE)
    offset = start + (tl.arange(0, TILE) * 4)[:, None] + tl.arange(0, 4)[None, :]
    tl.store(out + offset, drawn.to(out.dtype.element_ty), mask=offset < count)
