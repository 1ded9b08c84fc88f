"""What a merge knows of each file before its records: its sidecar, its spec; and whether all files are of one study."""

import errno
import hashlib
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Self, get_args

from attrs import field, frozen

from runner.errors import SetupError
from runner.results_checksum import spoilt_parts, without_torn_end
from runner.results_guard import (
    Differences,
    Past,
    differences_of_model,
    differences_of_settings,
    differences_of_tokens,
    past_of,
    refuse,
)
from runner.results_layout import READ_AT_ONCE, Scan, whole
from runner.results_record import guarded_settings
from runner.results_sidecar import (
    EVIDENCE_KEY,
    Tables,
    content_of_sidecar,
    evidence_key,
    joined_spec,
    read_sidecar,
    shard_of,
    sidecar_path,
)
from runner.results_summary import RecordSummary
from runner.run_plan import all_conditions
from runner.run_shard import Shard
from runner.spec import Spec, dump_toml, load_spec, to_tables
from runner.spec_methods import Method

logger = logging.getLogger(__name__)

SHAPE = ("batch_size_effective", "padded_length", "conditions_per_batch")  # of the batch that a text was decoded in
_HINT = "Files of one study can be merged, and no others."


@frozen(eq=False)
class Part:
    """A results file that is joined with others: open, with its sidecar, and a summary once it has been read."""

    path: Path
    file: BinaryIO
    sidecar: Tables
    digest: str  # of the sidecar's bytes
    spec: Spec
    method: Method  # of its first record, and then of all
    summary: RecordSummary = field(factory=RecordSummary)

    @property
    def runs(self) -> list[dict[str, Any]]:
        """The runs on this file, each with the shard that it was of."""
        shard = shard_of(self.sidecar)
        more = {"shard": str(shard)} if shard else {}
        return [{**more, **run} for run in self.sidecar.get("provenance", {}).get("runs", [])]

    @property
    def shards(self) -> list[Shard]:
        """The shards that it has runs of, as far as that is known."""
        return [Shard.parse(run["shard"], f"{self.path}: shard") for run in self.runs if "shard" in run]

    @property
    def evidence(self) -> Sequence[Tables]:
        """What the damage of each condition did."""
        rows: Sequence[Tables] = self.sidecar.get("provenance", {}).get("evidence", [])
        return rows

    @property
    def order(self) -> tuple[str, str]:
        """Where it stands among others, whatever the order in which they were named: by its last run."""
        return (max((str(run.get("started", "")) for run in self.runs), default=""), self.digest)


def open_part(path: Path, files: ExitStack) -> Part | None:
    """The file, open for reading until `files` are closed; None if there is no record in it.

    Raises:
        SetupError: it or its sidecar is not there, cannot be read, is none of ours, or was changed since.
    """
    place = sidecar_path(path)
    try:
        if not path.is_file():
            raise SetupError(f"{path}: {'is no file' if path.exists() else 'there is no such file'}")
        file = files.enter_context(path.open("rb", READ_AT_ONCE))
        sidecar = read_sidecar(path)
        data = place.read_bytes() if sidecar else b""
    except OSError as error:
        hint = ". Merge fewer files at a time" if error.errno == errno.EMFILE else ""
        raise SetupError(f"{path}: cannot be read: {error.strerror}{hint}") from None
    scan = Scan(file)
    if (first := next(iter(scan), None)) is None:
        whole(scan, path)
        return None
    if not sidecar:
        raise SetupError(f"{place}: is missing; it says which study this is. Put it back beside the results file.")
    if b"# crc32 " in data and (spoilt := spoilt_parts(without_torn_end(data))):
        raise SetupError(f"{place}: what begins on line {spoilt[0]} was changed since degrade wrote it. Put it back.")
    method = first[0]["degradation_method"]
    if method not in get_args(Method):
        raise SetupError(f"{path}: its first record names a method that there is not: {method!r}")
    return Part(path, file, sidecar, hashlib.sha256(data).hexdigest(), load_spec(place), method)


