"""Several workers as one: units of work go to whoever is free, again where a worker died, and come back once."""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence

from attrs import define, field

from runner.decode_batch import BatchShape
from runner.decode_engine import SLOWEST_FIRST, WITH_COPIES, Name, fastest_for
from runner.errors import DeviceMemoryError, SetupError
from runner.run_members import POLL_SECONDS, Members, Processes, in_words
from runner.run_plan import AnswerBatch, Failure, WorkerFacts, WorkUnit
from runner.run_queue import HUNG_FACTOR, HUNG_SECONDS, OVERDUE_FACTOR, UnitQueue
from runner.run_start import Start
from runner.run_team import Reply
from runner.spec_methods import Damage

logger = logging.getLogger(__name__)

# Where all the others wait for it, so that another number of rows can be tried.
LONGEST_WAIT_SECONDS = 600.0


@define
class _Round:
    """Units handed out until all are done, or until another number of rows is to be tried."""

    queue: UnitQueue
    overflow: DeviceMemoryError | None = None
    roomy: set[int] = field(factory=set)  # workers that have memory for more rows

    def ends(self, ready: Collection[int]) -> bool:
        """Whether nothing more is handed out to these workers."""
        return self.overflow is not None or (bool(self.roomy) and self.roomy.issuperset(ready))


