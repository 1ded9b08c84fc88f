"""What a run does when the device runs out of memory: fewer rows, nothing lost, and the size is remembered."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from runner import run as run_module
from runner.decode_scheduler import BatchScheduler, FinishedBatch
from runner.errors import SetupError
from runner.spec import load_spec

ROWS_THAT_FIT = 1


@pytest.fixture
def small_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that holds one row: the CPU cannot be made to run out of memory at will, a GPU can."""
    answers = BatchScheduler.answers

    def answer_if_it_fits(self: BatchScheduler, visits: Any) -> Iterator[FinishedBatch]:
        for ended in answers(self, visits):
            if self.shape.rows > ROWS_THAT_FIT:
                raise torch.OutOfMemoryError
            yield ended

    monkeypatch.setattr(BatchScheduler, "answers", answer_if_it_fits)


def run(study: Path, *settings: str) -> list[dict[str, Any]]:
    """Run one sweep of the study and read its records."""
    spec = load_spec(study / "specs" / "tiny.toml", ["run.n_rep=1", *settings], ["gauss"])
    run_module.run(spec, study / "specs", study / "results")
    return [record for path in (study / "results").glob("*.json") for record in json.loads(path.read_text())]


@pytest.mark.usefixtures("small_device")
def test_fewer_rows_after_an_overflow(study: Path) -> None:
    """The batch that did not fit is done again with half the rows; every prompt gets its record."""
    records = run(study)
    assert len(records) == 10
    assert {record["batch_size_effective"] for record in records} == {ROWS_THAT_FIT}


@pytest.mark.slow
def test_a_resume_starts_from_the_size_in_use(study: Path) -> None:
    """A run that had to use fewer rows goes on with them, so that its records fit those before."""
    run(study, "generation.max_batch_size=2")
    path = next((study / "results").glob("*.json"))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:5], lines[5].rstrip(","), "]", ""]))
    records = run(study)
    assert len(records) == 10
    assert {record["batch_size_effective"] for record in records} == {2}


def test_one_row_too_many_is_said(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When one row does not fit, the run stops with what it has and says what to do."""

    def never(_self: BatchScheduler, _visits: Any) -> Iterator[FinishedBatch]:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(BatchScheduler, "answers", never)
    with pytest.raises(SetupError, match="one row"):
        run(study)


@pytest.mark.slow
def test_a_limit_of_the_process_is_its_memory() -> None:
    """What `ulimit -v` leaves is all there is, however large the machine."""
    program = "import torch; from runner.model_memory import total_memory; print(total_memory(torch.device('cpu')))"
    limit = 64 * 2**30 // 1024
    command = ["bash", "-c", f'ulimit -v {limit}; exec {sys.executable} -c "{program}"']
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) <= min(machine, limit * 1024)
