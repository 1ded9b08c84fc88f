"""Effect sizes, thresholds, trends and intervals: planted effects come out as computed by hand."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from scipy.stats import spearmanr

from runner.statistics import bootstrap_interval, cohens_d, rank, spearman, summarise, threshold

NUMBERS = st.integers(-1000, 1000).map(float)  # whole, so that shifting them is exact
SAMPLES = st.lists(NUMBERS, min_size=2, max_size=30)
CURVES = st.lists(
    st.tuples(st.floats(0.01, 1), st.floats(-5, 5, width=32) | st.sampled_from([None, math.inf, -math.inf])), min_size=1
)
SHAPE = np.array([-1.5, -0.5, 0.5, 1.5])  # mean 0, standard deviation with n - 1: the root of 5/3
SPREAD = math.sqrt(5 / 3)
MEASURES = {
    "run": pl.String,
    "sweep": pl.String,
    "method": pl.String,
    "group": pl.String,
    "level": pl.Float64,
    "damage": pl.Int64,
    "repeat_index": pl.Int64,
    "prompt_id": pl.Int64,
    "metric": pl.String,
    "value": pl.Float64,
}


def planted(
    method: str, group: str, metric: str, effects: dict[float, float], *, run: str = "study", repeats: int = 2
) -> pl.DataFrame:
    """Measures whose d at each level, in order of damage, is exactly what `effects` says, from a mean of 10."""
    rows = [
        (run, f"{method} {group}", method, group, level, damage, i % repeats, i, metric, 10 + effect * SPREAD + offset)
        for damage, (level, effect) in enumerate(effects.items())
        for i, offset in enumerate(SHAPE)
    ]
    return pl.DataFrame(rows, schema=MEASURES, orient="row")


def column(frame: pl.DataFrame, name: str, **where: object) -> list[float]:
    """The values of a column in the rows that hold these."""
    return frame.filter(**where)[name].to_list()


def test_d_of_a_planted_shift_is_that_shift() -> None:
    """Samples of one shape that lie 2.5 standard deviations apart have d = 2.5, downwards as well."""
    assert cohens_d(SHAPE, SHAPE + 2.5 * SPREAD) == pytest.approx(2.5, abs=1e-9)
    assert cohens_d(SHAPE, SHAPE - 2.5 * SPREAD) == pytest.approx(-2.5, abs=1e-9)


def test_d_pools_samples_of_unequal_size_and_spread() -> None:
    """Each sample's squares count by their degrees of freedom, as in a formula written down independently."""
    generator = np.random.default_rng(1)
    reference, damaged = generator.normal(3, 1, 7), generator.normal(5, 4, 40)
    squares = ((reference - reference.mean()) ** 2).sum() + ((damaged - damaged.mean()) ** 2).sum()
    assert cohens_d(reference, damaged) == pytest.approx(
        (np.average(damaged) - np.average(reference)) / np.sqrt(squares / 45), abs=1e-12
    )
    assert cohens_d([0, 2], [1, 1, 4]) == pytest.approx(1 / math.sqrt((2 + 6) / 3), abs=1e-12)


@pytest.mark.parametrize(("reference", "damaged"), [([], [1, 2]), ([1], [1, 2]), ([1, 2], [3]), ([1, 2], [])])
def test_d_needs_two_values_on_either_side(reference: list[float], damaged: list[float]) -> None:
    """A single value has no spread to measure an effect by."""
    assert cohens_d(reference, damaged) is None


def test_d_without_any_spread_is_nothing_or_infinite() -> None:
    """Constant samples differ infinitely, with a sign, or not at all, even where a mean of 0.1 is not 0.1."""
    assert cohens_d([0.1] * 3, [0.1] * 10) == 0.0
    assert cohens_d([1, 1], [2, 2]) == math.inf
    assert cohens_d([0.1] * 10, [0.0] * 3) == -math.inf
    assert cohens_d([1, 2, 1], [3, 4, 3]) == pytest.approx(2 * math.sqrt(3), abs=1e-12)  # equal ends are no constant


@given(SAMPLES, SAMPLES)
def test_d_is_antisymmetric(first: list[float], second: list[float]) -> None:
    """Exchanging reference and damaged turns the sign and nothing else."""
    there, back = cohens_d(first, second), cohens_d(second, first)
    assert there is not None
    assert back is not None
    assert there == pytest.approx(-back, rel=1e-9, abs=1e-9)


