"""The static shapes of an experiment: the rows of a batch, and the conditions that it has at a time."""

import logging
from collections.abc import Mapping, Sequence

from attrs import frozen

from runner.decode_batch import BatchShape
from runner.errors import SpecError
from runner.results_guard import Past
from runner.results_record import Record
from runner.run_plan import Condition, PendingCondition, all_conditions, most_requests
from runner.run_resume import Experiment
from runner.run_workers import Workers
from runner.spec import Spec

logger = logging.getLogger(__name__)

TokenIds = Sequence[Sequence[int]]  # of every prompt
Last = Mapping[bool, Record]  # the last record whose batch had one condition, and the last whose batch had several


@frozen(kw_only=True)
class Part:
    """Conditions of an experiment that are decoded in one static shape."""

    pending: Sequence[PendingCondition]
    shape: BatchShape
    groups: frozenset[str]  # that these conditions damage


def parts_of(spec: Spec, token_ids: TokenIds, experiment: Experiment, worker: Workers) -> list[Part]:
    """First the conditions that are decoded one after the other, then those of which a batch has several.

    A group goes on as its earlier records were decoded, for in another shape sums round otherwise.
    """
    ours = [condition for condition in all_conditions(spec) if condition.method == experiment.method]
    together, parts = _side_by_side({one.group for one in ours}, experiment.past, spec, worker), list[Part]()
    for several in (False, True):
        own = [condition for condition in ours if (condition.group in together) is several]
        pending = [one for one in experiment.pending if (one.condition.group in together) is several]
        if pending:
            shape = _shape_of(own, spec, token_ids, experiment.past.last, worker, several=several)
            parts.append(Part(pending=pending, shape=shape, groups=frozenset(one.group for one in own)))
    return parts


def _side_by_side(groups: set[str], past: Past, spec: Spec, worker: Workers) -> set[str]:
    """The groups of whose conditions a batch has several: those that can, and were not decoded alone before."""
    can = worker.side_by_side(sorted(groups)) if spec.generation.conditions_per_batch > 1 else set()
    if alone := can & (past.groups - past.shared):
        logger.info("%d groups go on with one condition in a batch, as they began; --force starts over", len(alone))
    if lost := (groups & past.shared) - can:
        logger.warning("earlier batches of %d groups had several conditions, from now on it is one", len(lost))
    return can - alone


def _shape_of(
    conditions: Sequence[Condition], spec: Spec, token_ids: TokenIds, last: Last, worker: Workers, *, several: bool
) -> BatchShape:
    """The shape for these conditions, of which a batch has one, or several."""
    limit, prompts = spec.generation.max_batch_size, len(token_ids)
    length = max(map(len, token_ids)) + spec.generation.max_new_tokens
    groups = {condition.group for condition in conditions}
    fit = worker.rows_that_fit(groups, length) if several or limit == "auto" else prompts
    asked = prompts if several else most_requests(conditions, prompts)  # several conditions share rows, not one
    rows = min(asked, fit) if limit == "auto" else min(prompts, limit)
    shape = static_shape(spec, token_ids, last, rows, several=several)
    if not several:
        return shape
    most = min(spec.generation.conditions_per_batch, max(1, fit // shape.rows))
    before: int = last[True]["conditions_per_batch"] if True in last else most
    if most < before:
        logger.warning("earlier batches had %d conditions, from now on it is %d", before, most)
    elif most > before:
        logger.info("batches keep the %d conditions of earlier records; --force starts over with %d", before, most)
    return shape.with_conditions(min(most, before))


def static_shape(spec: Spec, token_ids: TokenIds, last: Last, most: int, *, several: bool) -> BatchShape:
    """The shape of a batch of one condition; of `several`, of which each has as many rows, before these are counted.

    That of an existing file is kept, so that a resumed run gives the same records. Only a lower `max_batch_size` makes
    it smaller. Whatever is not as asked, or not as before, is said.

    Raises:
        SpecError: the padded length of earlier records is more than the spec allows.
    """
    recorded, new_tokens = last.get(several, {}), spec.generation.max_new_tokens
    longest, limit = max(map(len, token_ids)), spec.generation.max_batch_size
    before_length = max((record.get("padded_length") or longest for record in last.values()), default=longest)
    before = recorded.get("batch_size_effective") or most
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
