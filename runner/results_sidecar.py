"""The sidecar: a TOML file beside a results file with the resolved spec, every run on it, and what each damage did."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cattrs

from runner.env_files import replace_file
from runner.errors import SetupError
from runner.spec import Spec, dump_toml, to_tables
from runner.spec_converter import make_converter
from runner.spec_sweep import Sweep
from runner.spec_toml import in_todays_words

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
        tables = in_todays_words(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise SetupError(f"{path}: cannot be read: {error}. Mend it or move it away.") from None
    if not _is_sidecar(tables):
        raise SetupError(f"{path}: is no sidecar of degrade; it was not touched. Move it away.")
    return tables


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
    )


class Sidecar:
    """The file beside a results file; written when the first evidence is added, and whenever there is more."""

    def __init__(self, results: Path, spec: Spec, facts: Tables, before: Tables) -> None:
        """Add a run to what the sidecar said `before`.

        `changes` then says what differs from the machine and versions of the run before, one sentence each.
        """
        earlier = before.get("provenance", {})
        runs = earlier.get("runs", [])
        last = runs[-1] if runs else {}
        self.changes = [
            f"{key}: {last[table][key]} before, {value} now"
            for table in ("versions", "machine", "engine")
            for key, value in facts[table].items()
            if key in last.get(table, {}) and last[table][key] != value
        ]
        self._path = sidecar_path(results)
        self._evidence = {_evidence_key(row): row for row in earlier.get("evidence", [])}
        self._tables = _joined(before, to_tables(spec))
        self._runs = [*runs, dict(facts)]
        self._written = False

    def add_evidence(self, rows: Sequence[Tables]) -> None:
        """Say what the damage of conditions did; a condition's own columns are those of `EVIDENCE_KEY`."""
        new = {_evidence_key(row): dict(row) for row in rows}
        if not self._written or any(self._evidence.get(key) != row for key, row in new.items()):
            self._evidence |= new
            self._write()

    def _write(self) -> None:
        told = {"runs": self._runs, "evidence": list(self._evidence.values())}
        try:
            replace_file(self._path, dump_toml(self._tables | {"provenance": told}).encode())
        except OSError as error:
            raise SetupError(f"{self._path}: cannot be written: {error.strerror}") from None
        self._written = True


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
        same = (wide.method, wide.label) == (narrow.method, narrow.label)
        return same and {*wide.resolved_levels()} >= {*narrow.resolved_levels()}
    except cattrs.BaseValidationError:  # a sweep that somebody changed in the sidecar
        return False


def _evidence_key(row: Tables) -> tuple[Any, ...]:
    return tuple(row[key] for key in EVIDENCE_KEY)
