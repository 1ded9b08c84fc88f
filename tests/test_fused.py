"""The fused decode step in Triton's interpreter: what CI can see of it without a GPU. tests/gpu has the real thing."""

import pytest
import torch
from helpers import output_of

from runner.decode_engine import DisagreementError, _compare
from runner.decode_reference import Trace


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
def test_kernels_compile_for_real_gpus() -> None:
    """What the interpreter runs is also code for the GPUs that the image is made for."""
    names = ("attend", "add_norm", "gated", "block_maxima", "sample_step")
    lines = output_of("compile_fused").splitlines()
    assert lines == [f"{name} {capability}" for name in names for capability in (80, 90)]
