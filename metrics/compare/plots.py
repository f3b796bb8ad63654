"""The plots of a comparison: every run's curve over images, steps and time, and their samples side by side."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ddpm.run.files import atomic_write
from ddpm.run.fonts import drawable
from ddpm.run.format import count, significant
from ddpm.run.metrics import (
    DATA,
    FID_FEATURES,
    IMAGES_SEEN,
    LOSS_MEAN,
    METRICS,
    RCA,
    SAMPLES_PER_SEC,
    STEP,
    TOTAL_TIME_SEC,
    VAL_LOSS,
    VAL_LOSS_EMA,
    Metric,
)
from ddpm.run.paths import grid_epoch
from metrics.compare.figures import ComparedRun, comparable, has_values, values_of
from metrics.samples import GAP, Row, read_row
from metrics.style import (
    BLUE,
    DPI,
    GOLD,
    GREEN,
    MUTED,
    NOTE,
    ORANGE,
    PINK,
    PURPLE,
    RED,
    STYLE,
    TEXT,
    class_labels,
    height_of_labels,
    log_scale,
)
from metrics.trends import Curve

COLOURS = (BLUE, ORANGE, GREEN, PINK, GOLD, PURPLE, RED, "#3fd8e8", TEXT, "#b5794a")
LINES = ("-", "--", ":", "-.")
MARKERS = "osD^vPX"  # curves differ in all three, so that colour is not needed to tell them apart
MARKED = 12  # about this many values of a curve have its marker
CURVES = (
    LOSS_MEAN,
    VAL_LOSS_EMA,
    VAL_LOSS,
    RCA,
    FID_FEATURES,
    SAMPLES_PER_SEC,
)
SAMPLES = "samples"  # name of the picture of samples
TIMES = (("seconds", 1.0, 300), ("minutes", 60, 18_000), ("hours", 3600, np.inf))


def draw_plots(runs: Sequence[ComparedRun], ranked_by: Metric) -> dict[str, Figure]:
    """A plot of `ranked_by`, of each of `CURVES` that a run has values of, and of the samples, by name."""
    metrics = [metric for metric in dict.fromkeys((ranked_by, *CURVES)) if has_values(runs, metric)]
    with style.context(STYLE):
        drawn = {**{metric.name: draw_curves(runs, metric) for metric in metrics}, SAMPLES: draw_samples(runs)}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def caption(name: str) -> str:
    """The caption of a plot on the page."""
    if name == SAMPLES:
        return "Images drawn with the EMA weights: a row for each run, the same classes in each column of one data set."
    metric = METRICS[name]
    better = f"; {metric.better} is better" if metric.better else ""
    return f"{title_of(metric)} of each run over images seen, optimizer steps and time{better}."


def title_of(metric: Metric) -> str:
    """Its label as a heading."""
    return metric.label[0].upper() + metric.label[1:]


def save_plots(plots: dict[str, Figure], runs: Sequence[ComparedRun], folder: Path) -> None:
    """Write the figures as PNG files of 180 DPI; those of an earlier comparison that are not among them are deleted.

    Raises:
        OSError: `folder` cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in plots.items():
        picture = io.BytesIO()
        about = {"Title": f"comparison: {name}, {'; '.join(values_of(runs, DATA.name))}", "Software": None}
        with style.context(STYLE):
            figure.savefig(picture, format="png", dpi=DPI, metadata=about)
        atomic_write(folder / f"{name}.png", picture.getvalue())
    for old in folder.glob("*.png"):
        if old.stem not in plots:
            old.unlink()


def names_of(runs: Sequence[ComparedRun]) -> list[str]:
    """The runs' short names; where data differ, with their data."""
    mixed = len(values_of(runs, DATA.name)) > 1
    return [run.short + (f" ({run.published.data_words})" if mixed else "") for run in runs]


def head(figure: Figure, title: str, runs: Sequence[ComparedRun]) -> None:
    """Title and data of a figure; glyphs stand out in gold."""
    glyphs = any(run.published.data == "glyphs" for run in runs)
    data = drawable("; ".join(values_of(runs, DATA.name)))
    top = 1 - 0.09 / figure.get_figheight()
    figure.suptitle(title, x=0.01, y=top, ha="left", va="top", fontsize=13, fontweight="bold")
    figure.text(0.99, top, data, ha="right", va="top", color=GOLD if glyphs else MUTED, fontweight="bold")


def draw_curves(runs: Sequence[ComparedRun], metric: Metric) -> Figure:
    """A figure of every run over images seen, steps and time, beside each other on one vertical axis."""
    longest = np.nanmax([0, *(run.final(TOTAL_TIME_SEC) for run in runs)])
    unit, scale = next((unit, scale) for unit, scale, most in TIMES if longest < most)
    axis_of = {over.label: (over, 1) for over in (IMAGES_SEEN, STEP)}
    axis_of[f"time of the epochs, {unit}"] = (TOTAL_TIME_SEC, scale)
    names = names_of(runs)
    legend_columns = max(1, min(len(runs), int(13 / (0.09 * max(map(len, names)) + 0.9))))  # in inches
    height = 4.9 + 0.2 * -(-len(runs) // legend_columns)  # inches
    figure = Figure(figsize=(14, height), dpi=DPI)
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - 0.32 / height))  # below the title
    panels = figure.subplots(1, len(axis_of), sharey=True)
    for axes, (words, (over, size)) in zip(panels, axis_of.items(), strict=True):
        for number, (run, label) in enumerate(zip(runs, names, strict=True)):
            draw_curve(axes, run.rows, over, metric, size, number, label)
        axes.set_xlabel(words)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=size == 1))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    scale_values(panels[0], [Curve.of(run.rows, metric).values for run in runs], metric)
    if len(comparable(runs, metric)) > 1:
        panels[-1].set_title("measures different things in these runs: not comparable", **{**NOTE, "color": GOLD})
    head(figure, title_of(metric), runs)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=legend_columns, fontsize=9, handlelength=3.2)
    return figure