@given(SAMPLES, SAMPLES, NUMBERS)
def test_d_does_not_see_a_common_shift(first: list[float], second: list[float], shift: float) -> None:
    """Adding one number to all values leaves the effect as it is."""
    moved = cohens_d(np.array(first) + shift, np.array(second) + shift)
    assert moved == pytest.approx(cohens_d(first, second), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("levels", "effects", "expected"),
    [
        ([0.0, 0.5, 1.0], [0.0, 0.8, 2.0], 0.5),  # at a level
        ([0.0, 0.1, 0.3], [0.0, 0.2, 1.0], 0.25),  # three quarters of the way from 0.2 to 1.0
        ([0.0, 0.5, 1.0], [0.0, 0.79, -0.79], None),  # never
        ([], [], None),
        ([0.2, 0.5], [0.9, 0.1], 0.2),  # at the first level: nothing before it to interpolate with
        ([0.0, 0.5, 1.0], [0.0, -0.4, -1.2], 0.75),  # downwards
        ([0.0, 0.4], [-0.4, 1.2], 0.3),  # d passes through 0 on its way
        ([0.0, 0.5, 1.0, 1.5], [0.0, 1.6, 0.0, 3.0], 0.25),  # the first time counts
        ([0.0, 0.5, 1.0], [0.0, 0.2, math.inf], 1.0),
        ([0.0, 0.5, 1.0], [0.0, -math.inf, 0.0], 0.5),
        ([1024.0, 512.0, 256.0], [0.0, 0.4, 1.2], 384.0),  # levels descend
        ([0.0, 0.5, 1.0], [0.0, None, 1.6], 0.5),  # nothing known at 0.5: its neighbours decide
        ([0.0, 0.5], [None, 1.6], 0.5),
        ([0.0, 0.5], [None, None], None),
    ],
)
def test_threshold_by_hand(levels: list[float], effects: list[float | None], expected: float | None) -> None:
    """Where d first reaches 0.8, computed on paper."""
    assert threshold(levels, effects) == pytest.approx(expected, abs=1e-9)


def test_threshold_of_another_size() -> None:
    """What counts as an effect is an argument."""
    assert threshold([0.0, 1.0], [0.0, 2.0], at=0.5) == pytest.approx(0.25, abs=1e-9)


@given(CURVES, st.booleans())
def test_threshold_lies_between_the_levels_around_it(
    curve: list[tuple[float, float | None]],
    descending: bool,  # noqa: FBT001
) -> None:
    """It is no further than the first level with an effect, and beyond the last without."""
    levels = np.cumsum([step for step, _ in curve]).tolist()
    effects = [effect for _, effect in curve]
    if descending:
        levels = [-level for level in levels]
    found = threshold(levels, effects)
    known = [(level, abs(effect) >= 0.8) for level, effect in zip(levels, effects, strict=True) if effect is not None]
    first = next((i for i, (_, reached) in enumerate(known) if reached), None)
    if first is None:
        assert found is None
        return
    assert found is not None
    low, high = sorted([known[max(first - 1, 0)][0], known[first][0]])
    assert low - 1e-9 <= found <= high + 1e-9


@pytest.mark.parametrize("sign", [1, -1])
def test_spearman_is_that_of_scipy(sign: int) -> None:
    """Rho and the one-sided p in the direction of its sign, ties and descending levels included."""
    generator = np.random.default_rng(2)
    for count in (3, 5, 9, 21):
        damage = list(range(count))
        means = (sign * (np.arange(count) + generator.normal(0, count / 3, count)).round()).tolist()
        for axis in (damage, damage[::-1]):
            rho, p = spearman(axis, means)
            assert rho is not None
            expected = spearmanr(axis, means, alternative="greater" if rho >= 0 else "less")
            assert (rho, p) == pytest.approx((expected.statistic, expected.pvalue), abs=1e-12)


def test_spearman_by_hand() -> None:
    """Five ranks with one exchange of neighbours: 1 - 6 * 2 / (5 * 24), and its t with three degrees of freedom."""
    rho, p = spearman([0, 1, 2, 3, 4], [1.0, 3.0, 2.0, 7.0, 9.0])
    assert rho == pytest.approx(0.9, abs=1e-12)
    t = 0.9 * math.sqrt(3 / (1 - 0.9**2))
    tail = 0.5 - (t / math.sqrt(3) / (1 + t * t / 3) + math.atan(t / math.sqrt(3))) / math.pi
    assert p == pytest.approx(tail, abs=1e-12)


