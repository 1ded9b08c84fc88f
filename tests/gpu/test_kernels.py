"""On a GPU: the kernels give the bits of the plain path, wherever the baseline lies."""

import pytest
import torch
from test_methods import CASES, name_of

from runner import damage_blocks
from runner.damage_digest import fingerprint
from runner.damage_effect import change_sums
from runner.damage_methods import damage, keep_baseline, restore
from runner.spec_methods import METHODS, PLAIN, Method, Options
from runner.target_tensor import Target, UnitSet

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CONDITIONS: list[tuple[Method, float, Options]] = [
    *((method, level, PLAIN) for method, level in (
        ("mult_gauss", 0.0), ("mult_gauss", 0.05), ("mult_gauss", 1.4), ("ablation", 0.1), ("ablation", 1.0),
        ("uni_quant", 2), ("uni_quant", 64), ("uni_quant", 1024), ("add_gauss", 1.4), ("mean", 1.0),
        ("sign_flip", 1.0), ("bit_flip", 1.0), ("prune", 1.0), ("shuffle", 1.0),
    )),
    *CASES,
]  # fmt: skip
SHAPES = [(1,), (3, 5), (1023, 1), (257, 4099), (4, 33, 65)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def group(dtype: torch.dtype, options: Options = PLAIN) -> list[Target]:
    """Tensors of odd sizes and odd alignment, parts of fused ones, and a constant one, on the GPU."""
    generator = torch.Generator().manual_seed(3)
    targets = [
        Target(f"layers.{i}.weight", torch.randn(shape, generator=generator).to(dtype).cuda())
        for i, shape in enumerate(SHAPES)
    ]
    shifted = torch.randn(4097, generator=generator).to(dtype).cuda()[1:]
    columns = torch.randn(96, 3 * 96, generator=generator).to(dtype).cuda()
    experts = torch.randn(4, 96, 64, generator=generator).to(dtype).cuda()
    some = [
        *targets,
        Target("shifted", shifted),
        Target("constant", torch.full((33,), 0.7, dtype=dtype, device="cuda")),
        Target("columns", columns, UnitSet.of(288, 1, range(192, 288))),
        Target("rows", columns.clone(), UnitSet.of(96, 288, range(10, 20))),
        Target("even", experts, UnitSet.of(64, 1, range(0, 64, 2))),
        Target("scattered", experts.clone(), UnitSet.of(24, 1024, (0, 1, 5, 17, 23))),
    ]
    if options.pieces == "weights":  # else refused, since other columns of each expert are meant
        two_axes = UnitSet.of(64, 1, (0, 5, 70, 255), repeats=4, period=96 * 64)
        some.append(Target("two axes", experts.clone(), two_axes))
    return some


def copy_of(on_gpu: list[Target]) -> list[Target]:
    """The same weights on the CPU."""
    return [Target(t.name, t.weight.cpu().contiguous(), t.units) for t in on_gpu]


def different(one: torch.Tensor, other: torch.Tensor) -> int:
    """How many bytes differ, wherever they are."""
    return int((one.cpu().view(torch.uint8) != other.cpu().view(torch.uint8)).sum())


@pytest.mark.parametrize("pinned", [False, True], ids=["on the GPU", "pinned"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda c: " ".join(map(name_of, c)))
def test_kernels_equal_the_cpu(dtype: torch.dtype, condition: tuple[Method, float, Options], pinned: bool) -> None:  # noqa: FBT001 - a parameter
    """Every bit, every fingerprint and every count is that of NumPy and PyTorch on the CPU."""
    from runner.damage_backend import TritonBackend

    method, level, options = condition
    on_gpu = group(dtype, options)
    on_cpu = copy_of(on_gpu)
    ward = TritonBackend(on_gpu, keep_baseline(on_gpu, pinned=pinned))
    original = keep_baseline(on_cpu)
    for seed in (7, 2**40 + 1):
        ward.damage(method, level, seed, options=options)
        damage(on_cpu, original, method, level, seed, options=options)
        for gpu, cpu in zip(on_gpu, on_cpu, strict=True):
            assert different(gpu.weight, cpu.weight) == 0, gpu.name
        assert ward.fingerprints() == [fingerprint(t.weight) for t in on_cpu] == [fingerprint(t.weight) for t in on_gpu]
        found, expected = ward.sums(), change_sums(on_cpu, original)
        assert (found.changed, found.zeroed) == (expected.changed, expected.zeroed)
        assert found.change_squared == pytest.approx(expected.change_squared, nan_ok=True)
        assert found.original_squared == pytest.approx(expected.original_squared)
    restore(on_gpu, ward.baseline)
    assert [different(t.weight, kept) for t, kept in zip(on_gpu, original, strict=True)] == [0] * len(on_gpu)


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda c: " ".join(map(name_of, c)))
def test_units_of_a_condition_equal_the_cpu(condition: tuple[Method, float, Options]) -> None:
    """Chosen anew each time, none, some or all of those that the targets name; nothing of an earlier choice is left."""
    from runner.damage_backend import TritonBackend

    method, level, options = condition
    on_gpu = group(torch.bfloat16, options)
    on_cpu = copy_of(on_gpu)
    backend, original = TritonBackend(on_gpu, keep_baseline(on_gpu)), keep_baseline(on_cpu)
    generator = torch.Generator().manual_seed(4)
    for share in (0.5, 1.0, 0.0, 0.2, None):
        chosen = None
        if share is not None:
            tables = [target.all_units.chosen for target in on_gpu]
            chosen = [table & (torch.rand(len(table), generator=generator) < share) for table in tables]
        backend.damage(method, level, 11, options=options, chosen=chosen)
        damage(on_cpu, original, method, level, 11, options=options, chosen=chosen)
        assert [different(g.weight, c.weight) for g, c in zip(on_gpu, on_cpu, strict=True)] == [0] * len(on_gpu)


@pytest.mark.parametrize("drawn", ["by a kernel", "on the CPU"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("condition", CASES, ids=lambda c: " ".join(map(name_of, c)))
def test_the_plain_path_on_cuda_equals_the_cpu(
    dtype: torch.dtype, condition: tuple[Method, float, Options], drawn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch on the GPU gives the same bits, with numbers of a kernel or, where Triton is missing, of NumPy."""
    method, level, options = condition
    on_gpu = group(dtype, options)
    on_cpu = copy_of(on_gpu)
    if drawn == "on the CPU":
        monkeypatch.setattr(damage_blocks, "has_kernels", lambda _device: False)
    damage(on_gpu, keep_baseline(on_gpu), method, level, 11, options=options)
    damage(on_cpu, keep_baseline(on_cpu), method, level, 11, options=options)
    assert [different(g.weight, c.weight) for g, c in zip(on_gpu, on_cpu, strict=True)] == [0] * len(on_gpu)


@pytest.mark.parametrize("method", METHODS)
def test_a_hundred_million_weights(method: Method) -> None:
    """Of each method, with the last of its options: 0 bytes that differ; larger than a block and a chunk of a sum."""
    from runner.damage_backend import TritonBackend

    _, level, options = [case for case in CASES if case[0] == method][-1]
    torch.manual_seed(1)
    weight = (torch.randn(10_000, 10_001, device="cuda") * 0.02).bfloat16()
    target = Target("layers.0.mlp.up_proj.weight", weight)
    (cpu,) = copy_of([target])
    baseline, original = keep_baseline([target]), keep_baseline([cpu])
    for chosen in dict.fromkeys((PLAIN, options)):
        TritonBackend([target], baseline).damage(method, level, 42, options=chosen)
        damage([cpu], original, method, level, 42, options=chosen)
        assert different(target.weight, cpu.weight) == 0, chosen


def test_more_than_two_to_the_31_weights() -> None:
    """Behind index 2**31 the numbers go on as the counter says: compared where the counter's upper word is in use."""
    from runner.damage_backend import TritonBackend

    count = 2**31 + 4096
    weight = torch.ones(count, dtype=torch.bfloat16, device="cuda")
    ward = TritonBackend([Target("large", weight)], keep_baseline([Target("large", weight)]))
    ward.damage("mult_gauss", 0.5, 9)
    from runner import philox
    from runner.damage_methods import multiply_gauss

    first = 2**31 - 4096
    z = torch.from_numpy(philox.normals(9, philox.stream_id("damage", "large"), first, count - first))
    assert torch.equal(weight[first:].cpu(), multiply_gauss(torch.ones(count - first), z, 0.5).bfloat16())
