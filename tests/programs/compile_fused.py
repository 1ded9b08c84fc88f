"""Compile the kernels of the decode step for real GPUs, without one: prints each with its compute capability."""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from runner import decode_fused_kernels as kernels

# The arguments of the kernels by their type.
NAMES = {
    "*bf16": "heads keys values out cosines sines query_norm key_norm stream addition after before gate_up logits "
    "maxima",
    "*i64": "slots firsts token_ids streams eos token slot step reason written",
    "*i32": "finite",
    "*i8": "active",
    "i32": "size vocabulary pad width new_tokens chunks",
    "fp32": "scale eps temperature top_p",
}
TYPES = {name: type_ for type_, names in NAMES.items() for name in names.split()}
ATTEND = {"GROUP": 2, "KEY_HEADS": 4, "HALF": 128, "LENGTH": 374, "WINDOW": 64, "NORM": True, "OFFSET": 1.0}
SAMPLE = {"ENDED": 1, "NONFINITE": 2, "COUNT": 64, "LANES": 64, "EOS": 2, "EOS_LANES": 2, "CHUNK_LANES": 128}
CASES = [
    (kernels.attend, ATTEND | {"PADDED": 16, "BLOCK": 32}),
    (kernels.add_norm, {"OFFSET": 1.0, "ADD": True, "AFTER": True, "BLOCK": 4096}),
    (kernels.gated, {"GELU": True, "BLOCK": 1024}),
    (kernels.block_maxima, {"BLOCK": 64, "BLOCKS": 64}),
    (kernels.sample_step, SAMPLE),
]
for kernel, constants in CASES:
    types = TYPES | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, signature={name: types[name] for name in kernel.arg_names}, constexprs=constants)
    for capability in (80, 90):
        triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 2})
        print(kernel.__name__, capability)
