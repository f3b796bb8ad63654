"""What the rows of a run say about its losses, in words that each carry their figures.

The validation loss is measured on the same images with the same noise each time, so its values can be compared from
epoch to epoch. Training and validation loss differ in how timesteps are drawn and weighted, and EMA weights lag behind
the live ones: between those, trends are compared, not levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ddpm.run.format import number
from ddpm.run.metrics import METRICS, names
from metrics.health.checks import Finding, Section, Status, Table, column, fact, healthy, shown, unhealthy, warning
from metrics.health.thresholds import Thresholds
from metrics.health.trend import trend

LAST = 10  # epochs in the table
SERIES = {name: METRICS[name].label for name in names(group="loss", selectable=True)}
COLUMNS = ("epoch", "loss_mean", "val_loss", "val_loss_ema", "lr", "grad_norm", "grad_norm_max", "nonfinite_steps")


def losses(rows: Sequence[dict[str, Any]], settings: dict[str, Any], limits: Thresholds, ended: bool) -> Section:
    """The key observations. `rows`: those of training_metrics.csv; `settings`: the run's, as far as they are known."""
    if not rows:
        return Section("losses", [fact("no epoch is done yet")])
    found = [*_useless(rows, settings, limits), *_diverged(rows, limits)]
    found += _overfit(rows, limits) or _degraded(rows, limits)
    found += [*_finite(rows, settings, limits), *_trends(rows, limits), *_spikes(rows, limits)]
    found += _average(rows, settings, limits, ended)
    found += [*_rate(rows), *_gradients(rows, settings), *_quality(rows, limits)]
    columns = [METRICS[name] for name in COLUMNS]
    cells = [[metric.text(row.get(metric.name)) for metric in columns] for row in rows[-LAST:]]
    heads = [metric.heading for metric in columns]
    return Section("losses", found, [Table(f"The last {len(cells)} epoch(s)", heads, cells)])


