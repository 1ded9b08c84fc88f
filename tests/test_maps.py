"""Grids in a report: which curves are one, what their cells hold, and the maps on the page, planted or run."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import polars as pl
import pytest
from forkserver import ForkServer
from helpers import Command, done
from hypothesis import example, given
from hypothesis import strategies as st
from planted_grids import PROJECTIONS, STRONG, WORDS, planted_grid
from scipy.stats import ttest_ind

from runner.report import report as make_report
from runner.report_changes import change, change_interval
from runner.report_effects import sample
from runner.report_grids import find_grids
from runner.report_maps import LIGHTEST, find_scale

T_TWO = 4.302653  # 97.5 % of Student's t with 2 degrees of freedom, from a printed table
LUMINANCE = (0.2126, 0.7152, 0.0722)  # of red, green and blue
LARGEST_PAGE = 2_000_000  # bytes, for a grid of 7 x 34 curves
CELL_COLUMNS = ["map", "level", "group", "layers", "value", "low", "high", "certain", "repeats", "texts"]

Records = list[dict[str, Any]]
Made = Callable[..., Path]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A report about some records, made in this process; the folder of its tables."""

    def make(records: Records, name: str = "out") -> Path:
        path = tmp_path / f"outputs_{name}.json"
        path.write_text("[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n", encoding="utf-8")
        make_report([path], tmp_path / name, texts=0)
        return tmp_path / name

    return make


def cells_of(folder: Path, metric: str, grid: str = "ablation") -> pl.DataFrame:
    """The cells of a map, as its CSV has them."""
    found = pl.read_csv(folder / "figures" / f"planted_model_{grid}_{metric}_map.csv", infer_schema_length=None)
    assert found.columns == CELL_COLUMNS
    return found.with_columns(pl.col("layers").cast(pl.String))


def summary_of(*labels: str, levels: tuple[float, ...] = (0.0, 0.1, 0.3), method: str = "ablation") -> pl.DataFrame:
    """As much of a summary as tells what is a grid."""
    rows = [
        {"sweep": f"{method} {label}", "method": method, "group": label, "level": level, "damage": damage,
         "reference": "undamaged"}
        for label in labels for damage, level in enumerate(levels)
    ]  # fmt: skip
    return pl.DataFrame(rows)


@pytest.mark.slow
def test_cells_are_those_of_a_hand_calculation(made: Made) -> None:
    """The strong cell has its change and interval in tokens and perplexity, the others noise around none."""
    folder = made(list(planted_grid()))
    tokens = cells_of(folder, "tokens")
    assert len(tokens) == 2 * 7 * 4
    assert tokens["group"].unique(maintain_order=True).to_list() == list(PROJECTIONS)
    # Means of repeats are 100 - 15 + (0, 1, -1): a standard deviation of 1, and of the intact model none between
    # repeats; its texts are +-2, a pooled variance of 12 x 4 / 9 over 12 texts, with 9 degrees of freedom.
    errors = (1 / 3, 16 / 3 / 12)
    freedom = sum(errors) ** 2 / (errors[0] ** 2 / 2 + errors[1] ** 2 / 9)
    assert freedom == pytest.approx(7.805, abs=1e-3)
    width = 2.3165 * math.sqrt(sum(errors))  # between t of 7, 2.3646, and of 8, 2.3060
    strong = tokens.filter(level=0.3, group="mlp_down", layers="2").row(0, named=True)
    assert (strong["value"], strong["certain"], strong["repeats"], strong["texts"]) == (-15, True, 3, 12)
    assert [strong["low"], strong["high"]] == pytest.approx([-15 - width, -15 + width], abs=2e-3)
    perplexity = cells_of(folder, "perplexity").filter(level=0.3, group="mlp_down", layers="2").row(0, named=True)
    # One intact model has no error; three damaged ones have logarithms log 80 + (0, 1, -1) log 1.1.
    half = T_TWO * math.log(1.1) / math.sqrt(3)
    assert [perplexity[key] for key in ("value", "low", "high")] == pytest.approx(
        [8, 8 * math.exp(-half), 8 * math.exp(half)], rel=1e-6
    )
    assert (perplexity["certain"], perplexity["repeats"], perplexity["texts"]) == (True, 3, 3)


