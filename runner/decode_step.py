"""The state of a batch in static tensors, and the plain way to prefill and decode it, on any device and any model.

Every row is at a step of its own, so that a row that has ended can begin another prompt while its neighbours go on.
`engine` may put faster code in the place of `read` and `step`; the state is the same.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from runner.decode_batch import REASONS, BatchShape, Completion, ImageEmbeddings, Request
from runner.decode_cache import StaticCacheLayer, WritePositions
from runner.decode_copies import Copies
from runner.decode_sampling import Sampling, next_tokens, row_streams
from runner.model_attention import as_attention_takes, attention_masks
from runner.model_placement import input_device

LENGTH, EOS, NONFINITE = range(len(REASONS))


class DecodeState:
    """Rows of one static shape and what they are at; its memory is allocated once."""

    def __init__(
        self,
        model: Any,
        shape: BatchShape,
        sampling: Sampling,
        eos: Sequence[int],
        pad: int,
        view: ImageEmbeddings | None = None,
        copies: Copies | None = None,
    ) -> None:
        """`eos` are the token ids that end a row, `pad` fills what is not read, `view` is what prompts show.

        `copies` are the weights of the conditions in a batch, where it has several; the fused step alone uses them.
        """
        self.model, self.shape, self.sampling, self.pad, self.view = model, shape, sampling, pad, view
        self.copies = copies
        self.config = model.config.get_text_config()
        self.device, self.dtype = input_device(model), model.get_input_embeddings().weight.dtype
        self.eos = torch.tensor(sorted(eos), dtype=torch.int64, device=self.device)
        self.token, self.slot, self.step, self.first, self.reason = torch.zeros(
            (5, shape.rows), dtype=torch.int64, device=self.device
        )
        self.active = torch.zeros(shape.rows, dtype=torch.bool, device=self.device)
        self.streams = torch.zeros((shape.rows, 4), dtype=torch.int64, device=self.device)
        # One column more than there are tokens: what a row that has ended writes lands there or behind its end.
        self.written = torch.zeros((shape.rows, shape.new_tokens + 1), dtype=torch.int64, device=self.device)
        self.prompt_ids = torch.full((shape.prompts, shape.prompt_length), pad, device=self.device)
        self.prompt_first = torch.full((shape.prompts,), shape.prompt_length - 1, device=self.device)
        self.prompt_logits = self.logits = torch.empty(0)  # allocated when the vocabulary is known
        self.slots = WritePositions(self.slot)
        self.layers = [
            StaticCacheLayer(shape.rows, shape.prompts, shape.prompt_length, shape.length, self.slots)
            for _ in range(self.config.num_hidden_layers)
        ]
        self.cache = Cache(layers=self.layers)
        self.read, self.advance = self.prefill_step, self.decode_steps

    # What the host asks for

    @torch.inference_mode()
    def show(self, features: Tensor) -> None:
        """Let the picture in prompts have other features from now on."""
        if self.view is not None:
            self.view.features.copy_(features)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        """Read at most `shape.prompts` prompts; rows can then start from any of them."""
        width = self.shape.prompt_length
        ids = [[self.pad] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        self.prompt_ids[: len(ids)] = torch.tensor(ids, device=self.device)
        self.prompt_first[: len(ids)] = torch.tensor([width - len(prompt) for prompt in prompts], device=self.device)
        self.read()

    @torch.inference_mode()
    def start_rows(self, rows: Sequence[int], prompts: Sequence[int], requests: Sequence[Request]) -> None:
        """Let rows begin to complete requests, whose prompts are in the prefix cache at these places."""
        at, source = torch.tensor([rows, prompts], device=self.device)
        for layer in self.layers:
            layer.start_rows(at, source)
        self.logits[at] = self.prompt_logits[source]
        self.first[at] = self.prompt_first[source]
        self.streams[at] = row_streams([q.seed for q in requests], [q.text for q in requests], self.device)
        self.step[at], self.reason[at], self.active[at] = 0, LENGTH, True

    @torch.inference_mode()
    def answers(self, rows: Sequence[int]) -> list[Completion]:
        """What rows have said."""
        at = torch.tensor(rows, device=self.device)
        told = zip(self.written[at].tolist(), self.step[at].tolist(), self.reason[at].tolist(), strict=True)
        return [Completion(ids[:count], REASONS[reason]) for ids, count, reason in told]

    # What the device does

    @torch.inference_mode()
    def decode_steps(self, count: int) -> None:
        """At most `count` tokens for every active row."""
        for _ in range(count):
            self.sample_step()
            if self.device.type == "cpu":  # all rows are at one step; elsewhere a look would make the host wait
                if not self.active.any():
                    return
                self.slots.filled = int(self.slot[self.active].max()) + 1
            self.forward()

    def prefill_step(self) -> None:
        """Read `prompt_ids` into the prefix cache, and keep the logits that follow them."""
        width = self.shape.prompt_length
        slots = torch.arange(width, device=self.device).expand(self.shape.prompts, -1)
        self.slots.reading = True
        try:
            logits = self._run(self.prompt_ids, self.prompt_first, slots, width, self.view)
        finally:
            self.slots.reading = False
        if not self.logits.numel():
            self.prompt_logits = torch.empty_like(logits)
            self.logits = logits.new_zeros(self.shape.rows, logits.shape[-1])
        self.prompt_logits.copy_(logits)

    def sample_step(self) -> None:
        """The next token of every active row, and what it means for the row."""
        finite = self.logits.isfinite().all(dim=-1)
        going = self.active & finite
        chosen = next_tokens(self.logits, self.streams, self.step[:, None], self.sampling)
        self.token.copy_(torch.where(going, chosen, self.pad))
        self.slot.copy_((self.step + self.shape.prompt_length).clamp(max=self.shape.length - 1))
        self.written.scatter_(1, self.step[:, None], self.token[:, None])
        self.step.add_(going)
        ended = going & (self.token[:, None] == self.eos).any(dim=-1)
        self.reason.masked_fill_(self.active & ~finite, NONFINITE).masked_fill_(ended, EOS)
        self.active.copy_(going & ~ended & (self.step < self.shape.new_tokens))

    def forward(self) -> None:
        """Read the token of every row; the logits that follow it."""
        length = self.slots.filled or self.shape.length
        self.logits.copy_(self._run(self.token[:, None], self.first, self.slot[:, None], length))

    def _run(
        self, ids: Tensor, first: Tensor, slots: Tensor, length: int, view: ImageEmbeddings | None = None
    ) -> Tensor:
        shown = ids == view.token_id if view and view.both_ways else None
        masks = attention_masks(self.config, first, slots, length, shown)
        outputs = self.model(
            **({"input_ids": ids} if view is None else {"inputs_embeds": self._embed(ids, view)}),
            attention_mask=as_attention_takes(masks, self.config, self.dtype),
            position_ids=(slots - first[:, None]).clamp(min=0),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = outputs.logits[:, -1]
        return logits

    def _embed(self, ids: Tensor, view: ImageEmbeddings) -> Tensor:
        """Embeddings of prompts [rows, width, hidden size], the picture's features where its tokens stand."""
        shown = ids == view.token_id
        embedded: Tensor = self.model.get_input_embeddings()(ids.masked_fill(shown, self.pad))
        place = (shown.cumsum(dim=1) - 1).clamp(0, len(view.features) - 1)
        return torch.where(shown[..., None], view.features[place], embedded)
