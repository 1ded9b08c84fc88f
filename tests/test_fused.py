"""The fused decode step in Triton's interpreter: what CI can see of it without a GPU. tests/gpu has the real thing."""

import pytest
from helpers import output_of


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
