"""Damage is exactly the formula, a pure function of its arguments, and is undone to the last bit."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from runner import damage_blocks as damages
from runner import philox, target_groups
from runner.damage_methods import damage, keep_baseline, restore
from runner.damage_model import DamagedModel
from runner.errors import SpecError
from runner.model_load import Source, load_model
from runner.spec_methods import Method
from runner.spec_targets import Selection
from runner.target_lesion import Lesion, make_lesion
from runner.target_tensor import Target

NAME = "layers.0.self_attn.v_proj.weight"
SEED = 42
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
CONDITIONS: list[tuple[Method, float]] = [("mult_gauss", 0.3), ("ablation", 0.3), ("uni_quant", 16)]
MILLION = (1000, 1000)


def random_weight(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    """Weights as a model has them: small, of both signs, none of them zero."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.05
    return torch.where(drawn == 0, 0.05, drawn).to(dtype)


def damaged(weight: Tensor, method: Method, level: float, seed: int = SEED, name: str = NAME) -> Tensor:
    """A damaged copy of one tensor."""
    target = Target(name, weight.clone())
    damage([target], [weight], method, level, seed)
    return target.weight


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are equal bit for bit: NaN equals NaN, and the sign of zero counts."""
    return left.dtype == right.dtype and torch.equal(left.view(torch.uint8), right.view(torch.uint8))


def nearest(weight: Tensor, levels: int) -> np.ndarray:
    """The nearest of all levels by trying each, in exact integers; of two equally near the one of even index."""
    scaled = weight.double().numpy().reshape(-1) * 2.0**50
    whole = scaled.astype(np.int64)
    assert (whole == scaled).all(), "these weights need a finer unit than 2**-50"
    low, high = whole.min(), whole.max()
    even_first = np.concatenate([np.arange(0, levels, 2), np.arange(1, levels, 2)])
    distances = np.abs((whole - low)[:, None] * (levels - 1) - even_first * (high - low))
    values = np.linspace(low / 2.0**50, high / 2.0**50, levels).astype(np.float32)
    return values[even_first[distances.argmin(axis=1)]].reshape(weight.shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", ["mult_gauss", "ablation"])
def test_level_zero_is_the_baseline_bit_for_bit(method: Method, dtype: torch.dtype) -> None:
    """No damage is no change, not even to NaN, infinity, a subnormal number or the sign of a zero."""
    weight = random_weight(40, 40, dtype=dtype)
    weight[0, :6] = torch.tensor([-0.0, 0.0, torch.inf, -torch.inf, torch.nan, torch.finfo(dtype).tiny / 4])
    assert same_bits(damaged(weight, method, 0.0), weight)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sigma", [0.1, 1.4])
def test_gauss_is_the_formula_in_float32_rounded_once(dtype: torch.dtype, sigma: float) -> None:
    """W * (1 + sigma * z), every operation in float32 and one rounding at the end, as NumPy computes it."""
    weight = random_weight(64, 80, dtype=dtype)
    z = philox.normals(SEED, philox.stream_id("damage", NAME), 0, weight.numel()).reshape(64, 80)
    expected = torch.from_numpy(weight.float().numpy() * (np.float32(1) + np.float32(sigma) * z)).to(dtype)
    found = damaged(weight, "mult_gauss", sigma)
    assert same_bits(found, expected), (found - expected).abs().max()
    native = weight * (1 + torch.tensor(sigma, dtype=dtype) * torch.from_numpy(z).to(dtype))
    assert dtype == torch.float32 or not torch.equal(found, native), "this test cannot tell float32 from the dtype"


def test_gauss_has_the_standard_deviation_that_is_asked_for() -> None:
    """(w'/w - 1) / sigma is standard normal, and the same z at every sigma of a repeat."""
    weight = random_weight(*MILLION).double()
    z = {s: (damaged(weight.float(), "mult_gauss", s).double() / weight - 1) / s for s in (0.1, 0.5, 1.4)}
    for sigma, values in z.items():
        assert abs(values.mean().item()) < 4.5e-3, (sigma, values.mean())
        assert abs(values.std().item() - 1) < 3.5e-3, (sigma, values.std())
        assert (values - z[1.4]).abs().max() < 1e-5, (sigma, (values - z[1.4]).abs().max())


def test_ablation_zeroes_the_fraction_that_is_asked_for_and_nests() -> None:
    """A weight that is zero at p stays zero at every greater p, the others keep every bit, and p = 1 leaves none."""
    weight, before = random_weight(*MILLION), torch.zeros(MILLION, dtype=torch.bool)
    for p in (0.01, 0.1, 0.2, 0.5, 0.8, 1.0):
        found = damaged(weight, "ablation", p)
        zero = found == 0
        assert stats.binomtest(int(zero.sum()), weight.numel(), p).pvalue > 1e-3, (p, zero.double().mean())
        assert not (before & ~zero).any(), f"{(before & ~zero).sum()} weights came back at p = {p}"
        assert torch.equal(found[~zero], weight[~zero])
        before = zero
    assert before.all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ablation_compares_exact_numbers(dtype: torch.dtype) -> None:
    """A weight is zero if and only if word / 2**32 < p in exact arithmetic, at p just beside its word as well."""
    weight = random_weight(300, dtype=dtype)
    words = philox.words(SEED, philox.stream_id("damage", NAME), 0, 300).tolist()
    edges = [words[7] / 2**32, np.nextafter(words[7] / 2**32, 1), (words[7] + 1) / 2**32, words[8] / 2**32]
    for p in (0.1, 0.3, 2.0**-33, 1 - 2.0**-40, *map(float, edges)):
        expected = torch.tensor([Fraction(word, 2**32) < Fraction(p) for word in words])
        assert torch.equal(damaged(weight, "ablation", p) == 0, expected), p


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("levels", [2, 3, 4, 17, 256])
@pytest.mark.parametrize("offset", [0.0, 1.0, -1.0], ids=["both signs", "positive", "negative"])
def test_quantisation_takes_the_nearest_level(offset: float, levels: int, dtype: torch.dtype) -> None:
    """Every weight becomes the nearest of the levels that trying all of them finds; the ends stay where they are."""
    weight = (random_weight(50, 40).float() + offset).to(dtype)
    found = damaged(weight, "uni_quant", levels)
    expected = torch.from_numpy(nearest(weight, levels)).to(dtype)
    wrong = found != expected
    assert not wrong.any(), (weight[wrong], found[wrong], expected[wrong])
    assert found.aminmax() == weight.aminmax()


@pytest.mark.parametrize("levels", [2, 4, 37, 1024])
def test_quantisation_leaves_as_many_values_as_levels(levels: int) -> None:
    """N levels are N distinct float32 numbers, those of linspace, and quantising again changes nothing."""
    weight = torch.rand(200_000, generator=torch.Generator().manual_seed(2)) - 0.3
    found = damaged(weight, "uni_quant", levels)
    low, high = (float(bound) for bound in weight.aminmax())
    assert found.unique().tolist() == np.linspace(low, high, levels).astype(np.float32).tolist()
    assert same_bits(damaged(found, "uni_quant", levels), found)


def test_quantisation_keeps_the_ends_to_the_last_bit() -> None:
    """A maximum next to zero is not lost in the rounding of minimum + steps, at any number of levels."""
    weight = torch.tensor([-0.7, -0.1, 1e-12])
    for levels in range(2, 200):
        found = damaged(weight, "uni_quant", levels)
        assert found.aminmax() == weight.aminmax(), (levels, found)


def test_quantisation_ties_go_to_the_even_level() -> None:
    """Half-way weights neither all rise nor all fall, which would shift the tensor's mean."""
    weight = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0])
    assert damaged(weight, "uni_quant", 4).tolist() == [0, 0, 1, 2, 2, 2, 3]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [0.0, -0.0, 0.3, -7.0])
