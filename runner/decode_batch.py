"""What goes into a batch and what comes out: requests, completions, and the static shape that both must fit."""

from collections.abc import Sequence
from typing import Any, Self

from attrs import evolve, frozen
from torch import Tensor

REASONS = ("length", "eos", "nonfinite")
MOST_PROMPTS = 64  # read at a time; more would only make the activations of a large batch larger


@frozen(kw_only=True)
class BatchShape:
    """The static shape of all batches: rows, tokens of a padded prompt, most tokens of a continuation.

    Where a batch has several conditions, each has as many of the rows, side by side.
    """

    rows: int
    prompt_length: int
    new_tokens: int
    conditions: int = 1

    @property
    def length(self) -> int:
        """Slots of a row's cache."""
        return self.prompt_length + self.new_tokens

    @property
    def rows_each(self) -> int:
        """The rows of a condition."""
        return self.rows // self.conditions

    @property
    def prompts(self) -> int:
        """Prompts that are read at a time: always as many, whatever there is to read."""
        return min(self.rows_each, MOST_PROMPTS)

    def with_rows(self, rows: int) -> Self:
        """The same shape with another number of rows; of several conditions so many as find room in it."""
        if self.conditions > 1 and rows >= self.rows_each:
            return self.with_conditions(rows // self.rows_each)
        return evolve(self, rows=rows, conditions=1)

    def with_conditions(self, conditions: int) -> Self:
        """As many rows for each of so many conditions as each has now."""
        return evolve(self, rows=conditions * self.rows_each, conditions=conditions)


@frozen(kw_only=True)
class ImageEmbeddings:
    """What prompts show: features [tokens, hidden size] in the place of a token, overwritten when sight changes."""

    token_id: int
    features: Tensor
    both_ways: bool  # its tokens read each other in both directions


@frozen
class Request:
    """A templated and tokenised prompt, and what its random stream is named by: seed and plain text.

    `id`, which can be hashed, is what the asker knows it by; the completion carries it back.
    """

    token_ids: Sequence[int]
    text: str
    seed: int
    id: Any = None


@frozen
class Completion:
    """The generated tokens, an end-of-sequence token included, why they ended, and the id of the request."""

    token_ids: list[int]
    finish_reason: str
    id: Any = None


class UnknownDecoderError(Exception):
    """The model is not of the kind that a fast path knows."""
