"""`degrade localize`: scores against the model's own forward, loops by hand and scipy; planted truth; the command."""

import importlib.util
import json
import random
import re
import warnings
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import scipy.stats
import torch
import transformers
from helpers import PROGRAMS, Command, done, records_in, refused
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from test_families import CASES, build
from tiny import build as build_tiny
from tiny import tiny_tokenizer
from torch import Tensor

from runner.damage_digest import digest_of
from runner.errors import SpecError
from runner.model_super_weights import find_super_weights
from runner.spec_methods import exact_count
from runner.spec_targets import Group, Selection
from runner.target_choice import in_order
from runner.target_contrast import LARGEST, Moments, contrast, mean_activations, moments_of, welch
from runner.target_groups import resolve_targets
from runner.target_importance import by_gradient, by_magnitude, by_wanda, log_likelihood
from runner.target_top import TOP, top_by_layer
from runner.target_unit_scores import unit_scores
from runner.target_units import find_units
from runner.task_texts import read_list, shipped_lists

LISTS = Path(__file__).parents[1] / "prompts" / "localizer"
TEXTS = ([1, 5, 9, 14, 3, 22], [1, 8, 8, 30], [1, 40, 17, 11, 2, 6, 33, 5])
OTHERS = ([1, 4, 44, 12, 13], [1, 7, 25, 26, 27, 19, 18], [1, 10, 41, 42], [1, 16, 15, 45, 20, 48])
EVERY_CASE = pytest.mark.parametrize("case", CASES)


def lines(name: str) -> list[str]:
    """The texts of a list that ships."""
    return (LISTS / f"{name}.txt").read_text(encoding="utf-8").splitlines()


def targets_of(model: Any, group: str, **more: Any) -> Any:
    """The tensors of a group."""
    return resolve_targets(model, Selection(group=group, **more))


def scored(rows: Any) -> dict[str, Tensor]:
    """Scores by the name of their tensor."""
    return {target.name: scores for target, scores in rows}


# The lists that ship.


def test_lists_are_large_enough_and_hold_no_text_twice() -> None:
    """At least as many texts as promised, none empty, none twice."""
    least = {"sentences": 80, "words": 80, "nonwords": 80, "stories": 40, "arithmetic": 40}
    assert shipped_lists() == sorted(least)
    for name, count in least.items():
        texts = lines(name)
        assert len(texts) == len(set(texts)) >= count
        assert all(text == text.strip() != "" for text in texts)


def test_lists_that_are_made_by_a_rule_are_what_the_rule_makes() -> None:
    """The program that made them makes the same ones again."""
    spec = importlib.util.spec_from_file_location("make_text_lists", PROGRAMS / "make_text_lists.py")
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    assert {name: lines(name) for name in ("words", "nonwords", "arithmetic")} == program.make(LISTS)


def words_in(texts: list[str]) -> list[list[str]]:
    """The words of each text in small letters."""
    return [re.findall(r"[a-z]+", text.lower()) for text in texts]


def test_words_and_nonwords_match_the_sentences() -> None:
    """The same words in another order; as many words that are none, each where its word stands; the same signs."""
    sentences, words, nonwords = (words_in(lines(name)) for name in ("sentences", "words", "nonwords"))
    assert [len(text) for text in sentences] == [len(text) for text in words] == [len(text) for text in nonwords]
    assert sorted(chain(*sentences)) == sorted(chain(*words))
    assert all(first != second for first, second in zip(sentences, words, strict=True))
    pairs = set(zip(chain(*sentences), chain(*nonwords), strict=True))
    assert len(pairs) == len({word for word, _ in pairs}) == len({other for _, other in pairs})
    assert not {word for word, _ in pairs} & {other for _, other in pairs}
    assert all(re.search("[aeiouy]", other) and not re.search("[^aeiouy]{6}", other) for _, other in pairs)
    for name in ("sentences", "words", "nonwords"):
        assert all(re.fullmatch(r"[A-Z][a-z ]+\.", text) for text in lines(name))


