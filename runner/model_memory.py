"""Memory: how much is used, what that means for the batch size, and what a run will need."""

import gc
import logging
import os
import resource
import time
from collections.abc import Sequence
from typing import Any

import torch
from attrs import frozen

from runner.env_container import memory_limit
from runner.errors import SetupError

logger = logging.getLogger(__name__)

GIB = 2**30
STOP_ABOVE, WARN_ABOVE, GROW_BELOW = 0.95, 0.90, 0.40
PAUSE_SECONDS = 1.0
MOST_ROWS, FREE_SHARE = 512, 0.8


def used_fraction(device: torch.device) -> float | None:
    """Peak reserved over total memory of a GPU since the last call; None on the CPU."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak / total_memory(device)


def total_memory(device: torch.device) -> int:
    """Bytes that the device has; of the host's, what a container or `ulimit -v` leaves to this process."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = [memory_limit(), resource.getrlimit(resource.RLIMIT_AS)[0]]
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *(limit for limit in limits if limit is not None and limit > 0)])


def has_room(device: torch.device, size: int) -> bool:
    """Whether a GPU can hold `size` more bytes and still leave a tenth for cache and logits below the warning."""
    total = total_memory(device)
    return torch.cuda.memory_reserved(device) + size + total // 10 < WARN_ABOVE * total


def check(used: float | None) -> None:
    """Look at the used fraction after a batch: enough, warn and pause, or stop.

    Raises:
        SetupError: so much is used that the run had better stop, with everything saved.
    """
    if used is None or used <= WARN_ABOVE:
        return
    if used > STOP_ABOVE:
        raise SetupError(
            f"{used:.0%} of the GPU's memory is used. Set a smaller generation.max_batch_size, or a smaller "
            "generation.conditions_per_batch, and run again."
        )
    logger.warning("%.0f %% of the GPU's memory is used", 100 * used)
    time.sleep(PAUSE_SECONDS)


def may_grow(device: torch.device, rows: int, most: int) -> bool:
    """Whether a number of rows that was reduced earlier may grow again, for little memory is in use."""
    return (
        rows < most and device.type == "cuda" and torch.cuda.memory_reserved(device) < GROW_BELOW * total_memory(device)
    )


def rows_that_fit(model: Any, groups: Sequence[Sequence[Any]], length: int, device: torch.device) -> int:
    """The rows for which memory is left beside the loaded weights and the baseline of the largest group, at most 512.

    A fifth of what is free stays free for activations; should that not do, the run goes on with fewer rows.
    """
    element_size = next(model.parameters()).element_size()
    need = estimate(model, groups, 1, length, element_size)
    used = torch.cuda.memory_allocated(device) if device.type == "cuda" else need.weights
    free = WARN_ABOVE * total_memory(device) - used - need.baseline
    return max(1, min(MOST_ROWS, int(FREE_SHARE * free / (need.cache + need.logits))))


def rows_after_overflow(rows: int) -> int:
    """The rows to try the same batch with after the device ran out of memory.

    Raises:
        SetupError: one row is too much.
    """
    if rows == 1:
        raise SetupError("out of memory with one row. Use a larger GPU, a smaller model or fewer max_new_tokens.")
    logger.warning("out of memory with %d rows: going on with %d", rows, rows // 2)
    return rows // 2


def release() -> None:
    """Give back what nobody uses: batches that were too large, and their graphs, which refer to one another."""
    gc.collect()
    torch.cuda.empty_cache()


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
