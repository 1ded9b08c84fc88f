"""Worker processes on this host: a model and its GPUs each, and a socket to each, over which calls and replies go."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, BinaryIO, Self

from attrs import define, evolve, field

from runner.cli_boundary import first_line
from runner.errors import SetupError, WorkerLostError
from runner.run_actor import Told
from runner.run_team import Assignment, Reply, Team

PROGRAM = "import sys; sys.path[:] = {path!r}; from runner.run_actor import serve; serve({descriptor})"
LONGEST_END_SECONDS = 5.0  # of a process that is killed, or whose socket is closed
LAST_WORDS = 4096  # bytes of what a process printed


@define(eq=False)
class Member:
    """One process: its calls without a reply, in their order, and what it printed, which is read if it dies."""

    worker: int
    process: "subprocess.Popen[bytes]"
    connection: Connection
    printed: BinaryIO
    calls: deque[Reply] = field(factory=deque)
    outbox: "SimpleQueue[bytes]" = field(factory=SimpleQueue)


class LocalProcesses:
    """The `run_members.Processes` of this host; leaving the `with` block ends them.

    They import what every worker imports before they are told what to do, so that they can be started before that is
    known. A process ends by itself when this one is gone, however that died; one that is stopped does when it goes on.
    """

    def __init__(self, team: Team) -> None:
        """Workers begin to start.

        Raises:
            SetupError: this host cannot start them.
        """
        self.count, self.team = team.workers or 0, team
        self._orders: list[tuple[str, tuple[Any, ...]]] = []  # what each is told first, later ones too
        self._arrived: SimpleQueue[tuple[Member, bytes | None]] = SimpleQueue()
        self._told = Told()
        self._members = {worker: self._start(worker) for worker in range(self.count)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, worker: int) -> Member:
        try:
            member = begin_member(worker, self.team.gpus_per_model)
        except OSError as error:
            raise SetupError(f"the process of a worker cannot be started: {error}") from None
        # In threads: a process that is stopped neither reads an order, nor ends a reply in whose middle it is.
        for work in (self._listen, self._speak):
            Thread(target=work, args=[member], daemon=True).start()
        for method, arguments in self._orders:
            tell(member, method, arguments)
        return member

    def _listen(self, member: Member) -> None:
        with suppress(EOFError, OSError):
            while True:
                self._arrived.put((member, member.connection.recv_bytes()))
        self._arrived.put((member, None))

    def _speak(self, member: Member) -> None:
        while message := member.outbox.get():
            try:
                member.connection.send_bytes(message)
            except OSError:
                self._arrived.put((member, None))

    def suits(self, team: Team) -> bool:
        """Whether the team is among these workers, which have not ended."""
        return bool(self._members) and self.team.holds(team)

    def assign(self, assignment: Assignment, team: Team) -> None:
        """Tell the workers what they work for; those that the team has no use for end."""
        for worker in range(team.workers or 0, self.count):
            self.stop(worker)
        self.count = team.workers or 0
        self._order("assign", pickle.dumps(assignment))

    def begin(self, tokens_digest: str, groups: Sequence[str]) -> None:
        """Tell the workers the digest of the prompts' tokens, and which groups are damaged: they can load the model."""
        self._order("begin", tokens_digest, groups)

    def _order(self, method: str, *arguments: Any) -> None:
        self._orders.append((method, arguments))
        for member in self._members.values():
            tell(member, method, arguments)

    def close(self) -> None:
        """End every worker."""
        for worker in [*self._members]:
            self.stop(worker)

    def now(self) -> float:
        """Seconds of the monotonic clock."""
        return time.monotonic()

    def send(self, worker: int, method: str, *arguments: Any) -> None:
        """Call a method; the reply comes later."""
        member = self._members[worker]
        member.calls.append(Reply(worker, method, arguments))
        tell(member, method, arguments)

    def replies(self, timeout: float) -> list[Reply]:
        """What came back, waiting at most so many seconds for the first."""
        arrived = []
        with suppress(Empty):
            arrived.append(self._arrived.get(timeout=timeout))
            while True:
                arrived.append(self._arrived.get_nowait())
        return [reply for member, answer in arrived for reply in self._take(member, answer)]

    def _take(self, member: Member, answer: bytes | None) -> list[Reply]:
        if self._members.get(member.worker) is not member or not member.calls:
            return []
        call = member.calls.popleft()
        if answer is None:
            member.calls.clear()
            return [evolve(call, error=WorkerLostError(why_gone(member)))]
        value, error, said = pickle.loads(answer)  # noqa: S301 - of our worker
        self._told.log(member.worker, said)
        return [evolve(call, value=value, error=error)]

    def restart(self, worker: int) -> None:
        """End what is left of a worker, forget its calls, and begin another in its place."""
        self.stop(worker)
        self._members[worker] = self._start(worker)

    def stop(self, worker: int) -> None:
        """End a worker for good, and forget its calls."""
        if (member := self._members.pop(worker, None)) is not None:
            member.process.kill()
            with suppress(subprocess.TimeoutExpired):  # one that waits for a broken device or file system ends later
                member.process.wait(LONGEST_END_SECONDS)
            member.outbox.put(b"")
            member.printed.close()


def begin_member(worker: int, gpus: int) -> Member:
    """A process that begins to serve, with GPUs of its own."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        path = [folder for folder in sys.path if isinstance(folder, str)]
        printed = tempfile.TemporaryFile()  # noqa: SIM115 - it is open as long as the process is there
        process = subprocess.Popen(  # noqa: S603 - ours
            [sys.executable, "-c", PROGRAM.format(path=path, descriptor=theirs.fileno()), f"degrade worker {worker}"],
            pass_fds=[theirs.fileno()],
            env=os.environ | visible_to(worker, gpus),
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=printed,
            start_new_session=True,  # a signal for all of this command is for the driver, which ends the workers
        )
        return Member(worker, process, Connection(ours.detach()), printed)


def tell(member: Member, method: str, arguments: Sequence[Any]) -> None:
    """Send an order, as soon as the process reads what is before it."""
    member.outbox.put(pickle.dumps((method, arguments)))


def visible_to(worker: int, gpus: int) -> dict[str, str]:
    """The variable that shows a worker its GPUs alone, of those that are visible here; none for a CPU."""
    if not gpus:
        return {}
    mine, chosen = range(worker * gpus, (worker + 1) * gpus), os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(index) for index in mine] if chosen is None else [chosen.split(",")[index].strip() for index in mine]
    return {"CUDA_VISIBLE_DEVICES": ",".join(names)}


def why_gone(member: Member) -> str:
    """How a process ended, and what it printed last."""
    try:
        code = member.process.wait(LONGEST_END_SECONDS)
    except subprocess.TimeoutExpired:
        return "its process has closed its socket"
    member.printed.seek(max(0, member.printed.seek(0, os.SEEK_END) - LAST_WORDS))
    lines = member.printed.read().decode(errors="replace").strip().splitlines()
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"its process is gone ({how}{': ' + first_line(WorkerLostError(lines[-1])) if lines else ''})"
