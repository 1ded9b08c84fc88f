"""The CUDA kernels in Triton's interpreter: what CI can see of them without a GPU. tests/gpu has the real thing."""

import os
import subprocess
import sys
from pathlib import Path

from runner.spec_methods import METHODS

# The interpreter is chosen when triton is imported, hence a process of its own. It cuts bfloat16 off where the hardware
# rounds, so only float32 and float16 are compared here. Small tiles make several of them.
SCRIPT = """
import contextlib
import torch

torch.cuda.device = lambda device: contextlib.nullcontext()  # the "GPU" of the interpreter is the CPU
from runner import damage_kernels as kernels
from runner.damage_backend import TritonBackend
from runner.damage_methods import damage, keep_baseline
from runner.damage_digest import fingerprint
from runner.damage_effect import change_sums
from runner.spec_methods import METHODS
from runner.target_tensor import UnitSet, Target

kernels.TILE = 64
torch.manual_seed(0)
compared = 0
# Every method, whatever there will be, at all of these numbers that are levels of it.
levels = (0.0, 0.3, 0.7, 1.0, 2, 1024)
conditions = [(name, level) for name, method in METHODS.items() for level in levels if method.allows(level)]
assert {name for name, _ in conditions} == METHODS.keys()
for dtype in (torch.float32, torch.float16):
    weights = [torch.randn(33, 17), torch.randn(5, 129), torch.ones(7, 3), torch.randn(4, 6, 8)]
    weights = [weight.to(dtype) for weight in weights]
    some = UnitSet.of(129, 1, range(43, 86))
    parts = [None, some, None, UnitSet.of(8, 1, range(1, 8, 2))]
    targets = [Target(f"t{i}", weight, part) for i, (weight, part) in enumerate(zip(weights, parts))]
    baseline = keep_baseline(targets)
    ward = TritonBackend(targets, baseline)
    for method, level in conditions:
        for seed in (7, 2**33 + 5):
            ward.damage(method, level, seed)
            found = [weight.clone() for weight in weights]
            prints, sums = ward.fingerprints(), ward.sums()
            damage(targets, baseline, method, level, seed)
            for weight, other in zip(weights, found):
                assert torch.equal(weight.view(torch.uint8), other.view(torch.uint8)), (dtype, method, level)
                compared += weight.numel()
            assert prints == [fingerprint(weight) for weight in weights]
            expected = change_sums(targets, baseline)
            assert (sums.changed, sums.zeroed) == (expected.changed, expected.zeroed)
            assert abs(sums.change_squared - expected.change_squared) <= 1e-9 * expected.change_squared
            assert abs(sums.original_squared - expected.original_squared) <= 1e-9 * expected.original_squared
assert compared == 2 * len(conditions) * 2 * (33 * 17 + 5 * 129 + 7 * 3 + 4 * 6 * 8)
print("methods", *METHODS)
"""


def test_kernels_equal_the_plain_path() -> None:
    """Damage, parts of fused tensors, fingerprints and sums are bit for bit those of NumPy and PyTorch."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["methods", *METHODS]


UNITS = """
import contextlib
import torch

torch.cuda.device = lambda device: contextlib.nullcontext()
from hypothesis import given, settings
from runner import damage_kernels
from runner.damage_backend import TritonBackend
from test_units import cases, check_backend

damage_kernels.TILE = 64


@settings(deadline=None, max_examples=20, derandomize=True, database=None)
@given(case=cases())
def check(case):
    check_backend(TritonBackend, case)


check()
print("checked")
"""


def test_kernels_damage_any_units() -> None:
    """Units in any combination, by every method, with evidence and counts: what a plain mask says."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", UNITS],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "checked"


COMPILE = """
import itertools
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from runner import damage_kernels as kernels
from runner.damage_methods import FORMULAS
from runner.spec_methods import METHODS

types = {"tables": "*i64", "units": "*u8", "tensor_of_tile": "*i32", "bounds": "*fp64", "seed": "i32"}
fused = 0
for capability, number, method in itertools.product((80, 90), (tl.float32, tl.bfloat16), METHODS):
    draws = METHODS[method].draws
    constants = {"METHOD": method, "DRAWS": draws, "TYPE": number, "TENSORS": 34, "PARTS": True, "ALIGNED": False}
    constants |= {"TILE": kernels.TILE}
    level = next(level for level in (0.5, 2) if METHODS[method].allows(level))
    parameter = "i64" if isinstance(FORMULAS[method].parameter(level), int) else "fp32"
    signature = types | {"parameter": parameter} | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernels.damage, signature=signature, constexprs=constants)
    options = {"num_warps": 4, "enable_fp_fusion": False}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert draws != "normals" or "sqrt.rn.f32" in compiled.asm["ptx"]
    fused += compiled.asm["ptx"].count("fma.rn.f")
print("fused", fused)
"""


def test_compiled_kernels_fuse_nothing() -> None:
    """Compiled for real GPUs, no multiplication is fused with an addition: fused, its bits would be others."""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", COMPILE], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "fused 0"
