"""The results file: a JSON array of flat objects, one per line, valid after every append.

Open, lock, read, repair, append. An append is one positioned write over the closing bracket and one fsync: its cost
does not depend on the length of the file. A crash inside that write tears the end of the file and nothing else, and the
next open keeps every whole record. A file that is not ours is never changed.
"""

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from attrs import frozen

from runner.errors import SetupError
from runner.files import dated, replace_file, sync_folder
from runner.plan import Key

Record = Mapping[str, Any]

KEY_FIELDS = ("param_group_name", "std_dev", "repeat_index", "degradation_method", "prompt_text")
_OPENING, _CLOSING, _EMPTY = b"[\n", b"\n]\n", b"[\n]\n"
# What may follow a record on its line: a bracket if a write stopped after its first byte, zeros after a power cut.
_BEHIND = b",]\0"
_FIRST_BYTES = b'{"timestamp"'  # every record of ours starts like this


def results_path(folder: Path, method: str, model_id: str, suffix: str) -> Path:
    """`outputs_{method}_{last part of the model id}_{suffix}.json`."""
    model = re.sub(r"[^\w.-]", "_", short_name(model_id))
    return folder / f"outputs_{method}_{model}_{suffix}.json"


def short_name(model_id: str) -> str:
    """The last part of a model id."""
    return model_id.rstrip("/").split("/")[-1].removesuffix(".gguf")


def key_of(record: Record) -> Key:
    """What a record is known by when a run is resumed."""
    group, level, repeat, method, text = (record[field] for field in KEY_FIELDS)
    return (group, level, repeat, method, text)


def read_records(path: Path) -> list[dict[str, Any]]:
    """The whole records of a results file, which is not changed; none where there is no file.

    Raises:
        SetupError: the file cannot be read, or is no results file.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SetupError(f"{path}: cannot be read: {error.strerror}") from None
    return _parse(data, path).records


def open_results(path: Path, *, force: bool = False) -> tuple["ResultsFile", list[dict[str, Any]]]:
    """The file, created if missing, locked and repaired, and the records in it.

    With `force`, an existing file is kept under a dated name and an empty one takes its place.

    Raises:
        SetupError: the file cannot be written, is in use, or is no results file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _open_locked(path)
        try:
            data = path.read_bytes()
            if force and data not in (b"", _EMPTY):
                path.rename(dated(path))
                descriptor, data = _reopen(path, descriptor), b""
            parsed = _parse(data, path)
            if not parsed.ours:
                parsed, data = _convert(path, parsed.records, data)
                descriptor = _reopen(path, descriptor)
            _repair(descriptor, data, parsed.end)
        except BaseException:
            os.close(descriptor)
            raise
        sync_folder(path.parent)
    except OSError as error:
        hint = "Choose another folder with --results."
        raise SetupError(f"{path}: cannot be opened for writing: {error.strerror}. {hint}") from None
    return ResultsFile(path, descriptor, parsed.end), parsed.records


