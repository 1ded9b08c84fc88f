"""Which attention is used, and what its masks say: causality, padding and windows, spelt out for every query."""

import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor

from runner.errors import SetupError

logger = logging.getLogger(__name__)

IMPLEMENTATIONS = {None, "eager", "sdpa"}  # None: what the family prefers of the other two


def choose_attention(config: Any) -> None:
    """Keep to implementations that take a mask for every query, whatever a checkpoint asks for.

    Others take none in a static batch, or are fetched from the Hub as code. SDPA has no cap for its scores, and
    transformers 5.17 calls it for a model that has one all the same.
    """
    parts = [config, *(getattr(config, name, None) for name in config.sub_configs)]
    parts = [part for part in parts if part is not None]
    asked = {part._attn_implementation for part in parts}  # noqa: SLF001 - has no public name
    if unusual := asked - IMPLEMENTATIONS:
        _say(", ".join(sorted(map(str, unusual))))
        config._attn_implementation = None  # noqa: SLF001 - also that of its parts
    if any(getattr(part, "attn_logit_softcapping", None) for part in parts):
        config._attn_implementation = "eager"  # noqa: SLF001


@cache
def _say(listed: str) -> None:
    logger.warning("model.id: attention by %s is not used here; the family's usual one is", listed)


def repeat_on_cuda() -> None:
    """Let attention on CUDA give the same bits again: cuDNN's does not, from run to run of the same steps.

    tests/benchmarks/determinism.py measures it.
    """
    torch.backends.cuda.enable_cudnn_sdp(enabled=False)


def as_attention_takes(
    masks: Tensor | dict[str, Tensor], config: Any, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """Boolean masks as they are, or what eager attention adds to its scores."""
    if config._attn_implementation != "eager":  # noqa: SLF001 - where transformers keeps it
        return masks
    if isinstance(masks, dict):
        return {kind: _additive(mask, dtype) for kind, mask in masks.items()}
    return _additive(masks, dtype)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a mask is true, elsewhere the least number of a dtype, behind which the softmax gives exactly 0."""
    return torch.zeros((), dtype=dtype, device=mask.device).where(mask, torch.finfo(dtype).min)


def attention_masks(
    config: Any, first: Tensor, slots: Tensor, length: int, picture: Tensor | None = None
) -> Tensor | dict[str, Tensor]:
    """What the tokens at `slots` [rows, queries] may read of `length` slots: [rows, 1, queries, length].

    A row's tokens begin at slot `first` [rows]. Causal, and within the sliding window for the layers that have one. A
    padding token reads itself, since a softmax over nothing is not a number. A model with both kinds of layer takes a
    mask for each. Tokens of one `picture` [rows, queries], which then are all slots, read each other in every layer.

    Raises:
        SetupError: the model has layers of another kind.
    """
    slot = torch.arange(length, device=slots.device)
    distance = slots[..., None] - slot
    full = (((slot >= first[:, None, None]) & (distance >= 0)) | (distance == 0))[:, None]
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or [])
    if unknown := kinds - {"full_attention", "sliding_attention"}:
        raise SetupError(f"the model has {', '.join(sorted(unknown))} layers; only full and sliding attention is known")
    sliding = full if window is None else full & (distance < window)[:, None]
    if picture is not None:
        begins = picture & ~torch.nn.functional.pad(picture, (1, 0))[:, :-1]
        block = begins.cumsum(dim=1) * picture
        together = ((block[:, :, None] == block[:, None, :]) & picture[:, None, :])[:, None]
        full, sliding = full | together, sliding | together
    if window is None or kinds == {"full_attention"}:
        return full
    return {"full_attention": full, "sliding_attention": sliding} if kinds else sliding
