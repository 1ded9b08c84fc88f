"""From any number of questions to answers: rows of a static shape that are filled, watched and filled again.

Kernels do the same for a row whatever its neighbours are, and every mask is spelt out, so an answer depends on nothing
but its question, the weights and the static shape: not on its row, nor on when it was seated. A resumed run gives the
bytes of an uninterrupted one.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from attrs import frozen
from torch import Tensor

from runner.decode_batch import BatchShape, Completion, ImageEmbeddings, Request
from runner.decode_engine import PLAIN, EngineChoice, install, select_engine
from runner.decode_reference import Agreement, check_reference
from runner.decode_sampling import Sampling
from runner.decode_step import DecodeState

STEPS_PER_POLL = 16  # a look makes the host wait for the device, and lets rows that have ended begin anew
FREE_SHARE = 0.25  # of the rows, before reading more prompts is worth the steps that it costs


@frozen
class FinishedBatch:
    """Answers that ended by one look: the visit they belong to, each with its question's index, and their seconds."""

    unit: int
    answers: list[tuple[int, Completion]]
    seconds: float  # since the look before that found some, or since the visit began: they add up


class BatchScheduler:
    """Answers questions with a model in one static shape."""

    def __init__(
        self,
        model: Any,
        shape: BatchShape,
        sampling: Sampling,
        eos: Sequence[int],
        pad: int,
        view: ImageEmbeddings | None = None,
    ) -> None:
        """`eos` are the token ids that end a row, `pad` fills what is not read, `view` is what prompts show."""
        self.shape, self.engine = shape, PLAIN
        self.seen: object = self  # by which weights the picture was last seen: none that anybody knows
        self._decoder = DecodeState(model, shape, sampling, eos, pad, view)

    def use(self, engine: EngineChoice) -> None:
        """Decode with an engine that was found earlier for this model."""
        self.engine = install(self._decoder, engine)

    def check_reference(self, requests: Sequence[Request], examples: Sequence[Mapping[str, Tensor]] = ()) -> Agreement:
        """Compare the plain way to decode with the model's own forward pass; see `reference`.

        Raises:
            SetupError: they differ by more than rounding.
        """
        self.use(PLAIN)
        return check_reference(self._decoder, requests, examples)

    def select_engine(self, requests: Sequence[Request]) -> None:
        """Use the fastest engine that agrees with the plain one about the model as it is now."""
        self.engine = select_engine(self._decoder, requests)

    def show(self, features: Tensor, seen: object) -> None:
        """From now on prompts show these features: the picture as seen by some weights, which `seen` names."""
        self._decoder.show(features)
        self.seen = seen

    def answer(self, requests: Sequence[Request]) -> list[Completion]:
        """All answers of the model as it is, in the order of the questions."""
        found = dict(pair for ended in self.answers([requests]) for pair in ended.answers)
        return [found[index] for index in range(len(requests))]

    def answers(self, units: Iterable[Sequence[Request]]) -> Iterator[FinishedBatch]:
        """Answers as they end, visit by visit; the next visit is asked for when all rows are free.

        What ended by one look is given when the device has its next steps to do already, across visits too: asking for
        a visit may change the model, and work on what is given costs no time. Questions of one prompt had better stand
        together in a visit: it is then read once.
        """
        ended: FinishedBatch | None = None
        for number, requests in enumerate(units):
            waiting, running = deque(enumerate(requests)), dict[int, int]()
            prefix_cache: dict[tuple[int, ...], int] = {}
            started = time.perf_counter()
            while waiting or running:
                free = [row for row in range(self.shape.rows) if row not in running]
                if waiting and self._worth_admitting(free):
                    self._admit(waiting, free, running, prefix_cache)
                self._decoder.advance(STEPS_PER_POLL)
                if ended:
                    yield ended
                found, now = self._collect_finished(running), time.perf_counter()
                ended = FinishedBatch(number, found, now - started) if found else None
                started = now if found else started
        if ended:
            yield ended

    def _worth_admitting(self, free: Sequence[int]) -> bool:
        # On the CPU attention reads the filled part of the cache only, for which all rows must be at the same step.
        share = FREE_SHARE if self._decoder.device.type == "cuda" else 1.0
        return len(free) >= share * self.shape.rows

    def _admit(
        self,
        waiting: deque[tuple[int, Request]],
        free: Sequence[int],
        running: dict[int, int],
        prefix_cache: dict[tuple[int, ...], int],
    ) -> None:
        """Let free rows begin the next questions; prompts that are not in the bank are read first."""
        taken = [waiting.popleft() for _ in range(min(len(free), len(waiting)))]
        while taken:
            known = [pair for pair in taken if tuple(pair[1].token_ids) in prefix_cache]
            if not known:
                ahead = dict.fromkeys(tuple(request.token_ids) for _, request in (*taken, *waiting))
                prompts = list(ahead)[: self.shape.prompts]
                prefix_cache.clear()
                prefix_cache.update({prompt: place for place, prompt in enumerate(prompts)})
                self._decoder.prefill(prompts)
                continue
            rows, free = free[: len(known)], free[len(known) :]
            requests = [request for _, request in known]
            self._decoder.seat(rows, [prefix_cache[tuple(request.token_ids)] for request in requests], requests)
            running.update(zip(rows, (index for index, _ in known), strict=True))
            taken = [pair for pair in taken if pair not in known]

    def _collect_finished(self, running: dict[int, int]) -> list[tuple[int, Completion]]:
        """The answers of rows that have ended, which are free from now on."""
        active = self._decoder.active.tolist()
        rows = [row for row in running if not active[row]]
        if not rows:
            return []
        return [(running.pop(row), answer) for row, answer in zip(rows, self._decoder.answers(rows), strict=True)]
