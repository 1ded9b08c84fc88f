"""Continuous batching: from any number of questions to answers, in rows that are filled again as answers end.

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

from runner.decode_batch import Answer, Question, Shape, View
from runner.decode_engine import PLAIN, Engine, engage, find_engine
from runner.decode_reference import Agreement, check_reference
from runner.decode_sampling import Sampling
from runner.decode_step import Decoder

STEPS_BETWEEN_LOOKS = 16  # a look makes the host wait for the device, and lets rows that have ended begin anew
FREE_SHARE = 0.25  # of the rows, before reading more prompts is worth the steps that it costs


@frozen
class Ended:
    """Answers that ended by one look: the visit they belong to, each with its question's index, and their seconds."""

    visit: int
    answers: list[tuple[int, Answer]]
    seconds: float  # since the look before that found some, or since the visit began: they add up


class Generator:
    """Answers questions with a model in one static shape."""

    def __init__(
        self, model: Any, shape: Shape, sampling: Sampling, eos: Sequence[int], pad: int, view: View | None = None
    ) -> None:
        """`eos` are the token ids that end a row, `pad` fills what is not read, `view` is what prompts show."""
        self.shape, self.engine = shape, PLAIN
        self.seen: object = self  # by which weights the picture was last seen: none that anybody knows
        self._decoder = Decoder(model, shape, sampling, eos, pad, view)

    def use(self, engine: Engine) -> None:
        """Decode with an engine that was found earlier for this model."""
        self.engine = engage(self._decoder, engine)

    def check_reference(
        self, questions: Sequence[Question], examples: Sequence[Mapping[str, Tensor]] = ()
    ) -> Agreement:
        """Compare the plain way to decode with the model's own forward pass; see `reference`.

        Raises:
            SetupError: they differ by more than rounding.
        """
        self.use(PLAIN)
        return check_reference(self._decoder, questions, examples)

    def find_engine(self, questions: Sequence[Question]) -> None:
        """Use the fastest engine that agrees with the plain one about the model as it is now."""
        self.engine = find_engine(self._decoder, questions)

    def show(self, features: Tensor, seen: object) -> None:
        """From now on prompts show these features: the picture as seen by some weights, which `seen` names."""
        self._decoder.show(features)
        self.seen = seen

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """All answers of the model as it is, in the order of the questions."""
        found = dict(pair for ended in self.answers([questions]) for pair in ended.answers)
        return [found[index] for index in range(len(questions))]

    def answers(self, visits: Iterable[Sequence[Question]]) -> Iterator[Ended]:
        """Answers as they end, visit by visit; the next visit is asked for when all rows are free.

        What ended by one look is given when the device has its next steps to do already, across visits too: asking for
        a visit may change the model, and work on what is given costs no time. Questions of one prompt had better stand
        together in a visit: it is then read once.
        """
        ended: Ended | None = None
        for number, questions in enumerate(visits):
            waiting, seated = deque(enumerate(questions)), dict[int, int]()
            bank: dict[tuple[int, ...], int] = {}
            started = time.perf_counter()
            while waiting or seated:
                free = [row for row in range(self.shape.rows) if row not in seated]
                if waiting and self._worth_seating(free):
                    self._seat(waiting, free, seated, bank)
                self._decoder.advance(STEPS_BETWEEN_LOOKS)
                if ended:
                    yield ended
                found, now = self._harvest(seated), time.perf_counter()
                ended = Ended(number, found, now - started) if found else None
                started = now if found else started
        if ended:
            yield ended

    def _worth_seating(self, free: Sequence[int]) -> bool:
        # On the CPU attention reads the filled part of the cache only, for which all rows must be at the same step.
        share = FREE_SHARE if self._decoder.device.type == "cuda" else 1.0
        return len(free) >= share * self.shape.rows

    def _seat(
        self,
        waiting: deque[tuple[int, Question]],
        free: Sequence[int],
        seated: dict[int, int],
        bank: dict[tuple[int, ...], int],
    ) -> None:
        """Let free rows begin the next questions; prompts that are not in the bank are read first."""
        taken = [waiting.popleft() for _ in range(min(len(free), len(waiting)))]
        while taken:
            known = [pair for pair in taken if tuple(pair[1].token_ids) in bank]
            if not known:
                ahead = dict.fromkeys(tuple(question.token_ids) for _, question in (*taken, *waiting))
                prompts = list(ahead)[: self.shape.prompts]
                bank.clear()
                bank.update({prompt: place for place, prompt in enumerate(prompts)})
                self._decoder.fill_bank(prompts)
                continue
            rows, free = free[: len(known)], free[len(known) :]
            questions = [question for _, question in known]
            self._decoder.seat(rows, [bank[tuple(question.token_ids)] for question in questions], questions)
            seated.update(zip(rows, (index for index, _ in known), strict=True))
            taken = [pair for pair in taken if pair not in known]

    def _harvest(self, seated: dict[int, int]) -> list[tuple[int, Answer]]:
        """The answers of rows that have ended, which are free from now on."""
        active = self._decoder.active.tolist()
        rows = [row for row in seated if not active[row]]
        if not rows:
            return []
        return [(seated.pop(row), answer) for row, answer in zip(rows, self._decoder.answers(rows), strict=True)]
