"""`degrade report`, through the command: planted effects come out right, real records give a whole report."""

import json
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from forkserver import ForkServer
from helpers import PROGRAMS, Command, importing

from runner import report_pool
from runner.errors import SetupError, SpecError
from runner.metric import measure_all
from runner.report import report as make_report
from runner.report import without_formulas

ROOT = Path(__file__).parents[1]
SAMPLES = sorted((ROOT / "results" / "samples").glob("outputs_*.json"))
WORDS = "the quiet river bends past an old stone mill where nobody grinds corn any longer"


@pytest.fixture
def report(forks: ForkServer) -> Command:
    """`degrade report` in a folder."""

    def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        return forks.run("report", *map(str, arguments), cwd=cwd)

    return run


def planted(level: float, repeat: int, prompt: int, **fields: Any) -> dict[str, Any]:
    """A record whose number of tokens is planted: its mean falls by 8 for each 0.1 of damage, spread +-4, +-8, +-1."""
    record = {
        "timestamp": "2026-11-22T12:00:00+00:00", "experiment_id": "x", "config_name": "planted",
        "model_name": "a/model",
        "degradation_method": "mult_gauss", "param_group_name": "attn_only", "std_dev": level,
        "level_value": level,
        "repeat_index": repeat, "seed": 42 + repeat, "prompt_id": prompt, "prompt_text": f"Question {prompt}",
        "output": f"{WORDS} {repeat}",
        "tokens": 200 - round(80 * level) + (4, -4, 8, -8)[(prompt - 1) % 4] + (1, -1)[repeat % 2],
        "finish_reason": "length", "image_used": False,
    }  # fmt: skip
    return {**record, **fields}


