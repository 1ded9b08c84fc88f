"""Products of few rows with weights that are read once, on CUDA in Triton: fixed sums, each row by itself.

A program has some rows of weights and a fixed part of K for all rows of the batch, so a row's sums are in one order
whatever its neighbours hold. Parts of K leave float32 sums, which the kernel that follows adds in their order.

With OVERLAP kernels are launched before the kernel in front of them has ended (programmatic dependent launch). Until
`gdc_wait` a kernel reads only what no kernel of the layers writes: weights, angles, slots.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def activated(gate, up, GELU: tl.constexpr):
    """The activation of the gate times up, rounded where the model itself would store a tensor."""
    x = gate.to(tl.float32)
    if GELU:  # by tanh (Hendrycks and Gimpel 2016): (1 + tanh(z)) / 2 is the logistic function of 2 z
        x = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    else:
        x = x * tl.sigmoid(x)
    return (x.to(gate.dtype).to(tl.float32) * up.to(tl.float32)).to(gate.dtype)


@triton.jit
def ask_ahead(weights, program, LINES: tl.constexpr, SLICES: tl.constexpr, SLICE_BYTES: tl.constexpr,
              SHARE: tl.constexpr):  # fmt: skip
    """Ask the L2 cache for the first LINES * 128 bytes of every slice that the next product reads; SHARE a program."""
    LANES: tl.constexpr = triton.next_power_of_2(SHARE)
    line = program * SHARE + tl.minimum(tl.arange(0, LANES), SHARE - 1)
    line = tl.minimum(line, SLICES * LINES - 1).to(tl.int64)
    address = weights.to(tl.int64) + line // LINES * SLICE_BYTES + line % LINES * 128
    tl.inline_asm_elementwise("prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [address], dtype=tl.int32,
                              is_pure=False, pack=1)  # fmt: skip


@triton.jit
def _with_bias(sums, bias, n, part, BIAS: tl.constexpr):
    """The bias belongs to the first part of the sum."""
    if BIAS:
        sums += tl.load(bias + n, mask=(n >= 0) & (part == 0), other=0.0).to(tl.float32)[None, :]
    return sums


@triton.jit
def _store(sums, up, bias, out, n, part, ROWS: tl.constexpr, N: tl.constexpr, BM: tl.constexpr, GATED: tl.constexpr,
           GELU: tl.constexpr, BIAS: tl.constexpr):  # fmt: skip
    """Sums [BM, n] to their places in [parts, ROWS, N], or gated to [ROWS, N]."""
    m = tl.arange(0, BM)[:, None]
    kind: tl.constexpr = out.dtype.element_ty
    sums = _with_bias(sums, bias, n, part, BIAS)
    if GATED:
        up = _with_bias(up, bias + N, n, part, BIAS)
        value = activated(sums.to(kind), up.to(kind), GELU)
    else:
        value = sums.to(kind)
    tl.store(out + (part * ROWS + m) * N + n[None, :], value, mask=m < ROWS)


@triton.jit
def product(x, weights, bias, out, next_weights, ROWS: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
            SPLITS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, MORE: tl.constexpr, BK: tl.constexpr,
            STAGES: tl.constexpr, GATED: tl.constexpr, GELU: tl.constexpr, BIAS: tl.constexpr, FIRST: tl.constexpr,
            OVERLAP: tl.constexpr = False, LINES: tl.constexpr = 0, SLICES: tl.constexpr = 0,
            SLICE_BYTES: tl.constexpr = 0, SHARE: tl.constexpr = 1):  # fmt: skip
    """The product of x [ROWS, K] and weights [N, K], transposed; gated: weights [2 N, K], those of the gate first.

    A program has BN + MORE rows of weights, two powers of two, since their sum often cuts N into equal programs that
    run at once where one power of two leaves some for a second wave. `out` is [SPLITS, ROWS, N]. N is a multiple of
    BN + MORE and K of SPLITS * BK. FIRST: the next kernel may be launched at once, not only when the weights are read.
    """
    tile, part = tl.program_id(0), tl.program_id(1)
    if OVERLAP:
        if FIRST:
            gdc_launch_dependents()
        gdc_wait()
    SPAN: tl.constexpr = K // SPLITS
    m, k = tl.arange(0, BM)[:, None], part * SPAN + tl.arange(0, BK)[None, :]
    n = tile * (BN + MORE) + tl.arange(0, BN)
    xs = x + m * K + k
    ws = weights + n.to(tl.int64)[:, None] * K + k
    sums = tl.zeros((BM, BN), tl.float32)
    up = tl.zeros((BM, BN), tl.float32)
    if MORE > 0:
        more_n = tile * (BN + MORE) + BN + tl.arange(0, MORE)
        more_ws = weights + more_n.to(tl.int64)[:, None] * K + k
        more_sums = tl.zeros((BM, MORE), tl.float32)
        more_up = tl.zeros((BM, MORE), tl.float32)
    UP: tl.constexpr = N * K
    for i in tl.range(0, SPAN // BK, num_stages=STAGES):
        w = tl.load(ws + i * BK)
        if MORE > 0:
            more_w = tl.load(more_ws + i * BK)
        a = tl.load(xs + i * BK, mask=m < ROWS, other=0.0)
        sums = tl.dot(a, tl.trans(w), sums)
        if MORE > 0:
            more_sums = tl.dot(a, tl.trans(more_w), more_sums)
        if GATED:
            up = tl.dot(a, tl.trans(tl.load(ws + UP + i * BK)), up)
            if MORE > 0:
                more_up = tl.dot(a, tl.trans(tl.load(more_ws + UP + i * BK)), more_up)
    if OVERLAP and not FIRST:
        gdc_launch_dependents()
    if LINES > 0:
        ask_ahead(next_weights, tile + part * tl.num_programs(0), LINES, SLICES, SLICE_BYTES, SHARE)
    _store(sums, up, bias, out, n, part, ROWS, N, BM, GATED, GELU, BIAS)
    if MORE > 0:
        _store(more_sums, more_up, bias, out, more_n, part, ROWS, N, BM, GATED, GELU, BIAS)


@triton.jit
def own_product(x, addresses, bias, out, N, LEAD, K: tl.constexpr, ROWS: tl.constexpr, BM: tl.constexpr,
                BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr, ALIGNED: tl.constexpr,
                BIAS: tl.constexpr):  # fmt: skip
    """The product of a condition's rows of x [conditions * ROWS, K] and its own weights [N, K], transposed.

    `addresses` [conditions] say where these lie; a condition that has none keeps what is in `out`, rows of LEAD
    numbers, of which N are written.
    """
    tile, condition, some = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    address = tl.load(addresses + condition)
    if address != 0:
        kind: tl.constexpr = x.dtype.element_ty
        weights = address.to(tl.pointer_type(kind))
        if ALIGNED:
            weights = tl.multiple_of(weights, 16)
        m = some * BM + tl.arange(0, BM)[:, None]
        row = (condition * ROWS + m).to(tl.int64)
        n, k = tile * BN + tl.arange(0, BN), tl.arange(0, BK)[None, :]
        ws = weights + tl.minimum(n, N - 1).to(tl.int64)[:, None] * K + k
        xs = x + row * K + k
        sums = tl.zeros((BM, BN), tl.float32)
        for i in tl.range(0, K // BK, num_stages=STAGES):
            a = tl.load(xs + i * BK, mask=m < ROWS, other=0.0)
            sums = tl.dot(a, tl.trans(tl.load(ws + i * BK)), sums, input_precision="ieee")
        if K % BK > 0:
            rest = K // BK * BK
            a = tl.load(xs + rest, mask=(m < ROWS) & (k < K % BK), other=0.0)
            w = tl.load(ws + rest, mask=k < K % BK, other=0.0)
            sums = tl.dot(a, tl.trans(w), sums, input_precision="ieee")
        if BIAS:
            sums += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
        tl.store(out + row * LEAD + n[None, :], sums.to(out.dtype.element_ty), mask=(m < ROWS) & (n[None, :] < N))
