"""One figure per metric: its curve along every sweep, side by side; as SVG for the page, and as files for a paper.

Damage grows to the right everywhere, so the axis of `uni_quant` runs from many quantisation levels to few.
"""

import io
import re
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from runner.metrics import Metric

# Okabe & Ito 2008, "Color universal design": told apart with every kind of colour vision. Black is the text's colour.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK = "#010203"  # in the page it becomes the text's colour, light or dark
AXES = {"mult_gauss": "noise, sigma", "ablation": "ablated, probability", "uni_quant": "quantisation levels"}
PIXELS_PER_INCH = 200
STYLE: dict[Any, Any] = {  # matplotlib types the keys one by one
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9,
    "svg.fonttype": "none",  # text stays text: it can be searched, and read aloud
    "svg.hashsalt": "degrade",  # the same figure, the same bytes
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def draw(metric: Metric, summary: pl.DataFrame, ranking: pl.DataFrame) -> Figure:
    """The curves of one metric of one run: `summary` and `ranking` hold its rows only."""
    sweeps = summary["sweep"].unique(maintain_order=True).to_list()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.1 + 2.3 * len(sweeps), 2.5), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(sweeps), sharey=True, squeeze=False)[0]
        for number, (axes, sweep) in enumerate(zip(panels, sweeps, strict=True)):
            curve = summary.filter(pl.col("sweep") == sweep).sort("damage")
            found = ranking.filter(pl.col("sweep") == sweep)["threshold"].to_list()
            _draw_curve(axes, curve, found[0] if found else None, COLOURS[number % len(COLOURS)])
        panels[0].set_ylabel(f"{metric.label}\n({metric.unit})" if metric.unit else metric.label)
        if metric.name.endswith("perplexity"):
            panels[0].set_yscale("log")
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # once is enough: both files are laid out alike
    return figure


def _draw_curve(axes: Axes, curve: pl.DataFrame, threshold: float | None, colour: str) -> None:
    """Means along the levels, the interval of the mean as a band, the threshold as a dashed line."""
    levels, means = curve["level"].to_numpy(), curve["mean"].to_numpy()
    method = curve["method"][0]
    axes.plot(levels, means, color=colour, marker="o", markersize=3)
    band = curve.drop_nulls(["low", "high"])
    axes.fill_between(
        band["level"].to_numpy(), band["low"].to_numpy(), band["high"].to_numpy(), color=colour, alpha=0.25
    )
    axes.set_title(f"{method} {curve['group'][0]}", fontsize=9)
    axes.set_xlabel(AXES.get(method, "level"))
    if method == "uni_quant":
        axes.set_xscale("log", base=2)
        axes.invert_xaxis()
    if threshold is not None:
        axes.axvline(threshold, color=INK, linestyle="--", linewidth=0.8)
        axes.text(threshold, 1, f" {threshold:.3g}", transform=axes.get_xaxis_transform(), fontsize=7, va="top")


def save(figure: Figure, path: Path) -> str:
    """Write the figure as PNG and SVG, on white, for a paper, and return the SVG; `path` has no suffix."""
    figure.savefig(f"{path}.png", dpi=PIXELS_PER_INCH, facecolor="white")
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    Path(f"{path}.svg").write_text(svg, encoding="utf-8")
    return svg


def for_page(svg: str, description: str) -> str:
    """An SVG file as an element of a page: with a text alternative, as wide as there is room, in the text's colour."""
    element = svg[svg.index("<svg") :].replace(INK, "currentColor")
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    start, end = element.split(">", 1)
    start = re.sub(r' (width|height)="[^"]*"', "", start)
    return f'{start} role="img" aria-label="{escape(description)}">{end}'
