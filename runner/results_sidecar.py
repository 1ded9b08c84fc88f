"""The sidecar: a TOML file beside a results file with the resolved spec, every run on it, and what each damage did.

Spec and runs stand first, and what a damage did is appended, an entry of TOML each, so that a condition costs the same
however many there are. Behind every part stands its checksum in a comment; a last entry without is what a crash tore.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import cattrs

from runner.env_files import replace_file, sync
from runner.errors import SetupError
from runner.results_checksum import ENTRY, SCHEMA_VERSION, VERSION, sealed_text
from runner.run_shard import Shard
from runner.spec import Spec, dump_toml, to_tables
from runner.spec_converter import make_converter, problems
from runner.spec_sweep import Sweep
from runner.spec_toml import in_todays_words, parse_toml

EVIDENCE_KEY = ("method", "group", "level", "repeat_index")
Tables = Mapping[str, Any]

_TABLES_OF_A_RUN = ("versions", "machine", "engine", "model", "generation_config")
_converter = make_converter()


def sidecar_path(results: Path) -> Path:
    """The file beside a results file that says what made it."""
    return results.with_suffix(".toml")


def read_sidecar(results: Path) -> dict[str, Any]:
    """The sidecar's tables; empty where there is none.

    Raises:
        SetupError: what is there is no sidecar. Going on would overwrite it.
    """
    path = sidecar_path(results)
    try:
        if path.exists() and not path.is_file():
            raise SetupError(f"{path}: is no file, and the sidecar should be there. Move it away.")
        tables = in_todays_words(parse_toml(path.read_bytes()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise SetupError(f"{path}: cannot be read: {error}. Mend it or move it away.") from None
    if not _is_sidecar(tables):
        raise SetupError(f"{path}: is no sidecar of degrade; it was not touched. Move it away.")
    version = tables.get("provenance", {}).get(VERSION, 1)
    if version > SCHEMA_VERSION:
        raise newer(path, version, tables)
    return tables


def newer(path: Path, version: int, sidecar: Tables | None = None) -> SetupError:
    """What is said of a file of a version that is not known here; its sidecar says which release wrote it."""
    try:
        tables = sidecar or parse_toml(sidecar_path(path).read_bytes())
        release = f"degrade {tables['provenance']['runs'][-1]['versions']['degrade']}"
    except (OSError, ValueError, LookupError, TypeError):
        release = "a newer degrade"
    return SetupError(
        f"{path}: was written by {release} in version {version} of its format, and this one knows versions up to "
        f"{SCHEMA_VERSION}. Go on with that release; nothing was touched."
    )


def _is_sidecar(tables: Tables) -> bool:
    """Whether all that is read of a sidecar has the form that a sidecar gives it."""
    provenance = tables.get("provenance", {})
    if not all(isinstance(tables.get(key, {}), dict) for key in ("model", "groups", "run", "perplexity", "provenance")):
        return False
    runs, evidence, sweeps = (
        source.get(key, []) for source, key in ((provenance, "runs"), (provenance, "evidence"), (tables, "sweeps"))
    )
    return (
        all(isinstance(rows, list) and all(isinstance(row, dict) for row in rows) for rows in (runs, evidence, sweeps))
        and all(isinstance(value, dict) for run in runs for key, value in run.items() if key in _TABLES_OF_A_RUN)
        and all(isinstance(run.get("picture", ""), str) for run in runs)
        and all(isinstance(run["model"].get("commit", ""), str) for run in runs if "model" in run)
        and all(isinstance(row.get(key), str | int | float) for row in evidence for key in EVIDENCE_KEY)
        and all(isinstance(sweep.get("name"), str) for sweep in sweeps)
        and isinstance(tables.get("run", {}).get("n_rep", 1), int)
        and isinstance(provenance.get(VERSION, 1), int)
        and isinstance(provenance.get("shard", ""), str)
    )


def shard_of(sidecar: Tables) -> Shard | None:
    """The shard whose records a results file holds, by its sidecar; None where that is the whole study.

    Raises:
        SpecError: the sidecar names no shard.
    """
    text = sidecar.get("provenance", {}).get("shard")
    return None if text is None else Shard.parse(text, "provenance.shard")


class Sidecar:
    """The file beside a results file; written when the first evidence is added, and then appended to."""

    def __init__(self, results: Path, spec: Spec, facts: Tables, before: Tables, shard: Shard | None = None) -> None:
        """Add a run to what the sidecar said `before`; `shard` is that of the file.

        `changes` then says what differs from the machine and versions of the run before, one sentence each.
        """
        earlier = before.get("provenance", {})
        runs = earlier.get("runs", [])
        last = runs[-1] if runs else {}
        self.changes = [
            f"{key}: {last[table][key]} before, {value} now"
            for table in ("versions", "machine", "engine")
            for key, value in facts[table].items()
            if key in last.get(table, {}) and last[table][key] != value and key != "note"  # why no other engine
        ]
        self._path = sidecar_path(results)
        self._evidence = {evidence_key(row): row for row in earlier.get("evidence", [])}
        self._tables = _joined(before, to_tables(spec))
        self._runs = [*runs, dict(facts)]
        self._shard = shard
        self._written: os.stat_result | None = None  # the file as it was left; None where the next is the first write

    def add_evidence(self, rows: Sequence[Tables]) -> None:
        """Say what the damage of conditions did; a condition's own columns are those of `EVIDENCE_KEY`."""
        rows_by_key = {evidence_key(row): dict(row) for row in rows}
        new = {key: row for key, row in rows_by_key.items() if self._evidence.get(key) != row}
        whole = self._written is None or any(key in self._evidence for key in new)
        self._evidence |= new
        if not whole and not new:
            return
        try:
            if whole or not self._append(new.values()):
                replace_file(self._path, self._content())
            self._written = self._path.stat()
        except OSError as error:
            self._written = None
            raise SetupError(f"{self._path}: cannot be written: {error.strerror}") from None

    def _content(self) -> Iterator[bytes]:
        return content_of_sidecar(self._tables, self._runs, self._evidence.values(), self._shard)

    def _append(self, rows: Iterable[Tables]) -> bool:
        """Add entries at the end of the file, and wait for the disk; not where it is no longer as it was left."""
        with self._path.open("ab") as file:
            now, left = os.fstat(file.fileno()), self._written
            if left is None or (now.st_dev, now.st_ino, now.st_size) != (left.st_dev, left.st_ino, left.st_size):
                return False
            file.write(b"".join(map(_entry, rows)))
            file.flush()
            sync(file.fileno())
        return True


