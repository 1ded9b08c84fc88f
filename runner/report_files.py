"""Results files as a report reads them: whatever stands in one, every field that is used is of its type."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from runner.errors import SetupError
from runner.results_open import each_record
from runner.results_record import Record
from runner.spec_methods import Method

_OPTIONAL_TEXTS = ("finish_reason", "timestamp", "config_name", "model_name", "experiment_id")
_OF_ONE = ("output", "timestamp")  # texts that no two records share
_OPTIONAL_NUMBERS = ("tokens", "perplexity")


def read_files(paths: Iterable[Path]) -> dict[Path, Sequence[Record]]:
    """The records of some results files, each file once.

    Raises:
        SetupError: there is no such file, it cannot be read or holds no records, or a record lacks what a report needs.
    """
    files: dict[Path, Sequence[Record]] = {}
    for path in paths:
        shared: dict[Any, Any] = {}
        records = [_slim(_checked(path, n, record), shared) for n, record in enumerate(each_record(path), start=1)]
        if not records:
            raise SetupError(f"{path}: {'holds no records' if path.exists() else 'there is no such file'}")
        files[path] = records
    return files


def _slim(record: Record, shared: dict[Any, Any]) -> Record:
    """The record, with names and texts that are equal in many records kept once."""
    share = shared.setdefault
    return {
        share(name, name): share(value, value) if type(value) is str and name not in _OF_ONE else value
        for name, value in record.items()
    }


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
    """The fields whose value is of another type than it should be, and what it should be; `layout` checked the key."""
    if record["degradation_method"] not in get_args(Method):
        yield "degradation_method", f"method ({', '.join(get_args(Method))})"
    if not isinstance(record["repeat_index"], int):
        yield "repeat_index", "whole number"
    if not isinstance(record.get("output"), str):
        yield "output", "text"
    for name in _OPTIONAL_TEXTS:
        if record.get(name) is not None and not isinstance(record[name], str):
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
