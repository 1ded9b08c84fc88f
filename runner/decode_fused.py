"""The fused decode step for Llama-like decoders: few kernels between cuBLAS' products.

RMS norms, rotary embedding, grouped-query attention, a gated MLP: Llama and what descends from it. Weights stay where
the model has them, so damage in place reaches this path too. `decode_families` says which models it can be.
"""

from typing import Any

import torch
import triton
from attrs import frozen
from torch import Tensor
from torch.nn.functional import linear

from runner import decode_fused_kernels as kernels
from runner.decode_families import (
    FAMILIES,
    GELU,
    activation_of,
    check_decoder,
    gate_up_modules,
    layer_kinds,
    qkv_modules,
    rotary_tables,
)
from runner.decode_packing import joined
from runner.decode_sampling import BLOCK, blockwise_topk
from runner.decode_step import EOS, NONFINITE, DecodeState

BLOCKS_SURVEYED = 64


@frozen(kw_only=True)
class Layer:
    """A decoder layer, its cache, and what its attention needs to know."""

    module: Any
    keys: Tensor
    values: Tensor
    angles: tuple[Tensor, Tensor]
    window: int
    turns: bool  # the rotary embedding is used
    before_attention: Any | None  # the norms, where the family has one
    after_attention: Any | None
    before_mlp: Any | None
    after_mlp: Any | None


