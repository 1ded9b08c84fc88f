"""Memory: how much is used, what that means for the batch size, and what a run will need."""

import logging
import os
import time
from collections.abc import Sequence
from typing import Any

import torch
from attrs import frozen

from runner.errors import SetupError

logger = logging.getLogger(__name__)

GIB = 2**30
STOP_ABOVE, WARN_ABOVE, GROW_BELOW = 0.95, 0.90, 0.40
PAUSE_SECONDS = 1.0


def used_fraction(device: torch.device) -> float | None:
    """Peak reserved over total memory of a GPU since the last call; None on the CPU."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak / total_memory(device)


def total_memory(device: torch.device) -> int:
    """Bytes that the device has."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def has_room(device: torch.device, size: int) -> bool:
    """Whether a GPU can hold `size` more bytes and still leave a tenth for cache and logits below the warning."""
    total = total_memory(device)
    return torch.cuda.memory_reserved(device) + size + total // 10 < WARN_ABOVE * total


def rows_after_batch(rows: int, used: float | None, most: int) -> int:
    """The rows of the next batch: a size that was reduced earlier grows again while little memory is used.

    Raises:
        SetupError: so much is used that the run had better stop, with everything saved.
    """
    if used is None:
        return rows
    if used > STOP_ABOVE:
        raise SetupError(f"{used:.0%} of the GPU's memory is used. Set a smaller generation.max_batch_size, run again.")
    if used > WARN_ABOVE:
        logger.warning("%.0f %% of the GPU's memory is used", 100 * used)
        time.sleep(PAUSE_SECONDS)
    return min(2 * rows, most) if used < GROW_BELOW and rows < most else rows


def rows_after_overflow(rows: int) -> int:
    """The rows to try the same batch with after the device ran out of memory.

    Raises:
        SetupError: one row is too much.
    """
    if rows == 1:
        raise SetupError("out of memory with one row. Use a larger GPU, a smaller model or fewer max_new_tokens.")
    logger.warning("out of memory with %d rows: going on with %d", rows, rows // 2)
    torch.cuda.empty_cache()
    return rows // 2


@frozen(kw_only=True)
class Estimate:
    """Bytes that a run will need."""

    weights: int
    baseline: int
    cache: int
    logits: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.baseline + self.cache + self.logits


def estimate(model: Any, groups: Sequence[Sequence[Any]], rows: int, length: int, element_size: int) -> Estimate:
    """What a model, the baseline of its largest group, its cache and one step's logits take; the meta device will do.

    `rows` and `length` are those of the static shape, `element_size` is in bytes.
    """
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    group_sizes = [sum(target.weight.numel() for target in group) for group in groups]
    return Estimate(
        weights=sum(parameter.numel() for parameter in model.parameters()) * element_size,
        baseline=max(group_sizes, default=0) * element_size,
        cache=2 * config.num_hidden_layers * heads * head_size * rows * length * element_size,
        logits=rows * config.vocab_size * (element_size + 4 + 4),  # the model's own, and two copies in float32
    )
