"""Damage, digest and sums by the kernels, in Triton's interpreter, beside NumPy and PyTorch: prints the methods."""

import contextlib

import torch

from runner import damage_kernels as kernels
from runner.damage_backend import TritonBackend
from runner.damage_digest import fingerprint
from runner.damage_effect import change_sums
from runner.damage_methods import damage, keep_baseline
from runner.spec_methods import METHODS
from runner.target_tensor import Target, UnitSet

kernels.TILE = 64  # small tiles make several of them
torch.cuda.device = lambda _device: contextlib.nullcontext()  # the "GPU" of the interpreter is the CPU
SEEDS = 7, 2**33 + 5  # of one word and of two
torch.manual_seed(0)
compared = 0
# Every method, whatever there will be, at all of these numbers that are levels of it.
levels = (0.0, 0.3, 0.7, 1.0, 2, 1024)
conditions = [(name, level) for name, method in METHODS.items() for level in levels if method.allows(level)]
assert {name for name, _ in conditions} == METHODS.keys()
for dtype in (torch.float32, torch.float16):
    weights = [torch.randn(17, 9), torch.randn(5, 33), torch.ones(7, 3), torch.randn(4, 6, 8)]
    weights = [weight.to(dtype) for weight in weights]
    some = UnitSet.of(33, 1, range(11, 22))
    parts = [None, some, None, UnitSet.of(8, 1, range(1, 8, 2))]
    targets = [Target(f"t{i}", weight, part) for i, (weight, part) in enumerate(zip(weights, parts, strict=True))]
    baseline = keep_baseline(targets)
    ward = TritonBackend(targets, baseline)
    for method, level in conditions:
        for seed in SEEDS if METHODS[method].random else SEEDS[:1]:
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
runs = sum(len(SEEDS) if METHODS[method].random else 1 for method, _ in conditions)
assert compared == 2 * runs * (17 * 9 + 5 * 33 + 7 * 3 + 4 * 6 * 8)
print("methods", *METHODS)
