"""What the JSON in some bytes says, and whether exactly that; what neighbouring records share is read only once."""

import json
import math
import re
from functools import lru_cache
from typing import Any

# Between these two stand the settings of the run and the condition, equal in all records of a damaged model.
_TIME = re.compile(r'\{"timestamp": "[^"\\]*"(?=, "experiment_id": )')
_FACTS = ', "device": '
_REMEMBERED = 128  # conditions


def json_in(data: bytes) -> tuple[Any, bool]:
    """What the JSON in some bytes says, and whether that is exactly what they say; null where they are none.

    NaN and Infinity, which Python writes and JSON has not, are read as null: a number that is not finite.
    Values that are lists or tables may be shared with what was read before.
    """
    try:
        return _read(data.decode()), True
    except (ValueError, RecursionError):
        pass
    try:
        return json.loads(data, parse_constant=_finite_or_null, parse_float=_finite_or_null), False
    except (ValueError, RecursionError):
        return None, True


def _read(text: str) -> Any:
    """What a text says; without the part that was read in another record, if what is left of it is JSON as well.

    Raises:
        ValueError: it is not JSON from beginning to end.
    """
    if (time := _TIME.match(text)) and (end := text.find(_FACTS)) > 0:
        start = time.end()
        try:
            return _shared(text[start:end]) | _decode(text[:start] + text[end:])
        except ValueError:
            pass
    return _decode(text)


@lru_cache(_REMEMBERED)
def _shared(text: str) -> dict[str, Any]:
    """The fields in the part of a record that begins and ends between two fields, behind the place of its time."""
    fields: dict[str, Any] = _decode(f'{{"timestamp": null{text}}}')
    if fields["timestamp"] is not None:
        raise ValueError("a record with two times")
    return fields


def _decode(text: str) -> Any:
    found, end = _strict.raw_decode(text)
    if end != len(text):
        raise ValueError(text[end:])
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _finite_or_null(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


_strict = json.JSONDecoder(parse_constant=_finite, parse_float=_finite)
