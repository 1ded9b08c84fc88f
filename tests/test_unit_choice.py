"""Which units are chosen: exact shares, nested, by chance or by scores, in every layer or over all."""

import math
from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from runner import philox
from runner.errors import SpecError
from runner.spec_choice import UnitKind
from runner.spec_methods import exact_count
from runner.target_choice import (
    Within,
    chosen_units,
    marked_units,
    matched_random,
    random_order,
    score_order,
)
from runner.target_units import Units, masks_of

SHARES = [0.0, 0.001, 0.01, 0.05, 0.1, 0.145, 0.25, 0.3, 0.5, 0.55, 0.7, 0.9, 0.999, 1.0]


def units_of(counts: Mapping[int, int], kind: UnitKind = "neuron", layers: int = 30) -> Units:
    """So many units in these layers."""
    return Units(kind, counts, layers, ())


COUNTS = st.dictionaries(st.integers(0, 20), st.integers(1, 300), min_size=1, max_size=5).map(
    lambda counts: dict(sorted(counts.items()))
)


@pytest.mark.slow
@settings(deadline=None)
@given(counts=COUNTS, seed=st.integers(0, 2**64 - 1))
def test_shares_are_exact_and_nested(counts: dict[int, int], seed: int) -> None:
    """As many as decimal arithmetic says, in every layer or over all; what is chosen once is chosen at more, too."""
    units = units_of(counts)
    order = random_order(units, seed)
    assert sorted(order.tolist()) == list(range(units.total))
    withins: list[Within] = ["group", "layer"]
    for within in withins:
        before = torch.zeros(units.total, dtype=torch.bool)
        for share in SHARES:
            chosen = chosen_units(units, share, order=order, within=within)
            places = units.slices.values() if within == "layer" else [slice(0, units.total)]
            for place in places:
                wanted = (Decimal(str(share)) * (place.stop - place.start)).quantize(Decimal(1), ROUND_HALF_UP)
                assert int(chosen[place].sum()) == wanted, (share, place)
            assert not (before & ~chosen).any()
            before = chosen
        assert before.all()


@pytest.mark.parametrize(("share", "count", "wanted"), [(0.145, 100, 15), (0.1, 5, 1), (0.1, 4, 0), (0.35, 10, 4)])
def test_halves_are_rounded_up_as_the_decimals_of_the_spec_say(share: float, count: int, wanted: int) -> None:
    """0.145 of 100 is 14.5 and becomes 15, though the nearest binary number is a little less."""
    assert exact_count(share, count) == wanted


def test_a_random_order_is_that_of_the_words() -> None:
    """Ascending by the words of each layer's stream, whatever other layers there are."""
    units = units_of({3: 50, 7: 20})
    words = [
        philox.words(9, philox.stream_id("units", f"neuron {layer}"), 0, count) for layer, count in units.counts.items()
    ]
    expected = sorted(range(70), key=lambda unit: ((words[0].tolist() + words[1].tolist())[unit], unit))
    assert random_order(units, 9).tolist() == expected
    alone = chosen_units(units_of({7: 20}), 0.3, order=random_order(units_of({7: 20}), 9), within="layer")
    both = chosen_units(units, 0.3, order=random_order(units, 9), within="layer")
    assert torch.equal(both[50:], alone)
    assert random_order(units, 10).tolist() != expected


