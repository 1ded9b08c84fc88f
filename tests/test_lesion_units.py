"""Neurons, heads, channels, experts and layers of every family: what is ablated no longer matters to the model."""

import importlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from test_families import CASES, Seen, build, gated, targets_of, watch_attention
from torch import Tensor

from runner.damage_methods import damage, keep_baseline, restore
from runner.decode_packing import pack_projections
from runner.errors import SpecError
from runner.spec_choice import UnitKind
from runner.spec_targets import Group, Selection
from runner.target_axes import WeightLocation, slices_of, unit_set
from runner.target_groups import resolve_targets, untie
from runner.target_units import find_units, masks_of

KEY = "sweeps.0.unit"
SPARSE = [case for case in CASES if case.startswith(("mixtral", "qwen3_moe", "gpt_oss"))]
READERS = (
    "q_proj", "k_proj", "v_proj", "qkv_proj", "c_attn", "query_key_value", "gate_proj", "up_proj", "gate_up_proj",
    "c_fc", "dense_h_to_4h", "fc1", "project_out",
)  # fmt: skip
LAYER = 2  # what is ablated stands here; the case with dense and sparse layers has its experts in layer 3


@cache
def model_of(case: str) -> Any:
    """A small random model with biases; every test leaves it as it was."""
    model = build(case)
    generator = torch.Generator().manual_seed(5)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return model


def layer_of(case: str) -> int:
    """The layer in which a case is damaged."""
    return 3 if case == "qwen3_moe dense" else LAYER


def layers_of(model: Any) -> Any:
    """The modules of the layers."""
    decoder = model.get_decoder()
    return decoder.layers if hasattr(decoder, "layers") else decoder.h


def logits_of(model: Any) -> Tensor:
    """What the model says to ten tokens."""
    with torch.no_grad():
        return model(torch.arange(3, 13)[None]).logits


@contextmanager
def ablated(model: Any, kind: UnitKind, layer: int, *numbers: int, group: str | Group = "all") -> Iterator[None]:
    """The model without the units of these numbers in a layer (-1: channels)."""
    selection = Selection(group=group) if isinstance(group, str) else Selection(group="mine", definition=group)
    targets, units = find_units(model, resolve_targets(model, selection), kind, KEY)
    selected = torch.zeros(units.total, dtype=torch.bool)
    selected[units.slices[layer]][list(numbers)] = True
    assert selected.sum() == len(numbers)
    baseline = keep_baseline(targets)
    damage(targets, baseline, "ablation", 1.0, 1, chosen=masks_of(units, selected))
    try:
        yield
    finally:
        restore(targets, baseline)


