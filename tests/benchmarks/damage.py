"""Restore and damage on the GPU, side by side with the reference way; Gemma-3-4B shapes, random weights, bfloat16.

Run on a CUDA machine: `python -m tests.benchmarks.damage` (with the repository root on the path). Besides times it
compares at least 1e8 weights with the CPU bit by bit, and tests the distribution of 1e9 normals.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from runner.damage_backend import TritonBackend
from runner.damage_methods import damage, keep_baseline, restore
from runner.spec_methods import Method
from runner.target_tensor import Target

LAYERS, HIDDEN, INTERMEDIATE, KEYS, VOCABULARY = 34, 2560, 10240, 1024, 262_208
SHAPES = {
    "attn_only": [(f"layers.{i}.self_attn.v_proj.weight", (KEYS, HIDDEN)) for i in range(LAYERS)],
    "mlp_only": [
        (f"layers.{i}.mlp.{name}_proj.weight", (HIDDEN, INTERMEDIATE) if name == "down" else (INTERMEDIATE, HIDDEN))
        for i in range(LAYERS)
        for name in ("gate", "up", "down")
    ],
    "embed_only": [("embed_tokens.weight", (VOCABULARY, HIDDEN))],
}
REPEATS = 10
FAR = 5.0
CONDITIONS: list[tuple[Method, float]] = [("mult_gauss", 0.3), ("ablation", 0.3), ("uni_quant", 256), ("mult_gauss", 0)]
COMPARED: list[tuple[Method, float]] = [
    ("mult_gauss", 0.1),
    ("mult_gauss", 1.4),
    ("ablation", 0.05),
    ("ablation", 0.8),
    ("uni_quant", 1024),
    ("uni_quant", 4),
]


def make(group: str, dtype: torch.dtype = torch.bfloat16) -> list[Target]:
    """Random tensors of the group's shapes."""
    torch.manual_seed(0)
    return [Target(name, torch.randn(shape, device="cuda", dtype=dtype) * 0.02) for name, shape in SHAPES[group]]


