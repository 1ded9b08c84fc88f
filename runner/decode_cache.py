"""Keys and values of a batch in static memory: every row at a step of its own, a prompt read once for all rows."""

from typing import Any

from torch import Tensor, arange
from transformers.cache_utils import StaticLayer


class WritePositions:
    """Where the rows write their next key and value; one object for all layers of a cache."""

    def __init__(self, slot: Tensor) -> None:
        """`slot` [rows] is kept up to date in place by whoever decodes."""
        self.slot = slot
        self.reading = False  # prompts into the prefix cache, instead of one token per row into the rows
        self.filled: int | None = None  # attention reads so many slots; None: all, in one shape for every step


class StaticCacheLayer(StaticLayer):  # type: ignore[misc]  # transformers has no types
    """Keys and values of a layer [rows, heads, length, head size]; its prefix cache [prompts, heads, width, head size].

    Full length even where attention slides: the window is in the mask, and no layer rolls.
    """

    def __init__(self, rows: int, prompts: int, width: int, length: int, slots: WritePositions) -> None:
        """Nothing is allocated before the first update, which knows heads, sizes and device."""
        super().__init__(max_cache_len=length)
        self._rows, self._prompts, self._width, self._slots = rows, prompts, width, slots

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate zeros, since a masked slot is multiplied by a weight of 0, and 0 * NaN is NaN."""
        heads = key_states.shape[1]
        sizes = key_states.shape[-1], value_states.shape[-1]
        self.keys, self.values = (key_states.new_zeros(self._rows, heads, self.max_cache_len, size) for size in sizes)
        self.prefix_cache = [key_states.new_zeros(self._prompts, heads, self._width, size) for size in sizes]
        self.row = arange(self._rows, device=key_states.device)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store what the model computed; what attention may read."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self._slots.reading:
            for kept, states in zip(self.prefix_cache, (key_states, value_states), strict=True):
                kept.copy_(states)
            return key_states, value_states
        slot = self._slots.slot.to(self.keys.device)
        self.keys[self.row, :, slot] = key_states[:, :, 0]
        self.values[self.row, :, slot] = value_states[:, :, 0]
        return self.keys[:, :, : self._slots.filled], self.values[:, :, : self._slots.filled]

    def start_rows(self, rows: Tensor, prompts: Tensor) -> None:
        """Give rows the keys and values of prompts in the prefix cache, and no trace of what the rows held before.

        A masked slot has weight 0, and 0 * NaN is NaN, so masked positions must hold finite numbers.
        """
        rows, prompts = rows.to(self.keys.device), prompts.to(self.keys.device)
        for kept, states in zip(self.prefix_cache, (self.keys, self.values), strict=True):
            states[rows, :, : self._width] = kept[prompts]
            states[rows, :, self._width :] = 0
