"""The fused decode step for Llama-like decoders: few kernels between cuBLAS' products.

RMS norms, rotary embedding, grouped-query attention, a gated MLP: Llama and what descends from it. Weights stay where
the model has them, so damage in place reaches this path too. Whatever is not recognised is refused, not guessed.
"""

from typing import Any

import torch
import triton
from attrs import frozen
from torch import Tensor
from torch.nn.functional import linear

from runner import decode_fused_kernels as kernels
from runner.decode_batch import UnknownDecoderError
from runner.decode_packing import NORM_OFFSETS, joined, qkv_modules
from runner.decode_sampling import BLOCK, blockwise_topk
from runner.decode_step import EOS, NONFINITE, DecodeState

GELU = {"silu": False, "gelu_pytorch_tanh": True}
FIXED_ROPES = {"default", "linear", "llama3", "yarn"}  # the same angles however long the text is
MOST_CANDIDATES = 1024  # of top-k, in the registers of one program
BLOCKS_SURVEYED = 64
LEAST_HEAD = 32  # numbers: a product in Triton takes halves of at least 16


@frozen(kw_only=True)
class Layer:
    """A decoder layer, its cache, and what its attention needs to know."""

    module: Any
    keys: Tensor
    values: Tensor
    angles: tuple[Tensor, Tensor]
    window: int

    @property
    def after_attention(self) -> Any | None:
        """The norm of the attention's output, in families that have one."""
        return self.module.post_attention_layernorm if self._is_sandwich else None

    @property
    def before_mlp(self) -> Any:
        """The norm before the MLP."""
        return self.module.pre_feedforward_layernorm if self._is_sandwich else self.module.post_attention_layernorm

    @property
    def after_mlp(self) -> Any | None:
        """The norm of the MLP's output, in families that have one."""
        return self.module.post_feedforward_layernorm if self._is_sandwich else None

    @property
    def _is_sandwich(self) -> bool:
        return hasattr(self.module, "pre_feedforward_layernorm")