@frozen
class Study:
    """What the sidecars of some files say together."""

    spec: Spec
    runs: Sequence[Tables]
    evidence: Mapping[tuple[Any, ...], Tables]
    conflict: SetupError | None  # a damaged model of which two files have different digests

    @classmethod
    def of(cls, parts: Sequence[Part]) -> Self:
        """The sweeps, runs and evidence of all parts, which stand in their order."""
        conflict: SetupError | None = None
        runs = {dump_toml(run): run for part in parts for run in part.runs}
        evidence: dict[tuple[Any, ...], tuple[Tables, Path]] = {}
        for part in parts:
            for row in part.evidence:
                before, path = evidence.setdefault(evidence_key(row), (row, part.path))
                if before.get("weights_digest") != row.get("weights_digest"):
                    what = ", ".join(
                        f"{key} {value!r}" for key, value in zip(EVIDENCE_KEY, evidence_key(row), strict=True)
                    )
                    conflict = conflict or SetupError(
                        f"{sidecar_path(part.path)}: weights_digest of {what} is {row.get('weights_digest')!r}, and in "
                        f"{sidecar_path(path)} it is {before.get('weights_digest')!r}. Nothing was merged."
                    )
        return cls(
            spec=joined_spec([part.spec for part in parts]),
            runs=[run for _, run in sorted(runs.items(), key=lambda item: (str(item[1].get("started", "")), item[0]))],
            evidence={key: row for key, (row, _) in evidence.items()},
            conflict=conflict,
        )

    def sidecar(self) -> bytes:
        """The sidecar of a file with the records of all: evidence in the order of the plan."""
        places = {(c.method, c.group, c.level, c.repeat_index): n for n, c in enumerate(all_conditions(self.spec))}
        keys = sorted(self.evidence, key=lambda key: (places.get(key, len(places)), key))
        content = content_of_sidecar(to_tables(self.spec), self.runs, [self.evidence[key] for key in keys], None)
        return b"".join(content)


def check_one_study(parts: Sequence[Part]) -> None:
    """Refuse files that were not asked in the same way of the same model; warn of machines and versions that differ.

    All parts have been read.

    Raises:
        SpecError: with every difference of one.
    """
    first, *others = sorted(parts, key=lambda part: part.order)
    known = _Known()
    known.add(first)
    for part in others:
        different = _differences_of_specs(part, first) | known.differences(part)
        refuse(part.path, different, whose="another of the files", hint=_HINT)
        known.add(part)
    for table in ("versions", "machine", "engine"):
        _warn_where_they_differ([part.runs[-1].get(table, {}) for part in parts if part.runs])
    # Of batches of one condition, and of several: texts of other shapes are rounded otherwise.
    for several in (False, True):
        last = [part.summary.last[several] for part in parts if several in part.summary.last]
        _warn_where_they_differ([{key: record[key] for key in SHAPE if key in record} for record in last])
    shared = {group for part in parts for group in part.summary.shared}
    alone = {group for part in parts for group in part.summary.alone}
    for group in sorted(shared & alone):
        logger.warning("not the same in all files: %s in batches of one condition, and of several", group)


def _warn_where_they_differ(tables: Sequence[Tables]) -> None:
    for key in dict.fromkeys(key for facts in tables for key in facts):
        values = sorted({str(facts[key]) for facts in tables if key in facts})
        if len(values) > 1:
            logger.warning("not the same in all files: %s %s", key, ", ".join(values))


def _differences_of_specs(part: Part, first: Part) -> Differences:
    """How the settings of a part, as its records have them, differ from what another was made under."""
    spec = first.spec
    pictures = first.summary.pictures | {run["picture"] for run in first.runs if "picture" in run} - {"none"}
    picture = next(iter(pictures), None)
    files = {name: digest for run in first.runs for name, digest in run.get("files", {}).items()}
    different = differences_of_settings(part.summary, guarded_settings(spec), spec, part.sidecar, picture, files)
    if part.spec.suffix != spec.suffix:
        different["name_suffix"] = (part.spec.suffix, spec.suffix)
    model: dict[str, Any] = first.runs[-1] if first.runs else {}
    own: dict[str, Any] = part.runs[-1] if part.runs else {}
    facts = {
        "model": {"commit": model.get("model", {}).get("commit", "none")},
        "generation_config": model.get("generation_config", own.get("generation_config", {})),
    }
    return different | differences_of_model(_past(part), facts, next(iter(first.summary.models), None), {})


def _past(part: Part) -> Past:
    return past_of(part.path, part.summary, part.sidecar)


class _Known:
    """What the parts so far say of prompts: one may have asked what another has not."""

    def __init__(self) -> None:
        self.lengths: dict[str, int] = {}
        self.digests: dict[str, str] = {}
        self.perplexity = ""
        self.numbers: dict[tuple[str, str], int] = {}  # by method and text

    def add(self, part: Part) -> None:
        """Take in a part that differs in nothing."""
        summary = part.summary
        self.lengths |= summary.lengths
        self.digests |= summary.prompts
        self.perplexity = next(iter(summary.perplexities), self.perplexity)
        self.numbers |= {(part.method, text): number for text, number in summary.prompt_ids.items()}

    def differences(self, part: Part) -> Differences:
        """How prompts of a part are not those of the parts before."""
        summary = part.summary
        lengths = {text: self.lengths.get(text, length) for text, length in summary.lengths.items()}
        digests = {text: self.digests[text] for text in summary.prompts if text in self.digests}
        different = differences_of_tokens(_past(part), lengths, digests, self.perplexity)
        texts = {(method, number): text for (method, text), number in self.numbers.items()}
        for text, number in summary.prompt_ids.items():
            known = self.numbers.get((part.method, text), number)
            if known != number:
                different[f"number of the prompt {text!r}"] = (number, known)
            elif (other := texts.get((part.method, number), text)) != text:
                different[f"prompt of number {number}"] = (text, other)
        return different
