"""Where the weights of each role stand in the decoder of each model family, whole tensors and parts of fused ones.

Every layout follows the modeling code of transformers 5; the tests check each against the model's own computation. Axes
are named as `WeightLocation` says: `kv` the heads of keys and values, `query` the query heads that each of them serves,
`d` the dimensions of a head, `neuron` those of the MLP, `channel` those of the residual stream.
"""

from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any, Literal

from attrs import evolve

from runner.spec_targets import Component
from runner.target_axes import WeightLocation, slices_of

Role = Component | Literal["rest"]  # the rest: no group is made of it, but it has channels of the residual stream
InLayer = dict[Role, WeightLocation]
Roles = Mapping[Role, tuple[WeightLocation, ...]]
Sizes = Mapping[str, int]

Q, KV, OUT = "kv query d channel", "kv d channel", "channel kv query d"
UP, DOWN = "neuron channel", "channel neuron"

ATTENTION: InLayer = {
    "q": WeightLocation("self_attn.q_proj.weight", Q),
    "k": WeightLocation("self_attn.k_proj.weight", KV),
    "v": WeightLocation("self_attn.v_proj.weight", KV),
    "o": WeightLocation("self_attn.o_proj.weight", OUT),
}
MLP: InLayer = {
    "gate": WeightLocation("mlp.gate_proj.weight", UP),
    "up": WeightLocation("mlp.up_proj.weight", UP),
    "down": WeightLocation("mlp.down_proj.weight", DOWN),
}
DENSE_MLP: InLayer = {
    "up": WeightLocation("mlp.dense_h_to_4h.weight", UP),
    "down": WeightLocation("mlp.dense_4h_to_h.weight", DOWN),
}
BEFORE_BOTH = ("input_layernorm", "post_attention_layernorm")
AROUND_BOTH = (*BEFORE_BOTH, "pre_feedforward_layernorm", "post_feedforward_layernorm")
AFTER_BOTH = ("post_attention_layernorm", "post_feedforward_layernorm")
QUERY_KEY = ("self_attn.q_norm", "self_attn.k_norm")

# Decoders whose layers are named as Llama's are, with the normalisation layers in each.
LLAMA_LIKE = {
    "gemma": BEFORE_BOTH,
    "gemma2": AROUND_BOTH,
    "gemma3_text": (*QUERY_KEY, *AROUND_BOTH),
    "granite": BEFORE_BOTH,
    "llama": BEFORE_BOTH,
    "ministral": BEFORE_BOTH,
    "ministral3": BEFORE_BOTH,
    "mistral": BEFORE_BOTH,
    "olmo2": (*QUERY_KEY, *AFTER_BOTH),
    "olmo3": (*QUERY_KEY, *AFTER_BOTH),
    "qwen2": BEFORE_BOTH,
    "qwen3": (*QUERY_KEY, *BEFORE_BOTH),
    "seed_oss": BEFORE_BOTH,
    "smollm3": BEFORE_BOTH,
}