def test_spearman_of_too_little() -> None:
    """A constant has no trend, two points have one without a p."""
    assert spearman([0, 1, 2], [4.0, 4.0, 4.0]) == (None, None)
    assert spearman([1], [4.0]) == (None, None)
    assert spearman([], []) == (None, None)
    assert spearman([0, 1], [4.0, 3.0]) == (-1.0, None)
    assert spearman([0, 1], [3.0, 4.0]) == (1.0, None)


def test_the_interval_is_that_of_drawing_repeats_one_by_one() -> None:
    """It agrees with a plain loop that draws whole repeats of unequal length and pools their values."""
    generator = np.random.default_rng(3)
    by_repeat = [generator.normal(i, 1, 5 + 4 * i) for i in range(6)]
    means = [np.concatenate([by_repeat[i] for i in generator.integers(0, 6, 6)]).mean() for _ in range(20_000)]
    found = bootstrap_interval(by_repeat, seed=4, resamples=20_000)
    assert found == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.05)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Twenty repeats that differ: about 95 of 100 intervals hold the mean; a few less, as is known of percentiles."""
    generator = np.random.default_rng(5)
    covered = 0
    for seed in range(300):
        by_repeat = generator.normal(0, 1, (20, 1)) + generator.normal(0, 1, (20, 8))
        low, high = bootstrap_interval(list(by_repeat), seed=seed) or (math.nan, math.nan)
        covered += low <= 0 <= high
    assert 0.89 <= covered / 300 <= 0.97, covered


def test_texts_of_one_repeat_count_as_one() -> None:
    """Copies of a text within each repeat make the interval no narrower."""
    single = [[1.0], [2.0], [4.0], [8.0]]
    copied = [values * 50 for values in single]
    assert bootstrap_interval(copied, seed=1) == pytest.approx(bootstrap_interval(single, seed=1), abs=1e-9)


def test_an_interval_needs_two_repeats_and_follows_its_seed() -> None:
    """One repeat says nothing about others; a seed gives the same numbers again, another seed others."""
    assert bootstrap_interval([[1.0, 2.0, 3.0]], seed=0) is None
    assert bootstrap_interval([], seed=0) is None
    by_repeat = list(np.random.default_rng(6).normal(0, 1, (5, 10)))
    assert bootstrap_interval(by_repeat, seed=7) == bootstrap_interval(by_repeat, seed=7)
    assert bootstrap_interval(by_repeat, seed=7) != bootstrap_interval(by_repeat, seed=8)
    assert bootstrap_interval([[0.1] * 3, [0.1] * 7], seed=0) == pytest.approx((0.1, 0.1), abs=1e-15)


def test_less_confidence_is_a_narrower_interval() -> None:
    """The interval of 50 % lies within that of 95 %."""
    by_repeat = list(np.random.default_rng(6).normal(0, 1, (10, 10)))
    low, high = bootstrap_interval(by_repeat, seed=7) or (math.nan, math.nan)
    inner_low, inner_high = bootstrap_interval(by_repeat, seed=7, confidence=0.5) or (math.nan, math.nan)
    assert low < inner_low < inner_high < high


@pytest.fixture
def study() -> pl.DataFrame:
    """Two sweeps and a quantisation of one run, two metrics with planted effects, a third that never changes."""
    return pl.concat(
        [
            planted("mult_gauss", "attn_only", "entropy", {0.0: 0.0, 0.5: 0.4, 1.0: 1.2, 1.5: 3.0}),
            planted("mult_gauss", "attn_only", "length", {0.0: 0.0, 0.5: -1.6, 1.0: -2.0, 1.5: -2.5}),
            planted("mult_gauss", "attn_only", "words", dict.fromkeys([0.0, 0.5, 1.0, 1.5], 0.0)),
            planted("ablation", "mlp_only", "entropy", {0.0: 0.0, 0.2: 0.1, 0.4: 0.3}),
            planted("ablation", "mlp_only", "length", {0.0: 0.0, 0.2: 0.7, 0.4: 0.9}),
            planted("uni_quant", "attn_only", "entropy", {1024.0: 0.2, 64.0: 0.4, 4.0: 1.2}),
            planted("uni_quant", "attn_only", "length", {1024.0: -1.0, 64.0: -1.5, 4.0: -2.0}),
        ]
    )


def test_a_study_is_summarised(study: pl.DataFrame) -> None:
    """Every level of every metric has its counts, mean, error, interval, and the planted effect."""
    summary = summarise(study)
    assert summary.columns == [
        *("run", "sweep", "method", "group", "metric", "level", "damage", "n", "repeats"),
        *("mean", "standard_error", "low", "high", "d", "reference"),
    ]
    assert len(summary) == 24
    assert set(summary["n"]) == {4}
    assert set(summary["repeats"]) == {2}
    assert set(summary["reference"]) == {"undamaged"}
    gauss = summary.filter(sweep="mult_gauss attn_only", metric="entropy")
    assert gauss["level"].to_list() == [0.0, 0.5, 1.0, 1.5]
    assert gauss["d"].to_list() == pytest.approx([0.0, 0.4, 1.2, 3.0], abs=1e-9)
    assert gauss["mean"].to_list() == pytest.approx([10 + d * SPREAD for d in (0.0, 0.4, 1.2, 3.0)], abs=1e-9)
    assert gauss["standard_error"].to_list() == pytest.approx([SPREAD / 2] * 4, abs=1e-9)
    assert (gauss["high"] - gauss["low"]).to_list() == pytest.approx([1.0] * 4, abs=1e-9)  # the means of the repeats
    quantised = summary.filter(sweep="uni_quant attn_only", metric="entropy")
    assert quantised["level"].to_list() == [1024.0, 64.0, 4.0]
    assert quantised["d"].to_list() == pytest.approx([0.2, 0.4, 1.2], abs=1e-9)


def test_metrics_are_ranked_by_threshold(study: pl.DataFrame) -> None:
    """Thresholds, their place on the axis of damage, trends and ranks are those computed by hand."""
    ranking = rank(summarise(study))
    assert ranking.columns == [
        *("run", "sweep", "metric", "threshold", "threshold_fraction", "rho", "p", "direction", "rank"),
    ]
    expected = [
        ("ablation mlp_only", "length", 0.3, 0.75, 1.0, 1, 1),
        ("ablation mlp_only", "entropy", None, None, 1.0, 1, 2),
        ("mult_gauss attn_only", "length", 0.25, 0.5 / 3, -1.0, -1, 1),
        ("mult_gauss attn_only", "entropy", 0.75, 1.5 / 3, 1.0, 1, 2),
        ("mult_gauss attn_only", "words", None, None, None, None, 3),
        ("uni_quant attn_only", "length", 1024.0, 0.0, -1.0, -1, 1),
        ("uni_quant attn_only", "entropy", 34.0, 0.75, 1.0, 1, 2),
    ]
    assert ranking.drop("run", "p").rows() == [pytest.approx(row, abs=1e-9) for row in expected]
    assert column(ranking, "p", metric="words") == [None]
    assert column(ranking, "p", metric="length") == pytest.approx([0.0] * 3, abs=1e-9)


def test_a_quantisation_alone_is_compared_with_its_first_level() -> None:
    """Without an undamaged level in its own run, whatever other runs hold, the least damaged one is the reference."""
    alone = planted("uni_quant", "attn_only", "entropy", {1024.0: 1.0, 64.0: 1.4, 4.0: 2.2}, run="alone")
    other = planted("ablation", "attn_only", "entropy", {0.0: 0.0, 0.5: 1.0}, run="other")
    summary = summarise(pl.concat([alone, other])).filter(run="alone")
    assert set(summary["reference"]) == {"least damaged"}
    assert summary["d"].to_list() == pytest.approx([0.0, 0.4, 1.2], abs=1e-9)
    assert rank(summary)["threshold"].to_list() == pytest.approx([34.0], abs=1e-9)


def test_a_sweep_is_compared_with_its_own_undamaged_level_first() -> None:
    """Another sweep's level serves only where a sweep has none, and then that with most values."""
    measures = pl.concat(
        [
            planted("ablation", "a", "entropy", {0.0: 1.0, 0.5: 1.5}).filter(pl.col("prompt_id") < 3),
            planted("ablation", "b", "entropy", {0.0: 2.0, 0.5: 2.5}),
            planted("ablation", "c", "entropy", {0.5: 2.25}),
        ]
    )
    summary = summarise(measures)
    assert column(summary, "d", sweep="ablation b") == pytest.approx([0.0, 0.5], abs=1e-9)
    assert column(summary, "d", sweep="ablation c") == pytest.approx([0.25], abs=1e-9)
    assert column(summary, "d", sweep="ablation a")[0] == 0.0
    assert set(summary["reference"]) == {"undamaged"}