def write(path: Path, records: list[dict[str, Any]], indent: int | None = None) -> Path:
    """A results file of these records."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        json.dumps(records, indent=indent) if indent else "[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n"
    )
    return path


def study(prompts: int = 16, **fields: Any) -> Iterator[dict[str, Any]]:
    """Three levels, two repeats, sixteen prompts."""
    for level in (0.0, 0.1, 0.2):
        for repeat in (0, 1):
            for prompt in range(1, prompts + 1):
                yield planted(level, repeat, prompt, **fields)


def tables(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """What a report wrote: records, metrics and thresholds."""
    return (
        pl.read_parquet(folder / "records.parquet"),
        pl.read_csv(folder / "metrics.csv", infer_schema_length=None),
        pl.read_csv(folder / "thresholds.csv", infer_schema_length=None),
    )


def made(out: Path, *files: Path, texts: int = 0, **options: Any) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """The tables of a report that was made in this process."""
    make_report(files, out, texts=texts, **options)
    return tables(out)


@pytest.mark.slow
def test_planted_effects_come_out(report: Command, tmp_path: Path) -> None:
    """Means, errors, effect sizes and the threshold with its interval are those of a hand calculation."""
    done = report(write(tmp_path / "outputs_x.json", list(study())), "--coherence-texts", "0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    _, metrics, thresholds = tables(tmp_path / "report")
    table = metrics.filter(pl.col("metric") == "tokens").sort("level")
    assert table["mean"].to_list() == [200, 192, 184]
    # Each repeat has deviations 4, -4, 8, -8 four times, 640 squared, and its mean is 1 above or below that of both.
    deviation = (640 / 16 + 2) ** 0.5
    assert table["d"].to_list() == pytest.approx([0, -8 / deviation, -16 / deviation], rel=1e-9)
    assert table["standard_error"].to_list() == pytest.approx([1] * 3, rel=1e-9)
    assert (table["high"] - table["mean"]).to_list() == pytest.approx([12.7062] * 3, abs=1e-4)
    found = thresholds.filter(pl.col("metric") == "tokens")
    # |d| = 0.8 lies between 0 (d = 0) and 0.1 (d = 1.23): at 0.1 x 0.8 / 1.23.
    assert found["threshold"].to_list() == pytest.approx([0.1 * 0.8 * deviation / 8], rel=1e-9)
    assert found["threshold_low"][0] < found["threshold"][0]
    assert found["rho"].to_list() == pytest.approx([-1])
    assert found["p"].to_list() == pytest.approx([1 / 6])


@pytest.mark.slow
def test_runs_are_told_apart_by_their_settings(tmp_path: Path) -> None:
    """Another suffix, temperature, dtype, seed, picture or digest is another run, named by that, and never pooled."""
    settings: dict[str, dict[str, Any]] = {
        "a": {},
        "suffix": {"experiment_id": "mult_gauss|a/model|other"},
        "temperature": {"gen_params": {"temperature": 0.5, "top_k": 64}},
        "dtype": {"dtype": "bfloat16"},
        "picture": {"image_filename": "b.png"},
        "digest": {"model_digest": "2"},
    }
    same = {"experiment_id": "mult_gauss|a/model|x", "dtype": "float32",
            "gen_params": {"temperature": 1.0, "top_k": 64},
            "image_filename": "a.png", "model_digest": "1"}  # fmt: skip
    files = [
        write(tmp_path / f"outputs_{name}.json", list(study(4, **{**same, **other})))
        for name, other in settings.items()
    ]
    shifted = [record | {"seed": record["seed"] + 100} for record in study(4, **same)]
    table, metrics, _ = made(tmp_path / "out", *files, write(tmp_path / "outputs_seed.json", shifted))
    assert set(table.group_by("run").len()["len"]) == {24}
    assert table["run"].n_unique() == 7
    assert set(metrics.filter(pl.col("metric") == "tokens")["n"]) == {8}
    page = (tmp_path / "out" / "report.html").read_text()
    for words in ("name_suffix other", "temperature 0.5", "dtype bfloat16", "b.png", "seed 142", "model_digest 2"):
        assert words in page, words


def test_records_from_before_a_digest_was_written_are_of_the_same_run(tmp_path: Path) -> None:
    """A file that an older version began and a newer one went on with is one run."""
    records = [record | ({"model_digest": "1"} if record["repeat_index"] else {}) for record in study(4)]
    table, _, _ = made(tmp_path / "out", write(tmp_path / "outputs_x.json", records))
    assert table["run"].unique().to_list() == ["planted, model"]


def test_a_key_that_is_there_twice_counts_once_and_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A kept copy beside the file that it is a copy of changes no number; files and count are named."""
    records = list(study(4))
    file = write(tmp_path / "outputs_x.json", records)
    copy = write(
        tmp_path / "outputs_x_2026-11-22T10-15-00.json", [record | {"output": "other"} for record in records[:5]]
    )
    once, _, _ = made(tmp_path / "once", file)
    twice, metrics, _ = made(tmp_path / "twice", file, copy)
    assert once.equals(twice)
    assert set(metrics.filter(pl.col("metric") == "tokens")["n"]) == {8}
    said = (
        "5 records are there more than once, 5 of them with another text, and counted once, the first in this order: "
        f"{file}, {copy}"
    )
    assert said in caplog.text
    assert said.replace("'", "&#39;") in (tmp_path / "twice" / "report.html").read_text()


