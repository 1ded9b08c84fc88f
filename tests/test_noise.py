"""The random numbers: the published generator, the right distribution, and the same bits for ever."""

import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from runner import philox

SEED, STREAM = 2026, philox.stream_id("damage", "layers.3.self_attn.v_proj.weight")
SAMPLES = 4_000_000
DIGITS_OF_PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
# Where the quarters of the circle meet, and where float32 runs out of digits for the logarithm.
EDGE_WORDS = (0, 1, 0x1FFFFFFF, 0x20000000, 0x40000000, 0x7FFFFFFF, 0x80000000, 0xB504F334, 0xFFFFFF80, 0xFFFFFFFF)
# Never to be changed: results that are published depend on every one of these bits.
STREAM_PIN = 0xB53ED7F86A44EEED
WORDS_PIN = "5ab4a2c2fd5073ff10312b067dc40ea1d212961489cdefdce5d006cc1631ba3e"
NORMALS_PIN = "a507a43e43a0e6650eaafa14265b74eb96ccbd2b4a25dbf2384c4cb0c001d904"

Doubles = NDArray[np.float64]


def box_muller(words: NDArray[np.uint32], uniform: Doubles) -> Doubles:
    """The textbook formula in float64: angle from the odd words, radius from a uniform number per even word."""
    radius, angle = np.sqrt(-2 * np.log(uniform)), 2 * np.pi * words[1::2].astype(np.float64) / 2**32
    return np.column_stack([radius * np.cos(angle), radius * np.sin(angle)]).reshape(-1)


def exact_uniform(words: NDArray[np.uint32]) -> Doubles:
    """(word + 1/2) / 2**32 of the even words."""
    return (words[0::2].astype(np.float64) + 0.5) / 2**32


def single_uniform(words: NDArray[np.uint32]) -> Doubles:
    """The same number as float32 can hold it."""
    return (words[0::2].astype(np.float32) * np.float32(2.0**-32) + np.float32(2.0**-33)).astype(np.float64)


def correlation_in_errors(left: Doubles, right: Doubles) -> float:
    """The correlation of two samples in its standard errors: beyond 5, independent samples come in 2e6 tries once."""
    return float(np.corrcoef(left, right)[0, 1] * np.sqrt(len(left)))