def test_arithmetic_is_right() -> None:
    """Every equation holds, in digits; in words there is one for every number word."""
    digits = [text for text in lines("arithmetic") if text[0].isdigit()]
    said = [text for text in lines("arithmetic") if not text[0].isdigit()]
    for equation in " ".join(digits).rstrip(".").split(". "):
        left, right = equation.split(" = ")
        first, sign, second = left.split()
        value = {"+": int.__add__, "-": int.__sub__, "x": int.__mul__}[sign](int(first), int(second))
        assert value == int(right)
    assert len(said) >= 20
    assert all(re.fullmatch(r"([A-Z][a-z-]+ (plus|minus|times) [a-z-]+ is [a-z-]+\. ?){5}", text) for text in said)


# Welch's t.


@given(
    first=hnp.arrays(np.float64, (5, 3), elements=st.floats(-1e3, 1e3)),
    second=hnp.arrays(np.float64, (7, 3), elements=st.floats(-1e3, 1e3)),
)
def test_welch_is_that_of_scipy(first: Any, second: Any) -> None:
    """Where values vary; where they do not, 0 or the largest number with a sign."""

    def moments(rows: Any) -> Moments:
        found = Moments.of(torch.from_numpy(rows[0]))
        for row in rows[1:]:
            found = found.add(torch.from_numpy(row))
        return found

    found = welch(moments(first), moments(second))
    for column in range(3):
        a, b = first[:, column], second[:, column]
        if np.ptp(a) == 0 and np.ptp(b) == 0:
            assert float(found[column]) == np.sign(a[0] - b[0]) * LARGEST or a[0] == pytest.approx(b[0])
        elif np.ptp(a) + np.ptp(b) > 1e-6 * (1 + np.abs(a).max() + np.abs(b).max()):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # that one side hardly varies
                expected = scipy.stats.ttest_ind(a, b, equal_var=False).statistic
            assert float(found[column]) == pytest.approx(expected, rel=1e-6, abs=1e-9)


# Activations, family by family, against hooks and loops of the test's own.


def module_in(model: Any, path: str) -> Any:
    """A module of the decoder."""
    return model.get_decoder().get_submodule(path)


def inputs_seen(model: Any, paths: list[str], ids: list[int]) -> dict[str, Tensor]:
    """What these modules were given for one text, [tokens, features]."""
    seen: dict[str, Tensor] = {}
    handles = [
        module_in(model, path).register_forward_pre_hook(
            lambda _, args, path=path: seen.update({path: args[0].reshape(len(ids), -1).clone()})
        )
        for path in paths
    ]
    with torch.no_grad():
        model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return seen


DENSE = [case for case in CASES if not case.startswith(("mixtral", "qwen3_moe", "gpt_oss"))]


@pytest.mark.parametrize("case", DENSE)
def test_activations_are_those_of_the_modules(case: str) -> None:
    """Neurons before down, heads before o, channels as `output_hidden_states` has them; without the first token."""
    model, ids = build(case), TEXTS[0]
    behind_o, _, behind_down = CASES[case][2]
    stack = "h" if hasattr(model.get_decoder(), "h") else "layers"
    count, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    paths = [f"{stack}.{layer}.{name}" for layer in range(count) for name in (behind_o, behind_down)]
    seen = inputs_seen(model, paths, ids)
    neurons, norms = mean_activations(model, ids, "neuron"), mean_activations(model, ids, "head")
    assert list(neurons) == [f"neuron.{layer}" for layer in range(count)]
    for layer in range(count):
        before = seen[f"{stack}.{layer}.{behind_down}"].double()[1:]
        torch.testing.assert_close(neurons[f"neuron.{layer}"], before.mean(dim=0))
        rows = seen[f"{stack}.{layer}.{behind_o}"].double()[1:]
        width = rows.shape[1] // heads
        by_hand = [rows[:, h * width : (h + 1) * width].pow(2).sum(dim=1).sqrt().mean() for h in range(heads)]
        torch.testing.assert_close(norms[f"head.{layer}"], torch.stack(by_hand))
    channels = mean_activations(model, ids, "channel")
    with torch.no_grad():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    for layer in range(count - 1):  # behind the last one transformers keeps what the last norm gives
        torch.testing.assert_close(channels[f"channel.{layer}"], states[layer + 1][0, 1:].double().mean(dim=0))
    assert channels[f"channel.{count - 1}"].shape == (states[0].shape[-1],)


