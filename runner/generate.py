"""From prompts to continuations in one static shape.

Every batch of a run has the same rows, the same padded prompt length and the same cache, whatever it holds: a short
batch is filled with dummy rows, every mask is spelt out. Kernels then do the same for a row whatever its neighbours
are, and a resumed run gives the bytes of an uninterrupted one.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from attrs import evolve, frozen
from torch import Tensor
from transformers.cache_utils import Cache, StaticLayer

from runner.errors import SetupError
from runner.placement import input_device
from runner.sampling import Sampling, next_tokens, row_streams

REASONS = ("length", "eos", "nonfinite")
_LENGTH, _EOS, _NONFINITE = range(3)
STEPS_BETWEEN_LOOKS = 16  # on CUDA, looking whether all rows are done makes the host wait for the device


@frozen(kw_only=True)
class Shape:
    """The static shape of all batches: rows, tokens of a padded prompt, most tokens of a continuation."""

    rows: int
    prompt_length: int
    new_tokens: int

    def with_rows(self, rows: int) -> Self:
        """The same shape with another number of rows."""
        return evolve(self, rows=rows)


@frozen
class Question:
    """A templated and tokenised prompt, and what its random stream is named by: seed and plain text."""

    token_ids: Sequence[int]
    text: str
    seed: int


@frozen
class Answer:
    """The generated tokens, an end-of-sequence token included, and why they ended."""

    token_ids: list[int]
    finish_reason: str


class Generator:
    """Answers questions with a model in one static shape; the cache is allocated once and kept."""

    def __init__(self, model: Any, shape: Shape, sampling: Sampling, eos: Sequence[int], pad: int) -> None:
        """`eos` are the token ids that end a row, `pad` fills what is not read."""
        self.model, self.shape, self.sampling, self.pad = model, shape, sampling, pad
        self.device = input_device(model)
        self.eos = torch.tensor(sorted(eos), dtype=torch.int64, device=self.device)
        self.config = model.config.get_text_config()
        self.length = shape.prompt_length + shape.new_tokens
        # Full-length layers even where attention slides: the window is in the mask, and no layer rolls.
        layers = [StaticLayer(max_cache_len=self.length) for _ in range(self.config.num_hidden_layers)]
        self.cache = Cache(layers=layers)

    @torch.inference_mode()
    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """Answers to at most `shape.rows` questions, in their order."""
        rows, new_tokens = self.shape.rows, self.shape.new_tokens
        filled = [*questions, *[questions[0]] * (rows - len(questions))]
        prompt, real = self._pad(filled)
        streams = row_streams([q.seed for q in filled], [q.text for q in filled], self.device)
        active = torch.arange(rows, device=self.device) < len(questions)
        written = torch.full((rows, new_tokens), self.pad, dtype=torch.int64, device=self.device)
        count = torch.zeros(rows, dtype=torch.int64, device=self.device)
        reason = torch.full_like(count, _LENGTH)
        position = real.sum(dim=1, keepdim=True)
        self.cache.reset()
        logits = self._prefill(prompt, real)
        for index in range(new_tokens):
            step = torch.tensor(index, device=self.device)
            finite = logits.isfinite().all(dim=-1)
            token = torch.where(active & finite, next_tokens(logits, streams, step, self.sampling), self.pad)
            reason = reason.where(~active | finite, _NONFINITE)
            active = active & finite
            written[:, index] = token
            count += active
            ended = active & torch.isin(token, self.eos)
            reason = reason.where(~ended, _EOS)
            active = active & ~ended
            if index + 1 == new_tokens or (self._looks(index) and not active.any()):
                break
            real[:, self.shape.prompt_length + index] = True
            logits = self._decode(token[:, None], position + index, real, step)
        pairs = zip(written.tolist(), count.tolist(), reason.tolist(), strict=True)
        answers = [Answer(ids[:length], REASONS[why]) for ids, length, why in pairs]
        return answers[: len(questions)]

    def _looks(self, index: int) -> bool:
        return self.device.type == "cpu" or index % STEPS_BETWEEN_LOOKS == 0

    def _pad(self, questions: Sequence[Question]) -> tuple[Tensor, Tensor]:
        """Left-padded token ids [rows, prompt_length], and which cache slots hold a real token [rows, length]."""
        width = self.shape.prompt_length
        ids = [[self.pad] * (width - len(q.token_ids)) + list(q.token_ids) for q in questions]
        lengths = torch.tensor([len(q.token_ids) for q in questions], device=self.device)
        slot = torch.arange(self.length, device=self.device)
        return torch.tensor(ids, device=self.device), (slot >= width - lengths[:, None]) & (slot < width)

    def _prefill(self, prompt: Tensor, real: Tensor) -> Tensor:
        """Read the prompts into the cache; the logits that follow them, [rows, vocabulary]."""
        width = self.shape.prompt_length
        position = (real[:, :width].cumsum(dim=1) - 1).clamp(min=0)
        return self._forward(prompt, position, real, torch.arange(width, device=self.device))

    def _decode(self, token: Tensor, position: Tensor, real: Tensor, step: Tensor) -> Tensor:
        """The decode step: read one token per row [rows, 1]; the logits that follow it, [rows, vocabulary]."""
        return self._forward(token, position, real, (step + self.shape.prompt_length)[None])

    def _forward(self, ids: Tensor, position: Tensor, real: Tensor, slots: Tensor) -> Tensor:
        outputs = self.model(
            input_ids=ids,
            attention_mask=attention_masks(self.config, real, slots),
            position_ids=position,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = outputs.logits[:, -1]
        return logits


def attention_masks(config: Any, real: Tensor, slots: Tensor) -> Tensor | dict[str, Tensor]:
    """What the tokens at cache `slots` [queries] may read of `real` slots [rows, length]: [rows, 1, queries, length].

    Causal, and within the sliding window for the layers that have one. A padding token reads itself, since a softmax
    over nothing is not a number. A model with both kinds of layer takes a mask for each.

    Raises:
        SetupError: the model has layers of another kind.
    """
    slot = torch.arange(real.shape[1], device=real.device)
    distance = slots[:, None] - slot
    full = ((real[:, None, :] & (distance >= 0)) | (distance == 0))[:, None]
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or [])
    if unknown := kinds - {"full_attention", "sliding_attention"}:
        raise SetupError(f"the model has {', '.join(sorted(unknown))} layers; only full and sliding attention is known")
    if window is None or kinds == {"full_attention"}:
        return full
    sliding = full & (distance < window)
    return {"full_attention": full, "sliding_attention": sliding} if kinds else sliding
