"""Grids: curves that differ in group and layers alone, as the cells of maps; how far each has moved, and how surely.

A record knows no sweep, so a grid is known by the names of its curves: `v_proj[3]`, `mlp_down[0-4][neuron]`.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import polars as pl
from attrs import frozen

from runner.report_statistics import LOGARITHMIC, PER_MODEL
from runner.spec_methods import METHODS, Method, is_no_op
from runner.spec_targets import BUILT_IN, LAYERS_PATTERN

FEWEST_LAYERS = 2
FEWEST_CURVES = 7  # what a figure of curves has no colours for any more
MOST_MAPS = 3  # of levels; of more the middle and the last are shown
FEWEST_LEVELS = 3  # of a curve, for a threshold to be more than one of its levels
BY_CHANCE = 0.05  # of cells without any effect, the share whose 95 % interval excludes none

_REFERENCES = ("undamaged", "least damaged")
_LABEL = re.compile(r"(?P<group>[^\[\]]+)(?P<options>(\[[^\[\]]+\])+)")
_CELLS = {
    "map": pl.String,
    "level": pl.Float64,
    "group": pl.String,
    "layers": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "certain": pl.Boolean,
    "repeats": pl.Int64,
    "texts": pl.Int64,
}


@frozen(kw_only=True, eq=False)
class Grid:
    """One method on groups (rows) and layers (columns) of a run, with whatever else is the same for all its curves."""

    method: Method
    options: tuple[str, ...]  # the brackets of a label that are no layers
    groups: tuple[str, ...]
    layers: tuple[str, ...]
    curves: dict[str, tuple[str, str]]  # sweep -> group, layers
    levels: dict[str, tuple[float, ...]]  # sweep -> its levels that are damage, from least to most
    reference: str  # what its levels are compared with: the "undamaged" model, or the "least damaged"

    @property
    def name(self) -> str:
        """What people read: `ablation, neuron`."""
        return ", ".join((self.method, *self.options))

    @property
    def shown_levels(self) -> list[float]:
        """The levels that have a map: all of up to three, of more the middle and the last."""
        found = sorted({level for levels in self.levels.values() for level in levels}, reverse=_falls(self.method))
        return found if len(found) <= MOST_MAPS else [found[(len(found) - 1) // 2], found[-1]]


def _falls(method: Method) -> bool:
    return not METHODS[method].rises


def find_grids(summary: pl.DataFrame) -> list[Grid]:
    """The grids among the sweeps of one run: at least 7 curves over at least two sets of layers."""
    sweeps = summary.unique(("sweep", "level"), maintain_order=True).sort("sweep", "damage")
    curves: dict[tuple[Method, tuple[str, ...]], dict[str, tuple[str, str]]] = defaultdict(dict)
    levels: dict[str, list[float]] = defaultdict(list)
    rows = sweeps.select("sweep", "method", "group", "level", "damage", "reference").iter_rows()
    for sweep, method, label, level, damage, reference in rows:
        place = _place(label)
        if place:
            group, layers, options = place
            curves[cast("Method", method), options][sweep] = (group, layers)
            if not is_no_op(method, level) and (reference == "undamaged" or damage):
                levels[sweep].append(level)
    references = dict(sweeps.select("sweep", "reference").iter_rows())
    return [
        Grid(
            method=method,
            options=options,
            groups=groups,
            layers=layers,
            curves=of,
            levels={sweep: tuple(levels[sweep]) for sweep in of},
            reference=max((references[sweep] for sweep in of), key=_REFERENCES.index),
        )
        for (method, options), of in curves.items()
        for groups, layers in [_axes(of.values())]
        if len(of) >= FEWEST_CURVES and len(layers) >= FEWEST_LAYERS
    ]


def _axes(places: Iterable[tuple[str, str]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Groups and layers in order: built-in groups as a layer computes them, then others by name; layers by number."""
    groups, layers = (set(names) for names in zip(*places, strict=True))
    built_in = list(BUILT_IN)
    place = {group: built_in.index(group) for group in groups & set(built_in)}
    return (
        tuple(sorted(groups, key=lambda group: (place.get(group, len(built_in)), group))),
        tuple(sorted(layers, key=lambda name: ([int(number) for number in re.findall(r"\d+", name)], name))),
    )