@pytest.mark.slow
def test_a_strong_cell_stands_out_and_noise_is_pale(made: Made) -> None:
    """Of all cells the planted ones alone are certain: at both levels in tokens, at the last in perplexity."""
    folder = made(list(planted_grid()))
    for metric, levels in (("tokens", [0.1, 0.3]), ("perplexity", [0.3])):
        certain = cells_of(folder, metric).filter(pl.col("certain"))
        assert [*certain.select("level", "group", "layers").iter_rows()] == [
            (level, "mlp_down", "2") for level in levels
        ]
    page = (folder / "report.html").read_text()
    assert "At 0.3: 1 of 28 cells differ: most mlp_down 2 -15 (-17" in page
    assert "At 0.3: 1 of 28 cells differ: most mlp_down 2 times 8 (6.31 to 10.1)" in page
    svg = (folder / "figures" / "planted_model_ablation_tokens_map.svg").read_text()
    filled = re.findall(r'<path d="([^"]*)"[^>]*style="fill: (#\w+)([^"]*)"', svg)
    squares = [outline for outline, _, edge in filled if "stroke: #ffffff" in edge]
    dots = [outline for outline, colour, edge in filled if "stroke" not in edge and colour != "#ffffff"]
    assert sum(outline.count("z") for outline in squares) == 2
    assert sum(outline.count("z") for outline in dots if outline.count("z") > 1) == 54


@pytest.mark.slow
def test_maps_stand_in_for_curves(made: Made) -> None:
    """No figure, threshold or failure of a curve of the grid; all its numbers in the tables; SVG, PDF, PNG, CSV."""
    folder = made(list(planted_grid()))
    files = sorted(path.name for path in (folder / "figures").iterdir())
    stem = "planted_model_ablation_{}_map.{}"
    assert files == sorted(
        stem.format(metric, end) for metric in ("tokens", "perplexity") for end in ("csv", "pdf", "png", "svg")
    )
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 2
    assert "28 curves: 7 groups in 4 sets of layers" in page
    assert "about 1 of 28 cells" in page
    assert "ablation q_proj[1]" not in page[: page.index('id="texts"')]
    assert f"ablation {STRONG}</strong>" in page, "the texts of the worst cell are there to read"
    metrics = pl.read_csv(folder / "metrics.csv", infer_schema_length=None)
    assert metrics.filter(pl.col("metric") == "tokens")["sweep"].n_unique() == 29


@pytest.mark.slow
def test_the_maps_are_the_same_bytes_again(made: Made) -> None:
    """No date and no random name is in any file of a map."""
    records = list(planted_grid())
    first, second = (made(records, name) / "figures" for name in ("first", "second"))
    for path in sorted(first.iterdir()):
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


@pytest.mark.slow
def test_one_repeat_is_too_few(made: Made) -> None:
    """Nothing is certain with one damaged model in each cell; what there is is drawn as dots, and said."""
    folder = made(list(planted_grid(repeats=1)))
    tokens = cells_of(folder, "tokens")
    assert not tokens["certain"].any()
    assert tokens["low"].null_count() == len(tokens) == 56
    assert tokens["value"].min() == -15
    assert "0 of 28 cells differ" in (folder / "report.html").read_text()