class FusedStep:
    """`DecodeState.sample_step` and `DecodeState.forward` on the same state, with kernels of our own."""

    def __init__(self, decoder: DecodeState) -> None:
        """The decoder has read a prompt before, so that its cache is there.

        Raises:
            UnknownDecoderError: the model or the sampling is of another kind.
        """
        self.state, self.config = decoder, decoder.config
        _check(decoder)
        text = decoder.model.get_decoder()
        self.embedding, self.norm, head = text.embed_tokens, text.norm, decoder.model.get_output_embeddings()
        self.head = head.weight
        self.offset, self.gelu = NORM_OFFSETS[self.config.model_type], GELU[_activation(self.config)]
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
        rotary, state = text.rotary_emb, self.state
        kinds = getattr(self.config, "layer_types", None) or ["full_attention"] * len(text.layers)
        positions = torch.arange(state.shape.length, device=state.device)[None]
        some, by_kind = self.embedding.weight[:1], hasattr(rotary, "layer_types")
        angles = {
            kind: tuple(table[0].contiguous() for table in rotary(some, positions, *([kind] if by_kind else [])))
            for kind in set(kinds)
        }
        if any(table.shape[-1] != self.head_size for pair in angles.values() for table in pair):
            raise UnknownDecoderError("its rotary embedding turns a part of a head only")
        slides, every = getattr(self.config, "sliding_window", None), not getattr(self.config, "layer_types", None)
        return [
            Layer(
                module=layer,
                keys=cached.keys,
                values=cached.values,
                angles=angles[kind],
                window=slides if slides and (every or kind == "sliding_attention") else 0,
            )
            for layer, cached, kind in zip(text.layers, state.layers, kinds, strict=True)
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
        stream = self.embedding(self.state.token)
        hidden = self._add_norm(stream, None, None, self.layers[0].module.input_layernorm)
        following = [layer.module.input_layernorm for layer in self.layers[1:]] + [self.norm]
        for layer, next_norm in zip(self.layers, following, strict=True):
            attention, mlp = layer.module.self_attn, layer.module.mlp
            mixed = self._attend(self._linear(hidden, *qkv_modules(layer.module)), layer)
            output = self._linear(mixed, attention.o_proj)
            hidden = self._add_norm(stream, output, layer.after_attention, layer.before_mlp)
            gated = self._gated(self._linear(hidden, mlp.gate_proj, mlp.up_proj))
            output = self._linear(gated, mlp.down_proj)
            hidden = self._add_norm(stream, output, layer.after_mlp, next_norm)
        torch.mm(hidden, self.head.t(), out=self.state.logits)

    def _linear(self, x: Tensor, *modules: Any) -> Tensor:
        """The outputs of modules whose weights lie side by side; for conditions that have copies, by these."""
        out = linear(x, *joined(modules))
        return out if self.state.copies is None else self.state.copies.write(x, out, modules)

    def _add_norm(self, stream: Tensor, add: Tensor | None, after: Any | None, before: Any, **options: Any) -> Tensor:
        out = torch.empty_like(stream)
        size = stream.shape[1]
        kernels.add_norm[(len(stream),)](
            stream,
            stream if add is None else add,
            (after or before).weight,
            before.weight,
            out,
            size,
            self.config.rms_norm_eps,
            OFFSET=self.offset,
            ADD=add is not None,
            AFTER=after is not None,
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
        has_norm = hasattr(attention, "q_norm")
        kernels.attend[(len(out), self.key_heads)](
            heads,
            layer.keys,
            layer.values,
            out,
            *layer.angles,
            *([attention.q_norm.weight, attention.k_norm.weight] if has_norm else [heads, heads]),
            state.slot,
            state.first,
            self.scale,
            self.config.rms_norm_eps,
            GROUP=self.group,
            KEY_HEADS=self.key_heads,
            HALF=self.head_size // 2,
            LENGTH=state.shape.length,
            WINDOW=layer.window,
            NORM=has_norm,
            OFFSET=self.offset,
            PADDED=max(16, triton.next_power_of_2(self.group)),  # the least that a product takes
            BLOCK=32,
            num_warps=2,
            num_stages=3,
            **options,
        )
        return out


def _activation(config: Any) -> str:
    return str(getattr(config, "hidden_activation", None) or config.hidden_act)


def _check(decoder: DecodeState) -> None:
    """Refuse what the step would compute wrongly."""
    config, sampling = decoder.config, decoder.sampling
    if config.model_type not in NORM_OFFSETS:
        raise UnknownDecoderError(f"{config.model_type} is none of {', '.join(NORM_OFFSETS)}")
    text, head = decoder.model.get_decoder(), decoder.model.get_output_embeddings()
    ropes = getattr(text.rotary_emb, "rope_type", None)
    size = text.layers[0].self_attn.head_dim
    reasons = {
        f"its activation is {_activation(config)}": _activation(config) not in GELU,
        f"its rotary embedding is {ropes}": not set(ropes.values() if isinstance(ropes, dict) else [ropes])
        <= FIXED_ROPES,
        f"its heads have {size} numbers": size & (size - 1) or size < LEAST_HEAD,
        "its logits are capped": getattr(config, "final_logit_softcapping", None),
        "its attention is capped": getattr(config, "attn_logit_softcapping", None),
        "its layers are not plain matrices": any(
            type(m) is not torch.nn.Linear for layer in text.layers for m in _projections(layer)
        ),
        "its output head is no plain matrix": type(head) is not torch.nn.Linear or head.bias is not None,
        "accelerate moves its weights": hasattr(decoder.model, "_hf_hook"),
        f"top_k is not 1 to {MOST_CANDIDATES}": sampling.do_sample and not 0 < sampling.top_k <= MOST_CANDIDATES,
    }
    if found := [reason for reason, applies in reasons.items() if applies]:
        raise UnknownDecoderError("; ".join(found))


def _projections(layer: Any) -> list[Any]:
    return [*qkv_modules(layer), layer.self_attn.o_proj, layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj]
