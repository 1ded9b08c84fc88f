"""Faults of the machine under the real command: a disk that is full, read-only or gone, a poor file system."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forkserver import ForkServer
from helpers import PROGRAMS, Command, done, records_in, refused

pytestmark = pytest.mark.slow

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a tmpfs")
Mount = Callable[[str], None]


@pytest.fixture
def disk(study: Path) -> Iterator[Mount]:
    """A disk of its own for the results; `disk("size=1m")` changes it."""
    folder = study / "results"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "none", folder], check=True)
    yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True) and None
    subprocess.run(["umount", "--lazy", folder], check=True)


@needs_root
def test_a_disk_that_fills_up(study: Path, degrade: Command, disk: Mount) -> None:
    """What is on it stays whole; with more room the run goes on to the records of one that had it all along."""
    refused(degrade(), 3, "No space left on device")
    kept = records_in(study / "results")
    disk("size=4m")
    done(degrade())
    assert len(kept) < len(records_in(study / "results")) == 60
    done(degrade("--results", "undisturbed"))
    assert records_in(study / "results") == records_in(study / "undisturbed")


@needs_root
def test_a_disk_that_becomes_read_only(study: Path, degrade: Command, disk: Mount) -> None:
    """Nothing is done that could not be written, and nothing is changed."""
    disk("size=4m")
    done(degrade("--sweep", "gauss"))
    before = {path: path.read_bytes() for path in (study / "results").glob("outputs_*")}
    disk("ro")
    refused(degrade("--set", "run.n_rep=3"), 3, "Read-only file system")
    assert {path: path.read_bytes() for path in (study / "results").glob("outputs_*")} == before


def test_a_folder_that_is_removed_in_the_middle_of_a_run(study: Path, forks: ForkServer, degrade: Command) -> None:
    """The run ends with a sentence and what it had in hand; the next one makes all of it again."""
    arguments = ("specs/tiny.toml", "--sweep", "gauss", "--set", "run.n_rep=12")
    process = forks.start(*arguments, cwd=study, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    results = study / "results"
    while not any(path.stat().st_size > 1000 for path in results.glob("outputs_*.json")):
        assert process.poll() is None
        time.sleep(0.01)
    results.rename(study / "gone")
    shutil.rmtree(study / "gone")
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 3, said
    assert "was removed by another program" in said
    assert "Traceback" not in said
    done(degrade(*arguments[1:]))
    assert len(records_in(results)) == 2 * 12 * 5


def test_a_file_system_without_locks_that_cannot_wait_for_folders(finished: Path) -> None:
    """A file keeps a second run away, both are said, and the records are the same."""
    library = finished / "poor.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, PROGRAMS / "poor_file_system.c", "-ldl"], check=True)
    forks = ForkServer(env={"LD_PRELOAD": str(library)})
    arguments = ("specs/tiny.toml", "--results", "poor")
    first = forks.start(*arguments, cwd=finished, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not list((finished / "poor").glob("outputs_*.json.lock")):
        assert first.poll() is None
        time.sleep(0.01)
    refused(forks.run(*arguments, cwd=finished), 3, "in use by another run", str(first.pid))
    said = first.communicate(timeout=120)[1]
    forks.close()
    assert first.returncode == 0, said
    assert "this file system has no locks" in said
    assert "cannot wait for the disk" in said
    assert records_in(finished / "poor") == records_in(finished / "results")
    assert list((finished / "poor").glob("*.lock")) == []