@pytest.mark.slow
def test_a_damaged_model_without_numbers_is_a_cross(made: Made) -> None:
    """A perplexity that is no number leaves a cell without a value, which is not the same as no effect."""
    lost = ("v_proj[1]", 0.3)
    records = [
        record | {"perplexity": None} if (record["param_group_name"], record["std_dev"]) == lost else record
        for record in planted_grid()
    ]
    folder = made(records)
    cell = cells_of(folder, "perplexity").filter(level=0.3, group="v_proj", layers="1").row(0, named=True)
    assert (cell["value"], cell["certain"], cell["texts"]) == (None, False, 0)
    assert "#808080" in (folder / "figures" / "planted_model_ablation_perplexity_map.svg").read_text()


@pytest.mark.slow
def test_a_number_that_depends_on_no_seed_is_certain(made: Made) -> None:
    """The perplexity after quantisation is that of one model, however often it is asked; its texts are not certain."""
    quantised = [
        record | {"degradation_method": "uni_quant", "std_dev": {0.1: 64.0, 0.3: 4.0}[record["std_dev"]],
                  "perplexity": 40.0 if record["param_group_name"] == STRONG else 10.0}
        for record in planted_grid(repeats=1) if record["std_dev"]
    ]  # fmt: skip
    folder = made([*(record for record in planted_grid(repeats=1) if not record["std_dev"]), *quantised])
    found = cells_of(folder, "perplexity", "uni_quant")
    assert found["level"].unique(maintain_order=True).to_list() == [64, 4]
    certain = found.filter(pl.col("certain"))
    assert certain.select("group", "layers", "value").rows() == [("mlp_down", "2", pytest.approx(4))] * 2


@pytest.mark.slow
def test_thresholds_have_a_map_where_there_are_levels_enough(made: Made) -> None:
    """Of four levels the middle and the last are shown, and the threshold of the cell that reaches one."""
    folder = made(list(planted_grid(levels=(0.05, 0.1, 0.2, 0.4), prompts=12)))
    tokens = cells_of(folder, "tokens")
    assert tokens.filter(map="change")["level"].unique().sort().to_list() == [0.1, 0.4]
    thresholds = tokens.filter(map="threshold")
    assert len(thresholds) == 28
    strong = thresholds.drop_nulls("value").row(0, named=True)
    listed = pl.read_csv(folder / "thresholds.csv", infer_schema_length=None)
    (expected,) = listed.filter(sweep=f"ablation {STRONG}", metric="tokens").iter_rows(named=True)
    assert (strong["group"], strong["layers"]) == ("mlp_down", "2")
    assert [strong["value"], strong["low"], strong["high"]] == [
        expected[name] for name in ("threshold", "threshold_low", "threshold_high")
    ]
    page = (folder / "report.html").read_text()
    assert "Threshold: reached by 1 of 28 curves." in page
    assert "the middle and the last of 4" in page
    assert cells_of(made(list(planted_grid()), "two"), "tokens").filter(map="threshold").is_empty()


@pytest.mark.slow
def test_without_an_undamaged_model_the_least_damaged_level_is_said(made: Made) -> None:
    """A grid that nobody gave level 0 is compared with its own first level, and the page does not call it undamaged."""
    records = [record for record in planted_grid(levels=(0.1, 0.3)) if record["std_dev"]]
    folder = made(records)
    tokens = cells_of(folder, "tokens")
    assert tokens["level"].unique().to_list() == [0.3]
    assert tokens["value"].min() == -10
    page = (folder / "report.html").read_text()
    assert "there is no undamaged model to compare with" in page
    svg = (folder / "figures" / "planted_model_ablation_tokens_map.svg").read_text()
    assert "change from the least damaged level, at 0.3" in svg


