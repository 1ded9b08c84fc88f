"""The process of one worker: the environment of the driver first, then what reads it, then calls."""

import gc
import logging
import os
import pickle
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from typing import Any

from runner.cli_boundary import OBJECTS_PER_COLLECTION

# Of every worker, in this order: the first says what transformers need not import.
AT_ONCE = ("runner.run_remote", "transformers.modeling_utils", "transformers.masking_utils")

Said = tuple[str, int, str]  # logger, level, message


class Actor:
    """The object of a process, also what Ray makes an actor of; it obeys `assign`, `begin`, then calls.

    Imported without torch, which reads the environment when it is loaded.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Import what takes its time and needs no word of the driver yet."""
        os.environ.update(environment)
        gc.set_threshold(OBJECTS_PER_COLLECTION)
        for name in AT_ONCE:
            import_module(name)
        self._said = list[Said]()
        log = logging.getLogger("runner")
        log.setLevel("DEBUG")
        log.propagate = False
        log.addHandler(_Collector(self._said))

    def assign(self, assignment: bytes) -> None:
        """Hear, as a pickled `run_team.Assignment`, what the work is, and do what can be done beside the driver.

        What fails now fails again in the first call, which can say so.
        """
        from runner.run_remote import RemoteWorker

        self._worker = RemoteWorker(pickle.loads(assignment))  # noqa: S301 - of our driver
        with suppress(Exception):
            self._worker.prepare()

    def begin(self, tokens_digest: str, groups: Sequence[str]) -> None:
        """See `RemoteWorker.begin`."""
        self._worker.begin(tokens_digest, groups)

    def call(self, method: str, arguments: Sequence[Any]) -> tuple[Any, Exception | None, list[Said]]:
        """What a method of the worker gave or raised, and what was logged meanwhile."""
        from runner.cli_boundary import first_line, foreseen
        from runner.errors import DeviceMemoryError, WorkerLostError

        value: Any = None
        error: Exception | None = None
        try:
            value = getattr(self._worker, method)(*arguments)
        except DeviceMemoryError:
            error = DeviceMemoryError()
        except Exception as raised:  # noqa: BLE001 - whatever it is, the driver decides
            logging.getLogger(__name__).debug("%s", traceback.format_exc())
            error = foreseen(raised) or WorkerLostError(f"{type(raised).__name__}: {first_line(raised)}")
        said = [*self._said]
        self._said.clear()
        return value, error, said


def serve(descriptor: int) -> None:
    """Obey the process at the other end of a socket (`run_local`) until that end is closed, by whatever."""
    os.set_inheritable(descriptor, False)  # noqa: FBT003 - what this process starts would keep it open
    connection, orders = Connection(descriptor), SimpleQueue[bytes]()
    Thread(target=_listen, args=[connection, orders], daemon=True).start()
    actor = Actor({})
    while True:
        method, arguments = pickle.loads(orders.get())  # noqa: S301 - of our driver
        if method in ("assign", "begin"):
            getattr(actor, method)(*arguments)
        else:
            connection.send(actor.call(method, arguments))


def _listen(connection: Connection, orders: "SimpleQueue[bytes]") -> None:
    """Take what comes at once, so that the driver never waits; with the driver this process ends, whatever it does."""
    try:
        while True:
            orders.put(connection.recv_bytes())
    except (EOFError, OSError):
        os._exit(0)


class Told:
    """What workers have said; the log has once what several say."""

    def __init__(self) -> None:
        self._said: set[tuple[int, str]] = set()

    def log(self, worker: int, said: Sequence[Said]) -> None:
        """Log what a worker said."""
        for name, level, message in said:
            again = (level, message) in self._said and level > logging.DEBUG
            self._said.add((level, message))
            logging.getLogger(name).log(logging.DEBUG if again else level, "worker %d: %s", worker, message)


class _Collector(logging.Handler):
    """Keeps what is logged for the driver, whose log is the only one."""

    def __init__(self, said: list[Said]) -> None:
        super().__init__()
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append((record.name, record.levelno, record.getMessage()))
