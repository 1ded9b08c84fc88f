"""What each model family that the fused step knows does otherwise than Llama, and why another decoder is refused.

Whatever is not recognised is refused, not guessed: a field of the configuration, a weight of a layer, a kind of rotary
embedding. Checked against the modeling code of transformers 5.17 and 5.23.
"""

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import torch
from attrs import frozen
from torch import Tensor
from transformers import PreTrainedConfig

from runner.decode_batch import UnknownDecoderError
from runner.decode_sampling import Sampling

# Where a layer can have norms, and the names that transformers has for them.
PLACES = ("before_attention", "after_attention", "before_mlp", "after_mlp")
Norms = tuple[str | None, str | None, str | None, str | None]
BEFORE: Norms = ("input_layernorm", None, "post_attention_layernorm", None)
AROUND: Norms = (
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
)  # fmt: skip
AFTER: Norms = (None, "post_attention_layernorm", None, "post_feedforward_layernorm")


@frozen(kw_only=True)
class Family:
    """What a family does otherwise than Llama; other activations, biases and windows are read from the model."""

    norms: Norms = BEFORE
    norm_offset: float = 0.0  # what is added to the weights of norms before multiplying by them
    query_key_norm: Literal["head", "projection"] | None = None  # queries and keys: each head alone, or all together
    fields: frozenset[str] = frozenset()  # of the configuration, beyond `FIELDS`

    def read(self, config: Any, name: str, neutral: Any) -> Any:
        """A field of the configuration, or what changes nothing where the family does not know it."""
        return getattr(config, name) if name in self.fields else neutral

    def norms_of(self, layer: Any) -> dict[str, Any]:
        """The norms of a layer by where they stand, None for those that it does not have."""
        return {place: name and getattr(layer, name) for place, name in zip(PLACES, self.norms, strict=True)}


FAMILIES: Mapping[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(query_key_norm="head"),
    "gemma3_text": Family(norms=AROUND, norm_offset=1.0, query_key_norm="head"),
    "gemma2": Family(
        norms=AROUND, norm_offset=1.0, fields=frozenset({"attn_logit_softcapping", "final_logit_softcapping"})
    ),
    "olmo2": Family(norms=AFTER, query_key_norm="projection"),
    "phi3": Family(),
    "granite": Family(
        fields=frozenset({"attention_multiplier", "embedding_multiplier", "logits_scaling", "residual_multiplier"}),
    ),
    "smollm3": Family(fields=frozenset({"no_rope_layers", "no_rope_layer_interval"})),
}

# Fields of configurations that the model's modules stand for, that the masks are made of, or that change nothing here.
FIELDS = (
    "attention_bias attention_dropout bos_token_id embd_pdrop eos_token_id head_dim hidden_act hidden_activation "
    "hidden_size initializer_range intermediate_size layer_types max_position_embeddings max_window_layers mlp_bias "
    "num_attention_heads num_hidden_layers num_key_value_heads original_max_position_embeddings pad_token_id "
    "pretraining_tp query_pre_attn_scalar resid_pdrop rms_norm_eps rope_parameters sliding_window tie_word_embeddings "
    "use_cache use_sliding_window vocab_size"
)
GELU = {"silu": False, "gelu_pytorch_tanh": True}
FIXED_ROPES = {"default", "linear", "llama3", "yarn"}  # the same angles however long the text is
MOST_CANDIDATES = 1024  # of top-k, in the registers of one program
LEAST_HEAD = 32  # numbers: a product in Triton takes halves of at least 16


def qkv_modules(layer: Any) -> list[Any]:
    """The modules that make queries, keys and values, in this order, or the one that makes them all."""
    attention = layer.self_attn
    if hasattr(attention, "qkv_proj"):
        return [attention.qkv_proj]
    return [attention.q_proj, attention.k_proj, attention.v_proj]


def gate_up_modules(layer: Any) -> list[Any]:
    """The modules that make gate and up, in this order, or the one that makes both."""
    mlp = layer.mlp
    return [mlp.gate_up_proj] if hasattr(mlp, "gate_up_proj") else [mlp.gate_proj, mlp.up_proj]


def activation_of(config: Any) -> str:
    """The name of the activation of the gate."""
    return str(getattr(config, "hidden_activation", None) or config.hidden_act)