@pytest.fixture(scope="module")
def sample() -> Doubles:
    """Four million normals of one stream."""
    return philox.normals(SEED, STREAM, 0, SAMPLES).astype(np.float64)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (DIGITS_OF_PI, (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_known_answers(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    """The three test vectors that Random123 publishes for Philox 4x32-10 come out."""
    c0, c1, c2, c3 = (np.array([word], dtype=np.uint64) for word in counter)
    found = tuple(int(word[0]) for word in philox.philox((c0, c1, c2, c3), key[0] | key[1] << 32))
    assert found == expected, [hex(word) for word in found]


def test_a_stream_is_philox_of_its_block_numbers() -> None:
    """Words 4b to 4b+3 are the answer to counter (b, stream), low halves first, also for b beyond 2**32."""
    block = 5 * 2**32 + 9
    counter = (9, 5, STREAM & 0xFFFFFFFF, STREAM >> 32)
    c0, c1, c2, c3 = (np.array([word], dtype=np.uint64) for word in counter)
    expected = [int(word[0]) for word in philox.philox((c0, c1, c2, c3), SEED)]
    assert philox.words(SEED, STREAM, 4 * block, 4).tolist() == expected


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    start=st.integers(0, 2**60).map(lambda block: 4 * block),
    count=st.integers(0, 2 * philox.CHUNK + 7),
    part=st.floats(0, 1),
)
def test_numbers_do_not_depend_on_how_a_range_is_cut(start: int, count: int, part: float) -> None:
    """A range in two parts of any size is the range in one, so that neither chunks nor blocks of weights show."""
    cut = 4 * int(part * count / 4)
    for draw in (philox.words, philox.normals):
        whole = draw(SEED, STREAM, start, count)
        parts = [draw(SEED, STREAM, start, cut), draw(SEED, STREAM, start + cut, count - cut)]
        assert np.array_equal(whole, np.concatenate(parts)), (draw.__name__, start, count, cut)


@pytest.mark.parametrize("first", [1, 2, 3, 65_535])
def test_a_range_that_starts_inside_a_block_is_refused(first: int) -> None:
    """A start that is no multiple of four is an error, never silently another number."""
    with pytest.raises(ValueError, match=f"first = {first} is not a multiple of 4"):
        philox.normals(SEED, STREAM, first, 4)


def test_normals_are_box_muller_of_the_words() -> None:
    """The float32 polynomials stay within 1e-6 of float64, and float32 uniforms within 2.5e-4 of exact ones."""
    words = philox.words(SEED, STREAM, 0, 1_000_000)
    found = philox.normals(SEED, STREAM, 0, 1_000_000).astype(np.float64)
    polynomials = np.abs(found - box_muller(words, single_uniform(words))).max()
    uniforms = np.abs(found - box_muller(words, exact_uniform(words))).max()
    assert polynomials < 1e-6, polynomials
    assert uniforms < 2.5e-4, uniforms  # sqrt(2 * 2**-25): next to 1 float32 cannot tell u from 1


def test_edge_words_give_finite_and_right_normals() -> None:
    """Every pair of extreme words, log(0) and the seams of the quarters among them, gives what float64 gives."""
    words = np.array(list(itertools.product(EDGE_WORDS, repeat=2)), dtype=np.uint32).reshape(-1)
    found = philox.normals_of(words)
    assert np.isfinite(found).all(), found
    error = np.abs(found - box_muller(words, single_uniform(words)))
    assert error.max() < 1e-6, (words[error.argmax()], error.max())
    assert np.abs(found).max() == pytest.approx(np.sqrt(66 * np.log(2)), rel=1e-6)  # u = 2**-33 is the smallest


def test_words_are_uniform() -> None:
    """The 256 values of the highest and the lowest byte, and each bit, are equally frequent."""
    words = philox.words(SEED, STREAM, 0, SAMPLES)
    for shift in (24, 0):
        counts = np.bincount(words >> np.uint32(shift) & np.uint32(0xFF), minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-3, (shift, counts.min(), counts.max())
    ones = np.array([np.count_nonzero(words & np.uint32(1 << bit)) for bit in range(32)])
    errors = (ones - SAMPLES / 2) / np.sqrt(SAMPLES / 4)
    assert np.abs(errors).max() < 4.5, errors


@pytest.mark.slow
def test_normals_follow_the_normal_distribution(sample: Doubles) -> None:
    """Kolmogorov and Smirnov find no fault with four million, nor with cosines and sines apart."""
    for part in (sample, sample[0::2], sample[1::2]):
        result = stats.kstest(part, "norm")
        assert result.pvalue > 1e-3, result


def test_moments_are_those_of_a_standard_normal(sample: Doubles) -> None:
    """Mean, variance, skewness and excess kurtosis stand within 4.5 standard errors of 0, 1, 0, 0."""
    root = np.sqrt(SAMPLES)
    in_errors = {
        "mean": sample.mean() * root,
        "variance": (sample.var() - 1) * root / np.sqrt(2),
        "skewness": stats.skew(sample) * root / np.sqrt(6),
        "kurtosis": stats.kurtosis(sample) * root / np.sqrt(24),
    }
    assert all(abs(error) < 4.5 for error in in_errors.values()), in_errors


@pytest.mark.parametrize("bound", [1.0, 2.0, 3.0, 4.0, 4.5, 5.0])
def test_tails_hold_as_many_samples_as_they_should(sample: Doubles, bound: float) -> None:
    """Beyond each bound, on either side, lie as many samples as the binomial distribution allows."""
    for side in (sample, -sample):
        found = int(np.count_nonzero(side > bound))
        expected = SAMPLES * stats.norm.sf(bound)
        assert stats.binomtest(found, SAMPLES, stats.norm.sf(bound)).pvalue > 1e-3, (bound, found, expected)


@pytest.mark.slow
def test_neighbours_are_uncorrelated(sample: Doubles) -> None:
    """At lags 1 to 12 neither the normals nor their squares (the radius that a pair shares) are correlated."""
    for name, values in (("normals", sample), ("squares", sample**2)):
        errors = [correlation_in_errors(values[:-lag], values[lag:]) for lag in range(1, 13)]
        assert max(map(abs, errors)) < 5, (name, errors)


@pytest.mark.slow
def test_streams_and_adjacent_seeds_are_uncorrelated() -> None:
    """Neither two tensors of one repeat nor the same tensor in adjacent repeats share anything."""
    names = [f"layers.{i}.self_attn.v_proj.weight" for i in range(3)]
    draws = {
        (seed, name): philox.normals(seed, philox.stream_id("damage", name), 0, 500_000).astype(np.float64)
        for seed in (42, 43, 44, 42 + 2**32)
        for name in names
    }
    for left, right in itertools.combinations(draws, 2):
        errors = [correlation_in_errors(draws[left] ** power, draws[right] ** power) for power in (1, 2)]
        assert max(map(abs, errors)) < 5, (left, right, errors)


def test_streams_are_told_apart_by_purpose_and_name() -> None:
    """A stream's number is the same in every process and differs by purpose, name and where one ends."""
    pairs = [("damage", "a"), ("sampling", "a"), ("damage", "b"), ("damagea", ""), ("", "damagea")]
    streams = [philox.stream_id(*pair) for pair in pairs]
    assert len(set(streams)) == len(pairs), streams
    assert philox.stream_id("damage", "embed_tokens.weight") == STREAM_PIN


def test_no_bit_has_changed_since_the_first_release() -> None:
    """100,003 words and normals of one stream are pinned: results that are published can be made again."""
    words, normals = philox.words(42, 2**63 + 5, 2**34, 100_003), philox.normals(42, 2**63 + 5, 2**34, 100_003)
    assert words.dtype == np.uint32
    assert normals.dtype == np.float32
    assert hashlib.sha256(words.astype("<u4").tobytes()).hexdigest() == WORDS_PIN
    assert hashlib.sha256(normals.astype("<f4").tobytes()).hexdigest() == NORMALS_PIN
