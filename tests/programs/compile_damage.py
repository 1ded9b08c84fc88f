"""Compile the damage kernels for real GPUs, without one: prints how many products were fused with a sum."""

import itertools

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from runner import damage_kernels as kernels

types = {"tables": "*i64", "tensor_of_tile": "*i32", "bounds": "*fp64", "seed": "i32", "sigma": "fp32"}
types |= {"last_ablated": "i64", "levels": "fp32"}
fused = 0
for capability, number, method in itertools.product((80, 90), (tl.float32, tl.bfloat16), range(3)):
    constants = {"METHOD": method, "TYPE": number, "TENSORS": 34, "PARTS": True, "ALIGNED": False, "TILE": kernels.TILE}
    signature = types | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernels.damage, signature=signature, constexprs=constants)
    options = {"num_warps": 4, "enable_fp_fusion": False}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert method or "sqrt.rn.f32" in compiled.asm["ptx"]
    fused += compiled.asm["ptx"].count("fma.rn.f")
print("fused", fused)
