"""`degrade report`: results files -> measures of every text, tables, figures and one page to look at."""

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import polars as pl

from runner.errors import SetupError, SpecError
from runner.figures import draw, save
from runner.layout import Record
from runner.metrics import METRICS, Metric, measure_all, without_loop
from runner.page import Run, Shown, render
from runner.prompt import Prompt, load_prompts
from runner.results import read_records, short_name
from runner.sidecar import read_sidecar
from runner.spec import find_shipped
from runner.statistics import rank, summarise

logger = logging.getLogger(__name__)

COHERENCE = Metric(
    name="coherence",
    label="Coherence of neighbouring sentences",
    unit="cosine",
    source="Foltz, Kintsch & Landauer 1998; embeddings: Reimers & Gurevych 2019",
)
SCORED = Metric(
    name="scored_perplexity",
    label="Perplexity of the text under the intact model",
    unit="perplexity",
    source="Jelinek et al. 1977",
)
ALL = (*METRICS, COHERENCE, SCORED)
CHUNK = 500
KEPT = ("repeat_index", "seed", "prompt_id", "prompt_text", "output", "finish_reason", "timestamp", "weights_digest")


def report(results: Sequence[Path], out: Path, *, score: bool = False, texts: int) -> Path:
    """Write page, tables and figures about some results files into a folder; the path of the page.

    `texts` is how many texts the coherence is measured on; `score` loads each model for the perplexity of its texts.

    Raises:
        SetupError: a file cannot be read or holds nothing, or the folder cannot be written.
    """
    files = {path: _records_of(path) for path in results}
    logger.info("%d records in %d files", sum(map(len, files.values())), len(files))
    table = _with_coherence(measure_records(files), texts)
    if score:
        table = _with_scores(table, files)
    summary = summarise(tidy(table))
    ranking = rank(summary)
    figures = out / "figures"
    try:
        figures.mkdir(parents=True, exist_ok=True)
        table.write_parquet(out / "records.parquet")
        summary.write_csv(out / "metrics.csv")
        ranking.write_csv(out / "thresholds.csv")
        runs = []
        for name in table["run"].unique(maintain_order=True):
            ours = pl.col("run") == name
            shown = list(_figures(name, summary.filter(ours), ranking.filter(ours), figures))
            sidecars = [read_sidecar(path) for path, records in files.items() if run_of(records[0]) == name]
            run = Run(
                name=name, table=table.filter(ours), ranking=ranking.filter(ours), figures=shown, sidecars=sidecars
            )
            runs.append(run)
        page = out / "report.html"
        page.write_text(render(runs, {metric.name: metric.label for metric in ALL}), encoding="utf-8")
    except OSError as error:
        raise SetupError(f"{error.filename or out}: cannot be written: {error.strerror}") from None
    return page


def _records_of(path: Path) -> Sequence[Record]:
    """The records of a file.

    Raises:
        SetupError: there is no such file, it cannot be read, or it holds no records.
    """
    records = read_records(path)
    if not records:
        raise SetupError(f"{path}: {'holds no records' if path.exists() else 'there is no such file'}")
    return records


def run_of(record: Record) -> str:
    """The name of the run that a record belongs to: its spec and its model."""
    return f"{record.get('config_name', 'unnamed')}, {short_name(str(record.get('model_name', 'unknown model')))}"


def _prompts(results: Sequence[Path]) -> dict[str, Prompt]:
    """Prompts by their text, for their answers: those of the runs where they are found, then those that ship."""
    found: dict[str, Prompt] = {}
    shipped = [file.stem for file in sorted(find_shipped("prompts").glob("*.py"))]
    named = [read_sidecar(path).get("prompts") for path in results]
    for name in (*(name for name in named if isinstance(name, str)), *shipped):
        try:
            prompts = load_prompts(name, results[0].parent)
        except SpecError:
            logger.warning("prompts %s are not here: their answers cannot be checked", name)
            continue
        for prompt in prompts:
            found.setdefault(prompt.text, prompt)
    return found