class Pool:
    """Workers in other processes, used as the one of this process is (`run_worker.Worker`)."""

    def __init__(self, processes: Processes) -> None:
        """Waits until the workers are there.

        Raises:
            DegradeError: none of them can work.
        """
        self._members = Members(processes)
        self._starts: dict[bool, Start] = {}  # for one condition in a batch, and for several
        self._conditions = 1  # in a batch, which are what a worker gets at a time
        self._round = _Round(UnitQueue(()))
        self.failures: list[Failure] = []

    @property
    def facts(self) -> WorkerFacts:
        """What is known before anything is decoded; all workers agree in it, their machines aside."""
        return next(iter(self._members.known.values()))

    @property
    def devices(self) -> dict[str, int]:
        """How many workers there were on which kind of device."""
        return dict(Counter(facts.device for facts in self._members.known.values()))

    def digests(self, damages: Iterable[Damage]) -> list[str]:
        """See `Worker.digests`; the model of each worker has the same digest, and so does what becomes of it.

        Raises:
            SetupError: it does not.
        """
        found: dict[int, list[str]] = self._members.ask_all("digests", list(damages))
        first, *others = found.values()
        if any(other != first for other in others):
            raise SetupError("the same damage has another digest on another worker: one of the machines is broken")
        return first

    def rows_that_fit(self, groups: Iterable[str], length: int) -> int:
        """See `Worker.rows_that_fit`; those of the worker with the least memory."""
        found: dict[int, int] = self._members.ask_all("rows_that_fit", sorted(groups), length)
        return min(found.values())

    def side_by_side(self, groups: Iterable[str]) -> set[str]:
        """See `Worker.side_by_side`; what all workers can do."""
        found: dict[int, set[str]] = self._members.ask_all("side_by_side", sorted(groups))
        return set.intersection(*found.values())

    def set_shape(
        self, shape: BatchShape, fastest: Name = SLOWEST_FIRST[-1], groups: Collection[str] = frozenset()
    ) -> Start:
        """See `Worker.set_shape`; all use the engine of the slowest, for the sums of another would round otherwise."""
        several, self._conditions = shape.conditions > 1, shape.conditions
        start = self._starts.get(several)
        if start is not None:
            self._members.join_as(shape, start.engine, groups)
        fastest = fastest_for([fastest, *(known.engine.name for known in self._starts.values())])
        starts: dict[int, Start] = self._members.ask_all("set_shape", shape, fastest, groups)
        if start is None:
            start = min(starts.values(), key=lambda start: SLOWEST_FIRST.index(start.engine.name))
        engine = start.engine
        if not several or engine.name in WITH_COPIES:
            self._starts[several] = start
        others = [worker for worker, start in starts.items() if start.engine.name != engine.name]
        for worker in others:
            logger.warning("worker %d: decodes with engine %s, the fastest that all have", worker, engine.name)
        self._members.ask(others, "use", engine)
        self._members.decode_as(shape, engine, groups, decoding=starts)
        return start

    def answers(self, units: Iterable[WorkUnit], most_rows: int) -> Iterator[Sequence[AnswerBatch]]:
        """See `Worker.answers`; units end in any order, and what could not be done is added to `failures`.

        Raises:
            DeviceMemoryError: so many rows do not fit on some worker; what was given before stays true.
            DegradeError: no worker is left, or two of them disagree.
        """
        members, now = self._members, _Round(UnitQueue(self._bundled(list(units))))
        self._round = now
        free, looked = set(members.ready), members.processes.now()
        while not now.queue.is_done:
            if not now.ends(members.ready):
                self._hand_out(free, most_rows)
            elif not now.queue.busy:
                break
            replies = members.next_replies()
            if new := [batch for reply in replies for batch in self._take(reply)]:
                yield new
            hung = set[int]()
            if members.processes.now() - looked >= POLL_SECONDS:
                hung, looked = self._lose_hung(), members.processes.now()
            # Whoever waits may take the units of one that is lost, or what another has for too long.
            all_done_well = replies and not hung and all(reply.error is None for reply in replies)
            free = {reply.worker for reply in replies} if all_done_well else set(members.ready)
        for worker in now.queue.busy:
            members.begin_again(worker, "has not answered, and another did its work")
        self.failures += now.queue.failures.values()
        if now.overflow is not None:
            raise now.overflow

    def _bundled(self, units: Sequence[WorkUnit]) -> list[Sequence[WorkUnit]]:
        """As many units as a batch has conditions, or fewer, so that every worker has some."""
        size = max(1, min(self._conditions, -(-len(units) // max(1, len(self._members.ready)))))
        return [units[first : first + size] for first in range(0, len(units), size)]

    def doing(self) -> dict[int, object]:
        """What each worker is doing: a condition, or a word; may be called from another thread."""
        units = self._round.queue.first_of_each()
        found = {worker: unit.condition for worker, unit in units.items()}
        return {**found, **dict.fromkeys([*self._members.starting], "starts")}

    def _hand_out(self, workers: Iterable[int], most_rows: int) -> None:
        """Give workers what they should have ahead: a bundle of units to each, then the next to each."""
        processes, queue = self._members.processes, self._round.queue
        asking = [worker for worker in sorted(workers) if worker in self._members.ready]
        while asking:
            given = [(worker, queue.next_for(worker, processes.now())) for worker in asking]
            for worker, bundle in given:
                if bundle is not None:
                    processes.send(worker, "answer", *bundle, most_rows)
            asking = [worker for worker, bundle in given if bundle is not None]

    def _take(self, reply: Reply) -> Sequence[AnswerBatch]:
        """What a reply brings that is new."""
        worker, now = reply.worker, self._round
        if reply.method != "answer":
            self._members.take_start(reply)
            return ()
        number: int = reply.arguments[0]
        if not now.queue.has(worker, number):  # its process failed at the unit before, and is another by now
            return ()
        if isinstance(reply.error, DeviceMemoryError):
            now.overflow = reply.error
            now.queue.given_back(worker, number)
            return ()
        if reply.error is not None:
            self._lose(worker, in_words(reply.error))
            return ()
        batches, room = reply.value
        now.roomy = now.roomy | {worker} if room else now.roomy - {worker}
        self._members.has_answered(worker)
        is_new = now.queue.answered(worker, number, batches, self._members.processes.now())
        return batches if is_new else ()

    def _lose_hung(self) -> set[int]:
        """Give up workers that will not answer, sooner where all others wait for them."""
        queue, members = self._round.queue, self._members
        waits = self._round.ends(members.ready)
        limit = (OVERDUE_FACTOR, LONGEST_WAIT_SECONDS) if waits else (HUNG_FACTOR, HUNG_SECONDS)
        hung = queue.silent(members.processes.now(), *limit)
        for worker in hung:
            self._lose(worker, "does not answer")
        return hung

    def _lose(self, worker: int, reason: str) -> None:
        """Start a worker again; what it had goes to others, or has failed."""
        for failure in self._round.queue.lost(worker, reason):
            logger.error("%s: given up, no worker could do it: %s", failure.unit.condition, failure.reason)
        self._members.begin_again(worker, reason)
