"""A worker in a process of its own: what it is told, and its methods, which take and give plain values."""

import os
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from functools import cached_property

import torch
from attrs import evolve

from runner import model_load
from runner.decode_batch import BatchShape
from runner.decode_engine import SLOWEST_FIRST, EngineChoice, Name
from runner.errors import SetupError
from runner.model_load import choose_device, fits, wake
from runner.run_identity import tokens_digest
from runner.run_plan import AnswerBatch, WorkerFacts, WorkUnit
from runner.run_setup import prepare_run
from runner.run_start import Start
from runner.run_team import Assignment
from runner.run_worker import Worker
from runner.spec_methods import Damage
from runner.task_tokens import Tokens, tokenise


class RemoteWorker:
    """The worker of a process that does nothing else; whatever was damaged ends with the process."""

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment
        self._tokens_digest = ""
        self._groups: Sequence[str] = ()

    def prepare(self) -> None:
        """Do beside the driver what it does itself before it calls: find the device, read the prompts as tokens.

        Raises:
            SpecError, SetupError: whatever is wrong; the first call raises it again.
        """
        wake(self._device)
        _ = self._tokens

    def begin(self, tokens_digest: str, groups: Sequence[str]) -> None:
        """Hear what the driver has found out: the digest of all prompts as it reads them, and what will be damaged."""
        self._tokens_digest, self._groups = tokens_digest, groups

    @cached_property
    def _device(self) -> torch.device:
        told = self._assignment
        with suppress(OSError):  # another host need not have it
            os.chdir(told.folder)
        model_load.quieten()
        device = choose_device(told.spec.model.device)
        if device.type == "cpu":
            torch.set_num_threads(told.threads)
        return device

    @cached_property
    def _tokens(self) -> Tokens:
        return tokenise(self._assignment.spec, self._assignment.inputs)

    @cached_property
    def _worker(self) -> Worker:
        """Made by the first call, so that what goes wrong is the reply to a call."""
        told, device = self._assignment, self._device
        if tokens_digest(self._tokens.flat) != self._tokens_digest:
            raise SetupError(
                "model.id: its tokenizer is not that of the driver. Give every host the same model.revision"
            )
        worker = Worker(prepare_run(told.spec, told.inputs, self._tokens, self._groups, device))
        return worker.__enter__()

    def fits(self) -> bool:
        """See `model_load.fits`."""
        return fits(self._assignment.spec.model, self._device)

    def facts(self) -> WorkerFacts:
        """See `Worker.facts`; the device is named with the model of its GPU, for others may have another."""
        facts = self._worker.facts
        gpu = facts.machine.get("gpu")
        return evolve(facts, device=f"{facts.device} {gpu}") if gpu else facts

    def digests(self, damages: Iterable[Damage]) -> list[str]:
        """See `Worker.digests`."""
        return self._worker.digests(damages)

    def rows_that_fit(self, groups: Iterable[str], length: int) -> int:
        """See `Worker.rows_that_fit`."""
        return self._worker.rows_that_fit(groups, length)

    def side_by_side(self, groups: Iterable[str]) -> set[str]:
        """See `Worker.side_by_side`."""
        return self._worker.side_by_side(groups)

    def set_shape(self, shape: BatchShape, fastest: Name, groups: Collection[str]) -> Start:
        """See `Worker.set_shape`."""
        return self._worker.set_shape(shape, fastest, groups)

    def use(self, engine: EngineChoice) -> None:
        """See `Worker.use`."""
        self._worker.use(engine)

    def join(self, shape: BatchShape, engine: EngineChoice, groups: Collection[str]) -> None:
        """Decode as the others do, in their shape and with their engine.

        Raises:
            DeviceMemoryError: so many rows do not fit.
            SetupError: this device cannot use that engine.
        """
        own = self._worker.set_shape(shape, engine.name, groups).engine
        if SLOWEST_FIRST.index(own.name) < SLOWEST_FIRST.index(engine.name):
            raise SetupError(f"the others decode with engine {engine.name}, and it cannot: {own.note}")
        self._worker.use(engine)

    def answer(self, _number: int, units: Sequence[WorkUnit], most_rows: int) -> tuple[list[AnswerBatch], bool]:
        """All answers of some units, and whether more rows would fit in memory, up to `most_rows`.

        Raises:
            DeviceMemoryError: the rows of the shape do not fit.
        """
        facts = self.facts()
        # More units are done to their end, so that two workers say the same of them, whatever memory they have.
        ended = self._worker.answers(units, most_rows if len(units) == 1 else 0)
        batches = [evolve(batch, device=facts.device) for together in ended for batch in together]
        return batches, self._worker.may_grow(most_rows)
