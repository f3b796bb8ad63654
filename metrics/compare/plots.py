"""The plots of a comparison: every run's curve over images, steps and time, and their samples side by side."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ddpm.run.files import atomic_write
from ddpm.run.metrics import METRICS
from metrics.compare.figures import ComparedRun, comparable, final, has_values
from metrics.strip import GAP, SHOWN, read_row
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
    draw_line,
    human_number,
    log_scale,
)

COLOURS = (BLUE, ORANGE, GREEN, PINK, GOLD, PURPLE, RED, "#3fd8e8", TEXT, "#b5794a")
LINES = ("-", (0, (4, 1.5)), (0, (1, 1.2)))  # from the eleventh run on the colours come again
CURVES = {
    "loss_mean": "Training loss: mean of each epoch",
    "val_loss_ema": "Validation loss, EMA weights",
    "val_loss": "Validation loss, live weights",
    "rca": "RCA of drawn characters: 1 is as readable as test images",
    "fid_features": "Fréchet distance to test images, in the classifier's features",
    "samples_per_sec": "Throughput: images per second of training",
}
TIMES = (("seconds", 1.0, 300), ("minutes", 60, 18_000), ("hours", 3600, np.inf))


def draw_plots(runs: Sequence[ComparedRun], ranked_by: str) -> dict[str, Figure]:
    """A figure for the column `ranked_by`, for each of `CURVES` that a run has values of, and for the samples."""
    names = [name for name in dict.fromkeys((ranked_by, *CURVES)) if has_values(runs, name)]
    with style.context(STYLE):
        drawn = {**{name: draw_curves(runs, name) for name in names}, "samples": draw_samples(runs)}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def save_plots(plots: dict[str, Figure], runs: Sequence[ComparedRun], folder: Path) -> None:
    """Write the figures as PNG files of 180 DPI; those of an earlier comparison that are not among them are deleted.

    Raises:
        OSError: `folder` cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in plots.items():
        picture = io.BytesIO()
        about = {"Title": f"comparison: {name}, {data_of(runs)}", "Software": None}
        with style.context(STYLE):
            figure.savefig(picture, format="png", dpi=DPI, metadata=about)
        atomic_write(folder / f"{name}.png", picture.getvalue())
    for old in folder.glob("*.png"):
        if old.stem not in plots:
            old.unlink()


def data_of(runs: Sequence[ComparedRun]) -> str:
    """What the runs were trained on."""
    return "; ".join(sorted({run.said("data") for run in runs}))


def names_of(runs: Sequence[ComparedRun]) -> list[str]:
    """The runs' short names; where data differ, with their data."""
    mixed = len({run.setting("data") for run in runs}) > 1
    return [run.short + (f" ({run.said('data')})" if mixed else "") for run in runs]


def head(figure: Figure, title: str, runs: Sequence[ComparedRun]) -> None:
    """The title and, never to be missed, the data."""
    glyphs = any(run.setting("data") != "emnist" for run in runs)
    top = 1 - 0.09 / figure.get_figheight()
    figure.suptitle(title, x=0.01, y=top, ha="left", va="top", fontsize=13, fontweight="bold")
    figure.text(0.99, top, data_of(runs), ha="right", va="top", color=GOLD if glyphs else MUTED, fontweight="bold")


def draw_curves(runs: Sequence[ComparedRun], column: str) -> Figure:
    """A column of every run over images seen, steps and time, beside each other on one vertical axis."""
    longest = max(np.nan_to_num([final(run, "total_time_sec") for run in runs]))
    unit, scale = next((unit, scale) for unit, scale, most in TIMES if longest < most)
    places = {"images seen": ("images_seen", 1), "optimizer steps": ("step", 1), unit: ("total_time_sec", scale)}
    names = names_of(runs)
    legend_columns = max(1, min(len(runs), int(13 / (0.09 * max(map(len, names)) + 0.7))))  # in inches
    height = 4.9 + 0.2 * -(-len(runs) // legend_columns)  # inches
    figure = Figure(figsize=(14, height), dpi=DPI)
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - 0.32 / height))  # below the title
    panels = figure.subplots(1, len(places), sharey=True)
    for axes, (words, (name, size)) in zip(panels, places.items(), strict=True):
        for number, (run, label) in enumerate(zip(runs, names, strict=True)):
            series = run.frame[column].set_axis(run.frame[name] / size)
            series = series[series.notna() & series.index.notna()]
            line = LINES[number // len(COLOURS) % len(LINES)]
            look = {"linestyle": line, "linewidth": 1.4, "markersize": 3}
            draw_line(axes, series, COLOURS[number % len(COLOURS)], label, **look)
        axes.set_xlabel(f"{words}, of all starts" if name == "total_time_sec" else words)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=size == 1))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    scale_values(panels[0], runs, column)
    if len(comparable(runs, column)) > 1:
        panels[-1].set_title("measures different things in these runs: not comparable", **{**NOTE, "color": GOLD})
    head(figure, CURVES.get(column, column), runs)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=legend_columns, fontsize=9)
    return figure