@pytest.mark.parametrize("case", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_neurons_of_experts_are_those_of_their_tokens(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The activation in the family's own loop over experts, 0 for tokens that an expert does not get."""
    model, ids = build(case), TEXTS[2]
    experts = [layer.mlp.experts for layer in model.get_decoder().layers]
    width = model.get_decoder().layers[0].mlp.experts.down_proj.shape[-1 if case != "gpt_oss" else -2]
    totals = [torch.zeros(3, width, dtype=torch.float64) for _ in experts]
    real = torch.nn.functional.linear
    where: dict[str, Any] = {}

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        for layer, module in enumerate(experts):
            for expert in range(3):
                if case != "gpt_oss" and torch.equal(weight, module.down_proj[expert]):
                    tokens = where[layer][expert]
                    totals[layer][expert] += x[tokens > 0].double().sum(dim=0)
        return real(x, weight, bias)

    def before(layer: int, args: Any) -> None:
        where[layer] = [torch.where((args[1] == expert).T)[1] for expert in range(3)]  # as the family has them
        if case == "gpt_oss":
            for expert, tokens in enumerate(where[layer]):
                module = experts[layer]
                both = args[0].reshape(len(ids), -1)[tokens] @ module.gate_up_proj[expert]
                gate, up = both[:, ::2].clamp(max=7.0), both[:, 1::2].clamp(-7.0, 7.0)
                inner = (up + 1) * gate * torch.sigmoid(1.702 * gate)
                totals[layer][expert] += inner[tokens > 0].double().sum(dim=0)

    handles = [m.register_forward_pre_hook(lambda _, a, i=i: before(i, a)) for i, m in enumerate(experts)]
    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    with torch.no_grad():
        model(torch.tensor([ids]))
    monkeypatch.undo()
    for handle in handles:
        handle.remove()
    found = mean_activations(model, ids, "neuron")
    for layer, total in enumerate(totals):
        expected = (total / (len(ids) - 1)).flatten()
        assert expected.count_nonzero() > 0
        torch.testing.assert_close(found[f"neuron.{layer}"], expected, rtol=1e-5, atol=1e-6)


def test_contrast_is_welch_of_scipy_on_means_of_texts() -> None:
    """Of all neurons and heads; a channel has the mean of its t behind each layer."""
    model = build("phi3")
    for unit in ("neuron", "head", "channel"):
        rows = [
            [{k: v.abs().numpy() for k, v in mean_activations(model, ids, unit).items()} for ids in texts]
            for texts in (TEXTS, OTHERS)
        ]
        expected = {
            key: scipy.stats.ttest_ind(*(np.stack([row[key] for row in side]) for side in rows), equal_var=False)[0]
            for key in rows[0][0]
        }
        if unit == "channel":
            expected = {"channel": np.mean([*expected.values()], axis=0)}
        found = contrast(moments_of(model, TEXTS, unit), moments_of(model, OTHERS, unit), unit)
        assert found.keys() == expected.keys()
        for key, scores in found.items():
            np.testing.assert_allclose(scores.numpy(), expected[key], rtol=1e-4, atol=1e-5)


# Weights.


@pytest.mark.slow
@EVERY_CASE
def test_gradient_is_that_of_each_text_by_itself(case: str) -> None:
    """|w| times |dlog p / dw|, from `torch.autograd.grad` of transformers' own loss, text by text; nothing stays."""
    model = build(case)
    before = digest_of([*model.named_parameters()])
    targets = targets_of(model, "attn_all")
    found = scored(by_gradient(model, targets, TEXTS, "group"))
    assert digest_of([*model.named_parameters()]) == before
    assert not any(weight.requires_grad or weight.grad is not None for weight in model.parameters())
    weights = {target.name: target.weight for target in targets}
    for weight in weights.values():
        weight.requires_grad = True
    expected = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for ids in TEXTS:
        tokens = torch.tensor([ids])
        loss = model(tokens, labels=tokens).loss * (len(ids) - 1)
        for (name, weight), slope in zip(weights.items(), torch.autograd.grad(loss, weights.values()), strict=True):
            expected[name] += (weight * slope).abs().detach()
    assert found.keys() == expected.keys()
    for name, scores in found.items():
        torch.testing.assert_close(scores, expected[name], rtol=2e-4, atol=1e-6)


def test_gradient_is_what_removing_a_weight_changes_to_first_order() -> None:
    """Against the likelihood itself: of a weight that is made smaller by a little."""
    model = build("llama").double()
    (target, *_) = targets_of(model, "mlp_down")
    found = scored(by_gradient(model, [target], TEXTS[:1], "group"))[target.name]
    for index in found.flatten().topk(3).indices:
        value = target.weight.view(-1)[index].clone()
        likelihoods = []
        for factor in (1.01, 0.99):
            target.weight.view(-1)[index] = value * factor
            likelihoods.append(float(log_likelihood(model, TEXTS[0])))
        target.weight.view(-1)[index] = value
        slope = (likelihoods[0] - likelihoods[1]) / 0.02
        assert float(found.flatten()[index]) == pytest.approx(abs(slope), rel=0.05)


@pytest.mark.parametrize("case", ["llama", "phi3", "gpt2", "falcon", "opt", "mixtral", "gpt_oss"])
def test_wanda_is_magnitude_times_the_norm_of_the_input(case: str) -> None:
    """By a loop over outputs and inputs, with what the modules were given over all tokens of all texts."""
    model = build(case)
    found = scored(by_wanda(model, targets_of(model, "o_proj"), TEXTS, "group"))
    for name, scores in found.items():
        path = name.removesuffix(".weight")
        given_ = torch.cat([inputs_seen(model, [path], ids)[path] for ids in TEXTS]).double()
        weight = module_in(model, path).weight
        norms = given_.pow(2).sum(dim=0).sqrt()
        expected = torch.zeros_like(weight, dtype=torch.float64)
        for feature, norm in enumerate(norms):
            if case == "gpt2":
                expected[feature, :] = weight[feature, :].abs() * norm
            else:
                expected[:, feature] = weight[:, feature].abs() * norm
        torch.testing.assert_close(scores.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", ["mixtral", "gpt_oss"])
def test_wanda_of_experts_counts_their_tokens(case: str) -> None:
    """An expert's gate and up multiply the tokens that the router gives to it."""
    model = build(case)
    found = scored(by_wanda(model, targets_of(model, "mlp_gate"), TEXTS, "group"))
    given_: dict[int, list[Any]] = {}
    handles = [
        layer.mlp.experts.register_forward_pre_hook(lambda _, a, i=i: given_.setdefault(i, []).append(a[:2]))
        for i, layer in enumerate(model.get_decoder().layers)
    ]
    with torch.no_grad():
        for ids in TEXTS:
            model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    for layer in range(3):
        weight = model.get_decoder().layers[layer].mlp.experts.gate_up_proj
        for expert in range(3):
            squares = torch.zeros(32, dtype=torch.float64)
            for hidden, chosen in given_[layer]:
                for row, experts in zip(hidden.reshape(-1, 32), chosen, strict=True):
                    squares += row.double() ** 2 if expert in experts.tolist() else 0
            norms = squares.sqrt().float()
            expected = weight[expert].abs() * (norms[:, None] if case == "gpt_oss" else norms[None, :])
            torch.testing.assert_close(found[f"layers.{layer}.mlp.experts.gate_up_proj"][expert], expected)


def test_wanda_refuses_what_multiplies_nothing() -> None:
    """Norms and embeddings are no matrices that something goes through."""
    model = build("llama")
    for group in ("norms", "embed_only"):
        with pytest.raises(SpecError, match="group: wanda scores matrices"):
            scored(by_wanda(model, targets_of(model, group), TEXTS, "group"))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["llama", "phi3", "gpt2", "gpt_neox", "falcon"])
def test_scores_of_units_are_means_of_their_weights(case: str) -> None:
    """Of each neuron and head: set its weights, and no others, to 1; its mean is 1 then, that of all others 0."""
    model = build(case)
    for kind, group in (("neuron", "mlp_only"), ("head", "attn_all"), ("kv_head", "attn_all"), ("layer", "mlp_down")):
        targets, units = find_units(model, targets_of(model, group), kind, "unit")  # type: ignore[arg-type]
        scores = scored(by_magnitude(targets))
        expected = torch.zeros(units.total, dtype=torch.float64)
        for unit in range(units.total):
            total, count = 0.0, 0
            for target, ids in zip(targets, units.ids, strict=True):
                chosen = target.choosing(ids == unit).all_units
                inside = chosen.select(0, target.weight.numel(), target.weight.device)
                total += float(scores[target.name].flatten()[inside].double().sum())
                count += int(inside.sum())
            expected[unit] = total / count
        found = unit_scores(units, targets, by_magnitude(targets))
        torch.testing.assert_close(in_order(units, found, "score").double(), expected, rtol=1e-5, atol=1e-7)


def test_layers_that_a_group_has_not_get_nothing() -> None:
    """The one tensor for all layers has a place for each."""
    model = build("llama")
    part = Selection(group="some", definition=Group(include=("mlp_down",), layers="1"))
    targets, units = find_units(model, resolve_targets(model, part), "layer", "unit")
    found = unit_scores(units, targets, by_magnitude(targets))
    mean = model.get_decoder().layers[1].mlp.down_proj.weight.abs().mean()
    torch.testing.assert_close(found["layer"], torch.tensor([0.0, mean, 0.0]))


# Where the highest lie.


NUMBERS = st.floats(-4, 4, width=16) | st.floats(-(2.0**126), 2.0**126, width=32)


@pytest.mark.slow
@given(
    parts=st.lists(
        hnp.arrays(np.float32, st.integers(1, 40), elements=NUMBERS),
        min_size=1, max_size=4,
    ),
    share=st.sampled_from([TOP, TOP * 30, TOP * 100]),
)  # fmt: skip
def test_the_top_is_that_of_a_sort(parts: Any, share: Any) -> None:
    """For negative numbers, zeros of both signs and many equal ones."""
    whole = np.concatenate(parts)
    layers = np.concatenate([np.full(len(part), index) for index, part in enumerate(parts)])
    order = np.argsort(-whole, kind="stable")[: max(1, exact_count(share, len(whole)))]
    found = top_by_layer([(index, torch.from_numpy(part)) for index, part in enumerate(parts)], share)
    assert [(one.layer, one.count) for one in found] == [(index, len(part)) for index, part in enumerate(parts)]
    assert [one.top for one in found] == [int((layers[order] == index).sum()) for index in range(len(parts))]


# Super weights.


@pytest.mark.parametrize(("case", "name"), [("llama", "mlp.down_proj.weight"), ("gpt2", "mlp.c_proj.weight")])
def test_planted_super_weights_are_found_and_nothing_else(case: str, name: str) -> None:
    """Two weights in one layer, the larger first, by coordinates of the tensor; all weights are as they were."""
    model = build(case)
    stack = "h" if case == "gpt2" else "layers"
    names = [f"{stack}.{layer}.{name}" for layer in range(3)]
    assert find_super_weights(model, names, TEXTS[0]) == []
    layer = model.get_decoder().get_submodule(f"{stack}.1")
    up, down = (layer.mlp.c_fc, layer.mlp.c_proj) if case == "gpt2" else (layer.mlp.up_proj, layer.mlp.down_proj)
    for neuron, size in ((5, 3000.0), (9, 900.0)):  # a neuron that answers strongly to everything
        (up.weight[:, neuron] if case == "gpt2" else up.weight[neuron]).mul_(size)
    planted = [(5, 20), (9, 3)] if case == "gpt2" else [(20, 5), (3, 9)]
    for place in planted:
        down.weight[place] = 200.0
    before = digest_of([*model.named_parameters()])
    found = find_super_weights(model, names, TEXTS[0])
    assert digest_of([*model.named_parameters()]) == before
    assert [(one.name, one.coordinates) for one in found] == [(names[1], place) for place in planted]
    for one in found:
        assert one.value == float(down.weight[one.coordinates]) == 200.0
        assert one.share == pytest.approx(1, abs=0.1)
        assert one.output == pytest.approx(one.value * one.input, rel=0.1)


# The command.

TABLE = """
[localize]
unit = "neuron"
by = "contrast"
texts = "one.txt"
against = "two.txt"
out = "language.safetensors"
"""


@pytest.fixture
def asked(study: Path) -> Path:
    """The study with a table [localize] and two lists of texts beside its spec."""
    spec = study / "specs" / "tiny.toml"
    spec.write_text(spec.read_text() + TABLE)
    (study / "specs" / "one.txt").write_text("The dog is here.\n\nA cat sleeps.\nWe sing a song now.\n")
    (study / "specs" / "two.txt").write_text("1 + 2 = 3\n10 - 4 = 6\n7 + 7 = 14\n2 + 2 = 4\n")
    return study


@pytest.fixture
def localize(degrade: Command, asked: Path) -> Command:
    """`degrade localize specs/tiny.toml ...` in the study's folder."""

    def run(*arguments: str, **options: Any) -> Any:
        return degrade("specs/tiny.toml", *arguments, spec="localize", **options)

    assert asked.is_dir()
    return run


def facts_of(path: Path) -> dict[str, Any]:
    """What a file of scores says of itself."""
    with safetensors.safe_open(path, framework="pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["degrade"])
        return found


@pytest.mark.slow
def test_the_command_writes_scores_a_picture_and_its_data(localize: Command, asked: Path) -> None:
    """They are those of the model in the folder; the file says what made it; a second run finds the same."""
    ran = done(localize())
    path = asked / "results" / "language.safetensors"
    found = safetensors.torch.load_file(path)
    config = re.search(r'id = "(.+)"', (asked / "specs" / "tiny.toml").read_text())
    assert config is not None
    model = transformers.AutoModelForCausalLM.from_pretrained(config[1])
    tokenizer = transformers.AutoTokenizer.from_pretrained(config[1])
    sides = [
        [tokenizer(text).input_ids for text in (asked / "specs" / f"{name}.txt").read_text().splitlines() if text]
        for name in ("one", "two")
    ]
    expected = contrast(*(moments_of(model, side, "neuron") for side in sides), "neuron")
    assert found.keys() == expected.keys() == {"neuron.0", "neuron.1", "neuron.2"}
    for name, scores in found.items():
        torch.testing.assert_close(scores, expected[name])
    facts = facts_of(path)
    assert (facts["asked"]["by"], facts["texts"]["texts"], facts["against"]["texts"]) == ("contrast", 3, 4)
    assert facts["model"]["id"] == config[1]
    assert re.fullmatch("[0-9a-f]{16}", facts["intact"]["digest"])
    assert "the highest 1 % (4 of 384), each neuron by contrast, lie in\n" in ran.stdout
    rows = (path.with_suffix(".csv")).read_text().splitlines()
    assert rows[0] == "layer,count,top"
    assert sum(int(row.split(",")[2]) for row in rows[1:]) == 4
    assert "neurons of the highest 1 %" in path.with_suffix(".svg").read_text()
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    before = path.read_bytes()
    assert "is there already with the same scores" in done(localize()).stdout
    done(localize("--force"))
    assert path.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("by", ["gradient", "wanda", "magnitude"])
def test_two_runs_give_equal_bytes(localize: Command, asked: Path, by: str) -> None:
    """By every scorer, of weights and of units, in two files."""
    spec = asked / "specs" / "tiny.toml"
    text = spec.read_text().replace('by = "contrast"', f'by = "{by}"\ngroup = "mlp_only"')
    spec.write_text(re.sub("against = .*\n" + ("|texts = .*\n" if by == "magnitude" else ""), "", text))
    for unit in ("weight", "neuron"):
        for name in ("a", "b"):
            done(localize("--set", f"localize.unit='{unit}'", "--out", f"{unit}_{name}.safetensors"))
        first, second = ((asked / f"{unit}_{name}.safetensors").read_bytes() for name in "ab")
        assert first == second
    found = safetensors.torch.load_file(asked / "weight_a.safetensors")
    assert found["layers.2.mlp.down_proj.weight"].shape == (64, 128)
    assert len(found) == 9


@pytest.mark.slow
def test_a_neuron_that_answers_to_one_list_is_the_highest(localize: Command, asked: Path, tmp_path: Path) -> None:
    """Planted in layer 1: it reads the sign of equality, which one list has; exchanged, it is the lowest."""
    chance = random.Random(1)
    plain = ["".join(chance.choices("abcdefgh", k=20)) for _ in range(12)]
    (asked / "specs" / "one.txt").write_text("\n".join(plain))
    (asked / "specs" / "two.txt").write_text("\n".join(f"{text[:4]}={text[5:9]}={text[10:]}" for text in plain))
    model, tokenizer = build_tiny("llama"), tiny_tokenizer()
    (sign,) = tokenizer("=", add_special_tokens=False).input_ids
    with torch.no_grad():
        model.get_input_embeddings().weight[sign] *= 40
        direction = model.get_input_embeddings().weight[sign]
        for layer in model.model.layers[:1]:  # let the stream pass by
            layer.self_attn.o_proj.weight.mul_(0.01)
            layer.mlp.down_proj.weight.mul_(0.01)
        for matrix in (model.model.layers[1].mlp.gate_proj, model.model.layers[1].mlp.up_proj):
            matrix.weight[77] = direction / direction.norm() * 10
    model.save_pretrained(tmp_path / "planted")
    tokenizer.save_pretrained(tmp_path / "planted")
    planted = ("--set", f"model.id='{tmp_path / 'planted'}'")
    exchanged = ("--set", "localize.texts='two.txt'", "--set", "localize.against='one.txt'")
    ran = done(localize(*planted, *exchanged))
    scores = safetensors.torch.load_file(asked / "results" / "language.safetensors")
    assert "the highest: neuron.1[77] " in ran.stdout
    assert int(scores["neuron.1"].argmax()) == 77
    done(localize(*planted, "--force"))
    scores = safetensors.torch.load_file(asked / "results" / "language.safetensors")
    assert int(scores["neuron.1"].argmin()) == 77
    assert float(scores["neuron.1"][77]) == min(float(one.min()) for one in scores.values())


@pytest.mark.slow
@pytest.mark.parametrize("case", ["phi3", "gpt2"])
def test_the_command_on_fused_tensors(localize: Command, asked: Path, tmp_path: Path, case: str) -> None:
    """Units of families that keep several matrices in one tensor, with a super weight by its coordinates."""
    name, sizes, _ = CASES[case]
    config = getattr(transformers, name)(**sizes | {"vocab_size": 320}, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.5 if weight.ndim == 1 else 0.0, 0.3)
        if case == "gpt2":
            model.transformer.h[0].mlp.c_fc.weight[:, 6] *= 1000
            model.transformer.h[0].mlp.c_proj.weight[6, 11] = 200
        else:
            model.model.layers[0].mlp.gate_up_proj.weight[24 + 6] *= 1000
            model.model.layers[0].mlp.down_proj.weight[11, 6] = 200
    folder = tmp_path / case
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    where = ("--set", f"model.id='{folder}'")
    ran = done(localize(*where))
    tensor, place = ("h.0.mlp.c_proj.weight", "6, 11") if case == "gpt2" else ("layers.0.mlp.down_proj.weight", "11, 6")
    assert f'super weight: coordinates = [["{tensor}", {place}]]: 200 x ' in ran.stdout
    found = safetensors.torch.load_file(asked / "results" / "language.safetensors")
    assert {key: tuple(one.shape) for key, one in found.items()} == {f"neuron.{layer}": (24,) for layer in range(3)}
    spec = asked / "specs" / "tiny.toml"
    spec.write_text(
        re.sub(r'by = "contrast"\n(.*)\nagainst.*\n', r'by = "gradient"\n\1\ngroup = "attn_all"\n', spec.read_text())
    )
    ran = done(localize(*where, "--set", "localize.unit='head'", "--force"))
    assert "super weight" not in ran.stdout
    found = safetensors.torch.load_file(asked / "results" / "language.safetensors")
    assert {key: tuple(one.shape) for key, one in found.items()} == {f"head.{layer}": (4,) for layer in range(3)}
    assert all(bool((one > 0).all()) for one in found.values())


@pytest.mark.slow
def test_channels_have_one_score_each(localize: Command, asked: Path) -> None:
    """They run through all layers; the picture's data are the scores."""
    done(localize("--set", "localize.unit='channel'"))
    found = safetensors.torch.load_file(asked / "results" / "language.safetensors")
    assert {key: tuple(one.shape) for key, one in found.items()} == {"channel": (64,)}
    rows = (asked / "results" / "language.csv").read_text().splitlines()
    assert rows[0] == "unit,index,score"
    assert [float(row.split(",")[2]) for row in rows[1:]] == found["channel"].tolist()


@pytest.mark.slow
def test_another_file_is_not_replaced(localize: Command, asked: Path) -> None:
    """One that was asked otherwise, one of another program, a folder; before the model is loaded, unless forced."""
    done(localize())
    path = asked / "results" / "language.safetensors"
    before = path.read_bytes()
    refused(localize("--set", "localize.unit='head'"), 3, "language.safetensors", "another asked", "--force")
    (asked / "specs" / "two.txt").write_text("5 + 5 = 10\n1 + 1 = 2\n")
    refused(localize(), 3, "another against")
    assert path.read_bytes() == before
    safetensors.torch.save_file({"x": torch.zeros(1)}, asked / "other.safetensors")
    refused(localize("--out", "other.safetensors"), 3, "other.safetensors", "another asked and model")
    (asked / "words.txt").write_text("no scores")
    refused(localize("--out", "words.txt"), 3, "cannot be read as safetensors")
    refused(localize("--out", "specs"), 3, "is a folder")
    done(localize("--force"))
    assert path.read_bytes() != before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("localize.texts='sentence'", ["localize.texts", "did you mean sentences?"]),
        ("localize.against='gone.txt'", ["localize.against", "gone.txt"]),
        ("localize.against='one.txt'", ["localize", "the same list"]),
        ("localize.unit='weight'", ["localize", "of weight there are none"]),
        ("localize.by='wanda'", ["localize", "say whose", "contrast only"]),
        ("localize.group='mlp_only'", ["localize", "takes no group"]),
        ("localize.out='scores.txt'", ["localize.out", ".safetensors"]),
        ("localize.by='contrasts'", ["localize.by", "did you mean contrast?"]),
        ("localize.colour=3", ["localize.colour", "unknown key"]),
    ],
)
def test_what_is_wrong_with_the_table_is_said(localize: Command, change: str, words: list[str]) -> None:
    """With its path in the spec; exit code 2."""
    refused(localize("--set", change), 2, *words)


def test_units_that_a_group_has_not_are_said(localize: Command, asked: Path) -> None:
    """With the path of the group, and what it has instead."""
    spec = asked / "specs" / "tiny.toml"
    table = '[localize]\nunit = "head"\nby = "magnitude"\ngroup = "mlp_only"\nout = "a.safetensors"\n'
    spec.write_text(spec.read_text().replace(TABLE, table))
    refused(localize(), 2, "localize.group", "neuron")
    refused(localize("--set", "localize.group='mlp'"), 2, "localize.group", "'mlp' is no parameter group")


def test_lists_that_cannot_be_used_are_said(localize: Command, asked: Path) -> None:
    """Too short, no text, a text of one token; a spec without the table."""
    one = asked / "specs" / "one.txt"
    for content, word in ((b"only one\n\n", "has 1 texts"), (b"\xff\xfe\n", "cannot be read as text")):
        one.write_bytes(content)
        refused(localize(), 2, "localize.texts", word)
    one.write_text("a\nThe dog.\n")
    refused(localize(), 2, "localize.texts", "'a' is one token")
    spec = asked / "specs" / "tiny.toml"
    spec.write_text(spec.read_text().replace(TABLE, ""))
    refused(localize(), 2, "localize: required, but missing")


@pytest.mark.slow
def test_a_run_keeps_the_table_in_its_sidecar(degrade: Command, asked: Path) -> None:
    """A spec with the table is a spec as before, and what a run writes is read again."""
    done(degrade("--sweep", "quant", "--set", "run.n_rep=1"))
    (sidecar,) = (asked / "results").glob("outputs_*.toml")
    assert 'by = "contrast"' in sidecar.read_text()
    done(degrade("--sweep", "quant", "--set", "run.n_rep=1", "--set", "localize.unit='head'"))


def test_shipped_lists_are_read() -> None:
    """By their names, wherever the spec is."""
    found = read_list("stories", Path("/nowhere"), "localize.texts")
    assert list(found.texts) == lines("stories")


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["neuron", "weight"])
def test_a_sweep_chooses_by_the_scores(degrade: Command, localize: Command, asked: Path, unit: str) -> None:
    """The file in the results folder is found by its name, and has what the sweep needs."""
    spec = asked / "specs" / "tiny.toml"
    if unit == "weight":
        table = re.sub(r"against.*\n", 'group = "mlp_only"\n', TABLE).replace("contrast", "wanda")
        spec.write_text(spec.read_text().replace(TABLE, table))
    chosen = f'unit = "{unit}", select = "highest", scores = "language.safetensors"'
    sweep = f'{{name = "n", method = "ablation", group = "mlp_only", {chosen}, levels = [0.0, 0.05]}}'
    changes = ("--set", f"sweeps=[{sweep}]", "--set", f"localize.unit='{unit}'", "--set", "run.n_rep=1")
    done(localize(*changes))
    done(degrade(*changes))
    (record, *_) = records_in(asked / "results")
    shown = "[neuron]" if unit == "neuron" else ""
    assert record["param_group_name"] == f"mlp_only{shown}[highest language]"
