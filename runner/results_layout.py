"""The bytes of a results file: a JSON array of flat objects, one per line; what of it is whole, and what is ours.

A crash inside an append tears the end of the file: a part of a record, brackets, zeros. After a power cut, pages may be
on the disk in any order: zeros stand before whole records as well. Both cost nothing that is whole. Any other damage
is nothing that a crash does, and is left for a person to look at; so is a record whose checksum does not fit.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from attrs import frozen

from runner.errors import SetupError
from runner.results_checksum import SCHEMA_VERSION, VERSION, as_line, is_intact, sealed, take_seal
from runner.results_json import json_in
from runner.results_record import is_record
from runner.results_sidecar import newer

READ_AT_ONCE = 2**16  # bytes: in the 8 kB of Python's default, reading takes three times as long
OPENING, CLOSING, EMPTY = b"[\n", b"\n]\n", b"[\n]\n"
_SEPARATOR = b",\n"
_NOTHING = b",]\0 \r\n\t"  # what says nothing wherever it stands
_ZEROS = b"\0\0"  # of a page that was not written; a single one is a space of which a bit flipped
_FIRST_BYTES = b'{"timestamp"'  # every record of ours starts like this


@frozen
class Flaw:
    """Something in a file that is not as an append leaves it."""

    place: str  # "line 3"; in an array of another layout "record 3"
    what: str
    fatal: bool  # no crash leaves this: a person has to look


class Scan:
    """One pass through an open file, which keeps no record.

    Iterate over it to the end: it gives every whole record and its line. Then it knows what the file is.
    """

    def __init__(self, file: BinaryIO) -> None:
        """`file` is read from its start."""
        self._file = file
        self.ours = True  # whether this is a results file of degrade
        self.count = self.with_checksum = 0  # whole records
        self.end = len(OPENING)  # the offset behind the last record
        self.tail = b""  # what stands there
        self._unit, self._number = "line", 1  # of the record that was given last
        self.exact = True  # the lines that were given stand so in the file, each up to `end`
        self.as_appended = True  # an append may go on at `end`: what stands there is our bracket, or a torn append
        self.newer: int | None = None  # a version of the schema that this program does not know
        self.flaws: list[Flaw] = []

    @property
    def place(self) -> str:
        """Of the record that was given last, as in `Flaw`."""
        return f"{self._unit} {self._number}"

    @property
    def damage(self) -> Flaw | None:
        """The first flaw that no crash leaves."""
        return next((flaw for flaw in self.flaws if flaw.fatal), None)

    def __iter__(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Each whole record, without the fields that seal it, and its line."""
        self._file.seek(0)
        start = self._file.read(len(EMPTY) + 1)
        self._file.seek(0)
        if _is_empty(start):
            self.tail = start.removeprefix(OPENING)
            if start != EMPTY:
                self._note(1, "the file was made, and nothing written", fatal=False)
            return
        if start.startswith(OPENING):
            yield from self._by_lines()
        if not start.startswith(OPENING) or not self.ours:
            yield from self._array()

    def _by_lines(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        gap, wanted = bytearray(), b""
        offset = len(self._file.readline())
        for number, raw in enumerate(self._file, start=2):
            whole = raw.startswith(b"{") and raw.endswith(b"},\n")
            line = raw[:-2] if whole else raw.removesuffix(b"\n").strip(b"\0").rstrip(b",]\0")
            found, as_written = json_in(line) if line.startswith(b"{") else (None, True)
            if self._is_ours(found, line, number):
                zeros = 0 if whole else raw.index(b"{")
                gap += raw[:zeros]
                if gap != wanted:
                    self._judge_gap(bytes(gap), number - 1)
                self.count += 1
                self.end, self._number = offset + zeros + len(line), number
                self.exact = self.exact and as_written
                yield found, line if as_written else sealed(found)
                gap, wanted = bytearray(raw[zeros + len(line) :]), _SEPARATOR
            else:
                gap += raw
            offset += len(raw)
        self.tail = bytes(gap)
        spoilt = _is_spoilt(self.tail, _SEPARATOR if self.count else _FIRST_BYTES)
        torn = not spoilt and _is_torn(self.tail)
        self.ours = bool(self.count or self.newer or self.flaws or torn) or _is_unwritten_start(OPENING + self.tail)
        if self.ours and self.tail != tail_of(self.end):
            what = "is damaged" if spoilt else "an append broke off" if torn else "this is behind the last record"
            self._note(self._number + 1, what, fatal=spoilt)
        self.as_appended = self.exact and self.as_appended and (torn or (self.tail == CLOSING and self.count > 0))

    def _array(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        """The records of an array in any other layout, as the reference code wrote it or an editor leaves it.

        It is ours if all that is in it are records. Checksums are those of the lines that we would write.
        """
        self._file.seek(0)
        found, _ = json_in(self._file.read())
        self.as_appended = self.exact = False
        self.end, self._unit = 0, "record"
        rows: list[Any] = found if isinstance(found, list) else [None]
        whole = []
        for number, row in enumerate(rows, start=1):
            seal = take_seal(row) if isinstance(row, dict) else {}
            line = as_line(row | seal) if seal else b""
            if seal:
                row.update(seal)
            if self._is_ours(row, line, number):
                whole.append((number, row))
        self.ours = len(whole) == len(rows) or bool(self.flaws or self.newer)
        if self.ours:
            self.count = len(whole)
            for self._number, row in whole:
                yield row, sealed(row)

    def _is_ours(self, found: object, line: bytes, number: int) -> TypeGuard[dict[str, Any]]:
        """Whether this is a whole record, with the checksum of its line; the fields that seal it are taken out."""
        if not isinstance(found, dict):
            return False
        seal = take_seal(found)
        version, intact = seal.get(VERSION, 1), bool(seal) and is_intact(line)
        known = type(version) is int and version >= 1
        if intact and known and version > SCHEMA_VERSION:
            self.newer = version
            return False
        if not is_record(found):
            return False
        if not (intact and known) and seal not in ({}, {VERSION: 1}):
            self._note(number, "its checksum does not fit", fatal=True)
            return False
        self.with_checksum += intact
        return True

    def _judge_gap(self, gap: bytes, line: int) -> None:
        """Look at what else than a comma stands between two records, or before the first."""
        self.as_appended = False
        unwritten = _is_unwritten(gap)
        what = "a page did not reach the disk" if unwritten else "what stands there is no record"
        self._note(line, what, fatal=not unwritten)

    def _note(self, number: int, what: str, *, fatal: bool) -> None:
        place = f"{self._unit} {number}"
        if not self.flaws or self.flaws[-1].place != place:
            self.flaws.append(Flaw(place, what, fatal))


def whole(scan: Scan, path: Path, *, force: bool = False) -> None:
    """Refuse a file that is not ours, or damaged beyond what a crash does unless it is to be replaced.

    Raises:
        SetupError: with what is wrong and where.
    """
    if scan.newer is not None:
        raise newer(path, scan.newer)
    if not scan.ours:
        raise SetupError(f"{path}: this is no results file of degrade; it was not touched. Move it away.")
    if scan.damage is not None and not force:
        raise SetupError(
            f"{path}: {scan.damage.place} is damaged, and by no interrupted write: {scan.damage.what}. Put it back "
            "from a copy or delete it (`degrade check` names all of them), or start over with --force."
        )


def content_of(lines: Iterable[bytes]) -> Iterator[bytes]:
    """A whole file with these lines, in pieces."""
    yield OPENING
    before = b""
    for line in lines:
        yield before + line
        before = _SEPARATOR
    yield CLOSING if before else CLOSING[1:]


def addition_of(lines: Iterable[bytes], end: int) -> bytes:
    """What an append writes at `end`, the closing bracket aside."""
    return (_SEPARATOR if end > len(OPENING) else b"") + _SEPARATOR.join(lines)


def tail_of(end: int) -> bytes:
    """What stands behind the last record, which ends at `end`."""
    return CLOSING if end > len(OPENING) else CLOSING[1:]


def _is_empty(start: bytes) -> bool:
    """Whether this is a file that was just made, or the zeros of one that did not reach the disk in time."""
    return EMPTY.startswith(start) or (len(start) <= len(EMPTY) and not start.strip(b"\0"))


def _is_unwritten(gap: bytes) -> bool:
    """Whether what stands between two records is empty, or a page that did not reach the disk.

    Such a page is read as zeros, or as the old end of the file, closing bracket included.
    """
    return not gap.strip(_NOTHING) or _ZEROS in gap or gap.lstrip(b",\n").startswith(b"]\n")


def _is_unwritten_start(data: bytes) -> bool:
    """Whether this is a first append of which some pages did not reach the disk."""
    start, zero, _ = data.partition(b"\0")
    first = OPENING + _FIRST_BYTES
    return bool(zero) and (start.startswith((EMPTY, first)) or first.startswith(start))


def _is_spoilt(tail: bytes, start: bytes) -> bool:
    """Whether an append that was written to its end left this behind the last record: not all of it is whole now."""
    return tail.startswith(start) and tail.endswith(b"]\n") and _ZEROS not in tail and bool(tail.strip(_NOTHING))


def _is_torn(tail: bytes) -> bool:
    """Whether an append that broke off may have left this behind the last record."""
    rest = tail.strip(_NOTHING)
    if b"\n" in rest or (rest and tail.rstrip(b"\0").endswith(CLOSING)) or json_in(rest)[0] is not None:
        return False  # whole lines, or a whole object: nothing that was torn
    return rest.startswith(_FIRST_BYTES) or _FIRST_BYTES.startswith(rest)
