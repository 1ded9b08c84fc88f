"""Compile the kernels of the decode step for real GPUs, without one: prints each with its compute capability.

Those that products of our own need, for Hopper: whether their tiles fit its shared memory, and what overlaps.
"""

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from runner import decode_fused_kernels as kernels
from runner.decode_gemm import HEAD, TILES
from runner.decode_gemm_kernels import own_product, product

# The arguments of the kernels by their type.
NAMES = {
    "*fp32": "parts",
    "*bf16": "x weights bias next_weights "
    "heads keys values out cosines sines query_norm key_norm stream addition after before gate_up logits "
    "maxima",
    "*i64": "addresses slots firsts token_ids streams eos token slot step reason written",
    "*i32": "finite",
    "*i8": "active",
    "i32": "N LEAD size query_size key_size vocabulary pad width new_tokens chunks",
    "fp32": "scale eps temperature top_p",
}
TYPES = {name: type_ for type_, names in NAMES.items() for name in names.split()}
ATTEND = {"GROUP": 2, "KEY_HEADS": 4, "HALF": 128, "LENGTH": 374, "WINDOW": 64, "NORM": True, "OFFSET": 1.0}
WHOLE = {"SPLITS": 1, "OVERLAP": False}
ASKS = {"LINES": 0, "SLICES": 1, "SLICE_BYTES": 128, "SHARE": 1}
PLAIN = {"CAP": 0.0, "TURN": True}
CAPPED = {"CAP": 50.0, "TURN": False}
MULTIPLIED = {"BEFORE": True, "MULTIPLIER": 1.0}
SAMPLE = {"ENDED": 1, "NONFINITE": 2, "COUNT": 64, "LANES": 64, "EOS": 2, "EOS_LANES": 2, "CHUNK_LANES": 128}
OWN = {"K": 2560, "ROWS": 38, "BM": 64, "BN": 64, "BK": 128, "STAGES": 3, "ALIGNED": True, "BIAS": False}
CASES = [
    (kernels.attend, ATTEND | WHOLE | ASKS | PLAIN | {"PADDED": 16, "BLOCK": 32}),
    (kernels.add_norm, WHOLE | MULTIPLIED | {"OFFSET": 1.0, "ADD": True, "AFTER": True, "BLOCK": 4096}),
    (kernels.attend, ATTEND | WHOLE | ASKS | CAPPED | {"PADDED": 16, "BLOCK": 32}),
    (kernels.add_norm, WHOLE | {"BEFORE": False, "MULTIPLIER": 0.2, "OFFSET": 0.0, "ADD": True, "AFTER": True,
        "BLOCK": 4096}),
    (kernels.norm_projections, {"OFFSET": 0.0, "BLOCK": 4096}),
    (kernels.gated, {"GELU": True, "BLOCK": 1024}),
    (kernels.block_maxima, {"BLOCK": 64, "BLOCKS": 64}),
    (kernels.sample_step, SAMPLE),
    (own_product, OWN),
]  # fmt: skip
SHARED_MEMORY = 227 * 1024  # bytes that a program may use on Hopper


def compiled(kernel: Any, constants: dict[str, Any], capability: int, warps: int = 2, **types: str) -> Any:
    """A kernel for a GPU that need not be there."""
    types = TYPES | types | dict.fromkeys(constants, "constexpr")
    signature = {name: types[name] for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, type_ in enumerate(signature.values()) if type_.startswith("*")}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})


def overlaps(code: Any) -> None:
    """It waits for the kernel before it, lets the next one begin, and asks for what that reads."""
    for instruction in ("griddepcontrol.wait", "griddepcontrol.launch_dependents"):
        assert code.asm["ptx"].count(instruction) == 1, instruction


for kernel, constants in CASES:
    for capability in (80, 90):
        compiled(kernel, constants, capability)
        print(kernel.__name__, capability)
PARTS = {"OVERLAP": True, "SPLITS": 4}
PREFETCH = {"LINES": 4, "SLICES": 10240, "SLICE_BYTES": 1024, "SHARE": 300}
overlaps(compiled(kernels.add_norm, CASES[1][1] | PARTS, 90, 8, addition="*fp32"))
code = compiled(kernels.attend, CASES[0][1] | PARTS | PREFETCH, 90, heads="*fp32")
overlaps(code)
assert "prefetch.global.L2" in code.asm["ptx"]
for name, tile, (size, length) in [
    *((name, tile, shape) for name, shapes in TILES.items() for shape, tile in shapes.items()),
    ("head", HEAD, (262_208, 2560)),
]:
    gated = name == "gate_up"
    assert tile.fits(size, length, gated=gated)
    constants = {"N": size // 2 if gated else size, "K": length, "SPLITS": tile.splits, "BN": tile.rows}
    constants |= {"MORE": tile.more, "BK": tile.depth, "STAGES": tile.stages, "GATED": gated, "GELU": True}
    constants |= {"BIAS": False, "FIRST": tile.first, "OVERLAP": True} | PREFETCH
    for rows, padded in ((38, 64), (128, 128)):
        out = "*bf16" if tile.splits == 1 else "*fp32"
        shape = {"ROWS": rows, "BM": padded}
        code = compiled(product, constants | shape, 90, padded // 16, out=out)
        overlaps(code)
        assert code.metadata.shared <= SHARED_MEMORY, (name, rows, code.metadata.shared)
        assert "wgmma" in code.asm["ptx"]
    print(name, 90)
