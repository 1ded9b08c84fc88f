"""Effect sizes, thresholds, trends and intervals: planted effects come out as computed by hand."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray
from polars.testing import assert_frame_equal
from scipy.stats import permutation_test, rankdata, spearmanr

from runner.report_effects import (
    Sample,
    cohens_d,
    effect_interval,
    interval,
    sample,
    spearman,
    threshold,
    threshold_interval,
)
from runner.report_statistics import rank, summarise

Doubles = NDArray[np.float64]
NUMBERS = st.integers(-1000, 1000).map(float)  # whole, so that shifting them is exact
CLUSTERS = st.lists(st.lists(NUMBERS, min_size=2, max_size=10), min_size=2, max_size=6)
CURVES = st.lists(
    st.tuples(st.floats(0.01, 1), st.floats(-5, 5, width=32) | st.sampled_from([None, math.inf, -math.inf])), min_size=1
)
SHAPE = np.linspace(-1, 1, 20)  # of the texts of a repeat, around its mean
APART = 0.1  # of each repeat's mean from their mean
SPREAD = math.sqrt(2 * APART**2 + (SHAPE**2).sum() / 20)  # between two repeats, and 19/20 of that within them
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
        (
            run,
            f"{method} {group}",
            method,
            group,
            level,
            damage,
            repeat,
            i,
            metric,
            10 + effect * SPREAD + apart + offset,
        )
        for damage, (level, effect) in enumerate(effects.items())
        for repeat, apart in zip(range(repeats), (APART, -APART), strict=False)
        for i, offset in enumerate(SHAPE)
    ]
    return pl.DataFrame(rows, schema=MEASURES, orient="row")


def column(frame: pl.DataFrame, name: str, **where: object) -> list[float]:
    """The values of a column in the rows that hold these."""
    return frame.filter(**where)[name].to_list()


def clusters(
    generator: np.random.Generator, repeats: int, *, mean: float = 0, model: float = 1, uneven: bool = False
) -> list[NDArray[np.float64]]:
    """Texts of some damaged models: one draw of sd `model` per repeat, and one of sd 1 per text, of 38 or 5 to 38."""
    counts = generator.integers(5, 39, repeats) if uneven else [38] * repeats
    return [mean + generator.normal(0, model) + generator.normal(0, 1, count) for count in counts]


@pytest.mark.slow
@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("model", [1.0, 0.3, 0.05])
@pytest.mark.parametrize("repeats", [5, 10])
def test_errors_and_intervals_of_the_mean_are_true(repeats: int, model: float, *, uneven: bool) -> None:
    """Standard errors are within 10 % of the spread of the means, and 90 to 97 % of the intervals hold the truth."""
    generator = np.random.default_rng(11)
    samples = [sample(clusters(generator, repeats, model=model, uneven=uneven)) for _ in range(1500)]
    errors, ends = (
        [one.standard_error or 0 for one in samples],
        [interval(one) or (math.nan, math.nan) for one in samples],
    )
    assert float(np.mean(errors)) == pytest.approx(np.std([one.mean for one in samples]), rel=0.1)
    assert 0.90 <= np.mean([low <= 0 <= high for low, high in ends]) <= 0.97


def test_the_error_of_ten_repeats_that_differ_as_much_as_texts() -> None:
    """Ten repeats of 38 texts, equal spread of both: about 0.32; as if texts were independent it would be 0.07."""
    generator = np.random.default_rng(12)
    errors = [sample(clusters(generator, 10)).standard_error or 0 for _ in range(500)]
    assert float(np.mean(errors)) == pytest.approx(math.sqrt((1 + 1 / 38) / 10), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize(("repeats", "shift"), [(5, 0.0), (5, 1.5), (10, 0.0), (10, 1.5)])
def test_intervals_of_the_effect_hold_the_truth(repeats: int, shift: float, *, uneven: bool) -> None:
    """A reference of one model, damaged models that differ: 90 to 97 % of the intervals of d hold the planted one."""
    generator = np.random.default_rng(13)
    held = []
    for _ in range(1000):
        reference = sample(clusters(generator, repeats, model=0, uneven=uneven))
        damaged = sample(clusters(generator, repeats, mean=shift, model=0.7, uneven=uneven))
        weights = reference.texts - 1, damaged.texts - 1
        truth = shift / math.sqrt((weights[0] + weights[1] * (1 + 0.7**2)) / sum(weights))
        low, high = effect_interval(reference, damaged) or (math.nan, math.nan)
        held.append(low <= truth <= high)
    assert 0.90 <= np.mean(held) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("repeats", [5, 10])
def test_intervals_of_a_threshold_hold_the_truth(repeats: int) -> None:
    """Of a metric that rises in a line it holds where d is 0.8 at least 90 times in 100."""
    generator = np.random.default_rng(14)
    levels = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    held = []
    for _ in range(400):
        samples = [sample(clusters(generator, repeats, mean=3 * level, model=0.4 if level else 0)) for level in levels]
        effects = [cohens_d(samples[0], one) for one in samples]
        low, high = threshold_interval(
            levels, effects, [None, *(effect_interval(samples[0], one) for one in samples[1:])]
        )
        truth = 0.8 * math.sqrt(1 + 0.4**2 / 2) / 3
        held.append(low is not None and low <= truth and (high is None or truth <= high))
    assert 0.90 <= np.mean(held) <= 1.0


def test_a_mean_is_of_repeats_and_equal_repeats_tell_nothing() -> None:
    """A repeat counts once however many texts it has; one repeat, or a spread of none, gives no interval."""
    assert sample([[1.0] * 9, [4.0]]).mean == 2.5
    assert sample([[1.0] * 9, [4.0]]).standard_error == pytest.approx(1.5)
    alone, equal = sample([[1.0, 2.0, 3.0]]), sample([[0.1] * 3, [0.1] * 7])
    assert (alone.standard_error, interval(alone)) == (None, None)
    assert (equal.mean, equal.standard_error, interval(equal)) == (0.1, 0.0, None)
    low, high = interval(sample([[1.0], [2.0], [6.0]])) or (0, 0)
    assert (low, high) == pytest.approx((3 - 4.302653 * math.sqrt(7 / 3), 3 + 4.302653 * math.sqrt(7 / 3)), abs=1e-5)


@pytest.mark.slow
def test_the_total_variance_is_that_of_a_text_of_any_repeat() -> None:
    """Whatever the sizes of the repeats, its mean is the sum of both variances that were planted."""
    generator = np.random.default_rng(15)
    found = [sample(clusters(generator, 5, model=0.8, uneven=True)).variance for _ in range(4000)]
    assert float(np.mean(found)) == pytest.approx(1 + 0.8**2, rel=0.03)


def test_d_of_a_planted_shift_is_that_shift() -> None:
    """Samples of one shape that lie 2.5 standard deviations apart have d = 2.5, downwards as well."""
    shapes = [SHAPE + APART, SHAPE - APART]
    for shift in (2.5, -2.5):
        moved = [values + shift * SPREAD for values in shapes]
        assert cohens_d(sample(shapes), sample(moved)) == pytest.approx(shift, abs=1e-9)


def test_d_without_clusters_is_that_of_cohen() -> None:
    """Of one value per repeat it is the textbook's, each sample's squares counted by their degrees of freedom."""
    generator = np.random.default_rng(1)
    reference, damaged = generator.normal(3, 1, 7), generator.normal(5, 4, 40)
    squares = ((reference - reference.mean()) ** 2).sum() + ((damaged - damaged.mean()) ** 2).sum()
    assert cohens_d(alone(reference), alone(damaged)) == pytest.approx(
        (np.average(damaged) - np.average(reference)) / np.sqrt(squares / 45), abs=1e-12
    )
    assert cohens_d(alone([0, 2]), alone([1, 1, 4])) == pytest.approx(1 / math.sqrt((2 + 6) / 3), abs=1e-12)


def alone(values: ArrayLike) -> Sample:
    """Every value a repeat of its own."""
    return sample([[value] for value in np.asarray(values, dtype=np.float64)])


def test_d_without_any_spread_is_nothing_or_infinite() -> None:
    """Constant samples differ infinitely, with a sign, or not at all, even where a mean of 0.1 is not 0.1."""
    assert cohens_d(alone([0.1] * 3), alone([0.1] * 10)) == 0.0
    assert cohens_d(alone([1, 1]), alone([2, 2])) == math.inf
    assert cohens_d(sample([[0.1] * 5] * 2), sample([[0.0] * 3])) == -math.inf
    assert cohens_d(alone([1]), alone([2])) is None
    assert effect_interval(alone([1, 1]), alone([2, 2])) is None


@pytest.mark.slow
@given(CLUSTERS, CLUSTERS)
def test_d_is_antisymmetric(first: list[list[float]], second: list[list[float]]) -> None:
    """Exchanging reference and damaged turns the sign of the effect and of its interval, and nothing else."""
    one, other = sample(first), sample(second)
    there, back = cohens_d(one, other), cohens_d(other, one)
    assert there is not None
    assert back is not None
    assert there == pytest.approx(-back, rel=1e-9, abs=1e-9)
    ends, turned = effect_interval(one, other), effect_interval(other, one)
    assert ends == (None if turned is None else pytest.approx((-turned[1], -turned[0]), rel=1e-6, abs=1e-6))


@pytest.mark.slow
@given(CLUSTERS, CLUSTERS, NUMBERS)
def test_d_does_not_see_a_common_shift(first: list[list[float]], second: list[list[float]], shift: float) -> None:
    """Adding one number to all values leaves the effect as it is."""
    moved = cohens_d(*(sample([np.array(values) + shift for values in side]) for side in (first, second)))
    assert moved == pytest.approx(cohens_d(sample(first), sample(second)), rel=1e-6, abs=1e-6)


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


@pytest.mark.parametrize(
    ("levels", "effects", "ends", "expected"),
    [
        ([0, 1, 2], [0, 0.4, 1.2], [None, (0.0, 0.8), (0.8, 1.6)], (1.0, 2.0)),
        ([0, 1, 2], [0, -0.4, -1.2], [None, (-0.8, 0.0), (-1.6, -0.8)], (1.0, 2.0)),
        ([0, 1, 2], [0, 0.4, 1.2], [None, (-0.2, 1.0), (0.3, 2.1)], (0.8, None)),  # not bounded within the sweep
        ([0, 1, 2], [0, 0.4, 0.6], [None, (-0.2, 1.0), (0.3, 2.1)], (None, None)),  # no threshold, no interval
        ([1024, 64, 4], [0, 0.4, 1.2], [None, (0.0, 0.8), (0.8, 1.6)], (64.0, 4.0)),
        ([0, 1, 2], [0, None, math.inf], [None, None, None], (None, None)),  # an effect without an interval
        ([0, 1], [0.9, 2.0], [(0.5, 1.3), (1.0, 3.0)], (0.0, 0.6)),
    ],
)
def test_the_interval_of_a_threshold_by_hand(
    levels: list[float],
    effects: list[float | None],
    ends: list[tuple[float, float] | None],
    expected: tuple[float | None, float | None],
) -> None:
    """From where the far end of the interval of d reaches 0.8 to where the near end does."""
    assert threshold_interval(levels, effects, ends) == pytest.approx(expected)


def exact_p(along: list[int], means: list[float], side: str) -> float:
    """Scipy's p of all orders, for Spearman's rho as Pearson's of the ranks: of all orders at once."""
    other = rankdata(along) - rankdata(along).mean()

    def rho(values: Doubles, axis: int) -> Doubles:
        ranks = np.moveaxis(rankdata(values, axis=axis), axis, -1)
        apart = ranks - ranks.mean(axis=-1, keepdims=True)
        return apart @ other / np.sqrt((apart**2).sum(axis=-1) * (other**2).sum())

    orders = {"permutation_type": "pairings", "n_resamples": math.inf, "vectorized": True}
    return float(permutation_test((means,), rho, alternative=side, **orders).pvalue)


