"""The CUDA kernels in Triton's interpreter: what CI can see of them without a GPU. tests/gpu has the real thing."""

import pytest
from helpers import output_of

from runner.spec_methods import METHODS


@pytest.mark.slow
def test_kernels_equal_the_plain_path() -> None:
    """Damage, parts of fused tensors, fingerprints and sums are bit for bit those of NumPy and PyTorch."""
    # The interpreter, which is chosen when triton is imported, cuts bfloat16 off where the hardware rounds, so only
    # float32 and float16 are compared.
    assert output_of("damage_kernels", TRITON_INTERPRET="1").split() == ["methods", *METHODS]


@pytest.mark.slow
def test_kernels_damage_any_units() -> None:
    """Units in any combination, by every method, with evidence and counts: what a plain mask says."""
    assert output_of("damage_units", TRITON_INTERPRET="1").strip() == "checked"


@pytest.mark.slow
def test_products_of_few_rows_are_products() -> None:
    """In float64 the same within rounding, whatever the parts of the sum; each row by itself; added in their order."""
    assert output_of("products", TRITON_INTERPRET="1").split() == ["products", "gated", "rows", "sums"]


@pytest.mark.slow
def test_compiled_kernels_fuse_nothing() -> None:
    """Compiled for real GPUs, no multiplication is fused with an addition: fused, its bits would be others."""
    assert output_of("compile_damage").strip() == "fused 0"
