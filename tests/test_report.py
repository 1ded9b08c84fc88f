"""`degrade report`, through the command: planted effects come out right, real records give a whole report."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

ROOT = Path(__file__).parents[1]
SAMPLES = sorted((ROOT / "results" / "samples").glob("outputs_*.json"))
WORDS = "the quiet river bends past an old stone mill where nobody grinds corn any longer"


def report(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `degrade report` in a folder."""
    return subprocess.run(
        [sys.executable, "-m", "runner.cli", "report", *map(str, arguments)],
        cwd=cwd, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def planted(level: float, repeat: int, prompt: int, **fields: Any) -> dict[str, Any]:
    """A record whose number of tokens is planted: its mean falls by 8 for each 0.1 of damage, spread +-4 and +-8."""
    record = {
        "timestamp": "2026-11-22T12:00:00+00:00", "experiment_id": "x", "config_name": "planted",
        "model_name": "a/model",
        "degradation_method": "mult_gauss", "param_group_name": "attn_only", "std_dev": level,
        "level_value": level,
        "repeat_index": repeat, "seed": 42 + repeat, "prompt_id": prompt, "prompt_text": f"Question {prompt}",
        "output": WORDS, "tokens": 200 - round(80 * level) + (4, -4, 8, -8)[prompt - 1],
        "finish_reason": "length", "image_used": False,
    }  # fmt: skip
    return {**record, **fields}


def write(path: Path, records: list[dict[str, Any]], indent: int | None = None) -> Path:
    """A results file of these records."""
    path.write_text(
        json.dumps(records, indent=indent) if indent else "[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n"
    )
    return path


def study() -> Iterator[dict[str, Any]]:
    """Three levels, two repeats, four prompts."""
    for level in (0.0, 0.1, 0.2):
        for repeat in (0, 1):
            for prompt in (1, 2, 3, 4):
                yield planted(level, repeat, prompt)


def test_planted_effects_come_out(tmp_path: Path) -> None:
    """Means, effect sizes and the threshold are those of a hand calculation."""
    done = report(write(tmp_path / "outputs_x.json", list(study())), "--coherence-texts", "0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = pl.read_csv(tmp_path / "report" / "metrics.csv").filter(pl.col("metric") == "tokens").sort("level")
    assert table["mean"].to_list() == [200, 192, 184]
    # Deviations 4, -4, 8, -8 twice: the sum of squares is 320, the variance 320 / 7 at every level.
    deviation = (320 / 7) ** 0.5
    assert table["d"].to_list() == pytest.approx([0, -8 / deviation, -16 / deviation], rel=1e-9)
    assert table["standard_error"].to_list() == pytest.approx([deviation / 8**0.5] * 3, rel=1e-9)
    ranking = pl.read_csv(tmp_path / "report" / "thresholds.csv").filter(pl.col("metric") == "tokens")
    # |d| = 0.8 lies between 0 (d = 0) and 0.1 (d = 1.18): at 0.1 x 0.8 / 1.18.
    assert ranking["threshold"].to_list() == pytest.approx([0.1 * 0.8 * deviation / 8], rel=1e-9)
    assert ranking["rho"].to_list() == pytest.approx([-1])


def test_planted_texts_come_out(tmp_path: Path) -> None:
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


def test_real_records_give_a_whole_report(tmp_path: Path) -> None:
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


def test_quantisation_damages_to_the_right(tmp_path: Path) -> None:
    """Fewer quantisation levels are more damage; the reference is the undamaged model of another sweep of the run."""
    quant = [planted(level, 0, prompt, degradation_method="uni_quant", std_dev=level, tokens=tokens + prompt)
             for level, tokens in ((256, 200), (16, 150), (4, 100)) for prompt in (1, 2, 3)]  # fmt: skip
    file = write(tmp_path / "outputs_x.json", [*study(), *quant])
    assert report(file, "--coherence-texts", "0", cwd=tmp_path).returncode == 0
    table = pl.read_csv(tmp_path / "report" / "metrics.csv")
    table = table.filter(pl.col("metric") == "tokens", pl.col("method") == "uni_quant").sort("damage")
    assert table["level"].to_list() == [256, 16, 4]
    assert set(table["reference"]) == {"undamaged"}


def test_the_older_format_is_read(tmp_path: Path) -> None:
    """An indented array without the fields that came later gives a report too, from what it says."""
    later = ("level_value", "finish_reason", "config_name", "seed", "timestamp", "tokens")
    older = [{key: value for key, value in record.items() if key not in later} for record in study()]
    done = report(write(tmp_path / "old.json", older, indent=2), "--coherence-texts", "0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report" / "report.html").stat().st_size > 5000


def test_scores_under_the_intact_model(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    """`--score` loads the model that the sidecar names, and gives what the model gives each text."""
    from runner.model import load_model, load_tokenizer, locate
    from runner.perplexity import perplexity
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
    expected = perplexity(model, load_tokenizer(source)(WORDS).input_ids)
    assert found == pytest.approx([expected] * 2, rel=1e-5)


def test_files_that_are_no_records(tmp_path: Path) -> None:
    """A missing, empty or foreign file is one clear line and exit code 3; nothing is written."""
    (tmp_path / "empty.json").write_text("[\n]\n")
    (tmp_path / "foreign.json").write_text('{"a": 1}')
    for name, words in (("none.json", "no such file"), ("empty.json", "no records"), ("foreign.json", "foreign.json")):
        done = report(name, cwd=tmp_path)
        assert (done.returncode, words in done.stderr, "Traceback" in done.stderr) == (3, True, False), done.stderr
    assert not (tmp_path / "report").exists()
