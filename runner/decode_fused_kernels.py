"""What a decode step does between its matrix products, on CUDA in Triton: few launches, each row by itself.

Arithmetic is in float32 and rounded to the model's dtype where the model itself would store a tensor, so a step agrees
with transformers' up to rounding. A program belongs to one row: no neighbour can change it.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from runner.decode_gemm_kernels import activated, ask_ahead
from runner.philox_kernels import philox


@triton.jit
def _normalised(x, weight, count, eps, OFFSET: tl.constexpr):
    """Root mean square norm (Zhang and Sennrich 2019) of `count` values, times weight + OFFSET."""
    x = x.to(tl.float32)
    return x * tl.rsqrt(tl.sum(x * x, 0) / count + eps) * (weight.to(tl.float32) + OFFSET)


@triton.jit
def add_norm(stream, addition, after, before, out, size, eps, OFFSET: tl.constexpr, ADD: tl.constexpr,
             AFTER: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr = 1, OVERLAP: tl.constexpr = False,
             BEFORE: tl.constexpr = True, MULTIPLIER: tl.constexpr = 1.0):  # fmt: skip
    """The residual stream plus a sublayer's output, which may have its own norm; the norm before the next sublayer.

    The output may come in SPLITS parts [SPLITS, rows, size], float32, which are added in their order. It is added
    MULTIPLIER times. BEFORE: the next sublayer has a norm before it; without, it reads the stream itself.
    """
    row = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    inside = lane < size
    if BEFORE:
        weight = tl.load(before + lane, mask=inside, other=0.0)
    if AFTER:
        after_weight = tl.load(after + lane, mask=inside, other=0.0)
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    x = tl.load(stream + row * size + lane, mask=inside, other=0.0)
    if ADD:
        y = tl.load(addition + row * size + lane, mask=inside, other=0.0)
        if SPLITS > 1:
            for part in tl.static_range(1, SPLITS):
                y += tl.load(addition + (part * tl.num_programs(0) + row) * size + lane, mask=inside, other=0.0)
            y = y.to(x.dtype)
        if AFTER:
            y = _normalised(y, after_weight, size, eps, OFFSET).to(y.dtype)
        if MULTIPLIER != 1.0:
            y = (y.to(tl.float32) * MULTIPLIER).to(y.dtype)
        x = (x.to(tl.float32) + y.to(tl.float32)).to(x.dtype)
        tl.store(stream + row * size + lane, x, mask=inside)
    if BEFORE:
        tl.store(out + row * size + lane, _normalised(x, weight, size, eps, OFFSET).to(x.dtype), mask=inside)


@triton.jit
def norm_projections(heads, query_norm, key_norm, query_size, key_size, eps, OFFSET: tl.constexpr,
                     BLOCK: tl.constexpr):  # fmt: skip
    """Queries, keys and values [rows, ...]: queries normalised in their place over all heads together, keys too."""
    row, part = tl.program_id(0), tl.program_id(1)
    size = tl.where(part == 0, query_size, key_size)
    lane = tl.arange(0, BLOCK)
    inside = lane < size
    if part == 0:
        weight = tl.load(query_norm + lane, mask=inside, other=0.0)
    else:
        weight = tl.load(key_norm + lane, mask=inside, other=0.0)
    at = heads + row * (query_size + 2 * key_size) + part * query_size + lane
    x = tl.load(at, mask=inside, other=0.0)
    tl.store(at, _normalised(x, weight, size, eps, OFFSET).to(x.dtype), mask=inside)


@triton.jit
def gated(gate_up, out, size, GELU: tl.constexpr, BLOCK: tl.constexpr):
    """The activation of the gate times up, [rows, size], from both in one tensor [rows, 2 size]."""
    row = tl.program_id(0)
    lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < size
    gate = tl.load(gate_up + row * 2 * size + lane, mask=inside, other=0.0)
    up = tl.load(gate_up + row * 2 * size + size + lane, mask=inside, other=0.0)
    tl.store(out + row * size + lane, activated(gate, up, GELU), mask=inside)


@triton.jit
def _summed(pointer, apart, inside, kind: tl.constexpr, SPLITS: tl.constexpr):
    """Numbers that come in SPLITS parts, `apart` from each other: added in their order, then rounded."""
    total = tl.load(pointer, mask=inside, other=0.0)
    for part in tl.static_range(1, SPLITS):
        total += tl.load(pointer + part * apart, mask=inside, other=0.0)
    return total.to(kind)


@triton.jit
def _halves(pointer, apart, inside, kind: tl.constexpr, HALF: tl.constexpr, SPLITS: tl.constexpr):
    pointer += tl.arange(0, HALF)[None, :]
    return _summed(pointer, apart, inside, kind, SPLITS), _summed(pointer + HALF, apart, inside, kind, SPLITS)


@triton.jit
def _rotary(a, b, weight, cosine, sine, eps, HALF: tl.constexpr, NORM: tl.constexpr, OFFSET: tl.constexpr,
            TURN: tl.constexpr):  # fmt: skip
    """Heads [heads, HALF] twice: normalised where the family does so, then turned by their position."""
    kind = a.dtype
    a, b = a.to(tl.float32), b.to(tl.float32)
    if NORM:
        lane = tl.arange(0, HALF)[None, :]
        scale = tl.rsqrt((tl.sum(a * a, 1, keep_dims=True) + tl.sum(b * b, 1, keep_dims=True)) / (2 * HALF) + eps)
        a = (a * scale * (tl.load(weight + lane).to(tl.float32) + OFFSET)).to(kind).to(tl.float32)
        b = (b * scale * (tl.load(weight + HALF + lane).to(tl.float32) + OFFSET)).to(kind).to(tl.float32)
    if TURN:
        return (a * cosine - b * sine).to(kind), (b * cosine + a * sine).to(kind)
    else:  # noqa: RET505 - Triton compiles one branch, and no return behind another
        return a.to(kind), b.to(kind)


@triton.jit
def _capped(score, CAP: tl.constexpr):
    """Scores of attention kept between -CAP and CAP by tanh, if there is a cap."""
    if CAP > 0:  # tanh(z) is 2 / (1 + exp(-2 z)) - 1
        score = CAP * (2 * tl.sigmoid(score * (2 / CAP)) - 1)
    return score


@triton.jit
def _attend_cache(query_a, query_b, largest, total, mixed, keys, values, begin, end, scale, HALF: tl.constexpr,
               BLOCK: tl.constexpr, CAP: tl.constexpr):  # fmt: skip
    """Carry a softmax that has begun over the cache from slot begin to end: its sum, and the values mixed by it."""
    lane, whole = tl.arange(0, HALF)[None, :], tl.arange(0, 2 * HALF)[None, :]
    for start in range(begin // BLOCK * BLOCK, end, BLOCK):
        read = start + tl.arange(0, BLOCK)
        inside = (read >= begin) & (read < end)
        at = read.to(tl.int64)[:, None] * (2 * HALF)
        old_a = tl.load(keys + at + lane, mask=inside[:, None], other=0.0)
        old_b = tl.load(keys + at + HALF + lane, mask=inside[:, None], other=0.0)
        score = tl.dot(query_a, tl.trans(old_a), input_precision="ieee")
        score = tl.dot(query_b, tl.trans(old_b), score, input_precision="ieee") * scale
        score = tl.where(inside[None, :], _capped(score, CAP), float("-inf"))
        highest = tl.maximum(largest, tl.max(score, 1))
        weight = tl.exp(score - highest[:, None])
        fade = tl.exp(largest - highest)
        total = total * fade + tl.sum(weight, 1)
        old = tl.load(values + at + whole, mask=inside[:, None], other=0.0)
        mixed = tl.dot(weight.to(old.dtype), old, mixed * fade[:, None], input_precision="ieee")
        largest = highest
    return total, mixed


@triton.jit
def attend(heads, keys, values, out, cosines, sines, query_norm, key_norm, slots, firsts, scale, eps,
           GROUP: tl.constexpr, KEY_HEADS: tl.constexpr, HALF: tl.constexpr, LENGTH: tl.constexpr,
           WINDOW: tl.constexpr, NORM: tl.constexpr, OFFSET: tl.constexpr, PADDED: tl.constexpr,
           BLOCK: tl.constexpr, SPLITS: tl.constexpr = 1, OVERLAP: tl.constexpr = False, next_weights=None,
           LINES: tl.constexpr = 0, SLICES: tl.constexpr = 0, SLICE_BYTES: tl.constexpr = 0,
           SHARE: tl.constexpr = 1, CAP: tl.constexpr = 0.0, TURN: tl.constexpr = True):  # fmt: skip
    """One new token per row: norm and rotary embedding, its key and value into the cache, attention over what is there.

    A program has one row and one key head with the GROUP query heads that share it, so no key is read twice. It reads
    the slots from the row's first token, or from where the window begins, and no others. `heads` may come in SPLITS
    parts [SPLITS, rows, ...], float32, which are added in their order.
    """
    row, head = tl.program_id(0), tl.program_id(1)
    kind: tl.constexpr = keys.dtype.element_ty
    SIZE: tl.constexpr = 2 * HALF
    slot, first = tl.load(slots + row), tl.load(firsts + row)
    lane, whole = tl.arange(0, HALF)[None, :], tl.arange(0, SIZE)[None, :]
    query = tl.arange(0, PADDED)[:, None]
    cosine = tl.load(cosines + (slot - first) * SIZE + lane).to(tl.float32)
    sine = tl.load(sines + (slot - first) * SIZE + lane).to(tl.float32)
    if OVERLAP:
        gdc_wait()
    mine = heads + row * (GROUP + 2) * KEY_HEADS * SIZE
    apart = tl.num_programs(0) * (GROUP + 2) * KEY_HEADS * SIZE
    query_a, query_b = _halves(mine + (head * GROUP + query) * SIZE, apart, query < GROUP, kind, HALF, SPLITS)
    key_a, key_b = _halves(mine + (GROUP * KEY_HEADS + head) * SIZE, apart, lane >= 0, kind, HALF, SPLITS)
    value = _summed(mine + ((GROUP + 1) * KEY_HEADS + head) * SIZE + whole, apart, whole >= 0, kind, SPLITS)
    query_a, query_b = _rotary(query_a, query_b, query_norm, cosine, sine, eps, HALF, NORM, OFFSET, TURN)
    key_a, key_b = _rotary(key_a, key_b, key_norm, cosine, sine, eps, HALF, NORM, OFFSET, TURN)
    cache = (row.to(tl.int64) * KEY_HEADS + head) * LENGTH * SIZE
    tl.store(keys + cache + slot * SIZE + lane, key_a)
    tl.store(keys + cache + slot * SIZE + HALF + lane, key_b)
    tl.store(values + cache + slot * SIZE + whole, value)

    # The softmax begins with the new token, from registers; what lies in the cache is older than this launch.
    largest = tl.sum(query_a.to(tl.float32) * key_a.to(tl.float32), 1)
    largest = _capped((largest + tl.sum(query_b.to(tl.float32) * key_b.to(tl.float32), 1)) * scale, CAP)
    total = tl.full((PADDED,), 1.0, tl.float32)
    mixed = tl.zeros((PADDED, SIZE), tl.float32) + value.to(tl.float32)
    begin = first
    if WINDOW > 0:
        begin = tl.maximum(first, slot - WINDOW + 1)
    total, mixed = _attend_cache(query_a, query_b, largest, total, mixed, keys + cache, values + cache, begin, slot,
                                 scale, HALF, BLOCK, CAP)  # fmt: skip
    if OVERLAP:
        gdc_launch_dependents()
    if LINES > 0:
        ask_ahead(next_weights, row + head * tl.num_programs(0), LINES, SLICES, SLICE_BYTES, SHARE)
    mixed = (mixed / total[:, None]).to(out.dtype.element_ty)
    place = (row * KEY_HEADS * GROUP + head * GROUP + query) * SIZE
    tl.store(out + place + whole, mixed, mask=query < GROUP)


@triton.jit
def block_maxima(logits, maxima, finite, vocabulary, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    """The maximum of every whole block of logits, and whether all logits that a program saw are finite."""
    row, chunk = tl.program_id(0), tl.program_id(1)
    block = chunk * BLOCKS + tl.arange(0, BLOCKS)
    token = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = token < vocabulary
    value = tl.load(logits + row.to(tl.int64) * vocabulary + token, mask=inside, other=0.0).to(tl.float32)
    good = tl.abs(value) < float("inf")  # false for what is not a number
    highest = tl.max(tl.where(inside & good, value, float("-inf")), 1)
    tl.store(maxima + row * (vocabulary // BLOCK) + block, highest, mask=block < vocabulary // BLOCK)
    tl.store(finite + row * tl.num_programs(1) + chunk, tl.min(tl.min(good.to(tl.int32), 1), 0))


@triton.jit
def sample_step(logits, token_ids, finite, streams, eos, token, slot, step, active, reason, written, temperature, top_p,
           pad, width, new_tokens, chunks, ENDED: tl.constexpr, NONFINITE: tl.constexpr, COUNT: tl.constexpr,
           LANES: tl.constexpr, EOS: tl.constexpr, EOS_LANES: tl.constexpr, CHUNK_LANES: tl.constexpr):  # fmt: skip
    """A draw from the candidates of each row, descending [rows, COUNT], and what it means for the row."""
    row = tl.program_id(0)
    lane = tl.arange(0, LANES)
    candidate = lane < COUNT
    score = tl.load(logits + row * COUNT + lane, mask=candidate, other=float("-inf")).to(tl.float32) / temperature
    exponential = tl.exp(score - tl.max(score, 0))
    probability = exponential / tl.sum(exponential, 0)
    score = tl.where(tl.cumsum(probability, 0) - probability >= top_p, float("-inf"), score)
    ids = tl.load(token_ids + row * COUNT + lane, mask=candidate, other=0)
    now = tl.load(step + row)
    zero = tl.zeros((LANES,), tl.uint32)
    word, _, _, _ = philox(
        ids.to(tl.uint32), zero + now.to(tl.uint32),
        zero + tl.load(streams + row * 4 + 2).to(tl.uint32), zero + tl.load(streams + row * 4 + 3).to(tl.uint32),
        tl.load(streams + row * 4).to(tl.uint32), tl.load(streams + row * 4 + 1).to(tl.uint32),
    )  # fmt: skip
    uniform = (word.to(tl.float64) + 0.5) * 2.3283064365386963e-10  # 2**-32; one minus it has 33 bits: exact
    score += (-tl.log(-tl.log(1.0 - uniform))).to(tl.float32)
    best = tl.argmax(tl.where(candidate, score, float("-inf")), 0)
    chosen = tl.sum(tl.where(lane == best, ids, 0), 0)

    chunk = tl.arange(0, CHUNK_LANES)
    good = tl.min(tl.load(finite + row * chunks + chunk, mask=chunk < chunks, other=1), 0) > 0
    before = tl.load(active + row) != 0
    going = before & good
    chosen = tl.where(going, chosen, pad)
    lane = tl.arange(0, EOS_LANES)
    ended = going & (tl.sum((tl.load(eos + lane, mask=lane < EOS, other=-1) == chosen).to(tl.int32), 0) > 0)
    tl.store(token + row, chosen)
    tl.store(slot + row, tl.minimum(now + width, width + new_tokens - 1))
    tl.store(written + row * (new_tokens + 1) + now, chosen)
    tl.store(step + row, now + going.to(tl.int64))
    tl.store(reason + row, tl.where(ended, ENDED, NONFINITE).to(tl.int64), mask=ended | (before & (good == 0)))
    tl.store(active + row, (going & (ended == 0) & (now + 1 < new_tokens)).to(tl.int8))
