"""Damage, digest and sums by the kernels, in Triton's interpreter, beside NumPy and PyTorch: prints the methods."""

import contextlib

import torch
from interpreter import quicken
from test_methods import CASES

from runner import damage_backend, damage_blocks
from runner import damage_kernels as kernels
from runner.damage_backend import TritonBackend
from runner.damage_digest import BLOCK, fingerprint
from runner.damage_effect import change_sums
from runner.damage_methods import damage, keep_baseline
from runner.spec_methods import METHODS, PLAIN
from runner.target_tensor import Target, UnitSet

quicken()
kernels.TILE = damage_blocks.TILE = 64  # small tiles make several of them
damage_backend.DIGEST_STEP = BLOCK // 2
torch.cuda.device = lambda _device: contextlib.nullcontext()  # the "GPU" of the interpreter is the CPU
SEEDS = 7, 2**33 + 5  # of one word and of two
torch.manual_seed(0)
compared = 0
# Every method, whatever there will be, at all of these numbers that are levels of it; then with each of its options.
levels = (0.0, 0.3, 0.7, 1.0, 2, 1024)
conditions = [(name, level, PLAIN) for name, method in METHODS.items() for level in levels if method.allows(level)]
assert {name for name, _, _ in conditions} == METHODS.keys()
conditions += [case for case in CASES if case[2] != PLAIN]
for dtype in (torch.float32, torch.float16):
    weights = [torch.randn(17, 9), torch.randn(5, 33), torch.ones(7, 3), torch.randn(4, 6, 8)]
    weights = [weight.to(dtype) for weight in weights]
    some = UnitSet.of(33, 1, range(11, 22))
    parts = [None, some, None, UnitSet.of(8, 1, range(1, 8, 2))]
    targets = [Target(f"t{i}", weight, part) for i, (weight, part) in enumerate(zip(weights, parts, strict=True))]
    baseline = keep_baseline(targets)
    ward = TritonBackend(targets, baseline)
    for method, level, options in conditions:
        for seed in SEEDS if METHODS[method].random and options == PLAIN else SEEDS[:1]:
            damage_blocks.has_kernels = lambda _device: True  # numbers for PyTorch come from a kernel too
            ward.damage(method, level, seed, options=options)
            found = [weight.clone() for weight in weights]
            prints, sums = ward.fingerprints(), ward.sums()
            damage_blocks.has_kernels = lambda _device: False
            damage(targets, baseline, method, level, seed, options=options)
            for weight, other in zip(weights, found, strict=True):
                assert torch.equal(weight.view(torch.uint8), other.view(torch.uint8)), (dtype, method, level, options)
                compared += weight.numel()
            assert prints == [fingerprint(weight) for weight in weights]
            expected = change_sums(targets, baseline)
            assert (sums.changed, sums.zeroed) == (expected.changed, expected.zeroed)
            found_sums = torch.tensor([sums.change_squared, sums.original_squared], dtype=torch.float64)
            expected_sums = torch.tensor([expected.change_squared, expected.original_squared], dtype=torch.float64)
            assert torch.allclose(found_sums, expected_sums, rtol=1e-9, atol=0, equal_nan=True)  # exponents flip to NaN
runs = sum(len(SEEDS) if METHODS[m].random and options == PLAIN else 1 for m, _, options in conditions)
assert compared == 2 * runs * (17 * 9 + 5 * 33 + 7 * 3 + 4 * 6 * 8)
print("methods", *METHODS)
