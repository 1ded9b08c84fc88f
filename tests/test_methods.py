"""Each method is what NumPy makes of its formula, for whole tensors and parts, with every option; counts are exact."""

import json
import math
import struct
import tomllib
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from attrs import evolve, fields_dict
from helpers import Command, done
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from runner import damage_blocks, philox
from runner.damage_effect import change_sums, evidence
from runner.damage_methods import damage, keep_baseline, restore
from runner.damage_statistics import folded, statistic
from runner.errors import SpecError
from runner.spec_choice import weights_key
from runner.spec_methods import METHODS, Method, Options, Pieces, bit_positions, exact_count, is_no_op
from runner.target_tensor import Target, UnitSet

NAME = "layers.3.mlp.up_proj.weight"
SEED = 2**33 + 42
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
STRUCT = {torch.float32: "<I", torch.float16: "<H", torch.bfloat16: "<H"}
INTEGER = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
PLAIN = Options()
# Every method with every option that it takes, at a level between its ends.
CASES: list[tuple[Method, float, Options]] = [
    ("mult_gauss", 0.3, PLAIN),
    ("ablation", 0.3, PLAIN),
    ("uni_quant", 5, PLAIN),
    ("uni_quant", 5, Options(per="row")),
    ("add_gauss", 0.7, PLAIN),
    ("add_gauss", 0.7, Options(per="row")),
    ("mean", 0.3, PLAIN),
    ("sign_flip", 0.3, PLAIN),
    ("bit_flip", 0.3, PLAIN),
    ("bit_flip", 0.3, Options(bits="mantissa")),
    ("bit_flip", 0.3, Options(bits="exponent")),
    ("bit_flip", 0.3, Options(bits="sign")),
    ("bit_flip", 0.3, Options(bits=(0, 9, 15))),
    ("prune", 0.3, PLAIN),
    ("prune", 0.3, Options(order="largest")),
    ("shuffle", 0.3, PLAIN),
    ("shuffle", 0.3, Options(pieces="rows")),
    ("shuffle", 0.3, Options(pieces="columns")),
    ("shuffle", 0.3, Options(pieces="row pairs")),
    ("shuffle", 0.3, Options(pieces="column pairs")),
    *((method, level, Options(share=0.4)) for method, level in (("mult_gauss", 0.3), ("uni_quant", 5))),
    ("add_gauss", 0.7, Options(share=0.4, per="row")),
]
SHARES = [(method, options) for method, _, options in CASES if METHODS[method].level_is_share]
Mask = NDArray[np.bool_]


def name_of(value: object) -> str:
    """A test's name for an option."""
    if not isinstance(value, Options):
        return str(value)
    said = [
        f"{key}={getattr(value, key)}" for key in fields_dict(Options) if getattr(value, key) != getattr(PLAIN, key)
    ]
    return " ".join(said) or "plain"


def weights(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    """Weights as a model has them, among them some that are equal, zeros of both signs and a subnormal number."""
    drawn = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.05).to(dtype)
    flat = drawn.view(-1)
    flat[3:9] = flat[3]
    flat[10:16] = torch.tensor([0.0, -0.0, 0.0, -0.0, torch.finfo(dtype).tiny / 4, -torch.finfo(dtype).tiny / 4])
    return drawn


def bits_of(tensor: Tensor) -> Tensor:
    """The stored bits as integers: NaN equals itself, and the sign of zero counts."""
    return tensor.view(INTEGER[tensor.dtype])


def damaged(
    weight: Tensor,
    method: Method,
    level: float,
    options: Options = PLAIN,
    units: UnitSet | None = None,
    chosen: Tensor | None = None,
    seed: int = SEED,
) -> Tensor:
    """A damaged copy of one tensor."""
    target = Target(NAME, weight.clone(), units)
    table = None if chosen is None else [chosen]
    damage([target], [weight], method, level, seed, options=options, chosen=table)
    return target.weight