def content_of_sidecar(
    tables: Tables, runs: Sequence[Tables], evidence: Iterable[Tables], shard: Shard | None
) -> Iterator[bytes]:
    """A whole sidecar, in pieces; `tables` are those of the spec."""
    told = {VERSION: SCHEMA_VERSION, **({"shard": str(shard)} if shard else {}), "runs": runs}
    yield sealed_text(dump_toml({**tables, "provenance": told})).encode()
    yield from map(_entry, evidence)


def _entry(row: Tables) -> bytes:
    """A row of evidence as TOML, which may stand at the end of a sidecar; tables within it are tables of that row."""
    text = re.sub(r"^(\[+)", r"\1provenance.evidence.", dump_toml(row), flags=re.MULTILINE)
    return sealed_text(ENTRY.decode() + text).encode()


def joined_spec(specs: Sequence[Spec]) -> Spec:
    """The spec that asks for the records of all of these; what is no sweep, group or number of repeats is the last's.

    Raises:
        SetupError: together they ask for more than one spec may.
    """
    tables = reduce(_joined, map(to_tables, specs))
    try:
        return _converter.structure(tables, Spec)
    except cattrs.BaseValidationError as error:
        raise SetupError("\n  ".join(["the specs of these files cannot be joined:", *problems(error)])) from None


def _joined(before: Tables, now: dict[str, Any]) -> dict[str, Any]:
    """The tables of a spec with what earlier runs did besides, for their records are in the same file."""
    joined = now | {
        "sweeps": _joined_sweeps(before.get("sweeps", []), now["sweeps"]),
        "groups": before.get("groups", {}) | now["groups"],
        "run": now["run"] | {"n_rep": max(now["run"]["n_rep"], before.get("run", {}).get("n_rep", 1))},
    }
    measured = before.get("perplexity", {})
    if measured.get("compute") and not now["perplexity"]["compute"]:
        joined["perplexity"] = measured
    return joined


def _joined_sweeps(before: Sequence[Tables], now: Sequence[Tables]) -> list[Tables]:
    """Every sweep that has records: one that was changed under its name stays, under another name."""
    new = {sweep["name"]: sweep for sweep in now}
    names = {*new, *(sweep["name"] for sweep in before)}
    joined: list[Tables] = []
    for sweep in before:
        name = sweep["name"]
        if name not in new or _covers(sweep, new[name]):
            joined.append(sweep)
            new.pop(name, None)
        elif not _covers(new[name], sweep):
            earlier = next(f"{name}_{n}" for n in range(1, len(names) + 2) if f"{name}_{n}" not in names)
            names.add(earlier)
            joined.append({**sweep, "name": earlier})
    return [*joined, *new.values()]


def _covers(one: Tables, other: Tables) -> bool:
    """Whether a sweep has every record of another: the same damage, at its levels and perhaps more."""
    try:
        wide, narrow = (_converter.structure(table, Sweep) for table in (one, other))
        curves, needed = ({(curve.method, curve.label) for curve in sweep.curves()} for sweep in (wide, narrow))
        return curves >= needed and {*wide.resolved_levels()} >= {*narrow.resolved_levels()}
    except (cattrs.BaseValidationError, ValueError):  # a sweep that somebody changed in the sidecar
        return False


def evidence_key(row: Tables) -> tuple[Any, ...]:
    """What a row of evidence is known by."""
    return tuple(row[key] for key in EVIDENCE_KEY)