def test_a_constant_tensor_is_unchanged_by_quantisation(value: float, dtype: torch.dtype) -> None:
    """A tensor of one value has no range to divide; it stays as it is at any number of levels."""
    weight = torch.full((8, 8), value, dtype=dtype)
    assert same_bits(damaged(weight, "uni_quant", 4), weight)


@pytest.mark.parametrize(("method", "level"), CONDITIONS[:2])
def test_repeats_and_names_have_their_own_damage(method: Method, level: float) -> None:
    """Another repeat, or another tensor of the same shape, is damaged independently; the same one identically."""
    weight = torch.ones(300_000)
    base = damaged(weight, method, level)
    assert same_bits(damaged(weight, method, level), base)
    for seed, name in ((SEED + 1, NAME), (SEED, NAME.replace("0", "1"))):
        other = damaged(weight, method, level, seed, name)
        correlation = torch.corrcoef(torch.stack([base, other]))[0, 1].item()
        assert abs(correlation) * 300_000**0.5 < 4.5, (seed, name, correlation)


@pytest.mark.parametrize(("method", "level"), [*CONDITIONS, ("ablation", 1.0)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_damage_starts_from_the_baseline_and_stays_in_place(method: Method, level: float, dtype: torch.dtype) -> None:
    """Whatever damage was there before, a condition is the same, in the same storage, and undone exactly."""
    weight = random_weight(33, 20, dtype=dtype)
    targets = [Target(NAME, weight.clone()), Target("embed_tokens.weight", weight.clone())]
    places, baseline = [target.weight.data_ptr() for target in targets], keep_baseline(targets)
    for before, other in (("mult_gauss", 1.4), ("uni_quant", 2), (method, level)):
        damage(targets, baseline, before, other, SEED + 1)
        damage(targets, baseline, method, level, SEED)
        assert same_bits(targets[0].weight, damaged(weight, method, level))
    assert [target.weight.data_ptr() for target in targets] == places
    restore(targets, baseline)
    assert all(same_bits(target.weight, weight) for target in targets)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "level"), CONDITIONS)
