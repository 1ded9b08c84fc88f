"""Ends the Ray of a run when the run has died, however: a program of its own that waits for the end of its input.

Ray's own processes notice it as well, some of them only after more than a minute. `run_ray` starts this file, which
imports nothing of the package.
"""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MARK = "DEGRADE_RAY"  # in the environment of every process of a Ray: its folder


def processes_of(folder: str) -> Iterator[int]:
    """The processes of a Ray, by its folder; not those of another user, and none where there is no /proc."""
    mark = os.fsencode(f"{MARK}={folder}")
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int(place.name) != os.getpid() and mark in (place / "environ").read_bytes().split(b"\0"):
                yield int(place.name)


def main() -> None:
    """Wait until nobody holds the other end of the input, then end what is left and remove the folder."""
    folder = sys.argv[1]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.read()
    for process in processes_of(folder):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
