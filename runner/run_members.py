"""The workers of a pool: started, asked, started again where one died, left out where one cannot do what others do."""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from runner.decode_batch import BatchShape
from runner.decode_engine import EngineChoice
from runner.errors import DegradeError, DeviceMemoryError, SetupError, SpecError, stop_if_asked
from runner.run_plan import WorkerFacts
from runner.run_team import Reply

logger = logging.getLogger(__name__)

Joining = tuple[BatchShape, EngineChoice, Collection[str]]  # the arguments of `RemoteWorker.join`

POLL_SECONDS = 1.0
MOST_STARTS = 3  # in a row without an answer
# Of what the first took, and at least so many seconds: then the others are not waited for, and join when they can.
PATIENCE_FACTOR, PATIENCE_SECONDS = 2.0, 60.0
LONGEST_START_SECONDS = 3600.0  # where no worker works: the model may have to be fetched first


class Processes(Protocol):
    """Worker processes, numbered from 0; each obeys its calls, methods of `run_remote.RemoteWorker`, in their order."""

    count: int

    def now(self) -> float:
        """Seconds of a clock."""

    def send(self, worker: int, method: str, *arguments: Any) -> None:
        """Call a method; the reply comes later."""

    def replies(self, timeout: float) -> Sequence[Reply]:
        """What came back, waiting at most so many seconds for the first."""

    def restart(self, worker: int) -> None:
        """End what is left of a worker, forget its calls, and begin another in its place."""

    def stop(self, worker: int) -> None:
        """End a worker for good, and forget its calls."""