class ResultsFile:
    """An open and locked results file, made by `open_results`."""

    def __init__(self, path: Path, descriptor: int, end: int) -> None:
        """Take over the descriptor; `end` is the offset behind the last record."""
        self.path = path
        self._descriptor = descriptor
        self._end = end

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the file and its lock; a file without a record vanishes."""
        if self._end == len(_OPENING):
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def append(self, records: Sequence[Record]) -> None:
        """Add records; when this returns they are on the disk.

        Raises:
            SetupError: the disk is full or gone; the file then holds what it held before.
        """
        if not records:
            return
        lines = [json.dumps(record, ensure_ascii=False, allow_nan=False).encode() for record in records]
        separator = b"" if self._end == len(_OPENING) else b",\n"
        addition = separator + b",\n".join(lines)
        try:
            _write_at(self._descriptor, addition + _CLOSING, self._end)
        except OSError as error:
            with contextlib.suppress(OSError):  # should this fail too, the next open repairs the file
                os.ftruncate(self._descriptor, self._end)
                _write_at(self._descriptor, _tail(self._end), self._end)
            raise SetupError(f"{self.path}: cannot append: {error.strerror}. What it held is safe.") from None
        self._end += len(addition)


@frozen
class _Parsed:
    """What stands in the bytes of a file: whole records, where they end, and whether it is in our layout."""

    records: list[dict[str, Any]]
    end: int
    ours: bool = True


def _parse(data: bytes, path: Path) -> _Parsed:
    if _EMPTY.startswith(data):
        return _Parsed([], len(_OPENING))
    records, end = _whole_lines(data) if data.startswith(_OPENING) else ([], len(_OPENING))
    tail = data[end:]
    if records or tail == _tail(end) or (data.startswith(_OPENING) and _torn_first(tail)):
        if any(_record_in(line) for line in tail.split(b"\n")):
            number = data[:end].count(b"\n") + 2
            raise SetupError(f"{path}: line {number} is damaged, and by no interrupted write, for records follow it")
        return _Parsed(records, end)
    older = _older_layout(data)
    if older is None:
        raise SetupError(f"{path}: this is no results file of degrade; it was not touched. Move it away.")
    return _Parsed(older, 0, ours=False)


def _whole_lines(data: bytes) -> tuple[list[dict[str, Any]], int]:
    """The records from the first line on, up to the first line that is none, and the offset behind the last."""
    records: list[dict[str, Any]] = []
    start, end = len(_OPENING), len(_OPENING)
    while start < len(data):
        stop = data.find(b"\n", start)
        line = data[start : stop if stop >= 0 else len(data)]
        record = _record_in(line)
        if record is None:
            break
        records.append(record)
        end = start + len(line.rstrip(_BEHIND))
        start += len(line) + 1
    return records, end


def _record_in(line: bytes) -> dict[str, Any] | None:
    if not line.startswith(b"{"):
        return None
    try:
        record = json.loads(line.rstrip(_BEHIND))
    except ValueError:
        return None
    return record if all(field in record for field in KEY_FIELDS) else None


def _torn_first(tail: bytes) -> bool:
    """Whether this is the beginning of the very first record, and no whole line of somebody else's file."""
    if b"\n" in tail and tail != b"{\n":  # that one is a write that stopped after its first byte, over "]"
        return False
    return tail.startswith(_FIRST_BYTES) or _FIRST_BYTES.startswith(tail.rstrip(b"\n"))


def _older_layout(data: bytes) -> list[dict[str, Any]] | None:
    """The records of an indented array, as the reference code wrote it."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    records = isinstance(found, list) and all(isinstance(r, dict) and all(f in r for f in KEY_FIELDS) for r in found)
    return found if records else None


def _convert(path: Path, records: list[dict[str, Any]], data: bytes) -> tuple[_Parsed, bytes]:
    """Bring an older layout into ours; the file as it was is kept under a dated name."""
    content = _OPENING + b",\n".join(json.dumps(record, ensure_ascii=False).encode() for record in records)
    replace_file(dated(path), data)
    replace_file(path, content + _CLOSING)
    return _Parsed(records, len(content)), content + _CLOSING


def _repair(descriptor: int, data: bytes, end: int) -> None:
    """Cut off what an interrupted write left behind the last whole record."""
    if data[: len(_OPENING)] != _OPENING:
        _write_at(descriptor, _EMPTY, 0)
    elif data[end:] != _tail(end):
        _write_at(descriptor, _tail(end), end)


def _tail(end: int) -> bytes:
    """What stands behind the last record, which ends at `end`."""
    return _CLOSING[1:] if end == len(_OPENING) else _CLOSING


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    """Write all bytes, end the file behind them, and wait for the disk."""
    written = 0
    while written < len(data):
        written += os.pwrite(descriptor, data[written:], offset + written)
    os.ftruncate(descriptor, offset + len(data))
    os.fsync(descriptor)


def _reopen(path: Path, descriptor: int) -> int:
    """Go over to the file that now has the name; the old descriptor is let go of once the new one is locked."""
    new = _open_locked(path)
    os.close(descriptor)
    return new


def _open_locked(path: Path) -> int:
    """A descriptor of the file, which nobody else has open for writing."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # If the file was replaced between opening and locking, the lock is on a file without a name.
        replaced = os.fstat(descriptor).st_ino != path.stat().st_ino
    except BlockingIOError:
        replaced = True
    except OSError:
        os.close(descriptor)
        raise
    if replaced:
        os.close(descriptor)
        raise SetupError(f"{path}: is in use by another run. Wait for it, or choose another --results.")
    return descriptor
