"""From what a damaged model said to what is on the disk: evidence in the sidecar, records in the results file."""

import logging
from typing import Any

from attrs import frozen

from runner import vram
from runner.evidence import Evidence
from runner.generate import Ended
from runner.lab import Lab
from runner.logs import Meter
from runner.plan import Condition, Visit
from runner.provenance import Sidecar
from runner.question import Answer, Shape
from runner.record import make_record
from runner.results import ResultsFile

logger = logging.getLogger(__name__)


@frozen(kw_only=True)
class Finding:
    """What was found out about a damaged model before it was asked anything."""

    visit: Visit
    digest: str
    evidence: Evidence
    baseline: str  # where it lies
    perplexity: float | None


@frozen
class Scribe:
    """Writes down everything about one results file."""

    lab: Lab
    file: ResultsFile
    sidecar: Sidecar
    meter: Meter

    def describe(self, finding: Finding) -> None:
        """Say in the sidecar what the damage of a visit's conditions did."""
        self.sidecar.add_evidence([_evidence_row(job.condition, finding) for job in finding.visit.jobs])
        first, distinct = finding.visit.jobs[0].condition, finding.evidence.distinct_values
        if first.repeat_index == 0 and distinct is not None and distinct < first.level:
            dtype = self.lab.spec.model.dtype
            logger.warning("%s: %s holds %d distinct values of %g", first, dtype, distinct, first.level)

    def append(self, finding: Finding, ended: Ended, shape: Shape) -> list[tuple[Condition, int]]:
        """Append the records of answers that ended together; which questions are thereby done."""
        asked = finding.visit.questions
        done = [asked[index] for index, _ in ended.answers]
        used = vram.used_fraction(self.lab.device)
        common = {
            "weights_digest": finding.digest,
            "duration": ended.seconds / len(done),
            "vram_usage_percent": None if used is None else 100 * used,
        }
        records = [
            make_record(
                self.lab.spec,
                condition,
                _tell(self.lab, index, shape, answer) | _perplexity(self.lab, condition, finding) | common,
            )
            for (condition, index), (_, answer) in zip(done, ended.answers, strict=True)
        ]
        self.file.append(records)
        self.meter.batch_done([condition for condition, _ in done], records, ended.seconds)
        vram.check(used)
        return done


def _tell(lab: Lab, index: int, shape: Shape, answer: Answer) -> dict[str, Any]:
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


def _perplexity(lab: Lab, condition: Condition, finding: Finding) -> dict[str, Any]:
    """The perplexity, which stands on the records of repeat 0."""
    wanted = lab.spec.perplexity.compute and condition.repeat_index == 0
    return {"perplexity": finding.perplexity} if wanted else {}


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
