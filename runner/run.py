"""The course of a run: for each condition restore, damage, generate, append; the only module that sees everything."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from attrs import asdict, frozen

from runner import env_provenance, model_memory
from runner.cli_console import Meter, log_file
from runner.damage_model import Patient
from runner.decode_batch import Question, Shape, View
from runner.decode_engine import Engine
from runner.decode_reference import Agreement
from runner.decode_sampling import Sampling
from runner.decode_scheduler import Generator
from runner.errors import SetupError
from runner.model_likelihood import perplexity
from runner.model_load import end_tokens, pad_token, settings_not_applied
from runner.model_vision import damages_sight
from runner.results_record import experiment_id
from runner.results_sidecar import Sidecar
from runner.run_identity import tokens_digest
from runner.run_plan import Condition, Job, Visit, conditions_of, most_questions, visits_of
from runner.run_resume import (
    Experiment,
    check_asked,
    check_same_model,
    guarded,
    open_experiments,
    static_shape,
    witnesses_of,
)
from runner.run_setup import Lab, set_up
from runner.run_writer import Finding, Scribe
from runner.spec import Spec
from runner.task_tokens import Material, check, longest_and_shortest, tokenise

logger = logging.getLogger(__name__)


@frozen
class Start:
    """What was found out while the model was intact: how to decode it, and that this is the model's own way."""

    engine: Engine
    agreement: Agreement


def run(spec: Spec, spec_folder: Path, results: Path, *, force: bool = False) -> None:
    """Do what of a spec is not done yet, and append it to the results files.

    Raises:
        SpecError: the spec asks for what cannot be, or for other settings than those of an existing file.
        SetupError: model, memory or disk are not there; whatever was finished is in the files.
    """
    material = check(spec, spec_folder)
    with ExitStack() as files:
        experiments = list(open_experiments(spec, material, results, files, force=force))
        if not any(experiment.jobs for experiment in experiments):
            check_finished(experiments, spec, material)
            logger.info("%s: nothing to do, every record is there", spec.name)
            return
        tokens = tokenise(spec, material)
        experiments = [guarded(e, partial(check_asked, e.past, spec, material, tokens)) for e in experiments]
        jobs = [job for experiment in experiments for job in experiment.jobs]
        lab = set_up(spec, material, tokens, groups_of(experiments, spec))
        experiments = [guarded(e, partial(check_same_model, e.past, lab)) for e in experiments if e.jobs]
        start: Start | None = None  # made by the first experiment, while the model is intact
        with Meter(jobs) as meter, Patient(lab.find_targets) as patient:
            for experiment in experiments:
                with log_file(results / "logs", experiment_id(spec, experiment.method)):
                    start = run_experiment(lab, experiment, patient, meter, start)


def check_finished(experiments: Sequence[Experiment], spec: Spec, material: Material) -> None:
    """Refuse prompts that are not what finished records were asked; a model that is gone by now is no reason."""
    try:
        tokens = tokenise(spec, material)
    except SetupError as error:
        logger.debug("finished records are not compared with the tokenizer: %s", error)
        return
    for experiment in experiments:
        check_asked(experiment.past, spec, material, tokens)


def groups_of(experiments: Sequence[Experiment], spec: Spec) -> set[str]:
    """The groups that are damaged: by conditions, and once more to compare the model with that of earlier records."""
    asked = {job.condition.group for experiment in experiments for job in experiment.jobs}
    return asked | {
        w.group for experiment in experiments if experiment.jobs for w in witnesses_of(experiment.past, spec)
    }


def run_experiment(
    lab: Lab, experiment: Experiment, patient: Patient, meter: Meter, start: Start | None
) -> Start | None:
    """Every condition of one method: damage, measure, answer, append; how the run started."""
    left = {job.condition: set(job.prompt_indices) for job in experiment.jobs}
    most = most_rows(lab, experiment)
    shape = static_shape(lab.spec, lab.token_ids, experiment.past.last_record, most)
    sidecar: Sidecar | None = None
    generator: Generator | None
    while any(left.values()):
        model_memory.release()
        try:
            generator = make_generator(lab, shape)
            if start is None:
                start = start_check(lab, generator)
            else:
                generator.use(start.engine)
            sidecar = sidecar or open_sidecar(lab, experiment, start)
            scribe = Scribe(
                lab=lab, file=experiment.file, sidecar=sidecar, meter=meter, prompt_ids=experiment.prompt_ids
            )
            visits = visits_of(Job(condition, tuple(sorted(indices))) for condition, indices in left.items() if indices)
            for condition, index in make_visits(visits, generator, patient, scribe, most):
                left[condition].remove(index)
            rows = min(2 * shape.rows, most)  # if questions are left, there is room for more rows
        except torch.OutOfMemoryError:
            rows = model_memory.rows_after_overflow(shape.rows)
        shape, generator = shape.with_rows(rows), None
    return start


def make_visits(
    visits: Sequence[Visit], generator: Generator, patient: Patient, scribe: Scribe, most: int
) -> Iterator[tuple[Condition, int]]:
    """Damage the model and let it answer, visit by visit; gives the questions whose records are on the disk.

    Stops before a visit for which more rows would fit in memory. While this writes, the device decodes.
    """
    lab, findings = scribe.lab, list[Finding]()

    def patients() -> Iterator[list[Question]]:
        for visit in visits:
            if findings and model_memory.may_grow(lab.device, generator.shape.rows, most):
                return
            findings.append(damage(lab, visit, patient))
            look(lab, visit, patient, generator)
            yield [ask(lab, index, condition.seed) for condition, index in visit.questions]

    described = 0
    for ended in generator.answers(patients()):
        new, described = findings[described : ended.visit + 1], max(described, ended.visit + 1)
        yield from scribe.write(new, findings[ended.visit], ended, generator.shape)


