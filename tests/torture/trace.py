"""What a command does to a folder, from strace: the operations of `disk`, and faults injected into its system calls."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from attrs import frozen

from torture.disk import Create, Link, Operation, Rename, Sync, Truncate, Unlink, Write

OPERATIONS = "openat,write,pwrite64,ftruncate,fsync,rename,link,unlink,mkdir,rmdir,lseek"
_CALL = re.compile(r"(?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+)(?P<rest>.*)")
_OPEN_FILE = re.compile(r"<((?:\\x[0-9a-f]{2})+)>(?!\(deleted\))")  # the name of a descriptor
_UNFINISHED = "<unfinished ...>"
_SECONDS = 10  # that strace may take to attach


@contextlib.contextmanager
def traced(process: int, log: Path, *options: str) -> Iterator[None]:
    """Attach strace to a process and all that it forks meanwhile."""
    command = ["strace", "-f", "-y", "-xx", "-s", "1000000", "-o", log, *options, "-p", str(process)]
    strace = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + _SECONDS
        while "TracerPid:\t0\n" in Path(f"/proc/{process}/status").read_text():
            if strace.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"strace cannot attach: {strace.communicate(timeout=1)[1]!r}")
            time.sleep(0.001)
        yield
    finally:
        strace.send_signal(signal.SIGINT)
        strace.communicate()


@contextlib.contextmanager
def recorded(process: int, log: Path) -> Iterator[None]:
    """Record what the forks of a process do to files."""
    with traced(process, log, "-e", f"trace={OPERATIONS}"):
        yield


@frozen
class Call:
    """One system call that has returned."""

    process: int
    name: str
    arguments: list[str]  # as strace writes them
    result: int
    rest: str  # what strace says of the result
    number: int  # among the calls of this name by this process, from 1

    @property
    def path(self) -> str:
        """The file that it is about: that of the descriptor, else that of the first name; empty if it has none."""
        opened = _OPEN_FILE.search(self.rest if self.name == "openat" else self.arguments[0])
        if opened:
            return os.fsdecode(_bytes(opened[1]))
        named = self.arguments[1 if self.name == "openat" else 0]
        return os.fsdecode(_bytes(named)) if named.startswith('"') else ""


def calls(log: Path) -> Iterator[Call]:
    """Every call in a log that has returned."""
    begun: dict[str, str] = {}
    numbers: Counter[tuple[str, str]] = Counter()
    for line in log.read_text().splitlines():
        process, _, call = line.partition(" ")
        call = call.strip()
        if call.endswith(_UNFINISHED):
            begun[process] = call.removesuffix(_UNFINISHED)
            continue
        if resumed := re.match(r"<\.\.\. \w+ resumed>", call):
            call = begun.pop(process) + call[resumed.end() :]
        if match := _CALL.match(call):
            name, arguments = match["name"], match["arguments"].split(", ")
            numbers[process, name] += 1
            number = numbers[process, name]
            yield Call(int(process), name, arguments, int(match["result"]), match["rest"], number)


def operations(log: Path, folder: Path, there: Iterable[str]) -> Iterator[Operation]:
    """What was done to a folder and in it, its logs aside; `there` was there before.

    Paths are relative to what the folder is in.
    """
    names, positions = set(there), dict[tuple[int, str], int]()
    for call in calls(log):
        path = relative(call.path, folder)
        if call.result < 0 or path is None or path.startswith(f"{folder.name}/logs"):
            continue
        opened = (call.process, call.arguments[0].partition("<")[0])
        if call.name == "openat":
            positions[call.process, str(call.result)] = 0
            if "O_CREAT" in call.arguments[2] and path not in names:
                yield Create(path)
            elif "O_TRUNC" in call.arguments[2]:
                yield Truncate(path, 0)
        elif call.name == "lseek":
            positions[opened] = call.result
        elif call.name == "write":
            yield Write(path, positions[opened], _bytes(call.arguments[1])[: call.result])
            positions[opened] += call.result
        else:
            operation = _operation(call, path, folder)
            names.add(getattr(operation, "new", path))
            yield operation
        names.add(path)
        if call.name in {"rename", "unlink", "rmdir"}:
            names.discard(path)


def _operation(call: Call, path: str, folder: Path) -> Operation:
    """What a call did to one name that needs no knowledge of the calls before."""
    match call.name:
        case "mkdir":
            return Create(path, is_folder=True)
        case "pwrite64":
            return Write(path, int(call.arguments[3]), _bytes(call.arguments[1])[: call.result])
        case "ftruncate":
            return Truncate(path, int(call.arguments[1]))
        case "fsync":
            return Sync(path)
        case "unlink" | "rmdir":
            return Unlink(path)
    new = relative(os.fsdecode(_bytes(call.arguments[1])), folder)
    if new is None or call.name not in {"rename", "link"}:
        raise ValueError(f"not in the model of a disk: {call}")
    return Rename(path, new) if call.name == "rename" else Link(path, new)


def _bytes(argument: str) -> bytes:
    return bytes.fromhex(argument.strip('"').replace("\\x", ""))


def relative(path: str, folder: Path) -> str | None:
    """A path from what the folder is in; None if it is neither that nor in the folder."""
    place = Path(path)
    here = place.is_relative_to(folder) or place == folder.parent
    return str(place.relative_to(folder.parent)) if here else None