def words_of(purpose: str, count: int, seed: int = SEED) -> NDArray[np.int64]:
    """The words of a stream of the tensor."""
    return philox.words(seed, philox.stream_id(purpose, NAME), 0, count).astype(np.int64)


def rounded_half_up(share: float, count: int) -> int:
    """The decimals of a share, times a number, to whole things."""
    return int((round(share * 10**6) * count + 5 * 10**5) // 10**6)


def by_numpy(weight: Tensor, method: Method, level: float, options: Options, target: Mask, chosen: Mask) -> Tensor:
    """What a method makes of a matrix; `target` says where statistics are taken, `chosen` what may be damaged."""
    w, count = weight.double().numpy(), weight.numel()
    hit = words_of("damage", count).reshape(w.shape) < level * 2**32
    if method in {"sign_flip", "bit_flip"}:
        return by_struct(weight, "sign" if method == "sign_flip" else options.bits, hit & chosen)
    if method in {"prune", "shuffle"}:
        return rearranged(weight, method, level, options, chosen)
    if method in {"ablation", "mean"}:
        made = np.where(hit, 0 if method == "ablation" else np.float32(w[target].mean()), w)
    else:
        lines = [np.s_[i : i + 1] for i in range(len(w))] if options.per == "row" else [np.s_[:]]
        made = np.concatenate([of_line(w, method, level, line, target) for line in lines])
    if options.share is not None:
        chosen = chosen & (words_of("share", count) < options.share * 2**32).reshape(w.shape)
    result = torch.from_numpy(made).to(torch.float32).to(weight.dtype)
    return torch.where(torch.from_numpy(chosen), result, weight)


def of_line(w: NDArray[np.float64], method: Method, level: float, line: slice, target: Mask) -> NDArray[np.float32]:
    """Noise and quantisation of some rows of a matrix, with statistics of these rows."""
    single, known = w[line].astype(np.float32), w[line][target[line]]
    if method == "uni_quant":
        if not len(known):
            return single
        values = np.linspace(known.min(), known.max(), int(level))
        even_first = np.concatenate([np.arange(0, len(values), 2), np.arange(1, len(values), 2)])
        return values.astype(np.float32)[even_first[np.abs(w[line][..., None] - values[even_first]).argmin(axis=-1)]]
    z = philox.normals(SEED, philox.stream_id("damage", NAME), 0, w.size).reshape(w.shape)[line]
    if method == "mult_gauss":
        return single * (np.float32(1) + np.float32(level) * z)
    return single + z * (np.float32(known.std() if len(known) else 0) * np.float32(level))


def by_struct(weight: Tensor, bits: object, hit: Mask) -> Tensor:
    """One bit of each number flipped in its bytes, number by number."""
    mantissa, exponent = {torch.float32: (23, 8), torch.float16: (10, 5), torch.bfloat16: (7, 8)}[weight.dtype]
    width = mantissa + exponent + 1
    places = {"all": range(width), "mantissa": range(mantissa), "sign": [width - 1]}
    places["exponent"] = range(mantissa, width - 1)
    meant = sorted(bits) if isinstance(bits, tuple) else list(places[str(bits)])
    others, code = words_of("bits", weight.numel()).tolist(), STRUCT[weight.dtype]
    stored = [number % 2**width for number in bits_of(weight).view(-1).tolist()]
    raw = b"".join(
        struct.pack(code, number ^ (1 << meant[other * len(meant) // 2**32]) if flip else number)
        for number, other, flip in zip(stored, others, hit.reshape(-1), strict=True)
    )
    return torch.frombuffer(bytearray(raw), dtype=weight.dtype).view(weight.shape)


def rearranged(weight: Tensor, method: Method, level: float, options: Options, chosen: Mask) -> Tensor:
    """Pruning and shuffling by sorting all of a tensor."""
    flat, result = bits_of(weight).view(-1).numpy(), bits_of(weight).clone().numpy()
    if method == "prune" or options.pieces == "weights":
        places = np.flatnonzero(chosen)
        if method == "prune":
            size = weight.abs().float().view(-1).numpy()[places]
            order = np.argsort(size if options.order == "smallest" else -size, kind="stable")
        else:
            order = np.argsort(words_of("damage", weight.numel())[places], kind="stable")
        first = places[order[: rounded_half_up(level, len(places))]]
        result.reshape(-1)[np.sort(first)] = 0 if method == "prune" else flat[first]
    else:
        axis = 0 if options.pieces.startswith("row") else 1
        lines, across = np.flatnonzero(chosen.any(axis=1 - axis)), np.flatnonzero(chosen.any(axis=axis))
        order = np.argsort(words_of("damage", weight.shape[axis])[lines], kind="stable")
        source = lines[order[: rounded_half_up(level, len(lines))]]
        places = np.sort(source)
        if options.pieces.endswith("pairs"):
            source = source[: len(source) // 2 * 2]
            places = source.reshape(-1, 2)[:, ::-1].reshape(-1)
        old, new = (result.copy(), result) if axis == 0 else (result.T.copy(), result.T)
        new[np.ix_(places, across)] = old[np.ix_(source, across)]
    return torch.from_numpy(result).view(weight.dtype)


def masks(shape: tuple[int, int]) -> Iterator[tuple[UnitSet | None, Tensor | None, Mask, Mask]]:
    """A whole tensor; parts by row and by column; and some of the rows of such a part. Set, table, target, chosen."""
    rows, columns = shape
    whole = np.ones(shape, dtype=bool)
    yield None, None, whole, whole
    some = np.zeros(columns, dtype=bool)
    some[4 : columns - 3] = True
    yield UnitSet.of(columns, 1, np.flatnonzero(some)), None, whole & some, whole & some
    part = np.zeros(rows, dtype=bool)
    part[2 : rows - 5] = True
    units = UnitSet.of(rows, columns, np.flatnonzero(part))
    yield units, None, whole & part[:, None], whole & part[:, None]
    few = part & (np.arange(rows) % 3 == 0)
    yield units, torch.from_numpy(few), whole & part[:, None], whole & few[:, None]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("method", "level", "options"), CASES, ids=name_of)
def test_each_method_is_its_formula(method: Method, level: float, options: Options, dtype: torch.dtype) -> None:
    """Bit for bit what NumPy computes, of whole tensors, parts by row and by column, and chosen units of a part."""
    weight = weights(40, 31, dtype=dtype)
    for units, table, target, chosen in masks((40, 31)):
        found = damaged(weight, method, level, options, units, table)
        expected = by_numpy(weight, method, level, options, target, chosen)
        assert torch.equal(bits_of(found), bits_of(expected)), (units, (found - expected).abs().max())
        changed = bits_of(found) != bits_of(weight)
        assert changed.any()
        assert not changed[~torch.from_numpy(chosen)].any()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("method", "level", "options"), CASES, ids=name_of)
def test_numbers_of_all_kinds_come_back(method: Method, level: float, options: Options, dtype: torch.dtype) -> None:
    """Whatever damage was there before, damage is the same and undone to the last bit, infinities and NaN included."""
    weight = weights(12, 10, dtype=dtype)
    bits_of(weight).view(-1)[20:24] = torch.tensor([-1, -2, torch.iinfo(INTEGER[dtype]).max, 5]).to(INTEGER[dtype])
    weight.view(-1)[24:26] = torch.tensor([torch.inf, -torch.inf])
    targets = [Target(NAME, weight.clone())]
    place, baseline = targets[0].weight.data_ptr(), keep_baseline(targets)
    damage(targets, baseline, method, level, SEED, options=options)
    first = targets[0].weight.clone()
    for before, other, with_options in CASES:
        damage(targets, baseline, before, other, SEED + 1, options=with_options)
        damage(targets, baseline, method, level, SEED, options=options)
        assert torch.equal(bits_of(targets[0].weight), bits_of(first)), before
    restore(targets, baseline)
    assert targets[0].weight.data_ptr() == place
    assert torch.equal(bits_of(targets[0].weight), bits_of(weight))
    assert torch.equal(bits_of(baseline[0]), bits_of(weight))


@pytest.mark.slow
@pytest.mark.parametrize("block", [16, 100])
@pytest.mark.parametrize(("method", "level", "options"), CASES, ids=name_of)
def test_the_size_of_blocks_is_about_memory_only(
    method: Method, level: float, options: Options, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the last block is short, and a row or a part crosses several."""
    weight = weights(23, 17)
    expected = [damaged(weight, method, level, options, units, table) for units, table, _, _ in masks((23, 17))]
    monkeypatch.setattr(damage_blocks, "BLOCK", block)
    for found, (units, table, _, _) in zip(expected, masks((23, 17)), strict=True):
        assert torch.equal(bits_of(damaged(weight, method, level, options, units, table)), bits_of(found))


def known_set(method: Method, share: float, options: Options, weight: Tensor) -> Mask | None:
    """What a shuffle chooses, also what happens to come back to its own place; None for other methods."""
    if method != "shuffle":
        return None
    axis = {"weights": None, "rows": 0, "row pairs": 0, "columns": 1, "column pairs": 1}[options.pieces]
    count = weight.numel() if axis is None else weight.shape[axis]
    moved = rounded_half_up(share, count)
    moved -= moved % 2 if options.pieces.endswith("pairs") else 0
    places = np.argsort(words_of("damage", count), kind="stable")[:moved]
    line = np.isin(np.arange(count), places)
    shape = {None: tuple(weight.shape), 0: (-1, 1), 1: (1, -1)}[axis]
    return np.broadcast_to(line.reshape(shape), tuple(weight.shape))


@pytest.mark.parametrize(("method", "options"), SHARES, ids=name_of)
def test_what_is_damaged_is_nested(method: Method, options: Options) -> None:
    """What is changed at a share is changed at every larger one, alike but for shuffles; nothing is at 0."""
    weight = torch.randn(300, 200, generator=torch.Generator().manual_seed(3))
    before, values = torch.zeros(300, 200, dtype=torch.bool), weight
    for share in (0.0, 0.01, 0.1, 0.2, 0.5, 0.9):
        found = damaged(weight, method, share, options)
        changed = bits_of(found) != bits_of(weight)
        known = known_set(method, share, options, weight)
        if known is not None:
            chosen = torch.from_numpy(known.copy())
            assert not (changed & ~chosen).any()
            assert (chosen & ~changed).sum() <= 3 * 300, "more came back to their own places than chance allows"
            changed = chosen
        else:
            assert torch.equal(bits_of(found)[before], bits_of(values)[before])
        assert not (before & ~changed).any(), share
        assert changed.any() == (share > 0)
        before, values = changed, found


@pytest.mark.parametrize("method", ["mean", "sign_flip", "bit_flip"])
def test_shares_are_those_of_independent_draws(method: Method) -> None:
    """The number of weights that change is binomial, to three standard deviations; all of them do at share 1."""
    weight = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(5))
    for share in (0.001, 0.05, 0.5, 1.0):
        changed = int((bits_of(damaged(weight, method, share)) != bits_of(weight)).sum())
        assert stats.binomtest(changed, weight.numel(), share).pvalue > 0.0027, (share, changed)


@pytest.mark.parametrize("bits", ["all", "mantissa", "exponent", (1, 4, 6, 11)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_bit_flips_as_often(dtype: torch.dtype, bits: object) -> None:
    """One bit of each weight that is chosen, uniform over the bits that are meant: chi square, fixed seed."""
    weight = weights(500, 400, dtype=dtype)
    options = Options(bits=bits)  # type: ignore[arg-type]
    difference = bits_of(damaged(weight, "bit_flip", 0.7, options)) ^ bits_of(weight)
    flipped = difference[difference != 0].long() % 2 ** (8 * dtype.itemsize)
    positions, counts = np.unique(np.log2(flipped.double().numpy()), return_counts=True)
    assert tuple(positions) == bit_positions(options.bits, str(dtype).removeprefix("torch."))
    assert stats.chisquare(counts).pvalue > 1e-3, counts
    again = bits_of(damaged(weight, "bit_flip", 0.9, options)) ^ bits_of(weight)
    assert torch.equal(again[difference != 0], difference[difference != 0]), "another bit at another level"


def test_bits_are_those_of_the_format() -> None:
    """Mantissa, exponent and sign of each format by what flipping them does to the number 1."""
    for dtype in DTYPES:
        one = torch.ones(4, 4, dtype=dtype)
        assert (damaged(one, "bit_flip", 1.0, Options(bits="sign")) == -1).all()
        small = damaged(one, "bit_flip", 1.0, Options(bits="mantissa"))
        assert ((small > 1) & (small < 2)).all()
        lowest = damaged(one, "bit_flip", 1.0, Options(bits=(0,)))
        assert (lowest == 1 + torch.finfo(dtype).eps).all()
        powers = damaged(one, "bit_flip", 1.0, Options(bits="exponent")).double().log2().abs()
        assert torch.equal(powers, powers.round() if dtype.is_floating_point else powers)


@pytest.mark.parametrize(("bits", "words"), [((16,), "bits 0 to 15 of bfloat16"), ((-1, 3), "-1"), ((), "not some")])
def test_bits_that_are_not_there_are_refused(bits: tuple[int, ...], words: str) -> None:
    """By a sentence that names the bits that there are."""
    with pytest.raises(SpecError, match=words):
        damaged(weights(8, 8, dtype=torch.bfloat16), "bit_flip", 0.5, Options(bits=bits))
    assert bit_positions((5, 5, 1), "float32") == (1, 5)


@pytest.mark.parametrize("order", ["smallest", "largest"])
def test_pruning_is_exact(order: str) -> None:
    """Exactly a share, half rounded up, of the decimals that were written; NaN is the largest, equals in order."""
    weight = torch.tensor([0.5, -0.5, 0.5, torch.nan, 2.0, -torch.inf, 0.25, -0.5])
    options = Options(order=order)  # type: ignore[arg-type]
    expected = [6, 0, 1, 2, 7, 4, 5, 3] if order == "smallest" else [3, 5, 4, 0, 1, 2, 7, 6]
    for amount in range(9):
        found = damaged(weight, "prune", amount / 8, options)
        assert set((found == 0).nonzero().view(-1).tolist()) == set(expected[:amount])
    assert (damaged(torch.arange(1.0, 6.0), "prune", 0.3) == 0).sum() == 2


@given(count=st.integers(0, 10**12), thousandths=st.integers(0, 1000))
def test_amounts_are_rounded_half_up(count: int, thousandths: int) -> None:
    """As integers say."""
    assert exact_count(thousandths / 1000, count) == (2 * count * thousandths + 1000) // 2000


def test_pruning_and_shuffling_a_large_tensor() -> None:
    """Exact counts of a large tensor with many equal values, and the same weights after a shuffle."""
    weight = (torch.randn(500, 400, generator=torch.Generator().manual_seed(8)) * 0.05).bfloat16()
    for share in (0.05, 0.5, 0.999):
        found = damaged(weight, "prune", share)
        assert int((found == 0).sum()) == max(int((weight == 0).sum()), round(share * 200_000))
        assert found.abs()[found != 0].min() >= weight.abs()[found == 0].max()
        moved = damaged(weight, "shuffle", share)
        assert torch.equal(bits_of(moved).view(-1).sort().values, bits_of(weight).view(-1).sort().values)
    correlation = np.corrcoef(weight.float().view(-1), damaged(weight, "shuffle", 1.0).float().view(-1))[0, 1]
    assert abs(correlation) < 7e-3


@pytest.mark.slow
@pytest.mark.parametrize("pieces", ["weights", "rows", "columns"])
def test_every_permutation_is_equally_likely(pieces: str) -> None:
    """Four pieces in 600 repeats: chi square over the 24 orders."""
    shape = {"weights": (1, 4), "rows": (4, 1), "columns": (1, 4)}[pieces]
    weight, options = torch.arange(4.0).view(shape), Options(pieces=pieces)  # type: ignore[arg-type]
    found = [tuple(damaged(weight, "shuffle", 1.0, options, seed=s).view(-1).tolist()) for s in range(600)]
    counts = [found.count(order) for order in permutations((0.0, 1.0, 2.0, 3.0))]
    assert sum(counts) == 600
    assert stats.chisquare(counts).pvalue > 1e-3, counts


def test_lines_that_do_not_cross_are_refused() -> None:
    """Weights that are neither whole rows nor columns nor where some cross cannot change places as lines."""
    ragged = UnitSet.of(24, 1, (0, 1, 2, 7, 8, 20))
    with pytest.raises(SpecError, match="not whole rows or columns"):
        damaged(torch.randn(4, 6), "shuffle", 0.5, Options(pieces="rows"), ragged)
    assert damaged(torch.randn(4, 6), "shuffle", 1.0, units=ragged).shape == (4, 6)


def test_experts_and_vectors_have_rows() -> None:
    """Of a stack of matrices all rows count, and columns move in all of them alike; a vector is one row."""
    weight = torch.randn(3, 4, 5)
    flat = weight.view(12, 5)
    for options in (Options(pieces="rows"), Options(pieces="columns")):
        assert torch.equal(damaged(weight, "shuffle", 0.8, options).view(12, 5), damaged(flat, "shuffle", 0.8, options))
    for method, level in (("uni_quant", 3), ("add_gauss", 0.5)):
        by_row = damaged(weight, method, level, Options(per="row")).view(12, 5)  # type: ignore[arg-type]
        assert torch.equal(by_row, damaged(flat, method, level, Options(per="row")))  # type: ignore[arg-type]
        vector = torch.randn(50)
        of_vector = damaged(vector, method, level, Options(per="row"))  # type: ignore[arg-type]
        assert torch.equal(of_vector, damaged(vector, method, level))  # type: ignore[arg-type]


def test_quantisation_by_row_is_that_of_each_row() -> None:
    """A row quantised with the others is the row quantised alone; a constant row stays as it is."""
    weight = weights(30, 50)
    weight[7] = -0.0
    found = damaged(weight, "uni_quant", 6, Options(per="row"))
    for row, alone in zip(found, weight, strict=True):
        assert torch.equal(bits_of(row), bits_of(damaged(alone.clone(), "uni_quant", 6)))
    assert not torch.equal(found, damaged(weight, "uni_quant", 6))


def test_noise_is_as_large_as_asked() -> None:
    """(w' - w) / (sigma s) is standard normal, s of the tensor or of each row."""
    scale = torch.logspace(-3, 1, 100)[:, None]
    weight = torch.randn(100, 10_000, generator=torch.Generator().manual_seed(2)) * scale
    noise = (damaged(weight, "add_gauss", 0.5).double() - weight) / (0.5 * np.std(weight.double().numpy()))
    assert stats.kstest(noise[:50].flatten().numpy(), "norm").pvalue > 1e-3
    by_row = damaged(weight, "add_gauss", 0.5, Options(per="row")).double() - weight
    each = (by_row / (0.5 * weight.double().std(dim=1, keepdim=True, correction=0))).numpy()
    assert stats.kstest(each.ravel(), "norm").pvalue > 1e-3
    assert (np.abs(each.std(axis=1) - 1) < 0.04).all()


def test_sums_are_folded_in_one_way() -> None:
    """The tree of additions by hand; zeros that fill up change nothing; close to the exact sum."""
    a, b, c, d, e = values = np.random.default_rng(1).normal(size=5)
    expected = ((a + e) + (c + 0.0)) + ((b + 0.0) + (d + 0.0))
    assert float(folded(torch.from_numpy(values))) == expected
    many = torch.randn(3, 1001, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    for line, total in zip(many, folded(many), strict=True):
        assert float(total) == pytest.approx(math.fsum(line.tolist()), abs=1e-12)
        assert float(folded(torch.cat([line, torch.zeros(5000).double()]))) == float(total)
    assert float(folded(torch.empty(0, dtype=torch.float64)[None])[0]) == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moments_are_those_of_numpy(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean and standard deviation of the population, also where a tensor is folded in several chunks."""
    monkeypatch.setattr("runner.damage_statistics.CHUNK", 64)
    weight = weights(33, 21, dtype=dtype)
    for units, _, mask, _ in masks((33, 21)):
        target, values = Target(NAME, weight, units), weight.double().numpy()
        mean, deviation = (float(statistic(kind, target, weight)[0, 0]) for kind in ("mean", "deviation"))
        assert mean == pytest.approx(values[mask].mean(), rel=1e-13)
        assert deviation == pytest.approx(values[mask].std(), rel=1e-13)
        rows = statistic("deviation", target, weight, "row")[:, 0].numpy()
        some = mask.any(axis=1)
        assert rows[some] == pytest.approx(
            [v[m].std() for v, m in zip(values[some], mask[some], strict=True)], rel=1e-12
        )


def test_a_share_is_of_weights() -> None:
    """Independent of the damage itself, nested in the share, and as large as asked; 0 changes nothing."""
    weight = torch.randn(500, 400, generator=torch.Generator().manual_seed(6))
    whole, before = damaged(weight, "mult_gauss", 0.3), torch.zeros(500, 400, dtype=torch.bool)
    for share in (0.0, 0.1, 0.4, 1.0):
        found = damaged(weight, "mult_gauss", 0.3, Options(share=share))
        changed = found != weight
        assert stats.binomtest(int(changed.sum()), weight.numel(), share).pvalue > 1e-3
        assert torch.equal(found[changed], whole[changed])
        assert not (before & ~changed).any()
        before = changed
    zeroed = damaged(weight, "ablation", 0.5) == 0
    partly = damaged(weight, "mult_gauss", 0.3, Options(share=0.5)) != weight
    assert abs(np.corrcoef(zeroed.view(-1), partly.view(-1))[0, 1]) < 0.01
    assert is_no_op("uni_quant", 4, Options(share=0.0))


@pytest.mark.parametrize("pieces", ["row pairs", "column pairs"])
def test_pairs_change_places_with_each_other(pieces: Pieces) -> None:
    """Each line that moved is where its partner was; an odd one stays, and pairs stay pairs at more damage."""
    weight = torch.arange(21.0)[:, None].expand(21, 4).contiguous()
    pairs: set[frozenset[int]] = set()
    for share in (0.2, 0.55, 1.0):
        options = Options(pieces=pieces)
        found = damaged(weight if pieces == "row pairs" else weight.T.contiguous(), "shuffle", share, options)
        places = (found if pieces == "row pairs" else found.T)[:, 0].long().tolist()
        assert all(places[places[line]] == line for line in range(21))
        swapped = {frozenset({line, place}) for line, place in enumerate(places) if line != place}
        assert len(swapped) == exact_count(share, 21) // 2
        assert pairs <= swapped
        pairs = swapped


def test_units_without_a_weight_leave_a_tensor_as_it_is() -> None:
    """A condition that chooses nothing of a tensor, whatever stood there."""
    weight = weights(20, 10)
    for method, level, options in CASES:
        table = torch.zeros(20, dtype=torch.bool)
        target = Target(NAME, torch.full_like(weight, 7), UnitSet.of(20, 10, range(3, 9)))
        damage([target], [weight], method, level, SEED, options=options, chosen=[table])
        assert torch.equal(bits_of(target.weight), bits_of(weight)), method


def test_what_a_flipped_exponent_did_is_told() -> None:
    """Infinity and NaN count as changed; the norm of such a change is none, and no key of a sidecar."""
    weight = torch.tensor([1.0, 1.5, 0.25, 3.0], dtype=torch.float16)
    target = Target(NAME, weight.clone())
    damage([target], [weight], "bit_flip", 1.0, SEED, options=Options(bits=(14,)))
    assert target.weight.tolist()[0] == math.inf
    assert math.isnan(target.weight.tolist()[1])
    effect = evidence([target], change_sums([target], [weight]), count_values=False)
    assert effect.fraction_changed == 1
    assert effect.relative_change is None
    assert effect.as_table() == {"tensors": 1, "weights": 4, "fraction_changed": 1.0, "fraction_zeroed": 0.0}
    damage([target], [weight], "bit_flip", 1.0, SEED, options=Options(bits="sign"))
    assert evidence([target], change_sums([target], [weight]), count_values=False).relative_change == 2


def test_the_table_of_methods_is_whole() -> None:
    """Options exist, shares go from 0 to 1, and each option is in a case above."""
    tried = {
        (method, key)
        for method, _, options in CASES
        for key in fields_dict(Options)
        if options != evolve(options, **{key: getattr(PLAIN, key)})
    }
    for name, method in METHODS.items():
        assert set(method.options) <= fields_dict(Options).keys()
        assert {(name, key) for key in method.options} == {pair for pair in tried if pair[0] == name}
        assert not method.level_is_share or (method.allows(0) and method.allows(1) and not method.allows(1.01))
        assert is_no_op(name, 0.0) == (method.neutral == 0)
    assert weights_key("g", "uni_quant", 4, 7) == ("g", "uni_quant", 4, None)
    assert weights_key("g[share 0.5]", "uni_quant", 4, 7) == ("g[share 0.5]", "uni_quant", 4, 7)
    assert weights_key("g", "prune", 0.5, 7) == ("g", "prune", 0.5, None)


def test_the_command_runs_each_method(degrade: Command, study: Path) -> None:
    """From the spec to records and evidence; `degrade check` and `verify` find all of it again."""
    levels = {"add_gauss": 0.5, "mean": 0.25, "sign_flip": 0.25, "bit_flip": 0.25, "prune": 0.25, "shuffle": 0.25}
    rows = [f"{{name='{m}', method='{m}', group='mlp_only', levels=[0.0, {v}]}}" for m, v in levels.items()]
    done(degrade("--set", f"sweeps=[{', '.join(rows)}]", "--set", "run.n_rep=2"))
    paths = sorted((study / "results").glob("outputs_*.json"))
    known = {}
    for path in paths:
        for row in tomllib.loads(path.with_suffix(".toml").read_text())["provenance"]["evidence"]:
            known[row["method"], row["level"], row["repeat_index"]] = row
    assert known.keys() == {(m, v, r) for m, level in levels.items() for v in (0.0, level) for r in (0, 1)}
    assert {row["fraction_changed"] for key, row in known.items() if key[1] == 0} == {0}
    assert known["prune", 0.25, 0]["fraction_zeroed"] == 0.25
    for method in ("mean", "sign_flip", "bit_flip"):
        assert abs(known[method, 0.25, 1]["fraction_changed"] - 0.25) < 0.01, method
    assert 0.24 < known["shuffle", 0.25, 0]["fraction_changed"] <= 0.25
    assert abs(known["add_gauss", 0.5, 0]["relative_change"] - 0.5) < 0.05
    assert not any("distinct_values" in row for row in known.values())
    digests = {
        (r["degradation_method"], r["std_dev"], r["repeat_index"]): r["weights_digest"]
        for path in paths
        for r in json.loads(path.read_text())
    }
    repeats = {m: {digests[m, level, 0], digests[m, level, 1]} for m, level in levels.items()}
    assert {method for method, found in repeats.items() if len(found) == 1} == {"prune"}
    done(degrade(*map(str, paths), spec="check"))
    assert done(degrade(*map(str, paths), spec="verify")).stderr.count(" 0 differ") == len(levels)