def test_what_is_a_grid() -> None:
    """Labels that differ in group and layers alone; options and methods apart; rows and columns in their order."""
    layers = ("0-2", "3-5", "6-")
    labels = [f"{group}[{layer}]" for group in PROJECTIONS for layer in layers]
    neurons = [f"{group}[{layer}][neuron][highest language]" for group in ("mlp_up", "mine") for layer in range(11)]
    found = find_grids(pl.concat([summary_of(*labels), summary_of(*neurons, "all", "all[neuron]", "b[input]")]))
    plain, of_neurons = sorted(found, key=lambda grid: len(grid.options))
    assert (plain.groups, plain.layers, plain.name) == (PROJECTIONS, layers, "ablation")
    assert plain.curves["ablation k_proj[3-5]"] == ("k_proj", "3-5")
    assert plain.shown_levels == [0.1, 0.3]
    assert of_neurons.name == "ablation, neuron, highest language"
    assert of_neurons.groups == ("mlp_up", "mine")
    assert of_neurons.layers == tuple(map(str, range(11)))


@pytest.mark.parametrize(
    "labels",
    [
        [f"v_proj[{layer}]" for layer in range(6)],
        [f"{group}[3]" for group in PROJECTIONS],
        [*PROJECTIONS, "mlp_only", "attn_only"],
        ["v_proj[0-11]", "v_proj[12-]", "mlp_only[0-11]", "mlp_only[12-]"],
        [f"mlp_only[share 0.{number}]" for number in range(1, 9)],
    ],
    ids=["few", "one layer", "no layers", "halves", "shares"],
)
def test_what_is_no_grid(labels: list[str]) -> None:
    """Few curves, one set of layers or none stay curves."""
    assert find_grids(summary_of(*labels)) == []


@given(st.lists(st.text(alphabet="ab[]0-3, .", max_size=12), min_size=1, max_size=20, unique=True))
def test_any_label_is_read(labels: list[str]) -> None:
    """Names of groups come from anybody's records: every curve of a grid has a place of its own, and nothing fails."""
    for grid in find_grids(summary_of(*labels)):
        assert len(grid.curves) >= 7
        places = list(grid.curves.values())
        assert {group for group, _ in places} == {*grid.groups}
        assert {layers for _, layers in places} == {*grid.layers}


@given(
    st.lists(st.lists(st.integers(-50, 50), min_size=1, max_size=1), min_size=2, max_size=9),
    st.lists(st.lists(st.integers(-50, 50), min_size=1, max_size=1), min_size=2, max_size=9),
)
def test_the_interval_is_welchs(first: list[list[int]], second: list[list[int]]) -> None:
    """Of one value per repeat it is that of SciPy's test of unequal variances."""
    reference, damaged = sample(first), sample(second)
    if not (reference.between and damaged.between):
        return
    values = [[value for (value,) in one] for one in (second, first)]
    expected = ttest_ind(*values, equal_var=False).confidence_interval()
    assert change_interval(reference, damaged) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-9)


def test_where_nothing_varies_many_equal_texts_are_needed() -> None:
    """All texts loop under damage and none does before: certain of four and four, unknown of fewer."""
    none, every = ([[value] * 2] * 2 for value in (0.0, 1.0))
    assert change(sample(none), sample(every), 2) == (1.0, 1.0, 1.0)
    assert change(sample(none), sample([[1.0], [1.0]]), 2) == (1.0, None, None)
    assert change(sample(none), sample([[1.0] * 4]), 2) == (1.0, None, None)
    same = sample(none)
    assert change(same, same, 2) == (0.0, None, None)
    # Three of 24 texts loop, one in each repeat: the means are equal by chance, and texts say how uncertain they are.
    value, low, _ = change(sample([[0.0] * 8] * 3), sample([[1.0, *[0.0] * 7]] * 3), 2)
    assert value == pytest.approx(0.125)
    assert low is not None
    assert low < 0


