"""The course of a run: for each condition restore, damage, generate, append; the only module that sees everything."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from attrs import asdict, evolve

from runner import env_provenance, model_memory
from runner.cli_console import Progress, log_file
from runner.damage_model import DamagedModel
from runner.decode_batch import Request
from runner.decode_scheduler import BatchScheduler
from runner.errors import SetupError
from runner.model_likelihood import perplexity
from runner.model_load import choose_device
from runner.model_vision import damages_vision
from runner.results_record import experiment_id
from runner.results_sidecar import Sidecar
from runner.run_identity import tokens_digest
from runner.run_plan import Condition, PendingCondition, RequestId, WorkUnit, all_conditions, most_requests, work_units
from runner.run_resume import (
    Experiment,
    check_asked,
    check_same_model,
    guarded,
    open_experiments,
    static_shape,
    witnesses_of,
)
from runner.run_setup import RunContext, prepare_run
from runner.run_start import Start, ask, make_scheduler, start_check
from runner.run_writer import DamageReport, RecordWriter
from runner.spec import Spec
from runner.task_tokens import TaskInputs, check, tokenise

logger = logging.getLogger(__name__)


def run(spec: Spec, spec_folder: Path, results: Path, *, force: bool = False) -> None:
    """Do what of a spec is not done yet, and append it to the results files.

    Raises:
        SpecError: the spec asks for what cannot be, or for other settings than those of an existing file.
        SetupError: model, memory or disk are not there; whatever was finished is in the files.
    """
    inputs = check(spec, spec_folder)
    with ExitStack() as files:
        experiments = list(open_experiments(spec, inputs, results, files, force=force))
        if not any(experiment.pending for experiment in experiments):
            check_finished(experiments, spec, inputs)
            logger.info("%s: nothing to do, every record is there", spec.name)
            return
        device = choose_device(spec.model.device)  # a missing GPU is told before anything is fetched
        tokens = tokenise(spec, inputs)
        experiments = [guarded(e, partial(check_asked, e.past, spec, inputs, tokens)) for e in experiments]
        pending = [pending for experiment in experiments for pending in experiment.pending]
        context = prepare_run(spec, inputs, tokens, groups_of(experiments, spec), device)
        experiments = [guarded(e, partial(check_same_model, e.past, context)) for e in experiments if e.pending]
        start: Start | None = None  # made by the first experiment, while the model is intact
        with Progress(pending) as progress, DamagedModel(context.resolve_targets) as damaged_model:
            for experiment in experiments:
                with log_file(results / "logs", experiment_id(spec, experiment.method)):
                    start = run_experiment(context, experiment, damaged_model, progress, start)


def check_finished(experiments: Sequence[Experiment], spec: Spec, inputs: TaskInputs) -> None:
    """Refuse prompts that are not what finished records were asked; a model that is gone by now is no reason."""
    try:
        tokens = tokenise(spec, inputs)
    except SetupError as error:
        logger.debug("finished records are not compared with the tokenizer: %s", error)
        return
    for experiment in experiments:
        check_asked(experiment.past, spec, inputs, tokens)


def groups_of(experiments: Sequence[Experiment], spec: Spec) -> set[str]:
    """The groups that are damaged: by conditions, and once more to compare the model with that of earlier records."""
    asked = {pending.condition.group for experiment in experiments for pending in experiment.pending}
    return asked | {
        w.group for experiment in experiments if experiment.pending for w in witnesses_of(experiment.past, spec)
    }


def run_experiment(
    context: RunContext, experiment: Experiment, damaged_model: DamagedModel, progress: Progress, start: Start | None
) -> Start | None:
    """Every condition of one method: damage, measure, answer, append; how the run started."""
    left = {pending.condition: set(pending.prompt_indices) for pending in experiment.pending}
    most = most_rows(context, experiment)
    shape = static_shape(context.spec, context.token_ids, experiment.past.last_record, most)
    sidecar: Sidecar | None = None
    scheduler: BatchScheduler | None
    while any(left.values()):
        model_memory.release()
        try:
            scheduler = make_scheduler(context, shape)
            if start is None:
                start = start_check(context, scheduler)
            else:
                scheduler.use(start.engine)
            sidecar = sidecar or open_sidecar(context, experiment, start)
            writer = RecordWriter(
                context=context,
                file=experiment.file,
                sidecar=sidecar,
                progress=progress,
                prompt_ids=experiment.prompt_ids,
            )
            units = work_units(
                PendingCondition(condition, tuple(sorted(indices))) for condition, indices in left.items() if indices
            )
            for done in run_units(units, scheduler, damaged_model, writer, most):
                left[done.condition].remove(done.prompt_index)
            rows = min(2 * shape.rows, most)  # if requests are left, there is room for more rows
        except torch.OutOfMemoryError:
            rows = model_memory.rows_after_overflow(shape.rows)
        shape, scheduler = shape.with_rows(rows), None
    return start


def run_units(
    units: Sequence[WorkUnit], scheduler: BatchScheduler, damaged_model: DamagedModel, writer: RecordWriter, most: int
) -> Iterator[RequestId]:
    """Damage the model and let it answer, unit by unit; gives the requests whose records are on the disk.

    Stops before a unit for which more rows would fit in memory. While this writes, the device decodes.
    """
    context, reports = writer.context, list[DamageReport]()

    def damaged_models() -> Iterator[list[Request]]:
        for unit in units:
            if reports and model_memory.may_grow(context.device, scheduler.shape.rows, most):
                return
            reports.append(damage(context, unit, damaged_model))
            look(context, unit, damaged_model, scheduler)
            yield [evolve(ask(context, one.prompt_index, one.condition.seed), id=one) for one in unit.requests]

    described = 0
    for ended in scheduler.answers(damaged_models()):
        new, described = reports[described : ended.unit + 1], max(described, ended.unit + 1)
        yield from writer.write(new, reports[ended.unit], ended, scheduler.shape)


def damage(context: RunContext, unit: WorkUnit, damaged_model: DamagedModel) -> DamageReport:
    """Bring the model into the condition of a unit and say what that did."""
    condition = unit.pending[0].condition
    digest = damaged_model.damage(condition.group, condition.method, condition.level, condition.seed)
    return DamageReport(
        unit=unit,
        digest=digest,
        evidence=damaged_model.evidence(condition.method),
        baseline=", ".join(damaged_model.baseline_places),
        perplexity=measure_perplexity(context, condition),
    )


def look(context: RunContext, unit: WorkUnit, damaged_model: DamagedModel, scheduler: BatchScheduler) -> None:
    """Show the picture as the model sees it, again only where damage may have reached the vision tower."""
    if context.image_inputs is None:
        return
    seen = unit.pending[0].condition.weights if damages_vision(context.model, damaged_model.targets) else None
    if scheduler.seen != seen:
        scheduler.show(context.image_inputs.look(context.model), seen)


def measure_perplexity(context: RunContext, condition: Condition) -> float | None:
    """The perplexity of the spec's text under a damaged model."""
    if not context.spec.perplexity.compute:
        return None
    value = perplexity(context.model, context.perplexity_ids)
    logger.info("%s: perplexity %s", condition, "is not finite" if value is None else f"{value:.4g}")
    return value


