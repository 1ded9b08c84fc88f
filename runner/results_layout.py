"""The bytes of a results file: a JSON array of flat objects, one per line; what of it is whole, and what is ours.

A crash inside an append tears the end of the file: a part of a record, brackets, zeros. After a power cut, pages may be
on the disk in any order: zeros stand before whole records as well. Both cost nothing that is whole. Any other damage
between records is nothing that a crash does, and is left for a person to look at.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from attrs import frozen

Record = Mapping[str, Any]

KEY_FIELDS = ("param_group_name", "std_dev", "repeat_index", "degradation_method", "prompt_text")
OPENING, CLOSING, EMPTY = b"[\n", b"\n]\n", b"[\n]\n"
_SEPARATOR = b",\n"
_NOTHING = b",]\0 \r\n\t"  # what says nothing wherever it stands
_FIRST_BYTES = b'{"timestamp"'  # every record of ours starts like this
LARGEST_LEVEL = 2.0**1000  # so that any level is a float
_WORDS = ("param_group_name", "degradation_method", "prompt_text")
# Whole numbers that we count on, each with the least and with what it is less than.
_COUNTS = {
    "seed": (0, 2**63),
    "prompt_id": (0, 2**31),
    "batch_size_effective": (1, 2**20),
    "padded_length": (1, 2**24),
}
_DIGESTS = ("weights_digest", "model_digest", "prompt_digest", "image_digest", "perplexity_digest")


@frozen(kw_only=True)
class Layout:
    """What stands in the bytes of a file that is ours."""

    records: list[dict[str, Any]]
    lines: list[bytes]  # of the records, as they stand there
    end: int  # the offset behind the last record
    as_appended: bool  # an append may go on at `end`: what stands behind is our bracket, or a torn append
    damaged_line: int | None = None  # the number of a line that no crash leaves between records

    def content(self) -> bytes:
        """The whole file as it should be."""
        return content_of(self.lines)


def read_layout(data: bytes) -> Layout | None:
    """The records in the bytes of a file; None where it is none of ours.

    An array in any other layout, as the reference code wrote it or an editor leaves it, is ours if all that is in it
    are records.
    """
    if _is_empty(data):
        return Layout(records=[], lines=[], end=len(OPENING), as_appended=True)
    return (_by_lines(data) if data.startswith(OPENING) else None) or _older(data)


def encoded(record: Record) -> bytes:
    """A record as one line of JSON; a lone surrogate, which UTF-8 has not, is written as JSON's escape of it.

    Raises:
        ValueError: it holds what JSON has not: infinity, or "not a number".
    """
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode(errors="backslashreplace")


def content_of(lines: Sequence[bytes]) -> bytes:
    """A whole file with these lines."""
    return OPENING + _SEPARATOR.join(lines) + CLOSING if lines else EMPTY


def addition_of(lines: Sequence[bytes], end: int) -> bytes:
    """What an append writes at `end`, the closing bracket aside."""
    return (_SEPARATOR if end > len(OPENING) else b"") + _SEPARATOR.join(lines)


def tail_of(end: int) -> bytes:
    """What stands behind the last record, which ends at `end`."""
    return CLOSING if end > len(OPENING) else CLOSING[1:]


def _is_empty(data: bytes) -> bool:
    """Whether this is a file that was just made, or the zeros of one that did not reach the disk in time."""
    return EMPTY.startswith(data) or (len(data) <= len(EMPTY) and not data.strip(b"\0"))


def _by_lines(data: bytes) -> Layout | None:
    records: list[dict[str, Any]] = []
    lines, spans, exact = [], [], True
    start = len(OPENING)
    while start < len(data):
        stop = data.find(b"\n", start)
        stop = len(data) if stop < 0 else stop
        line = data[start:stop]
        first = start + len(line) - len(line.lstrip(b"\0"))
        line = line.strip(b"\0").rstrip(b",]\0")
        found, as_written = _json_in(line) if line.startswith(b"{") else (None, True)
        if _is_record(found):
            records.append(found)
            lines.append(line if as_written else encoded(found))
            spans.append((first, first + len(line)))
            exact = exact and as_written
        start = stop + 1
    if not records:
        torn = _is_torn(data[len(OPENING) :])
        ours = torn or _is_unwritten_start(data)
        return Layout(records=[], lines=[], end=len(OPENING), as_appended=torn) if ours else None
    starts, ends = [first for first, _ in spans], [last for _, last in spans]
    gaps = [data[end:start] for end, start in zip([len(OPENING), *ends[:-1]], starts, strict=True)]
    good = [b"", *[_SEPARATOR] * (len(records) - 1)]
    bad = [index for index, gap in enumerate(gaps) if gap != good[index] and not _is_unwritten(gap)]
    tail = data[ends[-1] :]
    return Layout(
        records=records,
        lines=lines,
        end=ends[-1],
        as_appended=exact and gaps == good and (tail == CLOSING or _is_torn(tail)),
        damaged_line=data[: starts[bad[0]]].count(b"\n") if bad else None,
    )


def _is_unwritten(gap: bytes) -> bool:
    """Whether what stands between two records is empty, or a page that did not reach the disk.

    Such a page is read as zeros, or as the old end of the file, closing bracket included.
    """
    return not gap.strip(_NOTHING) or b"\0" in gap or gap.lstrip(b",\n").startswith(b"]\n")


def _is_unwritten_start(data: bytes) -> bool:
    """Whether this is a first append of which some pages did not reach the disk."""
    start, zero, _ = data.partition(b"\0")
    first = OPENING + _FIRST_BYTES
    return bool(zero) and (start.startswith((EMPTY, first)) or first.startswith(start))


def _is_torn(tail: bytes) -> bool:
    """Whether an append that broke off may have left this behind the last record."""
    rest = tail.strip(_NOTHING)
    if b"\n" in rest or (rest and tail.rstrip(b"\0").endswith(CLOSING)) or _json_in(rest)[0] is not None:
        return False  # whole lines, or a whole object: nothing that was torn
    return rest.startswith(_FIRST_BYTES) or _FIRST_BYTES.startswith(rest)


def _json_in(data: bytes) -> tuple[Any, bool]:
    """What the JSON in some bytes says, and whether that is exactly what they say; null where they are none.

    NaN and Infinity, which Python writes and JSON has not, are read as null: a number that is not finite.
    """
    others: list[str] = []

    def number(text: str) -> float | None:
        value = float(text)
        if math.isfinite(value):
            return value
        others.append(text)
        return None

    try:
        found = json.loads(data, parse_constant=number, parse_float=number)
    except (ValueError, RecursionError):
        return None, True
    return found, not others


def _older(data: bytes) -> Layout | None:
    found, _ = _json_in(data)
    if not isinstance(found, list) or not all(map(_is_record, found)):
        return None
    return Layout(records=found, lines=[encoded(record) for record in found], end=0, as_appended=False)


def _is_record(found: object) -> TypeGuard[dict[str, Any]]:
    """Whether this has the fields that a record is known by, and numbers and words where we count on them."""
    return (
        isinstance(found, dict)
        and all(field in found for field in KEY_FIELDS)
        and all(type(found[field]) is str for field in _WORDS)
        and (_is_number(found["std_dev"]) and abs(found["std_dev"]) < LARGEST_LEVEL)
        and _is_number(found["repeat_index"])
        and all(found.get(field) is None or _is_count(found[field], *limits) for field, limits in _COUNTS.items())
        and all(found.get(field) is None or type(found[field]) is str for field in _DIGESTS)
    )


def _is_number(value: object) -> bool:
    return type(value) in {int, float}  # one that is not finite was read as null


def _is_count(value: object, least: int, bound: int) -> bool:
    return type(value) is int and least <= value < bound