def milliseconds(work: Callable[[], Any]) -> float:
    """Median over several runs, host time included, since the launches count."""
    work()
    times = []
    for _ in range(REPEATS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return sorted(times)[REPEATS // 2]


def reference_way(targets: Sequence[Target]) -> Callable[[], None]:
    """What the reference code does: load_state_dict from pageable memory, then multiply by torch.normal."""
    module = torch.nn.Module()
    for index, target in enumerate(targets):
        module.register_parameter(str(index), torch.nn.Parameter(target.weight, requires_grad=False))
    state = {key: value.detach().cpu().clone() for key, value in module.state_dict().items()}

    def work() -> None:
        module.load_state_dict(state)
        for weight in module.parameters():
            weight.mul_(torch.normal(1.0, 0.3, weight.shape, device="cuda", dtype=weight.dtype))

    return work


def time_group(group: str) -> dict[str, float]:
    """Milliseconds of each method and of the reference way, and the extra memory that damage takes."""
    targets = make(group)
    ward = TritonBackend(targets, keep_baseline(targets))
    size = sum(target.weight.nbytes for target in targets)
    found = {"weights": float(sum(target.count for target in targets))}
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for method, level in CONDITIONS:
        found[f"{method} {level}"] = milliseconds(lambda m=method, v=level: ward.damage(m, v, 42))
    found["extra memory, % of the group"] = 100 * (torch.cuda.max_memory_allocated() - before) / size
    found["digest"] = milliseconds(ward.fingerprints)
    found["evidence"] = milliseconds(ward.sums)
    found["mult_gauss, baseline pinned"] = time_pinned(targets)
    found["plain copy"] = milliseconds(lambda: restore(targets, ward.baseline))
    found["reference way"] = milliseconds(reference_way(targets))
    found["ratio"] = found["reference way"] / found["mult_gauss 0.3"]
    return found


def time_pinned(targets: Sequence[Target]) -> float:
    """Milliseconds with the baseline in pinned memory of the host."""
    ward = TritonBackend(targets, keep_baseline(targets, pinned=True))
    return milliseconds(lambda: ward.damage("mult_gauss", 0.3, 42))


def compare_bits(weights: int) -> dict[str, int]:
    """Differing bytes between this GPU and the CPU, by dtype, method and level."""
    found = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        torch.manual_seed(1)
        target = Target("layers.0.mlp.up_proj.weight", torch.randn(weights, device="cuda", dtype=dtype) * 0.02)
        ward = TritonBackend([target], keep_baseline([target]))
        cpu = Target(target.name, target.weight.cpu())
        original = keep_baseline([cpu])
        for method, level in COMPARED:
            ward.damage(method, level, 42)
            damage([cpu], original, method, level, 42)
            same = target.weight.cpu().view(torch.uint8) != cpu.weight.view(torch.uint8)
            found[f"{dtype} {method} {level}"] = int(same.sum())
    return found


def describe_normals(count: int) -> dict[str, float]:
    """Distribution of the kernel's normals: moments, Kolmogorov-Smirnov distance, tails, correlations; float32."""
    names = ["layers.0.mlp.up_proj.weight", "layers.1.mlp.up_proj.weight"]
    targets = [Target(name, torch.ones(count // 2, device="cuda")) for name in names]
    # With weight 1 and a large sigma, damaged / sigma is z to within 1e-7.
    sigma = 2.0**20
    ward = TritonBackend(targets, keep_baseline(targets))
    ward.damage("mult_gauss", sigma, 42)
    z = torch.cat([target.weight for target in targets]).div_(sigma)
    n = z.numel()
    found = {"samples": float(n), "mean * sqrt(n)": float(z.double().mean()) * math.sqrt(n)}
    found["(variance - 1) * sqrt(n / 2)"] = (float(z.double().square().mean()) - 1) * math.sqrt(n / 2)
    for threshold in (3.0, 4.0, 5.0):
        expected = n * math.erfc(threshold / math.sqrt(2))
        observed = int((z.abs() > threshold).sum())
        found[f"beyond {threshold} sigma, deviation in standard errors"] = (observed - expected) / math.sqrt(expected)
    halves = z.view(2, -1)
    for name, product in (
        ("serial", z[1:] * z[:-1]),
        ("pair", z[0::2] * z[1::2]),
        ("fourth", z[4:] * z[:-4]),
        ("tensors", halves[0] * halves[1]),
    ):
        found[f"{name} correlation * sqrt(n)"] = float(product.double().mean()) * math.sqrt(product.numel())
        del product
    del halves
    z = z.sort().values
    block, distance = 2**26, 0.0
    for start in range(0, n, block):
        part = torch.special.ndtr(z[start : start + block].double())
        rank = torch.arange(start, start + part.numel(), device="cuda", dtype=torch.float64)
        distance = max(distance, float((part - rank / n).max()), float(((rank + 1) / n - part).max()))
    found["Kolmogorov-Smirnov D * sqrt(n) (1.63 at p = 0.01)"] = distance * math.sqrt(n)
    return found


def describe_more_seeds(count: int, seeds: range) -> dict[str, float]:
    """The figures that depend most on chance, over many seeds: far tails, correlation within a pair and in series."""
    targets = [Target("layers.0.mlp.up_proj.weight", torch.ones(count, device="cuda"))]
    ward = TritonBackend(targets, keep_baseline(targets))
    sigma, beyond, pair, serial = 2.0**20, 0, 0.0, 0.0
    for seed in seeds:
        ward.damage("mult_gauss", sigma, seed)
        z = targets[0].weight / sigma
        beyond += int((z.abs() > FAR).sum())
        pair += float((z[0::2] * z[1::2]).double().sum())
        serial += float((z[1:] * z[:-1]).double().sum())
    samples = count * len(seeds)
    expected = samples * math.erfc(FAR / math.sqrt(2))
    return {
        "samples": float(samples),
        "beyond 5 sigma, deviation in standard errors": (beyond - expected) / math.sqrt(expected),
        "pair correlation * sqrt(n)": pair / math.sqrt(samples / 2),
        "serial correlation * sqrt(n)": serial / math.sqrt(samples),
    }


def main() -> None:
    """Print everything as JSON."""
    report: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    report["bytes that differ from the CPU, 1e8 weights"] = compare_bits(100_000_000)
    report["normals"] = describe_normals(1_000_000_000)
    report["normals of 20 other seeds"] = describe_more_seeds(1_000_000_000, range(100, 120))
    torch.cuda.empty_cache()
    report["milliseconds"] = {group: time_group(group) for group in SHAPES}
    json.dump(report, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