def most_rows(context: RunContext, experiment: Experiment) -> int:
    """The rows of a batch when memory allows: what the spec says, or as many as one damaged model has requests."""
    limit, prompts = context.spec.generation.max_batch_size, len(context.prompts)
    if limit != "auto":
        return min(prompts, limit)
    conditions = [condition for condition in all_conditions(context.spec) if condition.method == experiment.method]
    groups = [context.resolve_targets(group) for group in {condition.group for condition in conditions}]
    length = max(map(len, context.token_ids)) + context.spec.generation.max_new_tokens
    return min(
        most_requests(conditions, prompts), model_memory.rows_that_fit(context.model, groups, length, context.device)
    )


def open_sidecar(context: RunContext, experiment: Experiment, start: Start) -> Sidecar:
    """What the sidecar will say of this run; warns where machine or versions are not those of the run before."""
    groups = dict.fromkeys(pending.condition.group for pending in experiment.pending)
    facts = {
        "started": env_provenance.now(),
        "versions": env_provenance.versions(),
        "machine": env_provenance.machine_facts(context.device),
        "engine": asdict(start.engine),
        "start_check": {key: value for key, value in asdict(start.agreement).items() if value is not None},
        "model": context.model_facts(),
        "generation_config": dict(context.checkpoint_settings),
        "prompts_digest": env_provenance.prompts_digest(context.prompts),
        "tokens_digest": tokens_digest([token for ids in context.token_ids for token in (*ids, -1)]),
        "perplexity_digest": context.perplexity_digest or "none",
        "picture": context.image_inputs.digest if context.image_inputs else "none",
        "groups": {group: [target.name for target in context.resolve_targets(group)] for group in groups},
    }
    sidecar = Sidecar(experiment.file.path, context.spec, facts, experiment.past.sidecar)
    for change in sidecar.changes:
        logger.warning("not as in the run before: %s", change)
    return sidecar
