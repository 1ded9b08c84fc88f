"""From what a damaged model said to what is on the disk: evidence in the sidecar, records in the results file."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from runner import model_memory
from runner.cli_console import Meter
from runner.damage_effect import Evidence
from runner.decode_batch import Answer, Shape
from runner.decode_scheduler import Ended
from runner.results_file import ResultsFile
from runner.results_record import make_record
from runner.results_sidecar import Sidecar
from runner.run_identity import tokens_digest
from runner.run_plan import Condition, Visit
from runner.run_setup import Lab

logger = logging.getLogger(__name__)


@frozen(kw_only=True)
class Finding:
    """What was found out about a damaged model before it was asked anything."""

    visit: Visit
    digest: str
    evidence: Evidence
    baseline: str  # where it lies
    perplexity: float | None


@frozen(kw_only=True)
class Scribe:
    """Writes down everything about one results file."""

    lab: Lab
    file: ResultsFile
    sidecar: Sidecar
    meter: Meter
    prompt_ids: Mapping[str, int]

    def write(
        self, new: Sequence[Finding], finding: Finding, ended: Ended, shape: Shape
    ) -> list[tuple[Condition, int]]:
        """Write down what damage did to models that are `new`, and answers that ended together of one of them.

        Gives the questions that are thereby done.
        """
        asked = finding.visit.questions
        done = [asked[index] for index, _ in ended.answers]
        used = model_memory.used_fraction(self.lab.device)
        of_all = _tell_model(self.lab, finding) | {
            "duration": ended.seconds / len(done),
            "vram_usage_percent": None if used is None else 100 * used,
        }
        identity = _tell_identity(self.lab)
        records = [
            make_record(
                self.lab.spec,
                condition,
                self._tell_answer(index, shape, answer)
                | of_all
                | {"prompt_digest": tokens_digest(self.lab.token_ids[index])}
                | identity,
            )
            for (condition, index), (_, answer) in zip(done, ended.answers, strict=True)
        ]
        self.file.begin(records)  # before the sidecar, which could otherwise be that of another file by now
        for one in new:
            self._describe(one)
        self.file.append(records)
        self.meter.batch_done([condition for condition, _ in done], records, ended.seconds)
        model_memory.check(used)
        return done

    def _describe(self, finding: Finding) -> None:
        """Say in the sidecar what the damage of a visit's conditions did."""
        self.sidecar.add_evidence([_evidence_row(job.condition, finding) for job in finding.visit.jobs])
        first, distinct = finding.visit.jobs[0].condition, finding.evidence.distinct_values
        if first.repeat_index == 0 and distinct is not None and distinct < first.level:
            dtype = self.lab.spec.model.dtype
            logger.warning("%s: %s holds %d distinct values of %g", first, dtype, distinct, first.level)

    def _tell_answer(self, index: int, shape: Shape, answer: Answer) -> dict[str, Any]:
        """What a record says of a prompt and its answer."""
        lab = self.lab
        text = lab.prompts[index].text
        return {
            "device": str(lab.device),
            "prompt_id": self.prompt_ids[text],
            "prompt_text": text,
            "output": lab.tokenizer.decode(answer.token_ids, skip_special_tokens=True),
            "tokens": len(answer.token_ids),
            "tokens_out": len(answer.token_ids),
            "tokens_in": len(lab.token_ids[index]),
            "finish_reason": answer.finish_reason,
            "batch_size_effective": shape.rows,
            "padded_length": shape.prompt_length,
        }


def _tell_model(lab: Lab, finding: Finding) -> dict[str, Any]:
    """What a record says of the damaged model."""
    measured = {"perplexity": finding.perplexity} if lab.spec.perplexity.compute else {}
    return {"model_variant": "it" if lab.templated else "base", "weights_digest": finding.digest, **measured}


def _tell_identity(lab: Lab) -> dict[str, Any]:
    """What exactly was damaged, shown and measured, as digests."""
    return {
        "model_digest": lab.model_digest,
        "image_digest": lab.sight.digest if lab.sight else None,
        "perplexity_digest": lab.perplexity_digest,
    }


def _evidence_row(condition: Condition, finding: Finding) -> dict[str, Any]:
    row = {
        "method": condition.method,
        "group": condition.group,
        "level": condition.level,
        "repeat_index": condition.repeat_index,
        "weights_digest": finding.digest,
        "baseline": finding.baseline,
    }
    return row | finding.evidence.as_table()
