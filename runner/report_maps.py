"""Heat maps of a grid: groups by layers, one map per level and one of thresholds; what is uncertain is left pale.

Cividis is even to the eye, also to a colour-blind one, and its lightness rises steadily, so that a grey copy can be
read (Nunez, Anderton & Renslow 2018, "Optimizing colormaps with consideration for color vision deficiency").
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import polars as pl
from attrs import frozen
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from runner.metric import Metric
from runner.report_figures import INK, STYLE, save
from runner.report_grids import Grid, no_change
from runner.report_statistics import LOGARITHMIC
from runner.spec_methods import METHODS

STEPS = 10  # of a colour scale, at most
LIGHTEST = 0.85  # of cividis: its end is hard to tell from white paper
DOT = 0.22  # of the width of a cell
CELL, DIGIT = 0.22, 0.07  # inches: of a cell at least, and of one character in the name of its layers
WIDEST = 14.0  # inches of all cells side by side
MARGIN = 1.9  # inches beside them, of names and scale
ABOVE = 0.55  # inches over and under a map
LEGEND = 0.75  # inches
CHARACTERS_PER_INCH = 17
PAPER, UNKNOWN = "white", "#808080"

LEGENDS = {
    "change": "Full squares: the 95 % interval over repeats excludes no change. Pale with a dot: it does not, or there "
    "are too few repeats to tell (below two; below three for the perplexity of a fixed text). A cross: no number.",
    "threshold": "Thresholds: full if the interval ends within the sweep, a dot if it has no known end, empty where "
    "the sweep does not reach one.",
}


@frozen(kw_only=True)
class Scale:
    """Steps of colour, dark for what matters more: a large change, a small threshold."""

    norm: BoundaryNorm
    colours: ListedColormap
    logarithmic: bool

    def steps(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """The step of each value, counted from 0; of a value beyond the scale its end."""
        found: NDArray[np.int64] = np.digitize(self._on_axis(values), self.norm.boundaries[1:-1])
        return found

    def _on_axis(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.log10(values) if self.logarithmic else values


def find_scale(values: Sequence[float], base: float | None, *, logarithmic: bool, low_is_dark: bool = False) -> Scale:
    """A scale over some values, and over `base`, the value of no change, which is at its light end or between."""
    ends = np.array([*values, *([] if base is None else [base])])
    ends = np.log10(ends) if logarithmic else ends
    ticks = MaxNLocator(STEPS, steps=[1, 2, 2.5, 5, 10]).tick_values(float(ends.min()), float(ends.max()))
    boundaries = [float(tick) for tick in ticks]
    colours = mpl.colormaps["cividis"](np.linspace(0, LIGHTEST, len(boundaries) - 1))
    if base is not None:
        middle = np.log10(base) if logarithmic else base
        low_is_dark = middle - ends.min() > ends.max() - middle
    norm = BoundaryNorm(boundaries, len(boundaries) - 1)
    return Scale(norm=norm, colours=ListedColormap(colours if low_is_dark else colours[::-1]), logarithmic=logarithmic)


def draw_maps(metric: Metric, grid: Grid, cells: pl.DataFrame) -> Figure:
    """The maps of one measure of one grid, below each other: `cells` as `report_grids.cells` gives them."""
    maps = [(key, rows) for key, rows in cells.group_by("map", "level", maintain_order=True) if rows["value"].count()]
    longest = max(map(len, grid.layers))
    cell = min(max(CELL, DIGIT * longest + 0.1), WIDEST / len(grid.layers))
    width = MARGIN + max(cell * len(grid.layers), 3.0)
    kinds = dict.fromkeys(str(kind) for (kind, _), _ in maps)
    legend = textwrap.fill(" ".join(LEGENDS[kind] for kind in kinds), round(width * CHARACTERS_PER_INCH))
    with mpl.rc_context({**STYLE, "axes.facecolor": PAPER, "axes.spines.right": True, "axes.spines.top": True}):
        height = LEGEND + len(maps) * (ABOVE + CELL * len(grid.groups))
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(maps), 1, squeeze=False)[:, 0]
        for kind in kinds:
            rows = cells.filter(pl.col("map") == kind)
            scale = _scale_of(kind, metric, grid, rows["value"].drop_nulls().to_list())
            chosen = [(axes, key, of) for axes, (key, of) in zip(panels, maps, strict=True) if key[0] == kind]
            for axes, (_, level), of in chosen:
                _draw_map(axes, grid, of, scale, cell)
                said = f"{_said_change(metric, grid)}, at {level:g}" if kind == "change" else "threshold"
                axes.set_title(f"{metric.label}, {grid.name}: {said}", fontsize=9, loc="left")
            _draw_scale(figure, [axes for axes, *_ in chosen], scale, _unit_of(kind, metric, grid))
        panels[-1].set_xlabel("layer")
        figure.supxlabel(legend, fontsize=7, ha="left", x=0.01)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    return figure


def _said_change(metric: Metric, grid: Grid) -> str:
    reference = "undamaged model" if grid.reference == "undamaged" else "least damaged level"
    return f"times that of the {reference}" if metric.name in LOGARITHMIC else f"change from the {reference}"


def _unit_of(kind: str, metric: Metric, grid: Grid) -> str:
    if kind == "threshold":
        return METHODS[grid.method].axis
    return "ratio" if metric.name in LOGARITHMIC else metric.unit


def _scale_of(kind: str, metric: Metric, grid: Grid, values: Sequence[float]) -> Scale:
    if kind == "threshold":
        method = METHODS[grid.method]
        return find_scale(values, None, logarithmic=method.spacing == "geometric", low_is_dark=method.rises)
    return find_scale(values, no_change(metric.name), logarithmic=metric.name in LOGARITHMIC)


def _draw_map(axes: Axes, grid: Grid, cells: pl.DataFrame, scale: Scale, cell: float) -> None:
    """Cells as squares and dots, one outline for each colour so that the file stays small."""
    known = cells.drop_nulls("value")
    columns, rows = _places(grid, known)
    steps, certain = scale.steps(known["value"].to_numpy()), known["certain"].to_numpy()
    for sure, size in ((True, 1.0), (False, DOT)):
        for step in np.unique(steps[certain == sure]):
            here = (steps == step) & (certain == sure)
            squares = [_square(x, y, size) for x, y in zip(columns[here], rows[here], strict=True)]
            colour = scale.colours(int(step))
            outline = Outline.make_compound_path(*squares)
            axes.add_patch(PathPatch(outline, facecolor=colour, edgecolor=PAPER, linewidth=0.5 if sure else 0))
    lost = cells.filter(pl.col("value").is_null(), pl.col("map") == "change")
    columns, rows = _places(grid, lost)
    axes.plot(columns, rows, marker="x", markersize=3, markeredgewidth=0.6, color=UNKNOWN, linestyle="none")
    axes.set_xlim(-0.5, len(grid.layers) - 0.5)
    axes.set_ylim(len(grid.groups) - 0.5, -0.5)
    stride = 1 + int((DIGIT * max(map(len, grid.layers)) + 0.05) / cell)
    axes.set_xticks(range(0, len(grid.layers), stride), grid.layers[::stride], fontsize=7)
    axes.set_yticks(range(len(grid.groups)), grid.groups, fontsize=8)
    axes.tick_params(length=0)


def _places(grid: Grid, cells: pl.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Column and row of each cell."""
    columns = [grid.layers.index(layers) for layers in cells["layers"]]
    rows = [grid.groups.index(group) for group in cells["group"]]
    return np.array(columns, dtype=np.int64), np.array(rows, dtype=np.int64)


def _square(x: float, y: float, size: float) -> Outline:
    half = size / 2
    corners = [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]
    return Outline([*corners, corners[0]], closed=True)


def _draw_scale(figure: Figure, panels: Sequence[Axes], scale: Scale, unit: str) -> None:
    mappable = ScalarMappable(norm=scale.norm, cmap=scale.colours)
    bar = figure.colorbar(mappable, ax=list(panels), fraction=0.04, pad=0.015, aspect=14 * len(panels))
    boundaries = list(scale.norm.boundaries)
    bar.set_ticks(boundaries, labels=[f"{10**edge if scale.logarithmic else edge:.3g}" for edge in boundaries])
    bar.ax.tick_params(labelsize=7, length=0)
    bar.outline.set_edgecolor(INK)
    bar.set_label(unit, fontsize=7)


def save_maps(figure: Figure, path: Path) -> str:
    """Write PNG, SVG and PDF, and return the SVG; `path` has no suffix."""
    figure.savefig(f"{path}.pdf", facecolor="white", metadata={"CreationDate": None})
    return save(figure, path)