def rotary_tables(text: Any, config: Any, length: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Cosines and sines [length, head size] of the rotary embedding, for each kind of layer.

    Raises:
        UnknownDecoderError: it turns a part of each head only.
    """
    rotary, some = text.rotary_emb, text.embed_tokens.weight[:1]
    positions = torch.arange(length, device=some.device)[None]
    by_kind = hasattr(rotary, "layer_types")
    tables = {}
    for kind in set(layer_kinds(config)):
        cosines, sines = rotary(some, positions, *([kind] if by_kind else []))
        if {cosines.shape[-1], sines.shape[-1]} != {text.layers[0].self_attn.head_dim}:
            raise UnknownDecoderError("its rotary embedding turns a part of a head only")
        tables[kind] = cosines[0].contiguous(), sines[0].contiguous()
    return tables


def layer_kinds(config: Any) -> list[str]:
    """The kind of attention of every layer."""
    return list(getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers)


def check_decoder(model: Any, sampling: Sampling) -> None:
    """Refuse what the fused step would compute wrongly.

    Raises:
        UnknownDecoderError: with every reason.
    """
    config = model.config.get_text_config()
    if config.model_type not in FAMILIES:
        raise UnknownDecoderError(f"{config.model_type} is none of {', '.join(FAMILIES)}")
    text, head, family = model.get_decoder(), model.get_output_embeddings(), FAMILIES[config.model_type]
    ropes = getattr(text.rotary_emb, "rope_type", None)
    size = text.layers[0].self_attn.head_dim
    attention = config._attn_implementation  # noqa: SLF001 - where transformers keeps it
    reasons = {
        f"its activation is {activation_of(config)}": activation_of(config) not in GELU,
        f"its rotary embedding is {ropes}": not set(ropes.values() if isinstance(ropes, dict) else [ropes])
        <= FIXED_ROPES,
        f"its heads have {size} numbers": size & (size - 1) or size < LEAST_HEAD,
        f"its attention is capped, which {attention} leaves out": attention != "eager"
        and family.read(config, "attn_logit_softcapping", None),
        **_unknown_fields(config, family),
        **_unknown_weights(text, family),
        "its layers are not plain matrices": any(
            type(m) is not torch.nn.Linear for layer in text.layers for m in _projections(layer)
        ),
        "its output head is no plain matrix": type(head) is not torch.nn.Linear or head.bias is not None,
        "accelerate moves its weights": hasattr(model, "_hf_hook"),
        f"top_k is not 1 to {MOST_CANDIDATES}": sampling.do_sample and not 0 < sampling.top_k <= MOST_CANDIDATES,
    }
    if found := [reason for reason, applies in reasons.items() if applies]:
        raise UnknownDecoderError("; ".join(found))


def _unknown_fields(config: Any, family: Family) -> dict[str, bool]:
    """Fields that the class of the configuration has, or another family here, and that this family does not know.

    They may hold what they hold by default: a field that a later release brings leaves earlier checkpoints as they are.
    """
    declared = _parameters(type(config)) - _parameters(PreTrainedConfig)
    unknown = declared.union(*(other.fields for other in FAMILIES.values())) - {*FIELDS.split()} - family.fields
    usual = type(config)()
    values = {name: (getattr(config, name, None), getattr(usual, name, None)) for name in sorted(unknown)}
    return {f"its {name} is {value}": value != default for name, (value, default) in values.items()}


def _parameters(kind: type) -> set[str]:
    return set(inspect.signature(kind).parameters)


def _unknown_weights(text: Any, family: Family) -> dict[str, bool]:
    """Weights that the step does not read, such as attention sinks of layers."""
    norms = {"self_attn.q_norm", "self_attn.k_norm", *family.norms} if family.query_key_norm else {*family.norms}
    names = {name for name, _ in text.named_parameters() if not name.startswith("layers.")}
    names -= {"embed_tokens.weight", "norm.weight"}
    for layer in text.layers:
        read = {id(parameter) for module in _projections(layer) for parameter in module.parameters()}
        others = {name for name, parameter in layer.named_parameters() if id(parameter) not in read}
        names |= {f"layers' {name}" for name in others - {f"{norm}.weight" for norm in norms}}
    return {f"its {name} is not known": True for name in sorted(names)}


def _projections(layer: Any) -> list[Any]:
    return [*qkv_modules(layer), layer.self_attn.o_proj, *gate_up_modules(layer), layer.mlp.down_proj]