def test_what_cannot_be_computed_is_null() -> None:
    """One value has a mean, but no error, interval or effect; one repeat has no interval."""
    single = planted("ablation", "a", "entropy", {0.0: 0.0, 0.5: 1.0}).filter(prompt_id=0)
    names = ("standard_error", "low", "high", "d")
    assert summarise(single).select(names).rows() == [(None,) * 4] * 2
    assert rank(summarise(single))["threshold"].to_list() == [None]
    one_repeat = summarise(planted("ablation", "a", "entropy", {0.0: 0.0, 0.5: 1.0}, repeats=1))
    assert one_repeat.select("low", "high").rows() == [(None, None)] * 2
    assert one_repeat["d"].to_list() == pytest.approx([0.0, 1.0], abs=1e-9)


def test_a_metric_that_jumps_from_constant_to_constant() -> None:
    """Its effect is infinite, its threshold the level of the jump, and other metrics are ranked around it."""
    frame = planted("ablation", "a", "empty", dict.fromkeys([0.0, 0.25, 0.5], 0.0))
    jump = frame.with_columns(value=pl.when(pl.col("level") >= 0.5).then(1.0).otherwise(0.1))
    summary = summarise(jump)
    assert summary["d"].to_list() == [0.0, 0.0, math.inf]
    assert summary["standard_error"].to_list() == [0.0] * 3
    later = planted("ablation", "a", "entropy", {0.0: 0.0, 0.25: 0.4, 0.5: 1.2})
    assert rank(summarise(pl.concat([jump, later]))).select("metric", "threshold", "threshold_fraction").rows() == [
        ("entropy", pytest.approx(0.375), pytest.approx(0.75)),
        ("empty", 0.5, 1.0),
    ]


