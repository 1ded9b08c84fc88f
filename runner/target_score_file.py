"""A file of scores: tensors of safetensors by kind and layer, and under the key `degrade` what made them, as JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from attrs import frozen
from torch import Tensor

from runner.env_files import make_folder, replace_file
from runner.errors import SetupError

KEY = "degrade"
FIXED = ("asked", "model", "texts", "against")  # what is known before a model is loaded


@frozen
class ScoreFile:
    """Scores by name (`neuron.3`, or the canonical name of a tensor), and the facts of what made them."""

    scores: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    def content(self) -> bytes:
        """The bytes of the file: a function of scores and facts alone."""
        whole = {name: tensor.float().contiguous().cpu() for name, tensor in self.scores.items()}
        return safetensors.torch.save(whole, metadata={KEY: json.dumps(self.facts, ensure_ascii=False)})


def facts_in(path: Path) -> dict[str, Any]:
    """What made a file of scores, as it says; empty where another program made it.

    Raises:
        SetupError: it cannot be read as safetensors.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            found = json.loads((file.metadata() or {}).get(KEY, "{}"))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise SetupError(f"{path}: cannot be read as safetensors: {error}") from None
    return found if isinstance(found, dict) else {}


def check_place(path: Path, facts: Mapping[str, Any], *, force: bool) -> None:
    """Refuse to replace a file that something else made, before hours are spent.

    Raises:
        SetupError: `path` is a folder, or another file; `facts` are those that are known so far.
    """
    if path.is_dir():
        raise SetupError(f"{path}: is a folder: name a file")
    if force or not path.exists():
        return
    before = facts_in(path)
    if wrong := [key for key in FIXED if key in facts and before.get(key) != facts[key]]:
        raise SetupError(
            f"{path}: is there already, and made of another {' and '.join(wrong)}; --force replaces it, "
            "--out names another file"
        )


def write_scores(path: Path, file: ScoreFile, *, force: bool) -> bool:
    """Write a file as a whole or not at all; whether it was written, and not there already with the same scores.

    Raises:
        SetupError: another one is there, or the disk refuses.
    """
    try:
        if path.exists() and not force:
            before = safetensors.torch.load_file(path)
            if before.keys() == file.scores.keys() and all(before[n].equal(file.scores[n]) for n in before):
                return False
            raise SetupError(f"{path}: is there already with other scores; --force replaces it")
        make_folder(path.parent)
        replace_file(path, [file.content()])
    except OSError as error:
        raise SetupError(f"{path}: cannot be written: {error.strerror}") from None
    return True
