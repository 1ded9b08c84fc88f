"""`degrade report`: results files -> measures of every text, tables, figures and one page to look at."""

import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from runner.errors import SetupError
from runner.metric import COHERENCE, METRICS, SCORED
from runner.report_figures import draw, save
from runner.report_files import read_files
from runner.report_grids import Grid, cells, exact_sweeps, find_grids
from runner.report_maps import draw_maps, save_maps
from runner.report_page import Run, Shown, render
from runner.report_page_maps import ShownMap
from runner.report_runs import Facts, find_runs
from runner.report_statistics import rank, summarise
from runner.report_tables import measure_rows, tidy, with_coherence, with_scores
from runner.results_sidecar import read_sidecar

logger = logging.getLogger(__name__)

ALL = (*METRICS, COHERENCE, SCORED)
LONGEST_NAME, LONGEST_GRID = 100, 60  # in the name of a file, which may not be longer than 255 bytes
CHANCE = "chance"  # stands beside the right answers, and has neither a threshold nor a figure of its own


def report(results: Sequence[Path], out: Path, *, score: bool = False, texts: int, prompts: Path | None = None) -> Path:
    """Write page, tables and figures about some results files into a folder; the path of the page.

    `texts` is how many texts the coherence is measured on; `score` loads each model for the perplexity of its texts;
    `prompts` is a module, or a folder of modules, with answers to prompts that do not ship.

    Raises:
        SetupError: a file cannot be read or holds nothing, or the folder cannot be written.
        SpecError: `prompts` is no module of prompts.
    """
    files = read_files(results)
    logger.info("%d records in %d files", sum(map(len, files.values())), len(files))
    rows, facts = find_runs(files)
    for name, found in facts.items():
        for note in found.notes:
            logger.warning("%s: %s", name, note)
    table = with_coherence(measure_rows(rows, prompts), texts)
    if score:
        table = with_scores(table)
    summary, ranking = tabulate(table)
    figures = out / "figures"
    try:
        figures.mkdir(parents=True, exist_ok=True)
        table.write_parquet(out / "records.parquet")
        without_formulas(summary).write_csv(out / "metrics.csv")
        without_formulas(ranking).write_csv(out / "thresholds.csv")
        runs: list[Run] = []
        for number, name in enumerate(table["run"].unique(maintain_order=True), start=1):
            stem = re.sub(r"[^\w.-]+", "_", name)
            stem = stem if len(stem) <= LONGEST_NAME else f"{stem[:LONGEST_NAME]}_{number}"
            records, means, ranks = (of.filter(pl.col("run") == name) for of in (table, summary, ranking))
            runs.append(_report_run(name, facts[name], records, means, ranks, figures / stem))
        page = out / "report.html"
        page.write_text(render(runs, {metric.name: metric.label for metric in ALL}), encoding="utf-8")
    except OSError as error:
        raise SetupError(f"{error.filename or out}: cannot be written: {error.strerror}") from None
    return page


def _report_run(
    name: str, found: Facts, table: pl.DataFrame, summary: pl.DataFrame, ranking: pl.DataFrame, path: Path
) -> Run:
    """What there is to show of one run, its figures saved; `path` is what their names begin with."""
    grids = find_grids(summary)
    in_grid = pl.col("sweep").is_in([sweep for grid in grids for sweep in grid.curves])
    maps = list(_maps(grids, exact_sweeps(table), summary, ranking, path)) if grids else []
    files = table["file"].unique(maintain_order=True)
    return Run(
        name=name, facts=found, table=table, ranking=ranking.filter(~in_grid), grids=grids, maps=maps,
        figures=list(_figures(summary.filter(~in_grid), ranking.filter(~in_grid), path)),
        sidecars=[read_sidecar(Path(file)) for file in files],
    )  # fmt: skip


def tabulate(table: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Means and effects per level, and thresholds, from one row per record.

    Chance, how often texts are right for other prompts, is a column beside the right answers: it has no threshold.
    """
    summary = summarise(tidy(table))
    level = ("run", "sweep", "level")
    chance = summary.filter(pl.col("metric") == CHANCE).select(*level, metric=pl.lit("correct"), chance="mean")
    summary = summary.filter(pl.col("metric") != CHANCE).join(
        chance, on=(*level, "metric"), how="left", maintain_order="left"
    )
    return summary, rank(summary)


def without_formulas(table: pl.DataFrame) -> pl.DataFrame:
    """The table with an apostrophe before texts that a spreadsheet would compute: names come from anybody's records."""
    computed = pl.col(pl.String).str.contains(r"^[=+\-@\t\r]")
    return table.with_columns(pl.when(computed).then("'" + pl.col(pl.String)).otherwise(pl.col(pl.String)).name.keep())


def _figures(summary: pl.DataFrame, ranking: pl.DataFrame, path: Path) -> Iterator[Shown]:
    """A figure for every metric that changes in a run, saved as PNG and SVG; `path` has neither metric nor suffix."""
    levels = {sweep: rows["level"].unique().to_list() for (sweep,), rows in summary.group_by("sweep")}
    for metric in ALL:
        of_metric = pl.col("metric") == metric.name
        curves, found = summary.filter(of_metric), ranking.filter(of_metric)
        if curves["mean"].n_unique() > 1:
            svg = save(draw(metric, curves, found, levels), Path(f"{path}_{metric.name}"))
            yield Shown(metric, svg, curves, found)


def _maps(
    grids: Sequence[Grid], exact: Sequence[str], summary: pl.DataFrame, ranking: pl.DataFrame, path: Path
) -> Iterator[ShownMap]:
    """The maps of every grid and metric that changes in it, saved; drawn where a cell is certain.

    If no cell of any metric is, there may be too few repeats to tell, and all of them are drawn.
    """
    for number, grid in enumerate(grids, start=1):
        slug = re.sub(r"[^\w.-]+", "_", grid.name)[:LONGEST_GRID] + (f"_{number}" if len(grids) > 1 else "")
        tables = [(metric, cells(grid, metric.name, summary, ranking, exact)) for metric in ALL]
        changed = [(metric, found) for metric, found in tables if found["value"].n_unique() > 1]
        any_certain = any(found["certain"].any() for _, found in changed)
        for metric, found in changed:
            file = Path(f"{path}_{slug}_{metric.name}_map")
            without_formulas(found).write_csv(f"{file}.csv")
            drawn = found["certain"].any() or not any_certain
            svg = save_maps(draw_maps(metric, grid, found), file) if drawn else None
            yield ShownMap(metric, grid, found, file.name, svg)