@given(
    st.lists(st.floats(-1e3, 1e3, allow_nan=False), min_size=1, max_size=30),
    st.booleans(),
)
@example(values=[-1.0, 1.0], logarithmic=False)
@example(values=[-1.0, 1.0], logarithmic=True)
def test_a_scale_holds_its_values_and_gets_darker_without_a_turn(values: list[float], logarithmic: bool) -> None:  # noqa: FBT001
    """Lightness rises from one end to the other, and is darkest where the change is largest."""
    shown = [math.exp(value / 10) for value in values] if logarithmic else values
    base = 1.0 if logarithmic else 0.0
    scale = find_scale(shown, base, logarithmic=logarithmic)
    steps = scale.steps(np.array([*shown, base]))
    count = len(scale.norm.boundaries) - 1
    assert steps.min() >= 0
    assert steps.max() < count
    grey = scale.colours(np.arange(count))[:, :3] @ LUMINANCE
    assert (np.diff(grey) > 0).all() or (np.diff(grey) < 0).all()
    assert grey.max() <= np.array(mpl.colormaps["cividis"](LIGHTEST)[:3]) @ LUMINANCE + 1e-9
    sizes = np.abs(np.log(shown)) if logarithmic else np.abs(shown)
    largest = steps[:-1][sizes >= sizes.max() * (1 - 1e-9)]  # on both sides, if as much is lost as is won
    assert grey[largest].min() <= grey[steps[-1]]


@pytest.mark.slow
def test_a_large_grid_makes_a_small_page(forks: ForkServer, tmp_path: Path) -> None:
    """Through the command: 7 x 34 curves at two levels, with every measure of texts changing, and one figure each."""
    layers = [str(layer) for layer in range(34)]
    records = []
    for record in planted_grid(layers, prompts=2):
        _, _, layer = record["param_group_name"].rstrip("]").partition("[")
        kept = " ".join(WORDS.split()[int(layer or 0) % 9 :])
        ending = "length" if layer else "eos"
        records.append(record | {"output": f"{kept} {record['repeat_index']}", "finish_reason": ending})
    path = tmp_path / "outputs_large.json"
    path.write_text("[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n")
    run = done(forks.run("report", str(path), "--coherence-texts", "0", cwd=tmp_path))
    assert "Traceback" not in run.stderr
    page = tmp_path / "report" / "report.html"
    assert page.stat().st_size < LARGEST_PAGE
    figures = list((tmp_path / "report" / "figures").glob("*.svg"))
    assert 3 <= len(figures) <= 12
    assert page.read_text().count("<svg") == len(figures)
    assert len(cells_of(tmp_path / "report", "tokens")) == 2 * 7 * 34
    assert page.read_text().count("<details") < 20


@pytest.mark.slow
def test_a_grid_that_was_run_is_a_map(degrade: Command, forks: ForkServer, study: Path) -> None:
    """From a spec with each = "layer" through a run to the map: the cells are those of the records."""
    grid = "{name='map', method='ablation', group=['q_proj', 'v_proj', 'mlp_down'], each='layer', levels=[0.3, 0.9]}"
    intact = "{name='intact', method='ablation', group='mlp_down', levels=[0.0]}"
    done(degrade("--set", f"sweeps=[{intact}, {grid}]", "--set", "run.n_rep=3"))
    (path,) = (study / "results").glob("outputs_*.json")
    done(forks.run("report", str(path), "--coherence-texts", "0", "--out", str(study / "report"), cwd=study))
    (csv,) = (study / "report" / "figures").glob("*_ablation_tokens_map.csv")
    cells = pl.read_csv(csv, infer_schema_length=None)
    records = pl.DataFrame(json.loads(path.read_text())).with_columns(pl.col("tokens").cast(pl.Float64))
    means = {
        key: of.group_by("repeat_index").agg(pl.mean("tokens"))["tokens"].mean()
        for key, of in records.group_by("param_group_name", "std_dev")
    }
    assert len(cells) == 2 * 3 * 3
    for row in cells.iter_rows(named=True):
        expected = means[f"{row['group']}[{row['layers']}]", row["level"]] - means["mlp_down", 0.0]
        assert row["value"] == pytest.approx(expected)
    assert "9 curves: 3 groups in 3 sets of layers" in (study / "report" / "report.html").read_text()