class Members:
    """Workers in other processes, of which some are ready."""

    def __init__(self, processes: Processes) -> None:
        """Waits until the workers are there.

        Raises:
            DegradeError: none of them can work.
        """
        self.processes = processes
        self.ready: set[int] = set()
        self.starting: dict[int, float] = {}  # since when
        self.known: dict[int, WorkerFacts] = {}  # of every worker that ever was ready
        self._losses: Counter[int] = Counter()  # of each worker since its last answer
        self._joins: Joining | None = None  # how the others decode
        self._why_none: Exception = SetupError("no worker could be started")
        for worker in range(processes.count):
            self._begin(worker)
        self._wait_for_start()

    def ask(self, workers: Iterable[int], method: str, *arguments: Any) -> dict[int, Any]:
        """What each of some workers says; one that is lost meanwhile, or cannot, or hangs, is missing.

        Raises:
            DeviceMemoryError: one of them ran out of memory.
            DegradeError: no worker is left.
        """
        waiting, values, overflow = set(workers), dict[int, Any](), list[DeviceMemoryError]()
        for worker in waiting:
            self.processes.send(worker, method, *arguments)
        begun = self.processes.now()
        limit = begun + LONGEST_START_SECONDS
        while waiting and self.processes.now() < limit:
            for reply in self.next_replies():
                if reply.worker not in waiting or reply.method != method:
                    self.take_start(reply)
                    continue
                waiting.remove(reply.worker)
                if isinstance(reply.error, DeviceMemoryError):
                    overflow.append(reply.error)
                elif reply.error is not None:
                    self._refuse(reply.worker, reply.error)
                else:
                    values[reply.worker] = reply.value
                    limit = min(limit, self._patience(begun))
        for worker in waiting:  # should it answer after all, it joins
            self._why_none = SetupError("no worker answers")
            logger.warning("worker %d does not answer: going on without it", worker)
            self.ready.discard(worker)
            self.starting[worker] = self.processes.now()
        if overflow:
            raise overflow[0]
        return values

    def ask_all(self, method: str, *arguments: Any) -> dict[int, Any]:
        """What the workers that are ready say, at least one of them; raises as `ask` does."""
        while not (found := self.ask(self.ready, method, *arguments)):
            self._take_starts()
        return found

    def next_replies(self) -> Sequence[Reply]:
        """What came back by now, waiting a little.

        Raises:
            DegradeError: there is no worker, and none will come.
        """
        now = self.processes.now()
        if not self.ready and all(now - begun > LONGEST_START_SECONDS for begun in self.starting.values()):
            raise self._why_none
        replies = self.processes.replies(POLL_SECONDS)
        stop_if_asked()
        return replies

    def take_start(self, reply: Reply) -> None:
        """The next step of a start: whatever was done, then the shape and engine of the others, if they have one."""
        worker, must_join = reply.worker, self._joins is not None and reply.arguments != self._joins
        fewer_rows_by_now = must_join and reply.method == "join" and isinstance(reply.error, DeviceMemoryError)
        if reply.error is not None and not fewer_rows_by_now:
            self._refuse(worker, reply.error)
            return
        if reply.method == "facts":
            first = next(iter(self.known.values()), reply.value)
            if different := difference(reply.value, first):
                self._refuse(worker, SetupError(different))
                return
            self._know(worker, reply.value)
        if must_join and self._joins:
            self.processes.send(worker, "join", *self._joins)
            return
        self.ready.add(worker)
        self.starting.pop(worker, None)

    def _know(self, worker: int, facts: WorkerFacts) -> None:
        gpus = {known.machine["gpu"] for known in self.known.values() if "gpu" in known.machine}
        self.known[worker] = facts
        if gpus and facts.machine.get("gpu", "none") not in gpus:
            told = ", ".join(sorted({*gpus, facts.machine.get("gpu", "none")}))
            logger.warning("different GPUs, whose sums may round differently: %s", told)

    def join_as(self, *joins: *Joining) -> None:
        """From now on whoever starts begins to decode like this."""
        self._joins = joins

    def decode_as(self, *joins: *Joining, decoding: Iterable[int]) -> None:
        """From now on all decode like this; those that are ready and do not yet join first."""
        self.join_as(*joins)
        for worker in self.ready - set(decoding):
            self.starting[worker] = self.processes.now()
            self.ready.remove(worker)
            self.processes.send(worker, "join", *joins)

    def has_answered(self, worker: int) -> None:
        """A worker does its work, and may be lost as often again."""
        self._losses[worker] = 0

    def begin_again(self, worker: int, reason: str) -> None:
        """Start a worker that is lost, in a new process; not without end."""
        self.ready.discard(worker)
        self._losses[worker] += 1
        if self._losses[worker] > MOST_STARTS:
            self._refuse(worker, SetupError(f"{reason}, {MOST_STARTS} times in a row"))
            return
        logger.warning("worker %d: %s; it is started again", worker, reason)
        self.processes.restart(worker)
        self._begin(worker)

    def _begin(self, worker: int) -> None:
        self.starting[worker] = self.processes.now()
        self.processes.send(worker, "facts")

    def _refuse(self, worker: int, error: Exception) -> None:
        """Go on without a worker that cannot do its work; one whose process is gone begins again.

        Raises:
            SpecError: what is wrong is the spec, for which one worker is as good as another.
        """
        if isinstance(error, SpecError):
            raise error
        if not isinstance(error, DegradeError | DeviceMemoryError):
            self.begin_again(worker, in_words(error))
            return
        self._why_none = SetupError(in_words(error))
        logger.warning("worker %d is left out: %s", worker, in_words(error))
        self.ready.discard(worker)
        self.starting.pop(worker, None)
        self.processes.stop(worker)

    def _wait_for_start(self) -> None:
        """Wait for the first worker, and not much longer for the others."""
        begun, limit = self.processes.now(), float("inf")
        # One that was lost already comes when it comes.
        while [w for w in self.starting if not self.ready or not self._losses[w]] and self.processes.now() < limit:
            self._take_starts()
            if self.ready and limit == float("inf"):
                limit = self._patience(begun)
        if not self.ready:
            raise self._why_none
        if self.starting:
            logger.warning("%d workers are ready: beginning without %d others", len(self.ready), len(self.starting))

    def _patience(self, begun: float) -> float:
        """Until when to wait for others of what the first has just done."""
        now = self.processes.now()
        return now + max(PATIENCE_FACTOR * (now - begun), PATIENCE_SECONDS)

    def _take_starts(self) -> None:
        for reply in self.next_replies():
            self.take_start(reply)


def difference(facts: WorkerFacts, others: WorkerFacts) -> str | None:
    """In what a worker is another than the others, so that its records might be; None if in nothing."""
    for name in ("versions", "model", "model_digest", "checkpoint_settings", "tensors"):
        own, theirs = getattr(facts, name), getattr(others, name)
        if isinstance(own, Mapping):
            key = next((key for key in {**own, **theirs} if own.get(key) != theirs.get(key)), None)
            if key is not None:
                return f"its {name} has {key}: {own.get(key)}, that of the others {theirs.get(key)}"
        elif own != theirs:
            return f"its {name} is {own}, that of the others {theirs}"
    return None


def in_words(error: Exception | None) -> str:
    """What an error says, or its kind."""
    if isinstance(error, DeviceMemoryError):
        return "it has less memory than the others"
    return str(error) or type(error).__name__
