"""Whether a checkpoint is whole: its files before they are read, its quantisation, what transformers found missing.

A checkpoint that is not whole would be studied with random weights, or ask for memory that nothing needs.
"""

import json
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from runner.env_files import listed
from runner.errors import SetupError

logger = logging.getLogger(__name__)

LFS_POINTER = b"version https://git-lfs"
TABLES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)
WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")
FILES = (*WEIGHTS, ".json", ".model", ".jinja", ".txt")
MOST_OF_ANYTHING = 1_000_000  # layers, heads, experts, labels of a configuration
NAMES_SHOWN = 3
SCALES = (".weight_scale", ".weight_scale_inv", "_scales", ".scales", ".qweight", ".qzeros", ".absmax", ".SCB")


def check_folder(folder: Path) -> None:
    """Look at the files of a local checkpoint before a library reads them.

    Raises:
        SetupError: a file is a git-lfs pointer or empty, a table is no JSON object, or it is an adapter alone.
    """
    for path in listed(folder):
        if path.suffix in FILES and path.is_file():
            check_file(path)
    if (folder / "adapter_config.json").exists():
        raise SetupError(
            f"model.id: {folder} holds an adapter: merge it into its model (merge_and_unload) and save that"
        )
    for name in TABLES:
        if (folder / name).is_file():
            _check_numbers(folder / name, _read_table(folder / name))


def check_file(path: Path, *, is_gguf: bool = False) -> None:
    """Refuse a file that holds nothing, or only says where its content is.

    Raises:
        SetupError: it cannot be read, is empty or a git-lfs pointer, or is to be a GGUF and does not begin as one.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
    except OSError as error:
        raise SetupError(f"model.id: {path}: {error.strerror}") from None
    if start == LFS_POINTER:
        raise SetupError(f"model.id: {path} is a git-lfs pointer, not the file itself. Run: git lfs pull")
    if not start and path.suffix in (*WEIGHTS, ".json"):
        raise SetupError(f"model.id: {path} is empty. Download or save it again.")
    if (is_gguf or path.suffix == ".gguf") and not start.startswith(b"GGUF"):
        raise SetupError(f"model.id: {path} is no GGUF file: it begins with {start[:4]!r}")


def _read_table(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SetupError(f"model.id: {path}: cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise SetupError(f"model.id: {path}: holds {type(found).__name__}, not an object: it is damaged")
    return found


def _check_numbers(path: Path, table: Mapping[str, Any]) -> None:
    """Counts that no model has would fill memory with lists before anything could notice."""
    for key, value in table.items():
        if isinstance(value, dict):
            _check_numbers(path, value)
        counts = "num_" in key or key.startswith("n_") or "layers" in key
        if counts and isinstance(value, int | float) and not -1 <= value <= MOST_OF_ANYTHING:
            raise SetupError(f"model.id: {path}: {key}: {value!r} is no size of a model")


def check_quantisation(config: Any, *, load_4bit: bool) -> None:
    """Refuse weights that are quantised in a way that damage cannot reach, by the name of the method.

    Raises:
        SetupError: the method is not that of bitsandbytes in 4 bits, or the spec does not say `load_4bit`.
    """
    table = quantisation_of(config)
    if table is None:
        return
    method = str(table.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in table else "unknown"))
    if method == "bitsandbytes" and table.get("load_in_4bit"):
        if not load_4bit:
            raise SetupError(
                "model.load_4bit: the weights of this checkpoint are in 4 bits (bitsandbytes). "
                "Set model.load_4bit = true, or use the checkpoint that it was made from."
            )
        return
    name = "bitsandbytes, int8" if method == "bitsandbytes" else method
    raise SetupError(
        f"model.id: the weights of this checkpoint are quantised ({name}), and only plain weights and bitsandbytes in "
        "4 bits can be damaged. Use the checkpoint that it was made from, or save it dequantised."
    )


def quantisation_of(config: Any) -> dict[str, Any] | None:
    """The `quantization_config` of a model or of its text decoder, as a table; None where there is none.

    Raises:
        SetupError: it is no table.
    """
    for part in (config, config.get_text_config()):
        found = getattr(part, "quantization_config", getattr(part, "compression_config", None))
        if found is None:
            continue
        table = found if isinstance(found, dict) else getattr(found, "to_dict", dict)()
        if not table:
            raise SetupError(f"model.id: quantization_config in config.json is no table: {found!r}")
        return dict(table)
    return None


def check_size(weights: int, folder: Path) -> None:
    """Refuse a configuration of far more weights than the files can hold, before memory is asked for them.

    Raises:
        SetupError: there are files of weights, and they have less than half a byte for each.
    """
    size = sum(path.stat().st_size for path in listed(folder) if path.suffix in WEIGHTS and path.is_file())
    if size and weights > 2 * size:
        raise SetupError(
            f"model.id: config.json in {folder} describes {weights:,} weights, and its files of weights have "
            f"{size:,} bytes: they do not belong together, or a file is cut off"
        )


def check_report(model: Any, report: Mapping[str, Any], path: str) -> None:
    """Refuse a model of which something was not in the files; warn of what was in the files and is not used.

    `report` is transformers' loading info.

    Raises:
        SetupError: with the first names and the count of what is missing or has another shape.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    missing = sorted(set(report["missing_keys"]) & parameters)
    unexpected = sorted(report["unexpected_keys"])
    if mismatched := sorted(report["mismatched_keys"]):
        name, have, want = mismatched[0]
        raise SetupError(
            f"model.id: {path}: {len(mismatched)} tensors have another shape than config.json says, first {name}: "
            f"{list(have)} in the file, {list(want)} in the model. They do not belong together."
        )
    if missing:
        hint = f"; the files have {_some(unexpected)} instead" if unexpected else ""
        raise SetupError(
            f"model.id: {path}: {len(missing)} tensors of the model are not in its files and would be random: "
            f"{_some(missing)}{hint}"
        )
    if scales := [key for key in unexpected if key.endswith(SCALES)]:
        raise SetupError(
            f"model.id: {path}: the weights are quantised, and config.json does not say how: {_some(scales)}"
        )
    kinds = {_kind(name) for name in parameters}
    if layers := [key for key in unexpected if _kind(key) in kinds]:
        raise SetupError(
            f"model.id: {path}: its files hold {len(layers)} more tensors of the kinds that the model has: "
            f"{_some(layers)}. config.json describes a smaller model; they do not belong together."
        )
    if unexpected:
        logger.warning("%s: %d tensors of its files are not used: %s", path, len(unexpected), _some(unexpected))


def _kind(name: str) -> str:
    """The name of a tensor without the number of its layer or expert."""
    return re.sub(r"\.[0-9]+\.", ".N.", name)


def _some(names: Iterable[str]) -> str:
    found = list(names)
    more = f" and {len(found) - NAMES_SHOWN} more" if len(found) > NAMES_SHOWN else ""
    return ", ".join(found[:NAMES_SHOWN]) + more


def warn_of_nonfinite(model: Any) -> None:
    """Say which weights are NaN or infinite: such a checkpoint can be studied, but hardly anybody means to."""
    found = [name for name, weight in model.named_parameters() if not weight.is_meta and not _is_finite(weight)]
    if found:
        logger.warning("%d tensors of this checkpoint hold values that are not finite: %s", len(found), _some(found))


def _is_finite(weight: torch.Tensor) -> bool:
    """Whether every value is; a sum is several times quicker to ask, and infinite wherever a value is."""
    if not weight.is_floating_point():
        return True
    return bool(weight.sum(dtype=torch.float32).isfinite()) or bool(weight.isfinite().all())
