"""From what a damaged model said to what is on the disk: effects in the sidecar, records in the results file."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from runner import model_memory
from runner.cli_console import Progress
from runner.decode_batch import BatchShape
from runner.results_file import ResultsFile
from runner.results_record import make_record
from runner.results_sidecar import Sidecar
from runner.run_identity import text_digest, tokens_digest
from runner.run_plan import Answer, AnswerBatch, Condition, DamageReport, RequestId, WorkerFacts
from runner.spec import Spec
from runner.task_prompts import Prompt
from runner.task_tokens import Tokens

logger = logging.getLogger(__name__)


@frozen(kw_only=True)
class RecordWriter:
    """Writes down everything about one results file."""

    spec: Spec
    prompts: Sequence[Prompt]
    tokens: Tokens
    facts: WorkerFacts
    file: ResultsFile
    sidecar: Sidecar
    progress: Progress
    prompt_ids: Mapping[str, int]

    def write(self, batches: Sequence[AnswerBatch], shape: BatchShape) -> list[RequestId]:
        """Write down what damage did to models that are new, and the answers of batches in this shape.

        The disk is waited for once, however many batches there are. Gives what is thereby done.
        """
        records = [self._records(batch, shape) for batch in batches]
        added = [record for of_batch in records for record in of_batch]
        self.file.begin(added)  # before the sidecar, which could otherwise be that of another file by now
        self._write_effects([report for batch in batches for report in batch.reports])
        self.file.append(added)
        for batch, of_batch in zip(batches, records, strict=True):
            self.progress.batch_done([answer.id.condition for answer in batch.answers], of_batch, batch.seconds)
        self.progress.show()
        model_memory.check(max((batch.memory_used for batch in batches if batch.memory_used is not None), default=None))
        return [answer.id for batch in batches for answer in batch.answers]

    def _records(self, batch: AnswerBatch, shape: BatchShape) -> list[dict[str, Any]]:
        of_all = self._batch_fields(batch)
        return [
            make_record(
                self.spec,
                answer.id.condition,
                {"device": batch.device} | self._answer_fields(answer, shape) | of_all | self._identity_fields(answer),
            )
            for answer in batch.answers
        ]

    def _write_effects(self, reports: Sequence[DamageReport]) -> None:
        """Say in the sidecar what the damage of the conditions of some units did."""
        rows = [_effect_row(pending.condition, report) for report in reports for pending in report.unit.pending]
        self.sidecar.add_evidence(rows)
        for report in reports:
            self._warn_of_merged_values(report)

    def _warn_of_merged_values(self, report: DamageReport) -> None:
        first, distinct = report.unit.condition, report.effect.get("distinct_values")
        if first.repeat_index == 0 and distinct is not None and distinct < first.level:
            logger.warning("%s: %s holds %d distinct values of %g", first, self.spec.model.dtype, distinct, first.level)

    def _answer_fields(self, answer: Answer, shape: BatchShape) -> dict[str, Any]:
        """What a record says of a prompt and its answer."""
        index = answer.id.prompt_index
        text = self.prompts[index].text
        return {
            "prompt_id": self.prompt_ids[text],
            "prompt_text": text,
            "output": answer.text,
            "tokens": answer.tokens,
            "tokens_out": answer.tokens,
            "tokens_in": len(self.tokens.ids[index]),
            "finish_reason": answer.finish_reason,
            "batch_size_effective": shape.rows,
            **({"conditions_per_batch": shape.conditions} if shape.conditions > 1 else {}),
            "padded_length": shape.prompt_length,
        }

    def _batch_fields(self, batch: AnswerBatch) -> dict[str, Any]:
        """What all records of a batch say of the damaged model and of the machine."""
        measured = {"perplexity": batch.report.perplexity} if self.spec.perplexity.compute else {}
        return {
            "model_variant": "it" if self.tokens.templated else "base",
            "weights_digest": batch.report.digest,
            **measured,
            "duration": batch.seconds / len(batch.answers),
            "vram_usage_percent": None if batch.memory_used is None else 100 * batch.memory_used,
        }

    def _identity_fields(self, answer: Answer) -> dict[str, Any]:
        """What exactly was asked, damaged, shown and measured, as digests."""
        picture = self.tokens.image_inputs
        return {
            "prompt_digest": tokens_digest(self.tokens.ids[answer.id.prompt_index]),
            "model_digest": self.facts.model_digest,
            "image_digest": picture.digest if picture else None,
            "perplexity_digest": text_digest(self.tokens.perplexity_ids),
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
    return {**row, **report.effect}
