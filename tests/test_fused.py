"""The fused decode step in Triton's interpreter: what CI can see of it without a GPU. tests/gpu has the real thing."""

import pytest
import torch
from helpers import output_of

from runner.decode_engine import DisagreementError, _compare, fastest_for
from runner.decode_reference import Trace

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


@pytest.mark.slow
def test_fused_step_agrees_with_the_plain_one() -> None:
    """Five families, past the sliding window: the same answers, the same logits up to rounding."""
    lines = output_of("fused_step", TRITON_INTERPRET="1").splitlines()  # read when triton is imported
    assert lines == ["llama", "gemma3", "mistral", "qwen2", "qwen3"]


@pytest.mark.slow
def test_conditions_in_one_batch_answer_as_each_does_alone() -> None:
    """With copies of whatever is damaged, beside others that begin and end at other steps; biases stay."""
    lines = output_of("conditions_in_a_batch", TRITON_INTERPRET="1").splitlines()
    assert [line.split()[0] for line in lines] == ["llama", "qwen2"]


@pytest.mark.slow
def test_kernels_compile_for_real_gpus() -> None:
    """What the interpreter runs is also code for the GPUs that the image is made for."""
    names = ("attend", "add_norm", "gated", "block_maxima", "sample_step", "own_product")
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
