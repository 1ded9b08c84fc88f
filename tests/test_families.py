"""Every family's roles are where its own modeling code has them; groups of one's own, layer ranges, tied embeddings."""

import importlib
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from runner.damage_methods import damage, keep_baseline, restore
from runner.errors import SpecError
from runner.spec_targets import Selection
from runner.target_families import FAMILIES
from runner.target_groups import is_tied, resolve_targets

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 50}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 24, "max_position_embeddings": 64}
LLAMA = ("self_attn.o_proj", "mlp.act_fn", "mlp.down_proj")
PHI3 = ("self_attn.o_proj", "mlp.activation_fn", "mlp.down_proj")
EXPERTS = ("self_attn.o_proj", "mlp.experts.act_fn", "mlp.experts")
GPT2 = ("attn.c_proj", "mlp.act", "mlp.c_proj")
GPT_NEOX = ("attention.dense", "mlp.act", "mlp.dense_4h_to_h")
FALCON = ("self_attention.dense", "mlp.act", "mlp.dense_4h_to_h")
OPT = ("self_attn.out_proj", "activation_fn", "fc2")
SPARSE = {"num_experts_per_tok": 2}
# Case: class of the configuration, its values, the modules in a layer behind o, at the activation, and behind down.
CASES: dict[str, tuple[str, dict[str, Any], tuple[str, str, str]]] = {
    "llama": ("LlamaConfig", GROUPED, LLAMA),
    "mistral": ("MistralConfig", GROUPED, LLAMA),
    "ministral": ("MinistralConfig", GROUPED, LLAMA),
    "ministral3": ("Ministral3Config", GROUPED, LLAMA),
    "gemma": ("GemmaConfig", GROUPED, LLAMA),
    "gemma2": ("Gemma2Config", GROUPED, LLAMA),
    "gemma3_text": ("Gemma3TextConfig", GROUPED, LLAMA),
    "granite": ("GraniteConfig", GROUPED, LLAMA),
    "olmo2": ("Olmo2Config", GROUPED, LLAMA),
    "olmo3": ("Olmo3Config", GROUPED, LLAMA),
    "qwen2": ("Qwen2Config", GROUPED, LLAMA),
    "qwen3": ("Qwen3Config", GROUPED, LLAMA),
    "seed_oss": ("SeedOssConfig", GROUPED, LLAMA),
    "smollm3": ("SmolLM3Config", GROUPED, LLAMA),
    "phi3": ("Phi3Config", GROUPED, PHI3),
    "gpt2": ("GPT2Config", SIZES | {"n_inner": 24}, GPT2),
    "gpt_neox": ("GPTNeoXConfig", SIZES | {"intermediate_size": 24}, GPT_NEOX),
    "falcon": ("FalconConfig", SIZES | {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True}, FALCON),
    "falcon one norm": (
        "FalconConfig",
        SIZES | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
        FALCON,
    ),
    "falcon multi-query": ("FalconConfig", SIZES | {"multi_query": True}, FALCON),
    "falcon old": ("FalconConfig", SIZES | {"multi_query": False, "parallel_attn": False}, FALCON),
    "opt": ("OPTConfig", SIZES | {"ffn_dim": 24, "word_embed_proj_dim": 16}, OPT),
    "opt after": ("OPTConfig", SIZES | {"ffn_dim": 24, "do_layer_norm_before": False}, OPT),
    "mixtral": ("MixtralConfig", GROUPED | SPARSE | {"num_local_experts": 3}, EXPERTS),
    "qwen3_moe": ("Qwen3MoeConfig", GROUPED | SPARSE | {"num_experts": 3, "moe_intermediate_size": 12}, EXPERTS),
    "qwen3_moe dense": (
        "Qwen3MoeConfig",
        GROUPED | SPARSE | {"num_experts": 3, "mlp_only_layers": [1], "num_hidden_layers": 4, "decoder_sparse_step": 2},
        ("self_attn.o_proj", "", ""),
    ),
    "gpt_oss": ("GptOssConfig", GROUPED | SPARSE | {"num_local_experts": 3}, ("self_attn.o_proj", "", "mlp.experts")),
}
GATED = LLAMA, PHI3, EXPERTS
ROLES = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "mlp_gate": "", "mlp_up": "", "mlp_down": ""}


