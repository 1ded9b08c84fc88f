"""Damage where weights are not simply on one device: packed in 4 bits, or kept away from it by accelerate."""

from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch

from runner.damage_digest import digest_of
from runner.damage_methods import damage, keep_baseline
from runner.decode_batch import BatchShape, Completion, Request
from runner.decode_sampling import Sampling
from runner.decode_scheduler import BatchScheduler
from runner.model_load import load_model, locate
from runner.model_placement import unpack_4bit
from runner.run_setup import lesion_of, selection_of
from runner.spec import Model, Spec
from runner.spec_sweep import Sweep
from runner.target_tensor import Target

CPU = torch.device("cpu")
DEVICES = [CPU, torch.device("cuda", 0)] if torch.cuda.is_available() else [CPU]
GREEDY = Sampling(do_sample=False, temperature=1.0, top_k=0, top_p=1.0)


def targets_of(model: Any, spec: Spec, group: str) -> tuple[Target, ...]:
    """The tensors of a group, where their weights are."""
    return lesion_of(model, selection_of(spec, group)).targets


def spec_of(folder: Path, group: str) -> Spec:
    """A spec with one sweep on a group."""
    sweep = Sweep(name="one", method="mult_gauss", group=group, levels=(0.5,))
    return Spec(name="placed", prompts="none", model=Model(id=str(folder), dtype="float32"), sweeps=(sweep,))


def load(folder: Path, device: torch.device = CPU, *, load_4bit: bool = False) -> Any:
    """A tiny model."""
    return load_model(locate(Model(id=str(folder))), "float32", device, load_4bit=load_4bit)


def answers_of(model: Any) -> list[Completion]:
    """What the model says, greedily."""
    generator = BatchScheduler(model, BatchShape(rows=2, prompt_length=8, new_tokens=16), GREEDY, [2], 0)
    return generator.answer([Request([5, 6, 7, 8], "one", 1), Request([9, 10], "two", 1)])


def digest(targets: tuple[Target, ...]) -> str:
    """The digest of targets."""
    return digest_of([(target.name, target.weight) for target in targets])


@pytest.mark.slow
@pytest.mark.parametrize("group", ["mlp_only", "attn_only", "embed_only"])
@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_offloaded_weights_are_damaged_where_they_lie(checkpoints: dict[str, Path], kind: str, group: str) -> None:
    """A model whose layers are fetched when needed gets the same bits and says the same, tied embeddings included."""
    spec, found = spec_of(checkpoints[kind], group), []
    for offloaded in (False, True):
        model = load(checkpoints[kind])
        if offloaded:
            accelerate.cpu_offload(model, execution_device=CPU)
            assert any(parameter.is_meta for parameter in model.parameters())
        targets = targets_of(model, spec, group)
        damage(targets, keep_baseline(targets), "mult_gauss", 0.5, seed=3)
        found.append((digest(targets), answers_of(model)))
    assert found[0] == found[1]
    assert answers_of(load(checkpoints[kind])) != found[0][1]


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("group", ["mlp_only", "attn_only", "attn_all"])
def test_a_group_of_a_4bit_model_is_unpacked_once(
    checkpoints: dict[str, Path], group: str, device: torch.device
) -> None:
    """The group's weights are those that 4 bits hold; the rest stays packed; nothing is requantised."""
    import bitsandbytes  # two seconds, which the worker that does not run this is spared

    model = load(checkpoints["llama"], device, load_4bit=True)
    spec = spec_of(checkpoints["llama"], group)
    packed = {n: m for n, m in model.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)}
    held = {
        f"{name.removeprefix('model.')}.weight": bitsandbytes.functional.dequantize_4bit(
            m.weight.data, m.weight.quant_state
        )
        for name, m in packed.items()
    }
    unpack_4bit(model, targets_of(model, spec, group))
    targets = targets_of(model, spec, group)
    for target in targets:
        assert torch.equal(target.weight, held[target.name]), target.name
    left = [m for m in model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(left) == len(packed) - len(targets)
    intact, original = answers_of(model), [target.weight.clone() for target in targets]
    baseline = keep_baseline(targets)
    damage(targets, baseline, "mult_gauss", 0.5, seed=3)
    assert answers_of(model) != intact
    damage(targets, baseline, "mult_gauss", 0.0, seed=3)
    assert all(torch.equal(target.weight, kept) for target, kept in zip(targets, original, strict=True))
    assert answers_of(model) == intact