@contextmanager
def overwriting(modules: Mapping[torch.nn.Module, Any]) -> Iterator[None]:
    """Chance instead of what enters these modules, at the places of the last axis that are given."""
    generator = torch.Generator().manual_seed(9)

    def overwrite(module: torch.nn.Module, given: Any, named: dict[str, Any]) -> Any:
        entering = given[0].clone() if given else named["hidden_states"].clone()
        part = entering[..., modules[module]]
        entering[..., modules[module]] = torch.randn(part.shape, generator=generator) * 7
        return ((entering, *given[1:]), named) if given else ((), {**named, "hidden_states": entering})

    handles = [module.register_forward_pre_hook(overwrite, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def experts_in_use(model: Any, experts: torch.nn.Module) -> list[int]:
    """Those that some token is sent to, ascending: the order in which they are computed."""
    sent: list[Tensor] = []
    handle = experts.register_forward_pre_hook(lambda _, given: sent.append(given[1]))
    logits_of(model)
    handle.remove()
    return sorted(set(sent[0].flatten().tolist()))


@contextmanager
def forcing(model: Any, experts: Any, expert: int, neurons: Any) -> Iterator[None]:
    """Chance instead of the activation of some neurons of an expert that is in use."""
    turn, calls = experts_in_use(model, experts).index(expert), itertools.count()
    name = "_apply_gate" if "GptOss" in type(experts).__name__ else "act_fn"
    original = getattr(experts, name)

    def activate(entering: Tensor) -> Tensor:
        found = original(entering).clone()
        if next(calls) == turn:
            found[..., neurons] = torch.randn(found[..., neurons].shape) * 7
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(experts._modules, name, raising=False)
        patch.setitem(experts.__dict__, name, activate)
        yield
    assert next(calls) > turn


def head_columns(model: Any, heads: range) -> list[int]:
    """The columns of the output projection that read these query heads."""
    config = model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return [head * size + place for head in heads for place in range(size)]


def seen_heads(model: Any, patch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Query, key and value of the layer as the attention has them: [batch, heads, ...], or [batch, ..., heads, d]."""
    seen = Seen()
    with patch.context() as inner:
        watch_attention(importlib.import_module(type(model).__module__), seen, inner)
        logits_of(model)
    found = {role: tensors for role, tensors in seen.items() if role in "qkv"}
    split = "Falcon" in type(model).__name__
    return {
        role: torch.stack(tensors).transpose(2, 3) if split else torch.stack(tensors) for role, tensors in found.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["head", "kv_head"])
def test_an_ablated_head_is_gone(case: str, kind: UnitKind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its query (key, value) is zero in its layer and nowhere else, and nothing reads what it would give."""
    model, layer = model_of(case), layer_of(case)
    before = seen_heads(model, monkeypatch)
    served = 2 if kind == "kv_head" and before["q"].shape[2] > before["k"].shape[2] else 1
    if kind == "kv_head" and case.startswith("falcon"):
        served = {"falcon multi-query": 4, "falcon old": 1}.get(case, 2)
    number = 0 if case == "falcon multi-query" and kind == "kv_head" else 1
    queries = range(number * served, (number + 1) * served)
    output = layers_of(model)[layer].get_submodule(CASES[case][2][0])
    reads = {output: head_columns(model, queries)}
    intact = logits_of(model)
    with ablated(model, kind, layer, number, group="attn_all"):
        after = seen_heads(model, monkeypatch)
        for role in "q" if kind == "head" else "qkv":
            heads = set(queries) if after[role].shape[2] == before["q"].shape[2] else {number}
            for head in range(after[role].shape[2]):
                zero = not after[role][layer, :, head].any()
                assert zero is (head in heads), (role, head)
            assert torch.equal(after[role][:layer], before[role][:layer])
        expected = logits_of(model)
        assert not torch.equal(expected, intact)
        with overwriting(reads):
            assert torch.equal(logits_of(model), expected)
    assert torch.equal(logits_of(model), intact)
    with overwriting(reads):
        assert not torch.equal(logits_of(model), intact)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_what_an_ablated_neuron_does_is_without_effect(case: str) -> None:
    """Whatever its activation is forced to, the logits are the same; and by its rows alone its activation is zero."""
    model, layer, neurons = model_of(case), layer_of(case), [5, 6, 7, 8]
    intact, first = logits_of(model), 0
    force: Callable[[], AbstractContextManager[None]] = partial(
        overwriting, {layers_of(model)[layer].get_submodule(CASES[case][2][2] or "mlp"): neurons}
    )
    if case in SPARSE:
        experts = layers_of(model)[layer].mlp.experts
        expert = experts_in_use(model, experts)[-1]
        first = expert * (experts.down_proj.numel() // 32 // 3)
        force = partial(forcing, model, experts, expert, neurons)
    numbers = [first + neuron for neuron in neurons]
    with ablated(model, "neuron", layer, *numbers, group="mlp_only"):
        expected = logits_of(model)
        assert not torch.equal(expected, intact)
        with force():
            assert torch.equal(logits_of(model), expected)
    with force():
        assert not torch.equal(logits_of(model), intact)
    rows = Group(include=("mlp_up", "mlp_gate") if "mlp_gate" in gated(case) else ("mlp_up",))
    with ablated(model, "neuron", layer, *numbers, group=rows):
        assert torch.equal(logits_of(model), expected)
    assert torch.equal(logits_of(model), intact)


@pytest.mark.parametrize("case", SPARSE)
def test_an_ablated_expert_contributes_nothing(case: str) -> None:
    """Tokens sent to it alone get zeros, whatever its neurons do; those sent to others get what they got."""
    model, layer = model_of(case), layer_of(case)
    experts = layers_of(model)[layer].mlp.experts
    expert = experts_in_use(model, experts)[-1]
    entering = torch.randn(6, 32, generator=torch.Generator().manual_seed(1))

    def sent_to(expert: int) -> Tensor:
        weights = torch.ones(6, 1)
        with torch.no_grad():
            return experts(entering, torch.full((6, 1), expert), weights)

    before = [sent_to(expert) for expert in range(3)]
    assert all(found.any(dim=-1).all() for found in before)
    with ablated(model, "expert", layer, expert, group="mlp_only"):
        for number, kept in enumerate(before):
            assert torch.equal(sent_to(number), torch.zeros_like(kept) if number == expert else kept)
        expected = logits_of(model)
        with forcing(model, experts, expert, slice(None)):
            assert torch.equal(logits_of(model), expected)
    with forcing(model, experts, expert, slice(None)):
        assert not torch.equal(logits_of(model), expected)


@pytest.mark.parametrize("case", [case for case in CASES if case != "opt after"])
def test_the_residual_stream_passes_by_a_skipped_layer(case: str) -> None:
    """What enters it leaves it; what enters and leaves the layers beside it differs."""
    model, layer = model_of(case), layer_of(case)
    kept: dict[int, bool] = {}

    def compare(module: torch.nn.Module, given: Any, named: dict[str, Any], left: Any) -> None:
        entering = given[0] if given else named["hidden_states"]
        leaving = left[0] if isinstance(left, tuple) else left
        kept[list(layers_of(model)).index(module)] = torch.equal(entering, leaving)

    handles = [module.register_forward_hook(compare, with_kwargs=True) for module in layers_of(model)]
    with ablated(model, "layer", layer, 0):
        logits_of(model)
    for handle in handles:
        handle.remove()
    assert kept == {index: index == layer for index in range(len(layers_of(model)))}


def test_a_layer_that_cannot_be_skipped_is_refused() -> None:
    """OPT-350m normalises the residual stream itself; other OPT do not."""
    model = model_of("opt after")
    with pytest.raises(SpecError, match=rf"^{KEY}: this OPT normalises the residual stream itself"):
        find_units(model, targets_of(model, "all"), "layer", KEY)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_an_ablated_channel_is_neither_written_nor_read(case: str) -> None:
    """It is zero wherever the stream can be seen, and chance in what the matrices read of it changes nothing."""
    model, channels = model_of(case), [3, 17]
    zeros: list[bool] = []
    handles = [
        module.register_forward_pre_hook(
            lambda _, given, named: zeros.append(
                not (given[0] if given else named["hidden_states"])[..., channels].any()
            ),
            with_kwargs=True,
        )
        for module in layers_of(model)
    ]
    sparse = [module.mlp for module in layers_of(model) if hasattr(getattr(module, "mlp", None), "experts")]
    matrices = [module for name, module in model.named_modules() if name.endswith(READERS)]
    head = [] if any("project_out" in name for name, _ in model.named_modules()) else [model.get_output_embeddings()]
    readers = dict.fromkeys([*matrices, *sparse, *head], channels)
    intact = logits_of(model)
    assert zeros == [False] * len(zeros)
    with overwriting(readers):
        assert not torch.equal(logits_of(model), intact)
    with ablated(model, "channel", -1, *channels):
        zeros.clear()
        expected = logits_of(model)
        assert zeros == [True] * len(layers_of(model))
        with overwriting(readers):
            assert torch.equal(logits_of(model), expected)
    for handle in handles:
        handle.remove()


def test_parts_of_a_fused_tensor_that_the_group_has_not_stay_whole() -> None:
    """Of Phi-3's query and value, without the key, the second kv_head: rows counted by hand."""
    model = model_of("phi3")
    group = Group(include=("q_proj", "v_proj"))
    targets, units = find_units(
        model, resolve_targets(model, Selection(group="mine", definition=group)), "kv_head", KEY
    )
    assert units.counts == {0: 2, 1: 2, 2: 2}
    selected = torch.zeros(6, dtype=torch.bool)
    selected[3] = True  # the second of layer 1
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    baseline = keep_baseline(targets)
    damage(targets, baseline, "ablation", 1.0, 1, chosen=masks_of(units, selected))
    for name, weight in model.named_parameters():
        expected = before[name].clone()
        if name == "model.layers.1.self_attn.qkv_proj.weight":
            expected[32:64] = 0  # query heads 2 and 3 of four, 16 rows each
            expected[64 + 32 + 16 :] = 0  # behind two keys and a value
        assert torch.equal(weight, expected), name
    restore(targets, baseline)


def test_biases_come_along_with_their_matrix() -> None:
    """The bias of fc1 with neurons of `mlp_only`, that of fc2 with channels and layers, though the group lacks both."""
    model = model_of("opt")
    found: dict[Any, list[str]] = {
        kind: [target.name for target in find_units(model, targets_of(model, "mlp_only", layers="1"), kind, KEY)[0]]
        for kind in ("neuron", "channel", "layer")
    }
    matrices = ["layers.1.fc1.weight", "layers.1.fc2.weight"]
    assert found["neuron"] == [matrices[0], "layers.1.fc1.bias", matrices[1]]
    assert found["channel"] == [*matrices, "layers.1.fc2.bias"]
    assert found["layer"] == [matrices[1], "layers.1.fc2.bias"]


@pytest.mark.parametrize("kind", ["head", "kv_head", "neuron"])
def test_packed_projections_lose_the_same_units(kind: UnitKind) -> None:
    """Where weights are views of one buffer, as on CUDA: bit for bit what separate weights become."""

    def damaged(*, packed: bool) -> dict[str, Tensor]:
        model = build("qwen2")
        model.get_parameter("model.layers.1.self_attn.q_proj.bias").fill_(0.5)
        if packed:
            pack_projections(model)
            first, second = (model.get_submodule(f"model.layers.1.self_attn.{name}_proj").weight for name in "qk")
            assert second.data_ptr() == first.data_ptr() + first.nbytes
        before = {name: weight.clone() for name, weight in model.named_parameters()}
        with ablated(model, kind, 1, 1):
            found = {name: weight.clone() for name, weight in model.named_parameters()}
        assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
        return found

    apart, together = damaged(packed=False), damaged(packed=True)
    assert all(torch.equal(weight, together[name]) for name, weight in apart.items())
    bias = apart["model.layers.1.self_attn.q_proj.bias"]
    zero = {"head": slice(16, 32), "kv_head": slice(32, 64), "neuron": slice(0)}[kind]
    assert [place for place in range(64) if bias[place] == 0] == list(range(64))[zero]


def test_both_copies_of_tied_embeddings_have_channels() -> None:
    """Once they are untied, under one name as their random numbers; a head of its own has them as well."""
    model = build("gemma3_text")
    untie(model)
    targets, units = find_units(model, targets_of(model, "embed_only"), "channel", KEY)
    assert [target.name for target in targets] == ["embed_tokens.weight"] * 2
    assert targets[0].weight is model.get_input_embeddings().weight
    assert targets[1].weight is model.get_output_embeddings().weight
    assert [ids.tolist() for ids in units.ids] == [list(range(32))] * 2
    alone, _ = find_units(model_of("llama"), targets_of(model_of("llama"), "lm_head"), "channel", KEY)
    assert [target.name for target in alone] == ["lm_head.weight"]


def test_groups_without_such_units_are_refused() -> None:
    """With the kinds of units that they have; a head asked of values leads to the kv_head."""
    model = model_of("llama")
    said = "no tensor of the group has units of the kind head: it has units of the kinds kv_head, channel; keys and "
    with pytest.raises(SpecError, match=f"^{KEY}: {said}values belong to a kv_head"):
        find_units(model, targets_of(model, "v_proj"), "head", KEY)
    with pytest.raises(SpecError, match=r"kind expert: it has units of the kinds neuron, channel, layer$"):
        find_units(model, targets_of(model, "mlp_only"), "expert", KEY)
    unknown = transformers.AutoModelForCausalLM.from_config(
        transformers.BloomConfig(hidden_size=32, n_layer=1, n_head=4, vocab_size=50)
    )
    group = Selection(group="mine", definition=Group(include=("*",)))
    with pytest.raises(SpecError, match=f"^{KEY}: the units of model family 'bloom' are not known"):
        find_units(unknown, resolve_targets(unknown, group), "neuron", KEY)


@st.composite
def locations(draw: st.DrawFn) -> tuple[WeightLocation, list[int], int, list[str]]:
    """Any axes, perhaps with one in brackets; the shape of the storage, the axis in brackets, and axes of units."""
    names = list("abcde")[: draw(st.integers(1, 5))]
    lengths = {name: draw(st.integers(1, 3)) for name in names}
    begin = draw(st.integers(0, len(names)))
    end = draw(st.integers(begin, min(begin + 2, len(names))))
    fused = draw(st.booleans())
    inside = names[begin:end]
    axes = [*names[:begin], f"[{' '.join(inside)}]", *names[end:]] if fused else names
    before, behind = (draw(st.integers(0, 2)), draw(st.integers(0, 2))) if fused else (0, 0)
    place = WeightLocation("t", " ".join(axes), lengths, before, behind)
    count = slices_of(place.axes, lengths) if fused else 0
    shape = [before + count + behind if axis.startswith("[") else lengths[axis] for axis in axes]
    unit = draw(st.permutations(names))[: draw(st.integers(0, len(names)))]
    return place, shape, begin if fused else -1, unit


def number_by_hand(index: tuple[int, ...], place: WeightLocation, fused: int, unit: list[str]) -> int:
    """The unit of one weight, axis by axis."""
    position: dict[str, int] = {}
    for axis, (text, along) in enumerate(zip(_axes(place.axes), index, strict=True)):
        names = text.strip("[]").split()
        own = along - place.before if axis == fused else along
        sizes = [place.lengths[name] for name in names]
        if not 0 <= own < int(np.prod(sizes, dtype=int)):
            return -1
        position |= dict(zip(names, map(int, np.unravel_index(own, sizes)) if sizes else (), strict=True))
    return int(np.ravel_multi_index([position[n] for n in unit], [place.lengths[n] for n in unit])) if unit else 0


def _axes(text: str) -> list[str]:
    """Names, and what is in brackets as a whole."""
    before, bracket, rest = text.partition("[")
    inside, _, behind = rest.partition("]")
    return [*before.split(), *([f"[{inside}]"] if bracket else []), *behind.split()]


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(drawn=locations())
def test_any_axes_are_numbered_as_by_hand(drawn: tuple[WeightLocation, list[int], int, list[str]]) -> None:
    """Each weight's unit, through the table along two runs of axes, is the one that its own indices say."""
    place, shape, fused, unit = drawn
    weight = torch.zeros(shape)
    units, table = unit_set(*place.numbers(weight, unit))
    expected = [number_by_hand(index, place, fused, unit) for index in np.ndindex(*shape)]
    flat = np.arange(weight.numel())
    found = table.numpy()[flat // units.period % units.repeats * units.size + flat // units.inner % units.size]
    assert found.tolist() == expected
    selected = units.select(0, weight.numel(), weight.device)
    assert selected.tolist() == [number >= 0 for number in expected]
    if weight.numel() > 5:
        assert torch.equal(units.select(4, weight.numel() - 4, weight.device), selected[4:])


def test_a_tensor_of_another_size_than_configured_is_refused() -> None:
    """Rather than cut at wrong places; one length that the configuration does not say follows from the tensor."""
    place = WeightLocation("w", "token channel", {"channel": 8})
    assert place.numbers(torch.zeros(5, 8), ("token",))[1] == [5, 8]
    for axes, lengths in (
        ("token channel", {"channel": 7}),
        ("token channel", {}),
        ("a [b] c", {"a": 2, "b": 2, "c": 9}),
    ):
        wrong: Callable[..., Any] = WeightLocation("w", axes, lengths).numbers
        with pytest.raises(SpecError, match=r"^w \[5, 8\] is not divided into "):
            wrong(torch.zeros(5, 8), ("channel",))
