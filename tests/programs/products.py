"""Products of few rows in Triton's interpreter, beside float64: prints what was compared."""

import itertools

import numpy as np
import torch
from interpreter import quicken

from runner.decode_fused_kernels import add_norm
from runner.decode_gemm_kernels import product

SIZE, LENGTH = 96, 128  # of the weights; gated: of the gate
quicken()
DRAW = np.random.default_rng(5)


def halves(*shape: int) -> torch.Tensor:
    """Random float16 numbers; the interpreter cuts bfloat16 off where the hardware rounds."""
    return torch.from_numpy(DRAW.standard_normal(shape).astype(np.float16))


def multiply(
    x: torch.Tensor,
    weights: torch.Tensor,
    bias: torch.Tensor | None,
    splits: int,
    *,
    more: int,
    gated: bool,
    gelu: bool,
) -> torch.Tensor:
    """What the kernel leaves: parts [splits, rows, SIZE], or [rows, SIZE]."""
    rows = len(x)
    kind = torch.float16 if splits == 1 else torch.float32
    out = torch.full((splits, rows, SIZE), float("nan"), dtype=kind)
    product[(SIZE // (32 + more), splits)](
        x, weights, x if bias is None else bias, out, x, ROWS=rows, N=SIZE, K=LENGTH, SPLITS=splits, BM=64, BN=32,
        MORE=more, BK=16, STAGES=2, GATED=gated, GELU=gelu, BIAS=bias is not None, FIRST=False,
    )  # fmt: skip
    return out


def expected(
    x: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor | None, *, gated: bool, gelu: bool
) -> np.ndarray:
    """The same in float64, with the textbook's formulas of the activations."""
    whole = x.double().numpy() @ weights.double().numpy().T
    whole = whole if bias is None else whole + bias.double().numpy()
    if not gated:
        return whole
    gate, up = whole[:, :SIZE], whole[:, SIZE:]
    inner = np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)
    return (gate * (1 + np.tanh(inner)) / 2 if gelu else gate / (1 + np.exp(-gate))) * up


def check_products() -> None:
    """Every split, with and without bias, one and two tiles a program, some rows."""
    for splits, more, biased, rows in itertools.product((1, 2, 4), (0, 16), (False, True), (1, 5, 64)):
        x, weights, bias = halves(rows, LENGTH), halves(SIZE, LENGTH), halves(SIZE) if biased else None
        parts = multiply(x, weights, bias, splits, more=more, gated=False, gelu=False)
        error = parts.double().sum(0).numpy() - expected(x, weights, bias, gated=False, gelu=False)
        assert abs(error).max() < (0.05 if splits == 1 else 2e-4), (splits, more, biased, rows, abs(error).max())
        spans = zip(x.chunk(splits, 1), weights.chunk(splits, 1), strict=True)
        for number, (part, (some_x, some_weights)) in enumerate(zip(parts, spans, strict=True)):
            own = expected(some_x, some_weights, bias if number == 0 else None, gated=False, gelu=False)
            assert abs(part.double().numpy() - own).max() < (0.05 if splits == 1 else 2e-4)
    print("products")


def check_gated() -> None:
    """Both activations; rounded thrice, as a model in float16 rounds."""
    for gelu, more, biased in itertools.product((True, False), (0, 16), (False, True)):
        x, weights = halves(7, LENGTH) / 4, halves(2 * SIZE, LENGTH) / 4
        bias = halves(2 * SIZE) if biased else None
        (found,) = multiply(x, weights, bias, 1, more=more, gated=True, gelu=gelu)
        wanted = expected(x, weights, bias, gated=True, gelu=gelu)
        assert np.all(abs(found.double().numpy() - wanted) < 4e-3 * (1 + abs(wanted)))
    print("gated")


def check_rows() -> None:
    """A row is the same in any place, beside any neighbours, also beside what is no number.

    But for rounding: the interpreter takes NumPy's product, whose sums depend on the place. tests/gpu compares bits.
    """
    for splits in (1, 2, 4):
        x, weights = halves(9, LENGTH), halves(SIZE, LENGTH)
        parts = multiply(x, weights, None, splits, more=16, gated=False, gelu=False)
        order = torch.from_numpy(DRAW.permutation(9))
        permuted = multiply(x[order], weights, None, splits, more=16, gated=False, gelu=False)
        assert torch.allclose(permuted, parts[:, order], rtol=1e-3, atol=1e-4)
        others = x.clone()
        others[3:] = torch.tensor([0.0, float("nan"), float("inf"), 1.0, -2.0, 7.0])[:, None]
        beside = multiply(others, weights, None, splits, more=16, gated=False, gelu=False)
        assert torch.allclose(beside[:, :3], parts[:, :3], rtol=1e-3, atol=1e-4)
    print("rows")


def check_sums() -> None:
    """The norm behind a product adds its parts in their order; the numbers are such that another order shows."""
    rows, size, splits = 3, 40, 4
    parts = torch.from_numpy(DRAW.standard_normal((splits, rows, size)).astype(np.float32)) * 1000
    parts[1] += 1e8
    parts[2] -= 1e8
    stream, ones = torch.zeros(rows, size), torch.ones(size)
    add_norm[(rows,)](
        stream, parts, ones, ones, torch.empty(rows, size), size, 1e-6, OFFSET=0.0, ADD=True, AFTER=False, BLOCK=64,
        SPLITS=splits,
    )  # fmt: skip
    assert torch.equal(stream, ((parts[0] + parts[1]) + parts[2]) + parts[3])
    assert not torch.equal(stream, parts[0] + ((parts[1] + parts[2]) + parts[3]))
    print("sums")


check_products()
check_gated()
check_rows()
check_sums()
