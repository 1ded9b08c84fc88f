"""Faults while a model is unpacked into the cache: a run goes on without a copy, and none that is damaged is used."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from subprocess import CompletedProcess

from helpers import PROGRAMS, importing

from torture.crashes import KILL, SHORT, Case, Outcome, cases_of, happened, injection

NONE = {"LD_PRELOAD": ""}
STRACE = ("strace", "-f", "-y", "-xx", "-s", "1000000")


def unpack(place: Path, *before: str, look: bool = False, **environment: str) -> CompletedProcess[str]:
    """Unpack into the cache, with what stands before the command; `look` at the copy as well."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "model.gguf").write_bytes(b"GGUF packed")
    command = [*before, sys.executable, PROGRAMS / "unpack_copy.py", place / "model.gguf", *["look"] * look]
    environment = importing(DEGRADE_CACHE=str(place / "cache"), **environment)
    environment = {name: value for name, value in environment.items() if value}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def all_cases(place: Path) -> list[Case]:
    """Every fault at every call that concerns the cache."""
    log = place / "log"
    unpack(place, **NONE)  # bytecode is written by the first run
    shutil.rmtree(place)
    calm = unpack(place, *STRACE, "-o", str(log), **NONE)
    if calm.returncode:
        raise RuntimeError(calm.stderr)
    return list(cases_of(log, place / "cache"))


def attempt(case: Case, place: Path, library: Path) -> Outcome:
    """Unpack with a fault, then without."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    short = {"SHORT_WRITE": f"{case.point.call} {case.point.index} {place / 'cache'}", "LD_PRELOAD": str(library)}
    run = unpack(place, *STRACE, *injection(case), "-o", str(place / "log"), **(short if case.fault == SHORT else NONE))
    faults = list(_wrong(case, run, place))
    again = unpack(place, look=True, **NONE)
    if again.returncode or not Path(again.stdout.strip()).is_dir():
        faults.append(f"no copy afterwards: {again.stdout}{again.stderr[-500:]}")
    return Outcome(case, 0, faults)


def _wrong(case: Case, run: CompletedProcess[str], place: Path) -> Iterator[str]:
    """How the program may end: killed, or well, with or without a copy."""
    expected: Sequence[int] = (-signal.SIGKILL, 128 + signal.SIGKILL) if case.fault == KILL else (0,)
    if run.returncode not in expected:
        yield f"exit code {run.returncode}: {run.stderr[-500:]}"
    if case.fault != KILL and not happened(case, place / "log", place / "cache"):
        yield "the fault did not happen"
