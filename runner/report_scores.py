"""The picture of a file of scores: how many of the highest 1 % lie in each layer, or the score of every channel."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from runner.report_figures import COLOURS, INK, STYLE
from runner.target_top import LayerTop


def draw(scores: Mapping[str, Tensor], tops: Sequence[LayerTop], title: str, unit: str) -> Figure:
    """Bars by layer, and dashed what an even spread would give; without layers, the scores themselves."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.0, 2.6), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.set_title(title, fontsize=9)
        if tops:
            layers = [one.layer for one in tops]
            share = sum(one.top for one in tops) / sum(one.count for one in tops)
            axes.bar(layers, [one.top for one in tops], color=COLOURS[0])
            axes.step(layers, [share * one.count for one in tops], where="mid", color=INK, linestyle="--", linewidth=1)
            axes.set_xlabel("layer" + (" (-1: outside the layers)" if layers[0] < 0 else ""))
            axes.set_ylabel(f"{unit}s of the highest 1 %")
        else:
            values = scores[unit].tolist()
            axes.bar(range(len(values)), values, width=1.0, color=COLOURS[0])
            axes.set_xlabel(unit)
            axes.set_ylabel("score")
    return figure
