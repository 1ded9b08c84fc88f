"""The course of a run: open files, plan, hand out work, write; the only module that sees everything."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from attrs import asdict, frozen

from runner import env_provenance, model_memory
from runner.cli_console import Progress, log_file
from runner.decode_batch import BatchShape
from runner.decode_engine import SLOWEST_FIRST, WITH_COPIES, Name, fastest_for
from runner.errors import DeviceMemoryError, SetupError, stop_if_asked
from runner.results_order import order_records, plan_rank
from runner.results_sidecar import Sidecar
from runner.run_identity import text_digest, tokens_digest
from runner.run_local import LocalProcesses
from runner.run_plan import Condition, PendingCondition, all_conditions, work_units
from runner.run_pool import Pool
from runner.run_resume import (
    Experiment,
    check_asked,
    check_same_model,
    guarded,
    open_experiments,
    witnesses_of,
)
from runner.run_setup import spelt_out
from runner.run_shapes import parts_of
from runner.run_shard import Shard
from runner.run_start import Start
from runner.run_team import ONE_FOR_EVERY_GPU, Asked
from runner.run_workers import Workers, call_workers, start_workers
from runner.run_writer import RecordWriter
from runner.spec import Spec
from runner.task_files import digests_of
from runner.task_prompts import Prompt
from runner.task_tokens import TaskInputs, Tokens, check, tokenise

logger = logging.getLogger(__name__)

UNASKED = (
    "{} damaged models could not be asked, the log says which and why; everything else is saved: run the same command "
    "again"
)


@frozen
class Study:
    """What all experiments of a run share: the spec, what it asks, and that as tokens."""

    spec: Spec
    inputs: TaskInputs
    tokens: Tokens
    fastest: Name = SLOWEST_FIRST[-1]  # no faster engine decodes, so that it adds up as the records' did

    @property
    def prompts(self) -> Sequence[Prompt]:
        """What the model is asked."""
        return self.inputs.prompts


def run(
    spec: Spec,
    spec_folder: Path,
    results: Path,
    *,
    force: bool = False,
    shard: Shard | None = None,
    asked: Asked = ONE_FOR_EVERY_GPU,
    begun: LocalProcesses | None = None,
) -> None:
    """Do what of a spec, or of a shard of it, is not done yet, and append it to the results files.

    Worker processes that have `begun` (`run_ahead.begin_workers`) are used where they suit.

    Raises:
        SpecError: the spec asks for what cannot be, or for other settings than those of an existing file.
        SetupError: model, memory or disk are not there; whatever was finished is in the files.
    """
    inputs, spec = check(spec, spec_folder, results), spelt_out(spec)
    with ExitStack() as files:
        experiments = list(open_experiments(spec, inputs, results, files, force=force, shard=shard))
        if not any(experiment.pending for experiment in experiments):
            check_finished(experiments, spec, inputs)
            order_finished(experiments, spec)
            logger.info("%s%s: nothing to do, every record is there", spec.name, f", shard {shard}" if shard else "")
            return
        units = sum(len(work_units(experiment.pending)) for experiment in experiments)
        processes = files.enter_context(call_workers(asked, spec, inputs, units, begun))
        tokens = tokenise(spec, inputs)
        experiments = [guarded(e, partial(check_asked, e.past, spec, inputs, tokens)) for e in experiments]
        order_finished(experiments, spec)
        study = Study(spec, inputs, tokens, fastest_for(name for e in experiments for name in e.past.engines))
        experiments = [e for e in experiments if e.pending]
        with start_workers(asked, spec, inputs, tokens, groups_of(experiments, spec), processes) as worker:
            experiments = [guarded(e, partial(check_model_of, e, spec, worker)) for e in experiments]
            pending = [pending for experiment in experiments for pending in experiment.pending]
            with Progress(pending, worker.doing) as progress:
                for experiment in experiments:
                    with log_file(results / "logs", experiment.log_name(spec)):
                        mixed = run_experiment(study, experiment, worker, progress)
                    if mixed or isinstance(worker, Pool) or is_mixed(experiment):
                        order_records(experiment.file, plan_rank(all_conditions(spec)))
            if worker.failures:
                raise SetupError(UNASKED.format(len(worker.failures)))


def is_mixed(experiment: Experiment) -> bool:
    """Whether units of earlier records ended side by side, on several workers or in one batch, and so in any order."""
    runs = experiment.past.sidecar.get("provenance", {}).get("runs", [])
    return bool(experiment.past.shared) or any("workers" in run for run in runs)


def order_finished(experiments: Sequence[Experiment], spec: Spec) -> None:
    """Put finished files in the order of the plan where a run ended before it could."""
    for experiment in experiments:
        if not experiment.pending and is_mixed(experiment):
            order_records(experiment.file, plan_rank(all_conditions(spec)))


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
    """The groups that are damaged: by sweeps, and once more to compare the model with that of earlier records.

    Also those of finished sweeps: layers of theirs that are unpacked from 4 bits round otherwise, and a resumed run
    must give the records of an uninterrupted one.
    """
    again = {witness.group for experiment in experiments for witness in witnesses_of(experiment.past, spec)}
    return {*spec.selections(), *again}


def check_model_of(experiment: Experiment, spec: Spec, worker: Workers) -> None:
    """Refuse to go on with a file of another model; the worker's must be intact.

    Raises:
        SpecError: with every difference.
    """
    witnesses = witnesses_of(experiment.past, spec)
    digests = worker.digests([witness.damage for witness in witnesses])
    check_same_model(experiment.past, worker.facts, dict(zip(witnesses, digests, strict=True)))


def run_experiment(study: Study, experiment: Experiment, worker: Workers, progress: Progress) -> bool:
    """Every condition of one method, in one static shape after the other; whether a batch had several conditions.

    The driver decides the shape: fewer rows where a device has no memory for them, more again as soon as it has.
    """
    writer: RecordWriter | None = None
    parts = parts_of(study.spec, study.tokens.ids, experiment, worker)
    for part in parts:
        shape = most = part.shape
        left = {pending.condition: set(pending.prompt_indices) for pending in part.pending}
        while any(left.values()):
            try:
                start = worker.set_shape(shape, study.fastest, part.groups)
                if shape.conditions > 1 and start.engine.name not in WITH_COPIES:
                    shape = most = shape.with_conditions(1)
                    continue
                writer = writer or open_writer(study, experiment, worker, start, progress)
                work(left, shape, most.rows, worker, writer)
                rows = min(2 * shape.rows, most.rows)  # if requests are left, there is room for more rows
            except DeviceMemoryError:
                rows = model_memory.rows_after_overflow(shape.rows)
            for failure in worker.failures:  # also where memory ran out: they are not tried again
                for pending in failure.unit.pending:
                    left.pop(pending.condition, None)
            shape = shape.with_rows(rows)
    return any(part.shape.conditions > 1 for part in parts)


def work(
    left: Mapping[Condition, set[int]], shape: BatchShape, most_rows: int, worker: Workers, writer: RecordWriter
) -> None:
    """Hand out the units of work that are left, write what comes back, and take it from what is left."""
    units = work_units(PendingCondition(one, tuple(sorted(indices))) for one, indices in left.items() if indices)
    for batches in worker.answers(units, most_rows):
        stop_if_asked()
        for done in writer.write(batches, shape):
            left[done.condition].remove(done.prompt_index)


def open_writer(
    study: Study, experiment: Experiment, worker: Workers, start: Start, progress: Progress
) -> RecordWriter:
    """What writes records and sidecar of an experiment; warns where machine or versions are not as before."""
    tokens, facts, devices = study.tokens, worker.facts, worker.devices
    groups = dict.fromkeys(pending.condition.group for pending in experiment.pending)
    provenance = {
        "started": env_provenance.now(),
        "versions": facts.versions,
        "machine": facts.machine,
        **({"workers": devices} if sum(devices.values()) > 1 else {}),
        "engine": asdict(start.engine),
        "start_check": {key: value for key, value in asdict(start.agreement).items() if value is not None},
        "start_seconds": round(start.seconds, 1),
        "model": facts.model,
        "generation_config": dict(facts.checkpoint_settings),
        "prompts_digest": env_provenance.prompts_digest(study.prompts),
        "tokens_digest": tokens_digest(tokens.flat),
        "perplexity_digest": text_digest(tokens.perplexity_ids) or "none",
        "picture": tokens.image_inputs.digest if tokens.image_inputs else "none",
        **({"files": digests_of(study.inputs.files)} if study.inputs.files else {}),
        "groups": {group: list(facts.tensors[group]) for group in groups},
    }
    sidecar = Sidecar(experiment.file.path, study.spec, provenance, experiment.past.sidecar, experiment.shard)
    for change in sidecar.changes:
        logger.warning("not as in the run before: %s", change)
    return RecordWriter(
        spec=study.spec,
        prompts=study.prompts,
        tokens=tokens,
        facts=facts,
        file=experiment.file,
        sidecar=sidecar,
        progress=progress,
        prompt_ids=experiment.prompt_ids,
    )