def damage(lab: Lab, visit: Visit, patient: Patient) -> Finding:
    """Bring the model into the condition of a visit and say what that did."""
    condition = visit.jobs[0].condition
    digest = patient.damage(condition.group, condition.method, condition.level, condition.seed)
    return Finding(
        visit=visit,
        digest=digest,
        evidence=patient.evidence(condition.method),
        baseline=", ".join(patient.baseline_places),
        perplexity=measure_perplexity(lab, condition),
    )


def look(lab: Lab, visit: Visit, patient: Patient, generator: Generator) -> None:
    """Show the picture as the model sees it, again only where damage may have reached the vision tower."""
    if lab.sight is None:
        return
    seen = visit.jobs[0].condition.weights if damages_sight(lab.model, patient.targets) else None
    if generator.seen != seen:
        generator.show(lab.sight.look(lab.model), seen)


def measure_perplexity(lab: Lab, condition: Condition) -> float | None:
    """The perplexity of the spec's text under a damaged model."""
    if not lab.spec.perplexity.compute:
        return None
    value = perplexity(lab.model, lab.perplexity_ids)
    logger.info("%s: perplexity %s", condition, "is not finite" if value is None else f"{value:.4g}")
    return value


def most_rows(lab: Lab, experiment: Experiment) -> int:
    """The rows of a batch when memory allows: what the spec says, or as many as one damaged model has questions."""
    limit, prompts = lab.spec.generation.max_batch_size, len(lab.prompts)
    if limit != "auto":
        return min(prompts, limit)
    conditions = [condition for condition in conditions_of(lab.spec) if condition.method == experiment.method]
    groups = [lab.find_targets(group) for group in {condition.group for condition in conditions}]
    length = max(map(len, lab.token_ids)) + lab.spec.generation.max_new_tokens
    return min(most_questions(conditions, prompts), model_memory.rows_that_fit(lab.model, groups, length, lab.device))


def make_generator(lab: Lab, shape: Shape) -> Generator:
    """A generator of this shape that chooses tokens as the spec says."""
    g = lab.spec.generation
    sampling = Sampling(do_sample=g.do_sample, temperature=g.temperature, top_k=g.top_k, top_p=g.top_p)
    eos, pad = end_tokens(lab.model, lab.tokenizer), pad_token(lab.model, lab.tokenizer)
    return Generator(lab.model, shape, sampling, eos, pad, view_of(lab))


def start_check(lab: Lab, generator: Generator) -> Start:
    """Check the way to decode while the model is intact, and choose an engine.

    Raises:
        SetupError: what is decoded is not what the model itself computes.
    """
    generator.seen = None  # nothing is damaged yet: what the picture looks like needs no second look
    started = time.perf_counter()
    ends = [ask(lab, index, lab.spec.run.seed) for index in longest_and_shortest(lab.token_ids)]
    agreement = generator.check_reference(ends, lab.sight.examples if lab.sight else ())
    seconds = time.perf_counter() - started
    if left_out := settings_not_applied(lab.model):
        listed = ", ".join(f"{key} = {value}" for key, value in left_out.items())
        logger.warning("the checkpoint's generation_config has %s: not applied, the spec decides alone", listed)
    generator.find_engine([ask(lab, index, lab.spec.run.seed) for index in range(len(lab.prompts))])
    logger.info(
        "decoding %d rows with engine %s; logits are the model's own to %.1g of their spread (%.1f s)",
        generator.shape.rows,
        generator.engine.name,
        agreement.difference,
        seconds,
    )
    return Start(generator.engine, agreement)


def view_of(lab: Lab) -> View | None:
    """The picture as the model sees it now."""
    if lab.sight is None:
        return None
    return View(token_id=lab.sight.token_id, features=lab.sight.look(lab.model), both_ways=lab.sight.both_ways)


def ask(lab: Lab, index: int, seed: int) -> Question:
    """The question that a prompt is under the seed of a repeat."""
    return Question(lab.token_ids[index], lab.prompts[index].text, seed)


def open_sidecar(lab: Lab, experiment: Experiment, start: Start) -> Sidecar:
    """What the sidecar will say of this run; warns where machine or versions are not those of the run before."""
    groups = dict.fromkeys(job.condition.group for job in experiment.jobs)
    facts = {
        "started": env_provenance.now(),
        "versions": env_provenance.versions(),
        "machine": env_provenance.machine_facts(lab.device),
        "engine": asdict(start.engine),
        "start_check": {key: value for key, value in asdict(start.agreement).items() if value is not None},
        "model": lab.model_facts(),
        "generation_config": dict(lab.checkpoint_settings),
        "prompts_digest": env_provenance.prompts_digest(lab.prompts),
        "tokens_digest": tokens_digest([token for ids in lab.token_ids for token in (*ids, -1)]),
        "perplexity_digest": lab.perplexity_digest or "none",
        "picture": lab.sight.digest if lab.sight else "none",
        "groups": {group: [target.name for target in lab.find_targets(group)] for group in groups},
    }
    sidecar = Sidecar(experiment.file.path, lab.spec, facts, experiment.past.sidecar)
    for change in sidecar.changes:
        logger.warning("not as in the run before: %s", change)
    return sidecar
