"""One device of a run: the model, damaged unit by unit, measured and asked; plain values go out, no file is touched."""

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Self

from attrs import evolve

from runner import model_memory
from runner.cli_boundary import is_out_of_memory
from runner.damage_blocks import has_kernels
from runner.damage_model import DamagedModel
from runner.decode_batch import BatchShape, Completion, Request
from runner.decode_engine import SLOWEST_FIRST, WITH_COPIES, EngineChoice, Name, fastest_for
from runner.decode_scheduler import BatchScheduler, FinishedBatch
from runner.env_provenance import machine_facts, versions
from runner.errors import DeviceMemoryError
from runner.model_likelihood import perplexity
from runner.model_vision import damages_vision
from runner.run_copies import can_decode, can_share, make_copies
from runner.run_plan import Answer, AnswerBatch, Condition, DamageReport, Failure, WorkerFacts, WorkUnit
from runner.run_setup import RunContext
from runner.run_start import Start, ask, make_scheduler, sampling_of, select_engine, start_check
from runner.spec_methods import Damage

logger = logging.getLogger(__name__)


class Worker:
    """A model on its device; leaving the `with` block restores every bit of it."""

    failures: Sequence[Failure] = ()  # what cannot be done ends the run; a pool goes on with the rest

    def __init__(self, context: RunContext) -> None:
        """`context` holds the intact model, which is this worker's from now on."""
        self._context = context
        self._damaged_model = DamagedModel(context.lesions.__getitem__)
        self._scheduler: BatchScheduler | None = None
        self._start: Start | None = None
        self._engines: dict[bool, EngineChoice] = {}  # for one condition in a batch, and for several
        self._restore = ExitStack()

    def __enter__(self) -> Self:
        self._restore.enter_context(self._damaged_model)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore.close()

    @cached_property
    def facts(self) -> WorkerFacts:
        """What is known before anything is decoded."""
        context = self._context
        return WorkerFacts(
            device=str(context.device),
            machine=machine_facts(context.device),
            versions=versions(),
            model=context.model_facts(),
            model_digest=context.model_digest,
            checkpoint_settings=context.checkpoint_settings,
            tensors={group: tuple(t.name for t in lesion.targets) for group, lesion in context.lesions.items()},
        )

    @property
    def devices(self) -> dict[str, int]:
        """How many workers there are on which kind of device."""
        return {self.facts.device: 1}

    def doing(self) -> dict[int, object]:
        """What each of several workers is doing; there is one."""
        return {}

    def digests(self, damages: Iterable[Damage]) -> list[str]:
        """The digest of each damaged model; the model is intact before and after."""
        with DamagedModel(self._context.lesions.__getitem__) as damaged_model:
            return [damaged_model.damage(*damage) for damage in damages]

    def rows_that_fit(self, groups: Iterable[str], length: int) -> int:
        """The rows of `length` tokens for which the device has memory beside the largest of these groups."""
        context = self._context
        self._make_room()
        targets = [context.lesions[group].targets for group in groups]
        return model_memory.rows_that_fit(context.model, targets, length, context.device)

    def _make_room(self) -> None:
        """Give back what an earlier shape took, whose memory is needed; the model is intact."""
        self._scheduler = None
        self._damaged_model.release()
        model_memory.release()

    def side_by_side(self, groups: Iterable[str]) -> set[str]:
        """The groups of whose conditions a batch can have several."""
        context = self._context
        if not has_kernels(context.device) or not can_decode(context.model, sampling_of(context.spec)):
            return set()
        return {group for group in groups if can_share(context.model, context.lesions[group].targets)}

    def set_shape(
        self, shape: BatchShape, fastest: Name = SLOWEST_FIRST[-1], groups: Collection[str] = frozenset()
    ) -> Start:
        """Decode in this static shape; the first time, and the first with several conditions, check and choose how.

        No engine is chosen that is faster than `fastest`. `groups` are what conditions that share a batch may damage.

        Raises:
            DeviceMemoryError: so many rows do not fit.
            SetupError: what is decoded is not what the model itself computes.
        """
        self._make_room()
        several = shape.conditions > 1
        with _too_many_rows():
            targets = [self._context.lesions[group].targets for group in groups]
            copies = make_copies(self._context.model, shape, targets) if several else None
            scheduler = make_scheduler(self._context, shape, copies)
            if self._start is None:
                self._start = start_check(self._context, scheduler, fastest)
            elif not several and several in self._engines:
                scheduler.use(self._engines[several])
            else:  # copies of other matrices are tried each time
                known = [engine.name for engine in self._engines.values()]
                select_engine(self._context, scheduler, fastest_for([fastest, *known]))
        if not several or scheduler.engine.name in WITH_COPIES:
            self._engines[several] = scheduler.engine
        self._scheduler = scheduler
        return evolve(self._start, engine=scheduler.engine)

    def use(self, engine: EngineChoice) -> None:
        """Decode with this engine from now on, which others use that could use a faster one.

        Raises:
            DeviceMemoryError: what it needs does not fit.
        """
        if self._scheduler is None:
            raise AssertionError("a shape comes first")
        with _too_many_rows():
            self._scheduler.use(engine)
        self._engines[self._scheduler.shape.conditions > 1] = engine

    def may_grow(self, most_rows: int) -> bool:
        """Whether more rows than those of the shape would fit in memory, up to `most_rows`."""
        rows = self._scheduler.shape.rows if self._scheduler else most_rows
        return model_memory.may_grow(self._context.device, rows, most_rows)

    def answers(self, units: Iterable[WorkUnit], most_rows: int) -> Iterator[Sequence[AnswerBatch]]:
        """Damage the model and let it answer, unit by unit, in the shape that was set; batches as they end.

        Stops before a unit for which more rows would fit in memory, up to `most_rows`. Whatever is done with what is
        given, the device decodes meanwhile.

        Raises:
            DeviceMemoryError: so many rows do not fit; what was given before stays true.
        """
        context, scheduler = self._context, self._scheduler
        if scheduler is None:
            raise AssertionError("a shape comes first")
        reports, shape = list[DamageReport](), scheduler.shape

        def asked() -> Iterator[list[Request]]:
            for unit in units:
                if reports and self.may_grow(most_rows):
                    return
                requests = [evolve(ask(context, one.prompt_index, one.condition.seed), id=one) for one in unit.requests]
                size = len(requests) if shape.conditions == 1 else shape.rows_each
                for first in range(0, len(requests), size):
                    reports.append(self._damage(unit))
                    self._look(unit, scheduler)
                    yield requests[first : first + size]

        told = 0
        with _too_many_rows():
            for ended in self._answers(scheduler, asked()):
                yield (self._batch(reports, told, ended),)
                told = max(told, ended.unit + 1)

    def _answers(self, scheduler: BatchScheduler, asked: Iterable[list[Request]]) -> Iterator[FinishedBatch]:
        """What damaged models answer, one after the other, or several at a time."""
        damaged = self._damaged_model
        if scheduler.shape.conditions == 1:
            return scheduler.answers(asked)
        with_weights = ((requests, [target.weight for target in damaged.targets]) for requests in asked)
        return scheduler.answers_of_conditions(with_weights, damaged.restore)

    def _damage(self, unit: WorkUnit) -> DamageReport:
        """Bring the model into the condition of a unit and say what that did."""
        condition, damaged_model = unit.condition, self._damaged_model
        digest = damaged_model.damage(condition.group, condition.method, condition.level, condition.seed)
        return DamageReport(
            unit=unit,
            digest=digest,
            effect=damaged_model.evidence(condition.method).as_table(),
            baseline=", ".join(damaged_model.baseline_places),
            perplexity=self._perplexity(condition),
        )

    def _look(self, unit: WorkUnit, scheduler: BatchScheduler) -> None:
        """Show the picture as the model sees it, again only where damage may have reached the vision tower."""
        context = self._context
        if context.image_inputs is None:
            return
        damaged = damages_vision(context.model, self._damaged_model.targets)
        seen = unit.condition.weights if damaged else None
        if scheduler.seen != seen:
            scheduler.show(context.image_inputs.look(context.model), seen)

    def _perplexity(self, condition: Condition) -> float | None:
        """The perplexity of the spec's text under the damaged model."""
        if not self._context.spec.perplexity.compute:
            return None
        value = perplexity(self._context.model, self._context.perplexity_ids)
        logger.info("%s: perplexity %s", condition, "is not finite" if value is None else f"{value:.4g}")
        return value

    def _batch(self, reports: Sequence[DamageReport], told: int, ended: FinishedBatch) -> AnswerBatch:
        """What ended together, with the reports from number `told` on that it is the first to follow."""
        return AnswerBatch(
            reports=tuple(reports[told : ended.unit + 1]),
            report=reports[ended.unit],
            answers=tuple(map(self._answer, ended.completions)),
            device=self.facts.device,
            seconds=ended.seconds,
            memory_used=model_memory.used_fraction(self._context.device),
        )

    def _answer(self, completion: Completion) -> Answer:
        text = self._context.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        return Answer(
            id=completion.id, text=text, tokens=len(completion.token_ids), finish_reason=completion.finish_reason
        )


@contextmanager
def _too_many_rows() -> Iterator[None]:
    """Tell of memory that ran out in whatever words, so that fewer rows can be tried."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise DeviceMemoryError from error
        raise
