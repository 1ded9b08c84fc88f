"""What damage does to a metric: effect sizes and intervals, thresholds, trends, and the most sensitive metrics first.

Takes measures, one row per record and metric, and hands back tables; where the measures come from and how the tables
are shown is left to others. The columns of `measures`:

* `run`, the study; `sweep`, `method` and `group` within it; `metric`;
* `level`, and `damage`, the rank of that level in its sweep: 0 is the least damage (levels of `uni_quant` descend);
* `repeat_index` and `prompt_id` of the record; `value`, finite and never null.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import cast

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray
from scipy.stats import spearmanr

from runner.sweep import is_no_op

LARGE_EFFECT = 0.8  # Cohen 1988, section 2.2.3
FEWEST_FOR_VARIANCE, FEWEST_FOR_TREND = 2, 3

_LABELS = ("run", "sweep", "method", "group", "metric")
_CURVE = ("run", "sweep", "metric")  # one metric along one sweep
_DESCRIPTION = {
    "repeats": pl.Int64,
    "mean": pl.Float64,
    "standard_error": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
}
_RANKING = {
    "run": pl.String,
    "sweep": pl.String,
    "metric": pl.String,
    "threshold": pl.Float64,
    "threshold_fraction": pl.Float64,
    "rho": pl.Float64,
    "p": pl.Float64,
    "direction": pl.Int64,
}


def cohens_d(reference: ArrayLike, damaged: ArrayLike) -> float | None:
    """How many standard deviations the mean of `damaged` lies above that of `reference`.

    d = (m2 - m1) / s, where s^2 = ((n1 - 1) s1^2 + (n2 - 1) s2^2) / (n1 + n2 - 2) and the variances s1^2 and s2^2 are
    those with n - 1 (Cohen 1988, section 2.5.1). Without any spread the effect is 0 if the means are equal, else
    infinite with the sign of the difference. None if a sample has fewer than two values.
    """
    count, mean, variance = _moments(reference)
    damaged_count, damaged_mean, damaged_variance = _moments(damaged)
    if variance is None or damaged_variance is None:
        return None
    squares = (count - 1) * variance + (damaged_count - 1) * damaged_variance
    pooled = math.sqrt(squares / (count + damaged_count - 2))
    difference = damaged_mean - mean
    if pooled == 0:
        return math.copysign(math.inf, difference) if difference else 0.0
    return difference / pooled


def _moments(sample: ArrayLike) -> tuple[int, float, float | None]:
    """Count, mean, and variance with n - 1, or None where there are fewer than two values.

    They depend on the values, not on their order. Equal values have exactly that value as their mean and a variance
    of exactly 0: rounding must not turn a metric that never changes into one with an effect.
    """
    values = np.sort(np.asarray(sample, dtype=np.float64))
    count = len(values)
    if count and values[0] == values[-1]:
        return count, float(values[0]), 0.0 if count >= FEWEST_FOR_VARIANCE else None
    mean = float(values.mean()) if count else math.nan
    return count, mean, float(values.var(ddof=1)) if count >= FEWEST_FOR_VARIANCE else None


def threshold(
    damage_levels: Sequence[float], effects: Sequence[float | None], at: float = LARGE_EFFECT
) -> float | None:
    """The level at which the size of the effect first reaches `at`; None if it never does.

    `damage_levels` run from least to most damage, hence downwards for `uni_quant`. Between neighbours d is linear in
    the level, for `uni_quant` too, and keeps its sign: from -0.4 to 1.2 it reaches 0.8 after three quarters of the way.
    An infinite effect is reached at its own level, a first level that is beyond `at` is the threshold, and a level
    whose effect is None is passed over.
    """
    before: tuple[float, float] | None = None
    for level, effect in zip(damage_levels, effects, strict=True):
        if effect is None:
            continue
        if abs(effect) >= at:
            if before is None or math.isinf(effect):
                return level
            level_before, effect_before = before
            surplus = (effect - math.copysign(at, effect)) / (effect - effect_before)
            return level - surplus * (level - level_before)
        before = (level, effect)
    return None


def spearman(damage: Sequence[float], means: Sequence[float]) -> tuple[float | None, float | None]:
    """Spearman's rank correlation of damage and a metric's means, and the one-sided p in the direction of its sign.

    `damage` are ranks of damage, or levels where more is worse: a positive rho is then a metric that rises with damage.
    p is that of `scipy.stats.spearmanr`, from Student's t with n - 2 degrees of freedom; its t is symmetric, so that
    the one-sided p of the observed sign is half of the two-sided. None twice if an input is constant; two points have
    no p.
    """
    if len(set(damage)) < FEWEST_FOR_VARIANCE or len(set(means)) < FEWEST_FOR_VARIANCE:
        return None, None
    if len(means) < FEWEST_FOR_TREND:
        return math.copysign(1.0, (damage[1] - damage[0]) * (means[1] - means[0])), None
    found = spearmanr(damage, means)
    return float(found.statistic), float(found.pvalue) / 2


def bootstrap_interval(
    values_by_repeat: Sequence[ArrayLike], *, seed: int, confidence: float = 0.95, resamples: int = 2000
) -> tuple[float, float] | None:
    """The percentile bootstrap interval of the mean of all values (Efron & Tibshirani 1993, chapter 13).

    Whole repeats are drawn with replacement, not single texts: the texts of a repeat come from one damaged model, so
    only the repeats are independent. None with fewer than two repeats. The same seed gives the same interval.
    """
    repeats = len(values_by_repeat)
    if repeats < FEWEST_FOR_VARIANCE:
        return None
    samples = [np.asarray(values, dtype=np.float64) for values in values_by_repeat]
    counts = np.array([len(sample) for sample in samples])
    middle = sum(float(sample.sum()) for sample in samples) / counts.sum()
    # Around the middle, and summed by numpy: a matrix product would round as the machine's BLAS does.
    deviations = np.array([(sample - middle).sum() for sample in samples])
    drawn = _resampled(repeats, resamples, seed)
    means = (drawn * deviations).sum(axis=1) / (drawn * counts).sum(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(middle + low), float(middle + high)


@cache
def _resampled(repeats: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """How often each repeat is drawn: shape (resamples, repeats), each row sums to `repeats`."""
    return np.random.default_rng(seed).multinomial(repeats, np.full(repeats, 1 / repeats), size=resamples)


def summarise(measures: pl.DataFrame, *, seed: int = 0) -> pl.DataFrame:
    """One row per run, sweep, metric and level, sorted so: what a metric is there, and how far from its reference.

    Columns: run, sweep, method, group, metric, level, damage, n (values), repeats, mean, standard_error (standard
    deviation with n - 1, divided by the root of n), low and high (`bootstrap_interval`), d (`cohens_d` against the
    reference) and reference. The reference is "undamaged", the sweep's own no-op level, or else that of another sweep
    of the run (all are one model; the one with most values serves); or else "least damaged", the sweep's first level.
    The order of the rows of `measures` does not matter.
    """
    levels = _with_reference(_samples(measures))
    values = [series.to_numpy() for series in levels["value"]]
    repeats = [series.to_numpy() for series in levels["repeat_index"]]
    rows = [_describe(*sample, seed) for sample in zip(values, repeats, strict=True)]
    effects = [cohens_d(values[row], damaged) for row, damaged in zip(levels["reference_row"], values, strict=True)]
    described = pl.DataFrame(rows, schema=_DESCRIPTION, orient="row")
    return (
        levels.select(*_LABELS, "level", "damage", "n")
        .hstack(described)
        .with_columns(pl.Series("d", effects, dtype=pl.Float64), levels["reference"])
    )


def _samples(measures: pl.DataFrame) -> pl.DataFrame:
    """One row per metric and level: lists of its values and of their repeats, ordered by repeat, and their number n."""
    return (
        measures.group_by(*_LABELS, "level", "damage")
        .agg(pl.col("value").sort_by("repeat_index", "value"), pl.col("repeat_index").sort())
        .with_columns(pl.col(_LABELS).cast(pl.String), n=pl.col("value").list.len().cast(pl.Int64))
        .sort(*_CURVE, "damage")
    )


def _with_reference(levels: pl.DataFrame) -> pl.DataFrame:
    """The levels with the row of the level that each is compared with, and what kind of level that is."""
    no_op = [is_no_op(method, level) for method, level in levels.select("method", "level").iter_rows()]
    undamaged = (
        levels.select(*_CURVE, "n")
        .with_row_index("reference_row")
        .filter(pl.Series(no_op, dtype=pl.Boolean))
        .sort("n", descending=True, maintain_order=True)  # equal numbers: the first in the order of names
    )
    own = undamaged.unique(_CURVE, keep="first", maintain_order=True).drop("n")
    shared = undamaged.unique(("run", "metric"), keep="first", maintain_order=True).drop("sweep", "n")
    return (
        levels.with_row_index("row")
        .with_columns(least=pl.col("row").first().over(_CURVE))
        .join(own, on=_CURVE, how="left", maintain_order="left")
        .join(shared, on=("run", "metric"), how="left", suffix="_shared", maintain_order="left")
        .with_columns(reference_row=pl.coalesce("reference_row", "reference_row_shared"))
        .with_columns(
            reference=pl.when(pl.col("reference_row").is_null())
            .then(pl.lit("least damaged"))
            .otherwise(pl.lit("undamaged")),
            reference_row=pl.coalesce("reference_row", "least"),
        )
    )


def _describe(
    values: NDArray[np.float64], repeats: NDArray[np.int64], seed: int
) -> tuple[int, float, float | None, float | None, float | None]:
    """Number of repeats, mean, its standard error and its interval; `values` are ordered by repeat."""
    count, mean, variance = _moments(values)
    by_repeat = np.split(values, np.flatnonzero(np.diff(repeats)) + 1)
    low, high = bootstrap_interval(by_repeat, seed=seed) or (None, None)
    return len(by_repeat), mean, None if variance is None else math.sqrt(variance / count), low, high


def rank(summary: pl.DataFrame) -> pl.DataFrame:
    """The metrics of every sweep by the damage that it takes to change them, the most sensitive first.

    Columns: run, sweep, metric; threshold, the level at which d reaches 0.8 (`threshold`); threshold_fraction, where
    that is between the least (0) and the most (1) damaging level of the sweep, in ranks of damage: linear between
    neighbouring levels, and comparable between sweeps, even those of `uni_quant`, whose levels are a geometric series;
    rho and p of the trend along damage (`spearman`); direction, 1 if the metric rises and -1 if it falls, by the sign
    of rho; rank, from 1, where equal thresholds share the smallest and metrics without one come last.
    """
    edges = {
        (run, sweep): (least, most)
        for run, sweep, least, most in summary.group_by("run", "sweep")
        .agg(least=pl.col("damage").min(), most=pl.col("damage").max())
        .iter_rows()
    }
    curves = summary.sort(*_CURVE, "damage").group_by(_CURVE, maintain_order=True)
    rows = [(*key, *_trend(curve, *edges[cast("tuple[str, str]", key[:2])])) for key, curve in curves]
    place = pl.col("threshold_fraction").fill_null(math.inf).rank("min").over("run", "sweep").cast(pl.Int64)
    return (
        pl.DataFrame(rows, schema=_RANKING, orient="row")
        .with_columns(place.alias("rank"))
        .sort("run", "sweep", "rank", "metric")
    )


def _trend(
    curve: pl.DataFrame, least: int, most: int
) -> tuple[float | None, float | None, float | None, float | None, int | None]:
    """Threshold, its fraction, rho, p and direction of one metric along a sweep of damage from `least` to `most`."""
    levels, damage = curve["level"].to_list(), curve["damage"].to_list()
    found = threshold(levels, curve["d"].to_list())
    fraction = None if found is None else _fraction(found, levels, damage, least, most)
    rho, p = spearman(damage, curve["mean"].to_list())
    return found, fraction, rho, p, int(math.copysign(1, rho)) if rho else None


def _fraction(found: float, levels: Sequence[float], damage: Sequence[int], least: int, most: int) -> float:
    """Where a level is between the least (0) and most (1) damage, in ranks; 0 in a sweep of one level."""
    order = np.argsort(levels)
    position = float(np.interp(found, np.asarray(levels)[order], np.asarray(damage)[order]))
    return (position - least) / (most - least) if most > least else 0.0
