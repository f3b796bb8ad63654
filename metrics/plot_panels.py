"""The panels of the plots, each a function `(axes, run) -> None`."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from ddpm.run.format import DASH, significant
from ddpm.run.metrics import (
    BANDS,
    CAS,
    EMA_DELTA_NORM,
    EPOCH_TIME_SEC,
    FID_FEATURES,
    GPU_MEM_ALLOCATED_MB,
    GPU_MEM_PEAK_MB,
    GPU_MEM_RESERVED_MB,
    GRAD_NORM,
    GRAD_NORM_MAX,
    LOSS_MAX,
    LOSS_MEAN,
    LOSS_MEDIAN,
    LOSS_MIN,
    LOSS_STD,
    LR,
    MFU,
    RCA,
    RCA_UNGUIDED,
    SAMPLES_PER_SEC,
    TOP1,
    TOP5,
    TRAIN_TIME_SEC,
    VAL_LOSS,
    VAL_LOSS_EMA,
    VAL_LOSS_SWA,
    Metric,
)
from metrics.run_data import RunData
from metrics.style import (
    BLUE,
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
    log_scale,
    say,
)
from metrics.trends import over_epochs

Panel = Callable[[Axes, RunData], None]
NO_LOSS = "no epoch has a finite loss"
ERROR = "mean squared error"
# colour and line style, so that colour is not needed to tell curves apart
VALIDATION = {
    VAL_LOSS: (ORANGE, "--"),
    VAL_LOSS_EMA: (GREEN, "-"),
    VAL_LOSS_SWA: (PINK, "-."),
}
LINES = ("-", "--", "-.", ":")


def panel(title: str, unit: str, metric: Metric, missing: str) -> Callable[[Panel], Panel]:
    """Decorator that makes a drawing function a panel: adds title, y label (`unit`), axes and restarts, and a note if
    `metric` is constant; without values of `metric` the panel shows the text `missing`."""

    def decorate(draw: Panel) -> Panel:
        @wraps(draw)
        def whole(axes: Axes, run: RunData) -> None:
            axes.set_title(title)
            values = run.series(metric).dropna()
            if values.empty:
                on_cpu = metric.group == "memory" and run.environment.get("device") == "cpu"
                return say(axes, "no GPU: the run is on the CPU" if on_cpu else missing)
            axes.set_ylabel(unit)
            axes.set_xlim(run.frame.index[0] - 0.6, run.frame.index[-1] + 0.6)
            draw(axes, run)
            if len(values) > 1 and values.nunique() == 1:
                axes.set_title(f"constant: {significant(values.iloc[0])}", **NOTE)
            if values.nunique() == 1 and axes.get_autoscaley_on() and values.iloc[0] > 0:
                axes.set_ylim(0, 2 * values.iloc[0])
            draw_restarts(axes, run)
            return finish(axes)

        whole.title = title
        return whole

    return decorate


def several(run: RunData, *metrics: Metric) -> pd.DataFrame:
    return run.frame[[metric.name for metric in metrics]]


def draw_losses(axes: Axes, run: RunData) -> None:
    draw_span(axes, run.series(LOSS_MIN), run.series(LOSS_MAX), BLUE, "train, min to max", 0.22)
    draw_line(axes, run.series(LOSS_MEAN), BLUE, "train, mean", linestyle=":")
    for metric, (colour, line) in VALIDATION.items():
        if run.series(metric).notna().any():
            draw_line(axes, run.series(metric).dropna(), colour, metric.label, linewidth=1.4, linestyle=line)
    for metric, colour, name in (
        (LOSS_MEAN, BLUE, "train"),
        (VAL_LOSS_EMA, GREEN, "EMA"),
        (VAL_LOSS_SWA, PINK, "SWA"),
    ):
        draw_best(axes, run.curve(metric), colour, name)
    draw_nonfinite(axes, run)


@panel("Loss", ERROR, LOSS_MEAN, NO_LOSS)
def loss_linear(axes: Axes, run: RunData) -> None:
    draw_losses(axes, run)
    # The losses of the first batches and of an EMA of few steps are much larger: cut them; the log plot shows all.
    curves = several(run, *VALIDATION)
    band = run.series(LOSS_MAX).quantile(0.9, interpolation="lower")
    top = 1.08 * np.nanmax([run.series(LOSS_MEAN).max(), band, *curves.quantile(0.9, interpolation="higher")])
    highest = np.nanmax([run.series(LOSS_MAX).max(), *curves.max()])
    axes.set_ylim(0, top or 1)
    if highest > top:
        axes.set_title(f"cut at the top: values reach {significant(highest, 3)}", **NOTE)


@panel("Loss, logarithmic", ERROR, LOSS_MEAN, NO_LOSS)
def loss_log(axes: Axes, run: RunData) -> None:
    draw_losses(axes, run)
    values = several(run, LOSS_MIN, LOSS_MAX, LOSS_MEAN, *VALIDATION)
    if (values > 0).to_numpy().any():
        log_scale(axes, values)


@panel("Loss of the batches in each epoch", ERROR, LOSS_MEAN, NO_LOSS)
def loss_distribution(axes: Axes, run: RunData) -> None:
    mean, std, least, most = (run.series(metric) for metric in (LOSS_MEAN, LOSS_STD, LOSS_MIN, LOSS_MAX))
    draw_span(axes, least, most, PURPLE, "min to max", 0.18)
    band = (mean - std).clip(lower=least), (mean + std).clip(upper=most)
    draw_span(axes, *band, PURPLE, "mean ± standard deviation", 0.4)
    draw_line(axes, mean, TEXT, "mean")
    draw_line(axes, run.series(LOSS_MEDIAN), GOLD, "median", linestyle=(0, (4, 2)))
    draw_nonfinite(axes, run)
    values = several(run, LOSS_MIN, LOSS_MAX, LOSS_MEAN, LOSS_MEDIAN)
    if values.max().max() > 8 * values[values > 0].min().min():
        log_scale(axes, values)


@panel("Learning rate", "learning rate at the end of the epoch", LR, "no learning rate was recorded")
def learning_rate(axes: Axes, run: RunData) -> None:
    draw_line(axes, run.series(LR), PURPLE)


@panel("Gradient norm", "L2 norm before clipping", GRAD_NORM, "no finite gradient norm was recorded")
def grad_norm(axes: Axes, run: RunData) -> None:
    draw_line(axes, run.series(GRAD_NORM_MAX), RED, "largest", linewidth=1.1, alpha=0.75, linestyle="--")
    draw_line(axes, run.series(GRAD_NORM), ORANGE, "mean")
    clip = run.settings.get("grad_clip") or 0
    if clip > 0:
        axes.axhline(clip, color=MUTED, linestyle=":", linewidth=1.1, label=f"clipped above {significant(clip)}")
    norms = several(run, GRAD_NORM, GRAD_NORM_MAX).stack()
    if norms.min() > 0 and norms.max() > 20 * norms.min():
        log_scale(axes, pd.Series([*norms, clip]))
    else:
        axes.set_ylim(0, 1.1 * (max(norms.max(), clip) or 1))
    draw_nonfinite(axes, run)


@panel("Throughput of the whole job", "images per second", SAMPLES_PER_SEC, "no throughput was recorded")
def throughput(axes: Axes, run: RunData) -> None:
    draw_line(axes, run.series(SAMPLES_PER_SEC), GREEN, "each epoch")
    if average := over_epochs(run.rows, SAMPLES_PER_SEC):
        axes.axhline(average, color=MUTED, linestyle="--", linewidth=1.1, label=f"whole run: {average:,.1f}")
    if (mfu := over_epochs(run.rows, MFU)) is not None:
        axes.set_title(f"MFU {MFU.text(mfu)} (median)", **NOTE)
    axes.set_ylim(0, 1.15 * run.series(SAMPLES_PER_SEC).max() or 1)


@panel("GPU memory, of the fullest GPU", "memory in GiB", GPU_MEM_PEAK_MB, "no GPU memory was recorded")
def gpu_memory(axes: Axes, run: RunData) -> None:
    held, peak, used = (run.series(m) / 1024 for m in (GPU_MEM_RESERVED_MB, GPU_MEM_PEAK_MB, GPU_MEM_ALLOCATED_MB))
    draw_line(axes, held, MUTED, "reserved", linewidth=1.3, linestyle="--")
    draw_line(axes, peak, PINK, f"peak, at most {significant(peak.max(), 4)}")
    draw_line(axes, used, BLUE, "allocated", linestyle=":")
    axes.set_ylim(0, 1.15 * np.nanmax([held.max(), peak.max(), used.max()]) or 1)


@panel("Distance of EMA and live weights", "L2 distance at the end of the epoch", EMA_DELTA_NORM, "not recorded")
def ema_divergence(axes: Axes, run: RunData) -> None:
    draw_line(axes, run.series(EMA_DELTA_NORM), BLUE)
    axes.set_ylim(0, 1.15 * run.series(EMA_DELTA_NORM).max() or 1)


@panel("Time of each epoch", "", EPOCH_TIME_SEC, "no epoch time was recorded")
def epoch_timing(axes: Axes, run: RunData) -> None:
    longest = run.series(EPOCH_TIME_SEC).max()
    unit, scale = ("seconds", 1) if longest < 300 else ("minutes", 60) if longest < 18_000 else ("hours", 3600)
    total = run.series(EPOCH_TIME_SEC) / scale
    training = (run.series(TRAIN_TIME_SEC) / scale).clip(upper=total)
    draw_span(axes, training * 0, training, BLUE, "training", 0.85)
    draw_span(axes, training.fillna(0), total, ORANGE, "compiling, validation, evaluation, samples, saving", 0.85)
    axes.set_ylabel(f"time in {unit}")
    axes.set_ylim(0, 1.1 * total.max() or 1)
    axes.set_title(f"median {significant(total.median(), 3)} {unit}", **NOTE)


@panel("Change of the training loss", "change from one epoch to the next", LOSS_MEAN, NO_LOSS)
def loss_derivative(axes: Axes, run: RunData) -> None:
    loss = run.series(LOSS_MEAN)
    change = loss.diff() / loss.index.to_series().diff()
    if change.notna().sum() == 0:
        return say(axes, "needs the loss of two epochs in a row")
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
    return draw_nonfinite(axes, run)


@panel(
    "Validation loss by noise level",
    f"{ERROR} of the EMA weights",
    BANDS[0],
    "no loss by noise level was recorded",
)
def loss_by_noise_level(axes: Axes, run: RunData) -> None:
    steps = run.settings.get("diffusion_steps")
    for number, (metric, colour, line) in enumerate(zip(BANDS, (BLUE, GREEN, GOLD, PINK), LINES, strict=True)):
        which = {0: ", least noise", len(BANDS) - 1: ", most noise"}.get(number, "")
        label = f"band {number + 1}{which}"
        if steps:
            first, end = (-(-steps * edge // len(BANDS)) for edge in (number, number + 1))
            label = f"timesteps {first}{DASH}{end - 1}{which}"
        draw_line(axes, run.series(metric).dropna(), colour, label, linestyle=line)
    values = several(run, *BANDS)
    if (values > 0).to_numpy().any():
        log_scale(axes, values)


@panel("Readability of drawn images", "share, or ratio of shares", RCA, "no readability was measured")
def readability(axes: Axes, run: RunData) -> None:
    looks = {
        RCA: (GREEN, "RCA: Top-1 relative to test images"),
        RCA_UNGUIDED: (ORANGE, RCA_UNGUIDED.label),
        CAS: (PURPLE, "CAS: what a classifier learns from them"),
        TOP1: (BLUE, TOP1.label),
        TOP5: (MUTED, TOP5.label),
    }
    for (metric, (colour, label)), line in zip(looks.items(), (*LINES, (0, (5, 1))), strict=True):
        if run.series(metric).notna().any():
            draw_line(axes, run.series(metric).dropna(), colour, label, linestyle=line)
    draw_best(axes, run.curve(RCA), GREEN, RCA.label)
    axes.set_ylim(0, 1.04 * max(1, several(run, *looks).max().max()))


@panel("Fréchet distance to test images", "distance in the classifier's features", FID_FEATURES, "not measured")
def feature_distance(axes: Axes, run: RunData) -> None:
    distance = run.series(FID_FEATURES).dropna()
    draw_line(axes, distance, ORANGE)
    draw_best(axes, run.curve(FID_FEATURES), ORANGE, "distance")
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
MEASURED: dict[str, tuple[Panel, ...]] = {  # plots of figures that only some runs have
    "loss_by_noise_level": (loss_by_noise_level,),
    "quality": (readability, feature_distance),
}
