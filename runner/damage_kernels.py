"""Damage, digest and sums on CUDA in Triton: one pass over a whole group, bit for bit what NumPy and PyTorch give.

A launch covers all tensors of a group. `tables` [rows, tensors] int64 says of each tensor: address of its baseline,
address of its weights, count, first tile, stream, then size, inner, repeats and period of its units (see `UnitSet`) and
where they begin in `units` [all units] uint8, which says of each whether it is damaged; last the stream that says which
bit flips. `details` are the statistics of each tensor [tensors, 2] float64 or, where bits are flipped, the mask of each
bit [bits] int32. Each program looks up which tensor its tile is of. Offsets are 64-bit, multiplications and additions
are never fused, the square root is correctly rounded.
"""

import torch
import triton
import triton.language as tl

from runner.philox_kernels import draw

TILE = 512  # Philox counters per program, four weights each; tried from 128 to 2048 with 1 to 8 warps
TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
WORDS = {torch.float32: tl.int32, torch.float16: tl.int16, torch.bfloat16: tl.int16}


def index_type(*lengths: int) -> tl.dtype:
    """The integers in which units are counted, of these lengths and numbers: 32 bits wherever they suffice."""
    return tl.int32 if max(lengths) + 4 * TILE < 2**31 else tl.int64


@triton.jit
def _tile(tables, tensor_of_tile, TENSORS: tl.constexpr, WEIGHTS: tl.constexpr):
    """The tensor of this program's tile, and the flat indices of its weights."""
    tile = tl.program_id(0)
    tensor = tl.load(tensor_of_tile + tile)
    first = (tile - tl.load(tables + 3 * TENSORS + tensor)) * WEIGHTS
    return tensor, first


