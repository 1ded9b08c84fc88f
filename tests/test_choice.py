"""Which units a sweep chooses, as far as a spec says it: labels, contradictions, controls; no model."""

from pathlib import Path

import pytest

from runner.errors import SpecError
from runner.spec import Spec, dump_toml, load_spec, to_tables
from runner.spec_choice import chooses_at_random, weights_key

HEAD = 'name = "study"\nprompts = "questions"\nmodel = {id = "some/model"}\n'


def spec_of(tmp_path: Path, sweep: str) -> Spec:
    """A spec with one sweep."""
    path = tmp_path / "spec.toml"
    path.write_text(f"{HEAD}sweeps = [{{name = 's', {sweep}}}]\n")
    return load_spec(path)


ABLATION = 'method = "ablation", levels = [0.0, 0.5], group = "mlp_only"'
GAUSS = 'method = "mult_gauss", levels = [0.0, 0.5], group = "mlp_only"'
QUANT = 'method = "uni_quant", levels = [16, 4], group = "mlp_only"'


@pytest.mark.parametrize(
    ("sweep", "label", "random"),
    [
        (ABLATION, "mlp_only", False),
        (f'{ABLATION}, unit = "neuron"', "mlp_only[neuron]", True),
        (f'{ABLATION}, unit = "neuron", layers = "3", within = "layer"', "mlp_only[3][neuron][within layer]", True),
        (f'{ABLATION}, unit = "head", select = "highest", scores = "x/words.safetensors"',
         "mlp_only[head][highest words]", False),
        (f'{ABLATION}, unit = "head", select = "matched", scores = "words.safetensors"',
         "mlp_only[head][random as highest words]", True),
        (f'{ABLATION}, mask = "core.safetensors"', "mlp_only[mask core]", False),
        (f'{ABLATION}, coordinates = [["layers.0.mlp.down_proj.weight", 17, 301]]',
         "mlp_only[layers.0.mlp.down_proj.weight 17 301]", False),
        (f'{ABLATION}, protect = "largest 0.001"', "mlp_only[protect largest 0.001]", False),
        (f"{GAUSS}, share = 0.1", "mlp_only[share 0.1]", True),
        (f'{QUANT}, per = "row"', "mlp_only[per row]", False),
        (f'{QUANT}, per = "row", share = 0.25', "mlp_only[per row][share 0.25]", True),
        ('method = "bit_flip", levels = [0.1], group = "mlp_up", bits = [14, 3]', "mlp_up[bits 14 3]", False),
    ],
)  # fmt: skip
def test_labels_tell_what_is_chosen_and_how(tmp_path: Path, sweep: str, label: str, *, random: bool) -> None:
    """Every key that decides about the weights stands in the label; the spec written back reads equal."""
    spec = spec_of(tmp_path, sweep)
    assert list(spec.selections()) == [label]
    assert chooses_at_random(label) == random
    (tmp_path / "again.toml").write_text(dump_toml(to_tables(spec)))
    assert load_spec(tmp_path / "again.toml") == spec


def test_repeats_share_a_damaged_model_unless_something_is_drawn() -> None:
    """Also where a method draws nothing but its units are drawn; level 0 is the baseline however they are."""
    assert weights_key("mlp_only", "uni_quant", 4, 1) == weights_key("mlp_only", "uni_quant", 4, 2)
    assert weights_key("mlp_only[share 0.5]", "uni_quant", 4, 1) != weights_key(
        "mlp_only[share 0.5]", "uni_quant", 4, 2
    )
    assert weights_key("mlp_only[head]", "ablation", 0.0, 1) == weights_key("mlp_only[head]", "ablation", 0.0, 2)


def test_controls_are_curves_beside_what_is_chosen(tmp_path: Path) -> None:
    """What was asked for first, then the other end and as many at random, of every group and layer."""
    keys = 'unit = "neuron", select = "lowest", scores = "words.safetensors", controls = true'
    labels = ["mlp_only[neuron][lowest words]", "mlp_only[neuron][highest words]",
              "mlp_only[neuron][random as highest words]"]  # fmt: skip
    assert list(spec_of(tmp_path, f"{ABLATION}, {keys}").selections()) == labels
    grid = spec_of(tmp_path, f'{ABLATION}, {keys}, each = "layer", layers = "0-3"')
    assert len(grid.curves()) == 4 * 3


def test_coordinates_have_a_label_of_their_own_whatever_their_order(tmp_path: Path) -> None:
    """Two sets of weights are never one curve."""
    one, other = '["a.weight", 1, 2]', '["a.weight", 2, 1]'
    labels = [
        next(iter(spec_of(tmp_path, f"{ABLATION}, coordinates = [{listed}]").selections()))
        for listed in (f"{one}, {other}", f"{other}, {one}", f'{one}, ["a.weight", 2, 2]')
    ]
    assert labels[0] == labels[1] != labels[2]
    assert labels[0].startswith("mlp_only[2 coordinates ")


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (f'{ABLATION}, select = "highest"', "all but random need scores"),
        (f'{ABLATION}, scores = "x.safetensors"', "random has none"),
        (f"{ABLATION}, controls = true", 'controls = true adds controls to select = "highest" or "lowest"'),
        (f'{ABLATION}, unit = "channel", within = "layer"', 'no layer has several of unit = "channel"'),
        (f"{ABLATION}, share = 0.5", "share: ablation has no such option; mult_gauss"),
        (f'{GAUSS}, unit = "neuron"', "share: say which share of them is damaged"),
        (f"{GAUSS}, share = 0.0", "share: 0.0 is not allowed: must be more than 0 and at most 1"),
        (f'{ABLATION}, coordinates = [["a.weight", 1]], unit = "head"', "coordinates are single weights"),
        (f'{ABLATION}, coordinates = [["a.weight", -1]]', "must be a tensor and an index for each of its dimensions"),
        (f'{ABLATION}, coordinates = [[1, "a.weight"]]', "must be a tensor and an index for each of its dimensions"),
        (f"{ABLATION}, coordinates = [[true, 1]]", "coordinates[0][0]: True is not"),
        (f'{ABLATION}, protect = "largest"', "must be which weights stay whole"),
        ('method = "prune", levels = [0.1], group = "mlp_up", unit = "neuron"', "prune is about single weights"),
        (f'{ABLATION}, per = "row"', "per: ablation has no such option; uni_quant, add_gauss have"),
        (f'{ABLATION}, unit = "nose"', "sweeps[0].unit: 'nose' is not known here"),
    ],
)
def test_what_a_choice_cannot_be(tmp_path: Path, sweep: str, message: str) -> None:
    """Told without a model."""
    with pytest.raises(SpecError) as error:
        spec_of(tmp_path, sweep)
    assert message in str(error.value)
