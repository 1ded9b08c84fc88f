"""What the page of `degrade report` shows, and its HTML: one file that needs nothing else, all text escaped."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

import polars as pl
from attrs import frozen
from jinja2 import Environment, StrictUndefined

from runner.metric import Metric
from runner.report_effects import LARGE_EFFECT
from runner.report_figures import for_page
from runner.report_grids import Grid
from runner.report_page_maps import ShownMap, grid_contents, worst_curves
from runner.report_runs import Facts

SHOWN_CHARACTERS = 600
LABELS = {"eos": "itself", "length": "length", "nonfinite": "no numbers"}


@frozen
class Shown:
    """A metric's figure and the tables that it was drawn from."""

    metric: Metric
    svg: str
    summary: pl.DataFrame
    ranking: pl.DataFrame


@frozen(kw_only=True)
class Run:
    """All that the page shows of one run; the tables hold its rows only, `ranking` none of the curves of a grid."""

    name: str
    facts: Facts
    table: pl.DataFrame
    ranking: pl.DataFrame
    figures: Sequence[Shown]
    grids: Sequence[Grid]
    maps: Sequence[ShownMap]
    sidecars: Sequence[Mapping[str, Any]]


def render(runs: Sequence[Run], labels: Mapping[str, str]) -> str:
    """The page as HTML; `labels` are the names of metrics as people read them."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string((files("runner") / "report_page.html.jinja").read_text(encoding="utf-8"))
    return template.render(
        title=" and ".join(run.name for run in runs),
        records=sum(len(run.table) for run in runs),
        runs=[_contents(run, labels, number) for number, run in enumerate(runs)],
        any_grids=any(run.grids for run in runs),
        large_effect=LARGE_EFFECT,
        number=_number,
        span=_span,
        percent=_percent,
    )


def _number(value: float | None, missing: str) -> str:
    return missing if value is None else f"{value:.3g}"


def _span(low: float | None, high: float | None) -> str:
    """The ends of an interval; of a threshold that the sweep does not bound only the first is known."""
    if low is None:
        return ""
    return f"{low:.3g} and more" if high is None else f"{low:.3g} to {high:.3g}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def _contents(run: Run, labels: Mapping[str, str], number: int) -> dict[str, Any]:
    curves = [sweep for grid in run.grids for sweep in grid.curves]
    single = run.table.filter(~pl.col("sweep").is_in(curves))
    return {
        "name": run.name,
        "facts": facts(run),
        "notes": run.facts.notes,
        "sweeps": run.ranking["sweep"].unique(maintain_order=True).to_list(),
        "thresholds": list(thresholds(run.ranking, labels)),
        "ranking": [
            row | {"label": labels[row["metric"]]} for row in run.ranking.drop_nulls("threshold").iter_rows(named=True)
        ],
        "figures": [
            {
                "label": shown.metric.label,
                "svg": for_page(shown.svg, description(shown), f"{number}-{shown.metric.name}-"),
                "source": f"{description(shown)} Source of the measure: {shown.metric.source}.",
            }
            for shown in run.figures
        ],
        "grids": [
            grid_contents(grid, [shown for shown in run.maps if shown.grid is grid], f"{number}-{place}-")
            for place, grid in enumerate(run.grids)
        ],
        "samples": [*samples(single), *samples(run.table.filter(pl.col("sweep").is_in(worst_curves(run.maps))))],
        "failures": failures(single).to_dicts(),
    }


def thresholds(ranking: pl.DataFrame, labels: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Per metric its row of the ranking in every sweep, None where it has none; without those that no sweep changes."""
    sweeps = ranking["sweep"].unique(maintain_order=True)
    found = {(row["metric"], row["sweep"]): row for row in ranking.iter_rows(named=True)}
    earliest = ranking.drop_nulls("threshold").group_by("metric").agg(pl.min("threshold_fraction"))
    for metric in earliest.sort("threshold_fraction", "metric")["metric"]:
        yield {"label": labels[metric], "cells": [found.get((metric, sweep)) for sweep in sweeps]}


