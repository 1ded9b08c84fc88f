"""A parameter group is exactly the tensors of the text decoder that it names, or an error."""

import re
from pathlib import Path

import pytest
import torch
import transformers

from runner.damage_methods import damage, keep_baseline
from runner.errors import SpecError
from runner.model_load import Source, build_on_meta, load_model
from runner.spec_targets import BUILT_IN, Selection
from runner.target_groups import is_tied, resolve_targets

GROUPS = sorted(BUILT_IN.keys() - {"reference_attn"})  # on a model of text and vision: those of the text decoder
KINDS = {"llama": 3, "gemma3_text": 4, "gemma3": 4}  # layers
GEMMA_3_4B = {
    "text_config": {
        "vocab_size": 262_208,
        "hidden_size": 2560,
        "intermediate_size": 10_240,
        "num_hidden_layers": 34,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
    },
    "vision_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 896,
        "patch_size": 14,
    },
}

Models = dict[str, torch.nn.Module]


def load(folder: Path) -> torch.nn.Module:
    """A tiny model, as a run loads it."""
    return load_model(Source(str(folder), {}), "float32", torch.device("cpu"))


@pytest.fixture(scope="module")
def models(checkpoints: dict[str, Path]) -> Models:
    """The tiny models by kind."""
    return {kind: load(folder) for kind, folder in checkpoints.items()}


@pytest.fixture(scope="module")
def gemma_3_4b() -> torch.nn.Module:
    """Gemma 3 4B with the shapes of the real one and no weights."""
    return build_on_meta(transformers.Gemma3Config(**GEMMA_3_4B))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("group", "per_layer"), [("attn_only", 1), ("mlp_only", 3)])
def test_layer_groups_have_their_tensors_in_every_layer(models: Models, kind: str, group: str, per_layer: int) -> None:
    """One value projection, or gate, up and down, per layer of the decoder, in ascending layers."""
    names = [target.name for target in resolve_targets(models[kind], Selection(group=group))]
    words = {"attn_only": ["self_attn.v_proj"], "mlp_only": ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]}[group]
    assert len(names) == per_layer * KINDS[kind], names
    assert names == [f"layers.{layer}.{word}.weight" for layer in range(KINDS[kind]) for word in words]


@pytest.mark.parametrize("kind", KINDS)
def test_the_embedding_group_is_the_token_embedding(models: Models, kind: str) -> None:
    """One matrix, the one that the model itself looks tokens up in, not a copy and not the vision tower's."""
    (target,) = resolve_targets(models[kind], Selection(group="embed_only"))
    assert target.name == "embed_tokens.weight"
    assert target.weight is models[kind].get_input_embeddings().weight


@pytest.mark.parametrize("group", GROUPS)
def test_text_only_and_multimodal_classes_have_the_same_names(models: Models, group: str) -> None:
    """Names seed the noise, so both classes of one checkpoint get the same damage."""
    found = [resolve_targets(models[kind], Selection(group=group)) for kind in ("gemma3_text", "gemma3")]
    names = [[(target.name, target.weight.shape) for target in targets] for targets in found]
    assert names[0] == names[1]


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_the_vision_tower_is_never_hit(checkpoints: dict[str, Path], group: str) -> None:
    """Damage to any group of the multimodal model changes no bit outside the text decoder's tensors of that group."""
    model = load(checkpoints["gemma3"])
    vision = {name for name, _ in model.named_parameters() if "vision" in name or "projector" in name}
    alike = [name for name in vision if re.search(r"v_proj\.weight|mlp\.|embed", name)]
    assert alike, "a tower without tensors of similar names would prove nothing"
    for weight in model.parameters():
        weight.add_(0.01)  # zeros stay zeros when they are multiplied
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    targets = resolve_targets(model, Selection(group=group))
    damage(targets, keep_baseline(targets), "mult_gauss", 0.5, 1)
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert not changed & vision, changed & vision
    assert len(changed) == len(targets), changed


@pytest.mark.parametrize("group", GROUPS)
def test_an_unknown_family_is_refused_with_its_tensors(group: str) -> None:
    """GPT-J is not in the table: it is refused, and the error shows what it has and how patterns can name it."""
    config = transformers.GPTJConfig(n_layer=2, n_embd=8, n_head=2, n_positions=16, vocab_size=11, rotary_dim=4)
    config.bos_token_id = config.eos_token_id = 0
    with pytest.raises(SpecError, match="model family 'gptj' is not known") as error:
        resolve_targets(build_on_meta(config), Selection(group=group))
    for line in ("[groups.NAME]", "wte.weight [11, 8] x 1", "h.*.attn.v_proj.weight [8, 8] x 2"):
        assert line in str(error.value)


def test_a_count_that_the_family_does_not_explain_is_an_error(checkpoints: dict[str, Path]) -> None:
    """A layer, or one projection, that is missing would make a study of something else: it is refused."""
    model = load(checkpoints["llama"])
    del model.model.layers[1].mlp.up_proj
    with pytest.raises(SpecError, match="group mlp_only: 8 tensors match, 9 were expected in 3 layers") as error:
        resolve_targets(model, Selection(group="mlp_only"))
    assert "layers.*.mlp.up_proj.weight [128, 64] x 2" in str(error.value)
    del model.model.layers[1]
    with pytest.raises(SpecError, match="group attn_only: 2 tensors match, 3 were expected"):
        resolve_targets(model, Selection(group="attn_only"))
    del model.model.embed_tokens
    with pytest.raises(SpecError, match="group embed_only: 0 tensors match, 1 were expected"):
        resolve_targets(model, Selection(group="embed_only"))


@pytest.mark.parametrize(("kind", "tied"), [("llama", False), ("gemma3_text", True), ("gemma3", True)])
def test_tied_embeddings_are_noticed(models: Models, kind: str, tied: bool) -> None:  # noqa: FBT001 - a parameter
    """Gemma 3 reads and writes with one matrix, so that damage hits both; the tiny Llama has two."""
    assert is_tied(models[kind]) is tied


@pytest.mark.parametrize(
    ("group", "tensors", "weights"),
    [
        ("attn_only", 34, 89_128_960),
        ("mlp_only", 102, 2_673_868_800),
        ("embed_only", 1, 671_252_480),
        ("reference_attn", 61, 124_960_768),
    ],
)
def test_gemma_3_4b_has_the_groups_of_the_study(
    gemma_3_4b: torch.nn.Module, group: str, tensors: int, weights: int
) -> None:
    """The counts of the reference study; a search by suffix would find 61 value projections instead of 34."""
    found = resolve_targets(gemma_3_4b, Selection(group=group))
    assert len(found) == tensors
    assert sum(target.weight.numel() for target in found) == weights
    assert all(target.weight.is_meta for target in found)


def test_gemma_3_4b_has_the_trap_that_groups_avoid(gemma_3_4b: torch.nn.Module) -> None:
    """The 27 layers of the vision tower have value projections as well, and the embedding is tied."""
    assert sum(name.endswith("v_proj.weight") for name, _ in gemma_3_4b.named_parameters()) == 34 + 27
    assert is_tied(gemma_3_4b)