def test_equal_words_go_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two units with one word, as happens among 100 000 of them: the first comes first."""
    few = {"neuron 0": [5, 1, 5, 1], "neuron 1": [1, 9]}
    streams = {philox.stream_id("units", name): words for name, words in few.items()}
    monkeypatch.setattr(
        philox, "words", lambda _seed, stream, _first, _count: torch.tensor(streams[stream], dtype=torch.int64).numpy()
    )
    assert random_order(units_of({0: 4, 1: 2}), 1).tolist() == [1, 3, 4, 0, 2, 5]


@pytest.mark.slow
def test_every_unit_is_as_likely() -> None:
    """A tenth of 40 units in 2000 repeats: each is chosen 200 times, give or take."""
    units = units_of({0: 30, 1: 10})
    total = torch.zeros(40)
    for seed in range(2000):
        total += chosen_units(units, 0.1, order=random_order(units, seed), within="group")
    assert total.sum() == 8000
    assert stats.chisquare(total.numpy()).pvalue > 1e-3


SCORES = {"neuron.2": torch.tensor([0.5, 2.0, -1.0]), "neuron.5": torch.tensor([2.0, 0.0, -0.0, 9.0])}


def test_scores_order_units() -> None:
    """The highest or the lowest first; equal ones, and both zeros, by number."""
    units = units_of({2: 3, 5: 4})
    assert score_order(units, SCORES, highest=True).tolist() == [6, 1, 3, 0, 4, 5, 2]
    assert score_order(units, SCORES, highest=False).tolist() == [2, 4, 5, 0, 1, 3, 6]
    top = chosen_units(units, 0.34, order=score_order(units, SCORES, highest=True), within="layer")
    assert top.tolist() == [False, True, False, False, False, False, True]
    half = {name: score.half() for name, score in SCORES.items()}
    assert torch.equal(score_order(units, half, highest=True), score_order(units, SCORES, highest=True))


def test_one_tensor_says_it_of_all_layers_or_channels() -> None:
    """`layer` has an entry for each layer of the model, also where the group has some of them; `channel` for each."""
    layers = units_of({1: 1, 3: 1}, "layer", layers=4)
    assert score_order(layers, {"layer": torch.tensor([9.0, 1.0, 9.0, 2.0])}, highest=True).tolist() == [1, 0]
    channels = units_of({-1: 3}, "channel")
    assert score_order(channels, {"channel": torch.tensor([1.0, 3.0, 2.0])}, highest=True).tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ({"neuron.2": SCORES["neuron.2"]}, r"scores: there is no tensor 'neuron.5'; there are: neuron.2$"),
        ({}, r"scores: there is no tensor 'neuron.2'; there are: none$"),
        (SCORES | {"neuron.5": torch.zeros(3)}, r"scores: neuron.5 has the shape \[3\], \[4\] is needed"),
        (SCORES | {"neuron.5": torch.zeros(2, 2)}, r"scores: neuron.5 has the shape \[2, 2\], \[4\] is needed"),
        (SCORES | {"neuron.5": torch.tensor([0, 1, math.nan, 2])}, r"scores: neuron.5 has scores that are no number"),
    ],
)
def test_scores_that_do_not_fit_are_refused(scores: dict[str, Tensor], said: str) -> None:
    """With the tensor at fault and what would be right."""
    with pytest.raises(SpecError, match=said):
        score_order(units_of({2: 3, 5: 4}), scores, highest=True)


def test_masks_mark_units() -> None:
    """As a file says; numbers are no mask."""
    masks = {name: score > 1 for name, score in SCORES.items()}
    units = units_of({2: 3, 5: 4})
    assert marked_units(units, masks).tolist() == [False, True, False, True, False, False, True]
    with pytest.raises(SpecError, match=r"mask: neuron.2 has values of torch.float32, not bool"):
        marked_units(units, SCORES)
    with pytest.raises(SpecError, match=r"mask: there is no tensor 'neuron.5'"):
        marked_units(units, {"neuron.2": masks["neuron.2"]})


@pytest.mark.slow
@settings(deadline=None)
@given(counts=COUNTS, seed=st.integers(0, 2**32), data=st.data())
def test_a_matched_control_has_as_many_in_every_layer(counts: dict[int, int], seed: int, data: Any) -> None:
    """And they are the first of the random order there."""
    units = units_of(counts)
    chosen = torch.tensor(data.draw(st.lists(st.booleans(), min_size=units.total, max_size=units.total)))
    control, order = matched_random(units, chosen, seed), random_order(units, seed).tolist()
    for place in units.slices.values():
        inside = [unit for unit in order if place.start <= unit < place.stop]
        assert control[place].sum() == chosen[place].sum()
        assert control[inside].tolist() == sorted(control[inside].tolist(), reverse=True)


def test_masks_of_targets_follow_the_units() -> None:
    """An index of no unit is in no mask, whatever is selected."""
    units = Units("neuron", {0: 2, 1: 1}, 2, (torch.tensor([0, 1, -1, 0]), torch.tensor([2]), torch.tensor([-1, -1])))
    found = masks_of(units, torch.tensor([True, False, True]))
    assert [mask.tolist() for mask in found] == [[True, False, False, True], [True], [False, False]]
    assert not any(mask.any() for mask in masks_of(units, torch.zeros(3, dtype=torch.bool)))