def measure_records(files: Mapping[Path, Sequence[Record]]) -> pl.DataFrame:
    """One row per record of results files: what it is, what was said, and every metric; on all cores.

    Columns: run, sweep, method, group, level, damage (its rank in the sweep, 0 is the least), those of KEPT, and the
    names of METRICS. Sorted by run, sweep, damage, repeat and prompt.
    """
    prompts = _prompts(list(files))
    records = [record for found in files.values() for record in found]
    questions = [(record, prompts.get(record["prompt_text"])) for record in records]
    chunks = [questions[start : start + CHUNK] for start in range(0, len(questions), CHUNK)]
    workers = min(os.cpu_count() or 1, len(chunks))
    if workers > 1:
        # Spawned: a fork would take along the threads of polars and torch in whatever state they are.
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            measured = [row for rows in pool.map(measure_all, chunks) for row in rows]
    else:
        measured = [row for chunk in chunks for row in measure_all(chunk)]
    rows = [
        {
            "run": run_of(record),
            "sweep": f"{record['degradation_method']} {record['param_group_name']}",
            "method": record["degradation_method"],
            "group": record["param_group_name"],
            "level": float(record["std_dev"]),
            **{name: record.get(name) for name in KEPT},
            **numbers,
        }
        for record, numbers in zip(records, measured, strict=True)
    ]
    schema = dict.fromkeys((metric.name for metric in METRICS), pl.Float64)
    table = pl.DataFrame(rows, infer_schema_length=None, schema_overrides=schema)
    severity = pl.when(pl.col("method") == "uni_quant").then(-pl.col("level")).otherwise(pl.col("level"))
    damage = (severity.rank("dense").over("run", "sweep") - 1).cast(pl.Int64).alias("damage")
    return table.with_columns(damage).sort("run", "sweep", "damage", "repeat_index", "prompt_id", maintain_order=True)


def _with_coherence(table: pl.DataFrame, texts: int) -> pl.DataFrame:
    """Local coherence of so many texts, spread evenly over all levels: the first of each, then the second, ..."""
    if texts == 0:
        return table
    from runner.coherence import coherence  # brings torch

    order = pl.int_range(pl.len()).over("run", "sweep", "damage", order_by=("prompt_id", "repeat_index"))
    chosen = table.with_row_index("row").with_columns(order=order).sort("order", "row").head(texts)
    logger.info("coherence of %d texts", len(chosen))
    values = coherence([without_loop(text) for text in chosen["output"]])
    measured = pl.DataFrame({"row": chosen["row"], COHERENCE.name: pl.Series(values, dtype=pl.Float64)})
    return table.with_row_index("row").join(measured, on="row", how="left", maintain_order="left").drop("row")


def _with_scores(table: pl.DataFrame, files: Mapping[Path, Sequence[Record]]) -> pl.DataFrame:
    """The perplexity of every text under the intact model that its damaged version came from."""
    from runner.scoring import perplexities

    scores: dict[tuple[str, str], float | None] = {}
    for path, records in files.items():
        found = perplexities(path, (record["output"] for record in records))
        scores |= {(run_of(records[0]), text): value for text, value in found.items()}
    column = [scores[key] for key in table.select("run", "output").iter_rows()]
    return table.with_columns(pl.Series(SCORED.name, column, dtype=pl.Float64))


def tidy(table: pl.DataFrame) -> pl.DataFrame:
    """One row per record and metric. The perplexity of a fixed text is one measurement per level and repeat."""
    labels = ["run", "sweep", "method", "group", "level", "damage", "repeat_index", "prompt_id"]
    names = [metric.name for metric in ALL if metric.name in table.columns]
    long = table.unpivot(names, index=labels, variable_name="metric").drop_nulls("value")
    once = ["run", "sweep", "level", "repeat_index", "metric"]
    fixed = long.filter(pl.col("metric") == "perplexity").unique(once, keep="first", maintain_order=True)
    return pl.concat([long.filter(pl.col("metric") != "perplexity"), fixed])


def _figures(run: str, summary: pl.DataFrame, ranking: pl.DataFrame, folder: Path) -> Iterator[Shown]:
    """A figure for every metric that changes in a run, saved as PNG and SVG."""
    levels = {sweep: rows["level"].unique().to_list() for (sweep,), rows in summary.group_by("sweep")}
    for metric in ALL:
        of_metric = pl.col("metric") == metric.name
        curves, found = summary.filter(of_metric), ranking.filter(of_metric)
        if curves["mean"].n_unique() > 1:
            svg = save(draw(metric, curves, found, levels), folder / re.sub(r"[^\w.-]+", "_", f"{run}_{metric.name}"))
            yield Shown(metric, svg, curves, found)
