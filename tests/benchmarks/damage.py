"""Restore and damage on the GPU, side by side with the reference way; Gemma-3-4B shapes, random weights, bfloat16.

Run on a CUDA machine: `python -m tests.benchmarks.damage` (with the repository root on the path). Besides times it
compares at least 1e8 weights with the CPU bit by bit, and tests the distribution of 1e9 normals. `times`, `bits` or
`normals` does one part only; `--out FILE` writes what is known after every measurement.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import asdict

from runner.damage_backend import TritonBackend
from runner.damage_methods import damage, keep_baseline, restore
from runner.spec_methods import PLAIN, Method, Options
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
SLOW = 1000.0  # milliseconds, beyond which three runs have to do
BY_ROW = Options(per="row")
CONDITIONS: list[tuple[Method, float, Options]] = [
    ("mult_gauss", 0.3, PLAIN),
    ("ablation", 0.3, PLAIN),
    ("uni_quant", 256, PLAIN),
    ("mult_gauss", 0, PLAIN),
    ("add_gauss", 0.3, PLAIN),
    ("mean", 0.3, PLAIN),
    ("sign_flip", 0.3, PLAIN),
    ("bit_flip", 0.3, PLAIN),
    ("bit_flip", 0.3, Options(bits="sign")),
    ("prune", 0.3, PLAIN),
    ("prune", 0.3, Options(order="largest")),
    ("shuffle", 0.3, PLAIN),
    ("shuffle", 1.0, PLAIN),
    ("shuffle", 0.3, Options(pieces="rows")),
    ("shuffle", 0.3, Options(pieces="columns")),
    ("add_gauss", 0.3, BY_ROW),
    ("uni_quant", 256, BY_ROW),
    ("mult_gauss", 0.3, Options(share=0.1)),
    ("uni_quant", 256, Options(share=0.1)),
]
COMPARED: list[tuple[Method, float, Options]] = [
    ("mult_gauss", 0.1, PLAIN),
    ("mult_gauss", 1.4, PLAIN),
    ("ablation", 0.05, PLAIN),
    ("ablation", 0.8, PLAIN),
    ("uni_quant", 1024, PLAIN),
    ("uni_quant", 4, PLAIN),
    *CONDITIONS[4:],
]
Save = Callable[[], None]
PARTS = ("times", "bits", "normals")


def named(method: Method, level: float, options: Options) -> str:
    """A condition in a few words."""
    said = [f"{key} {value}" for key, value in asdict(options).items() if value != getattr(PLAIN, key)]
    return ", ".join([f"{method} {level}", *said])


def make(group: str, dtype: torch.dtype = torch.bfloat16) -> list[Target]:
    """Random tensors of the group's shapes."""
    torch.manual_seed(0)
    return [Target(name, torch.randn(shape, device="cuda", dtype=dtype) * 0.02) for name, shape in SHAPES[group]]


def milliseconds(work: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Median over several runs, host time included, since the launches count."""
    work()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return sorted(times)[repeats // 2]


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


def time_group(group: str, found: dict[str, float], save: Save) -> None:
    """Milliseconds of each method and of the reference way, and the extra memory that damage takes."""
    targets = make(group)
    ward = TritonBackend(targets, keep_baseline(targets))
    size = sum(target.weight.nbytes for target in targets)
    found["weights"] = float(sum(target.count for target in targets))
    before = torch.cuda.memory_allocated()
    for method, level, options in CONDITIONS:
        torch.cuda.reset_peak_memory_stats()
        name = named(method, level, options)

        def work(method: Method = method, level: float = level, options: Options = options) -> None:
            ward.damage(method, level, 42, options=options)

        try:
            found[f"{name}, first time"] = milliseconds_once(work)
            slow = found[f"{name}, first time"] > SLOW
            found[name] = milliseconds(work, 3 if slow else REPEATS)
        except torch.cuda.OutOfMemoryError:
            found[name] = math.nan
        found[f"{name}, extra GiB"] = (torch.cuda.max_memory_allocated() - before) / 2**30
        torch.cuda.empty_cache()
        save()
    found["size, GiB"] = size / 2**30
    found["digest"] = milliseconds(ward.fingerprints)
    found["evidence"] = milliseconds(ward.sums)
    found["mult_gauss, baseline pinned"] = time_pinned(targets)
    found["plain copy"] = milliseconds(lambda: restore(targets, ward.baseline))
    found["reference way"] = milliseconds(reference_way(targets))
    found["ratio"] = found["reference way"] / found["mult_gauss 0.3"]
    save()


def milliseconds_once(work: Callable[[], Any]) -> float:
    """Of one run, with what is compiled or found out at the first."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start)


def time_pinned(targets: Sequence[Target]) -> float:
    """Milliseconds with the baseline in pinned memory of the host."""
    ward = TritonBackend(targets, keep_baseline(targets, pinned=True))
    return milliseconds(lambda: ward.damage("mult_gauss", 0.3, 42))


def compare_bits(weights: int, found: dict[str, int], save: Save) -> None:
    """Differing bytes between this GPU and the CPU, by dtype, method and level."""
    for dtype in (torch.bfloat16, torch.float32, torch.float16):
        torch.manual_seed(1)
        weight = torch.randn(weights // 10_000, 10_000, device="cuda", dtype=dtype) * 0.02
        target = Target("layers.0.mlp.up_proj.weight", weight)
        ward = TritonBackend([target], keep_baseline([target]))
        cpu = Target(target.name, target.weight.cpu())
        original = keep_baseline([cpu])
        for method, level, options in COMPARED:
            ward.damage(method, level, 42, options=options)
            damage([cpu], original, method, level, 42, options=options)
            same = target.weight.cpu().view(torch.uint8) != cpu.weight.view(torch.uint8)
            found[f"{dtype} {named(method, level, options)}"] = int(same.sum())
            save()


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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help="times, bits, normals; without any, all of them")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if not set(asked.parts) <= set(PARTS):
        parser.error(f"there are {', '.join(PARTS)}")
    asked.parts = asked.parts or PARTS
    report: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}

    def save() -> None:
        if asked.out:
            asked.out.write_text(json.dumps(report, indent=1))

    if "times" in asked.parts:
        report["milliseconds"] = {group: {} for group in SHAPES}
        for group in SHAPES:
            time_group(group, report["milliseconds"][group], save)
            torch.cuda.empty_cache()
    if "bits" in asked.parts:
        report["bytes that differ from the CPU, 1e8 weights"] = {}
        compare_bits(100_000_000, report["bytes that differ from the CPU, 1e8 weights"], save)
    if "normals" in asked.parts:
        report["normals"] = describe_normals(1_000_000_000)
        report["normals of 20 other seeds"] = describe_more_seeds(1_000_000_000, range(100, 120))
    save()
    json.dump(report, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
