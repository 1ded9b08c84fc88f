"""Where each record of several files is: every key once, compared with its doubles; offsets and hashes, no record."""

import hashlib
import json
import os
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from runner.errors import SetupError
from runner.results_checksum import CHECKSUM, VERSION
from runner.results_layout import Scan, whole
from runner.results_order import plan_rank
from runner.results_part import Part
from runner.results_record import Record
from runner.results_summary import key_of
from runner.run_plan import Condition, Key

# What two records of one key may differ in: when and on what they were made.
VOLATILE = frozenset({"timestamp", "duration", "device", "vram_usage_percent"})
_DIGEST_SIZE = 16
SHOWN_CHARACTERS = 60


class RecordIndex:
    """The records of some parts, in the order of a plan: about 0.25 kB for each."""

    def __init__(self, conditions: Sequence[Condition]) -> None:
        """`conditions` are the plan."""
        self.doubles = 0
        self.conflict: SetupError | None = None  # the first record that two parts have and do not agree on
        self._conditions = conditions
        self._rank = plan_rank(conditions)
        self._parts: list[Part] = []
        self._held: list[int] = []  # how many records each part has
        self._entries: dict[bytes, int] = {}  # the number of each key, by its digest; what follows is by that number
        self._contents = bytearray()
        self._sources, self._lengths, self._checks = array("I"), array("I"), array("I")
        self._offsets = array("Q")
        self._ranks = list[tuple[int, ...]]()
        self._texts: set[str] = set()
        self._answered = Counter[tuple[object, ...]]()  # how many prompts, by condition

    @property
    def count(self) -> int:
        """How many records there are, each once."""
        return len(self._entries)

    def add(self, part: Part) -> None:
        """Read a part, and summarise it.

        Raises:
            SetupError: it is damaged or of a newer release.
        """
        scan, source = Scan(part.file), len(self._parts)
        self._parts.append(part)
        for record, line in scan:
            if not scan.exact:
                raise SetupError(
                    f"{part.path}: was changed since degrade wrote it: it is laid out in another way. Put it back, or "
                    "run its spec on it, which writes it as it was."
                )
            if record["degradation_method"] != part.method:
                raise SetupError(
                    f"{part.path}: {scan.place} is a record of {record['degradation_method']}, the first one is of "
                    f"{part.method}"
                )
            part.summary.add(record)
            self._take(source, scan, record, line)
        whole(scan, part.path)
        self._held.append(scan.count)
        part.summary.keys.clear()  # they are most of it

    def _take(self, source: int, scan: Scan, record: Record, line: bytes) -> None:
        key = key_of(record)
        digest, content = _digest_of_key(key), _digest_of_content(record)
        entry = self._entries.setdefault(digest, len(self._entries))
        place = (scan.end - len(line), len(line), zlib.crc32(line), source)
        if entry == len(self._ranks):
            self._contents += content
            self._ranks.append(self._rank(record))
            for column, value in zip(self._columns, place, strict=True):
                column.append(value)
            self._texts.add(key[-1])
            self._answered[key[:-1]] += 1
            return
        self.doubles += 1
        before = self._line(entry)
        if self._contents[entry * _DIGEST_SIZE : (entry + 1) * _DIGEST_SIZE] != content:
            path = self._parts[self._sources[entry]].path
            self.conflict = self.conflict or _conflict(self._parts[source].path, scan.place, record, path, before)
        elif line < before:  # the earlier one, for it begins with its time; so that the order of files decides nothing
            for column, value in zip(self._columns, place, strict=True):
                column[entry] = value

    @property
    def _columns(self) -> tuple["array[int]", ...]:
        return self._offsets, self._lengths, self._checks, self._sources

    def _line(self, entry: int) -> bytes:
        """The line of a record.

        Raises:
            SetupError: it is no longer there.
        """
        part = self._parts[self._sources[entry]]
        line = os.pread(part.file.fileno(), self._lengths[entry], self._offsets[entry])
        if zlib.crc32(line) != self._checks[entry]:
            raise SetupError(f"{part.path}: was changed by another program while it was read")
        return line

    def _order(self) -> list[int]:
        keys = list(self._entries)
        return sorted(range(len(keys)), key=lambda entry: (self._ranks[entry], keys[entry]))

    def lines(self) -> Iterator[bytes]:
        """The line of each record, in the order of the plan; what is not in it follows in an order of its own."""
        return map(self._line, self._order())

    def is_as_in(self, path: Path) -> bool:
        """Whether a file, which is one of the parts, holds these lines in this order, and nothing else."""
        (source,) = [n for n, part in enumerate(self._parts) if part.path.resolve() == path.resolve()] or [-1]
        if source < 0 or self._held[source] != self.count or any(one != source for one in self._sources):
            return False
        offsets = [self._offsets[entry] for entry in self._order()]
        return offsets == sorted(offsets)

    def missing(self) -> dict[Condition, int]:
        """The conditions of the plan that have not answered all prompts, each with how many are missing."""
        asked = {condition.key("")[:-1]: condition for condition in reversed(self._conditions)}
        missing = {one: len(self._texts) - self._answered[key] for key, one in reversed(asked.items())}
        return {condition: number for condition, number in missing.items() if number}


def _digest_of_key(key: Key) -> bytes:
    group, level, repeat, method, text = key
    said = repr((group, level + 0.0, float(repeat), method, text))  # a number is the same in all its forms
    return hashlib.blake2b(said.encode(errors="surrogatepass"), digest_size=_DIGEST_SIZE).digest()


def _digest_of_content(record: Record) -> bytes:
    said = json.dumps({name: value for name, value in record.items() if name not in VOLATILE}, sort_keys=True)
    return hashlib.blake2b(said.encode(), digest_size=_DIGEST_SIZE).digest()


def _conflict(path: Path, place: str, record: Record, other: Path, line: bytes) -> SetupError:
    """What is said of two records of one key that are not equal."""
    before = json.loads(line)
    group, level, repeat, method, text = key_of(record)
    names = [name for name in dict.fromkeys((*before, *record)) if name not in {*VOLATILE, VERSION, CHECKSUM}]
    apart = [name for name in names if before.get(name, _NOTHING) != record.get(name, _NOTHING)]
    told = "; ".join(f"{name} {_shown(before.get(name))} and {_shown(record.get(name))}" for name in apart)
    return SetupError(
        f"{other} and {path}, {place}, say different things of one record: {group} {method} {level!r} repeat {repeat}, "
        f"prompt {_shown(text)}: {told}. Nothing was merged."
    )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


_NOTHING = object()
