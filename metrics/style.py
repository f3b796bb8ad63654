"""Parts of all plots: the dark style, a figure with a head, and lines, bands and marks on axes."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ddpm.run.datasets import data_words
from ddpm.run.fonts import as_label
from ddpm.run.format import plural, significant
from ddpm.run.metrics import NONFINITE_STEPS, STEP
from metrics.run_data import RunData
from metrics.trends import Curve, best

PAGE, PANEL, GRID, TEXT, MUTED = "#0d1117", "#131a24", "#263041", "#e6edf3", "#95a2b3"
BLUE, ORANGE, GREEN, PURPLE, PINK, RED = "#4ea1ff", "#ffa14a", "#4fd6a0", "#b392f0", "#ff7eb6", "#ff5c5c"
GOLD = "#ffd166"
STYLE = ["default", {  # "default" first: the user's own matplotlibrc has no effect
    "figure.facecolor": PAGE, "savefig.facecolor": PAGE, "axes.facecolor": PANEL, "axes.edgecolor": GRID,
    "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.7, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False,
    "text.color": TEXT, "axes.labelcolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED,
    "font.family": "DejaVu Sans", "font.size": 9.5, "axes.titlesize": 11.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "legend.fontsize": 8.5, "legend.frameon": False, "lines.linewidth": 1.7,
    "lines.markersize": 4.5, "text.parse_math": False,
}]  # fmt: skip
NOTE = {"loc": "right", "fontsize": 9.5, "color": MUTED, "fontweight": "normal"}  # a second, quiet title
DPI = 180
LONGEST_SOURCE = 40  # letters of the data's name
LONG_NAMES = 8.5  # points
FEW = 40  # up to this many epochs each is drawn apart: a marker, a bar of its own


def headed_figure(width: float, height: float, document: dict, line: str) -> Figure:
    """A figure (inches) headed by the run's name, a `line` of facts, and its data in a box (gold for glyphs).

    Names of classes beside its parts: `class_labels`.

    Args:
        document: `run` and `data` are read from it.
    """
    name = re.findall(rf".{{1,{width * 7:.0f}}}(?:_|$)|.{{1,{width * 7:.0f}}}", document["run"])  # breaks at a _
    head = 0.62 + 0.23 * len(name)
    figure = Figure(figsize=(width, height + head), dpi=DPI)
    inch = 1 / figure.get_figheight()
    figure.text(0.18 / width, 1 - 0.16 * inch, "\n".join(name), va="top", fontsize=13, fontweight="bold")
    below = 1 - (head - 0.28) * inch
    figure.text(0.18 / width, below, line, va="center", fontsize=9.5, color=MUTED)
    badge = {"ha": "right", "va": "center", "fontsize": 9.5, "fontweight": "bold"}
    glyphs = document["data"] == "glyphs"
    box = {"boxstyle": "round,pad=0.35", "facecolor": GOLD if glyphs else PANEL, "edgecolor": GOLD if glyphs else GRID}
    source = as_label(data_words(document["data"]), LONGEST_SOURCE)
    figure.text(1 - 0.26 / width, below, source, color=PAGE if glyphs else TEXT, bbox=box, **badge)
    side = 0.1 / width
    inside = (side, 0.1 * inch, 1 - 2 * side, 1 - head * inch)
    figure.set_layout_engine("constrained", rect=inside, w_pad=0.09, h_pad=0.09)
    return figure


def are_long(texts: Sequence[str]) -> bool:
    """Are these names of classes too long to stand beside each other?"""
    return max(map(len, texts), default=0) > 2


def height_of_labels(names: Sequence[str]) -> float:
    """Inches that `class_labels` take above or below axes."""
    texts = list(map(as_label, names))
    return 0.36 + 0.08 * max(map(len, texts)) if are_long(texts) else 0.36


def class_labels(axes: Axes, side: str, places: Sequence[float], names: Sequence[str], size: float, **more) -> None:
    """Ticks with the names of classes at the `places` of the axis `side` (x or y); long ones are upright on x.

    Args:
        size: in points, of names of a character; longer ones are smaller.
    """
    texts = list(map(as_label, names))
    long = are_long(texts)
    turned = {"rotation": 90} if long and side == "x" else {}
    axis = axes.xaxis if side == "x" else axes.yaxis
    axis.set_ticks(places, texts, fontsize=min(size, LONG_NAMES) if long else size, **turned, **more)


def png(figure: Figure, document: dict, name: str, kind: str = "plot") -> bytes:
    """The figure as the content of a PNG file that says what it shows; a `plot` is shown in the page's theme."""
    picture = io.BytesIO()
    title = f"{document['run']}: {name}, {data_words(document['data'])}"
    about = {"Title": title, "Description": kind, "Software": None}
    figure.savefig(picture, format="png", dpi=DPI, metadata=about)
    return picture.getvalue()


def draw_line(axes: Axes, series: pd.Series, colour: str, label: str | None = None, **style) -> None:
    """A line that breaks where values are missing; a value without neighbours is a marker."""
    known = series.notna().to_numpy()
    alone = known & ~np.append(False, known[:-1]) & ~np.append(known[1:], False)
    markers = np.flatnonzero(known if len(series) <= FEW else alone).tolist()
    axes.plot(series.index, series, color=colour, label=label, marker="o", markevery=markers, **style)


