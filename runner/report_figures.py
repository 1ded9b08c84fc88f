"""One figure per metric: its curve along every sweep, side by side; as SVG for the page, and as files for a paper.

Damage grows to the right everywhere, so the axis of `uni_quant` runs from many quantisation levels to few.
"""

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from runner.metric import Metric
from runner.spec_methods import METHODS, Method

# Okabe & Ito 2008, "Color universal design": told apart with every kind of colour vision. Black is the text's colour.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK = "#010203"  # in the page it becomes the text's colour, light or dark
PIXELS_PER_INCH = 200
MARGIN, HALF = 0.05, 0.5  # of the width of a panel
TITLE_LETTERS = 30  # as many as stand over a panel
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


def draw(metric: Metric, summary: pl.DataFrame, ranking: pl.DataFrame, levels: Mapping[str, Sequence[float]]) -> Figure:
    """The curves of one metric of one run: `summary` and `ranking` hold its rows only.

    `levels` are those of every sweep, which the axes show even where the metric has no value.
    """
    sweeps = summary["sweep"].unique(maintain_order=True).to_list()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.1 + 2.3 * len(sweeps), 2.5), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(sweeps), sharey=True, squeeze=False)[0]
        for number, (axes, sweep) in enumerate(zip(panels, sweeps, strict=True)):
            curve = summary.filter(pl.col("sweep") == sweep).sort("damage")
            _draw_axis(axes, curve["method"][0], levels[sweep])
            _draw_curve(axes, curve, COLOURS[number % len(COLOURS)])
            for found in ranking.filter(pl.col("sweep") == sweep).drop_nulls("threshold").iter_rows(named=True):
                last = curve["level"][-1]
                _draw_threshold(axes, found["threshold"], (found["threshold_low"], found["threshold_high"] or last))
        panels[0].set_ylabel(f"{metric.label}\n({metric.unit})" if metric.unit else metric.label)
        if metric.name.endswith("perplexity"):
            panels[0].set_yscale("log")
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # once is enough: both files are laid out alike
    return figure


def _draw_axis(axes: Axes, method: Method, levels: Sequence[float]) -> None:
    """The axis of a sweep, from its least to its most damaging level."""
    least, most = min(levels), max(levels)
    axes.set_xlabel(METHODS[method].axis)
    if METHODS[method].spacing == "geometric":
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_xlim(most * 2**0.3, least / 2**0.3)
    elif most > least:
        axes.set_xlim(least - MARGIN * (most - least), most + MARGIN * (most - least))


def _draw_curve(axes: Axes, curve: pl.DataFrame, colour: str) -> None:
    """Means along the levels, the interval of the mean as a band, and as a dashed line what chance would give."""
    axes.plot(curve["level"].to_numpy(), curve["mean"].to_numpy(), color=colour, marker="o", markersize=3)
    band = curve.drop_nulls(["low", "high"])
    low, high = band["low"].to_numpy(), band["high"].to_numpy()
    axes.fill_between(band["level"].to_numpy(), low, high, color=colour, alpha=0.25)
    chance = curve.drop_nulls("chance") if "chance" in curve.columns else curve.clear()
    if len(chance):
        levels, shares = chance["level"].to_numpy(), chance["chance"].to_numpy()
        axes.plot(levels, shares, color=INK, linestyle="--", linewidth=0.8)
        axes.annotate(
            "chance", (levels[-1], shares[-1]), xytext=(0, 3), textcoords="offset points", fontsize=7, ha="right"
        )
    name = f"{curve['method'][0]} {curve['group'][0]}".replace("][", "] [")
    axes.set_title("\n".join(textwrap.wrap(name, TITLE_LETTERS)), fontsize=9)


def _draw_threshold(axes: Axes, threshold: float, ends: tuple[float | None, float]) -> None:
    """The threshold as a vertical line, its interval as a shade up to the last level where it has no end."""
    low, high = ends
    if low is not None:
        axes.axvspan(low, high, color=INK, alpha=0.08, linewidth=0)
    axes.axvline(threshold, color=INK, linestyle=":", linewidth=1)
    place = axes.transAxes.inverted().transform(axes.transData.transform((threshold, 1)))[0]
    side: Literal["left", "right"] = "left" if place < HALF else "right"
    axes.text(threshold, 1, f" {threshold:.3g} ", transform=axes.get_xaxis_transform(), fontsize=7, va="top", ha=side)


def save(figure: Figure, path: Path) -> str:
    """Write the figure as PNG on white and as SVG, for a paper, and return the SVG; `path` has no suffix."""
    figure.savefig(f"{path}.png", dpi=PIXELS_PER_INCH, facecolor="white")
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):  # what is said of SVG counts when it is written
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    Path(f"{path}.svg").write_text(svg, encoding="utf-8")
    return svg


def for_page(svg: str, description: str, prefix: str) -> str:
    """An SVG file as an element of a page: with a text alternative, at most as wide as drawn, in the text's colour.

    Matplotlib names parts of a figure as it names those of the next, so `prefix` keeps the names of a page apart.
    Outlines are kept to a hundredth of a point: maps have thousands of numbers.
    """
    element = svg[svg.index("<svg") :].replace(INK, "currentColor")
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", element)
    element = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), element)
    start, end = element.split(">", 1)
    width = re.search(r' width="([\d.]+)pt"', start)
    start = re.sub(r' (width|height)="[^"]*"', "", start)
    size = f' style="max-width: {1.4 * float(width[1]):.0f}pt"' if width else ""
    return f'{start}{size} role="img" aria-label="{escape(description)}">{end}'
