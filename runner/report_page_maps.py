"""What the page of `degrade report` shows of a grid: its maps, each also in words, and whose texts to read."""

from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl
from attrs import frozen

from runner.metric import Metric
from runner.report_figures import for_page
from runner.report_grids import BY_CHANCE, Grid
from runner.report_statistics import LOGARITHMIC

MOST_NAMED = 3  # cells of a map in words


@frozen
class ShownMap:
    """The maps of a metric over a grid, their cells, and the name of their files; no `svg` where they are not drawn."""

    metric: Metric
    grid: Grid
    cells: pl.DataFrame
    file: str
    svg: str | None


def grid_contents(grid: Grid, maps: Sequence[ShownMap], prefix: str) -> dict[str, Any]:
    """The maps of one grid and what there is to know beside them, for the template; `prefix` keeps ids apart."""
    drawn = [(shown, description(shown.metric, grid, shown.cells)) for shown in maps if shown.svg]
    return {
        "name": grid.name,
        "groups": len(grid.groups),
        "layers": len(grid.layers),
        "shown_levels": [f"{level:g}" for level in grid.shown_levels],
        "levels": len({level for levels in grid.levels.values() for level in levels}),
        "curves": len(grid.curves),
        "by_chance": f"{BY_CHANCE * len(grid.curves):.0f}",
        "reference": grid.reference,
        "maps": [
            {
                "label": shown.metric.label,
                "svg": for_page(shown.svg or "", said, f"{prefix}{shown.metric.name}-"),
                "source": f"{said} Data: figures/{shown.file}.csv. Source of the measure: {shown.metric.source}.",
            }
            for shown, said in drawn
        ],
        "not_drawn": [shown.metric.label for shown in maps if not shown.svg],
    }


def worst_curves(maps: Sequence[ShownMap]) -> list[str]:
    """Of every grid and group the curve that changes most at the last level, by its perplexity or else one measure."""
    found = []
    for grid in dict.fromkeys(shown.grid for shown in maps):
        drawn = [shown for shown in maps if shown.grid is grid and shown.svg]
        if not drawn:
            continue
        shown = min(drawn, key=lambda shown: not shown.metric.name.endswith("perplexity"))
        of = shown.cells.filter(pl.col("level") == grid.shown_levels[-1]).drop_nulls("value")
        worst = of.sort(_size(shown.metric), descending=True, maintain_order=True).unique("group", keep="first")
        places = set(worst.select("group", "layers").iter_rows())
        found += [sweep for sweep, place in grid.curves.items() if place in places]
    return found


def _size(metric: Metric) -> pl.Expr:
    """How large a change is, of a ratio on its logarithm."""
    return (pl.col("value").log() if metric.name in LOGARITHMIC else pl.col("value")).abs()


def description(metric: Metric, grid: Grid, cells: pl.DataFrame) -> str:
    """The maps of one measure in words: at each level how many cells have moved for certain, and which most."""
    return f"{metric.label}, {grid.name}. " + " ".join(_said(metric, cells))


def _said(metric: Metric, cells: pl.DataFrame) -> Iterator[str]:
    for (kind, level), of in cells.group_by("map", "level", maintain_order=True):
        certain = of.filter(pl.col("certain"))
        if kind == "threshold":
            yield f"Threshold: reached by {of['value'].count()} of {len(of)} curves."
            continue
        top = certain.sort(_size(metric), descending=True, maintain_order=True).head(MOST_NAMED)
        named = "; ".join(_cell_in_words(metric, row) for row in top.iter_rows(named=True))
        yield f"At {level:g}: {len(certain)} of {len(of)} cells differ{': most ' + named if named else ''}."


def _cell_in_words(metric: Metric, row: dict[str, Any]) -> str:
    times = "times " if metric.name in LOGARITHMIC else ""
    ends = "" if row["low"] is None else f" ({row['low']:.3g} to {row['high']:.3g})"
    sign = "" if times else "+"
    return f"{row['group']} {row['layers']} {times}{format(row['value'], f'{sign}.3g')}{ends}"
