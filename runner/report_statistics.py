"""What damage does to a metric: effect sizes and intervals, thresholds, trends, and the most sensitive metrics first.

Takes measures, one row per record and metric, and hands back tables; where the measures come from and how the tables
are shown is left to others, and so is the arithmetic (`runner.report_effects`). The columns of `measures`:

* `run`, the study; `sweep`, `method` and `group` within it; `metric`;
* `level`, and `damage`, the rank of that level in its sweep: 0 is the least damage (levels of `uni_quant` descend);
* `repeat_index` and `prompt_id` of the record; `value`, finite and never null.
"""

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import polars as pl

from runner.report_changes import change, exponential
from runner.report_effects import (
    FEWEST_MODELS,
    FEWEST_REPEATS,
    FEWEST_TEXTS,
    Sample,
    cohens_d,
    effect_interval,
    interval,
    sample,
    spearman,
    threshold,
    threshold_interval,
)
from runner.spec_methods import is_no_op

LOGARITHMIC = frozenset({"perplexity", "scored_perplexity"})  # what spreads over orders of magnitude
SHARES = ("looped", "ended_by_itself", "nonfinite", "correct", "chance")  # of texts
PER_MODEL = frozenset({"perplexity"})  # one number for a damaged model, not one for each of its texts

_LABELS = ("run", "sweep", "method", "group", "metric")
_CURVE = ("run", "sweep", "metric")  # one metric along one sweep
_DESCRIPTION = {
    "repeats": pl.Int64,
    "mean": pl.Float64,
    "standard_error": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
}
_EFFECT = {"d": pl.Float64, "d_low": pl.Float64, "d_high": pl.Float64}
_CHANGE = {"change": pl.Float64, "change_low": pl.Float64, "change_high": pl.Float64}
_RANKING = {
    "run": pl.String,
    "sweep": pl.String,
    "metric": pl.String,
    "threshold": pl.Float64,
    "threshold_low": pl.Float64,
    "threshold_high": pl.Float64,
    "threshold_fraction": pl.Float64,
    "compared": pl.Int64,
    "rho": pl.Float64,
    "p": pl.Float64,
    "direction": pl.Int64,
}


def summarise(measures: pl.DataFrame) -> pl.DataFrame:
    """One row per run, sweep, metric and level, sorted so: what a metric is there, and how far from its reference.

    Columns: run, sweep, method, group, metric, level, damage, n (values), repeats, mean (of the repeats' means),
    standard_error (standard deviation of the repeats' means over the root of their number), low and high (`interval`,
    of shares within 0 and 1), d (`cohens_d` against the reference), d_low and d_high (`effect_interval`), reference,
    and change, change_low and change_high, the mean less that of the reference (`report_changes`). The reference is
    "undamaged", the sweep's own no-op level, or else that of another sweep of the run (all are one model; the one with
    most values serves); or else "least damaged", the sweep's first level.

    Perplexities are described by their logarithms: mean, low and high are geometric, standard_error is that of the
    natural logarithm, d counts in standard deviations of it, and change is the mean over that of the reference. What
    cannot be told is null: standard_error, low, high and the ends of a change with fewer than two repeats, d with fewer
    than two or fewer than 30 values at the level or its reference, and d and the ends of a change of the perplexity of
    a fixed text, one value per damaged model, with fewer than three models. The order of the rows of
    `measures` does not matter.
    """
    levels = _with_reference(_samples(measures))
    samples = [_sample(*row) for row in zip(levels["metric"], levels["value"], levels["repeat_index"], strict=True)]
    rows = [_write_effect(metric, of) for metric, of in zip(levels["metric"], samples, strict=True)]
    compared = [samples[row] for row in levels["reference_row"]]
    own = [row == reference for row, reference in enumerate(levels["reference_row"])]
    effects = [
        _effect(metric, reference, of, undamaged=kind == "undamaged", own=itself)
        for metric, of, reference, kind, itself in zip(
            levels["metric"], samples, compared, levels["reference"], own, strict=True
        )
    ]
    changes = [
        change(reference, of, FEWEST_MODELS if metric in PER_MODEL else FEWEST_REPEATS, ratio=metric in LOGARITHMIC)
        for metric, of, reference in zip(levels["metric"], samples, compared, strict=True)
    ]
    return (
        levels.select(*_LABELS, "level", "damage", "n")
        .hstack(pl.DataFrame(rows, schema=_DESCRIPTION, orient="row"))
        .hstack(pl.DataFrame(effects, schema=_EFFECT, orient="row"))
        .with_columns(_clipped("low"), _clipped("high"), levels["reference"])
        .hstack(pl.DataFrame(changes, schema=_CHANGE, orient="row"))
    )


