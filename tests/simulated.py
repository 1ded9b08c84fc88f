"""Worker processes that do not exist: calls take drawn durations of a clock of their own, and workers die as drawn."""

import hashlib
import heapq
import time
from collections.abc import Callable, Iterator
from typing import Any

from attrs import define, field, frozen

from runner.decode_batch import BatchShape
from runner.decode_engine import PLAIN, SLOWEST_FIRST, EngineChoice
from runner.decode_reference import Agreement
from runner.errors import WorkerLostError
from runner.run_plan import Answer, AnswerBatch, DamageReport, WorkerFacts, WorkUnit
from runner.run_start import Start
from runner.run_team import Reply

Fate = Callable[[int, str, WorkUnit | None], tuple[float, Exception | None]]  # seconds, and the error it ends with
NEVER = float("inf")
IDLE_SECONDS = 30.0  # that go by unseen where all workers hang, of which there are hours
AGREEMENT = Agreement(difference=0.0, tolerance=1.0, prompts=1, tokens=1, repeatable=None)


def facts(**changed: Any) -> WorkerFacts:
    """Those of a simulated worker."""
    usual: dict[str, Any] = {
        "device": "cpu",
        "machine": {"device": "cpu"},
        "versions": {"degrade": "0"},
        "model": {
            "class": "Simulated",
            "commit": "none",
            "digest": "e" * 16,
            "parameters": 1,
            "tied_embeddings": False,
        },
        "model_digest": "e" * 16,
        "checkpoint_settings": {"end_tokens": [2]},
        "tensors": {group: (group,) for group in ("attn_only", "mlp_only", "embed_only")},
    }
    return WorkerFacts(**usual | changed)


def answers_to(unit: WorkUnit) -> list[AnswerBatch]:
    """What any worker answers: a function of the requests."""
    digest = hashlib.sha256(repr(unit.condition.weights).encode()).hexdigest()[:16]
    report = DamageReport(unit=unit, digest=digest, effect={"weights": 1}, baseline="cpu", perplexity=None)
    answers = tuple(Answer(id=one, text=f"{one}", tokens=3, finish_reason="eos") for one in unit.requests)
    return [AnswerBatch(reports=(report,), report=report, answers=answers, device="cpu", seconds=1.0, memory_used=None)]


class RaisedError(WorkerLostError):
    """A call has failed, and the process lives on."""


@define
class _Process:
    calls: list[Reply] = field(factory=list)  # in their order, the first being obeyed
    incarnation: int = 0


@frozen(order=True)
class _Event:
    time: float
    number: int
    worker: int = field(eq=False)
    incarnation: int = field(eq=False)


class SimulatedProcesses:
    """The `run_members.Processes` of a simulation."""

    def __init__(
        self,
        count: int,
        fate: Fate,
        engines: Callable[[int], EngineChoice] = lambda _: PLAIN,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """With a `clock` time goes by itself, and what ended while nobody looked comes together."""
        self.count, self._fate, self._engines, self._own = count, fate, engines, clock
        self._clock, self._number = 0.0, 0
        self._processes = [_Process() for _ in range(count)]
        self._events: list[_Event] = []
        self._fates: dict[int, tuple[float, Exception | None]] = {}
        self.facts_of: Callable[[int], WorkerFacts] = lambda _: facts()
        self.sent = 0
        self.busy = [0.0] * count  # seconds

    def now(self) -> float:
        """Seconds of the simulation."""
        if self._own is not None:
            self._clock = max(self._clock, self._own())
        return self._clock

    def send(self, worker: int, method: str, *arguments: Any) -> None:
        """See `Processes.send`."""
        self.sent += 1
        process = self._processes[worker]
        process.calls.append(Reply(worker, method, arguments))
        if len(process.calls) == 1:
            self._obey(worker)

    def _obey(self, worker: int) -> None:
        """Begin the first call of a worker."""
        process = self._processes[worker]
        call = process.calls[0]
        seconds, error = self._fate(worker, call.method, call.arguments[1][0] if call.method == "answer" else None)
        if seconds == NEVER:
            return
        self._number += 1
        self._fates[self._number] = seconds, error
        heapq.heappush(self._events, _Event(self._clock + seconds, self._number, worker, process.incarnation))

    def replies(self, timeout: float) -> list[Reply]:
        """See `Processes.replies`; everything that ends at one moment comes together."""
        limit = self.now() + timeout
        while self._events and self._events[0].time <= limit:
            self._wait_until(self._events[0].time)
            found = []
            while self._events and self._events[0].time <= self._clock:
                found += self._end(heapq.heappop(self._events))
            if found:
                return found
        self._wait_until(limit if self._events or self._own is not None else limit + IDLE_SECONDS)
        return []

    def _wait_until(self, moment: float) -> None:
        if self._own is not None:
            time.sleep(max(0.0, moment - self.now()))
        self._clock = max(self.now(), moment)

    def _end(self, event: _Event) -> Iterator[Reply]:
        process = self._processes[event.worker]
        seconds, error = self._fates.pop(event.number)
        if process.incarnation != event.incarnation:
            return
        call = process.calls.pop(0)
        self.busy[event.worker] += seconds
        if isinstance(error, WorkerLostError) and not isinstance(error, RaisedError):
            process.calls.clear()
            process.incarnation += 1
        elif process.calls:
            self._obey(event.worker)
        yield Reply(call.worker, call.method, call.arguments, None if error else self._value(call), error)

    def _value(self, call: Reply) -> Any:
        value: Any = None
        match call.method:
            case "facts":
                value = self.facts_of(call.worker)
            case "set_shape":
                own, (_, fastest, _) = self._engines(call.worker), call.arguments
                slower = SLOWEST_FIRST.index(own.name) <= SLOWEST_FIRST.index(fastest)
                value = Start(own if slower else EngineChoice(fastest), AGREEMENT)
            case "rows_that_fit":
                value = 40 + call.worker
            case "side_by_side":
                value = {*call.arguments[0][call.worker :]}
            case "digests":
                value = [hashlib.sha256(repr(damage).encode()).hexdigest()[:16] for damage in call.arguments[0]]
            case "answer":
                value = [batch for unit in call.arguments[1] for batch in answers_to(unit)], False
        return value

    def restart(self, worker: int) -> None:
        """See `Processes.restart`."""
        self.stop(worker)

    def stop(self, worker: int) -> None:
        """See `Processes.stop`."""
        process = self._processes[worker]
        process.calls.clear()
        process.incarnation += 1


SHAPE = BatchShape(rows=4, prompt_length=8, new_tokens=4)