def test_another_shape_within_a_run_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Texts of batches of another shape may differ for that alone: a warning, and a line in the report."""
    records = [
        record | {"batch_size_effective": 4 if record["std_dev"] else 8, "padded_length": 40} for record in study(4)
    ]
    made(tmp_path / "out", write(tmp_path / "outputs_x.json", records))
    said = "batch_size_effective is not the same everywhere: 8 in 8 records, 4 in 16 records"
    assert said in caplog.text
    assert said in (tmp_path / "out" / "report.html").read_text()
    assert "padded_length is not" not in caplog.text


@pytest.mark.parametrize("digests", [True, False])
def test_greedy_repeats_of_one_model_are_one_repeat(tmp_path: Path, *, digests: bool) -> None:
    """What is the same five times is known once: no error and no interval; damaged models that differ still count."""
    records = [
        planted(level, repeat, prompt, do_sample=False, output=f"{WORDS} {level} {repeat if level else 0}",
                tokens=100 + prompt + (round(10 * level) * repeat),
                weights_digest=f"{repeat if level else 0}" if digests else None)
        for level in (0.0, 0.5) for repeat in range(5) for prompt in range(1, 41)
    ]  # fmt: skip
    table, metrics, _ = made(tmp_path / "out", write(tmp_path / "outputs_x.json", records))
    assert len(table) == 400
    tokens = metrics.filter(pl.col("metric") == "tokens").sort("level")
    assert tokens["repeats"].to_list() == [1, 5]
    assert tokens["n"].to_list() == [40, 200]
    assert tokens["standard_error"].is_null().to_list() == [True, False]
    assert tokens["d"].null_count() == 0


def test_sampled_repeats_of_the_undamaged_model_are_repeats(tmp_path: Path) -> None:
    """One model that is asked with other seeds says other things, and a short answer may well be the same twice."""
    said = (("Yes.", "No."), ("No.", "Yes."), ("Yes.", "No."))
    records = [
        planted(0.0, repeat, prompt, do_sample=True, weights_digest="0", output=text)
        for repeat, texts in enumerate(said) for prompt, text in enumerate(texts, start=1)
    ]  # fmt: skip
    _, metrics, _ = made(tmp_path / "out", write(tmp_path / "outputs_x.json", records))
    assert metrics.filter(pl.col("metric") == "tokens")["repeats"].to_list() == [3]


@pytest.mark.slow
def test_perplexity_of_every_damaged_model_has_a_threshold(tmp_path: Path) -> None:
    """On every record it is one number for each damaged model and one for the intact; on repeat 0 alone it has none."""
    records = [
        planted(level, repeat, prompt, weights_digest=f"{level}{repeat if level else ''}",
                perplexity=10.0 * (1 + 50 * level) * (1 + repeat * level))
        for level in (0.0, 0.1, 0.2) for repeat in range(3) for prompt in (1, 2)
    ]  # fmt: skip
    _, metrics, thresholds = made(tmp_path / "every", write(tmp_path / "outputs_x.json", records))
    assert metrics.filter(pl.col("metric") == "perplexity")["n"].to_list() == [1, 3, 3]
    assert thresholds.filter(pl.col("metric") == "perplexity")["threshold"][0] < 0.1
    older = [
        record | {"perplexity": record["perplexity"] if record["repeat_index"] == 0 else None} for record in records
    ]
    _, metrics, thresholds = made(tmp_path / "first", write(tmp_path / "outputs_x.json", older))
    assert metrics.filter(pl.col("metric") == "perplexity")["n"].to_list() == [1, 1, 1]
    assert thresholds.filter(pl.col("metric") == "perplexity")["threshold"].to_list() == [None]
    nothing = [record | {"perplexity": None} for record in records]
    _, metrics, _ = made(tmp_path / "none", write(tmp_path / "outputs_x.json", nothing))
    assert "perplexity" not in metrics["metric"].to_list()


@pytest.mark.slow
def test_coherence_is_spread_over_prompts_and_repeats(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Few texts of a level are of many prompts and of all repeats, the same at every level, and have no effect size."""
    records = [
        planted(level, repeat, prompt, output=f"The river bends {prompt} times. The mill of {repeat} stood still.")
        for level in (0.0, 0.1) for repeat in range(4) for prompt in range(1, 13)
    ]  # fmt: skip
    file = write(
        tmp_path / "outputs_x.json", [record | {"weights_digest": str(record["repeat_index"])} for record in records]
    )
    table, metrics, thresholds = made(tmp_path / "few", file, texts=16)
    for (_,), rows in table.drop_nulls("coherence").group_by("level"):
        assert (len(rows), rows["prompt_id"].n_unique()) == (8, 8)
        assert sorted(rows["repeat_index"].to_list()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert metrics.filter(pl.col("metric") == "coherence")["d"].null_count() == 2
    assert thresholds.filter(pl.col("metric") == "coherence")["compared"].to_list() == [0]
    assert "--coherence-texts 60" in caplog.text
    _, metrics, _ = made(tmp_path / "enough", file, texts=60)
    assert metrics.filter(pl.col("metric") == "coherence")["d"].null_count() == 0


def test_chance_stands_beside_the_right_answers(tmp_path: Path) -> None:
    """Texts that say what other prompts ask for are right by chance: in the table, the figure and the page."""
    asked = {"What is 47 + 38? Answer with a number only.": "85",
             "How much is 14 times 6? Reply with the number and nothing else.": "85",
             "Subtract 267 from 503. Give just the result.": "236"}  # fmt: skip
    records = [
        planted(level, 0, number, prompt_text=text, output=said if not level else "I do not know.")
        for level in (0.0, 0.1) for number, (text, said) in enumerate(asked.items(), start=1)
    ]  # fmt: skip
    _, metrics, thresholds = made(tmp_path / "out", write(tmp_path / "outputs_x.json", records))
    correct = metrics.filter(pl.col("metric") == "correct").sort("level")
    assert correct["mean"].to_list() == pytest.approx([2 / 3, 0])
    assert correct["chance"].to_list() == pytest.approx([1 / 6, 0])
    assert "chance" not in {*metrics["metric"], *thresholds["metric"]}
    assert "by chance 0.17 to 0" in (tmp_path / "out" / "report.html").read_text()
    assert ">chance</text>" in (tmp_path / "out" / "figures" / "planted_model_correct.svg").read_text()


@pytest.mark.slow
def test_nothing_beside_a_results_file_is_executed(report: Command, tmp_path: Path) -> None:
    """Prompts from elsewhere are a stranger's code: they are used if the user names them, and else left alone."""
    records = [
        planted(0.0, 0, 1, prompt_text="Who?", output="Me."),
        planted(0.0, 0, 2, prompt_text="What is 12 + 9? Answer with a number only.", output="21"),
    ]
    file = write(tmp_path / "results" / "outputs_x.json", records)
    file.with_suffix(".toml").write_text('name = "planted"\nprompts = "mine"\n[model]\nid = "a/model"\n')
    module = (
        "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"
        "from runner import Prompt\nPROMPTS = [Prompt('Who?', 'x', 'me')]\n"
    )
    for folder in (tmp_path / "prompts", tmp_path / "results" / "prompts", tmp_path / "results"):
        folder.mkdir(exist_ok=True)
        for name in ("mine", "demo", "iq"):
            (folder / f"{name}.py").write_text(module)
    done = report(file, "--coherence-texts", "0", "--out", tmp_path / "plain", cwd=file.parent)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("ran")) == []
    assert tables(tmp_path / "plain")[0]["correct"].to_list() == [None, 1]
    assert "prompts that do not ship: 1" in done.stderr
    table, _, _ = made(tmp_path / "named", file, prompts=tmp_path / "prompts" / "mine.py")
    assert table["correct"].to_list() == [1, 1]
    with pytest.raises(SpecError, match=r"gone\.py: there is no such module"):
        made(tmp_path / "none", file, prompts=tmp_path / "gone.py")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("repeat_index", 0.5), ("degradation_method", "gauss"), ("output", None), ("output", ["a"]), ("tokens", "many"),
        ("finish_reason", 7), ("timestamp", 0), ("tokens", 10**400),
    ],
)  # fmt: skip
def test_a_field_of_another_type_is_named(tmp_path: Path, field: str, value: object) -> None:
    """File, record, field and value: never a traceback of the table that it should go into."""
    records = list(study(2))
    records[3][field] = value
    with pytest.raises(SetupError, match=rf"outputs_x\.json: record 4: {field} is "):
        made(tmp_path / "out", write(tmp_path / "outputs_x.json", records))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("std_dev", "0.1"), ("std_dev", True), ("std_dev", math.nan), ("std_dev", None), ("repeat_index", "0"),
        ("param_group_name", None), ("prompt_text", 3), ("prompt_id", "1"), ("seed", 2**70),
        ("batch_size_effective", [1]),
    ],
)  # fmt: skip
def test_a_record_without_a_key_is_named_by_its_line(tmp_path: Path, field: str, value: object) -> None:
    """What a record is known by must be what it should be, or the file is damaged there."""
    records = list(study(2))
    records[3][field] = value
    with pytest.raises(SetupError, match=r"outputs_x\.json: line 5 is damaged"):
        made(tmp_path / "out", write(tmp_path / "outputs_x.json", records))