@pytest.mark.parametrize("sign", [1, -1])
def test_spearman_is_that_of_scipy(sign: int) -> None:
    """Rho and the one-sided p in the direction of its sign, ties and descending levels included, exact up to 9."""
    generator = np.random.default_rng(2)
    for count in (3, 4, 5, 7, 12, 21):
        damage = list(range(count))
        means = (sign * (np.arange(count) + generator.normal(0, count / 3, count)).round()).tolist()
        for axis in (damage, damage[::-1]):
            rho, p = spearman(axis, means)
            assert rho is not None
            side = "greater" if rho >= 0 else "less"
            expected = spearmanr(axis, means, alternative=side)
            exact = expected.pvalue
            if count <= 7:
                exact = exact_p(axis, means, side)
            assert (rho, p) == pytest.approx((expected.statistic, exact), abs=1e-12)


def test_p_by_hand() -> None:
    """Of three levels in order one of six orders is as good; of nine one of 9!; and no p is ever 0."""
    assert spearman([0, 1, 2], [1, 2, 5]) == (pytest.approx(1), pytest.approx(1 / 6))
    assert spearman([0, 1, 2], [5, 2, 1]) == (pytest.approx(-1), pytest.approx(1 / 6))
    assert spearman([0, 1, 2], [1, 1, 5]) == (pytest.approx(math.sqrt(3) / 2), pytest.approx(1 / 3))
    assert spearman([0, 1, 2], [1, 5, 1]) == (0, pytest.approx(2 / 3))
    assert spearman(range(9), range(9))[1] == pytest.approx(1 / math.factorial(9))
    for count in (10, 21, 60):
        assert spearman(range(count), range(count))[1] == pytest.approx(1 / math.factorial(count))
    rho, p = spearman([0, 1, 2, 3, 4], [1.0, 3.0, 2.0, 7.0, 9.0])
    assert (rho, p) == pytest.approx((0.9, 5 / 120), abs=1e-12)  # the order itself and one exchange of four neighbours


