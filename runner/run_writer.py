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

    def write(self, batch: AnswerBatch, shape: BatchShape) -> list[RequestId]:
        """Write down what damage did to models that are new, and the answers of a batch in this shape.

        Gives what is thereby done.
        """
        of_all = self._batch_fields(batch)
        records = [
            make_record(
                self.spec,
                answer.id.condition,
                {"device": batch.device} | self._answer_fields(answer, shape) | of_all | self._identity_fields(answer),
            )
            for answer in batch.answers
        ]
        self.file.begin(records)  # before the sidecar, which could otherwise be that of another file by now
        for report in batch.reports:
            self._write_effect(report)
        self.file.append(records)
        done = [answer.id for answer in batch.answers]
        self.progress.batch_done([one.condition for one in done], records, batch.seconds)
        model_memory.check(batch.memory_used)
        return done

    def _write_effect(self, report: DamageReport) -> None:
        """Say in the sidecar what the damage of a unit's conditions did."""
        self.sidecar.add_evidence([_effect_row(pending.condition, report) for pending in report.unit.pending])
        first, distinct = report.unit.pending[0].condition, report.effect.get("distinct_values")
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
