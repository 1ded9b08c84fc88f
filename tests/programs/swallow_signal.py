"""The command, with a signal that strikes where Python drops exceptions: `swallow_signal.py SIGTERM spec.toml ...`."""

import os
import signal
import sys
import weakref
from typing import Any

from runner import cli
from runner.run_writer import RecordWriter

number = signal.Signals[sys.argv[1]]
write, written = RecordWriter.write, [0]


class Thing:
    """Something that a weak reference can be to."""


def strike(_: object) -> None:
    """Send the signal, and be where it is handled."""
    os.kill(os.getpid(), number)
    sum(range(1000))


def write_and_strike(self: RecordWriter, *arguments: Any) -> Any:
    """Write the first batch, then let something die whose weak reference has a callback."""
    done = write(self, *arguments)
    written[0] += 1
    if written[0] == 1:
        thing = Thing()
        kept = weakref.ref(thing, strike)
        del thing
        assert kept() is None
    return done


RecordWriter.write = write_and_strike  # type: ignore[method-assign]
code = cli.main(sys.argv[2:])
print("batches", written[0])
sys.exit(code)
