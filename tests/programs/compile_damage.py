"""Compile the damage kernels for real GPUs, without one: prints how many products were fused with a sum."""

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
    constants |= {"TILE": kernels.TILE, "INDEX": kernels.index_type(1)}
    level = next(level for level in (0.5, 2) if METHODS[method].allows(level))
    parameter = "i64" if isinstance(FORMULAS[method].parameter(level), int) else "fp32"
    signature = types | {"parameter": parameter} | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernels.damage, signature=signature, constexprs=constants)
    options = {"num_warps": 4, "enable_fp_fusion": False}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert draws != "normals" or "sqrt.rn.f32" in compiled.asm["ptx"]
    fused += compiled.asm["ptx"].count("fma.rn.f")
print("fused", fused)
