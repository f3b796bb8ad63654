"""The plots of a run, drawn from its figures and nothing else.

A plot is a figure with one or two panels (`metrics/plot_panels.py`); `dashboard` has most of them on one figure.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib import style
from matplotlib.figure import Figure

from ddpm.run.files import atomic_write
from ddpm.run.format import DASH
from ddpm.run.metrics import LOSS_MEAN, SAMPLES_PER_SEC, VAL_LOSS_EMA, names
from metrics.plot_panels import MEASURED, PANELS
from metrics.run_data import RunData
from metrics.sections import machine
from metrics.style import MUTED, STYLE, headed_figure, png
from metrics.trends import best, over_epochs

PLOTS = (*PANELS, "dashboard")
NEEDS = {name: names(group=name) for name in MEASURED}  # plot: its columns
TITLES = {
    **{name: panel.title for name, panel in PANELS.items()},
    **{name: " and ".join(panel.title for panel in panels) for name, panels in MEASURED.items()},
    "dashboard": "The run at a glance",
}


def plots_of(run: RunData) -> tuple[str, ...]:
    """Names of a run's plots: 11 of every run with an epoch, and those of `MEASURED` for which it has values."""
    if not run.rows:
        return ()
    measured = (name for name, columns in NEEDS.items() if run.frame[list(columns)].notna().to_numpy().any())
    return (*PLOTS, *measured)


def new_figure(width: float, height: float, run: RunData) -> Figure:
    """A figure (inches) headed by the run's name, how far it is and what it ran on."""
    state = "stopped early" if run.stopped_early else run.outcome.replace("running", "in progress")
    done = f"{run.last.get('epoch', 0)} of {run.planned_epochs or '?'} epochs, {state}"
    line = "  ·  ".join(part for part in (done, machine(run), run.environment.get("precision")) if part)
    return headed_figure(width, height, run.document, line)


def draw_plot(name: str, run: RunData) -> Figure:
    """A plot: one panel, or two side by side."""
    panels = MEASURED.get(name) or (PANELS[name],)
    figure = new_figure(10 if len(panels) == 1 else 13, 5, run)
    for place, panel in enumerate(panels, 1):
        panel(figure.add_subplot(1, len(panels), place), run)
    return figure


def draw_dashboard(run: RunData) -> Figure:
    """The run at a glance: its key figures, then the panels."""
    figure = new_figure(16, 11.6, run)
    grid = figure.add_gridspec(4, 3, height_ratios=[0.34, 1.15, 1, 1])
    row = grid[0, :].subgridspec(1, 5)
    for place, (label, value) in zip(row, _tiles(run).items(), strict=True):
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
        PANELS[name](figure.add_subplot(place), run)
    return figure


def _tiles(run: RunData) -> dict[str, str]:
    """The key figures, by what they are."""
    found = {}
    for metric, what in ((LOSS_MEAN, "best loss"), (VAL_LOSS_EMA, "best validation, EMA")):
        point = best(run.curve(metric))
        found[f"{what}, epoch {point.epoch if point else DASH}"] = metric.text(point and point.value)
    return found | {
        "images per second": SAMPLES_PER_SEC.text(over_epochs(run.rows, SAMPLES_PER_SEC)),
        "images seen": f"{run.summary.get('total_samples') or 0:,}",
        "time of these epochs": run.summary.get("total_time_human") or DASH,
    }


def make_plots(run: RunData) -> list[Path]:
    """Draw the plots of a run as PNG files in its folder, each replaced in one step; returns their paths.

    Raises:
        OSError: the folder cannot be made or written.
    """
    folder = run.paths.plots
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with style.context(STYLE):
        for name in plots_of(run):
            figure = draw_dashboard(run) if name == "dashboard" else draw_plot(name, run)
            paths.append(folder / f"{name}.png")
            atomic_write(paths[-1], png(figure, run.document, name))
    return paths
