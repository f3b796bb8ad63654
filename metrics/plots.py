"""The 11 plots of a run, drawn from the document of `training_metrics.json` and nothing else.

A plot is one panel (`metrics/plot_panels.py`) on its own figure; the dashboard is most of them on one.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from ddpm.files import atomic_write
from metrics.drawing import (
    DASH,
    GOLD,
    GRID,
    MUTED,
    PAGE,
    PANEL,
    STYLE,
    TEXT,
    data_words,
    device_words,
    epochs_frame,
    shown,
)
from metrics.plot_panels import PANELS

DPI = 180
PLOTS = (*PANELS, "dashboard")


def new_figure(width: float, height: float, frame: pd.DataFrame, document: dict) -> Figure:
    """A figure (inches) headed by the run's name, what it ran on and, never to be missed, its data."""
    name = re.findall(rf".{{1,{width * 7:.0f}}}(?:_|$)|.{{1,{width * 7:.0f}}}", document["run"])  # breaks at a _
    head = 0.62 + 0.23 * len(name)
    figure = Figure(figsize=(width, height + head), dpi=DPI)
    inch = 1 / figure.get_figheight()
    figure.text(0.18 / width, 1 - 0.16 * inch, "\n".join(name), va="top", fontsize=13, fontweight="bold")
    planned = (document.get("settings") or {}).get("epochs") or "?"
    state = {"running": "in progress", "finished": "finished"}.get(document["state"], document["state"])
    done = f"{frame.index[-1] if len(frame) else 0} of {planned} epochs, {state}"
    precision = (document.get("environment") or {}).get("precision")
    line = "  ·  ".join(part for part in (done, device_words(document), precision) if part)
    below = 1 - (head - 0.28) * inch
    figure.text(0.18 / width, below, line, va="center", fontsize=9.5, color=MUTED)
    badge = {"ha": "right", "va": "center", "fontsize": 9.5, "fontweight": "bold"}
    glyphs = document["data"] != "emnist"
    box = {"boxstyle": "round,pad=0.35", "facecolor": GOLD if glyphs else PANEL, "edgecolor": GOLD if glyphs else GRID}
    figure.text(1 - 0.26 / width, below, data_words(document), color=PAGE if glyphs else TEXT, bbox=box, **badge)
    side = 0.1 / width
    inside = (side, 0.1 * inch, 1 - 2 * side, 1 - head * inch)
    figure.set_layout_engine("constrained", rect=inside, w_pad=0.09, h_pad=0.09)
    return figure


def draw_plot(name: str, frame: pd.DataFrame, document: dict) -> Figure:
    """One panel on a figure of its own."""
    figure = new_figure(10, 5, frame, document)
    PANELS[name](figure.add_subplot(), frame, document)
    return figure


def draw_dashboard(frame: pd.DataFrame, document: dict) -> Figure:
    """The run at a glance: key figures of the summary, then the panels."""
    figure = new_figure(16, 11.6, frame, document)
    grid = figure.add_gridspec(4, 3, height_ratios=[0.34, 1.15, 1, 1])
    summary = document["summary"]
    best_val, speed = summary.get("best_val_loss_ema"), summary.get("avg_throughput_sps")
    tiles = {
        f"best loss, epoch {summary.get('best_epoch') or DASH}": shown(summary.get("best_loss"), ".5f"),
        f"best validation, EMA, epoch {summary.get('best_val_epoch') or DASH}": shown(best_val, ".5f"),
        "images per second": shown(speed, ",.1f"),
        "images seen": shown(summary.get("total_samples"), ",.0f"),
        "time": summary.get("total_time_human") or DASH,
    }
    row = grid[0, :].subgridspec(1, len(tiles))
    for place, (label, value) in zip(row, tiles.items(), strict=True):
        axes = figure.add_subplot(place)
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.65, value, ha="center", va="center", fontsize=17, fontweight="bold", transform=axes.transAxes)
        axes.text(0.5, 0.24, label, ha="center", va="center", color=MUTED, transform=axes.transAxes)
    places = {
        "loss_log": grid[1, :2], "loss_distribution": grid[1, 2],
        "grad_norm": grid[2, 0], "learning_rate": grid[2, 1], "ema_divergence": grid[2, 2],
        "throughput": grid[3, 0], "gpu_memory": grid[3, 1], "epoch_timing": grid[3, 2],
    }  # fmt: skip
    for name, place in places.items():
        PANELS[name](figure.add_subplot(place), frame, document)
    return figure


def make_plots(document: dict, folder: Path) -> list[Path]:
    """Draw the 11 plots of `document` as PNG files in `folder`, each replaced in one step; returns their paths.

    Raises:
        OSError: `folder` cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    frame = epochs_frame(document)
    paths = []
    with matplotlib.rc_context(STYLE):
        for name in PLOTS:
            figure = draw_dashboard(frame, document) if name == "dashboard" else draw_plot(name, frame, document)
            picture = io.BytesIO()
            about = {"Title": f"{document['run']}: {name}, {data_words(document)}", "Software": None}
            figure.savefig(picture, format="png", dpi=DPI, metadata=about)
            paths.append(folder / f"{name}.png")
            atomic_write(paths[-1], picture.getvalue())
    return paths