def build(case: str) -> torch.nn.Module:
    """A small random model without biases, so that a projection of zeros gives zeros."""
    name, sizes, _ = CASES[case]
    config = getattr(transformers, name)(**sizes, **TOKENS)
    config._experts_implementation = "eager"
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model.requires_grad_(requires_grad=False)
    for key, weight in model.named_parameters():
        weight.zero_() if key.endswith("bias") else weight.normal_(0.5 if weight.ndim == 1 else 0.0, 0.3)
    return model


def targets_of(model: torch.nn.Module, group: str, **options: Any) -> list[Any]:
    """The targets of a group."""
    return list(resolve_targets(model, Selection(group=group, **options)))


def ablate(model: torch.nn.Module, group: str) -> Any:
    """Zero a group; what is given back restores it."""
    targets = targets_of(model, group)
    baseline = keep_baseline(targets)
    damage(targets, baseline, "ablation", 1.0, 1)
    return lambda: restore(targets, baseline)


class Seen(dict[str, list[Tensor]]):
    """What the layers worked with, by role, in ascending layers."""

    def keep(self, **tensors: Tensor) -> None:
        """Note what one layer worked with."""
        for key, tensor in tensors.items():
            self.setdefault(key, []).append(tensor.clone())


def watch_attention(modeling: Any, seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Note query, key and value where the modeling code has them apart."""

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Any:
        seen.keep(q=query, k=key, v=value)
        return original(module, query, key, value, *rest, **options)

    def split(attention: Any, fused: Tensor) -> Any:
        parts = original(attention, fused)
        seen.keep(**dict(zip("qkv", parts, strict=True)))
        return parts

    for owner, name, watched in (
        (modeling, "eager_attention_forward", attend),
        (getattr(modeling, "FalconAttention", None), "_split_heads", split),
    ):
        if hasattr(owner, name):
            original = getattr(owner, name)
            monkeypatch.setattr(owner, name, watched)


def watch_layer(layer: torch.nn.Module, case: str, seen: Seen) -> None:
    """Note what leaves o, what enters the activation, what enters and leaves down."""
    after_o, activation, down = (layer.get_submodule(path) if path else None for path in CASES[case][2])
    after_o.register_forward_hook(lambda _, __, out: seen.keep(o=out))
    down.register_forward_hook(lambda _, __, out: seen.keep(down=out))
    if activation is not None:
        activation.register_forward_hook(lambda _, given, __: seen.keep(activation=given[0]))
    if "experts" not in CASES[case][2][2]:
        down.register_forward_hook(lambda _, given, __: seen.keep(inner=given[0]))


@pytest.fixture
def spy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A case, its model, and a function that runs it and says what its attention and its MLPs worked with."""
    case, seen = request.param, Seen()
    model = build(case)
    modeling = importlib.import_module(type(model).__module__)
    watch_attention(modeling, seen, monkeypatch)
    if case == "gpt_oss":
        gate = modeling.GptOssExperts._apply_gate
        monkeypatch.setattr(
            modeling.GptOssExperts, "_apply_gate", lambda self, x: seen.keep(inner=(out := gate(self, x))) or out
        )
    decoder = model.get_decoder()
    for layer in decoder.layers if hasattr(decoder, "layers") else decoder.h:
        watch_layer(layer, case, seen)

    def run() -> dict[str, list[Tensor]]:
        seen.clear()
        with torch.no_grad():
            model(torch.arange(3, 13)[None])
        return dict(seen)

    return case, model, run


def zeroed(case: str, group: str) -> set[str]:
    """What is zero in every layer when a group is."""
    if group not in {"mlp_gate", "mlp_up", "mlp_down"}:
        return {ROLES[group]}
    if case == "gpt_oss":  # up is raised by one
        return {"mlp_gate": {"inner", "down"}, "mlp_up": set(), "mlp_down": {"down"}}[group]
    first = {"activation"} if group == "mlp_gate" or CASES[case][2] not in GATED else set()
    return {"down"} if group == "mlp_down" else {"inner", "down"} | first


@pytest.mark.slow
@pytest.mark.parametrize("spy", [case for case in CASES if case != "qwen3_moe dense"], indirect=True)
def test_each_projection_is_what_the_model_computes_with(spy: Any) -> None:
    """Zeroing a projection zeroes its output in every layer; what the first layer computes beside it keeps its bits."""
    case, model, run = spy
    before = run()
    order = ["q", "k", "v", "o", "activation", "inner", "down"]
    assert all(tensor.any() for tensors in before.values() for tensor in tensors)
    has_gate = CASES[case][2] in GATED or case == "gpt_oss"
    for group in ROLES.keys() - (set() if has_gate else {"mlp_gate"}):
        undo = ablate(model, group)
        after, zero = run(), zeroed(case, group)
        undo()
        for key in zero & before.keys():
            assert not any(tensor.any() for tensor in after[key]), (group, key)
        role = {"mlp_gate": "activation", "mlp_up": "inner", "mlp_down": "down"}.get(group, ROLES[group])
        first = min((order.index(key) for key in zero), default=order.index("activation"))
        beside = set("qkv") - zero if role in "qkv" else set(order[:first])
        for key in beside & before.keys():
            assert torch.equal(after[key][0], before[key][0]), (group, key)
    assert all(torch.equal(a, b) for key, tensors in run().items() for a, b in zip(tensors, before[key], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_groups_partition_the_weights_that_they_name(case: str) -> None:
    """Projections share no weight and make up the groups of several; damage hits these weights and no other."""
    model = build(case)
    named = {id(weight): name for name, weight in model.named_parameters()}
    before = {name: weight.clone() for name, weight in model.named_parameters()}

    def changed(group: str, method: Any, level: float) -> dict[str, Tensor]:
        targets = targets_of(model, group)
        baseline = keep_baseline(targets)
        damage(targets, baseline, method, level, 1)
        found = {name: weight != before[name] for name, weight in model.named_parameters()}
        restore(targets, baseline)
        assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
        found = {name: mask for name, mask in found.items() if mask.any()}
        if level:
            assert found.keys() == {named[id(target.weight)] for target in targets}
            assert sum(int(mask.sum()) for mask in found.values()) == sum(target.count for target in targets), group
        return found

    single = [group for group in ROLES if group != "mlp_gate" or "mlp_gate" in gated(case)]
    masks = {group: changed(group, "ablation", 1.0) for group in [*single, "attn_all", "mlp_only", "attn_only"]}
    for whole, parts in (("attn_all", single[:4]), ("mlp_only", single[4:]), ("attn_only", ["v_proj"])):
        for name, mask in masks[whole].items():
            assert torch.equal(sum(masks[part][name].int() for part in parts if name in masks[part]), mask.int())
        assert {name for part in parts for name in masks[part]} == masks[whole].keys()
    for group in single:
        assert changed(group, "mult_gauss", 0.0) == {}
        gauss = changed(group, "mult_gauss", 0.5)
        assert all(torch.equal(gauss[name], mask) for name, mask in masks[group].items())


def gated(case: str) -> set[str]:
    """`mlp_gate` where the family has one."""
    return {"mlp_gate"} if CASES[case][2] in GATED or "moe" in case or case == "gpt_oss" else set()


@pytest.mark.parametrize("case", CASES)
def test_whole_tensor_groups_and_refusals(case: str) -> None:
    """Embeddings, head, norms and everything are the model's own; a gate or a vision tower it lacks is refused."""
    model = build(case)
    norms = [m for m in model.get_decoder().modules() if "Norm" in type(m).__name__]
    head = [] if is_tied(model) else list(model.get_output_embeddings().parameters())
    wanted = {
        "embed_only": [model.get_input_embeddings().weight],
        "lm_head": [model.get_output_embeddings().weight],
        "norms": [norm.weight for norm in norms if getattr(norm, "weight", None) is not None],
        "all": [*model.get_decoder().parameters(), *head],
    }
    for group, weights in wanted.items():
        targets = targets_of(model, group)
        assert sorted(id(t.weight) for t in targets) == sorted(map(id, weights)), group
        assert all(target.units is None for target in targets)
    for group, refused in (("reference_attn", True), ("mlp_gate", not gated(case))):
        if refused:
            with pytest.raises(SpecError, match=f"group {group}: "):
                targets_of(model, group)
    count = len(targets_of(model, "v_proj"))
    assert [t.name for t in targets_of(model, "v_proj", layers="1-")] == [
        t.name for t in targets_of(model, "v_proj")[1:]
    ]
    with pytest.raises(SpecError, match=rf"sweeps.layers: '0-{count}' reaches beyond the {count} layers"):
        targets_of(model, "v_proj", layers=f"0-{count}")


def test_every_family_of_the_table_has_a_case() -> None:
    """A family without a test is a guess."""
    assert {case.split()[0] for case in CASES} == FAMILIES.keys()
