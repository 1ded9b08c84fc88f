"""From records to one table: what each text is, and every number about it."""

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl

from runner.metric import COHERENCE, METRICS, SCORED
from runner.metric_loops import without_loop
from runner.metric_thinking import without_thinking
from runner.report_effects import FEWEST_TEXTS
from runner.report_pool import ToMeasure, in_parallel
from runner.report_runs import Row, find_runs, same_models
from runner.report_statistics import PER_MODEL
from runner.results_record import Record
from runner.spec import find_shipped
from runner.spec_methods import METHODS
from runner.task_prompts import Prompt, load_prompts, read_prompts

logger = logging.getLogger(__name__)

FALLING = [name for name, method in METHODS.items() if not method.rises]
# Levels whose damaged weights do not depend on a seed.
UNSEEDED = pl.any_horizontal(
    *(pl.col("method") == name for name, method in METHODS.items() if not method.random),
    *(
        (pl.col("method") == name) & (pl.col("level") == method.neutral)
        for name, method in METHODS.items()
        if method.neutral is not None
    ),
)

KEPT = ("repeat_index", "seed", "prompt_id", "prompt_text", "output", "finish_reason", "timestamp", "weights_digest")
_LEVEL = ("run", "sweep", "damage")
_LABELS = ("run", "sweep", "method", "group", "level", "damage", "repeat_index", "prompt_id")


def measure_records(files: Mapping[Path, Sequence[Record]], prompts: Path | None = None) -> pl.DataFrame:
    """One row per record of results files: what it is, what was said, and every metric; each key of a run once.

    Columns: run, file, sweep, method, group, level, damage (its rank in the sweep, 0 is the least), those of KEPT,
    same_as (the first repeat that is the same as this one, its own if none is), and the names of METRICS. Sorted by
    run, sweep, damage, repeat and prompt. Answers are those of the prompts that ship; only `prompts`, a module or a
    folder of them, is executed besides.

    Raises:
        SpecError: `prompts` is no module of prompts.
    """
    return measure_rows(find_runs(files)[0], prompts)


def measure_rows(rows: Sequence[Row], prompts: Path | None = None) -> pl.DataFrame:
    """`measure_records` of rows whose runs are known."""
    measured = in_parallel(list(_to_measure(rows, _known_prompts(prompts))))
    cells = [
        {
            "run": row.run,
            "file": str(row.path),
            "sweep": f"{row.record['degradation_method']} {row.record['param_group_name']}",
            "method": row.record["degradation_method"],
            "group": row.record["param_group_name"],
            "level": float(row.record["std_dev"]),
            **{name: row.record.get(name) for name in KEPT},
            "same_as": same,
            **numbers,
        }
        for row, same, numbers in zip(rows, same_models(rows), measured, strict=True)
    ]
    schema = dict.fromkeys((metric.name for metric in METRICS), pl.Float64)
    table = pl.DataFrame(cells, infer_schema_length=None, schema_overrides=schema)
    severity = pl.when(pl.col("method").is_in(FALLING)).then(-pl.col("level")).otherwise(pl.col("level"))
    damage = (severity.rank("dense").over("run", "sweep") - 1).cast(pl.Int64).alias("damage")
    return table.with_columns(damage).sort("run", "sweep", "damage", "repeat_index", "prompt_id", maintain_order=True)


def _known_prompts(own: Path | None) -> dict[str, Prompt]:
    """Prompts by their text: those that the user names, then those that ship.

    A results file from elsewhere must execute nothing, so what lies beside it is not looked at.
    """
    shipped = find_shipped("prompts")
    known: dict[str, Prompt] = {}
    modules = (
        [] if own is None else [read_prompts(path) for path in (sorted(own.glob("*.py")) if own.is_dir() else [own])]
    )
    for prompts in (*modules, *(load_prompts(path.stem, shipped) for path in sorted(shipped.glob("*.py")))):
        for prompt in prompts:
            known.setdefault(prompt.text, prompt)
    return known


def _to_measure(rows: Sequence[Row], known: Mapping[str, Prompt]) -> Iterator[ToMeasure]:
    """Each record with its prompt and with the answers of the other prompts of its run and category."""
    asked: dict[str, dict[str, None]] = defaultdict(dict)  # in order
    for row in rows:
        asked[row.run][row.record["prompt_text"]] = None
    unknown = {text for texts in asked.values() for text in texts if text not in known}
    if unknown:
        logger.warning(
            "prompts that do not ship: %d; no answer to them is judged, unless --prompts names their module",
            len(unknown),
        )
    rivals = {
        (run, text): _rivals(known[text], [known[other] for other in texts if other in known])
        for run, texts in asked.items()
        for text in texts
        if text in known
    }
    for row in rows:
        text = row.record["prompt_text"]
        yield row.record, known.get(text), rivals.get((row.run, text), ())


