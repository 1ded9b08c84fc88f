"""Grids: a curve for every group and every few layers of one sweep, in a spec, in a plan and through the command."""

from pathlib import Path

import pytest
from helpers import Command, done, records_in, refused
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import SpecError
from runner.run_plan import all_conditions
from runner.spec import Spec, load_spec
from runner.spec_targets import layers_in, windows_of

HEAD = """
name = "map"
prompts = "questions"
model = {id = "some/model"}
run = {n_rep = 2}
"""
SWEEP = 'name = "map", method = "ablation", levels = [0.0, 0.5]'


def spec_of(tmp_path: Path, sweep: str) -> Spec:
    """A spec with one sweep."""
    path = tmp_path / "spec.toml"
    path.write_text(f"{HEAD}\nsweeps = [{{{SWEEP}, {sweep}}}]\n")
    return load_spec(path)


@given(st.sets(st.integers(0, 60), min_size=1), st.integers(1, 9))
def test_windows_are_the_layers_in_their_order(layers: set[int], size: int) -> None:
    """Each layer is in one window, and all but the last are full."""
    windows = windows_of(",".join(map(str, layers)), size)
    found = [sorted(layers_in(window, 61)) for window in windows]
    assert [layer for window in found for layer in window] == sorted(layers)
    assert {len(window) for window in found[:-1]} <= {size}


def test_a_grid_is_a_curve_for_every_group_and_window(tmp_path: Path) -> None:
    """Labelled as sweeps of one group are; how many layers there are is the model's to say, if the spec does not."""
    spec = spec_of(tmp_path, 'group = ["q_proj", "mlp_down"], each = "layer", window = 2')
    assert spec.needs_layers
    with pytest.raises(ValueError, match="not known without a model"):
        spec.curves()
    known = spec.of_model(5)
    labels = ["q_proj[0-1]", "q_proj[2-3]", "q_proj[4]", "mlp_down[0-1]", "mlp_down[2-3]", "mlp_down[4]"]
    assert [curve.label for curve in known.curves()] == list(known.selections()) == labels
    assert not known.needs_layers
    assert known.of_model(9) == known  # what is spelt out stays
    conditions = all_conditions(known)
    assert {condition.sweep for condition in conditions} == {"map"}
    assert len(conditions) == len(labels) * 2 * 2


def test_a_grid_of_some_layers(tmp_path: Path) -> None:
    """A range without an end ends with the model, a list stays a list."""
    open_ended = spec_of(tmp_path, 'group = "v_proj", layers = "3-", each = "layer"')
    assert [curve.label for curve in open_ended.of_model(6).curves()] == ["v_proj[3]", "v_proj[4]", "v_proj[5]"]
    listed = spec_of(tmp_path, 'group = "v_proj", layers = "0,4,8", each = "layer"')
    assert [curve.label for curve in listed.curves()] == ["v_proj[0]", "v_proj[4]", "v_proj[8]"]
    with pytest.raises(SpecError, match=r"sweeps\[0\].layers: '9-' reaches beyond the 6 layers"):
        spec_of(tmp_path, 'group = "v_proj", layers = "9-", each = "layer"').of_model(6)


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ('group = ["q_proj", "vproj"]', "sweeps[0].group: 'vproj' is no parameter group; did you mean v_proj?"),
        ('group = ["q_proj", "q_proj"]', "sweeps[0]: group = ['q_proj', 'q_proj'] names one of them twice"),
        ("group = []", "sweeps[0].group: [] is not allowed: must be non-empty"),
        ("group = 3", "sweeps[0].group: 3 is not a string"),
        ('group = "q_proj", window = 3', 'sweeps[0]: window = 3 is so many layers of each = "layer", which is missing'),
        ('group = "q_proj", each = "head"', "sweeps[0].each: 'head' is not known here; known: layer"),
        ('group = ["v_proj", "reference_attn"], each = "layer"', "reference_attn has layers of text and of vision"),
        ('group = ["embed_only", "q_proj"], tied = "input"', "tied = 'input' has a meaning for the groups"),
    ],
)
def test_what_a_grid_cannot_be(tmp_path: Path, sweep: str, message: str) -> None:
    """Told with its path, without a model."""
    with pytest.raises(SpecError) as error:
        spec_of(tmp_path, sweep)
    assert message in str(error.value)


GRID = 'sweeps=[{name="map", method="ablation", group=["q_proj", "mlp_down"], each="layer", levels=[0.0, 0.5]}]'
SPELT_OUT = ", ".join(
    f'{{name="{group}{layer}", method="ablation", group="{group}", layers="{layer}", levels=[0.0, 0.5]}}'
    for group in ("q_proj", "mlp_down")
    for layer in range(3)
)


@pytest.mark.slow
def test_a_grid_makes_the_records_of_its_sweeps_written_one_by_one(degrade: Command, study: Path) -> None:
    """The same records, its layers in the sidecar, nothing to do the second time, and a table in the dry run."""
    options = ("--set", "run.n_rep=1")
    shown = done(degrade("--dry-run", "--set", GRID, *options)).stdout
    assert "grid map: 6 curves" in shown
    assert "q_proj[0] .. q_proj[2]" in shown
    done(degrade("--set", GRID, *options))
    done(degrade("--set", f"sweeps=[{SPELT_OUT}]", *options, "--results", "others"))
    assert records_in(study / "results") == records_in(study / "others")
    assert {record["param_group_name"] for record in records_in(study / "results")} >= {"q_proj[0]", "mlp_down[2]"}
    (sidecar,) = (study / "results").glob("*.toml")
    assert 'layers = "0-2"' in sidecar.read_text()
    assert "nothing to do" in done(degrade("--set", GRID, *options)).stderr


def test_layers_that_the_model_does_not_have(degrade: Command) -> None:
    """Refused before anything is written, with their path."""
    refused(degrade("--set", GRID.replace('each="layer"', 'each="layer", layers="7-"')), 2, "sweeps[0].layers: '7-'")