@triton.jit
def _along(first, offset, step, length, INDEX: tl.constexpr):
    """(first + offset) // step % length; what is 64-bit is divided once for a tile, not for every weight."""
    begin, rest = first // step % length, first % step
    return (begin.to(INDEX) + (rest.to(INDEX) + offset) // step.to(INDEX)) % length.to(INDEX)


@triton.jit
def _selected(first, offset, tables, units, tensor, TENSORS: tl.constexpr, INDEX: tl.constexpr):
    """Whether the weights at these offsets from a flat index belong to chosen units."""
    size = tl.load(tables + 5 * TENSORS + tensor)
    unit = _along(first, offset, tl.load(tables + 6 * TENSORS + tensor), size, INDEX)
    repeats, period = tl.load(tables + 7 * TENSORS + tensor), tl.load(tables + 8 * TENSORS + tensor)
    unit += _along(first, offset, period, repeats, INDEX) * size.to(INDEX)
    return tl.load(units + tl.load(tables + 9 * TENSORS + tensor) + unit) != 0


@triton.jit
def _quantised(weight, low, high, parameter):
    span = high - low
    most = tl.full((), 1.0, tl.float64) * parameter
    step = span / most
    index = (weight.to(tl.float64) - low) * most / span
    index = (index + 6755399441055744.0) - 6755399441055744.0  # round half to even
    index = tl.minimum(tl.maximum(index, 0.0), most)
    value = tl.where(index == most, high.to(tl.float32), (index * step + low).to(tl.float32))
    return tl.where(span == 0.0, weight, value.to(weight.dtype))


@triton.jit
def _flipped(weight, first, stream, seed, masks, WORD: tl.constexpr, BITS: tl.constexpr, TILE: tl.constexpr):
    """The weights with one of `BITS` bits flipped; which one of several is drawn from a stream of its own."""
    if BITS == 1:
        mask = tl.load(masks)
    else:
        mask = tl.load(masks + tl.umulhi(draw(first, stream, seed, "words", TILE), tl.full((), BITS, tl.uint32)))
    return (weight.to(WORD, bitcast=True) ^ mask.to(WORD)).to(weight.dtype, bitcast=True)


@triton.jit(do_not_specialize=["seed", "parameter"])
def damage(
    tables, units, tensor_of_tile, details, seed, parameter,
    METHOD: tl.constexpr, DRAWS: tl.constexpr, TYPE: tl.constexpr, WORD: tl.constexpr, TENSORS: tl.constexpr,
    PARTS: tl.constexpr, INDEX: tl.constexpr, BITS: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    tensor, first = _tile(tables, tensor_of_tile, TENSORS, 4 * TILE)
    # A row per counter, so that the four weights of a counter meet their words in the registers of one thread.
    offset = (tl.arange(0, TILE) * 4)[:, None] + tl.arange(0, 4)[None, :]
    inside = offset < tl.minimum(tl.load(tables + 2 * TENSORS + tensor) - first, 4 * TILE).to(tl.int32)
    source = tl.load(tables + tensor).to(tl.pointer_type(TYPE)) + first
    destination = tl.load(tables + TENSORS + tensor).to(tl.pointer_type(TYPE)) + first
    if ALIGNED:
        source, destination = tl.multiple_of(source, 16), tl.multiple_of(destination, 16)
    weight = tl.load(source + offset, mask=inside, other=0.0)
    if DRAWS != "nothing":
        drawn = draw(first, tl.load(tables + 4 * TENSORS + tensor), seed, DRAWS, TILE)
    if METHOD == "mult_gauss":
        damaged = weight.to(tl.float32) * (drawn * parameter + 1.0)
    elif METHOD == "ablation":
        damaged = tl.where(drawn <= parameter.to(tl.uint32), 0.0, weight)
    elif METHOD == "uni_quant":
        damaged = _quantised(weight, tl.load(details + 2 * tensor), tl.load(details + 2 * tensor + 1), parameter)
    elif METHOD == "add_gauss":
        scale = tl.load(details + 2 * tensor).to(tl.float32) * parameter
        damaged = weight.to(tl.float32) + drawn * scale
    elif METHOD == "mean":
        damaged = tl.where(
            drawn <= parameter.to(tl.uint32), tl.load(details + 2 * tensor).to(tl.float32).to(TYPE), weight
        )
    elif BITS > 0:
        flipped = _flipped(weight, first, tl.load(tables + 10 * TENSORS + tensor), seed, details, WORD, BITS, TILE)
        damaged = tl.where(drawn <= parameter.to(tl.uint32), flipped, weight)
    damaged = damaged.to(TYPE)
    if PARTS:
        damaged = tl.where(_selected(first, offset, tables, units, tensor, TENSORS, INDEX), damaged, weight)
    tl.store(destination + offset, damaged, mask=inside)


@triton.jit
def fingerprint(tables, tensor_of_tile, coefficients, sums, TYPE: tl.constexpr, TENSORS: tl.constexpr,
                 BLOCK: tl.constexpr, STEP: tl.constexpr):  # fmt: skip
    tensor, first = _tile(tables, tensor_of_tile, TENSORS, BLOCK)
    count = tl.load(tables + 2 * TENSORS + tensor)
    words = tl.load(tables + TENSORS + tensor).to(tl.pointer_type(TYPE))
    total = tl.zeros((STEP,), tl.int64)
    for start in range(0, BLOCK, STEP):
        offset = start + tl.arange(0, STEP)
        word = tl.load(words + first + offset, mask=first + offset < count, other=0).to(tl.int64)
        total += word * tl.load(coefficients + offset)
    value = (tl.sum(total, 0) + first // BLOCK * -7046029254386353131).to(tl.uint64)
    value = (value ^ (value >> 30)) * tl.full((), 0xBF58476D1CE4E5B9, tl.uint64)
    value = (value ^ (value >> 27)) * tl.full((), 0x94D049BB133111EB, tl.uint64)
    tl.atomic_add(sums + tensor, (value ^ (value >> 31)).to(tl.int64))


@triton.jit
def sums(tables, units, tensor_of_tile, partial, TYPE: tl.constexpr, TENSORS: tl.constexpr, PARTS: tl.constexpr,
          INDEX: tl.constexpr, WEIGHTS: tl.constexpr):  # fmt: skip
    tensor, first = _tile(tables, tensor_of_tile, TENSORS, WEIGHTS)
    offset = tl.arange(0, WEIGHTS)
    flat = first + offset
    inside = flat < tl.load(tables + 2 * TENSORS + tensor)
    before = tl.load(tl.load(tables + tensor).to(tl.pointer_type(TYPE)) + flat, mask=inside, other=0.0).to(tl.float32)
    now = tl.load(tl.load(tables + TENSORS + tensor).to(tl.pointer_type(TYPE)) + flat, mask=inside, other=0.0).to(
        tl.float32
    )
    change = now.to(tl.float64) - before.to(tl.float64)
    original = before.to(tl.float64)
    if PARTS:
        original = tl.where(_selected(first, offset, tables, units, tensor, TENSORS, INDEX), original, 0.0)
    out = partial + tl.program_id(0).to(tl.int64) * 4
    tl.store(out, tl.sum((before != now).to(tl.float64), 0))
    tl.store(out + 1, tl.sum(((before != 0.0) & (now == 0.0)).to(tl.float64), 0))
    tl.store(out + 2, tl.sum(change * change, 0))
    tl.store(out + 3, tl.sum(original * original, 0))
