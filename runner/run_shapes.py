"""The static shapes of an experiment: the rows of a batch, and the conditions that it has at a time."""

import logging
from collections.abc import Iterable, Iterator, Sequence

from attrs import frozen

from runner.decode_batch import BatchShape
from runner.errors import SpecError
from runner.results_record import Record
from runner.run_plan import Condition, PendingCondition, all_conditions, most_requests
from runner.run_resume import Experiment
from runner.run_workers import Workers
from runner.spec import Spec

logger = logging.getLogger(__name__)


@frozen(kw_only=True)
class Part:
    """Conditions of an experiment that are decoded in one static shape."""

    pending: Sequence[PendingCondition]
    shape: BatchShape
    most: int  # rows, if memory allows
    groups: frozenset[str]  # that these conditions damage


def parts_of(spec: Spec, token_ids: Sequence[Sequence[int]], experiment: Experiment, worker: Workers) -> Iterator[Part]:
    """First the conditions that are decoded one after the other, then those of which a batch has several.

    A group of which earlier records were decoded alone goes on so, for in another shape sums round otherwise.
    """
    past, wanted = experiment.past, spec.generation.conditions_per_batch
    ours = [condition for condition in all_conditions(spec) if condition.method == experiment.method]
    may_share = {condition.group for condition in ours} - past.alone
    together = worker.side_by_side(sorted(may_share)) if wanted > 1 else set()
    for several in (False, True):
        own = [condition for condition in ours if (condition.group in together) is several]
        pending = [one for one in experiment.pending if (one.condition.group in together) is several]
        if not pending:
            continue
        most = most_rows(spec, token_ids, own, worker)
        shape = static_shape(spec, token_ids, past.last.get(several), most)
        if several:
            fit = worker.rows_that_fit({condition.group for condition in own}, shape.length) // shape.rows
            shape = shape.with_conditions(_conditions_of(past.last.get(True), min(wanted, max(1, fit))))
        groups = frozenset(condition.group for condition in own)
        yield Part(pending=pending, shape=shape, most=most * shape.conditions, groups=groups)


def _conditions_of(last_record: Record | None, most: int) -> int:
    """How many conditions a batch has: as before, no more than `most`; also where fewer are left, or in the spec.

    More repeats or levels may come later, and the records that are there by then would round otherwise.
    """
    if last_record is None:
        return most
    before: int = last_record["conditions_per_batch"]
    if most < before:
        logger.warning("earlier batches had %d conditions, from now on it is %d", before, most)
    return min(most, before)


def most_rows(spec: Spec, token_ids: Sequence[Sequence[int]], conditions: Iterable[Condition], worker: Workers) -> int:
    """The rows of a condition when memory allows: what the spec says, or as many as one damaged model has requests."""
    limit, prompts, conditions = spec.generation.max_batch_size, len(token_ids), list(conditions)
    if limit != "auto":
        return min(prompts, limit)
    length = max(map(len, token_ids)) + spec.generation.max_new_tokens
    fit = worker.rows_that_fit({condition.group for condition in conditions}, length)
    return min(most_requests(conditions, prompts), fit)


def static_shape(spec: Spec, token_ids: Sequence[Sequence[int]], last_record: Record | None, most: int) -> BatchShape:
    """The shape of a batch of one condition; that of an existing file is kept: a resumed run gives the same records.

    Only a lower `max_batch_size` makes it smaller. Whatever is not as asked, or not as before, is said.

    Raises:
        SpecError: the padded length of earlier records is more than the spec allows.
    """
    recorded, new_tokens = last_record or {}, spec.generation.max_new_tokens
    longest, limit = max(map(len, token_ids)), spec.generation.max_batch_size
    before_length, before = recorded.get("padded_length") or longest, recorded.get("batch_size_effective") or most
    before //= recorded.get("conditions_per_batch") or 1
    if before_length + new_tokens > spec.sequence_length:
        raise SpecError(
            f"generation.max_seq_length: {spec.sequence_length} tokens do not hold max_new_tokens = {new_tokens} "
            f"and the {before_length} to which earlier prompts are padded: raise it, or start over with --force"
        )
    if longest > before_length:
        logger.warning("a prompt of %d tokens is longer than the padded %d of earlier records", longest, before_length)
    rows = before if limit == "auto" else min(before, limit)
    if rows < before:
        logger.warning("earlier records were made in batches of %d rows, from now on it is %d", before, rows)
    elif rows < most:
        logger.info("batches keep the %d rows of earlier records; --force starts over with %d", rows, most)
    return BatchShape(rows=rows, prompt_length=max(before_length, longest), new_tokens=new_tokens)
