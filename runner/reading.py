"""Results files as a report reads them: whatever stands in one, every field that is used is of its type."""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import get_args

from runner.errors import SetupError
from runner.layout import Record
from runner.results import read_records
from runner.sweep import Method

_TEXTS = ("prompt_text", "output", "param_group_name")
_OPTIONAL_TEXTS = ("finish_reason", "timestamp", "weights_digest", "config_name", "model_name", "experiment_id")
_OPTIONAL_NUMBERS = ("tokens", "perplexity")
_OPTIONAL_WHOLE = ("seed", "prompt_id")
_LARGEST_WHOLE = 2**63 - 1


def read_files(paths: Iterable[Path]) -> dict[Path, Sequence[Record]]:
    """The records of some results files, each file once.

    Raises:
        SetupError: there is no such file, it cannot be read or holds no records, or a record lacks what a report needs.
    """
    files: dict[Path, Sequence[Record]] = {}
    for path in paths:
        records = read_records(path)
        if not records:
            raise SetupError(f"{path}: {'holds no records' if path.exists() else 'there is no such file'}")
        files[path] = [_checked(path, number, record) for number, record in enumerate(records, start=1)]
    return files


def _checked(path: Path, number: int, record: Record) -> Record:
    """The record, its texts without halves of characters; every field that the report reads is of its type."""
    wrong = next(_wrong_fields(record), None)
    if wrong:
        name, wanted = wrong
        raise SetupError(f"{path}: record {number}: {name} is {record.get(name)!r}, which is no {wanted}")
    changed = {
        name: value.encode(errors="replace").decode()
        for name, value in record.items()
        if isinstance(value, str) and not value.isascii() and _halved(value)
    }
    return {**record, **changed} if changed else record


def _halved(text: str) -> bool:
    # JSON can write half of a pair of surrogates; no other encoding of a text can.
    return any("\ud800" <= char <= "\udfff" for char in text)


def _wrong_fields(record: Record) -> Iterator[tuple[str, str]]:
    """The fields whose value is of another type than it should be, and what it should be."""
    if record.get("degradation_method") not in get_args(Method):
        yield "degradation_method", f"method ({', '.join(get_args(Method))})"
    if not _is_number(record["std_dev"]) or not math.isfinite(record["std_dev"]):
        yield "std_dev", "finite number"
    for name in ("repeat_index", *_OPTIONAL_WHOLE):
        value = record.get(name)
        if not (value is None and name != "repeat_index") and not (
            _is_number(value) and isinstance(value, int) and abs(value) <= _LARGEST_WHOLE
        ):
            yield name, "whole number"
    for name in (*_TEXTS, *_OPTIONAL_TEXTS):
        if not isinstance(record.get(name), str) and not (name in _OPTIONAL_TEXTS and record.get(name) is None):
            yield name, "text"
    for name in _OPTIONAL_NUMBERS:
        if record.get(name) is not None and not _is_number(record[name]):
            yield name, "number"


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True
