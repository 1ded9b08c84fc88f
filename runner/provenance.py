"""What ran: versions, machine, model, and the guard against mixing settings in one results file."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runner.errors import SetupError, SpecError
from runner.files import replace_file
from runner.prompt import Prompt
from runner.spec import Spec, dump_toml, to_tables

EVIDENCE_KEY = ("method", "group", "level", "repeat_index")
PACKAGES = ("degrade", "torch", "transformers", "accelerate", "bitsandbytes", "numpy", "tokenizers")


def versions() -> dict[str, str]:
    """Python, the packages that decide about numbers, and the commit of this code where it is known."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    found["commit"] = os.environ.get("GIT_SHA") or _commit()
    return found


def _commit() -> str:
    """The commit of the checkout that this package runs from."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed arguments
    return done.stdout.strip() or "unknown"


def machine_facts(device: Any) -> dict[str, str]:
    """The machine as far as it decides about numbers; `device` is a torch.device."""
    facts = {"device": str(device), "platform": platform.platform(), "processor": _processor()}
    if device.type == "cuda":
        import torch

        properties = torch.cuda.get_device_properties(device)
        facts |= {"gpu": properties.name, "compute_capability": f"{properties.major}.{properties.minor}"}
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        facts |= {"cuda": str(torch.version.cuda), "cudnn": str(cudnn)}
    return facts


def _processor() -> str:
    """The processor's name; Linux keeps it where `platform` does not look."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """A hash of the texts in their order."""
    return hashlib.sha256("\0".join(prompt.text for prompt in prompts).encode()).hexdigest()[:16]


def now() -> str:
    """The time as ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


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
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SetupError(f"{path}: cannot be read: {error}. Mend it or move it away.") from None
    if not all(isinstance(tables.get(key, {}), dict) for key in ("model", "provenance")):
        raise SetupError(f"{path}: is no sidecar of degrade; it was not touched. Move it away.")
    return tables


class Sidecar:
    """The file beside a results file: the resolved spec, every run on the file, and what each damage did."""

    def __init__(self, results: Path, spec: Spec, facts: Mapping[str, Any]) -> None:
        """Add a run to the sidecar, which is made if there is none.

        `changes` then says what differs from the machine and versions of the run before, one sentence each.
        """
        before = read_sidecar(results)
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
        self._write()

    def add_evidence(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Say what the damage of conditions did; a condition's own columns are those of `EVIDENCE_KEY`."""
        new = {_evidence_key(row): dict(row) for row in rows}
        if any(self._evidence.get(key) != row for key, row in new.items()):
            self._evidence |= new
            self._write()

    def _write(self) -> None:
        told = {"runs": self._runs, "evidence": list(self._evidence.values())}
        try:
            replace_file(self._path, dump_toml(self._tables | {"provenance": told}).encode())
        except OSError as error:
            raise SetupError(f"{self._path}: cannot be written: {error.strerror}") from None


def _joined(before: Mapping[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The tables of a spec with the sweeps and groups of earlier runs, whose records are in the same file."""
    names = {sweep["name"] for sweep in now["sweeps"]}
    kept = [sweep for sweep in before.get("sweeps", []) if sweep["name"] not in names]
    return now | {"sweeps": [*kept, *now["sweeps"]], "groups": before.get("groups", {}) | now["groups"]}


def _evidence_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in EVIDENCE_KEY)


def check_same_settings(
    path: Path,
    records: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    spec: Spec,
    picture: str | None = None,
) -> None:
    """Refuse to add records to a file that was made under other settings.

    Settings that an older record does not have are not compared. The seed is compared as that of repeat 0, the
    model's revision and the digest of the picture with the sidecar.

    Raises:
        SpecError: with every difference.
    """
    different: dict[str, tuple[Any, Any]] = {}
    before = read_sidecar(path) if records else {}
    revision = before.get("model", {}).get("revision")
    if before and revision != spec.model.revision:
        different["model.revision"] = (revision, spec.model.revision)
    shown = {run["picture"] for run in before.get("provenance", {}).get("runs", []) if "picture" in run} - {"none"}
    if picture and shown - {picture}:
        different["the picture behind image.path"] = (", ".join(sorted(shown)), picture)
    groups = to_tables(spec)["groups"]
    for name, group in before.get("groups", {}).items():
        if groups.get(name, group) != group:
            different[f"groups.{name}"] = (group, groups[name])
    for record in records:
        for key, wanted in settings.items():
            have = record["seed"] - record["repeat_index"] if key == "seed" and "seed" in record else record.get(key)
            if key in record and have != wanted:
                different[key] = (have, wanted)
    if different:
        lines = [f"{key}: the file has {have!r}, the spec {wanted!r}" for key, (have, wanted) in different.items()]
        hint = "Choose another name_suffix or --results, or start over with --force."
        raise SpecError("\n  ".join([f"{path}: was made under other settings. {hint}", *lines]))
