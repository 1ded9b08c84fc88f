"""A condition of a spec in lm-evaluation-harness: on a local task the numbers of the exported checkpoint under `hf`.

Needs the extra `lm-eval`, which `nox -s lm_eval` installs; nothing is downloaded.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from helpers import done, records_in

CHOICE = """
task: local_choice
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
ROLLING = """
task: local_text
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""
WRITING = """
task: local_writing
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["!"], do_sample: false, max_gen_toks: 8}
metric_list: [{metric: exact_match}]
"""
TASKS = {"local_choice": CHOICE, "local_text": ROLLING, "local_writing": WRITING}
QUESTIONS = ["Who is it?", "Where do we go from here?", "What day comes after Monday?", "Is snow warm?", "Why?"]


@pytest.fixture
def tasks(finished: Path) -> Path:
    """Tasks as YAML with a data set of JSON lines, in the study's folder."""
    folder = finished / "tasks"
    folder.mkdir()
    choices = ["yes", "no, not at all", "Tuesday"]
    rows = [{"question": text, "choices": choices, "answer": i % 3} for i, text in enumerate(QUESTIONS)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(text.replace("DATA", str(folder / "data.jsonl")))
    return folder


def evaluate(folder: Path, command: list[str], model: str, arguments: str, out: str) -> dict[str, Any]:
    """The results file and the samples of an evaluation on the CPU."""
    words = ["--model", model, "--model_args", arguments, "--tasks", ",".join(TASKS), "--include_path", "tasks"]
    words += ["--device", "cpu", "--batch_size", "2", "--output_path", out, "--log_samples"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache"), "MKL_CBWR": "AUTO"}
    done(
        subprocess.run(
            [*command, *words], cwd=folder, env=os.environ | offline, capture_output=True, text=True, check=False
        )
    )
    (path,) = (folder / out).rglob("results_*.json")
    files = sorted(path.parent.glob("samples_*.jsonl"))
    samples = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return json.loads(path.read_text()) | {"samples": samples}


DEGRADE = [sys.executable, "-m", "runner.cli", "lm_eval"]
HARNESS = [sys.executable, "-m", "lm_eval"]


def test_the_numbers_are_those_of_the_exported_checkpoint(finished: Path, tasks: Path) -> None:
    """Every likelihood and every text of three kinds of task, and the digest in the results."""
    assert tasks.is_dir()
    words = {"sweep": "gauss", "level": "0.5", "repeat": "1"}
    where = " ".join(f"{key}={value}" for key, value in words.items())
    (results,) = (finished / "results").glob("outputs_mult_gauss_*.json")
    command = [sys.executable, "-m", "runner.cli", "export", str(results), "--where", where, "--out", "exported"]
    done(subprocess.run(command, cwd=finished, capture_output=True, text=True, check=False))

    arguments = ",".join(["spec=specs/tiny.toml", *(f"{key}={value}" for key, value in words.items())])
    ours = evaluate(finished, DEGRADE, "degrade", arguments, "ours")
    plain = evaluate(finished, HARNESS, "hf", "pretrained=exported", "plain")
    assert {*ours["results"]} == {*TASKS}
    assert ours["results"] == plain["results"]
    given = [[sample["resps"] for sample in found["samples"]] for found in (ours, plain)]
    assert given[0] == given[1]
    assert len(given[0]) == len(TASKS) * len(QUESTIONS)
    intact = evaluate(finished, DEGRADE, "degrade", "spec=specs/tiny.toml,sweep=gauss,level=0,repeat=0", "intact")
    assert intact["results"] != ours["results"]

    (digest,) = {
        record["weights_digest"]
        for record in records_in(finished / "results")
        if (record["degradation_method"], record["std_dev"], record["repeat_index"]) == ("mult_gauss", 0.5, 1)
    }
    assert ours["config"]["degrade"]["weights_digest"] == digest


def test_the_harness_can_find_the_model_by_itself() -> None:
    """By the entry point of the installed package, which releases after 0.4.13 read."""
    from lm_eval.api.registry import get_model

    (found,) = entry_points(group="lm_eval.models", name="degrade")
    model = found.load()  # which registers it
    assert get_model("degrade") is model


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("spec=specs/tiny.toml,level=0.5", "2 conditions are level=0.5"),
        ("spec=specs/none.toml", "no such spec file"),
        ("spec=specs/tiny.toml,sweep=gauss,level=0.5,repeat=0,dtype=float16", "dtype: the spec says this"),
    ],
)
def test_what_is_wrong_is_a_sentence(finished: Path, tasks: Path, arguments: str, words: str) -> None:
    """As of every other command."""
    command = [*DEGRADE, "--model", "degrade", "--model_args", arguments, "--tasks", "local_text"]
    run = subprocess.run(
        [*command, "--include_path", str(tasks)], cwd=finished, capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert words in run.stderr[run.stderr.index("degrade: ") :]
    assert "Traceback" not in run.stderr
