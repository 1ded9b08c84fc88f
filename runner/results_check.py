"""`degrade check`: a results file and its sidecar against themselves and each other, without a model.

Every byte of a file that degrade wrote is looked at: the lines, what stands between them, the checksum of each. Then
the records are compared: with each other, and with the spec, the runs and the evidence in the sidecar.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from attrs import frozen

from runner.errors import DegradeError, SetupError
from runner.results_checksum import SCHEMA_VERSION, VERSION, spoilt_parts
from runner.results_layout import READ_AT_ONCE, Scan, whole
from runner.results_record import Record, guarded_settings
from runner.results_sidecar import Tables, read_sidecar, shard_of, sidecar_path
from runner.results_summary import key_of
from runner.run_plan import Key, all_conditions
from runner.run_shard import Shard
from runner.spec import Spec, load_spec
from runner.spec_choice import weights_key
from runner.spec_methods import METHODS

Tell = Callable[[str], None]
ConditionKey = tuple[str, float, int, str]  # group, level, repeat, method: a key without its prompt

SHOWN_CHARACTERS = 60
# What records and the runs in the sidecar say of the same thing, each in its words.
_OF_A_RUN: Mapping[str, Callable[[Tables], Any]] = {
    "model_digest": lambda run: run.get("model", {}).get("digest"),
    "perplexity_digest": lambda run: run.get("perplexity_digest"),
    "image_digest": lambda run: run.get("picture"),
}


@frozen
class Checked:
    """What a file holds, and how many faults it has."""

    records: int
    with_checksum: int
    conditions: int
    faults: int

    def __str__(self) -> str:
        held = f"{self.records} records of {self.conditions} damaged models, {self.with_checksum} with a checksum"
        return f"{held}: {'no fault' if not self.faults else f'faults: {self.faults}'}"


_OF_ALL = tuple((field, None) for field in _OF_A_RUN)


def check(path: Path, tell: Tell) -> Checked:
    """Tell every fault of a results file and its sidecar, each in a line.

    Raises:
        SetupError: the file cannot be read, is no results file, or one of a newer release.
    """
    faults = Counter[str]()

    def fault(text: str, of: Path = path) -> None:
        faults["told"] += 1
        tell(f"{of}: {text}")

    place = sidecar_path(path)
    spec, sidecar = _read_sidecar(place, path, fault)
    if not path.is_file():
        raise SetupError(f"{path}: {'is no file' if path.exists() else 'there is no such file'}")
    try:
        with path.open("rb", READ_AT_ONCE) as file:
            scan, conditions = look(file, spec, sidecar, fault)
    except OSError as error:
        raise SetupError(f"{path}: cannot be read: {error.strerror}") from None
    whole(scan, path, force=True)
    if scan.with_checksum and not place.exists():
        fault("is missing", place)
    return Checked(scan.count, scan.with_checksum, conditions, faults["told"])


def look(file: BinaryIO, spec: Spec | None, sidecar: Tables, fault: Tell) -> tuple[Scan, int]:
    """Tell every fault of an open results file, given its sidecar and the spec in it; and count its damaged models."""
    scan, seen = Scan(file), _Seen(spec, shard_of(sidecar), fault)
    for record, _ in scan:
        seen.add(scan.place, record)
    for flaw in scan.flaws:
        fault(f"{flaw.place}: {flaw.what}")
    if not scan.count:
        fault("holds no record")
    if scan.with_checksum and not scan.end:
        fault("was changed since degrade wrote it: it is laid out in another way")
    seen.compare_repeats()
    seen.compare_with_spec()
    if sidecar:
        seen.compare_with_runs(sidecar.get("provenance", {}))
    return scan, len(seen.answered)


def _read_sidecar(place: Path, results: Path, fault: Callable[[str, Path], None]) -> tuple[Spec | None, Tables]:
    """The spec in a sidecar and all of its tables, as far as they can be read; whatever is wrong is told."""
    try:
        sidecar = read_sidecar(results)
        data = place.read_bytes() if sidecar else b""
        if b"# crc32 " in data or sidecar.get("provenance", {}).get(VERSION, 1) >= SCHEMA_VERSION:
            for line in spoilt_parts(data):
                fault(f"line {line}: what begins here was changed since degrade wrote it, or is torn", place)
        shard_of(sidecar)  # told here if it is none
        return (load_spec(place) if sidecar else None), sidecar
    except (DegradeError, OSError) as error:
        fault(str(error).removeprefix(f"{place}: "), place)
        return None, {}


class _Seen:
    """What was seen of the records of a file; what does not fit is told."""

    def __init__(self, spec: Spec | None, shard: Shard | None, fault: Tell) -> None:
        self._fault = fault
        self._settings = guarded_settings(spec) if spec else {}
        self._seed = self._settings.pop("seed", None)  # of repeat 0
        planned = all_conditions(spec) if spec else []
        self._shard = shard
        self._expected = {_condition(c.key("")): shard is None or shard.takes(c) for c in planned}
        self._texts: dict[str, str] = {}
        self._places: dict[Key, str] = {}
        self._first: dict[tuple[str, Any], tuple[Any, str]] = {}  # of what must be the same: its value, and where
        self._seeds: dict[ConditionKey, int | None] = {}
        self.answered = Counter[ConditionKey]()  # how many prompts

    def add(self, place: str, record: Record) -> None:
        """Take in the next record."""
        group, level, repeat, method, text = key_of(record)
        text, condition = self._texts.setdefault(text, text), (group, level, repeat, method)

        def fault(what: str) -> None:
            shown = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
            self._fault(f"{place}: {_named(condition)}, prompt {shown!r}: {what}")

        if (before := self._places.setdefault((*condition, text), place)) != place:
            fault(f"stands on {before} already")
        else:
            self.answered[condition] += 1
        if condition not in self._seeds:
            self._seeds[condition] = record.get("seed")
            if self._expected and condition not in self._expected:
                fault("the spec in the sidecar has no such level or repeat")
            elif not self._expected.get(condition, True):
                fault(f"belongs to another shard than {self._shard}, which this file is by its sidecar")
        for field, subject in (*_OF_ALL, ("prompt_digest", text), ("weights_digest", condition)):
            have = record.get(field)
            if have is not None:
                value, first = self._first.setdefault((field, subject), (have, place))
                if value != have:
                    fault(f"{field} is {have!r}, and on {first} it is {value!r}")
        self._compare_settings(record, repeat, fault)

    def _compare_settings(self, record: Record, repeat: int, fault: Tell) -> None:
        for name, wanted in self._settings.items():
            have = record.get(name, wanted)
            if have != wanted:
                fault(f"{name} is {have!r}, by the spec in the sidecar {wanted!r}")
        seed = record.get("seed")
        if self._seed is not None and seed not in (None, self._seed + repeat):
            fault(f"seed is {seed}, by the spec in the sidecar {self._seed + repeat}")

    def compare_repeats(self) -> None:
        """Tell repeats whose weights should be equal, and whose digests are not."""
        shared: dict[Any, tuple[Any, str]] = {}
        for condition, seed in self._seeds.items():
            group, level, _, method = condition
            if method in METHODS and seed is not None:
                digest, place = self._first.get(("weights_digest", condition), (None, ""))
                value, first = shared.setdefault(weights_key(group, method, level, seed), (digest, place))
                if value != digest and None not in (value, digest):
                    what = f"weights_digest is {digest!r}, and on {first} it is {value!r} for the same weights"
                    self._fault(f"{place}: {_named(condition)}: {what}")

    def compare_with_spec(self) -> None:
        """Tell what the spec asks for and is not there, of the methods and prompts that the file has."""
        methods = {method for *_, method in self._seeds}
        for condition, expected in self._expected.items():
            missing = len(self._texts) - self.answered[condition]
            if expected and condition[-1] in methods and missing:
                self._fault(f"{_named(condition)}: {missing} of {len(self._texts)} records are missing")

    def compare_with_runs(self, provenance: Tables) -> None:
        """Tell digests that are not those of the runs and of the evidence in the sidecar."""
        for field in _OF_A_RUN:
            told = {_OF_A_RUN[field](run) for run in provenance.get("runs", [])} - {None, "none"}
            value, place = self._first.get((field, None), (None, ""))
            if value is not None and told and value not in told:
                self._fault(f"{place}: {field} is {value!r}, in the sidecar it is {', '.join(sorted(map(str, told)))}")
        rows = {_evidence_key(row): row.get("weights_digest") for row in provenance.get("evidence", [])}
        for condition in self._seeds:
            digest, place = self._first.get(("weights_digest", condition), (None, ""))
            if digest is not None and rows.get(condition) != digest:
                there = f"has {rows[condition]!r}" if condition in rows else "has no evidence of it"
                self._fault(f"{place}: {_named(condition)}: weights_digest is {digest!r}, the sidecar {there}")


def _condition(key: Key) -> ConditionKey:
    group, level, repeat, method, _ = key
    return group, level, repeat, method


def _evidence_key(row: Tables) -> ConditionKey:
    return row["group"], row["level"], row["repeat_index"], row["method"]


def _named(condition: ConditionKey) -> str:
    group, level, repeat, method = condition
    return f"{group} {method} {level!r} repeat {repeat}"