def _clipped(name: str) -> pl.Expr:
    """The end of an interval, of shares of texts within what a share can be."""
    shares = pl.col("metric").is_in(SHARES)
    return pl.when(shares).then(pl.col(name).clip(0, 1)).otherwise(pl.col(name)).alias(name)


def _samples(measures: pl.DataFrame) -> pl.DataFrame:
    """One row per metric and level: lists of its values and of their repeats, ordered by repeat, and their number n."""
    return (
        measures.group_by(*_LABELS, "level", "damage")
        .agg(pl.col("value").sort_by("repeat_index", "value"), pl.col("repeat_index").sort())
        .with_columns(pl.col(_LABELS).cast(pl.String), n=pl.col("value").list.len().cast(pl.Int64))
        .sort(*_CURVE, "damage")
    )


def _sample(metric: str, values: pl.Series, repeats: pl.Series) -> Sample:
    """The values of a level as clusters, logarithms where that is the metric's scale; ordered by repeat."""
    numbers = np.log(values.to_numpy()) if metric in LOGARITHMIC else values.to_numpy()
    return sample(np.split(numbers, np.flatnonzero(np.diff(repeats.to_numpy())) + 1))


def _write_effect(metric: str, of: Sample) -> tuple[int, float, float | None, float | None, float | None]:
    """Number of repeats, mean, its standard error and its interval, back on the metric's own scale."""
    low, high = interval(of) or (None, None)
    if metric not in LOGARITHMIC:
        return of.repeats, of.mean, of.standard_error, low, high
    return of.repeats, math.exp(of.mean), of.standard_error, exponential(low), exponential(high)


def _effect(
    metric: str, reference: Sample, damaged: Sample, *, undamaged: bool, own: bool
) -> tuple[float | None, float | None, float | None]:
    """D and its interval, where there are enough repeats and values to speak of one; 0 of a level against itself."""
    fewest_values, fewest_repeats = (1, FEWEST_MODELS) if metric in PER_MODEL else (FEWEST_TEXTS, FEWEST_REPEATS)
    enough = min(reference.texts, damaged.texts) >= fewest_values
    if own:
        return (0.0 if enough and (undamaged or damaged.repeats >= fewest_repeats) else None, None, None)
    # The undamaged model is one, whatever the number of repeats; of damaged models there is one for each.
    if not enough or damaged.repeats < fewest_repeats or not (undamaged or reference.repeats >= fewest_repeats):
        return None, None, None
    low, high = effect_interval(reference, damaged) or (None, None)
    return cohens_d(reference, damaged), low, high


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


def rank(summary: pl.DataFrame) -> pl.DataFrame:
    """The metrics of every sweep by the damage that it takes to change them, the most sensitive first.

    Columns: run, sweep, metric; threshold, the level at which d reaches 0.8 (`threshold`); threshold_low and
    threshold_high, its interval (`threshold_interval`); threshold_fraction, where it is between the least (0) and the
    most (1) damaging level of the sweep, in ranks of damage: linear between neighbouring levels, and comparable between
    sweeps, even those of `uni_quant`, whose levels are a geometric series; compared, how many levels have an effect
    size besides the reference: with none, no threshold means that none can be told; rho and p of the trend along
    damage (`spearman`); direction, 1 if the metric rises and -1 if it falls, by the sign of rho; rank, from 1, where
    equal thresholds share the smallest and metrics without one come last.
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


def _trend(curve: pl.DataFrame, least: int, most: int) -> tuple[float | None, ...]:
    """What `rank` says of one metric along a sweep of damage from `least` to `most`, in the order of its columns."""
    levels, damage, effects = (curve[name].to_list() for name in ("level", "damage", "d"))
    found = threshold(levels, effects)
    ends = [
        None if low is None or high is None else (low, high)
        for low, high in curve.select("d_low", "d_high").iter_rows()
    ]
    low, high = threshold_interval(levels, effects, ends)
    fraction = None if found is None else _fraction(found, levels, damage, least, most)
    kinds = curve.select("method", "level", "reference", "damage").iter_rows()
    own = [
        is_no_op(method, level) or (kind == "least damaged" and place == damage[0])
        for method, level, kind, place in kinds
    ]
    compared = sum(effect is not None and not itself for effect, itself in zip(effects, own, strict=True))
    rho, p = spearman(damage, curve["mean"].to_list())
    return found, low, high, fraction, compared, rho, p, int(math.copysign(1, rho)) if rho else None


def _fraction(found: float, levels: Sequence[float], damage: Sequence[int], least: int, most: int) -> float:
    """Where a level is between the least (0) and most (1) damage, in ranks; 0 in a sweep of one level."""
    order = np.argsort(levels)
    position = float(np.interp(found, np.asarray(levels)[order], np.asarray(damage)[order]))
    return (position - least) / (most - least) if most > least else 0.0
