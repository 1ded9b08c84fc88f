"""Units along an axis are exactly the weights that a plain mask says, in any combination, whatever the method."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import transformers
from attrs import evolve, frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from runner import damage_blocks, philox
from runner.damage_backend import DamageBackend, TorchBackend
from runner.damage_effect import evidence
from runner.damage_methods import Baseline, damage, keep_baseline, restore
from runner.spec_methods import METHODS, Method
from runner.spec_targets import Group, Selection
from runner.target_groups import resolve_targets
from runner.target_tensor import Target, UnitSet

SEED = 11
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 24, "vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# What these do to a weight is known without its part; `test_methods` compares every method with NumPy.
CONDITIONS: list[tuple[Method, float]] = [("mult_gauss", 0.4), ("ablation", 0.4), ("uni_quant", 5), ("sign_flip", 0.4)]

MakeBackend = Callable[[Sequence[Target], Baseline], DamageBackend]


@frozen
class Case:
    """A tensor [lead, repeats, gap, size, inner], chosen pairs of indices along repeats and size, and some of them."""

    lead: int
    repeats: int
    gap: int
    size: int
    inner: int
    chosen: frozenset[int]
    some: frozenset[int]  # of the chosen; may be empty

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return self.lead, self.repeats, self.gap, self.size, self.inner

    def units(self) -> UnitSet:
        """The chosen ones."""
        period = self.gap * self.size * self.inner
        return UnitSet.of(self.size, self.inner, self.chosen, repeats=self.repeats, period=period)

    def table(self, units: frozenset[int]) -> Tensor:
        """Which of all pairs are these, bool [repeats * size]."""
        return torch.from_numpy(np.isin(np.arange(self.repeats * self.size), [*units]))

    def mask(self, units: frozenset[int]) -> Tensor:
        """Which weights of the tensor belong to these units, by naming their axes."""
        table = self.table(units).view(1, self.repeats, 1, self.size, 1)
        return table.expand(self.shape)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any shape, any of its units but none, and any of these."""
    repeats, size = draw(st.integers(1, 4)), draw(st.integers(1, 20))
    chosen = draw(st.frozensets(st.integers(0, repeats * size - 1), min_size=1))
    some = draw(st.frozensets(st.sampled_from(sorted(chosen))))
    small = st.integers(1, 3)
    return Case(draw(small), repeats, draw(small), size, draw(st.integers(1, 9)), chosen, some)


def damaged_alone(weight: Tensor, mask: Tensor, method: Method, level: float, name: str) -> Tensor:
    """What units are to give, without them: the whole tensor damaged, or what is chosen as a tensor of its own."""
    expected = weight.clone()
    measured = not METHODS[method].random
    whole = weight[mask] if measured else weight
    target = Target(name, whole.clone())
    damage([target], [whole], method, level, SEED)
    expected[mask] = target.weight if measured else target.weight[mask]
    return expected


def check_backend(make: MakeBackend, case: Case) -> None:
    """Damage, evidence, counts and numbers of values of two tensors, one of them whole, by each method."""
    weight = torch.randn(case.shape, generator=torch.Generator().manual_seed(case.size))
    mask = case.mask(case.chosen)
    targets = [Target("whole", weight.clone()), Target("units", weight.clone(), case.units())]
    assert targets[1].count == mask.sum()
    backend = make(targets, keep_baseline(targets))
    for method, level in CONDITIONS:
        backend.damage(method, level, SEED, chosen=[torch.tensor([False]), case.table(case.some)])
        some = case.mask(case.some)
        assert torch.equal(targets[0].weight, weight), "no unit of it was chosen"
        of_all = damaged_alone(weight, mask, method, level, "units")
        assert torch.equal(targets[1].weight, torch.where(some, of_all, weight)), (method, case)
        backend.damage(method, level, SEED)
        expected = [
            damaged_alone(weight, meant, method, level, target.name)
            for meant, target in zip((torch.ones_like(mask), mask), targets, strict=True)
        ]
        assert all(torch.equal(t.weight, e) for t, e in zip(targets, expected, strict=True)), (method, case)
        effect = evidence(targets, backend.sums(), count_values=True)
        kept = torch.cat([weight.flatten(), weight[mask]]).double()
        now = torch.cat([expected[0].flatten(), expected[1][mask]]).double()
        assert effect.weights == len(kept)
        assert effect.fraction_changed == (kept != now).sum() / len(kept)
        assert effect.fraction_zeroed == (now == 0).sum() / len(kept)
        assert effect.relative_change == pytest.approx(float((now - kept).norm() / kept.norm()), rel=1e-9)
        assert effect.distinct_values == max(len(expected[0].unique()), len(expected[1][mask].unique()))
    with pytest.raises(ValueError, match="units are marked of"):
        backend.damage("ablation", 1.0, SEED, chosen=[torch.tensor([True]), torch.ones(len(mask.flatten()) + 1)])
    restore(targets, backend.baseline)
    assert all(torch.equal(target.weight, weight) for target in targets)