def scale_values(axes: Axes, runs: Sequence[ComparedRun], column: str) -> None:
    """Losses and what spans decades on a logarithmic axis, anything else from zero.

    A young run's losses reach far above those that tell runs apart: cut there, which a note says.
    """
    values = [run.frame[column].dropna() for run in runs]
    every = pd.concat(values)
    if (every > 0).all() and (METRICS[column].is_loss or every.max() > 20 * every.min()):
        shown = pd.concat([series.iloc[max(len(series) // 5, int(len(series) > 3)) :] for series in values])
        shown = shown if METRICS[column].is_loss and every.max() > 1.3 * shown.max() else every
        log_scale(axes, shown)
        axes.set_ylim(shown.min() / 1.03, shown.max() * 1.03)
        if shown is not every:
            axes.set_title(f"cut at the top: values reach {human_number(every.max(), 3)}", **NOTE)
    else:
        axes.set_ylim(min(0, every.min()), 1.08 * every.max() or 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: human_number(value)))
    axes.set_ylabel(column)


def compact(value: float) -> str:
    """`250k`, `1.5M`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


# ---- samples ---------------------------------------------------------------------------------------------------------


def draw_samples(runs: Sequence[ComparedRun]) -> Figure | None:
    """A row per run with the same classes: of the latest epoch of which all have a sample grid, else of each one's
    latest. None if no run has one that can be read."""
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
            images = run.frame["images_seen"].get(found[0], np.nan)
            lines = re.findall(r".{1,32}(?:[-_+ ]|$)|.{1,32}", label)
            rows.append(("\n".join([*lines, f"epoch {found[0]}, {human_number(images, 12)} images"]), found[1]))
    if not rows:
        return None
    width, height, left, top = 12.6, 0.7 * len(rows) + 0.85, 2.75, 0.75  # inches
    figure = Figure(figsize=(width, height), dpi=DPI)
    margins = {"left": left / width, "right": 0.995, "top": 1 - top / height, "bottom": 0.05 / height}
    panels = figure.subplots(len(rows), 1, squeeze=False, gridspec_kw={**margins, "hspace": 0.12})[:, 0]
    for place, (axes, (label, row)) in enumerate(zip(panels, rows, strict=True)):
        draw_row(axes, row, label, named=place == 0)
    what = f"Samples at epoch {max(common)}" if common else "Latest samples of each run, at different epochs"
    head(figure, f"{what}: EMA weights", runs)
    return figure


def grids_of(run: ComparedRun) -> dict[int, Path]:
    """The arrays beside the sample grids, by epoch."""
    found = {file: re.search(r"_epoch_(\d+)$", file.stem) for file in run.paths.samples.glob("*.npz")}
    return {int(match[1]): file for file, match in found.items() if match}


def draw_row(axes: Axes, row: np.ndarray, label: str, named: bool) -> None:
    """Pictures beside each other; `named`: with their classes above."""
    count, height, width = row.shape
    gap = max(1, GAP * width // 28)
    sheet = np.full((height, count, width + gap), np.nan)
    sheet[:, :, :width] = row.swapaxes(0, 1)
    axes.imshow(sheet.reshape(height, -1)[:, :-gap], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_facecolor("none")
    axes.set_yticks([height / 2], [label])
    centres = (np.arange(count) + 0.5) * (width + gap) - gap / 2
    axes.set_xticks(centres if named else [], list(SHOWN) if named else [], fontsize=12, fontweight="bold")
    axes.tick_params(length=0, top=False, labeltop=named, labelbottom=False)
