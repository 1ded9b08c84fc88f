"""What ran: versions, machine, prompts, the time."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from runner.task_prompts import Prompt

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


@cache
def _commit() -> str:
    """The commit of the checkout that this package runs from, as it was when it was first asked for."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return "unknown"
    commit = _git(root, "describe", "--always", "--abbrev=40")
    # `describe --dirty` would refresh the checkout's index, and hold its lock for that.
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if commit and changed else commit or "unknown"


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603 - ours


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
    texts = "\0".join(prompt.text for prompt in prompts)
    return hashlib.sha256(texts.encode(errors="surrogatepass")).hexdigest()[:16]


def now() -> str:
    """The time as ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
