"""Where the weights of each role stand in the decoder of each model family, whole tensors and parts of fused ones.

Every layout follows the modeling code of transformers 5; the tests check each against the model's own computation.
"""

from collections.abc import Callable, Mapping
from typing import Any

from attrs import evolve, frozen
from torch import Tensor

from runner.errors import SpecError
from runner.spec_targets import Component
from runner.target_tensor import Target, UnitSet


@frozen
class WeightLocation:
    """A tensor, or a part of it: slices `start` to `stop` of the `size` equal ones in each of `repeats` stretches.

    The weights of a fused tensor repeat along its flat storage, once per head, expert or row, as their layout says.
    """

    name: str
    repeats: int = 1
    size: int = 1
    start: int = 0
    stop: int = 1

    def target(self, weight: Tensor) -> Target:
        """What of this tensor is damaged.

        Raises:
            SpecError: the tensor cannot be divided so; it is not what the configuration says.
        """
        if self.stop - self.start == self.size:
            return Target(self.name, weight)
        inner, rest = divmod(weight.numel(), self.repeats * self.size)
        if rest:
            raise SpecError(
                f"{self.name} {list(weight.shape)} does not fall into {self.repeats} x {self.size} equal parts, "
                "as the model's configuration says"
            )
        return Target(self.name, weight, UnitSet.of(self.size, inner, range(self.start, self.stop)))


InLayer = dict[Component, WeightLocation]
Roles = Mapping[Component, tuple[WeightLocation, ...]]

