"""How fast a run trains and where its time goes, from its rows: slow epochs and slow processes are named."""

from __future__ import annotations

from collections import Counter

import numpy as np

from ddpm.run.format import percent, plural
from ddpm.run.metrics import (
    BATCHES_PER_SEC,
    EPOCH_TIME_SEC,
    MFU,
    SAMPLES_PER_SEC,
    SLOWEST_RANK,
    SLOWEST_RANK_RATIO,
    TRAIN_TIME_SEC,
    Metric,
    select,
)
from metrics.health.checks import Component, fact, healthy, warning
from metrics.health.thresholds import Thresholds
from metrics.page import Finding
from metrics.run_data import RunData
from metrics.sections import time_shares
from metrics.trends import over_epochs

PARTS = select(group="time", over_epochs="sum")  # the timed parts of an epoch


def performance(run: RunData, limits: Thresholds) -> Component:
    """How fast it trains, and where the time goes."""
    if not run.curve(TRAIN_TIME_SEC).values.sum() > 0:
        return Component("performance", [fact("no epoch has been timed yet")])
    step = run.curve(BATCHES_PER_SEC).values
    mfu = over_epochs(run.rows, MFU)
    known = f"MFU {percent(mfu)} (median)" if mfu is not None else "MFU not known: no peak of this device"
    rate = SAMPLES_PER_SEC.text(over_epochs(run.rows, SAMPLES_PER_SEC))
    note = f"{rate} images/s over {plural(len(run.rows), 'epoch')} of training, "
    note += f"{1000 / np.median(step) if len(step) else np.nan:,.1f} ms a step (median), {known}"
    findings = [healthy(note), *_slower(run, limits)]
    unknown, shares = time_shares(run)
    if unknown:
        findings.append(fact(f"not timed separately in this run, so counted as other: {', '.join(unknown)}"))
    findings += [*_train_share(run, limits), *_slow_epochs(run, limits), *_slow_ranks(run, limits)]
    loading = "all images are on the device, and selecting a batch there is part of the training step"
    findings.append(fact(f"loading data is not timed: {loading}"))
    return Component("performance", findings, [shares])


def _slower(run: RunData, limits: Thresholds) -> list[Finding]:
    pace = run.curve(SAMPLES_PER_SEC).values
    recent = np.median(pace[-3:]) / np.median(pace) if len(pace) > 5 else 1.0
    if recent >= limits.slowed:
        return []
    words = f"slower than before: {np.median(pace[-3:]):,.1f} images/s in the last three epochs, {recent:.0%} of the "
    return [warning(f"{words}run's median (limit {limits.slowed:.0%})")]


def _train_share(run: RunData, limits: Thresholds) -> list[Finding]:
    later = run.rows[1:]  # the first epoch compiles
    trained, total = (sum(metric.of(row) or 0.0 for row in later) for metric in (TRAIN_TIME_SEC, EPOCH_TIME_SEC))
    share = trained / max(total, 1e-9)
    if len(later) < 2 or share >= limits.train_share:
        return []
    words = f"only {share:.1%} of the time after the first epoch is training (limit {limits.train_share:.0%})"
    return [warning(f"{words}: validate, evaluate, sample or save less often")]


def _slow_epochs(run: RunData, limits: Thresholds) -> list[Finding]:
    """The epochs that took much longer than the median, and the part that took longer; without the first."""
    seconds = _values(run, EPOCH_TIME_SEC)
    if len(seconds) < 4 or not np.isfinite(seconds).any():
        return []
    usual = np.nanmedian(seconds)
    slow = [i for i in range(1, len(seconds)) if seconds[i] > limits.slow_epoch * usual]
    if not slow:
        return []
    measured = {metric.label: _values(run, metric) for metric in PARTS}
    measured["other"] = seconds - np.nansum(list(measured.values()), axis=0)
    excess = {name: part - np.nanmedian(part) for name, part in measured.items() if np.isfinite(part).any()}
    named = []
    for index in sorted(slow, key=lambda i: -seconds[i])[:5]:
        why = max(excess, key=lambda name: np.nan_to_num(excess[name][index]))
        epoch = run.rows[index]["epoch"]
        named.append(f"epoch {epoch} {seconds[index]:,.1f} s (+{excess[why][index]:,.1f} s of {why})")
    note = f"{plural(len(slow), 'slow epoch')}, above {limits.slow_epoch:g} times the median of {usual:,.1f} s: "
    note += "; ".join(named) + (" …" if len(slow) > 5 else "")
    # what happens every tenth epoch by plan (samples, evaluations) is no reason to worry
    training = measured[TRAIN_TIME_SEC.label]
    unplanned = [i for i in slow if training[i] > limits.slow_epoch * np.nanmedian(training)]
    often = len(unplanned) > len(seconds) / 10 or any(i >= len(seconds) - 3 for i in unplanned)
    return [Finding("warning" if often else "healthy", note)]


def _values(run: RunData, metric: Metric) -> np.ndarray:
    """A column as float64 [rows], NaN where it was not measured."""
    return np.array([np.nan if (value := metric.of(row)) is None else value for row in run.rows], dtype=np.float64)


def _slow_ranks(run: RunData, limits: Thresholds) -> list[Finding]:
    """A process that keeps the others waiting."""
    pairs = [(SLOWEST_RANK.of(row), SLOWEST_RANK_RATIO.of(row)) for row in run.rows]
    window = [(rank, ratio) for rank, ratio in pairs if ratio is not None][-limits.window :]
    if not window:
        return []
    late = Counter(int(rank) for rank, ratio in window if rank is not None and ratio > limits.slow_rank)
    slowest, times = late.most_common(1)[0] if late else (None, 0)
    if times > len(window) / 2:
        most = max(ratio for rank, ratio in window if rank == slowest)
        words = f"process {slowest} was the slowest in {times} of {plural(len(window), 'epoch')}"
        return [
            warning(f"{words}, up to {most:.2f} times the median process (limit {limits.slow_rank:g}): all wait for it")
        ]
    middle = np.median([ratio for _, ratio in window])
    words = f"no process is slow for long: the slowest took {middle:.2f} times the median one's time"
    return [healthy(f"{words} (median over {plural(len(window), 'epoch')})")]
