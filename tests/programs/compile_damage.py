"""Compile the damage kernels for real GPUs, without one: prints how many products were fused with a sum."""

import itertools

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from runner import damage_blocks, philox_kernels
from runner import damage_kernels as kernels
from runner.damage_methods import FORMULAS, Rearranging, in_kernel
from runner.spec_methods import METHODS, PLAIN

types = {"tables": "*i64", "units": "*u8", "tensor_of_tile": "*i32", "seed": "i32"}
fused = 0
methods = [method for method in METHODS if in_kernel(method, PLAIN)]
words = {tl.float32: tl.int32, tl.bfloat16: tl.int16}
for capability, number, method in itertools.product((80, 90), words, methods):
    draws = METHODS[method].draws
    bits = {"sign_flip": 1, "bit_flip": 7}.get(method, 0)
    constants = {"METHOD": method, "DRAWS": draws, "TYPE": number, "TENSORS": 34, "PARTS": True, "ALIGNED": False}
    constants |= {"TILE": kernels.TILE, "INDEX": kernels.index_type(1), "WORD": words[number], "BITS": bits}
    level = next(level for level in (0.5, 2) if METHODS[method].allows(level))
    formula = FORMULAS[method]
    assert not isinstance(formula, Rearranging)
    parameter = "i64" if isinstance(formula.parameter(level), int) else "fp32"
    signature = (
        types | {"parameter": parameter, "details": "*i32" if bits else "*fp64"} | dict.fromkeys(constants, "constexpr")
    )
    source = ASTSource(fn=kernels.damage, signature=signature, constexprs=constants)
    options = {"num_warps": 4, "enable_fp_fusion": False}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert draws != "normals" or "sqrt.rn.f32" in compiled.asm["ptx"]
    fused += compiled.asm["ptx"].count("fma.rn.f")
for draws, out in (("normals", "*fp32"), ("words", "*i64")):
    constants = {"DRAWS": draws, "TILE": damage_blocks.TILE}
    signature = {"out": out, "seed": "i32", "stream": "i64", "first": "i32", "count": "i32"}
    source = ASTSource(
        fn=philox_kernels.fill, signature=signature | dict.fromkeys(constants, "constexpr"), constexprs=constants
    )
    options = {"num_warps": 4, "enable_fp_fusion": False}
    fused += triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"].count("fma.rn.f")
print("fused", fused)