class FusedStep:
    """`DecodeState.sample_step` and `DecodeState.forward` on the same state, with kernels of our own."""

    def __init__(self, decoder: DecodeState) -> None:
        """The decoder has read a prompt before, so that its cache is there.

        Raises:
            UnknownDecoderError: the model or the sampling is of another kind.
        """
        self.state, self.config = decoder, decoder.config
        check_decoder(decoder.model, decoder.sampling)
        text = decoder.model.get_decoder()
        self.embedding, self.norm, head = text.embed_tokens, text.norm, decoder.model.get_output_embeddings()
        self.head = head.weight
        self.family = FAMILIES[self.config.model_type]
        self.gelu = GELU[activation_of(self.config)]
        attention = text.layers[0].self_attn
        self.head_size, self.scale = attention.head_dim, attention.scaling
        self.key_heads = self.config.num_key_value_heads
        self.group = self.config.num_attention_heads // self.key_heads
        self.layers = self._write_effect(text)
        rows, vocabulary = decoder.logits.shape
        chunks = triton.cdiv(triton.cdiv(vocabulary, BLOCK), BLOCKS_SURVEYED)
        self.maxima = torch.empty((rows, vocabulary // BLOCK), dtype=decoder.logits.dtype, device=decoder.device)
        self.finite = torch.empty((rows, chunks), dtype=torch.int32, device=decoder.device)

    def _write_effect(self, text: Any) -> list[Layer]:
        config, family, state = self.config, self.family, self.state
        kinds = layer_kinds(config)
        angles = rotary_tables(text, config, state.shape.length)
        slides, every = getattr(config, "sliding_window", None), not getattr(config, "layer_types", None)
        turns = family.read(config, "no_rope_layers", [1] * len(kinds))  # 0 where a layer does without
        return [
            Layer(
                module=layer,
                keys=cached.keys,
                values=cached.values,
                angles=angles[kind],
                window=slides if slides and (every or kind == "sliding_attention") else 0,
                turns=bool(turn),
                **family.norms_of(layer),
            )
            for layer, cached, kind, turn in zip(text.layers, state.layers, kinds, turns[: len(kinds)], strict=True)
        ]

    def __call__(self) -> None:
        """One token for every row."""
        self.sample_step()
        self.forward()

    def sample_step(self) -> None:
        """The next token of every active row, and what it means for the row."""
        s = self.state
        rows, vocabulary = s.logits.shape
        chunks = self.finite.shape[1]
        kernels.block_maxima[(rows, chunks)](
            s.logits, self.maxima, self.finite, vocabulary, BLOCK=BLOCK, BLOCKS=BLOCKS_SURVEYED, num_warps=4
        )
        count = min(s.sampling.top_k, vocabulary) if s.sampling.do_sample else 1
        found, token_ids = blockwise_topk(s.logits, count, self.maxima)
        kernels.sample_step[(rows,)](
            found,
            token_ids,
            self.finite,
            s.streams,
            s.eos,
            s.token,
            s.slot,
            s.step,
            s.active.view(torch.int8),
            s.reason,
            s.written,
            float(s.sampling.temperature),
            float(s.sampling.top_p),
            s.pad,
            s.shape.prompt_length,
            s.shape.new_tokens,
            chunks,
            ENDED=EOS,
            NONFINITE=NONFINITE,
            COUNT=count,
            LANES=triton.next_power_of_2(count),
            EOS=len(s.eos),
            EOS_LANES=triton.next_power_of_2(max(len(s.eos), 1)),
            CHUNK_LANES=triton.next_power_of_2(chunks),
            num_warps=1,
        )

    def forward(self) -> None:
        """Read the token of every row; the logits that follow it."""
        stream = self._embedded()
        hidden = self._add_norm(stream, None, None, self.layers[0].before_attention)
        following = [layer.before_attention for layer in self.layers[1:]] + [self.norm]
        for layer, next_norm in zip(self.layers, following, strict=True):
            attention, mlp = layer.module.self_attn, layer.module.mlp
            mixed = self._attend(self._linear(hidden, *qkv_modules(layer.module)), layer)
            output = self._linear(mixed, attention.o_proj)
            hidden = self._add_norm(stream, output, layer.after_attention, layer.before_mlp)
            gated = self._gated(self._linear(hidden, *gate_up_modules(layer.module)))
            output = self._linear(gated, mlp.down_proj)
            hidden = self._add_norm(stream, output, layer.after_mlp, next_norm)
        torch.mm(hidden, self.head.t(), out=self.state.logits)
        self._finish_logits()

    def _linear(self, x: Tensor, *modules: Any) -> Tensor:
        """The outputs of modules whose weights lie side by side; for conditions that have copies, by these."""
        out = linear(x, *joined(modules))
        return out if self.state.copies is None else self.state.copies.write(x, out, modules)

    def _embedded(self) -> Tensor:
        """What the layers begin with [rows, hidden size]: a new tensor, to which they add."""
        stream: Tensor = self.embedding(self.state.token)
        multiplier = self.family.read(self.config, "embedding_multiplier", 1.0)
        return stream if multiplier == 1 else stream.mul_(multiplier)

    def _finish_logits(self) -> None:
        """Divide or cap the logits where the family does, in its own steps and so with its own rounding."""
        logits = self.state.logits
        if (scaling := self.family.read(self.config, "logits_scaling", 1.0)) != 1:
            logits.div_(scaling)
        if cap := self.family.read(self.config, "final_logit_softcapping", None):
            logits.div_(cap).tanh_().mul_(cap)

    def _add_norm(
        self, stream: Tensor, add: Tensor | None, after: Any | None, before: Any | None, **options: Any
    ) -> Tensor:
        """Add a sublayer's output to the stream; what the next sublayer reads, which without a norm is the stream."""
        norms = [norm for norm in (after, before) if norm is not None]
        if not norms:  # nothing is added either
            return stream
        out = stream if before is None else torch.empty_like(stream)
        size = stream.shape[1]
        kernels.add_norm[(len(stream),)](
            stream,
            stream if add is None else add,
            norms[0].weight,
            norms[-1].weight,
            out,
            size,
            self.config.rms_norm_eps,
            OFFSET=self.family.norm_offset,
            ADD=add is not None,
            AFTER=after is not None,
            BEFORE=before is not None,
            MULTIPLIER=float(self.family.read(self.config, "residual_multiplier", 1.0)),
            BLOCK=triton.next_power_of_2(size),
            num_warps=8,
            **options,
        )
        return out

    def _gated(self, gate_up: Tensor) -> Tensor:
        size = gate_up.shape[1] // 2
        out = gate_up.new_empty(len(gate_up), size)
        kernels.gated[(len(gate_up), triton.cdiv(size, 1024))](
            gate_up, out, size, GELU=self.gelu, BLOCK=1024, num_warps=4
        )
        return out

    def _attend(self, heads: Tensor, layer: Layer, **options: Any) -> Tensor:
        attention, state = layer.module.self_attn, self.state
        out = layer.keys.new_empty(state.shape.rows, self.key_heads * self.group * self.head_size)
        norm = self.family.query_key_norm
        if norm == "projection":
            self._norm_projections(heads, attention)
        kernels.attend[(len(out), self.key_heads)](
            heads,
            layer.keys,
            layer.values,
            out,
            *layer.angles,
            *([attention.q_norm.weight, attention.k_norm.weight] if norm == "head" else [heads, heads]),
            state.slot,
            state.first,
            self.scale,
            self.config.rms_norm_eps,
            GROUP=self.group,
            KEY_HEADS=self.key_heads,
            HALF=self.head_size // 2,
            LENGTH=state.shape.length,
            WINDOW=layer.window,
            NORM=norm == "head",
            OFFSET=self.family.norm_offset,
            CAP=float(self.family.read(self.config, "attn_logit_softcapping", None) or 0),
            TURN=layer.turns,
            PADDED=max(16, triton.next_power_of_2(self.group)),  # the least that a product takes
            BLOCK=32,
            num_warps=2,
            num_stages=3,
            **options,
        )
        return out

    def _norm_projections(self, heads: Tensor, attention: Any) -> None:
        queries, keys = self.key_heads * self.group * self.head_size, self.key_heads * self.head_size
        kernels.norm_projections[(len(heads), 2)](
            heads,
            attention.q_norm.weight,
            attention.k_norm.weight,
            queries,
            keys,
            self.config.rms_norm_eps,
            OFFSET=self.family.norm_offset,
            BLOCK=triton.next_power_of_2(queries),
            num_warps=8,
        )
