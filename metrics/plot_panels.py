"""The panels of the plots, each a function `(axes, frame, document) -> None` with `frame` from `epochs_frame`."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from ddpm.run.metrics import METRICS, names
from metrics.style import (
    BLUE,
    DASH,
    GOLD,
    GREEN,
    MUTED,
    NOTE,
    ORANGE,
    PINK,
    PURPLE,
    RED,
    TEXT,
    draw_best,
    draw_line,
    draw_nonfinite,
    draw_restarts,
    draw_span,
    finish,
    human_number,
    log_scale,
    say,
)

Panel = Callable[[Axes, pd.DataFrame, dict], None]
NO_LOSS = "no epoch has a finite loss"
ERROR = "mean squared error"
VALIDATION = {"val_loss": ORANGE, "val_loss_ema": GREEN, "val_loss_swa": PINK}
BANDS = names(group="loss_by_noise_level")


def panel(title: str, unit: str, column: str, missing: str | Callable[[dict], str]) -> Callable[[Panel], Panel]:
    """Make a panel of a function that draws: titles, axes, and words where `column` is empty or constant."""

    def decorate(draw: Panel) -> Panel:
        @wraps(draw)
        def whole(axes: Axes, frame: pd.DataFrame, document: dict) -> None:
            axes.set_title(title)
            values = frame[column].dropna()
            if frame.empty:
                return say(axes, "no epoch has finished yet")
            if values.empty:
                return say(axes, missing if isinstance(missing, str) else missing(document))
            axes.set_ylabel(unit)
            axes.set_xlim(frame.index[0] - 0.6, frame.index[-1] + 0.6)
            draw(axes, frame, document)
            if len(values) > 1 and values.nunique() == 1:
                axes.set_title(f"constant: {human_number(values.iloc[0])}", **NOTE)
            if values.nunique() == 1 and axes.get_autoscaley_on() and values.iloc[0] > 0:
                axes.set_ylim(0, 2 * values.iloc[0])
            draw_restarts(axes, frame, document)
            return finish(axes)

        return whole

    return decorate


def draw_losses(axes: Axes, frame: pd.DataFrame) -> None:
    draw_span(axes, frame["loss_min"], frame["loss_max"], BLUE, "train, min to max", 0.22)
    draw_line(axes, frame["loss_mean"], BLUE, "train, mean")
    for name, colour in VALIDATION.items():
        if frame[name].notna().any():
            draw_line(axes, frame[name].dropna(), colour, METRICS[name].label, linewidth=1.4)
    draw_best(axes, frame["loss_mean"], BLUE, "train")
    draw_best(axes, frame["val_loss_ema"], GREEN, "EMA")
    draw_best(axes, frame["val_loss_swa"], PINK, "SWA")
    draw_nonfinite(axes, frame)


@panel("Loss", ERROR, "loss_mean", NO_LOSS)
def loss_linear(axes: Axes, frame: pd.DataFrame, document: dict) -> None:
    draw_losses(axes, frame)
    # The first batches and a young EMA reach far above the rest: cut there and say so; the log plot has it all.
    curves = frame[list(VALIDATION)]
    band = frame["loss_max"].quantile(0.9, interpolation="lower")
    top = 1.08 * np.nanmax([frame["loss_mean"].max(), band, *curves.quantile(0.9, interpolation="higher")])
    highest = np.nanmax([frame["loss_max"].max(), *curves.max()])
    axes.set_ylim(0, top or 1)
    if highest > top:
        axes.set_title(f"cut at the top: values reach {human_number(highest, 3)}", **NOTE)


@panel("Loss, logarithmic", ERROR, "loss_mean", NO_LOSS)
def loss_log(axes: Axes, frame: pd.DataFrame, document: dict) -> None:
    draw_losses(axes, frame)
    values = frame[["loss_min", "loss_max", "loss_mean", *VALIDATION]]
    if (values > 0).to_numpy().any():
        log_scale(axes, values)


@panel("Loss of the batches in each epoch", ERROR, "loss_mean", NO_LOSS)
def loss_distribution(axes: Axes, frame: pd.DataFrame, document: dict) -> None:
    low = (frame["loss_mean"] - frame["loss_std"]).clip(lower=frame["loss_min"])
    high = (frame["loss_mean"] + frame["loss_std"]).clip(upper=frame["loss_max"])
    draw_span(axes, frame["loss_min"], frame["loss_max"], PURPLE, "min to max", 0.18)
    draw_span(axes, low, high, PURPLE, "mean ± standard deviation", 0.4)
    draw_line(axes, frame["loss_mean"], TEXT, "mean")
    draw_line(axes, frame["loss_median"], GOLD, "median", linestyle=(0, (4, 2)))
    draw_nonfinite(axes, frame)
    values = frame[["loss_min", "loss_max", "loss_mean", "loss_median"]]
    if values.max().max() > 8 * values[values > 0].min().min():
        log_scale(axes, values)


@panel("Learning rate", "at the end of the epoch", "lr", "no learning rate was recorded")
def learning_rate(axes: Axes, frame: pd.DataFrame, document: dict) -> None:
    draw_line(axes, frame["lr"], PURPLE)


@panel("Gradient norm", "L2 norm before clipping", "grad_norm", "no finite gradient norm was recorded")
def grad_norm(axes: Axes, frame: pd.DataFrame, document: dict) -> None:
    draw_line(axes, frame["grad_norm_max"], RED, "largest", linewidth=1.1, alpha=0.75)
    draw_line(axes, frame["grad_norm"], ORANGE, "mean")
    clip = (document.get("settings") or {}).get("grad_clip") or 0
    if clip > 0:
        axes.axhline(clip, color=MUTED, linestyle="--", linewidth=1.1, label=f"clipped above {human_number(clip)}")
    norms = frame[["grad_norm", "grad_norm_max"]].stack()
    if norms.min() > 0 and norms.max() > 20 * norms.min():
        log_scale(axes, pd.Series([*norms, clip]))
    else:
        axes.set_ylim(0, 1.1 * (max(norms.max(), clip) or 1))
    draw_nonfinite(axes, frame)


@panel("Throughput of the whole job", "images per second", "samples_per_sec", "no throughput was recorded")
def throughput(axes: Axes, frame: pd.DataFrame, document: dict) -> None:
    draw_line(axes, frame["samples_per_sec"], GREEN, "each epoch")
    average = document["summary"].get("avg_throughput_sps")
    if average:
        axes.axhline(average, color=MUTED, linestyle="--", linewidth=1.1, label=f"whole run: {average:,.1f}")
    if frame["mfu"].notna().any():
        axes.set_title(f"MFU {frame['mfu'].median():.1%} (median)", **NOTE)
    axes.set_ylim(0, 1.15 * frame["samples_per_sec"].max() or 1)


def no_memory(document: dict) -> str:
    on_cpu = (document.get("environment") or {}).get("device") == "cpu"
    return (
        "no GPU: the run is on the CPU, so there is no GPU memory to show" if on_cpu else "no GPU memory was recorded"
    )


@panel("GPU memory, of the fullest GPU", "GiB", "gpu_mem_peak_mb", no_memory)
def gpu_memory(axes: Axes, frame: pd.DataFrame, document: dict) -> None:
    memory = frame[["gpu_mem_allocated_mb", "gpu_mem_reserved_mb", "gpu_mem_peak_mb"]] / 1024
    peak = memory["gpu_mem_peak_mb"]
    draw_line(axes, memory["gpu_mem_reserved_mb"], MUTED, "reserved", linewidth=1.3)
    draw_line(axes, peak, PINK, f"peak, at most {human_number(peak.max(), 4)}")
    draw_line(axes, memory["gpu_mem_allocated_mb"], BLUE, "allocated")
    axes.set_ylim(0, 1.15 * memory.max().max() or 1)


@panel(
    "Distance of EMA and live weights", "L2 norm at the end of the epoch", "ema_delta_norm", "no distance was recorded"
)
def ema_divergence(axes: Axes, frame: pd.DataFrame, document: dict) -> None:
    draw_line(axes, frame["ema_delta_norm"], BLUE)
    axes.set_ylim(0, 1.15 * frame["ema_delta_norm"].max() or 1)


@panel("Time of each epoch", "", "epoch_time_sec", "no epoch time was recorded")
def epoch_timing(axes: Axes, frame: pd.DataFrame, document: dict) -> None:
    longest = frame["epoch_time_sec"].max()
    unit, scale = ("seconds", 1) if longest < 300 else ("minutes", 60) if longest < 18_000 else ("hours", 3600)
    total = frame["epoch_time_sec"] / scale
    training = (frame["train_time_sec"] / scale).clip(upper=total)
    draw_span(axes, training * 0, training, BLUE, "training", 0.85)
    draw_span(axes, training.fillna(0), total, ORANGE, "compiling, validation, evaluation, samples, saving", 0.85)
    axes.set_ylabel(unit)
    axes.set_ylim(0, 1.1 * total.max() or 1)
    axes.set_title(f"median {human_number(total.median(), 3)} {unit}", **NOTE)


@panel(
    "Change of the training loss", "from one epoch to the next", "loss_change", "needs the loss of two epochs in a row"
)
def loss_derivative(axes: Axes, frame: pd.DataFrame, document: dict) -> None:
    change = frame["loss_change"]
    draw_span(axes, change.clip(upper=0), change * 0, GREEN, "falls", 0.85)
    draw_span(axes, change * 0, change.clip(lower=0), RED, "rises", 0.85)
    axes.axhline(0, color=MUTED, linewidth=0.9)
    if change.count() > 20:
        window = max(9, change.count() // 20)
        smooth = change.rolling(window, center=True, min_periods=window // 2).mean()
        axes.plot(smooth.index, smooth, color=TEXT, linewidth=1.3, label=f"mean of {window} epochs")
    sizes = change.abs()[change != 0].dropna()
    if not sizes.empty and sizes.max() > 10 * sizes.median():
        # The first epochs change a thousand times as much as the last: decades from the median on, linear below it.
        small, large = (int(np.floor(np.log10(size))) for size in (sizes.median(), sizes.max()))
        ticks = [10.0**power for power in range(small, large + 2, 1 + (large - small) // 4)]
        axes.set_yscale("symlog", linthresh=10.0**small)
        axes.yaxis.set_major_locator(FixedLocator([*(-tick for tick in ticks), 0, *ticks]))
        axes.yaxis.set_minor_locator(NullLocator())
    draw_nonfinite(axes, frame)


@panel(
    "Validation loss by noise level",
    "mean squared error of the EMA weights",
    BANDS[0],
    "no loss by noise level was recorded",
)
def loss_by_noise_level(axes: Axes, frame: pd.DataFrame, document: dict) -> None:
    steps = (document.get("settings") or {}).get("diffusion_steps")
    for number, (name, colour) in enumerate(zip(BANDS, (BLUE, GREEN, GOLD, PINK), strict=True)):
        which = {0: ", least noise", len(BANDS) - 1: ", most noise"}.get(number, "")
        label = f"band {number + 1}{which}"
        if steps:
            first, end = (-(-steps * edge // len(BANDS)) for edge in (number, number + 1))
            label = f"timesteps {first}{DASH}{end - 1}{which}"
        draw_line(axes, frame[name].dropna(), colour, label)
    values = frame[list(BANDS)]
    if (values > 0).to_numpy().any():
        log_scale(axes, values)


@panel("Readability of drawn characters", "share", "rca", "no readability was measured")
def readability(axes: Axes, frame: pd.DataFrame, document: dict) -> None:
    names = {"rca": (GREEN, "RCA: Top-1 relative to test images"), "top1": (BLUE, "Top-1"), "top5": (MUTED, "Top-5")}
    for name, (colour, label) in names.items():
        if frame[name].notna().any():
            draw_line(axes, frame[name].dropna(), colour, label)
    draw_best(axes, frame["rca"], GREEN, "RCA", ".3f", largest=True)
    axes.set_ylim(0, 1.04 * max(1, frame[list(names)].max().max()))


@panel("Fréchet distance to test images", "in the classifier's features", "fid_features", "no distance was measured")
def feature_distance(axes: Axes, frame: pd.DataFrame, document: dict) -> None:
    distance = frame["fid_features"].dropna()
    draw_line(axes, distance, ORANGE)
    draw_best(axes, frame["fid_features"], ORANGE, "distance", ".3g")
    if distance.min() > 0 and distance.max() > 8 * distance.min():
        log_scale(axes, distance)
    else:
        axes.set_ylim(0, 1.1 * distance.max() or 1)


PANELS: dict[str, Panel] = {
    draw.__name__: draw
    for draw in (
        loss_linear, loss_log, loss_distribution, learning_rate, grad_norm, throughput, gpu_memory, ema_divergence,
        epoch_timing, loss_derivative,
    )
}  # fmt: skip
MEASURED: dict[str, tuple[Panel, ...]] = {  # plots of what not every run measures
    "loss_by_noise_level": (loss_by_noise_level,),
    "quality": (readability, feature_distance),
}