@pytest.mark.slow
@settings(deadline=None)
@given(case=cases())
def test_any_units_are_damaged_as_a_mask_says(case: Case) -> None:
    """Random units of random shapes, also where they lie across blocks; `test_kernels` does the same in Triton."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(damage_blocks, "BLOCK", 64)
        check_backend(TorchBackend, case)


@pytest.mark.parametrize("units", [(), (-1,), (0, 4)])
def test_units_that_are_not_there_are_refused(units: tuple[int, ...]) -> None:
    """No unit, one below zero, one behind the end."""
    with pytest.raises(ValueError, match="are not some of 4, counted from 0"):
        UnitSet.of(4, 1, units)
    with pytest.raises(ValueError, match="are not some of 4, counted from 0"):
        UnitSet.of(2, 1, units, repeats=2, period=10)


def gauss_by_hand(name: str, weight: Tensor) -> Tensor:
    """W (1 + sigma z) for a whole tensor, in NumPy."""
    z = philox.normals(SEED, philox.stream_id("damage", name), 0, weight.numel()).reshape(weight.shape)
    return torch.from_numpy(weight.numpy() * (np.float32(1) + np.float32(0.5) * z))


def random_model(config: transformers.PretrainedConfig) -> torch.nn.Module:
    """A small model with weights of no use."""
    torch.manual_seed(3)
    return transformers.AutoModelForCausalLM.from_config(config).requires_grad_(requires_grad=False)


def test_query_and_value_of_phi3_are_damaged_together() -> None:
    """Rows 0 to 63 and 96 to 127 of the fused weight, the keys between them untouched: rows counted by hand."""
    model = random_model(transformers.Phi3Config(**SIZES))
    group = Group(include=("q_proj", "v_proj"))
    targets = resolve_targets(model, Selection(group="mine", definition=group))
    assert [target.name for target in targets] == [f"layers.{i}.self_attn.qkv_proj.weight" for i in range(2)]
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    damage(targets, keep_baseline(targets), "mult_gauss", 0.5, SEED)
    for name, weight in model.named_parameters():
        expected = before[name].clone()
        if "qkv_proj" in name:
            whole = gauss_by_hand(name.removeprefix("model."), before[name])
            assert len(whole) == 4 * 16 + 2 * 16 + 2 * 16
            expected[:64], expected[96:] = whole[:64], whole[96:]
        assert torch.equal(weight, expected), name
    assert [target.count for target in targets] == [(64 + 32) * 32] * 2


def test_two_heads_that_are_not_neighbours() -> None:
    """Heads 0 and 3 of four: their rows of the query projection, their columns of the output projection."""
    model = random_model(transformers.LlamaConfig(**SIZES))
    query = resolve_targets(model, Selection(group="q_proj"))[0]
    output = resolve_targets(model, Selection(group="o_proj"))[0]
    kept = query.weight.clone(), output.weight.clone()
    targets = [
        evolve(query, units=UnitSet.of(4, 16 * 32, (0, 3))),
        evolve(output, units=UnitSet.of(4, 16, (0, 3))),
    ]
    damage(targets, keep_baseline(targets), "mult_gauss", 0.5, SEED)
    rows, columns = gauss_by_hand(query.name, kept[0]), gauss_by_hand(output.name, kept[1])
    rows[16:48], columns[:, 16:48] = kept[0][16:48], kept[1][:, 16:48]
    assert torch.equal(query.weight, rows)
    assert torch.equal(output.weight, columns)
