"""On a GPU: the whole command, and the same damaged models as on the CPU."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Command = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def records_of(degrade: Command, study: Path, folder: str, *arguments: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The records of a run, by what they are known by."""
    run = degrade("--results", folder, *arguments)
    assert run.returncode == 0, run.stderr
    found = [record for path in (study / folder).glob("outputs_*.json") for record in json.loads(path.read_text())]
    return {(r["degradation_method"], r["std_dev"], r["repeat_index"], r["prompt_text"]): r for r in found}


def column(records: dict[tuple[Any, ...], dict[str, Any]], field: str) -> dict[tuple[Any, ...], Any]:
    """One field of every record."""
    return {key: record[field] for key, record in records.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_on_the_gpu(degrade: Command, study: Path, dtype: str) -> None:
    """The same digests as on the CPU, the same bytes again, and nothing done twice when resumed."""
    setting = ("--set", f"model.dtype='{dtype}'")
    on_cpu = records_of(degrade, study, "cpu", *setting)
    on_gpu = records_of(degrade, study, "gpu", *setting, "--device", "cuda")
    assert {key: r["weights_digest"] for key, r in on_gpu.items()} == {
        k: r["weights_digest"] for k, r in on_cpu.items()
    }
    assert all(record["device"] == "cuda:0" and record["vram_usage_percent"] > 0 for record in on_gpu.values())
    one = records_of(degrade, study, "again", *setting, "--device", "cuda", "--set", "run.n_rep=1")
    again = records_of(degrade, study, "again", *setting, "--device", "cuda")
    assert len(one) * 2 == len(again)
    assert column(again, "output") == column(on_gpu, "output")


@pytest.mark.parametrize(("made_on", "verified_on"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_verify_across_devices(degrade: Command, study: Path, made_on: str, verified_on: str) -> None:
    """What one machine damaged, another damages again bit for bit."""
    records_of(degrade, study, "made", "--device", made_on)
    paths = [str(path) for path in (study / "made").glob("outputs_*.json")]
    run = degrade(*paths, "--device", verified_on, spec="verify")
    assert run.returncode == 0, run.stderr
    assert run.stderr.count(" 0 differ") == len(paths)