@pytest.mark.parametrize("block", [4, 64, 1000])
def test_damage_does_not_depend_on_the_size_of_blocks(
    method: Method, level: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many weights are computed at a time is about memory only, also where the last block is short."""
    weight = random_weight(37, 53)
    expected = damaged(weight, method, level)
    monkeypatch.setattr(damages, "BLOCK", block)
    assert same_bits(damaged(weight, method, level), expected)


@pytest.mark.parametrize(("method", "level"), CONDITIONS[:2])
def test_the_damage_of_a_weight_depends_on_its_flat_index_alone(method: Method, level: float) -> None:
    """The first rows of a tensor are damaged alike whatever its shape and whatever follows them."""
    weight = random_weight(60, 50)
    whole = damaged(weight, method, level)
    assert same_bits(damaged(weight[:21].clone(), method, level), whole[:21])
    assert same_bits(damaged(weight.view(100, 30), method, level).view(60, 50), whole)


@pytest.fixture
def model(checkpoints: dict[str, Path]) -> torch.nn.Module:
    """The tiny Llama in bfloat16."""
    return load_model(Source(str(checkpoints["llama"]), {}), "bfloat16", torch.device("cpu"))


def patient_of(model: torch.nn.Module) -> DamagedModel:
    """A patient whose groups are those of the spec."""

    def find(group: str) -> Lesion:
        return make_lesion(model, Selection(group=group))

    return DamagedModel(find)


def changed(model: torch.nn.Module, before: dict[str, Tensor]) -> set[str]:
    """The last words of the names of all tensors that are not as they were, such as `v_proj`."""
    return {name.split(".")[-2] for name, weight in model.state_dict().items() if not same_bits(weight, before[name])}


def test_a_patient_recovers_every_bit(model: torch.nn.Module) -> None:
    """Leaving the block restores the whole model, after an exception too, and the exception goes on."""
    before = {name: weight.clone() for name, weight in model.state_dict().items()}

    def treat(group: str, expected: set[str], error: type[BaseException] | None) -> None:
        with patient_of(model) as patient:
            patient.damage(group, "mult_gauss", 0.5, SEED)
            assert changed(model, before) == expected
            if error:
                raise error

    treat("mlp_only", {"gate_proj", "up_proj", "down_proj"}, None)
    assert changed(model, before) == set()
    with pytest.raises(KeyboardInterrupt):
        treat("attn_only", {"v_proj"}, KeyboardInterrupt)
    assert changed(model, before) == set()


def test_a_patient_changes_groups_cleanly(model: torch.nn.Module) -> None:
    """Damage to one group is gone before another is damaged, also where the other does not exist."""
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with patient_of(model) as patient:
        patient.damage("attn_only", "ablation", 0.5, SEED)
        first = patient.damage("embed_only", "mult_gauss", 0.5, SEED)
        assert changed(model, before) == {"embed_tokens"}
        with pytest.raises(SpecError, match="reference_attn"):
            patient.damage("reference_attn", "ablation", 0.5, SEED)
        assert changed(model, before) == set()
        assert patient.damage("embed_only", "mult_gauss", 0.5, SEED) == first
        assert changed(model, before) == {"embed_tokens"}


def test_a_patient_is_damaged_once_per_state(model: torch.nn.Module) -> None:
    """Repeats of a deterministic level find the model as it is; a mark on a weight outlives them, and only them."""
    weight = target_groups.resolve_targets(model, Selection(group="attn_only"))[0].weight
    with patient_of(model) as patient:
        for method, level in (("uni_quant", 4), ("mult_gauss", 0.0), ("ablation", 0.0)):
            patient.damage("attn_only", method, level, SEED)
            weight[0, 0] = 99.0
            patient.damage("attn_only", method, level, SEED + 1)
            assert weight[0, 0] == 99.0, (method, level)
        patient.damage("attn_only", "mult_gauss", 0.5, SEED)
        weight[0, 0] = 99.0
        patient.damage("attn_only", "mult_gauss", 0.5, SEED + 1)
        assert weight[0, 0] != 99.0


def test_equal_digests_mean_equal_damage(model: torch.nn.Module) -> None:
    """The digest names the state: equal along deterministic repeats and later visits, else different."""
    states: list[tuple[Method, float, int]] = [("mult_gauss", 0.0, 0), ("mult_gauss", 0.5, 0), ("mult_gauss", 0.5, 1)]
    states += [("mult_gauss", 0.25, 0), ("ablation", 0.5, 0), ("ablation", 0.5, 1), ("uni_quant", 4, 0)]
    with patient_of(model) as patient:
        first = [patient.damage("mlp_only", *state) for state in states]
        assert [patient.damage("mlp_only", *state) for state in reversed(states)] == first[::-1]
        assert len(set(first)) == len(states), first
        assert patient.damage("mlp_only", "uni_quant", 4, 9) == first[-1]
        assert patient.damage("mlp_only", "ablation", 0.0, 9) == first[0]