def _known(rows: Sequence[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs and values of a column where it is a number."""
    values = column(rows, name)
    return column(rows, "epoch")[np.isfinite(values)].astype(int), values[np.isfinite(values)]


def _finite(rows: Sequence[dict[str, Any]], settings: dict[str, Any], limits: Thresholds) -> list[Finding]:
    counted = np.isfinite(column(rows, "nonfinite_steps")).any()
    skipped, steps = np.nan_to_num(column(rows, "nonfinite_steps")), column(rows, "step")
    found, window = [], slice(-limits.window, None)
    per_epoch = np.diff(steps, prepend=0.0)
    share = skipped[window].sum() / max(np.nansum(per_epoch[window]), 1)
    if skipped.any():
        worst = int(skipped.argmax())
        late = skipped[1:][window].any()
        kind: Status = "unhealthy" if share > limits.nonfinite_share else "warning" if late else "–"
        found.append(
            Finding(
                kind,
                f"{skipped.sum():.0f} step(s) skipped because the gradient was not finite, most in "
                f"epoch {rows[worst].get('epoch')} ({skipped[worst]:.0f}); {share:.2%} of the steps of the "
                f"last {len(rows[window])} epoch(s) (limit {limits.nonfinite_share:.0%})",
            )
        )
    elif counted:
        found.append(healthy("no step was skipped: every gradient was finite"))
    last = rows[-1]
    every = settings.get("val_every")
    due = isinstance(every, int) and every > 0 and (last.get("epoch") or 0) % every == 0
    empty = [
        words
        for name, words in SERIES.items()
        if last.get(name) is None and (name == "loss_mean" or (due and name in ("val_loss", "val_loss_ema")))
    ]
    if empty:
        found.append(unhealthy(f"epoch {last.get('epoch')} has no finite {' and no finite '.join(empty)}"))
    return found


def _useless(rows: Sequence[dict[str, Any]], settings: dict[str, Any], limits: Thresholds) -> list[Finding]:
    epochs, values = _known(rows, "loss_mean")
    if len(values) and values[-1] > limits.blown_loss:
        return [
            unhealthy(
                f"blown up: training loss {values[-1]:.4g} in epoch {epochs[-1]} (limit "
                f"{limits.blown_loss:g}; answering zero to everything gives about 1): lower --lr"
            )
        ]
    plain = settings.get("loss_weighting", "none") == "none"
    for name in ("val_loss", "val_loss_ema", *(["loss_mean"] if plain else [])):  # the first that was measured
        epochs, values = _known(rows, name)
        if len(values):
            lag = name == "val_loss_ema" and (rows[-1].get("step") or 0) * (1 - (settings.get("ema_decay") or 0)) < 3
            if (rows[-1].get("step") or 0) >= limits.useless_steps and values[-1] > limits.useless_loss and not lag:
                return [
                    unhealthy(
                        f"it has learned next to nothing: {SERIES[name]} {values[-1]:.4f} after "
                        f"epoch {epochs[-1]} (limit {limits.useless_loss:g}; answering zero to everything gives "
                        "about 1): is the learning rate too high or too low?"
                    )
                ]
            return []
    return []


def _diverged(rows: Sequence[dict[str, Any]], limits: Thresholds) -> list[Finding]:
    for name in ("loss_mean", "val_loss_ema", "val_loss_swa"):
        epochs, values = _known(rows, name)
        if len(values) < 2 or values[-1] <= limits.diverged_factor * values.min():
            continue
        if name != "loss_mean" and _still_learning(rows):
            continue  # that is overfitting
        best = int(values.argmin())
        return [
            unhealthy(
                f"diverging: {SERIES[name]} {values[-1]:.4g} at epoch {epochs[-1]}, {values[-1] / values[best]:.2f} "
                f"times its best, {values[best]:.4g} at epoch {epochs[best]} (limit {limits.diverged_factor:g})"
            )
        ]
    return []


def _still_learning(rows: Sequence[dict[str, Any]]) -> bool:
    """Is the training loss of the last epochs about its lowest?"""
    _, values = _known(rows, "loss_mean")
    return len(values) > 1 and np.median(values[-3:]) < 1.05 * values.min()


def _overfit(rows: Sequence[dict[str, Any]], limits: Thresholds) -> list[Finding]:
    """Validation of the live weights rises while their training loss falls: they learn the images by heart."""
    both = [row for row in rows if row.get("val_loss") is not None and row.get("loss_mean") is not None]
    epochs, train, valid = column(both, "epoch").astype(int), column(both, "loss_mean"), column(both, "val_loss")
    if not len(both):
        return []
    train, valid = _smooth(train), _smooth(valid)
    best = int(valid.argmin())
    rise, fall = valid[-1] / valid[best] - 1, 1 - train[-1] / train[best]
    if epochs[-1] - epochs[best] < limits.degraded_epochs or rise < limits.degraded_change or fall <= 0:
        return []
    kind: Status = "unhealthy" if rise > limits.overfit_change else "warning"
    return [
        Finding(
            kind,
            f"overfitting: since epoch {epochs[best]} validation loss (live) rose from {valid[best]:.4f} to "
            f"{valid[-1]:.4f} ({rise:+.1%}), while training loss fell from {train[best]:.4f} to {train[-1]:.4f} "
            f"({-fall:+.1%}; medians of three epochs): the gap widened from {valid[best] - train[best]:+.4f} to "
            f"{valid[-1] - train[-1]:+.4f}; more data, a smaller network or an earlier end "
            "(--early-stop-patience) would help",
        )
    ]


def _smooth(values: np.ndarray) -> np.ndarray:
    """The median of each value and the two before it (the first two stand for those that are not there)."""
    padded = np.concatenate([values[:1], values[:1], values])
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, 3), axis=1)


def _degraded(rows: Sequence[dict[str, Any]], limits: Thresholds) -> list[Finding]:
    """No new best for a while, and worse than the best."""
    for name in ("val_loss_ema", "val_loss", "loss_mean"):
        epochs, values = _known(rows, name)
        if not len(values):
            continue
        best = int(values.argmin())
        ago, above = int(epochs[-1] - epochs[best]), values[-1] / values[best] - 1
        words = f"{SERIES[name]}: best {values[best]:.5f} at epoch {epochs[best]}"
        if ago >= limits.degraded_epochs and above > limits.degraded_change:
            return [warning(f"degrading for {ago} epochs: {words}, now {values[-1]:.5f} ({above:+.1%})")]
        return [
            healthy(words + (f", {ago} epoch(s) ago; now {values[-1]:.5f} ({above:+.1%})" if ago else ", the last one"))
        ]
    return []


def _trends(rows: Sequence[dict[str, Any]], limits: Thresholds) -> list[Finding]:
    epochs, rates = column(rows, "epoch"), column(rows, "lr")
    peak = np.nanmax(rates) if np.isfinite(rates).any() else np.nan
    annealed = bool(rates[-1] < limits.annealed_lr * peak)
    measured = [name for name in ("val_loss_ema", "val_loss", "loss_mean") if np.isfinite(column(rows, name)).any()]
    found = []
    for name, words in SERIES.items():
        values = column(rows, name)
        line = trend(epochs, values, limits)
        if line is None:
            if count := int(np.isfinite(values).sum()):
                first, last = values[np.isfinite(values)][[0, -1]]
                found.append(
                    fact(
                        f"{words}: {first:.5f} to {last:.5f} in {count} epoch(s), too few for a trend "
                        f"(fewer than {limits.trend_points})"
                    )
                )
        elif abs(line.change) < limits.plateau_change:
            why = (
                f"the learning rate is down to {rates[-1]:.1e}, so that is expected"
                if annealed
                else (
                    f"at a learning rate of {shown(rates[-1], '.1e')}: a lower one, or --lr-schedule cosine, "
                    "may go further"
                )
            )
            judged = not annealed and name == measured[0]  # the others may well stand still before it does
            found.append(Finding("warning" if judged else "–", f"{words}: plateau ({line.figures}); {why}"))
        elif not line.certain:
            found.append(fact(f"{words}: no trend that stands out of the noise ({line.figures})"))
        elif line.slope < 0:
            found.append(healthy(f"{words}: decreasing ({line.figures})"))
        else:
            found.append(warning(f"{words}: rising ({line.figures})"))
    return found


def _spikes(rows: Sequence[dict[str, Any]], limits: Thresholds) -> list[Finding]:
    ratio = column(rows, "loss_max") / column(rows, "loss_median")
    spikes = [i for i in range(1, len(rows)) if ratio[i] > limits.spike_factor]
    if not spikes:
        return []
    named = "; ".join(
        f"epoch {rows[i].get('epoch')} up to {rows[i]['loss_max']:.4g}, {ratio[i]:.1f} times the median batch"
        for i in spikes[-3:]
    )
    return [
        warning(
            f"loss spikes in {len(spikes)} epoch(s) after the first (limit {limits.spike_factor:g} "
            f"times), the last: {named}"
        )
    ]


def _average(
    rows: Sequence[dict[str, Any]], settings: dict[str, Any], limits: Thresholds, ended: bool
) -> list[Finding]:
    both = [row for row in rows if row.get("val_loss") and row.get("val_loss_ema") is not None]
    if not both:
        return []
    last, decay = both[-1], number(settings.get("ema_decay")) or 0.0
    ratio = last["val_loss_ema"] / last["val_loss"]
    words = f"validation loss of the EMA weights is {ratio:.3f} times that of the live ones (epoch {last.get('epoch')})"
    if ratio <= limits.ema_lag:
        return [healthy(words)]
    reach, steps = 1 / max(1 - decay, 1e-9), number(last.get("step")) or 0
    words += f": the average lags behind, as it reaches back some {reach:,.0f} steps, of {steps:,.0f} so far"
    if steps < 3 * reach and not ended:
        return [fact(f"{words}; that passes")]
    return [warning(f"{words} (limit {limits.ema_lag:g}): train longer or lower --ema-decay")]


def _rate(rows: Sequence[dict[str, Any]]) -> list[Finding]:
    _, rates = _known(rows, "lr")
    return (
        [fact(f"learning rate {rates[-1]:.2e}, at most {rates.max():.2e} at the end of an epoch")] if len(rates) else []
    )


def _gradients(rows: Sequence[dict[str, Any]], settings: dict[str, Any]) -> list[Finding]:
    epochs, norms = _known(rows, "grad_norm")
    clip = settings.get("grad_clip")
    if not len(norms):
        return []
    clipped = ""
    if clip:
        clipped = f"; {int((norms > clip).sum())} of {len(norms)} epochs have a mean above --grad-clip {clip:g}"
    return [
        fact(
            f"gradient norm {norms[-1]:.4g} (mean of epoch {epochs[-1]}), {np.median(norms):.4g} in the median "
            f"epoch{clipped}"
        )
    ]


def _quality(rows: Sequence[dict[str, Any]], limits: Thresholds) -> list[Finding]:
    epochs, values = _known(rows, "rca")
    if not len(values):
        return []
    best = int(values.argmax())
    lost = 1 - values[-1] / values[best] if values[best] else 0.0
    words = f"readability (RCA) {values[-1]:.3f} at epoch {epochs[-1]}, best {values[best]:.3f} at epoch {epochs[best]}"
    return [Finding("warning" if lost > limits.quality_drop else "healthy", words)]