def _rivals(prompt: Prompt, others: Sequence[Prompt]) -> tuple[tuple[str, ...], ...]:
    """The answers of prompts of the same category that share none with this one."""
    own = {answer.lower() for answer in prompt.answer}
    return tuple(
        other.answer
        for other in others
        if other.answer and other.category == prompt.category and own.isdisjoint(map(str.lower, other.answer))
    )


def with_coherence(table: pl.DataFrame, texts: int) -> pl.DataFrame:
    """Local coherence of so many texts, as many of every level, spread over its prompts and repeats.

    Of a level the first text of every prompt comes before the second of any, and the repeats take turns, so that
    few texts are of many prompts and of all repeats; the same ones at every level.
    """
    if texts == 0:
        return table
    from runner.metric_coherence import coherence  # brings torch

    prompt = pl.col("prompt_text").rank("dense").over("run") - 1
    repeat = pl.col("repeat_index").rank("dense").over(_LEVEL).cast(pl.Int64) - 1
    turn = (repeat - pl.col("prompt").cast(pl.Int64)) % (pl.col("repeat").max().over(_LEVEL) + 1)
    candidates = (
        table.with_row_index("row")
        .filter(pl.col("same_as") == pl.col("repeat_index"))
        .with_columns(prompt=prompt.cast(pl.Int64), repeat=repeat)
        .with_columns(turn=turn)
        .with_columns(order=pl.int_range(pl.len()).over(_LEVEL, order_by=("turn", "prompt")))
    )
    chosen = candidates.sort("order", "row").head(texts)
    fewest = chosen.group_by(_LEVEL).len()["len"].min()
    levels = candidates.select(_LEVEL).n_unique()
    logger.info("coherence of %d texts, %s of a level", len(chosen), fewest)
    if len(chosen) < min(len(candidates), FEWEST_TEXTS * levels):
        logger.warning(
            "coherence: fewer than %d texts of a level have no effect size; --coherence-texts %d gives all of them one",
            FEWEST_TEXTS, FEWEST_TEXTS * levels,
        )  # fmt: skip
    values = coherence([without_loop(without_thinking(text)) for text in chosen["output"]])
    measured = pl.DataFrame({"row": chosen["row"], COHERENCE.name: pl.Series(values, dtype=pl.Float64)})
    return table.with_row_index("row").join(measured, on="row", how="left", maintain_order="left").drop("row")


def with_scores(table: pl.DataFrame) -> pl.DataFrame:
    """The perplexity of every text under the intact model that its damaged version came from.

    Raises:
        SetupError: the model of a results file is not known, or cannot be had.
    """
    from runner.metric_perplexity import perplexities

    scores: dict[tuple[str, str], float | None] = {}
    for (file,), rows in table.group_by("file", maintain_order=True):
        found = perplexities(Path(str(file)), map(without_thinking, rows["output"]))
        scores |= {(str(file), text): value for text, value in found.items()}
    column = [scores[file, without_thinking(text)] for file, text in table.select("file", "output").iter_rows()]
    return table.with_columns(pl.Series(SCORED.name, column, dtype=pl.Float64))


def tidy(table: pl.DataFrame) -> pl.DataFrame:
    """One row per record and metric. Repeats that are the same are one, and a number of a model counts once for it.

    The perplexity of a fixed text is of the damaged model; equal digests of weights, and all repeats of a level that
    depends on no seed, are one model.
    """
    names = [metric.name for metric in (*METRICS, COHERENCE, SCORED) if metric.name in table.columns]
    once = table.with_columns(repeat_index=pl.col("same_as")).unique(
        (*_LEVEL, "repeat_index", "prompt_text"), keep="first", maintain_order=True
    )
    of_texts = [name for name in names if name not in PER_MODEL]
    long = once.unpivot(of_texts, index=_LABELS, variable_name="metric").drop_nulls("value")
    model = (
        pl.when(UNSEEDED)
        .then(pl.lit(""))
        .otherwise(pl.coalesce("weights_digest", pl.col("repeat_index").cast(pl.String)))
    )
    of_models = [
        table.drop_nulls(name)
        .with_columns(model=model)
        .unique((*_LEVEL, "model"), keep="first", maintain_order=True)
        .select(*_LABELS, metric=pl.lit(name), value=pl.col(name))
        for name in names
        if name in PER_MODEL
    ]
    return pl.concat([long, *of_models])