def _place(label: str) -> tuple[str, str, tuple[str, ...]] | None:
    """Group, layers and whatever else a label says; None where it names no layers."""
    found = _LABEL.fullmatch(label)
    options = re.findall(r"\[([^\[\]]+)\]", found["options"]) if found else []
    layers = next((option for option in options if re.match(LAYERS_PATTERN, option)), None)
    if found is None or layers is None:
        return None
    options.remove(layers)
    return found["group"], layers, tuple(options)


def cells(grid: Grid, metric: str, summary: pl.DataFrame, ranking: pl.DataFrame, exact: Sequence[str]) -> pl.DataFrame:
    """What the maps of one measure show: one row per map and curve, by map, group and layers.

    Columns: map ("change" or "threshold"), level (of a change), group, layers; value, the change of the measure from
    its reference or the threshold; low and high, its 95 % interval; certain; repeats; texts. A value is null where
    there is no number, or where the threshold is not reached. A change is certain if its interval excludes no change;
    a threshold if both ends of its interval are within the sweep. `exact` are sweeps whose repeats are one and the
    same damaged model: a number of that model is certain without an interval.
    """
    rows = [*_changes(grid, metric, summary, exact), *_thresholds(grid, metric, summary, ranking)]
    return pl.DataFrame(rows, schema=_CELLS, orient="row")


def _in_order(grid: Grid) -> list[str]:
    places = {place: sweep for sweep, place in grid.curves.items()}
    return [places[group, layers] for group in grid.groups for layers in grid.layers if (group, layers) in places]


def _changes(grid: Grid, metric: str, summary: pl.DataFrame, exact: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    columns = ("sweep", "level", "change", "change_low", "change_high", "repeats", "n")
    of_metric = summary.filter(pl.col("metric") == metric, pl.col("sweep").is_in(list(grid.curves)))
    found = {row[:2]: row[2:] for row in of_metric.select(columns).iter_rows()}
    for level in grid.shown_levels:
        for sweep in _in_order(grid):
            if level not in grid.levels[sweep]:
                continue
            value, low, high, repeats, texts = found.get((sweep, level), (None, None, None, 0, 0))
            known = sweep in exact and metric in PER_MODEL
            none = no_change(metric)
            certain = value != none if known and value is not None else low is not None and not low <= none <= high
            yield "change", level, *grid.curves[sweep], value, low, high, certain, repeats, texts


def _thresholds(grid: Grid, metric: str, summary: pl.DataFrame, ranking: pl.DataFrame) -> Iterator[tuple[Any, ...]]:
    """A row for every curve that has enough levels and whose effects can be told."""
    of_metric = ranking.filter(pl.col("metric") == metric, pl.col("sweep").is_in(list(grid.curves)))
    found = {row["sweep"]: row for row in of_metric.iter_rows(named=True) if row["compared"]}
    counts = summary.filter(pl.col("metric") == metric).group_by("sweep").agg(pl.max("repeats"), pl.sum("n"))
    known = {sweep: (repeats, texts) for sweep, repeats, texts in counts.iter_rows()}
    for sweep in _in_order(grid):
        if sweep in found and len(grid.levels[sweep]) >= FEWEST_LEVELS:
            value, low, high = (found[sweep][name] for name in ("threshold", "threshold_low", "threshold_high"))
            certain = None not in {value, low, high}
            yield "threshold", None, *grid.curves[sweep], value, low, high, certain, *known[sweep]


def no_change(metric: str) -> float:
    """The change of a measure that has not changed: 0, and of perplexities, whose change is a ratio, 1."""
    return 1.0 if metric in LOGARITHMIC else 0.0


def exact_sweeps(table: pl.DataFrame) -> list[str]:
    """The sweeps whose damaged weights depend on no seed, by their method, or by the digests of several repeats."""
    counts = table.group_by("sweep", "method", "level").agg(
        models=pl.col("weights_digest").n_unique(), repeats=pl.col("repeat_index").n_unique()
    )
    damage = [row for row in counts.iter_rows(named=True) if not is_no_op(row["method"], row["level"])]
    drawn = {
        row["sweep"] for row in damage
        if METHODS[row["method"]].random and (row["models"] > 1 or row["repeats"] == 1)
    }  # fmt: skip
    return sorted({row["sweep"] for row in damage} - drawn)
