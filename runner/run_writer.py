"""From what a damaged model said to what is on the disk: evidence in the sidecar, records in the results file."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from runner import model_memory
from runner.cli_console import Progress
from runner.damage_effect import DamageEffect
from runner.decode_batch import BatchShape, Completion
from runner.decode_scheduler import FinishedBatch
from runner.results_file import ResultsFile
from runner.results_record import make_record
from runner.results_sidecar import Sidecar
from runner.run_identity import tokens_digest
from runner.run_plan import Condition, RequestId, WorkUnit
from runner.run_setup import RunContext

logger = logging.getLogger(__name__)


@frozen(kw_only=True)
class DamageReport:
    """What was found out about a damaged model before it was asked anything."""

    unit: WorkUnit
    digest: str
    evidence: DamageEffect
    baseline: str  # where it lies
    perplexity: float | None


@frozen(kw_only=True)
class RecordWriter:
    """Writes down everything about one results file."""

    context: RunContext
    file: ResultsFile
    sidecar: Sidecar
    progress: Progress
    prompt_ids: Mapping[str, int]

    def write(
        self, new: Sequence[DamageReport], report: DamageReport, ended: FinishedBatch, shape: BatchShape
    ) -> list[RequestId]:
        """Write down what damage did to models that are `new`, and completions that ended together of one of them.

        Gives what is thereby done.
        """
        done = [completion.id for completion in ended.completions]
        used = model_memory.used_fraction(self.context.device)
        of_all = _model_fields(self.context, report) | {
            "duration": ended.seconds / len(done),
            "vram_usage_percent": None if used is None else 100 * used,
        }
        identity = _identity_fields(self.context)
        records = [
            make_record(
                self.context.spec,
                completion.id.condition,
                self._completion_fields(completion, shape)
                | of_all
                | {"prompt_digest": tokens_digest(self.context.token_ids[completion.id.prompt_index])}
                | identity,
            )
            for completion in ended.completions
        ]
        self.file.begin(records)  # before the sidecar, which could otherwise be that of another file by now
        for one in new:
            self._write_effect(one)
        self.file.append(records)
        self.progress.batch_done([one.condition for one in done], records, ended.seconds)
        model_memory.check(used)
        return done

    def _write_effect(self, report: DamageReport) -> None:
        """Say in the sidecar what the damage of a unit's conditions did."""
        self.sidecar.add_evidence([_effect_row(pending.condition, report) for pending in report.unit.pending])
        first, distinct = report.unit.pending[0].condition, report.evidence.distinct_values
        if first.repeat_index == 0 and distinct is not None and distinct < first.level:
            dtype = self.context.spec.model.dtype
            logger.warning("%s: %s holds %d distinct values of %g", first, dtype, distinct, first.level)

    def _completion_fields(self, completion: Completion, shape: BatchShape) -> dict[str, Any]:
        """What a record says of a prompt and its answer."""
        context, index = self.context, completion.id.prompt_index
        text = context.prompts[index].text
        return {
            "device": str(context.device),
            "prompt_id": self.prompt_ids[text],
            "prompt_text": text,
            "output": context.tokenizer.decode(completion.token_ids, skip_special_tokens=True),
            "tokens": len(completion.token_ids),
            "tokens_out": len(completion.token_ids),
            "tokens_in": len(context.token_ids[index]),
            "finish_reason": completion.finish_reason,
            "batch_size_effective": shape.rows,
            "padded_length": shape.prompt_length,
        }


def _model_fields(context: RunContext, report: DamageReport) -> dict[str, Any]:
    """What a record says of the damaged model."""
    measured = {"perplexity": report.perplexity} if context.spec.perplexity.compute else {}
    return {"model_variant": "it" if context.templated else "base", "weights_digest": report.digest, **measured}


def _identity_fields(context: RunContext) -> dict[str, Any]:
    """What exactly was damaged, shown and measured, as digests."""
    return {
        "model_digest": context.model_digest,
        "image_digest": context.image_inputs.digest if context.image_inputs else None,
        "perplexity_digest": context.perplexity_digest,
    }


def _effect_row(condition: Condition, report: DamageReport) -> dict[str, Any]:
    row = {
        "method": condition.method,
        "group": condition.group,
        "level": condition.level,
        "repeat_index": condition.repeat_index,
        "weights_digest": report.digest,
        "baseline": report.baseline,
    }
    return row | report.evidence.as_table()
