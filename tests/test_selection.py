"""What a sweep selects: groups of one's own, ranges of layers, sides of tied embeddings; in a spec and in a model."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from runner.damage_methods import damage, keep_baseline, restore
from runner.errors import SpecError
from runner.model_load import build_on_meta
from runner.spec import dump_toml, load_spec, to_tables
from runner.spec_targets import Group, Selection
from runner.target_groups import is_tied, resolve_targets, untie

TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = TOKENS | {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 24,
    "vocab_size": 50,
}
SPEC = """
name = "study"
prompts = "questions"
model = {id = "some/model"}
sweeps = [
    {name = "a", method = "ablation", levels = [0.5], group = "v_proj", layers = "0-11"},
    {name = "b", method = "ablation", levels = [0.5], group = "v_proj"},
    {name = "c", method = "ablation", levels = [0.5], group = "embed_only", tied = "input"},
    {name = "d", method = "ablation", levels = [0.5], group = "early", layers = "0,8,16"},
]
[groups.early]
include = ["attn_all", "layers.*.mlp.up_proj.weight"]
exclude = ["*.o_proj.*"]
layers = "0-16"
[groups.eye]
include = ["*"]
tower = "vision"
"""


def targets_of(model: torch.nn.Module, group: str, **options: Any) -> list[Any]:
    """The targets of a group."""
    return list(resolve_targets(model, Selection(group=group, **options)))


def small(family: str) -> torch.nn.Module:
    """A small model, shapes only."""
    config = transformers.AutoConfig.for_model(
        family, **({"n_embd": 8, "n_head": 2, "n_layer": 3, "vocab_size": 50} | TOKENS if family == "gpt2" else GROUPED)
    )
    return build_on_meta(config)


def test_the_spec_says_what_its_sweeps_select(tmp_path: Path) -> None:
    """Labels tell selections of one group apart; written back, the spec reads equal."""
    path = tmp_path / "spec.toml"
    path.write_text(SPEC)
    spec = load_spec(path)
    assert list(spec.selections()) == ["v_proj[0-11]", "v_proj", "embed_only[input]", "early[0,8,16]"]
    assert [sweep.label for sweep in spec.sweeps] == list(spec.selections())
    assert spec.selections()["early[0,8,16]"].definition == spec.groups["early"]
    path.write_text(dump_toml(to_tables(spec)))
    assert load_spec(path) == spec


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ('sweeps.1.group="vproj"', "sweeps[1].group: 'vproj' is no parameter group; did you mean v_proj?"),
        ('sweeps.1.group="erly"', "sweeps[1].group: 'erly' is no parameter group; did you mean early?"),
        ('sweeps.1.layers="11-0"', "sweeps[1].layers: '11-0' is not allowed: must be layers, counted from 0"),
        ('sweeps.1.layers=""', "sweeps[1].layers: '' is not allowed"),
        (
            'sweeps.1.tied="output"',
            "sweeps[1]: tied = 'output' has a meaning for the groups embed_only and lm_head only",
        ),
        ('sweeps.2.tied="inptu"', "sweeps[2].tied: 'inptu' is not known here; did you mean input?"),
        ('sweeps.0.group="reference_attn"', "sweeps[0].layers: reference_attn has layers of text and of vision"),
        ('groups.early.tower="all"', "groups.early: layers could be those of text or vision"),
        ("groups.early.include=[]", "groups.early.include: [] is not allowed: must be non-empty"),
        ('groups.early.inclde=["*"]', "groups.early.inclde: unknown key; did you mean include?"),
        ('groups.v_proj={include=["*"]}', "groups.v_proj: this name is that of a built-in group"),
        ("groups.eye.include=[7]", "groups.eye.include[0]: 7 is not a string"),
        ("groups.eye={}", "groups.eye.include: required, but missing"),
        ('groups={"a/b"={include=["*"]}}', "groups.a/b: 'a/b' is not allowed: must be a word"),
        ("groups=3", "groups: 3 is not a table"),
    ],
)
def test_mistakes_in_a_spec_name_their_place(tmp_path: Path, override: str, message: str) -> None:
    """Without a model: the dotted key, the value, what is meant."""
    (tmp_path / "spec.toml").write_text(SPEC)
    with pytest.raises(SpecError) as error:
        load_spec(tmp_path / "spec.toml", [override])
    assert message in str(error.value)


GEMMA_3 = {
    "text_config": GROUPED
    | TOKENS
    | {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4},
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    },
}


@pytest.fixture(scope="module")
def gemma_3() -> torch.nn.Module:
    """A tiny multimodal Gemma 3, shapes only."""
    return build_on_meta(transformers.Gemma3Config(**GEMMA_3, architectures=["Gemma3ForConditionalGeneration"]))


@pytest.mark.parametrize(
    ("definition", "names"),
    [
        (
            {"include": ["layers.*.self_attn.v_proj.weight"], "layers": "2-"},
            ["layers.2.self_attn.v_proj.weight", "layers.3.self_attn.v_proj.weight"],
        ),
        (
            {"include": ["attn_all", "mlp_gate"], "exclude": ["*.[qko]_proj.*"], "layers": "0,2"},
            [f"layers.{i}.{n}_proj.weight" for i in (0, 2) for n in ("self_attn.v", "mlp.gate")],
        ),
        (
            {"include": ["*v_proj.weight"], "tower": "vision", "layers": "1"},
            ["vision_tower.encoder.layers.1.self_attn.v_proj.weight"],
        ),
        (
            {"include": ["embed_tokens.*", "*projector*"], "tower": "all"},
            [
                "embed_tokens.weight",
                "multi_modal_projector.mm_input_projection_weight",
                "multi_modal_projector.mm_soft_emb_norm.weight",
            ],
        ),
    ],
)
def test_groups_of_ones_own(gemma_3: torch.nn.Module, definition: dict[str, Any], names: list[str]) -> None:
    """Patterns and built-in groups, less exclusions, in some layers, of decoder, vision tower or both."""
    found = [t.name for t in targets_of(gemma_3, "mine", definition=Group(**definition))]
    assert found == names


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        (
            {"include": ["layers.*.self_attn.v_prj.weight"]},
            r"groups.mine.include: 'layers.\*.self_attn.v_prj.weight' matches nothing; did you mean .*v_proj.weight",
        ),
        ({"include": ["v_prj"]}, "groups.mine.include: 'v_prj' matches nothing; did you mean v_proj"),
        ({"include": ["*vision*"]}, r"groups.mine.include: '\*vision\*' matches nothing"),
        ({"include": ["v_proj"], "exclude": ["*.k_proj.*"]}, r"groups.mine.exclude: '\*.k_proj.\*' matches nothing"),
        ({"include": ["v_proj"], "exclude": ["layers.*"]}, "groups.mine.exclude: .* leaves nothing"),
        (
            {"include": ["v_proj"], "layers": "4"},
            "groups.mine.layers: '4' reaches beyond the 4 layers that there are, 0 to 3",
        ),
        ({"include": ["embed_only"], "layers": "0"}, "groups.mine.layers: '0' leaves nothing"),
    ],
)
def test_a_group_of_nothing_is_refused(gemma_3: torch.nn.Module, definition: dict[str, Any], message: str) -> None:
    """A pattern without a match names its place, the nearest names and what the model has."""
    with pytest.raises(SpecError, match=message):
        targets_of(gemma_3, "mine", definition=Group(**definition))


def test_parts_of_one_tensor_are_merged() -> None:
    """A tensor is one target, whatever is chosen of it; a whole swallows its parts."""
    for case, include, whole in (
        ("phi3", ["q_proj", "k_proj"], False),
        ("gpt2", ["q_proj", "v_proj"], False),
        ("phi3", ["q_proj", "v_proj"], False),
        ("phi3", ["mlp_gate", "mlp_up"], True),
        ("gpt2", ["v_proj", "*.c_attn.weight"], True),
    ):
        model = small(case)
        targets = targets_of(model, "mine", definition=Group(include=tuple(include)))
        assert len(targets) == 3
        assert all((target.units is None) is whole for target in targets)
        if not whole:
            assert sum(t.count for t in targets) == sum(t.count for name in include for t in targets_of(model, name))


def test_an_unknown_family_can_be_named_by_patterns() -> None:
    """GPT-J is not in the table, and still its tensors can be damaged."""
    config = transformers.GPTJConfig(n_layer=2, n_embd=8, n_head=2, n_positions=16, vocab_size=11, rotary_dim=4)
    definition = Group(include=("h.*.attn.v_proj.weight",), layers="1")
    assert [t.name for t in targets_of(build_on_meta(config), "mine", definition=definition)] == [
        "h.1.attn.v_proj.weight"
    ]


def test_reference_attn_is_what_a_search_by_suffix_hits(gemma_3: torch.nn.Module) -> None:
    """Value projections of decoder and vision tower, 61 in Gemma 3 4B."""
    found = {id(target.weight) for target in targets_of(gemma_3, "reference_attn")}
    assert found == {id(weight) for name, weight in gemma_3.named_parameters() if name.endswith("v_proj.weight")}


def test_tied_embeddings_are_damaged_on_both_sides_or_one() -> None:
    """Same name, same damage; without untie one matrix serves both; a model that does not tie refuses sides."""
    model = transformers.GemmaForCausalLM(transformers.GemmaConfig(**GROUPED)).requires_grad_(requires_grad=False)
    model.get_input_embeddings().weight.add_(1.0)
    (tied,) = targets_of(model, "lm_head")
    baseline = keep_baseline([tied])
    damage([tied], baseline, "mult_gauss", 0.5, 1)
    wanted = tied.weight.clone()
    restore([tied], baseline)
    untie(model)
    untie(model)
    embed, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert is_tied(model)
    assert embed is not head
    assert not model.config.tie_word_embeddings
    for group, side, hit in (
        ("embed_only", "both", (True, True)),
        ("lm_head", "both", (True, True)),
        ("embed_only", "input", (True, False)),
        ("embed_only", "output", (False, True)),
        ("all", "both", (True, True)),
    ):
        targets = targets_of(model, group, tied=side)
        baseline = keep_baseline(targets)
        damage(targets, baseline, "mult_gauss", 0.5, 1)
        assert (torch.equal(embed, wanted), torch.equal(head, wanted)) == hit, (group, side)
        restore(targets, baseline)
        assert torch.equal(embed, head)
        assert {t.name for t in targets if t.weight is embed or t.weight is head} == {"embed_tokens.weight"}
    with pytest.raises(SpecError, match=r"sweeps\.tied: 'input' means one side of tied embeddings"):
        targets_of(small("llama"), "embed_only", tied="input")