def draw_span(axes: Axes, low: pd.Series, high: pd.Series, colour: str, label: str, alpha: float) -> None:
    """Fill from `low` to `high`: a bar for each epoch, or one area for more than `FEW`, which draws fast."""
    half = min(0.36, 0.06 * len(low))  # so that the bar of a single epoch is not too wide
    edges = [-half, half, half] if len(low) <= FEW else [-0.5, 0.5]
    x = np.add.outer(low.index.to_numpy(float), edges).ravel()
    bottom, top = (np.repeat(series.to_numpy(float)[:, None], len(edges), axis=1) for series in (low, high))
    if len(edges) == 3:
        bottom[:, 2] = np.nan  # ends the bar
    axes.fill_between(x, bottom.ravel(), top.ravel(), color=colour, alpha=alpha, linewidth=0, label=label)


def draw_best(axes: Axes, curve: Curve, colour: str, name: str) -> None:
    """A star at the best value, which the legend spells out."""
    if point := best(curve):
        label = f"best {name}: {curve.metric.text(point.value)}, epoch {point.epoch}"
        star = {"markersize": 13, "markeredgecolor": PAGE, "markeredgewidth": 0.9, "linestyle": "none", "zorder": 5}
        axes.plot(point.epoch, point.value, "*", color=colour, label=label, **star)


def draw_restarts(axes: Axes, run: RunData) -> None:
    """A dotted line at the step of each restart; epoch N covers the axis from N - 0.5 to N + 0.5."""
    starts = run.document.get("starts") or []
    steps = [start["step"] for start in starts[1:] if start.get("step") is not None]
    known = run.series(STEP).dropna()
    if not steps or known.empty:
        return
    first = known.index[0]
    places = np.interp(steps, [0 if first == 1 else known[first], *known], [first - 1, *known.index]) + 0.5
    label = "restart" if len(steps) == 1 else f"{len(steps)} restarts"
    for index, place in enumerate(places):
        axes.axvline(place, color=MUTED, linestyle=(0, (1, 2)), linewidth=1.3, label=None if index else label, zorder=1)


def draw_nonfinite(axes: Axes, run: RunData) -> None:
    """Red triangles along the bottom: the epochs in which a step was skipped for a gradient that was not finite."""
    counts = run.series(NONFINITE_STEPS)[run.series(NONFINITE_STEPS) > 0]
    if not counts.empty:
        label = f"{plural(int(counts.sum()), 'non-finite step')}"
        place = {"transform": axes.get_xaxis_transform(), "clip_on": False, "zorder": 6, "linestyle": "none"}
        axes.plot(counts.index, np.full(len(counts), 0.02), "^", color=RED, markersize=6, label=label, **place)


def log_scale(axes: Axes, values: pd.DataFrame | pd.Series | np.ndarray) -> None:
    """A logarithmic axis for `values` with plain numbers: the fewer decades it spans, the more ticks in each."""
    values = np.asarray(values)
    positive = values[values > 0]  # also drops NaN
    low, high = positive.min(), positive.max()
    axes.set_yscale("log")
    axes.set_ylim(low / 1.15, high * 1.15)
    subs = (1, 1.5, 2, 3, 5, 7) if high < 30 * low else (1, 2, 5) if high < 3e3 * low else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=12) if high > 2 * low else MaxNLocator(6))
    axes.yaxis.set_minor_locator(NullLocator())


def say(axes: Axes, words: str) -> None:
    """An empty panel that says why it is empty."""
    axes.set(xticks=[], yticks=[], xlabel="", ylabel="")
    axes.grid(False)
    middle = {"ha": "center", "va": "center", "transform": axes.transAxes}
    axes.text(0.5, 0.5, textwrap.fill(words, 44), color=MUTED, fontsize=11, **middle)


def finish(axes: Axes) -> None:
    """Ticks of epochs, and the legend."""
    many = 12 if _inches(axes) > 6 else 7
    axes.xaxis.set_major_locator(MaxNLocator(many, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: significant(value)))
    axes.set_xlabel("epoch")
    legend_above(axes)


def legend_above(axes: Axes) -> None:
    """The legend in one row or more between title and plot, where it can hide nothing."""
    labels = axes.get_legend_handles_labels()[1]
    if not labels:
        return
    width, points = _inches(axes), matplotlib.rcParams["legend.fontsize"]
    font = FontProperties(family=matplotlib.rcParams["font.family"], size=points)
    widths = [text_to_path.get_text_width_height_descent(label, font, False)[0] / 72 + 0.5 for label in labels]

    def fits(columns: int) -> bool:  # a legend fills column by column
        return sum(max(column) for column in np.array_split(widths, columns)) <= width

    columns = next((count for count in range(len(labels), 1, -1) if fits(count)), 1)
    corner = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2, "borderpad": 0.2}
    axes.legend(ncols=columns, columnspacing=1.5, handlelength=1.8, labelspacing=0.3, **corner)
    above = 7 + -(-len(labels) // columns) * points * 1.45
    axes.set_title(axes.get_title("right"), pad=above, **NOTE)  # moves the left one too


def _inches(axes: Axes) -> float:
    """The width that the axes will have, less their ticks; columns of the figure are taken to be equal."""
    place = axes.get_subplotspec()
    return axes.figure.get_figwidth() * len(place.colspan) / place.get_gridspec().ncols - 1.1
