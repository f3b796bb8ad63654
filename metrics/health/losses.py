"""Checks of a run's losses, from its rows: findings with their figures.

The validation loss is measured on the same images with the same noise each time, so its values can be compared from
epoch to epoch. Training and validation loss differ in how timesteps are drawn and weighted, and EMA weights lag behind
the live ones: their trends are compared, not their levels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ddpm.run.format import plural
from ddpm.run.metrics import (
    EPOCH,
    GRAD_NORM,
    GRAD_NORM_MAX,
    LOSS_MAX,
    LOSS_MEAN,
    LOSS_MEDIAN,
    LR,
    NONFINITE_STEPS,
    RCA,
    STEP,
    VAL_LOSS,
    VAL_LOSS_EMA,
    VAL_LOSS_SWA,
    VAL_TIME_SEC,
    Metric,
    headline,
    select,
)
from metrics import trends
from metrics.health.checks import Component, fact, healthy, unhealthy, warning
from metrics.health.thresholds import Thresholds
from metrics.page import Finding, Status, Table
from metrics.phases import find_phases, rate_words
from metrics.run_data import RunData

LAST = 10  # epochs in the table
SERIES = select(group="loss", selectable=True)
COLUMNS = (
    EPOCH,
    LOSS_MEAN,
    VAL_LOSS,
    VAL_LOSS_EMA,
    LR,
    GRAD_NORM,
    GRAD_NORM_MAX,
    NONFINITE_STEPS,
)
JUDGED: dict[str, Status] = {"fast descent": "healthy", "slow descent": "healthy", "rising": "warning"}


def losses(run: RunData, limits: Thresholds) -> Component:
    """All findings about losses, and a table of the last epochs."""
    if not run.rows:
        return Component("losses", [fact("no epoch has figures" if run.ended else "no epoch is done yet")])
    found = [*_not_learning(run, limits), *_diverged(run, limits)]
    found += _overfit(run, limits) or _degraded(run, limits)
    found += [*_finite(run, limits), *_trends(run, limits), *_spikes(run, limits)]
    found += [*_average(run, limits), *_rate(run), *_gradients(run), *_quality(run, limits)]
    cells = [[metric.text_of(row) for metric in COLUMNS] for row in run.rows[-LAST:]]
    title = f"The last {plural(len(cells), 'epoch')}"
    return Component("losses", found, [Table(title, [metric.heading for metric in COLUMNS], cells, numbers=True)])


def _first_measured(run: RunData, *metrics: Metric) -> trends.Curve:
    """The curve of the first of `metrics` that has values; an empty one if none has."""
    return next((curve for metric in metrics if len(curve := run.curve(metric))), trends.Curve.of([], metrics[0]))


def _finite(run: RunData, limits: Thresholds) -> list[Finding]:
    found = []
    skipped = run.curve(NONFINITE_STEPS)
    if skipped.values.any():
        steps = np.diff([STEP.of(row) or 0.0 for row in run.rows], prepend=0.0)[-limits.window :].sum()
        recent = skipped[-limits.window :]
        share = recent.values.sum() / max(steps, 1)
        late = skipped[1:][-limits.window :].values.any()
        worst = skipped.point(int(skipped.values.argmax()))
        note = f"{plural(int(skipped.values.sum()), 'step')} skipped because the gradient was not finite, most in "
        note += f"epoch {worst.epoch} ({worst.value:.0f}); {share:.2%} of the steps of the last "
        note += f"{plural(len(recent), 'epoch')} (limit {limits.nonfinite_share:.0%})"
        found.append(Finding("unhealthy" if share > limits.nonfinite_share else "warning" if late else "–", note))
    elif len(skipped):
        found.append(healthy("no step was skipped: every gradient was finite"))
    last, every = run.last, run.settings.get("val_every")
    spent = VAL_TIME_SEC.of(last)  # what was due in that epoch, an earlier start may have decided
    due = spent > 0 if spent is not None else isinstance(every, int) and every > 0 and last["epoch"] % every == 0
    expected = [LOSS_MEAN, *((VAL_LOSS, VAL_LOSS_EMA) if due else ())]
    if empty := [metric.label for metric in expected if metric.of(last) is None]:
        found.append(unhealthy(f"epoch {last['epoch']} has no finite {' and no finite '.join(empty)}"))
    return found


def _not_learning(run: RunData, limits: Thresholds) -> list[Finding]:
    zero = "always predicting zero gives about 1"
    training, step = run.curve(LOSS_MEAN).last, STEP.of(run.last) or 0
    if training and training.value > limits.blown_loss:
        note = f"blown up: training loss {training.value:.4g} in epoch {training.epoch} (limit {limits.blown_loss:g}"
        return [unhealthy(f"{note}; {zero}): lower --lr")]
    plain = run.settings.get("loss_weighting", "none") == "none"
    curve = _first_measured(run, VAL_LOSS, VAL_LOSS_EMA, *([LOSS_MEAN] if plain else []))
    lag = curve.metric is VAL_LOSS_EMA and step * (1 - (run.settings.get("ema_decay") or 0)) < 3
    if not len(curve) or lag or step < limits.useless_steps or curve.last.value <= limits.useless_loss:
        return []
    note = f"it has learned next to nothing: {curve.metric.label} {curve.last.value:.4f} after epoch "
    note += f"{curve.last.epoch} (limit {limits.useless_loss:g}; {zero}): is the learning rate too high or too low?"
    return [unhealthy(note)]


def _diverged(run: RunData, limits: Thresholds) -> list[Finding]:
    for metric in (LOSS_MEAN, VAL_LOSS_EMA, VAL_LOSS_SWA):
        curve = run.curve(metric)
        times = trends.over_best(curve)
        if times <= limits.diverged_factor or (metric is not LOSS_MEAN and _still_learning(run)):
            continue  # while the training loss still falls, this is overfitting
        best, last = trends.best(curve), curve.last
        note = f"diverging: {metric.label} {last.value:.4g} at epoch {last.epoch}, {times:.2f} times its best, "
        note += f"{best.value:.4g} at epoch {best.epoch} (limit {limits.diverged_factor:g})"
        return [unhealthy(note)]
    return []


def _still_learning(run: RunData) -> bool:
    """Is the training loss of the last epochs about its lowest?"""
    values = run.curve(LOSS_MEAN).values
    return len(values) > 1 and np.median(values[-3:]) < 1.05 * values.min()


def _overfit(run: RunData, limits: Thresholds) -> list[Finding]:
    """Validation of the live weights rises while their training loss falls: they memorise the images."""
    gap = trends.gap(run.curve(LOSS_MEAN), run.curve(VAL_LOSS))
    if gap is None or gap.last.epoch - gap.best.epoch < limits.degraded_epochs:
        return []
    if gap.rise < limits.degraded_change or gap.fall <= 0:
        return []
    note = f"overfitting: since epoch {gap.best.epoch} validation loss (live) rose from {gap.best.value:.4f} to "
    note += f"{gap.last.value:.4f} ({gap.rise:+.1%}), while training loss fell from {gap.train_at_best:.4f} to "
    note += f"{gap.train_at_last:.4f} ({-gap.fall:+.1%}; medians of three epochs): the gap widened from "
    note += f"{gap.best.value - gap.train_at_best:+.4f} to {gap.last.value - gap.train_at_last:+.4f}; more data, a "
    note += "smaller network or an earlier end (--early-stop-patience) would help"
    return [Finding("unhealthy" if gap.rise > limits.overfit_change else "warning", note)]


def _degraded(run: RunData, limits: Thresholds) -> list[Finding]:
    """No new best for a while, and worse than the best."""
    curve = _first_measured(run, VAL_LOSS_EMA, VAL_LOSS, LOSS_MEAN)
    if not len(curve):
        return []
    best, last = trends.best(curve), curve.last
    ago, above, text = last.epoch - best.epoch, trends.over_best(curve) - 1, curve.metric.text
    words = f"{curve.metric.label}: best {text(best.value)} at epoch {best.epoch}"
    if ago >= limits.degraded_epochs and above > limits.degraded_change:
        return [warning(f"degrading for {ago} epochs: {words}, now {text(last.value)} ({above:+.1%})")]
    now = f", {plural(ago, 'epoch')} ago; now {text(last.value)} ({above:+.1%})" if ago else ", the last one"
    return [healthy(words + now)]


def _trends(run: RunData, limits: Thresholds) -> list[Finding]:
    """The latest phase of each loss; the training log shows the same phases."""
    rates = run.curve(LR)
    annealed = bool(len(rates)) and rates.last.value < limits.annealed_lr * rates.values.max()
    leading = next((metric for metric in headline() if metric in SERIES and len(run.curve(metric))), None)
    found = []
    for metric in SERIES:
        curve = run.curve(metric)
        found_phases = find_phases(curve, limits.window, limits.plateau_change)
        if len(curve) < limits.trend_points or not found_phases:
            if len(curve):
                ends = f"{metric.text(curve.values[0])} to {metric.text(curve.last.value)}"
                few = f"too few for a trend (fewer than {limits.trend_points})"
                found.append(fact(f"{metric.label}: {ends} in {plural(len(curve), 'measured epoch')}, {few}"))
            continue
        phase = found_phases[-1]
        note = f"{metric.label}: {phase.kind} since epoch {phase.rate.first} ({rate_words(phase.rate)})"
        status = JUDGED.get(phase.kind, "–")
        if phase.kind == "plateau":
            status = "warning" if metric is leading and not annealed else "–"  # other losses may level off earlier
            lower = "a lower one, or --lr-schedule cosine, may go further"
            note += f" at {metric.text(phase.mean)}; the learning rate is {LR.text_of(run.last)}: "
            note += "a plateau is expected" if annealed else lower
        found.append(Finding(status, note))
    return found


def _spikes(run: RunData, limits: Thresholds) -> list[Finding]:
    pairs = [(row["epoch"], LOSS_MAX.of(row), LOSS_MEDIAN.of(row)) for row in run.rows[1:]]
    spikes = [(epoch, top, top / mid) for epoch, top, mid in pairs if top and mid and top > limits.spike_factor * mid]
    if not spikes:
        return []
    named = [f"epoch {epoch} up to {top:.4g}, {ratio:.1f} times the median batch" for epoch, top, ratio in spikes[-3:]]
    many = f"loss spikes in {plural(len(spikes), 'epoch')} after the first (limit {limits.spike_factor:g} times)"
    return [warning(f"{many}, the last: {'; '.join(named)}")]


def _average(run: RunData, limits: Thresholds) -> list[Finding]:
    last = next(
        (row for row in reversed(run.rows) if VAL_LOSS.of(row) and VAL_LOSS_EMA.of(row) is not None),
        None,
    )
    if last is None:
        return []
    ratio, decay = VAL_LOSS_EMA.of(last) / VAL_LOSS.of(last), run.settings.get("ema_decay") or 0.0
    words = f"validation loss of the EMA weights is {ratio:.3f} times that of the live ones (epoch {last['epoch']})"
    if ratio <= limits.ema_lag:
        return [healthy(words)]
    horizon, steps = 1 / max(1 - decay, 1e-9), STEP.of(last) or 0
    words += f": the average lags behind, as it spans about {plural(round(horizon), 'step')}, of {steps:,.0f} so far"
    if steps < 3 * horizon and not run.ended:
        return [fact(f"{words}; this passes")]
    return [warning(f"{words} (limit {limits.ema_lag:g}): train longer or lower --ema-decay")]


def _rate(run: RunData) -> list[Finding]:
    rates = run.curve(LR)
    words = f"learning rate {LR.text(rates.last.value)}, at most {LR.text(rates.values.max())}" if len(rates) else ""
    return [fact(f"{words} at the end of an epoch")] if words else []


def _gradients(run: RunData) -> list[Finding]:
    norms, clip = run.curve(GRAD_NORM), run.settings.get("grad_clip")
    if not len(norms):
        return []
    over = f"{int((norms.values > clip).sum())} of {plural(len(norms), 'epoch')}" if clip else ""
    clipped = f"; the mean is above --grad-clip {clip:g} in {over}" if clip else ""
    middle = f"{np.median(norms.values):.4g} in the median epoch"
    return [fact(f"gradient norm {norms.last.value:.4g} (mean of epoch {norms.last.epoch}), {middle}{clipped}")]


def _quality(run: RunData, limits: Thresholds) -> list[Finding]:
    curve = run.curve(RCA)
    if not len(curve):
        return []
    best, last = trends.best(curve), curve.last
    lost: Any = 1 - last.value / best.value if best.value else 0.0
    words = f"readability (RCA) {RCA.text(last.value)} at epoch {last.epoch}, best {RCA.text(best.value)} at epoch "
    return [Finding("warning" if lost > limits.quality_drop else "healthy", f"{words}{best.epoch}")]
