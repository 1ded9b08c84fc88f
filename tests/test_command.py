"""The whole command on a tiny model, as a user runs it: records, resume, kills, guards."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from forkserver import ForkServer
from helpers import PROGRAMS, Command, done, records_in
from records import parse

FIELDS = """
timestamp experiment_id config_name prompt_group model_name model_variant device dtype load_4bit usar_4bit
restore_strategy degradation_method param_group_name std_dev level_value level_index repeat_index seed prompt_id
prompt_text output tokens tokens_out tokens_in finish_reason duration temperature do_sample gen_params
batch_size_effective image_used image_filename vram_usage_percent weights_digest
prompt_digest model_digest image_digest perplexity_digest schema_version crc32
""".split()  # noqa: SIM905 - one word per field reads better than 40 quoted strings
KILLS = 10


@pytest.mark.slow
def test_a_run_records_everything(study: Path, degrade: Command, results_of_a_run: Path) -> None:
    """Three sweeps of two levels, two repeats, five prompts: sixty records with every field, and a sidecar."""
    done(degrade(cold=True))
    assert records_in(study / "results") == records_in(results_of_a_run), "a fork makes others"
    paths = sorted((study / "results").glob("outputs_*.json"))
    model = (study / "specs" / "tiny.toml").read_text().split('id = "')[1].split('"')[0].split("/")[-1]
    methods = ("ablation", "mult_gauss", "uni_quant")
    assert [path.name for path in paths] == [f"outputs_{method}_{model}_tiny.json" for method in methods]
    records = [record for path in paths for record in json.loads(path.read_text())]
    assert len(records) == 3 * 2 * 2 * 5
    for record in records:
        assert [field for field in FIELDS if field not in record] == []
        assert record["tokens"] == record["tokens_out"] <= 12
        assert record["seed"] == 5 + record["repeat_index"]
        assert isinstance(record["perplexity"], float)
        assert record["batch_size_effective"] == 3
        assert record["finish_reason"] in {"eos", "length", "nonfinite"}
    for path in paths:
        sidecar = tomllib.loads(path.with_suffix(".toml").read_text())
        assert sidecar["name"] == "tiny"
        assert sidecar["provenance"]["runs"][0]["versions"]["torch"]
    assert len(list((study / "results" / "logs").glob("*.log"))) == 3


def test_deterministic_levels_share_one_model(finished: Path) -> None:
    """All repeats of a quantised or undamaged level have one digest, repeats of a random one have their own."""
    digests: dict[tuple[str, float], set[str]] = {}
    for record in records_in(finished / "results"):
        digests.setdefault((record["degradation_method"], record["std_dev"]), set()).add(record["weights_digest"])
    assert {key: len(found) for key, found in digests.items()} == {
        ("mult_gauss", 0.0): 1, ("mult_gauss", 0.5): 2,
        ("ablation", 0.0): 1, ("ablation", 0.25): 2,
        ("uni_quant", 64): 1, ("uni_quant", 4): 1,
    }  # fmt: skip


@pytest.mark.slow
def test_killed_ten_times_equals_uninterrupted(study: Path, degrade: Command, forks: ForkServer) -> None:
    """SIGKILL at ten random moments, resumed each time, gives the records of a run that nobody disturbed."""
    arguments = ["--set", "run.n_rep=6"]
    done(degrade(*arguments, "--results", "calm"))
    command = ["specs/tiny.toml", *arguments, "--results", "killed"]
    moments = random.Random(0)
    for _ in range(KILLS):
        size = total_size(study / "killed")
        process = forks.start(*command, cwd=study, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while total_size(study / "killed") <= size and process.poll() is None:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.15))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert 0 < len(records_in(study / "killed")) < 180
    done(degrade(*arguments, "--results", "killed"))
    assert records_in(study / "killed") == records_in(study / "calm")
    assert len(records_in(study / "calm")) == 180


def total_size(folder: Path) -> int:
    """Bytes in all results files; the bytes of an empty one do not count as progress."""
    sizes = [path.stat().st_size for path in folder.glob("outputs_*.json") if path.exists()]
    return sum(size for size in sizes if size > len("[\n]\n"))


@pytest.mark.slow
def test_order_of_sweeps_does_not_matter(finished: Path, degrade: Command) -> None:
    """The same sweeps in another order give the same records."""
    spec = (finished / "specs" / "tiny.toml").read_text()
    head, *sweeps = spec.split("[[sweeps]]")
    last, rest = sweeps[-1].split("[generation]")
    reordered = "[[sweeps]]".join([head, last, sweeps[1], sweeps[0]]) + "\n[generation]" + rest
    (finished / "specs" / "tiny.toml").write_text(reordered)
    done(degrade("--results", "backward"))
    assert records_in(finished / "backward") == records_in(finished / "results")


@pytest.mark.slow
def test_more_repeats_rerun_nothing(study: Path, degrade: Command) -> None:
    """One repeat first and three later is what three at once are; the first records stay as they are."""
    done(degrade("--set", "run.n_rep=1"))
    before = {path.name: path.read_bytes() for path in (study / "results").glob("outputs_*.json")}
    done(degrade("--set", "run.n_rep=3"))
    for path in (study / "results").glob("outputs_*.json"):
        assert path.read_bytes().startswith(before[path.name].removesuffix(b"\n]\n"))
    done(degrade("--set", "run.n_rep=3", "--results", "at_once"))
    assert records_in(study / "results") == records_in(study / "at_once")


@pytest.mark.slow
def test_prompts_in_another_order_or_fewer(finished: Path, degrade: Command) -> None:
    """A record does not depend on who shares its batch: permuted prompts give the same answers."""
    module = finished / "prompts" / "questions.py"
    module.write_text(module.read_text() + "PROMPTS = PROMPTS[3:] + PROMPTS[:3]\n")
    done(degrade("--results", "second"))

    def answers(folder: str) -> dict[tuple[Any, ...], str]:
        keys = ("degradation_method", "std_dev", "repeat_index", "prompt_text")
        return {tuple(r[key] for key in keys): r["output"] for r in records_in(finished / folder)}

    assert answers("second") == answers("results")


def test_finished_run_loads_no_model(finished: Path, degrade: Command, checkpoints: dict[str, Path]) -> None:
    """With every record there, the command is done at once: even the weights may be gone."""
    moved = checkpoints["llama"].rename(finished / "elsewhere")
    try:
        checkpoints["llama"].mkdir()
        assert "nothing to do" in done(degrade()).stderr
    finally:
        checkpoints["llama"].rmdir()
        moved.rename(checkpoints["llama"])


@pytest.mark.slow
def test_force_starts_over_and_keeps_the_old(study: Path, degrade: Command) -> None:
    """--force runs everything again; the old file is kept under a name that no pattern of results finds."""
    arguments = ("--sweep", "gauss")
    done(degrade(*arguments))
    first = records_in(study / "results")
    done(degrade(*arguments, "--force"))
    assert records_in(study / "results") == first
    (kept,) = (study / "results").glob("replaced_20*_outputs_*.json")
    assert len(json.loads(kept.read_text())) == len(first)
    assert kept.with_suffix(".toml").is_file()


@pytest.mark.slow
def test_the_sidecar_runs_again(finished: Path, degrade: Command) -> None:
    """The resolved spec beside the results is a spec: it makes the same records."""
    sidecar = next((finished / "results").glob("outputs_uni_quant_*.toml"))
    done(degrade("--results", "again", spec=str(sidecar)))
    assert records_in(finished / "again") == records_in(finished / "results")


def test_verify_damages_again(finished: Path, degrade: Command) -> None:
    """`degrade verify` finds every digest again, generates nothing, and notices a digest that is another."""
    path = next((finished / "results").glob("outputs_ablation_*.json"))
    before = path.read_bytes()
    assert "4 damaged models, 0 differ" in done(degrade(str(path), spec="verify")).stderr
    digest = json.loads(before)[-1]["weights_digest"]
    path.write_bytes(before.replace(digest.encode(), b"0" * 16))
    assert "its checksum does not fit" in degrade(str(path), spec="verify").stderr
    path.write_text(json.dumps(parse(path)).replace(digest, "0" * 16))
    wrong = degrade(str(path), spec="verify")
    assert wrong.returncode == 1, wrong.stderr
    assert "1 differ" in wrong.stderr
    assert digest in wrong.stderr


def test_sidecar_holds_evidence(finished: Path) -> None:
    """The sidecar says of every condition what the damage did to how many weights."""
    rows = {}
    for path in (finished / "results").glob("outputs_*.toml"):
        for row in tomllib.loads(path.read_text())["provenance"]["evidence"]:
            rows[row["method"], row["level"], row["repeat_index"]] = row
    assert len(rows) == 12
    assert rows["mult_gauss", 0.0, 1]["fraction_changed"] == 0
    assert 0.99 < rows["mult_gauss", 0.5, 0]["fraction_changed"] <= 1
    assert abs(rows["mult_gauss", 0.5, 0]["relative_change"] - 0.5) < 0.02
    assert abs(rows["ablation", 0.25, 1]["fraction_zeroed"] - 0.25) < 0.03
    assert rows["uni_quant", 4, 0]["distinct_values"] == 4
    assert {(row["tensors"], row["weights"]) for row in rows.values()} == {(9, 73_728), (3, 12_288), (1, 20_480)}


def test_dry_run_says_what_would_happen(study: Path, degrade: Command) -> None:
    """--dry-run prints plan, tensors and memory, and leaves nothing behind."""
    printed = done(degrade("--dry-run")).stdout
    for expected in ("records to do: 60", "group mlp_only: 9 tensors, 73,728 weights", "not tied", "3 rows", "GiB"):
        assert expected in printed, printed
    assert not (study / "results").exists()


@pytest.mark.slow
def test_sigterm_stops_and_resumes(study: Path, degrade: Command, forks: ForkServer) -> None:
    """SIGTERM and SIGINT end the run with 143 and 130; what was finished is there and nothing is lost."""
    arguments = ["--set", "run.n_rep=6"]
    for signal_number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        size = total_size(study / "results")
        process = forks.start("specs/tiny.toml", *arguments, cwd=study, stderr=subprocess.PIPE)
        while total_size(study / "results") <= size and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal_number)
        message = process.communicate(timeout=60)[1]
        assert process.returncode == code, message
        assert "run the same command again" in message
        assert "Traceback" not in message
    done(degrade(*arguments))
    assert len(records_in(study / "results")) == 180


def test_a_file_replaced_during_a_run_ends_it(study: Path, forks: ForkServer) -> None:
    """A cloud's client puts another file in its place: exit 3, the stranger's file untouched, every record kept."""
    command = ["specs/tiny.toml", "--set", "run.n_rep=20", "--sweep", "gauss"]
    process = forks.start(*command, cwd=study, stderr=subprocess.PIPE)
    while not total_size(study / "results") and process.poll() is None:
        time.sleep(0.001)
    (path,) = (study / "results").glob("outputs_*.json")
    (study / "other").write_text("mine\n")
    (study / "other").rename(path)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == 3, message
    (kept,) = (study / "results").glob("rescued_20*_outputs_*.json")
    assert path.name in message
    assert kept.name in message
    assert path.read_text() == "mine\n"
    assert 0 < len(json.loads(kept.read_text())) < 200
    assert kept.with_suffix(".toml").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
def test_a_signal_that_python_drops_is_obeyed(study: Path, name: str, code: int, word: str) -> None:
    """It strikes in a callback of a weak reference; the run ends before the next batch is written."""
    command = [sys.executable, PROGRAMS / "swallow_signal.py", name, "specs/tiny.toml"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(command, cwd=study, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == code, run.stderr
    assert f"degrade: {word}" in run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout.strip() == "batches 1"
    assert 0 < len(records_in(study / "results")) < 60


@pytest.mark.slow
def test_a_signal_that_an_import_drops_is_obeyed(study: Path) -> None:
    """PyTorch's compiled part imports NumPy, forgets what is raised there, and would fail later for another reason."""
    command = [
        sys.executable,
        PROGRAMS / "signal_at_import.py",
        "numpy.lib._function_base_impl",
        str(signal.SIGINT.value),
    ]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    arguments = ["specs/tiny.toml", "--processes", "2"]
    run = subprocess.run([*command, *arguments], cwd=study, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 130, run.stderr
    assert "degrade: interrupted" in run.stderr
    assert "Traceback" not in run.stderr
