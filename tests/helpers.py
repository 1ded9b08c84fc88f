"""What several test modules use: the type of a command that is run, and what it left."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from records import Records, parse

Command = Callable[..., subprocess.CompletedProcess[str]]

PROGRAMS = Path(__file__).with_name("programs")
MAY_DIFFER = ("timestamp", "duration", "vram_usage_percent")


def records_in(folder: Path) -> Records:
    """All records of all results files, in a fixed order, without the fields that may differ between runs."""
    found = [record for path in sorted(folder.glob("outputs_*.json")) for record in parse(path)]
    kept = [{key: value for key, value in record.items() if key not in MAY_DIFFER} for record in found]
    return sorted(kept, key=lambda r: (r["degradation_method"], r["param_group_name"], r["level_index"],
                                       r["repeat_index"], r["prompt_id"]))  # fmt: skip


def records_so_far(folder: Path) -> int:
    """How many records a run has on the disk."""
    with suppress(ValueError):
        return sum(len(parse(path)) for path in folder.glob("outputs_*.json"))
    return 0  # in the middle of an append


def done(run: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """The same run, which must have succeeded."""
    assert run.returncode == 0, run.stderr
    return run


def refused(run: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """The command must have ended with this code and one message that holds all these words."""
    assert run.returncode == code, run.stderr
    assert "Traceback" not in run.stderr
    message = run.stderr[run.stderr.index("degrade: ") :]
    assert message.count("degrade: ") == 1
    for word in words:
        assert word in message, message


def assert_nowhere(secret: str, run: subprocess.CompletedProcess[str], folder: Path) -> None:
    """No output and no file below the folder holds the secret."""
    assert secret not in run.stdout + run.stderr
    files = [Path(root) / name for root, _, names in os.walk(folder) for name in names]
    assert [file for file in files if secret.encode() in file.read_bytes()] == []


def output_of(program: str, *arguments: str, **environment: str) -> str:
    """What a program of `tests/programs` prints in a process of its own, with all that can be imported here."""
    command = [sys.executable, "-W", "ignore", PROGRAMS / f"{program}.py", *arguments]
    run = subprocess.run(command, env=importing(**environment), capture_output=True, text=True, check=False)
    return done(run).stdout


def importing(*first: Path, **environment: str) -> dict[str, str]:
    """An environment in which a process imports whatever can be imported here, and before that what is in `first`."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, first), *sys.path]), **environment}
