"""What must not be left half done is done when Ctrl-C or SIGTERM strikes: a lock, a hidden folder, a kept file."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import PROGRAMS, importing

from runner.env_files import replace_open
from runner.env_signals import signals_wait

BOTH = [signal.SIGINT, signal.SIGTERM]


class Struck(BaseException):
    """What a signal means here."""


def strike(*_: object) -> None:
    """The handler of a signal."""
    raise Struck


@pytest.fixture(autouse=True)
def _signals_are_heard() -> Iterator[None]:
    """Also where a shell started the tests in the background and lets them ignore Ctrl-C."""
    before = {number: signal.signal(number, strike) for number in BOTH}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_strikes_behind_the_block(number: signal.Signals) -> None:
    """Once, however many there were, and afterwards again as it did before."""
    done = []
    with pytest.raises(Struck):  # noqa: PT012 - what is behind the signals is what matters
        with signals_wait():
            signal.raise_signal(number)
            signal.raise_signal(signal.SIGINT)
            done.append("all of it")
        done.append("what comes behind")
    assert done == ["all of it"]
    with pytest.raises(Struck):
        signal.raise_signal(number)


def test_an_error_in_the_block_goes_on() -> None:
    """With the handlers as they were."""
    with pytest.raises(ZeroDivisionError), signals_wait():
        _ = 1 / 0
    assert [signal.getsignal(number) for number in BOTH] == [strike, strike]


def test_other_threads_have_no_signals() -> None:
    """Where none strikes, none has to wait."""
    found = []

    def work() -> None:
        with signals_wait():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [strike]


@pytest.mark.parametrize("links", [True, False])
def test_a_kept_file_is_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, links: bool) -> None:
    """Ctrl-C between its name and that of the new one; also where the file system has no hard links."""
    path, kept, link = tmp_path / "outputs.json", tmp_path / "kept.json", os.link
    path.write_text("old")

    def struck(source: Path, target: Path) -> None:
        signal.raise_signal(signal.SIGINT)
        if not links:
            raise OSError
        link(source, target)

    monkeypatch.setattr(os, "link", struck)
    with path.open("rb") as file, pytest.raises(Struck):
        replace_open(path, file.fileno(), [b"new"], kept=kept, locked=False)
    assert (path.read_text(), kept.read_text()) == ("new", "old")
    assert sorted(tmp_path.iterdir()) == [kept, path]


def run_struck(call: str, number: int, program: str, *arguments: Path, only: Path | None = None) -> str:
    """What a program prints as an error if Ctrl-C strikes in its so-manieth call; nothing if it has fewer."""
    strace = ["strace", "-f", "-o", "/dev/null", *(("-P", only) if only else ()), "-e", f"trace={call}"]
    command = [*strace, "-e", f"inject={call}:signal=INT:when={number}", sys.executable, PROGRAMS / program, *arguments]
    env = importing(PYTHONDONTWRITEBYTECODE="1")
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (run.returncode == 0) != ("KeyboardInterrupt" in run.stderr), run.stderr
    return run.stderr if run.returncode else ""


@pytest.mark.slow
@pytest.mark.parametrize("call", ["openat", "write", "close"])
def test_no_lock_stays(tmp_path: Path, call: str) -> None:
    """On a file system without locks, where one that stays would keep every later run away."""
    results = tmp_path / "outputs.json"
    lock = tmp_path / "outputs.json.lock"
    for number in itertools.count(1):
        if not run_struck(call, number, "lock_without_flock.py", results, only=lock):
            break
        assert not lock.exists(), number
    assert number > 1
    assert {*tmp_path.iterdir()} <= {results}


@pytest.mark.slow
@pytest.mark.parametrize("call", ["mkdir", "unlinkat"])
def test_no_hidden_folder_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Neither where a copy is unpacked, which begins with an empty folder, nor where a damaged one is removed."""
    cache, source = tmp_path / "cache", tmp_path / "model.gguf"
    monkeypatch.setenv("DEGRADE_CACHE", str(cache))
    source.write_bytes(b"GGUF packed")
    damaged = tmp_path / "damaged"
    assert not run_struck("mkdir", 99, "unpack_copy.py", source)
    (weights,) = cache.rglob("weights")
    weights.write_bytes(b"")
    cache.rename(damaged)
    for number in itertools.count(1):
        shutil.rmtree(cache, ignore_errors=True)
        if call == "unlinkat":
            shutil.copytree(damaged, cache)
        if not run_struck(call, number, "unpack_copy.py", source):
            break
        assert list((cache / "gguf").glob(".*")) == [], number
    assert number > 1
    (weights,) = cache.rglob("weights")
    assert weights.read_bytes()
