"""Damage, digest and sums by the kernels, in Triton's interpreter, beside NumPy and PyTorch: prints how much agreed."""

import contextlib

import torch

from runner import damage_kernels as kernels
from runner.damage_backend import TritonBackend
from runner.damage_digest import fingerprint
from runner.damage_effect import change_sums
from runner.damage_methods import damage, keep_baseline
from runner.target_tensor import Target, UnitSet

kernels.TILE = 64  # small tiles make several of them
torch.cuda.device = lambda _device: contextlib.nullcontext()  # the "GPU" of the interpreter is the CPU
torch.manual_seed(0)
compared = 0
for dtype in (torch.float32, torch.float16):
    weights = [torch.randn(33, 17), torch.randn(5, 129), torch.ones(7, 3), torch.randn(4, 6, 8)]
    weights = [weight.to(dtype) for weight in weights]
    some = UnitSet(size=129, inner=1, start=43, stop=86)
    parts = [None, some, None, UnitSet(size=8, inner=1, start=1, stop=8, step=2)]
    targets = [Target(f"t{i}", weight, part) for i, (weight, part) in enumerate(zip(weights, parts, strict=True))]
    baseline = keep_baseline(targets)
    ward = TritonBackend(targets, baseline)
    conditions = [("mult_gauss", 0.0), ("mult_gauss", 0.7), ("ablation", 0.3), ("ablation", 1.0), ("uni_quant", 2)]
    for method, level in [*conditions, ("uni_quant", 1024)]:
        for seed in (7, 2**33 + 5):
            ward.damage(method, level, seed)
            found = [weight.clone() for weight in weights]
            prints, sums = ward.fingerprints(), ward.sums()
            damage(targets, baseline, method, level, seed)
            for weight, other in zip(weights, found, strict=True):
                assert torch.equal(weight.view(torch.uint8), other.view(torch.uint8)), (dtype, method, level)
                compared += weight.numel()
            assert prints == [fingerprint(weight) for weight in weights]
            expected = change_sums(targets, baseline)
            assert (sums.changed, sums.zeroed) == (expected.changed, expected.zeroed)
            assert abs(sums.change_squared - expected.change_squared) <= 1e-9 * expected.change_squared
            assert abs(sums.original_squared - expected.original_squared) <= 1e-9 * expected.original_squared
print("compared", compared)
