"""Transformers' loaders, called on whole files only: whatever they raise comes out as a sentence about the checkpoint.

A GGUF file is unpacked once; everything is then read from the copy.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from attrs import frozen

from runner.errors import DegradeError, SetupError, Terminated
from runner.model_checkpoint import check_file, check_folder, check_report, check_size
from runner.model_gguf import answer_ends, name_end
from runner.model_hub import explain, use_cache_alone_if_hub_is_away
from runner.model_placement import forget_packing
from runner.model_unpacked import copy_of

logger = logging.getLogger(__name__)

# Else, where they are installed, losses of object detection import SciPy, and older releases scikit-learn for assisted
# generation, none of which is used here: half a second of every start for the one, one and a half for the other.
transformers.utils.is_scipy_available = transformers.utils.is_sklearn_available = lambda: False


@frozen
class Source:
    """Where the weights are: what transformers' loaders take."""

    path: str
    arguments: dict[str, Any]

    @property
    def on_hub(self) -> bool:
        """Whether a server may be asked for them."""
        return not self.gguf and not Path(self.path).is_dir()

    @property
    def gguf(self) -> Path | None:
        """The file, where it is a GGUF."""
        name = self.arguments.get("gguf_file")
        return Path(self.path) / name if name else None


@contextlib.contextmanager
def in_words(path: str, *, revision: str | None = None) -> Iterator[None]:
    """Turn whatever a library raises into a `SetupError` about `path`; `revision` is that of a model on the Hub."""
    try:
        yield
    except (DegradeError, KeyboardInterrupt, Terminated):
        raise
    except BaseException as error:  # a panic of tokenizers or safetensors, which are Rust, is no Exception
        raise SetupError(explain(error, path, revision=revision)) from error


def load(loader: Any, source: Source, **options: Any) -> Any:
    """What a loader gives for a source; code that a checkpoint brings is never executed.

    Raises:
        SetupError: the source cannot be loaded.
    """
    if source.on_hub:
        use_cache_alone_if_hub_is_away()
    elif source.gguf:
        check_file(source.gguf, is_gguf=True)
    else:
        check_folder(Path(source.path))
    revision = source.arguments.get("revision", "main") if source.on_hub else None
    with in_words(str(source.gguf or source.path), revision=revision):
        return loader.from_pretrained(source.path, **source.arguments, trust_remote_code=False, **options)


def load_whole(source: Source, config: Any, **options: Any) -> Any:
    """The model that a configuration describes, every tensor of it from the files.

    Raises:
        SetupError: it cannot be loaded, or some of it would be random.
    """
    if Path(source.path).is_dir() and not source.gguf:
        parameters = build_on_meta(config).parameters()
        check_size(sum(parameter.numel() for parameter in parameters), Path(source.path))
    if not source.gguf:  # whose own is made while it is unpacked
        options["config"] = config
    model, report = load(class_for(config), source, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    check_report(model, report, str(source.gguf or source.path))
    if source.gguf:
        settings, tokenizer = model.generation_config, tokenizer_in(without_weights(source), model.config)
        settings.eos_token_id = answer_ends(tokenizer, settings.eos_token_id)
    return model


def tokenizer_in(source: Source, config: Any = None) -> Any:
    """The tokenizer of a source; that of a GGUF itself ends texts as its metadata says, which `config` has if known."""
    tokenizer = load(transformers.AutoTokenizer, source)
    if source.gguf:
        name_end(tokenizer, config or load(transformers.AutoConfig, source))
    return tokenizer


def build_on_meta(config: Any) -> Any:
    """The model without weights: names and shapes only.

    Raises:
        SetupError: the configuration describes no model.
    """
    loader = class_for(config)
    build = getattr(loader, "from_config", None) or loader._from_config  # noqa: SLF001 - what Auto classes call
    with torch.device("meta"), in_words("config.json"):
        return build(config)


def class_for(config: Any) -> Any:
    """The class that the checkpoint was saved from, so that a multimodal model stays one, if it generates text."""
    names = config.architectures if isinstance(config.architectures, list) else []
    found: Any = getattr(transformers, names[0], None) if names and isinstance(names[0], str) else None
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if is_model and found.can_generate() else transformers.AutoModelForCausalLM


def without_weights(source: Source) -> Source:
    """Where configuration and tokenizer are read: for a GGUF its unpacked copy, the file itself if there is none."""
    return _copy(source, "text", partial(_unpack_text, source))


def with_weights(source: Source, config: Any, dtype: torch.dtype) -> Source:
    """The same for the weights, in the dtype in which they will be loaded."""
    return _copy(source, str(dtype).removeprefix("torch."), partial(_unpack_weights, source, config, dtype))


def _copy(source: Source, kind: str, unpack: Callable[[Path], None]) -> Source:
    if source.gguf is None:
        return source
    check_file(source.gguf, is_gguf=True)
    folder = copy_of(source.gguf, kind, unpack)
    return source if folder is None else Source(str(folder), {})


def _unpack_text(source: Source, folder: Path) -> None:
    config = load(transformers.AutoConfig, source)
    config.save_pretrained(folder)
    tokenizer_in(source, config).save_pretrained(folder)


def _unpack_weights(source: Source, config: Any, dtype: torch.dtype, folder: Path) -> None:
    """The weights as transformers unpacks them, saved as if they had never been packed."""
    model = load_whole(source, config, dtype=dtype, **plain())
    forget_packing(model)
    model.save_pretrained(folder)


def plain() -> dict[str, Any]:
    """What makes transformers unpack all of a GGUF, whatever kernels are installed, where it has the choice."""
    settings = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": settings(dequantize=True)} if settings else {}