def test_the_page_shows_what_was_guarded(tmp_path: Path) -> None:
    """Settings and digests of a run, so that two reports can be told apart by reading them."""
    file = write(tmp_path / "outputs_x.json", list(study(2, model_digest="0123456789abcdef", dtype="bfloat16")))
    made(tmp_path / "out", file)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "model_digest: 0123456789abcdef" in page
    assert "dtype: bfloat16" in page


@pytest.mark.slow
def test_half_a_character_and_strange_settings_are_reported_on(tmp_path: Path) -> None:
    """JSON can hold half of a pair of surrogates, and any setting anything."""
    records = list(study(2, gen_params={"top_k": [1], "x": {"y": None}}, temperature={"a": 1}))
    records[0] |= {"output": "a \ud800 b", "prompt_text": "\udfff?"}
    table, _, _ = made(tmp_path / "out", write(tmp_path / "outputs_x.json", records))
    assert "a ? b" in table["output"].to_list()


@pytest.mark.slow
@pytest.mark.parametrize("pool", [False, True], ids=["alone", "pool"])
def test_an_interrupted_report_ends_with_one_line(tmp_path: Path, *, pool: bool) -> None:
    """Ctrl-C goes to all processes of a terminal; one of them says so, in one line, with exit code 130."""
    records = [planted(level / 1000, repeat, prompt, output=f"{WORDS} {WORDS} {level} {repeat}. " * 8)
               for level in range(500) for repeat in (0, 1) for prompt in (1, 2, 3, 4)]  # fmt: skip
    file = write(tmp_path / "outputs_x.json", records)
    command = [sys.executable, PROGRAMS / "report_in_a_pool.py", file, "--coherence-texts", "0"]
    nobody, pipe = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=nobody, stderr=pipe, text=True, start_new_session=True,
        env=importing(),
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if "measuring" in line:
                break
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while pool and len(children.read_text().split()) < 2:  # the tracker of resources, and a worker that starts
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130
    assert "Traceback" not in said
    assert said.strip().splitlines()[-1].startswith("degrade: interrupted")
    assert len(said.strip().splitlines()) == 1


