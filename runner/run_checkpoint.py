"""A damaged model as a folder that other programs load as any checkpoint, whole or not at all, with what it is."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from runner.env_files import hidden_folder, make_folder, remove_folder, sync, sync_folder
from runner.errors import SetupError
from runner.model_files import Source, in_words
from runner.model_load import load_model, load_processor, load_tokenizer, locate
from runner.model_placement import unpack_all
from runner.run_identity import model_digest
from runner.spec import Spec

FACTS = "degrade.json"


def check_free(out: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        SetupError: it does, or it is no folder.
    """
    try:
        if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
            what = "is not empty" if out.is_dir() else "is no folder"
            raise SetupError(f"{out}: {what}, and nothing is overwritten: give a folder that does not exist yet")
    except OSError as error:
        raise SetupError(f"{out}: cannot be read: {error.strerror}") from None


def write_checkpoint(model: Any, spec: Spec, facts: Mapping[str, Any], out: Path) -> None:
    """Write weights, configuration, tokenizer and `facts`; the model is used up, so that there is room to read it back.

    Raises:
        SetupError: the folder cannot be written, or what is read back from it is not what was written.
    """
    temporary: Path | None = None
    try:
        out = out.resolve()
        temporary = hidden_folder(out)
        make_folder(out.parent)
        temporary.mkdir(0o700)
        with in_words(spec.model.id):
            _write_model(model, spec, temporary)
        (temporary / FACTS).write_text(json.dumps(facts, indent=1, default=str) + "\n", encoding="utf-8")
        (temporary / "README.md").write_text(describe(facts), encoding="utf-8")
        for path in temporary.iterdir():
            path.chmod(0o644)  # safetensors lets nobody else look
            _sync_path(path)
        temporary.chmod(0o755)
        _sync_path(temporary)
        temporary.rename(out)
        sync_folder(out.parent)
    except OSError as error:
        raise _not_written(out, error) from None
    finally:
        if temporary is not None:
            remove_folder(temporary)


def _not_written(out: Path, error: Exception) -> SetupError:
    return SetupError(f"{out}: cannot be written: {getattr(error, 'strerror', None) or error}")


def _write_model(model: Any, spec: Spec, folder: Path) -> None:
    source = locate(spec.model)
    if spec.model.load_4bit:
        unpack_all(model)
    wanted = model_digest(model)
    try:
        model.save_pretrained(folder)
        load_tokenizer(source).save_pretrained(folder)
        if hasattr(model.config, "vision_config"):
            with suppress(SetupError):  # a model of text and vision may come without a processor
                load_processor(source).save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        raise _not_written(folder, error) from None
    model.to("meta")
    read = model_digest(load_model(Source(str(folder), {}), spec.model.dtype, torch.device("cpu")))
    if read != wanted:
        raise SetupError(
            f"model.id: {type(model).__name__} does not come back from its own files: the digest of all weights is "
            f"{wanted} in memory and {read} on the disk. Nothing was kept."
        )


def _sync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def describe(facts: Mapping[str, Any]) -> str:
    """The README of a checkpoint."""
    condition, model = facts["condition"], facts["spec"]["model"]
    lines = [
        "# A damaged model",
        "",
        f"This is `{model['id']}`{', revision ' + model['revision'] if 'revision' in model else ''}, damaged by",
        "`degrade export` on purpose. What it says is not what the original says; the licence is that of the original.",
        "",
        f"* method: {condition['method']}, level {condition['level']}",
        f"* group: {condition['group']}",
        f"* sweep: {condition['sweep'] or 'none of the spec'}, repeat {condition['repeat']}, seed {condition['seed']}",
        f"* numbers: {facts['dtype']}{', unpacked from 4 bits' if facts['unpacked_from_4bit'] else ''}",
        f"* weights_digest: {facts['weights_digest']}, as in the records of {facts['results']}",
        *([f"* perplexity of the spec's text: {facts['perplexity']}"] if facts["perplexity"] is not None else []),
        "",
        f"`{FACTS}` has the whole spec, what the damage did, and the versions that made it.",
    ]
    return "\n".join(lines) + "\n"