def test_spearman_of_too_little() -> None:
    """A constant has no trend, two points have one without a p."""
    assert spearman([0, 1, 2], [4.0, 4.0, 4.0]) == (None, None)
    assert spearman([1], [4.0]) == (None, None)
    assert spearman([], []) == (None, None)
    assert spearman([0, 1], [4.0, 3.0]) == (-1.0, None)
    assert spearman([0, 1], [3.0, 4.0]) == (1.0, None)


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
        *("mean", "standard_error", "low", "high", "d", "d_low", "d_high", "reference"),
        *("change", "change_low", "change_high"),
    ]
    assert len(summary) == 24
    assert set(summary["n"]) == {40}
    assert set(summary["repeats"]) == {2}
    assert set(summary["reference"]) == {"undamaged"}
    gauss = summary.filter(sweep="mult_gauss attn_only", metric="entropy")
    assert gauss["level"].to_list() == [0.0, 0.5, 1.0, 1.5]
    assert gauss["d"].to_list() == pytest.approx([0.0, 0.4, 1.2, 3.0], abs=1e-9)
    assert gauss["mean"].to_list() == pytest.approx([10 + d * SPREAD for d in (0.0, 0.4, 1.2, 3.0)], abs=1e-9)
    assert gauss["standard_error"].to_list() == pytest.approx([APART] * 4, abs=1e-9)
    assert (gauss["high"] - gauss["low"]).to_list() == pytest.approx([2 * 12.7062 * APART] * 4, abs=1e-4)
    assert gauss["d_low"][0] is None
    assert (gauss["d_low"] < gauss["d"])[1:].all()
    assert (gauss["d_high"] > gauss["d"])[1:].all()
    assert gauss["change"].to_list() == pytest.approx([d * SPREAD for d in (0.0, 0.4, 1.2, 3.0)], abs=1e-9)
    widths = (gauss["change_high"] - gauss["change_low"]).to_list()
    # Two means of two repeats each, equally uncertain: Welch's degrees of freedom are 2.
    assert widths == [None, *[pytest.approx(2 * 4.302653 * 2**0.5 * APART, rel=1e-6)] * 3]
    quantised = summary.filter(sweep="uni_quant attn_only", metric="entropy")
    assert quantised["level"].to_list() == [1024.0, 64.0, 4.0]
    assert quantised["d"].to_list() == pytest.approx([0.2, 0.4, 1.2], abs=1e-9)


