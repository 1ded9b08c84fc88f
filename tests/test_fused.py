"""The fused decode step in Triton's interpreter: what CI can see of it without a GPU. tests/gpu has the real thing."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers import output_of
from tiny import TEXT

from runner.decode_batch import BatchShape, UnknownDecoderError
from runner.decode_engine import DisagreementError, _compare, fastest_for
from runner.decode_families import FAMILIES, check_decoder, rotary_tables
from runner.decode_packing import joined, pack_projections, qkv_modules
from runner.decode_reference import Trace
from runner.decode_sampling import Sampling
from runner.decode_step import DecodeState

# Gemma 3 4B: the weights of every product.
GEMMA = {
    "heads": (4096, 2560), "output": (2560, 2048), "gate_up": (20480, 2560), "down": (2560, 10240),
    "head": (262_208, 2560),
}  # fmt: skip


def traces(*, tokens: int = 0, logits: float = 0.0, step: int = 2) -> tuple[Trace, Trace]:
    """Four steps of four rows, twice: from a step on, so many rows have other tokens, and logits differ by so much."""
    chance = torch.Generator().manual_seed(3)
    one = [
        (torch.arange(4) + number, torch.randn(4, 50, generator=chance), torch.tensor([True, True, True, False]))
        for number in range(4)
    ]
    other = [(token.clone(), behind.clone(), active) for token, behind, active in one]
    for token, behind, _ in other[step:]:
        token[:tokens] += 7
        behind.add_(logits * torch.randn(4, 50, generator=chance))
    return one, other


@pytest.mark.parametrize(
    "change",
    [{}, {"tokens": 2, "step": 1}, {"tokens": 4, "logits": 9.0}, {"logits": 1e-6}, {"tokens": 3, "logits": 9.0}],
)
def test_engines_agree_where_only_rounding_differs(change: dict[str, float]) -> None:
    """Also where draws part: what follows another token is no disagreement, and neither is a row that has ended."""
    _compare(*traces(**change), 1e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokens": 3, "step": 1}, "3 of 4 first tokens differ"),
        ({"logits": 0.1, "step": 0}, "logits differ by .* at step 0"),
        ({"logits": 0.1}, "logits differ by .* at step 2"),
        ({"logits": 0.1, "tokens": 2}, "logits differ by .* at step 2"),
    ],
)
def test_engines_that_disagree_are_told_apart(change: dict[str, float], said: str) -> None:
    """Other first tokens, or other logits behind the same tokens."""
    with pytest.raises(DisagreementError, match=said):
        _compare(*traces(**change), 1e-4)  # type: ignore[arg-type]


HALVES = (
    ("llama", "gemma3_text", "mistral", "qwen2", "qwen3"),
    ("gemma2", "olmo2", "phi3", "granite", "smollm3"),
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("families", HALVES, ids=lambda families: f"{families[0]}-{families[-1]}")
def test_fused_step_agrees_with_the_plain_one(families: tuple[str, ...]) -> None:
    """Every family, past the sliding window: the same answers, the same logits up to rounding."""
    lines = output_of("fused_step", *families, TRITON_INTERPRET="1").splitlines()  # read when triton is imported
    assert tuple(lines) == families


CLASSES = {"gemma3_text": "Gemma3Text", "smollm3": "SmolLM3"}


def tiny_decoder(family: str, **sizes: Any) -> DecodeState:
    """The state that a model of the family decodes in, with random weights."""
    config = getattr(transformers, f"{CLASSES.get(family, family.capitalize())}Config")(
        **TEXT | {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2} | sizes
    )
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager" if family == "gemma2" else None
    )
    sampling = Sampling(do_sample=False, temperature=1.0, top_k=0, top_p=1.0)
    return DecodeState(model, BatchShape(rows=1, prompt_length=4, new_tokens=2), sampling, [2], 0)


def accept(decoder: DecodeState) -> None:
    """What the fused step does before it takes a decoder."""
    check_decoder(decoder.model, decoder.sampling)
    rotary_tables(decoder.model.get_decoder(), decoder.config, 6)


def refusal(decoder: DecodeState) -> str:
    """Why the fused step does not take a decoder."""
    with pytest.raises(UnknownDecoderError) as caught:
        accept(decoder)
    return str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_known_with_every_field_of_their_configuration(family: str) -> None:
    """Also of the release of transformers that is installed; a weight that nothing reads is told apart by its name."""
    assert any(family in half for half in HALVES), "its step is compared with the plain one"
    decoder = tiny_decoder(family)
    accept(decoder)
    attention = decoder.model.get_decoder().layers[1].self_attn
    attention.sinks = torch.nn.Parameter(torch.zeros(2))
    assert refusal(decoder) == "its layers' self_attn.sinks is not known"


@pytest.mark.parametrize(
    ("family", "sizes", "said"),
    [
        ("gemma3_text", {"final_logit_softcapping": 1.0}, "its final_logit_softcapping is 1.0"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "its use_bidirectional_attention is True"),
        ("llama", {"residual_multiplier": 0.2}, "its residual_multiplier is 0.2"),
        ("qwen2", {"no_rope_layers": [1, 0]}, r"its no_rope_layers is \[1, 0\]"),
        ("olmo2", {"head_dim": 24}, "its heads have 24 numbers"),
        ("granite", {"hidden_act": "gelu"}, "its activation is gelu"),
        ("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
         "its rotary embedding turns a part of a head only"),
        ("phi3", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 1.0,
          "short_factor": [1.0] * 16, "long_factor": [2.0] * 16}}, "its rotary embedding is longrope"),
    ],
)  # fmt: skip
def test_what_is_not_recognised_is_refused(family: str, sizes: dict[str, Any], said: str) -> None:
    """With a sentence: a step that guessed would compute something else."""
    assert re.search(said, refusal(tiny_decoder(family, **sizes)))


def test_a_field_of_a_later_release_is_refused_where_it_is_set() -> None:
    """Its default is what checkpoints mean that do not know it."""

    class Later(transformers.LlamaConfig):
        sink_tokens: int = 4

    decoder = tiny_decoder("llama")
    decoder.config.__class__ = Later
    accept(decoder)
    decoder.config.sink_tokens = 8
    assert refusal(decoder) == "its sink_tokens is 8"


def test_caps_need_the_attention_that_applies_them() -> None:
    """Where transformers runs Gemma 2 with SDPA, it leaves the caps out, and the plain step does too."""
    decoder = tiny_decoder("gemma2")
    decoder.config._attn_implementation = "sdpa"
    assert refusal(decoder) == "its attention is capped, which sdpa leaves out"
    decoder.config.attn_logit_softcapping = None
    accept(decoder)


@pytest.mark.parametrize("family", ["gemma2", "olmo2", "phi3", "granite", "smollm3"])
def test_projections_of_every_family_are_packed(family: str) -> None:
    """To the same values; what is one tensor already stays where it is."""
    model = tiny_decoder(family).model
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    addresses = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    pack_projections(model)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    for layer in model.model.layers:
        modules = qkv_modules(layer)
        assert torch.equal(joined(modules)[0], torch.cat([module.weight for module in modules]))
    if family == "phi3":
        assert addresses == {name: parameter.data_ptr() for name, parameter in model.named_parameters()}


@pytest.mark.slow
def test_conditions_in_one_batch_answer_as_each_does_alone() -> None:
    """With copies of whatever is damaged, beside others that begin and end at other steps; the start would notice."""
    lines = output_of("conditions_in_a_batch", TRITON_INTERPRET="1").splitlines()
    assert lines[0].startswith("qwen2 ")
    assert lines[1:] == ["gemma3_text 7"]


@pytest.mark.slow
def test_a_run_whose_conditions_share_batches(tmp_path: Path) -> None:
    """Says what the plain way says of each alone; extended, it has the same records in the same order."""
    lines = output_of("share_batches", str(tmp_path), TRITON_INTERPRET="1").splitlines()
    assert lines == ["{'v_proj': (6, 3), 'mlp_only': (2, None), 'o_proj': (6, 3)}", "resumed"]


@pytest.mark.slow
def test_kernels_compile_for_real_gpus() -> None:
    """What the interpreter runs is also code for the GPUs that the image is made for."""
    names = ("attend", "add_norm", "attend", "add_norm", "norm_projections", "gated", "block_maxima", "sample_step",
             "own_product")  # fmt: skip
    lines = output_of("compile_fused").splitlines()
    products = [f"{name} 90" for name in ("heads", "output", "gate_up", "down", "head")]
    assert lines == [f"{name} {capability}" for name in names for capability in (80, 90)] + products


def test_tiles_follow_from_the_shapes_alone() -> None:
    """All products of a step or none; up to 128 rows; in two bytes a number."""
    products = pytest.importorskip("runner.decode_gemm")
    for rows in (1, 8, 38, 64, 128):
        tiles = products.tiles_for(GEMMA, rows, torch.bfloat16)
        assert tiles.keys() == GEMMA.keys()
        assert all(tiles[name].fits(*shape, gated=name == "gate_up") for name, shape in GEMMA.items())
    assert products.tiles_for(GEMMA, 38, torch.float16) == tiles
    assert products.tiles_for(GEMMA | {"head": (262_144, 2560)}, 38, torch.bfloat16) == tiles
    for rows in (129, 380):
        assert products.tiles_for(GEMMA, rows, torch.bfloat16) == {}  # the same engine, with cuBLAS' products
    assert products.tiles_for(GEMMA, 38, torch.float32) is None
    assert products.tiles_for(GEMMA, 380, torch.float32) is None
    for name, shape in (("heads", (4096, 4096)), ("down", (2560, 9216)), ("head", (262_145, 2560)), ("head", (64, 64))):
        assert products.tiles_for(GEMMA | {name: shape}, 38, torch.bfloat16) is None, name


def test_the_sums_of_an_engine_stay_what_they_were() -> None:
    """Records of `products` are continued by `products`: other numbers here would be another engine."""
    products = pytest.importorskip("runner.decode_gemm")
    tiles = {(name, *shape): tile for name, shapes in products.TILES.items() for shape, tile in shapes.items()}
    assert {key: (tile.depth, tile.splits) for key, tile in tiles.items()} == {
        ("heads", 4096, 2560): (64, 2),
        ("output", 2560, 2048): (64, 4),
        ("gate_up", 20480, 2560): (128, 1),
        ("down", 2560, 10240): (128, 4),
    }
    assert (products.HEAD.depth, products.HEAD.splits, products.MOST_ROWS) == (128, 1, 128)
    # A wave of 132 multiprocessors is nearly full, and there is no second one.
    assert [(size // (1 + (name == "gate_up"))) // (tile.rows + tile.more) * tile.splits
            for (name, size, _), tile in tiles.items()] == [128] * 4  # fmt: skip


@pytest.mark.parametrize(
    ("earlier", "fastest"),
    [
        ([], "products"),
        (["plain"], "products"),
        (["products"], "products"),
        (["fused"], "fused"),
        (["fused", "products"], "fused"),
        (["plain", "graph", "products"], "graph"),
        (["of another release", "None"], "products"),
    ],
)
def test_a_run_goes_on_with_the_engine_of_the_records(earlier: list[str], fastest: str) -> None:
    """None that is faster, whose sums round otherwise; a run on a CPU sets no limit."""
    assert fastest_for(earlier) == fastest
