"""The plots of a run, drawn from the document of `training_metrics.json` and nothing else.

A plot is a panel or two (`metrics/plot_panels.py`) on a figure of their own; the dashboard is most of them on one.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib import style
from matplotlib.figure import Figure

from ddpm.run.files import atomic_write
from ddpm.run.metrics import names
from metrics.plot_panels import MEASURED, PANELS
from metrics.run_data import epochs_frame, planned_epochs
from metrics.style import (
    DASH,
    MUTED,
    STYLE,
    device_words,
    headed_figure,
    png,
    shown,
)

PLOTS = (*PANELS, "dashboard")
NEEDS = {name: names(group=name) for name in ("loss_by_noise_level", "quality")}  # plot: its columns


def plots_of(frame: pd.DataFrame) -> tuple[str, ...]:
    """The plots that a run has: the 11 of every run, and those of what was measured in it besides."""
    return PLOTS + tuple(name for name, columns in NEEDS.items() if frame[list(columns)].notna().to_numpy().any())


def stopped_early(document: dict) -> bool:
    """Has the run finished before all of its epochs were done, as --early-stop-patience asks?"""
    rows, planned = document["epochs"], planned_epochs(document)
    return document["state"] == "finished" and bool(rows and planned) and rows[-1]["epoch"] < planned


def new_figure(width: float, height: float, frame: pd.DataFrame, document: dict) -> Figure:
    """A figure (inches) headed by the run's name, how far it is and what it ran on."""
    state = "stopped early" if stopped_early(document) else document["state"].replace("running", "in progress")
    done = f"{frame.index[-1] if len(frame) else 0} of {planned_epochs(document) or '?'} epochs, {state}"
    precision = (document.get("environment") or {}).get("precision")
    line = "  ·  ".join(part for part in (done, device_words(document), precision) if part)
    return headed_figure(width, height, document, line)


def draw_plot(name: str, frame: pd.DataFrame, document: dict) -> Figure:
    """A plot's panels, mostly one, on a figure of their own."""
    panels = MEASURED.get(name) or (PANELS[name],)
    figure = new_figure(10 if len(panels) == 1 else 13, 5, frame, document)
    for place, panel in enumerate(panels, 1):
        panel(figure.add_subplot(1, len(panels), place), frame, document)
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
    """Draw the plots of `document` as PNG files in `folder`, each replaced in one step; returns their paths.

    Raises:
        OSError: `folder` cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    frame = epochs_frame(document)
    paths = []
    with style.context(STYLE):
        for name in plots_of(frame):
            figure = draw_dashboard(frame, document) if name == "dashboard" else draw_plot(name, frame, document)
            paths.append(folder / f"{name}.png")
            atomic_write(paths[-1], png(figure, document, name))
    return paths