ATTENTION: InLayer = {
    "q": WeightLocation("self_attn.q_proj.weight"),
    "k": WeightLocation("self_attn.k_proj.weight"),
    "v": WeightLocation("self_attn.v_proj.weight"),
    "o": WeightLocation("self_attn.o_proj.weight"),
}
MLP: InLayer = {
    "gate": WeightLocation("mlp.gate_proj.weight"),
    "up": WeightLocation("mlp.up_proj.weight"),
    "down": WeightLocation("mlp.down_proj.weight"),
}
DENSE_MLP: InLayer = {
    "up": WeightLocation("mlp.dense_h_to_4h.weight"),
    "down": WeightLocation("mlp.dense_4h_to_h.weight"),
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


def _stacked(
    layers: list[InLayer],
    norms: tuple[str, ...] = BEFORE_BOTH,
    *,
    stack: str = "layers",
    embed: str = "embed_tokens",
    outer_norms: tuple[str, ...] = ("norm",),
) -> Roles:
    """The roles of a whole decoder from those in each layer; `norms` stand in a layer, `outer_norms` outside."""
    found: dict[Component, tuple[WeightLocation, ...]] = {"embed": (WeightLocation(f"{embed}.weight"),)}
    for index, layer in enumerate(layers):
        for role, place in layer.items():
            found[role] = (*found.get(role, ()), evolve(place, name=f"{stack}.{index}.{place.name}"))
    inner = [f"{stack}.{index}.{norm}" for index in range(len(layers)) for norm in norms]
    found["norms"] = tuple(WeightLocation(f"{norm}.weight") for norm in (*inner, *outer_norms))
    return found


def _llama_like(config: Any) -> Roles:
    return _stacked([ATTENTION | MLP] * config.num_hidden_layers, LLAMA_LIKE[config.model_type])


def _fused(name: str, sizes: Mapping[Component, int], repeats: int = 1) -> InLayer:
    """The parts of a fused tensor that follow one another in each of its stretches, each so many slices long."""
    places: InLayer = {}
    start = 0
    for role, size in sizes.items():
        places[role] = WeightLocation(name, repeats, sum(sizes.values()), start, start + size)
        start += size
    return places


def _phi3(config: Any) -> Roles:
    """Rows of all query heads, then key heads, then value heads; rows of the gate, then of up."""
    pairs = config.num_key_value_heads
    layer = {
        **_fused("self_attn.qkv_proj.weight", {"q": config.num_attention_heads, "k": pairs, "v": pairs}),
        "o": ATTENTION["o"],
        **_fused("mlp.gate_up_proj.weight", {"gate": 1, "up": 1}),
        "down": MLP["down"],
    }
    return _stacked([layer] * config.num_hidden_layers)


def _gpt2(config: Any) -> Roles:
    """Stored transposed, [in, out]: each row of `c_attn` holds the columns of query, then key, then value."""
    layer = {
        **_fused("attn.c_attn.weight", {"q": 1, "k": 1, "v": 1}, repeats=config.hidden_size),
        "o": WeightLocation("attn.c_proj.weight"),
        "up": WeightLocation("mlp.c_fc.weight"),
        "down": WeightLocation("mlp.c_proj.weight"),
    }
    layers = [layer] * config.num_hidden_layers
    return _stacked(layers, ("ln_1", "ln_2"), stack="h", embed="wte", outer_norms=("ln_f",))


def _gpt_neox(config: Any) -> Roles:
    """For each head the rows of query, key and value."""
    fused = _fused("attention.query_key_value.weight", {"q": 1, "k": 1, "v": 1}, config.num_attention_heads)
    layer = {**fused, "o": WeightLocation("attention.dense.weight"), **DENSE_MLP}
    return _stacked([layer] * config.num_hidden_layers, embed="embed_in", outer_norms=("final_layer_norm",))


def _falcon(config: Any) -> Roles:
    """Three layouts: groups of query heads each with its key and value; all query heads with one; head by head."""
    heads, name = config.num_attention_heads, "self_attention.query_key_value.weight"
    if config.new_decoder_architecture:
        fused = _fused(name, {"q": heads // config.num_kv_heads, "k": 1, "v": 1}, config.num_kv_heads)
    elif config.multi_query:
        fused = _fused(name, {"q": heads, "k": 1, "v": 1})
    else:
        fused = _fused(name, {"q": 1, "k": 1, "v": 1}, heads)
    layer = {**fused, "o": WeightLocation("self_attention.dense.weight"), **DENSE_MLP}
    parallel_norms = config.num_ln_in_parallel_attn or (2 if config.new_decoder_architecture else 1)
    norms: tuple[str, ...] = BEFORE_BOTH
    if config.parallel_attn:
        norms = ("ln_attn", "ln_mlp") if parallel_norms == 2 else ("input_layernorm",)  # noqa: PLR2004 - as it is called
    layers = [layer] * config.num_hidden_layers
    return _stacked(layers, norms, stack="h", embed="word_embeddings", outer_norms=("ln_f",))


def _opt(config: Any) -> Roles:
    layer = ATTENTION | {
        "o": WeightLocation("self_attn.out_proj.weight"),
        "up": WeightLocation("fc1.weight"),
        "down": WeightLocation("fc2.weight"),
    }
    has_last = config.do_layer_norm_before and not config._remove_final_layer_norm  # noqa: SLF001 - a key of config.json
    norms = ("self_attn_layer_norm", "final_layer_norm") if config.layer_norm_elementwise_affine else ()
    outer = ("final_layer_norm",) if has_last and norms else ()
    return _stacked([layer] * config.num_hidden_layers, norms, outer_norms=outer)


EXPERTS: InLayer = {"down": WeightLocation("mlp.experts.down_proj")}


def _mixtral(config: Any) -> Roles:
    """For each expert the rows of the gate, then of up."""
    experts = _fused("mlp.experts.gate_up_proj", {"gate": 1, "up": 1}, config.num_local_experts)
    return _stacked([ATTENTION | experts | EXPERTS] * config.num_hidden_layers)


def _qwen3_moe(config: Any) -> Roles:
    """Experts as Mixtral has them, in the layers that are configured to have them."""
    experts = _fused("mlp.experts.gate_up_proj", {"gate": 1, "up": 1}, config.num_experts)
    sparse = [
        layer not in config.mlp_only_layers and config.num_experts > 0 and (layer + 1) % config.decoder_sparse_step == 0
        for layer in range(config.num_hidden_layers)
    ]
    return _stacked([ATTENTION | (experts | EXPERTS if s else MLP) for s in sparse], (*QUERY_KEY, *BEFORE_BOTH))


def _gpt_oss(config: Any) -> Roles:
    """Experts stored transposed, [in, out], the columns of gate and up taking turns."""
    pairs = config.num_local_experts * config.hidden_size * config.intermediate_size
    experts = _fused("mlp.experts.gate_up_proj", {"gate": 1, "up": 1}, pairs)
    return _stacked([ATTENTION | experts | EXPERTS] * config.num_hidden_layers)


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