def test_equal_thresholds_share_a_rank() -> None:
    """The next rank is left out, and metrics without a threshold share the last."""
    effects: dict[str, tuple[float, float]] = {"a": (0, 1.6), "b": (0, -1.6), "c": (0, 1), "d": (0, 0), "e": (0, 0.1)}
    frames = [planted("ablation", "x", name, dict(zip((0.0, 1.0), d, strict=True))) for name, d in effects.items()]
    ranking = rank(summarise(pl.concat(frames)).with_columns(pl.col("d").round(9)))
    assert ranking["metric"].to_list() == ["a", "b", "c", "d", "e"]
    assert ranking["rank"].to_list() == [1, 1, 3, 4, 4]


def test_the_fraction_is_of_the_whole_sweep() -> None:
    """A metric that is missing at the worst level is still placed on the axis that all metrics share."""
    measures = pl.concat(
        [
            planted("ablation", "x", "entropy", {0.0: 0.0, 0.1: 0.4, 0.2: 0.5, 0.3: 0.6, 0.4: 2.0}),
            planted("ablation", "x", "perplexity", {0.0: 0.0, 0.1: 1.6}),
        ]
    )
    assert column(rank(summarise(measures)), "threshold_fraction", metric="perplexity") == pytest.approx([0.125])
    without_first = summarise(measures.filter(pl.col("damage") > 0, metric="entropy"))
    assert rank(without_first)["threshold_fraction"].to_list() == pytest.approx(
        [(2 + 0.6 / 1.4) / 3]
    )  # d from 0.2 to 1.6


def test_the_order_of_the_rows_does_not_matter(study: pl.DataFrame) -> None:
    """The same measures in another order give the same tables to the last bit."""
    noisy = study.with_columns(value=pl.col("value") + pl.int_range(pl.len()).sqrt() * 1e-3)
    expected = summarise(noisy)
    shuffled = summarise(noisy.sample(fraction=1, shuffle=True, seed=1))
    assert_frame_equal(shuffled, expected, check_exact=True)
    assert_frame_equal(rank(shuffled), rank(expected), check_exact=True)


def test_no_measures_are_empty_tables() -> None:
    """A study without records has tables without rows."""
    summary = summarise(pl.DataFrame(schema=MEASURES))
    assert summary.is_empty()
    assert summary["d"].dtype == pl.Float64
    assert rank(summary).is_empty()
