"""What the results files of a run hold already: what is still to do, and the guard against mixing two experiments."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import get_args

from attrs import evolve, frozen

from runner.errors import SetupError, SpecError
from runner.results_file import ResultsFile
from runner.results_guard import Past, check_model, check_settings, check_tokens, past_of
from runner.results_open import each_record, open_results, paths_of_study, results_path
from runner.results_record import Record, experiment_id, guarded_settings
from runner.results_sidecar import read_sidecar
from runner.results_summary import RecordSummary, Witness
from runner.run_identity import text_digest, tokens_digest
from runner.run_plan import (
    Condition,
    PendingCondition,
    WorkerFacts,
    all_conditions,
    number_prompts,
    pending_conditions,
)
from runner.run_shard import Shard, of_shard
from runner.spec import Spec
from runner.spec_methods import Method
from runner.spec_targets import BUILT_IN
from runner.task_files import digests_of
from runner.task_prompts import Prompt
from runner.task_tokens import TaskInputs, Tokens, tokenise

logger = logging.getLogger(__name__)


@frozen(kw_only=True)
class Experiment:
    """What one results file gets: the conditions of one method that are not done yet."""

    method: Method
    file: ResultsFile
    pending: Sequence[PendingCondition]
    past: Past
    prompt_ids: Mapping[str, int]  # by text
    force: bool
    shard: Shard | None = None  # whose conditions these are; None for all

    def log_name(self, spec: Spec) -> str:
        """What the log's name begins with."""
        return experiment_id(spec, self.method) + (f".{self.shard.in_a_name}" if self.shard else "")


def open_experiments(
    spec: Spec, inputs: TaskInputs, results: Path, files: ExitStack, *, force: bool = False, shard: Shard | None = None
) -> Iterator[Experiment]:
    """Open the file of every method in the spec, or that of a shard, and find what is missing in it.

    Raises:
        SpecError: the file was made under other settings.
        SetupError: the file cannot be had.
    """
    conditions = all_conditions(spec)
    for method in dict.fromkeys(condition.method for condition in conditions):
        ours = [condition for condition in conditions if condition.method == method]
        path = results_path(results, method, spec.model.id, spec.suffix, shard)
        summary = RecordSummary()
        file = open_results(path, summary.add, not_made_again(ours), force=force)
        files.enter_context(file)
        sidecar = read_sidecar(path)
        _warn_of_doubles(path, summary)
        past = past_of(path, summary, sidecar if summary.count else {})
        texts = [prompt.text for prompt in inputs.prompts]
        new = not past.prompt_ids.keys() >= {*texts}
        others = _numbers_of_others(spec, results, path, force=force) if new else {}
        experiment = Experiment(
            method=method,
            file=file,
            pending=pending_conditions(of_shard(ours, shard), inputs.prompts, summary.keys),
            past=past,
            prompt_ids=number_prompts(texts, past.prompt_ids, others),
            force=force,
            shard=shard,
        )
        yield guarded(experiment, partial(check_past_settings, past, summary, spec, inputs))


def not_made_again(conditions: Sequence[Condition]) -> Callable[[Record], bool]:
    """Whether a record is of a level that these conditions do not have."""
    again = {(condition.group, condition.level) for condition in conditions}
    return lambda record: (record["param_group_name"], record["std_dev"]) not in again


def check_past_settings(past: Past, summary: RecordSummary, spec: Spec, inputs: TaskInputs) -> None:
    """Refuse to go on with a file that was made under other settings.

    Raises:
        SpecError: with every difference.
    """
    picture = inputs.picture.digest if inputs.picture else None
    check_settings(past.path, summary, guarded_settings(spec), spec, past.sidecar, picture, digests_of(inputs.files))


def check_asked(past: Past, spec: Spec, inputs: TaskInputs, tokens: Tokens) -> None:
    """Refuse to go on with a file that was asked the same prompts by other tokens.

    Raises:
        SpecError: with every difference.
    """
    ids = {prompt.text: row for prompt, row in zip(inputs.prompts, tokens.ids, strict=True)}
    if past.prompts and ids.keys().isdisjoint(past.prompts):  # then one of the file's is tried for all
        text = min(past.prompts, key=len)
        ids[text] = tokenise(spec, evolve(inputs, prompts=(Prompt(text),))).ids[0]
    lengths = {text: len(row) for text, row in ids.items()}
    digests = {text: tokens_digest(row) for text, row in ids.items()}
    check_tokens(past, lengths, digests, text_digest(tokens.perplexity_ids) or "")


def check_same_model(past: Past, facts: WorkerFacts, digests: Mapping[Witness, str]) -> None:
    """Refuse to go on with a file of another model, also one of the same name.

    `digests` are those of damaged models of the past, made again.

    Raises:
        SpecError: with every difference.
    """
    known = {"model": facts.model, "generation_config": facts.checkpoint_settings}
    check_model(past, known, facts.model_digest, digests)


def witnesses_of(past: Past, spec: Spec) -> list[Witness]:
    """Damaged models of the past that are made again: of groups in the spec, of all if nothing else tells the model."""
    known = spec.selections()
    return [w for w in past.witnesses if w.group in known or (not past.models and w.group in BUILT_IN)]


def guarded(experiment: Experiment, check: Callable[[], None]) -> Experiment:
    """The experiment, checked; what a forced one would keep is left out if it does not belong to the new records.

    Raises:
        SpecError: the check failed, and nothing was forced.
    """
    try:
        check()
    except SpecError as error:
        if not experiment.force:
            raise
        logger.warning("%s\n  The new file therefore begins without the records that are not made again.", error)
        experiment.file.keep_none()
        past = past_of(experiment.past.path, RecordSummary(), {})
        return evolve(experiment, past=past, prompt_ids=number_prompts(experiment.prompt_ids, {}, {}))
    return experiment


def _numbers_of_others(spec: Spec, results: Path, own: Path, *, force: bool) -> dict[str, int]:
    """The numbers that prompts have in other files of the study; not in files that are about to be replaced.

    Files of shards are among them, so that a prompt has one number in all that may be merged.
    """
    replaced = {sweep.method for sweep in spec.sweeps} if force else set()
    others = [
        path
        for method in get_args(Method)
        if method not in replaced
        for path in paths_of_study(results, method, spec.model.id, spec.suffix)
        if path != own
    ]
    numbers: dict[str, int] = {}
    for path in others:
        with suppress(SetupError):  # whatever is wrong with another file is told when that is opened
            numbers |= RecordSummary.of(each_record(path)).prompt_ids
    return numbers


def _warn_of_doubles(path: Path, summary: RecordSummary) -> None:
    doubles = summary.count - len(summary.keys)
    if doubles:
        logger.warning("%s: %d records stand in it more than once; the first of each counts", path, doubles)