def test_metrics_are_ranked_by_threshold(study: pl.DataFrame) -> None:
    """Thresholds, their place on the axis of damage, trends and ranks are those computed by hand."""
    ranking = rank(summarise(study))
    assert ranking.columns == [
        *("run", "sweep", "metric", "threshold", "threshold_low", "threshold_high", "threshold_fraction", "compared"),
        *("rho", "p", "direction", "rank"),
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
    shown = ranking.drop("run", "p", "threshold_low", "threshold_high", "compared")
    assert shown.rows() == [pytest.approx(row, abs=1e-9) for row in expected]
    assert column(ranking, "p", metric="words") == [None]
    assert column(ranking, "p", metric="length") == pytest.approx([1 / 6, 1 / 24, 1 / 6], abs=1e-9)
    assert ranking["compared"].to_list() == [2, 2, 3, 3, 3, 3, 3]
    found = ranking.drop_nulls("threshold").filter(pl.col("sweep") != "uni_quant attn_only")
    assert (found["threshold_low"] <= found["threshold"]).all()


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
            planted("ablation", "a", "entropy", {0.0: 1.0, 0.5: 1.5}).filter(pl.col("prompt_id") < 16),
            planted("ablation", "b", "entropy", {0.0: 2.0, 0.5: 2.5}),
            planted("ablation", "c", "entropy", {0.5: 2.25}),
        ]
    )
    summary = summarise(measures)
    assert column(summary, "d", sweep="ablation b") == pytest.approx([0.0, 0.5], abs=1e-9)
    assert column(summary, "d", sweep="ablation c") == pytest.approx([0.25], abs=1e-9)
    assert column(summary, "d", sweep="ablation a")[0] == 0.0
    assert set(summary["reference"]) == {"undamaged"}


