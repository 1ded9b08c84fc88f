"""Units of work handed out to several workers in bundles: who has what, how often it was tried, what two copies say."""

from collections import deque
from collections.abc import Iterable, Sequence

from attrs import define, field

from runner.errors import SetupError
from runner.run_plan import AnswerBatch, Failure, WorkUnit

Bundle = Sequence[WorkUnit]  # what a worker is given at a time: as many units as its batches can mix

MOST_ATTEMPTS = 3
AHEAD = 2  # bundles that a worker has at a time, so that it never waits for the next
# A worker that takes so many times the longest bundle, and so many seconds, may never answer: another does the same.
OVERDUE_FACTOR, OVERDUE_SECONDS = 3.0, 60.0
# So long that it never will; seldom reached, for it takes units on which two hang, or workers that all do.
HUNG_FACTOR, HUNG_SECONDS = 20.0, 6 * 3600.0


@define
class _Out:
    """What a worker has: numbers of bundles, the first being done since a time."""

    numbers: deque[int] = field(factory=deque)
    since: float = 0.0


class UnitQueue:
    """Bundles of units, until each was answered once or has failed; times are seconds of any one clock."""

    def __init__(self, bundles: Iterable[Bundle]) -> None:
        self._bundles = list(bundles)
        self._waiting = deque(range(len(self._bundles)))
        self._out: dict[int, _Out] = {}  # by worker
        self._attempts = [0] * len(self._bundles)
        self._answers: dict[int, int] = {}  # of every answered bundle, a hash of what was said
        self._longest = 0.0
        self.failures: dict[int, Failure] = {}

    @property
    def is_done(self) -> bool:
        """Whether everything was answered or has failed."""
        return len(self._answers) + len(self.failures) == len(self._bundles)

    @property
    def busy(self) -> set[int]:
        """The workers that have something to do."""
        return {worker for worker, out in self._out.items() if out.numbers}

    def has(self, worker: int, number: int) -> bool:
        """Whether a worker has a bundle, as it has not where it was lost meanwhile."""
        return worker in self._out and number in self._out[worker].numbers

    def first_of_each(self) -> dict[int, WorkUnit]:
        """What each worker is doing; may be called from another thread."""
        firsts = {worker: [*out.numbers][:1] for worker, out in [*self._out.items()]}
        return {worker: self._bundles[number][0] for worker, numbers in firsts.items() for number in numbers}

    def silent(self, now: float, factor: float, seconds: float) -> set[int]:
        """Workers that are at a bundle for more than so many times the longest, and more than so many seconds."""
        limit = max(factor * self._longest, seconds)
        return {worker for worker, out in self._out.items() if out.numbers and now - out.since > limit}

    def next_for(self, worker: int, now: float) -> tuple[int, Bundle] | None:
        """The bundle that a worker gets now, with its number; None where there is none, or it has enough.

        Where nothing waits, an idle worker gets a bundle that another had long enough.
        """
        out = self._out.setdefault(worker, _Out())
        if len(out.numbers) >= AHEAD:
            return None
        if self._waiting:
            number = self._waiting.popleft()
        elif out.numbers or (overdue := self._overdue(now)) is None:
            return None
        else:
            number = overdue
        if not out.numbers:
            out.since = now
        out.numbers.append(number)
        return number, self._bundles[number]

    def _overdue(self, now: float) -> int | None:
        """The number of a bundle that only a worker has which may never answer."""
        silent = self.silent(now, OVERDUE_FACTOR, OVERDUE_SECONDS)
        late = [number for worker in self._out if worker in silent for number in self._out[worker].numbers]
        held = [number for out in self._out.values() for number in out.numbers]
        return next((number for number in late if held.count(number) == 1 and number not in self._answers), None)

    def answered(self, worker: int, number: int, batches: Sequence[AnswerBatch], now: float) -> bool:
        """Whether these are the first answers of a bundle, which then count; a second copy is compared.

        Raises:
            SetupError: two workers gave different answers, so that neither can be believed.
        """
        out = self._out[worker]
        out.numbers.remove(number)
        self._longest, out.since = max(self._longest, now - out.since), now
        said = _hash(batches)
        if number in self.failures:
            del self.failures[number]
        elif (before := self._answers.get(number)) is not None:
            if before != said:
                condition = self._bundles[number][0].condition
                raise SetupError(
                    f"{condition}: two workers gave different answers to the same prompts under the same weights. One "
                    "of the machines computes wrongly; the sidecar lists them. Everything finished is saved"
                )
            return False
        self._answers[number] = said
        return True

    def given_back(self, worker: int, number: int) -> None:
        """Let another worker do a bundle, or this one later; it does not count as an attempt."""
        self._out[worker].numbers.remove(number)
        self._put_back(number)

    def lost(self, worker: int, reason: str) -> Sequence[Failure]:
        """Take back what a worker had that is gone; what it did counts as tried, is split, or may have failed."""
        numbers = self._out.pop(worker, _Out()).numbers
        if not numbers:
            return ()
        first = numbers[0]
        self._attempts[first] += 1
        for number in reversed(numbers):
            self._put_back(number)
        if first not in self._waiting:
            return ()
        if len(self._bundles[first]) > 1:
            self._split(first)
            return ()
        if self._attempts[first] < MOST_ATTEMPTS:
            return ()
        self._waiting.remove(first)
        self.failures[first] = Failure(self._bundles[first][0], reason)
        return [self.failures[first]]

    def _split(self, number: int) -> None:
        """Hand out the units of a bundle one by one, since one of them may be what a worker was lost by."""
        self._bundles[number], *others = ([unit] for unit in self._bundles[number])
        for bundle in others:
            self._waiting.append(len(self._bundles))
            self._bundles.append(bundle)
            self._attempts.append(self._attempts[number])

    def _put_back(self, number: int) -> None:
        held = any(number in out.numbers for out in self._out.values())
        if not held and number not in self._answers and number not in self.failures:
            self._waiting.appendleft(number)


def _hash(batches: Sequence[AnswerBatch]) -> int:
    """Equal for equal answers, in whatever order they ended."""
    answers = {(answer, batch.report.digest, batch.report.perplexity) for batch in batches for answer in batch.answers}
    return hash(frozenset(answers))
