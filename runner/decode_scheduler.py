"""Continuous batching in a static shape: rows are admitted, decoded, polled and admitted again.

Kernels do the same for a row whatever its neighbours are, and every mask is spelt out, so a completion depends on
nothing but its request, the weights and the static shape: not on its row, nor on when it was admitted. A resumed run
gives the bytes of an uninterrupted one.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from attrs import evolve, frozen
from torch import Tensor

from runner.decode_batch import BatchShape, Completion, ImageEmbeddings, Request
from runner.decode_copies import Copies
from runner.decode_engine import PLAIN, SLOWEST_FIRST, WITH_COPIES, EngineChoice, Name, install, select_engine
from runner.decode_reference import Agreement, check_reference
from runner.decode_sampling import Sampling
from runner.decode_step import DecodeState

STEPS_PER_POLL = 16  # a poll makes the host wait for the device, and lets rows that have ended begin anew
FREE_SHARE = 0.25  # of the rows, before reading more prompts is worth the steps that it costs


@frozen
class FinishedBatch:
    """Completions that ended by one poll, all of one unit of work, and their seconds."""

    unit: int
    completions: list[Completion]
    seconds: float  # since the poll before that found some, or since the unit began: they add up


class BatchScheduler:
    """Completes requests with a model in one static shape."""

    def __init__(
        self,
        model: Any,
        shape: BatchShape,
        sampling: Sampling,
        eos: Sequence[int],
        pad: int,
        view: ImageEmbeddings | None = None,
        copies: Copies | None = None,
    ) -> None:
        """`eos` are the token ids that end a row, `pad` fills what is not read, `view` is what prompts show.

        `copies` hold the weights of each condition, where the shape has several.
        """
        self.shape, self.engine = shape, PLAIN
        self.seen: object = self  # by which weights the picture was last seen: none that anybody knows
        self._decoder = DecodeState(model, shape, sampling, eos, pad, view, copies)

    def use(self, engine: EngineChoice) -> None:
        """Decode with an engine that was found earlier for this model."""
        self.engine = install(self._decoder, engine)

    def check_reference(self, requests: Sequence[Request], examples: Sequence[Mapping[str, Tensor]] = ()) -> Agreement:
        """Compare the plain way to decode with the model's own forward pass; see `decode_reference`.

        Raises:
            SetupError: they differ by more than rounding.
        """
        self.use(PLAIN)
        return check_reference(self._decoder, requests, examples)

    def select_engine(self, requests: Sequence[Request], fastest: Name = SLOWEST_FIRST[-1]) -> None:
        """Use the fastest engine, but none faster than `fastest`, that agrees with the plain one about the model."""
        self.engine = select_engine(self._decoder, requests, fastest)

    def show(self, features: Tensor, seen: object) -> None:
        """From now on prompts show these features: the picture as seen by some weights, which `seen` names."""
        self._decoder.show(features)
        self.seen = seen

    def answer(self, requests: Sequence[Request]) -> list[Completion]:
        """All completions of the model as it is, in the order of the requests."""
        numbered = [evolve(request, id=index) for index, request in enumerate(requests)]
        found = {one.id: one for finished in self.answers([numbered]) for one in finished.completions}
        return [evolve(found[index], id=request.id) for index, request in enumerate(requests)]

    def answers(self, units: Iterable[Sequence[Request]]) -> Iterator[FinishedBatch]:
        """Completions as they end, unit by unit; the next unit is asked for when all rows are free.

        What ended by one poll is given when the device has its next steps to do already, across units too: asking for
        a unit may change the model, and work on what is given costs no time. Requests of one prompt had better stand
        together in a unit: it is then read once.
        """
        finished: FinishedBatch | None = None
        for number, requests in enumerate(units):
            waiting, running = deque(requests), dict[int, Request]()
            prefix_cache: dict[tuple[int, ...], int] = {}
            started = time.perf_counter()
            while waiting or running:
                free = [row for row in range(self.shape.rows) if row not in running]
                if waiting and self._worth_admitting(free):
                    self._admit(waiting, free, running, prefix_cache)
                self._decoder.advance(STEPS_PER_POLL)
                if finished:
                    yield finished
                found, now = [*self._collect_finished(running).values()], time.perf_counter()
                finished = FinishedBatch(number, found, now - started) if found else None
                started = now if found else started
        if finished:
            yield finished

    def answers_of_conditions(
        self, units: Iterable[tuple[Sequence[Request], Sequence[Tensor]]], restore: Callable[[], None]
    ) -> Iterator[FinishedBatch]:
        """Completions of several damaged models at a time, as they end; the next unit is asked for when one has ended.

        A unit has at most the requests that a condition has rows for, and the damaged weights, which `restore` makes
        intact again when they are copied: whatever is being decoded meanwhile reads the intact ones.
        """
        copies = self._decoder.copies
        if copies is None or self.engine.name not in WITH_COPIES:
            raise AssertionError("the shape has one condition, or the engine cannot have several")
        each, following = self.shape.rows_each, enumerate(units)
        running, units_of_places = dict[int, Request](), dict[int, int]()
        finished, started = list[FinishedBatch](), time.perf_counter()
        while True:
            for place in {*range(self.shape.conditions)} - {row // each for row in running}:
                if (unit := next(following, None)) is not None:
                    units_of_places[place], (requests, damaged) = unit
                    self._admit(deque(requests), range(place * each, (place + 1) * each), running, {})
                    copies.keep(place, damaged)
                    restore()
            if not running:
                break
            self._decoder.advance(STEPS_PER_POLL)
            yield from finished
            found, now = self._collect_finished(running), time.perf_counter()
            by_place: dict[int, list[Completion]] = {}
            for row, completion in found.items():
                by_place.setdefault(row // each, []).append(completion)
            finished = [
                FinishedBatch(units_of_places[place], some, (now - started) * len(some) / len(found))
                for place, some in by_place.items()
            ]
            started = now if found else started
        yield from finished

    def _worth_admitting(self, free: Sequence[int]) -> bool:
        # On the CPU attention reads the filled part of the cache only, for which all rows must be at the same step.
        share = FREE_SHARE if self._decoder.device.type == "cuda" else 1.0
        return len(free) >= share * self.shape.rows

    def _admit(
        self,
        waiting: deque[Request],
        free: Sequence[int],
        running: dict[int, Request],
        prefix_cache: dict[tuple[int, ...], int],
    ) -> None:
        """Let free rows begin the next requests; prompts that are not in the prefix cache are read first."""
        taken = [waiting.popleft() for _ in range(min(len(free), len(waiting)))]
        while taken:
            known = [request for request in taken if tuple(request.token_ids) in prefix_cache]
            if not known:
                ahead = dict.fromkeys(tuple(request.token_ids) for request in (*taken, *waiting))
                prompts = list(ahead)[: self.shape.prompts]
                prefix_cache.clear()
                prefix_cache.update({prompt: place for place, prompt in enumerate(prompts)})
                self._decoder.prefill(prompts)
                continue
            rows, free = free[: len(known)], free[len(known) :]
            self._decoder.start_rows(rows, [prefix_cache[tuple(request.token_ids)] for request in known], known)
            running.update(zip(rows, known, strict=True))
            taken = [request for request in taken if tuple(request.token_ids) not in prefix_cache]

    def _collect_finished(self, running: dict[int, Request]) -> dict[int, Completion]:
        """The completions of rows that have ended, which are free from now on."""
        active = self._decoder.active.tolist()
        rows = [row for row in running if not active[row]]
        if not rows:
            return {}
        ended = zip(rows, self._decoder.answers(rows), strict=True)
        return {row: evolve(completion, id=running.pop(row).id) for row, completion in ended}
