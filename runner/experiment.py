"""The story of a run: for each condition restore, damage, generate, append. The only module that sees everything."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from attrs import frozen

from runner import provenance, vram
from runner.generate import Answer, Generator, Question, Shape
from runner.lab import Lab, check, set_up
from runner.logs import Meter, log_file
from runner.model import end_tokens
from runner.patient import Patient
from runner.perplexity import perplexity
from runner.plan import Condition, Job, conditions_of, jobs_of
from runner.prompt import Prompt
from runner.record import experiment_id, guarded_settings, make_record
from runner.results import Record, ResultsFile, key_of, open_results, results_path
from runner.sampling import Sampling
from runner.spec import Spec
from runner.sweep import Method

logger = logging.getLogger(__name__)


@frozen(kw_only=True)
class Experiment:
    """What one results file gets: the conditions of one method that are not done yet."""

    method: Method
    file: ResultsFile
    jobs: Sequence[Job]
    last_record: Record | None


def run(spec: Spec, spec_folder: Path, results: Path, *, force: bool = False) -> None:
    """Do what of a spec is not done yet, and append it to the results files.

    Raises:
        SpecError: the spec asks for what cannot be, or for other settings than those of an existing file.
        SetupError: model, memory or disk are not there; whatever was finished is in the files.
    """
    prompts = check(spec, spec_folder)
    with ExitStack() as files:
        experiments = [e for e in open_experiments(spec, prompts, results, files, force=force) if e.jobs]
        if not experiments:
            logger.info("%s: nothing to do, every record is there", spec.name)
            return
        jobs = [job for experiment in experiments for job in experiment.jobs]
        lab = set_up(spec, prompts, {job.condition.group for job in jobs})
        with Meter(jobs) as meter, Patient(lab.find_targets) as patient:
            for experiment in experiments:
                with log_file(results / "logs", experiment_id(spec, experiment.method)):
                    run_experiment(lab, experiment, patient, meter)


def open_experiments(
    spec: Spec, prompts: Sequence[Prompt], results: Path, files: ExitStack, *, force: bool
) -> Iterator[Experiment]:
    """Open the file of every method in the spec and find what is missing in it."""
    conditions = conditions_of(spec)
    for method in dict.fromkeys(condition.method for condition in conditions):
        path = results_path(results, method, spec.model.id, spec.suffix)
        file, records = open_results(path, force=force)
        files.enter_context(file)
        provenance.check_same_settings(path, records, guarded_settings(spec), spec)
        finished = {key_of(record) for record in records}
        jobs = jobs_of((c for c in conditions if c.method == method), prompts, finished)
        yield Experiment(method=method, file=file, jobs=jobs, last_record=records[-1] if records else None)


def run_experiment(lab: Lab, experiment: Experiment, patient: Patient, meter: Meter) -> None:
    """Every condition of one method: damage, measure, answer in batches, append each batch."""
    sidecar = open_sidecar(lab, experiment)
    generator = make_generator(lab, static_shape(lab, experiment.last_record))
    for job in experiment.jobs:
        condition, waiting = job.condition, job.prompt_indices
        facts = damage(lab, condition, patient, sidecar)
        while waiting:
            shape, started = generator.shape, time.perf_counter()
            batch = waiting[: shape.rows]
            try:
                answers = generator.answer([ask(lab, index, condition.seed) for index in batch])
            except torch.OutOfMemoryError:
                generator = make_generator(lab, shape.with_rows(vram.rows_after_overflow(shape.rows)))
                continue
            seconds = time.perf_counter() - started
            used = vram.used_fraction(lab.device)
            facts |= {"duration": seconds / len(batch), "vram_usage_percent": None if used is None else 100 * used}
            records = [
                make_record(lab.spec, condition, tell(lab, index, shape, answer) | facts)
                for index, answer in zip(batch, answers, strict=True)
            ]
            experiment.file.append(records)
            meter.batch_done(condition, records, seconds)
            waiting = waiting[len(batch) :]
            rows = vram.rows_after_batch(shape.rows, used, lab.most_rows)
            if rows != shape.rows:
                generator = make_generator(lab, shape.with_rows(rows))


def static_shape(lab: Lab, last_record: Record | None) -> Shape:
    """The shape of every batch; that of an existing file is kept, so that a resumed run gives the same records."""
    recorded = last_record or {}
    longest = max(map(len, lab.token_ids))
    length = recorded.get("padded_length", longest)
    if longest > length:
        logger.warning("a prompt of %d tokens is longer than the padded %d of earlier records", longest, length)
    return Shape(
        rows=recorded.get("batch_size_effective", lab.most_rows),
        prompt_length=max(length, longest),
        new_tokens=lab.spec.generation.max_new_tokens,
    )


def make_generator(lab: Lab, shape: Shape) -> Generator:
    """A generator of this shape that chooses tokens as the spec says."""
    g = lab.spec.generation
    sampling = Sampling(do_sample=g.do_sample, temperature=g.temperature, top_k=g.top_k, top_p=g.top_p)
    return Generator(lab.model, shape, sampling, end_tokens(lab.model, lab.tokenizer), lab.tokenizer.pad_token_id or 0)


def ask(lab: Lab, index: int, seed: int) -> Question:
    """The question that a prompt is under the seed of a repeat."""
    return Question(lab.token_ids[index], lab.prompts[index].text, seed)


def tell(lab: Lab, index: int, shape: Shape, answer: Answer) -> dict[str, Any]:
    """What a record says of a prompt and its answer."""
    return {
        "device": str(lab.device),
        "prompt_id": index + 1,
        "prompt_text": lab.prompts[index].text,
        "output": lab.tokenizer.decode(answer.token_ids, skip_special_tokens=True),
        "tokens": len(answer.token_ids),
        "tokens_out": len(answer.token_ids),
        "tokens_in": len(lab.token_ids[index]),
        "finish_reason": answer.finish_reason,
        "batch_size_effective": shape.rows,
        "padded_length": shape.prompt_length,
    }


def measure_perplexity(lab: Lab, condition: Condition) -> dict[str, Any]:
    """The perplexity of the spec's text, once per level, with repeat 0's damage."""
    if not lab.spec.perplexity.compute or condition.repeat_index:
        return {}
    value = perplexity(lab.model, lab.tokenizer(lab.spec.perplexity.text).input_ids)
    logger.info("%s: perplexity %s", condition, "is not finite" if value is None else f"{value:.4g}")
    return {"perplexity": value}


def open_sidecar(lab: Lab, experiment: Experiment) -> provenance.Sidecar:
    """Write down what runs; warn where machine or versions are not those of the run before."""
    groups = dict.fromkeys(job.condition.group for job in experiment.jobs)
    facts = {
        "started": provenance.now(),
        "versions": provenance.versions(),
        "machine": provenance.machine_facts(lab.device),
        "model": lab.model_facts(),
        "prompts_digest": provenance.prompts_digest(lab.prompts),
        "groups": {group: [target.name for target in lab.find_targets(group)] for group in groups},
    }
    sidecar = provenance.Sidecar(experiment.file.path, lab.spec, facts)
    for change in sidecar.changes:
        logger.warning("not as in the run before: %s", change)
    return sidecar


def damage(lab: Lab, condition: Condition, patient: Patient, sidecar: provenance.Sidecar) -> dict[str, Any]:
    """Bring the model into a condition and say what that did; returns what the condition's records have in common."""
    digest = patient.damage(condition.group, condition.method, condition.level, condition.seed)
    evidence = patient.evidence(condition.method)
    row = {
        "method": condition.method,
        "group": condition.group,
        "level": condition.level,
        "repeat_index": condition.repeat_index,
        "weights_digest": digest,
        "baseline": ", ".join(patient.baseline_places),
    }
    sidecar.add_evidence(row | evidence.as_table())
    distinct = evidence.distinct_values
    if condition.repeat_index == 0 and distinct is not None and distinct < condition.level:
        logger.warning(
            "%s: %s holds %d distinct values of %g", condition, lab.spec.model.dtype, distinct, condition.level
        )
    return {"weights_digest": digest} | measure_perplexity(lab, condition)