def _sizes(config: Any, **others: int) -> dict[str, int]:
    """The lengths of axes that most configurations give under the same names."""
    heads = config.num_attention_heads
    pairs = getattr(config, "num_key_value_heads", None) or heads
    sizes = {"kv": pairs, "query": heads // pairs, "channel": config.hidden_size, **others}
    sizes["d"] = getattr(config, "head_dim", None) or config.hidden_size // heads
    return sizes if "neuron" in sizes else sizes | {"neuron": config.intermediate_size}


def _stacked(
    layers: list[InLayer],
    sizes: Sizes,
    norms: tuple[str, ...] = BEFORE_BOTH,
    *,
    stack: str = "layers",
    embed: str = "embed_tokens",
    outer_norms: tuple[str, ...] = ("norm",),
    rest: Mapping[str, str] | None = None,
) -> Roles:
    """The roles of a whole decoder from those in each layer; `sizes` are lengths where a location has none of its own.

    `norms` stand in each layer, `outer_norms` and `rest`, with its axes, outside.
    """
    found: dict[Role, tuple[WeightLocation, ...]] = {"embed": (WeightLocation(f"{embed}.weight", "token channel"),)}
    for index, layer in enumerate(layers):
        for role, place in layer.items():
            found[role] = (*found.get(role, ()), evolve(place, name=f"{stack}.{index}.{place.name}"))
    inner = [f"{stack}.{index}.{norm}" for index in range(len(layers)) for norm in norms]
    found["norms"] = tuple(
        WeightLocation(f"{norm}.weight", "of_heads" if norm.endswith(QUERY_KEY) else "channel")
        for norm in (*inner, *outer_norms)
    )
    others = tuple(WeightLocation(name, axes) for name, axes in (rest or {}).items())
    found["rest"] = (*found.get("rest", ()), *others)
    return {
        role: tuple(evolve(place, lengths={**sizes, **place.lengths}) for place in places)
        for role, places in found.items()
    }


def _llama_like(config: Any) -> Roles:
    return _stacked([ATTENTION | MLP] * config.num_hidden_layers, _sizes(config), LLAMA_LIKE[config.model_type])


def _fused(name: str, parts: Mapping[Role, str], sizes: Sizes) -> InLayer:
    """The parts of a fused tensor, which follow one another along the axis in brackets."""
    slices = [slices_of(axes, sizes) for axes in parts.values()]
    return {
        role: WeightLocation(name, axes, sizes, before=end - count, behind=sum(slices) - end)
        for (role, axes), count, end in zip(parts.items(), slices, accumulate(slices), strict=True)
    }


def _phi3(config: Any) -> Roles:
    """Rows of all query heads, then key heads, then value heads; rows of the gate, then of up."""
    sizes = _sizes(config)
    qkv: dict[Role, str] = {"q": "[kv query] d channel", "k": "[kv] d channel", "v": "[kv] d channel"}
    layer = {
        **_fused("self_attn.qkv_proj.weight", qkv, sizes),
        "o": ATTENTION["o"],
        **_fused("mlp.gate_up_proj.weight", {"gate": "[] neuron channel", "up": "[] neuron channel"}, sizes),
        "down": MLP["down"],
    }
    return _stacked([layer] * config.num_hidden_layers, sizes)


def _gpt2(config: Any) -> Roles:
    """Stored transposed, [in, out]: each row of `c_attn` holds the columns of query, then key, then value."""
    sizes = _sizes(config, neuron=config.n_inner or 4 * config.hidden_size)
    qkv: dict[Role, str] = dict.fromkeys(("q", "k", "v"), "channel [] kv query d")
    layer = {
        **_fused("attn.c_attn.weight", qkv, sizes),
        "o": WeightLocation("attn.c_proj.weight", "kv query d channel"),
        "up": WeightLocation("mlp.c_fc.weight", "channel neuron"),
        "down": WeightLocation("mlp.c_proj.weight", "neuron channel"),
    }
    return _stacked(
        [layer] * config.num_hidden_layers,
        sizes,
        ("ln_1", "ln_2"),
        stack="h",
        embed="wte",
        outer_norms=("ln_f",),
        rest={"wpe.weight": "position channel"},
    )


HEAD_BY_HEAD: dict[Role, str] = dict.fromkeys(("q", "k", "v"), "kv query [] d channel")


def _gpt_neox(config: Any) -> Roles:
    """For each head the rows of query, key and value."""
    sizes = _sizes(config)
    fused = _fused("attention.query_key_value.weight", HEAD_BY_HEAD, sizes)
    layer = {**fused, "o": WeightLocation("attention.dense.weight", OUT), **DENSE_MLP}
    return _stacked([layer] * config.num_hidden_layers, sizes, embed="embed_in", outer_norms=("final_layer_norm",))


def _falcon(config: Any) -> Roles:
    """Three layouts: groups of query heads each with its key and value; all query heads with one; head by head."""
    heads, qkv = config.num_attention_heads, HEAD_BY_HEAD
    pairs = heads
    if config.new_decoder_architecture:
        pairs, qkv = config.num_kv_heads, {"q": "kv [query] d channel", "k": "kv [] d channel", "v": "kv [] d channel"}
    elif config.multi_query:
        pairs, qkv = 1, {"q": "[kv query] d channel", "k": "[kv] d channel", "v": "[kv] d channel"}
    sizes = _sizes(config, neuron=config.ffn_hidden_size) | {"kv": pairs, "query": heads // pairs}
    fused = _fused("self_attention.query_key_value.weight", qkv, sizes)
    layer = {**fused, "o": WeightLocation("self_attention.dense.weight", OUT), **DENSE_MLP}
    parallel_norms = config.num_ln_in_parallel_attn or (2 if config.new_decoder_architecture else 1)
    norms: tuple[str, ...] = BEFORE_BOTH
    if config.parallel_attn:
        norms = ("ln_attn", "ln_mlp") if parallel_norms == 2 else ("input_layernorm",)  # noqa: PLR2004 - as it is called
    layers = [layer] * config.num_hidden_layers
    return _stacked(layers, sizes, norms, stack="h", embed="word_embeddings", outer_norms=("ln_f",))


def _opt(config: Any) -> Roles:
    """Embeddings may be of another width than the residual stream, with a projection on either side."""
    layer = ATTENTION | {
        "o": WeightLocation("self_attn.out_proj.weight", OUT),
        "up": WeightLocation("fc1.weight", UP),
        "down": WeightLocation("fc2.weight", DOWN),
    }
    has_last = config.do_layer_norm_before and not config._remove_final_layer_norm  # noqa: SLF001 - a key of config.json
    norms = ("self_attn_layer_norm", "final_layer_norm") if config.layer_norm_elementwise_affine else ()
    outer = ("final_layer_norm",) if has_last and norms else ()
    rest = {"embed_positions.weight": "position channel"}
    narrow = config.word_embed_proj_dim != config.hidden_size
    if narrow:
        rest |= {"project_in.weight": "channel width", "project_out.weight": "width channel"}
    sizes = _sizes(config, neuron=config.ffn_dim)
    roles = _stacked([layer] * config.num_hidden_layers, sizes, norms, outer_norms=outer, rest=rest)
    if narrow:
        lengths = sizes | {"width": config.word_embed_proj_dim}
        roles = {**roles, "embed": tuple(evolve(p, axes="token width", lengths=lengths) for p in roles["embed"])}
    return roles


def _experts(sizes: Sizes) -> InLayer:
    """For each expert the rows of the gate, then of up."""
    rows: dict[Role, str] = dict.fromkeys(("gate", "up"), "expert [] neuron channel")
    return {
        **_fused("mlp.experts.gate_up_proj", rows, sizes),
        "down": WeightLocation("mlp.experts.down_proj", "expert channel neuron", sizes),
        "rest": WeightLocation("mlp.gate.weight", "expert channel", sizes),
    }


def _mixtral(config: Any) -> Roles:
    sizes = _sizes(config, expert=config.num_local_experts)
    return _stacked([ATTENTION | _experts(sizes)] * config.num_hidden_layers, sizes)


def _qwen3_moe(config: Any) -> Roles:
    """Experts as Mixtral has them, in the layers that are configured to have them."""
    sizes = _sizes(config)
    experts = _experts(sizes | {"expert": config.num_experts, "neuron": config.moe_intermediate_size})
    sparse = [
        layer not in config.mlp_only_layers and config.num_experts > 0 and (layer + 1) % config.decoder_sparse_step == 0
        for layer in range(config.num_hidden_layers)
    ]
    return _stacked([ATTENTION | (experts if s else MLP) for s in sparse], sizes, (*QUERY_KEY, *BEFORE_BOTH))


def _gpt_oss(config: Any) -> Roles:
    """Experts stored transposed, [in, out], the columns of gate and up taking turns."""
    sizes = _sizes(config, expert=config.num_local_experts)
    columns: dict[Role, str] = dict.fromkeys(("gate", "up"), "expert channel neuron []")
    layer = ATTENTION | {
        **_fused("mlp.experts.gate_up_proj", columns, sizes),
        "down": WeightLocation("mlp.experts.down_proj", "expert neuron channel"),
        "rest": WeightLocation("mlp.router.weight", "expert channel"),
    }
    return _stacked([layer] * config.num_hidden_layers, sizes)


FAMILIES: dict[str, Callable[[Any], Roles]] = {
    **dict.fromkeys(LLAMA_LIKE, _llama_like),
    "falcon": _falcon,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "gpt_oss": _gpt_oss,
    "mixtral": _mixtral,
    "opt": _opt,
    "phi3": _phi3,
    "qwen3_moe": _qwen3_moe,
}


def inexact(config: Any) -> dict[str, str]:
    """The kinds of units that cannot be taken out of a model exactly, and why."""
    if config.model_type == "opt" and not config.do_layer_norm_before:
        return {"layer": "this OPT normalises the residual stream itself in each layer, so that none can be passed by"}
    return {}