def facts(run: Run) -> dict[str, str]:
    """What was run and on what, from the records and, where there are sidecars, from those."""
    table = run.table
    levels = table.group_by("sweep", maintain_order=True).agg(pl.col("level").unique(maintain_order=True))
    curves = {sweep: grid for grid in run.grids for sweep in grid.curves}
    named: dict[str, dict[float, None]] = defaultdict(dict)  # in order
    for sweep, values in levels.iter_rows():
        named[_said_grid(curves[sweep]) if sweep in curves else sweep] |= dict.fromkeys(values)
    found = {
        "texts": f"{len(table):,}",
        "prompts": str(table["prompt_text"].n_unique()),
        "repeats": _repeats(table),
        "levels": "; ".join(f"{name}: {', '.join(f'{x:g}' for x in values)}" for name, values in named.items()),
    }
    if run.facts.identity:
        found["settings"] = ", ".join(f"{name}: {value}" for name, value in run.facts.identity.items())
    if run.facts.settings:
        found["differs in"] = ", ".join(f"{name}: {value}" for name, value in run.facts.settings.items())
    found["files"] = ", ".join(table["file"].unique(maintain_order=True))
    times = table["timestamp"].drop_nulls()
    if len(times):
        found["written"] = f"{times.min()!s} to {times.max()!s}"
    for sidecar in run.sidecars:
        if not sidecar:
            continue
        model = sidecar.get("model", {})
        found["model"] = " ".join(str(model[key]) for key in ("id", "revision", "dtype") if key in model)
        for last in sidecar.get("provenance", {}).get("runs", [])[-1:]:
            asked = {"commit": last.get("model", {}).get("commit"), "tokens of the prompts": last.get("tokens_digest")}
            asked |= {f"generation_config {key}": value for key, value in last.get("generation_config", {}).items()}
            found["asked"] = ", ".join(f"{key}: {value}" for key, value in asked.items() if value is not None)
            if "start_check" in last:
                found["checked"] = f"logits differ from the model's own by {last['start_check']['difference']:.1g}"
            for key in ("versions", "machine"):
                found[key] = ", ".join(f"{name} {value}" for name, value in last.get(key, {}).items())
    return found


def _said_grid(grid: Grid) -> str:
    return f"{grid.name} of {len(grid.groups)} groups in {len(grid.layers)} sets of layers"


def _repeats(table: pl.DataFrame) -> str:
    """How many repeats there are, and how many of them are no copies."""
    counts = table.group_by("sweep", "level").agg(pl.col("same_as").n_unique(), pl.col("repeat_index").n_unique())
    copies = len(counts.filter(pl.col("same_as") < pl.col("repeat_index")))
    return str(table["repeat_index"].n_unique()) + (f", at {copies} levels some are copies of others" if copies else "")


def description(shown: Shown) -> str:
    """A figure in words: from where to where each curve goes, and where its threshold is."""
    parts = []
    for (sweep,), curve in shown.summary.sort("damage").group_by("sweep", maintain_order=True):
        first, last = curve.row(0, named=True), curve.row(-1, named=True)
        chance = "" if last.get("chance") is None else f", by chance {first['chance']:.2g} to {last['chance']:.2g}"
        parts.append(
            f"{sweep}: {first['mean']:.4g} at {first['level']:g} to {last['mean']:.4g} at {last['level']:g}{chance}, "
            + _reached(shown.ranking.filter(pl.col("sweep") == sweep).to_dicts())
        )
    return f"{shown.metric.label} along damage. {'; '.join(parts)}."


def _reached(ranked: Sequence[Mapping[str, Any]]) -> str:
    """What one row of a ranking, if there is one, says of the threshold."""
    if not ranked or not ranked[0]["compared"]:
        return "too few texts or repeats for a threshold"
    row = ranked[0]
    if row["threshold"] is None:
        return "no threshold reached"
    ends = _span(row["threshold_low"], row["threshold_high"])
    return f"threshold {row['threshold']:.3g}" + (f" ({ends})" if ends else "")


def samples(table: pl.DataFrame) -> Iterator[dict[str, Any]]:
    """Of every sweep what repeat 0 said to the first prompt, from the least damaged model to the most."""
    for (sweep,), rows in table.group_by("sweep", maintain_order=True):
        first = rows.filter(pl.col("repeat_index") == rows["repeat_index"].min())
        first = first.filter(pl.col("prompt_id") == first["prompt_id"].min()).sort("damage")
        yield {
            "sweep": sweep,
            "prompt": _shortened(first["prompt_text"][0]),
            "texts": [
                {
                    "level": row["level"],
                    "output": _shortened(row["output"]),
                    "ending": "a loop"
                    if row["looped"]
                    else LABELS.get(row["finish_reason"], row["finish_reason"] or ""),
                    "broken": bool(row["looped"] or row["nonfinite"]),
                }
                for row in first.iter_rows(named=True)
            ],
        }


def _shortened(text: str) -> str:
    # Control characters would reach the terminal of someone who saves the page as text.
    clean = "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text)
    return clean if len(clean) <= SHOWN_CHARACTERS else clean[:SHOWN_CHARACTERS] + " ..."


def failures(table: pl.DataFrame) -> pl.DataFrame:
    """Per sweep and level the shares of texts that ended in each way."""
    return (
        table.group_by("sweep", "level", "damage")
        .agg(
            texts=pl.len(),
            looped=pl.mean("looped"),
            nonfinite=pl.mean("nonfinite"),
            ended_by_itself=pl.mean("ended_by_itself"),
        )
        .sort("sweep", "damage")
    )