@pytest.mark.slow
def test_several_processes_measure_what_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number of every text, in the order of the texts, though the last chunk is the first to be done."""
    texts = [f"{WORDS} {number}. " * (1 + (2000 - number) // 400) for number in range(2000)]
    asked = [(planted(0.1, 0, number, output=text), None, ()) for number, text in enumerate(texts)]
    monkeypatch.setattr(report_pool, "POOL_SECONDS", 0)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    assert report_pool.in_parallel(asked) == measure_all(asked)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime > before + 0.5  # others have measured


@pytest.mark.slow
def test_planted_texts_come_out(report: Command, tmp_path: Path) -> None:
    """Loops, broken logits, right answers and content units are found in the records that they were planted in."""
    records = [
        planted(0.0, 0, 1, prompt_text="What is the capital of France?", output="It is Paris."),
        planted(0.0, 0, 2, image_used=True, output="A boy on a stool steals a cookie while the sink overflows."),
        planted(0.2, 0, 1, prompt_text="What is the capital of France?", output="It is the the the."),
        planted(0.2, 0, 3, output="I went home and then " + "round and about " * 12),
        planted(0.2, 0, 4, output="", tokens=0, finish_reason="nonfinite"),
    ]
    done = report(write(tmp_path / "outputs_x.json", records), "--out", "there", "--coherence-texts", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = pl.read_parquet(tmp_path / "there" / "records.parquet").sort("level", "prompt_id")
    assert table["correct"].to_list() == [1, None, 0, None, None]
    assert table["looped"].to_list() == [0, 0, 0, 1, 0]
    assert table["loop_start"].to_list()[3] == pytest.approx(5 / 41)
    assert table["nonfinite"].to_list() == [0, 0, 0, 0, 1]
    units = table["content_units"].to_list()
    assert units[0] is None
    assert units[1] >= 5


@pytest.mark.slow
def test_real_records_give_a_whole_report(report: Command, tmp_path: Path) -> None:
    """The samples give page, tables and a PNG and an SVG of every figure, and damage hurts there as it should."""
    done = report(*SAMPLES, "--out", tmp_path, "--coherence-texts", "30", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = pl.read_parquet(tmp_path / "records.parquet")
    assert len(table) == sum(len(json.loads(path.read_text())) for path in SAMPLES)
    assert table["coherence"].is_not_null().sum() > 10
    figures = sorted((tmp_path / "figures").iterdir())
    assert {path.suffix for path in figures} == {".png", ".svg"}
    assert len({path.stem for path in figures}) * 2 == len(figures) >= 16
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == len(figures) // 2
    summary = pl.read_csv(tmp_path / "metrics.csv")
    worst = summary.filter(pl.col("method") == "mult_gauss", pl.col("level") == 0.6)
    unknown = dict(worst.filter(pl.col("metric") == "unknown_words").select("group", "mean").iter_rows())
    assert unknown["mlp_only"] > 2 * unknown["attn_only"]


@pytest.mark.slow
def test_quantisation_damages_to_the_right(report: Command, tmp_path: Path) -> None:
    """Fewer quantisation levels are more damage; the reference is the undamaged model of another sweep of the run."""
    quant = [planted(level, 0, prompt, degradation_method="uni_quant", std_dev=level, tokens=tokens + prompt)
             for level, tokens in ((256, 200), (16, 150), (4, 100)) for prompt in (1, 2, 3)]  # fmt: skip
    file = write(tmp_path / "outputs_x.json", [*study(), *quant])
    assert report(file, "--coherence-texts", "0", cwd=tmp_path).returncode == 0
    table = pl.read_csv(tmp_path / "report" / "metrics.csv")
    table = table.filter(pl.col("metric") == "tokens", pl.col("method") == "uni_quant").sort("damage")
    assert table["level"].to_list() == [256, 16, 4]
    assert set(table["reference"]) == {"undamaged"}


@pytest.mark.slow
def test_the_older_format_is_read(report: Command, tmp_path: Path) -> None:
    """An indented array without the fields that came later gives a report too, from what it says."""
    later = ("level_value", "finish_reason", "config_name", "seed", "timestamp", "tokens")
    older = [{key: value for key, value in record.items() if key not in later} for record in study()]
    done = report(write(tmp_path / "old.json", older, indent=2), "--coherence-texts", "0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report" / "report.html").stat().st_size > 5000


@pytest.mark.slow
def test_scores_under_the_intact_model(report: Command, tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    """`--score` loads the model that the sidecar names, and gives what the model gives each text."""
    from runner.model_likelihood import perplexity
    from runner.model_load import load_model, load_tokenizer, locate
    from runner.spec import Model

    file = write(tmp_path / "outputs_x.json", [planted(level, 0, 1) for level in (0.0, 0.1)])
    missing = report(file, "--score", "--coherence-texts", "0", cwd=tmp_path)
    assert (missing.returncode, "outputs_x.toml" in missing.stderr) == (3, True), missing.stderr
    (tmp_path / "outputs_x.toml").write_text(
        'name = "planted"\nprompts = "demo"\n[model]\n'
        f'id = "{checkpoints["llama"]}"\ndtype = "float32"\ndevice = "cpu"\n'
        '[[sweeps]]\nname = "s"\nmethod = "mult_gauss"\ngroup = "attn_only"\nlevels = [0.0, 0.1]\n'
    )
    done = report(file, "--score", "--coherence-texts", "0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = pl.read_parquet(tmp_path / "report" / "records.parquet")["scored_perplexity"].to_list()
    source = locate(Model(id=str(checkpoints["llama"])))
    import torch

    model = load_model(source, "float32", torch.device("cpu"))
    expected = perplexity(model, load_tokenizer(source)(f"{WORDS} 0").input_ids)
    assert found == pytest.approx([expected] * 2, rel=1e-5)


def test_names_are_no_formulas() -> None:
    """What a spreadsheet would compute is text; numbers and all other texts stay."""
    names = ["=HYPERLINK(1)", "+1", "-1", "@x", "\t=1", "a=1", "", None]
    found = without_formulas(pl.DataFrame({"run": names, "level": [-1.0] * len(names)}))
    assert found["run"].to_list() == ["'=HYPERLINK(1)", "'+1", "'-1", "'@x", "'\t=1", "a=1", "", None]
    assert found["level"].to_list() == [-1.0] * len(names)


@pytest.mark.slow
def test_files_that_are_no_records(report: Command, tmp_path: Path) -> None:
    """A missing, empty or foreign file is one clear line and exit code 3; nothing is written."""
    (tmp_path / "empty.json").write_text("[\n]\n")
    (tmp_path / "foreign.json").write_text('{"a": 1}')
    for name, words in (("none.json", "no such file"), ("empty.json", "no records"), ("foreign.json", "foreign.json")):
        done = report(name, cwd=tmp_path)
        assert (done.returncode, words in done.stderr, "Traceback" in done.stderr) == (3, True, False), done.stderr
    assert not (tmp_path / "report").exists()