def test_what_cannot_be_told_is_null() -> None:
    """One repeat has a mean, but no error, interval or effect; 29 texts have no effect, 30 have one."""
    measures = planted("ablation", "a", "entropy", {0.0: 0.0, 0.5: 1.0})
    names = ("standard_error", "low", "high", "d", "d_low", "d_high")
    one_repeat = summarise(measures.filter(repeat_index=0))
    assert one_repeat.filter(level=0.5).select(names).rows() == [(None,) * 6]
    assert rank(one_repeat).select("threshold", "threshold_low", "compared").rows() == [(None, None, 0)]
    for texts, found in ((15, True), (14, False)):
        few = summarise(measures.filter(pl.col("prompt_id") < texts))
        assert few["low"].null_count() == 0
        assert (column(few, "d", level=0.5) != [None]) is found
        assert rank(few)["compared"].to_list() == [int(found)]
    few_at_reference = measures.filter((pl.col("prompt_id") < 14) | (pl.col("level") > 0))
    assert column(summarise(few_at_reference), "d") == [None, None]


def test_the_undamaged_model_is_one_however_often_it_spoke() -> None:
    """A reference of one repeat serves if it is undamaged; the least damaged model of several does not."""
    measures = planted("ablation", "a", "entropy", {0.0: 0.0, 0.5: 1.0, 1.0: 2.0})
    once = summarise(measures.filter((pl.col("level") > 0) | (pl.col("repeat_index") == 0)).vstack(
        planted("ablation", "a", "entropy", {0.0: 0.0}).filter(repeat_index=0).with_columns(pl.col("prompt_id") + 20)
    ))  # fmt: skip
    assert once.filter(level=0.0)["repeats"].to_list() == [1]
    assert once["d"].null_count() == 0
    least = measures.filter((pl.col("level") > 0.5) | ((pl.col("repeat_index") == 0) & (pl.col("level") == 0.5)))
    more = least.filter(level=0.5).with_columns(pl.col("prompt_id") + 20)
    assert summarise(pl.concat([least, more]))["d"].to_list() == [None, None]


def test_the_perplexity_of_a_text_is_of_models_and_in_logarithms() -> None:
    """One value per damaged model: geometric mean, error of the logarithm, and d from three models on."""
    rows = [
        ("r", "ablation a", "ablation", "a", level, damage, repeat, 1, "perplexity", value)
        for damage, (level, values) in enumerate({0.0: [10.0], 0.5: [20.0, 40.0, 80.0], 1.0: [1e3, 1e5]}.items())
        for repeat, value in enumerate(values)
    ]
    summary = summarise(pl.DataFrame(rows, schema=MEASURES, orient="row"))
    assert summary["mean"].to_list() == pytest.approx([10, 40, 1e4])
    error = math.log(2) / math.sqrt(3)
    assert summary["standard_error"].to_list()[1] == pytest.approx(error)
    assert summary["high"].to_list()[1] == pytest.approx(40 * math.exp(4.302653 * error), rel=1e-5)
    assert summary["d"].to_list() == [0.0, pytest.approx(math.log(4) / math.log(2)), None]
    assert rank(summary).select("threshold", "compared").rows() == [(pytest.approx(0.2), 1)]


def test_shares_stay_between_none_and_all() -> None:
    """An interval of right answers does not pass 0 or 1."""
    rows = [
        ("r", "ablation a", "ablation", "a", 0.0, 0, repeat, prompt, "correct", float(prompt < right))
        for repeat, right in enumerate((0, 9))
        for prompt in range(10)
    ]
    summary = summarise(pl.DataFrame(rows, schema=MEASURES, orient="row"))
    assert summary.select("low", "high").rows() == [(0.0, 1.0)]


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
            planted("ablation", "x", "length", {0.0: 0.0, 0.1: 1.6}),
        ]
    )
    assert column(rank(summarise(measures)), "threshold_fraction", metric="length") == pytest.approx([0.125])
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