def draw_curve(
    axes: Axes, rows: Iterable[dict], over: Metric, metric: Metric, size: float, number: int, label: str
) -> None:
    """Draw `metric` over `over` / `size`, in the colour, line and marker of curve `number`."""
    pairs = [(over.of(row), metric.of(row)) for row in rows]
    pairs = [(place / size, value) for place, value in pairs if None not in (place, value)]
    look = {"color": COLOURS, "linestyle": LINES, "marker": MARKERS}
    look = {name: choices[number % len(choices)] for name, choices in look.items()}
    every = max(1, len(pairs) // MARKED)
    axes.plot(*np.array(pairs).reshape(-1, 2).T, label=label, linewidth=1.4, markersize=4, markevery=every, **look)


def scale_values(axes: Axes, curves: Sequence[np.ndarray], metric: Metric) -> None:
    """Scale the axis: logarithmic for losses and values that span decades, else from zero. `curves`: float64 [N] each.

    The losses of the first epochs are far above the differences between runs: the axis is cut, and a note says so.
    """
    every = np.concatenate(curves)
    low, high = every.min(), every.max()
    if low > 0 and (metric.is_loss or high > 20 * low):
        late = np.concatenate([values[max(len(values) // 5, int(len(values) > 3)) :] for values in curves])
        cut = metric.is_loss and high > 1.3 * late.max()
        shown = late if cut else every
        log_scale(axes, shown)
        axes.set_ylim(shown.min() / 1.03, shown.max() * 1.03)
        if cut:
            axes.set_title(f"cut at the top: values reach {significant(high, 3)}", **NOTE)
    else:
        axes.set_ylim(min(0, low), 1.08 * high or 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: significant(value)))
    axes.set_ylabel(", ".join(filter(None, (metric.label, metric.unit))))


def compact(value: float) -> str:
    """`250k`, `1.5M`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


# ---- samples ---------------------------------------------------------------------------------------------------------


def draw_samples(runs: Sequence[ComparedRun]) -> Figure | None:
    """A row of images per run, of the same classes where the data are the same: from the latest epoch at which all runs
    have a sample grid, else from each run's latest grid. None if no grid can be read."""
    grids = [grids_of(run) for run in runs]
    having = [set(files) for files in grids if files]
    common = set.intersection(*having) if having else set()
    rows = []
    for run, label, files in zip(runs, names_of(runs), grids, strict=True):
        epochs = [max(common)] if common else sorted(files, reverse=True)
        found = next(
            ((epoch, row) for epoch in epochs if epoch in files and (row := read_row(files[epoch])) is not None), None
        )
        if found:
            images = IMAGES_SEEN.of(run.published.row(found[0]))
            lines = re.findall(r".{1,32}(?:[-_+ ]|$)|.{1,32}", label)
            rows.append(("\n".join([*lines, f"epoch {found[0]}, {count(images)} images"]), found[1]))
    if not rows:
        return None
    named = [place == 0 or row.names != rows[place - 1][1].names for place, (_, row) in enumerate(rows)]
    heights = [0.7 + (height_of_labels(row.names) if names else 0) for (_, row), names in zip(rows, named, strict=True)]
    width, height = 12.6, sum(heights) + 0.4  # inches
    figure = Figure(figsize=(width, height), dpi=DPI)
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - 0.36 / height), h_pad=0.02, hspace=0)  # below the title
    panels = figure.subplots(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (label, row), with_names in zip(panels, rows, named, strict=True):
        draw_row(axes, row, label, with_names)
    what = f"Samples at epoch {max(common)}" if common else "Latest samples of each run, at different epochs"
    head(figure, f"{what}: EMA weights", runs)
    return figure


def grids_of(run: ComparedRun) -> dict[int, Path]:
    """The `.npz` files beside the sample grids, by epoch."""
    found = {grid_epoch(file): file for file in run.paths.samples.glob("*.npz")}
    return {epoch: file for epoch, file in found.items() if epoch is not None}


def draw_row(axes: Axes, row: Row, label: str, named: bool) -> None:
    """Pictures beside each other; `named`: with their classes above."""
    count, height, width = row.pixels.shape
    gap = max(1, GAP * width // 28)
    sheet = np.full((height, count, width + gap), np.nan)
    sheet[:, :, :width] = row.pixels.swapaxes(0, 1)
    axes.imshow(sheet.reshape(height, -1)[:, :-gap], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_facecolor("none")
    axes.set_yticks([height / 2], [label])
    centres = (np.arange(count) + 0.5) * (width + gap) - gap / 2
    class_labels(axes, "x", centres if named else [], row.names if named else [], size=12, fontweight="bold")
    axes.tick_params(length=0, top=False, labeltop=named, labelbottom=False)
