"""The tables of a spec before they are checked: read from TOML, merged, overridden."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

from runner.errors import SpecError
from runner.results_checksum import ENTRY, SEAL_LINE, without_torn_end

SEAL = b"# crc32 89abcdef\n"
_KEY = re.compile(rb"^(\w+) = ", re.MULTILINE)


def read_merged(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The tables of a TOML file, merged over those of the file that its `extends` names; `seen` led here.

    Raises:
        SpecError: a file cannot be read, or extends itself.
    """
    place, tables = _read(path)
    if place in seen:
        raise SpecError(f"{path}: extends itself: {' -> '.join(str(p) for p in (*seen, place))}")
    parent = tables.pop("extends", None)
    if parent is None:
        return tables
    if not isinstance(parent, str):
        raise SpecError(f"{path}:\n  extends: {parent!r} is not a string")
    return _merge(read_merged(path.parent / parent, (*seen, place)), tables)


def _read(path: Path) -> tuple[Path, dict[str, Any]]:
    """The whole path of a file, and its tables."""
    try:
        place = path.resolve()
        if place.exists() and not place.is_file():  # a device or a pipe could be read for ever
            raise SpecError(f"{path}: cannot be read as TOML: it is no regular file")
        return place, in_todays_words(parse_toml(place.read_bytes()))
    except RecursionError:
        raise SpecError(f"{path}: cannot be read as TOML: it is nested too deeply") from None
    except (OSError, ValueError, RuntimeError) as error:  # the last is a circle of links
        raise SpecError(f"{path}: cannot be read as TOML: {error}") from None


def parse_toml(data: bytes) -> dict[str, Any]:
    """The tables in the bytes of a TOML file, what a crash tore off the end of a sidecar aside.

    Entries of a sidecar as we write them are read as JSON, which they are line by line: `tomllib` takes several times
    as long.

    Raises:
        ValueError: this is no TOML.
    """
    data = without_torn_end(data)
    head, *entries = data.split(ENTRY)
    try:
        tables = tomllib.loads(head.decode())
        rows = [_entry(entry) for entry in entries]
        if rows and "evidence" not in tables["provenance"]:
            tables["provenance"]["evidence"] = rows
            return tables
    except (ValueError, LookupError, TypeError):  # written by somebody else: `tomllib` knows what is wrong, if anything
        pass
    return tomllib.loads(data.decode())


def _no_number(text: str) -> float:
    raise ValueError(text)


_json = json.JSONDecoder(strict=False, parse_constant=_no_number)


def _entry(data: bytes) -> dict[str, Any]:
    lines, seal = data[: -len(SEAL)], data[-len(SEAL) :]
    if not SEAL_LINE.fullmatch(seal):
        raise ValueError("no entry as we write it")
    fields = _KEY.sub(rb'"\1": ', lines.rstrip(b"\n")).replace(b"\n", b",")
    row: dict[str, Any] = _json.decode(f"{{{fields.decode()}}}")
    if None in row.values() or len(row) != lines.count(b"\n"):
        raise ValueError("no entry as we write it")
    return row


def in_todays_words(tables: dict[str, Any]) -> dict[str, Any]:
    """A sidecar of an earlier release with the keys that have other names by now; anything else as it is."""
    groups = tables.get("groups")
    if "provenance" in tables and isinstance(groups, dict):
        for group in groups.values():
            if isinstance(group, dict) and "component" in group:
                group.setdefault("tower", group.pop("component"))
    return tables


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Tables merge, anything else of `over` wins."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def apply(override: str, tables: dict[str, Any]) -> None:
    """Set one value, `a.b.0.c=1.5`; a number in the path counts the entries of a list.

    Raises:
        SpecError: there is no such place, or no such value.
    """
    path, separator, text = override.partition("=")
    if not separator or not path.strip():
        raise SpecError(f"--set {override}: write KEY=VALUE, for example run.n_rep=2")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        hint = f"""--set '{path}="{text}"'"""
        raise SpecError(f"--set {override}: {text!r} is not a TOML value; a string needs quotes: {hint}") from None
    *parents, last = path.strip().split(".")
    target: Any = tables
    try:
        for key in parents:
            target = target[int(key)] if isinstance(target, list) else target.setdefault(key, {})
        target[int(last) if isinstance(target, list) else last] = value
    except (IndexError, ValueError, TypeError, AttributeError):
        raise SpecError(f"--set {override}: there is no {path} in this spec") from None
