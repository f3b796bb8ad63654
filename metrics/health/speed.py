"""How fast a run trains and where its time goes, from its rows: slow epochs and slow processes are named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ddpm.run.format import number
from ddpm.run.metrics import METRICS, names
from metrics.health.checks import DASH, Finding, Section, Table, column, fact, healthy, warning
from metrics.health.thresholds import Thresholds

PARTS = {name: METRICS[name].label for name in names(group="time", over_epochs="sum")}  # what seconds went into


def performance(rows: Sequence[dict[str, Any]], limits: Thresholds) -> Section:
    """How fast it trains, and where the time goes. `rows`: those of training_metrics.csv."""
    seconds, images = column(rows, "train_time_sec"), column(rows, "train_images")
    if not np.nansum(seconds) > 0:
        return Section("performance", [fact("no epoch has been timed yet")])
    pace, step = column(rows, "samples_per_sec"), 1000 / column(rows, "batches_per_sec")
    mfu = column(rows, "mfu")
    overall = np.nansum(images) / np.nansum(seconds)
    known = (
        f"MFU {np.nanmedian(mfu):.1%} (median)" if np.isfinite(mfu).any() else "MFU not known: no peak of this device"
    )
    told = (
        f"{overall:,.1f} images/s over {len(rows)} epoch(s) of training, {_median(step):,.1f} ms a step "
        f"(median), {known}"
    )
    findings = [healthy(told)]
    recent = _median(pace[-3:]) / _median(pace) if np.isfinite(pace).sum() > 5 else np.nan
    if recent < limits.slowed:
        findings.append(
            warning(
                f"slower than before: {_median(pace[-3:]):,.1f} images/s in the last three "
                f"epochs, {recent:.0%} of the run's median (limit {limits.slowed:.0%})"
            )
        )
    shares, share_table = _shares(rows, limits)
    findings += [*shares, *_slow_epochs(rows, limits), *_slow_ranks(rows, limits)]
    findings.append(
        fact(
            "loading data has no share of its own: all images lie on the device as bytes, and each "
            "step gathers its own, which counts as training"
        )
    )
    return Section("performance", findings, [share_table])


def _median(values: np.ndarray) -> float:
    return float(np.nanmedian(values)) if np.isfinite(values).any() else float("nan")


def _shares(rows: Sequence[dict[str, Any]], limits: Thresholds) -> tuple[list[Finding], Table]:
    """What the run's seconds went into."""
    total = np.nansum(column(rows, "epoch_time_sec"))
    parts = {name: column(rows, key) for key, name in PARTS.items()}
    spent = {name: np.nansum(values) for name, values in parts.items() if np.isfinite(values).any()}
    unknown = [name for name in parts if name not in spent]
    spent["other: start, compilation, reports"] = max(total - sum(spent.values()), 0.0)
    cells = [(name, f"{value:,.1f}", f"{value / total:.1%}" if total else DASH) for name, value in spent.items()]
    later = rows[1:]  # the first epoch compiles
    share = np.nansum(column(later, "train_time_sec")) / max(np.nansum(column(later, "epoch_time_sec")), 1e-9)
    found = [fact(f"not timed apart in this run, and part of other: {', '.join(unknown)}")] if unknown else []
    if len(later) > 1 and share < limits.train_share:
        found.append(
            warning(
                f"only {share:.1%} of the time after the first epoch is training (limit "
                f"{limits.train_share:.0%}): validate, evaluate, draw or save less often"
            )
        )
    return found, Table("Where the time went", ["Part", "Seconds", "Share"], cells)


def _slow_epochs(rows: Sequence[dict[str, Any]], limits: Thresholds) -> list[Finding]:
    """The epochs that took much longer than the median one, and in which part; the first, which compiles, aside."""
    seconds = column(rows, "epoch_time_sec")
    usual = _median(seconds)
    slow = [i for i in range(1, len(rows)) if seconds[i] > limits.slow_epoch * usual]
    if len(rows) < 4 or not slow:
        return []
    measured = {name: column(rows, key) for key, name in PARTS.items()}
    measured["other"] = seconds - np.nansum(list(measured.values()), axis=0)
    excess = {name: values - _median(values) for name, values in measured.items() if np.isfinite(values).any()}
    named = []
    for index in sorted(slow, key=lambda i: -seconds[i])[:5]:
        why = max(excess, key=lambda name: np.nan_to_num(excess[name][index]))
        named.append(
            f"epoch {rows[index].get('epoch')} {seconds[index]:,.1f} s (+{excess[why][index]:,.1f} s of {why})"
        )
    note = (
        f"{len(slow)} slow epoch(s), above {limits.slow_epoch:g} times the median of {usual:,.1f} s: {'; '.join(named)}"
    )
    # what happens every tenth epoch by plan (samples, evaluations) is no reason to worry
    unplanned = [i for i in slow if measured["training"][i] > limits.slow_epoch * _median(measured["training"])]
    often = len(unplanned) > len(rows) / 10 or any(i >= len(rows) - 3 for i in unplanned)
    return [Finding("warning" if often else "healthy", note + (" …" if len(slow) > 5 else ""))]


def _slow_ranks(rows: Sequence[dict[str, Any]], limits: Thresholds) -> list[Finding]:
    """A process that keeps the others waiting."""
    window = [row for row in rows if number(row.get("slowest_rank_ratio")) is not None][-limits.window :]
    if not window:
        return []
    ratios = column(window, "slowest_rank_ratio")
    late = Counter(
        int(row["slowest_rank"])
        for row, ratio in zip(window, ratios, strict=True)
        if ratio > limits.slow_rank and number(row.get("slowest_rank")) is not None
    )
    rank, times = late.most_common(1)[0] if late else (None, 0)
    if times > len(window) / 2:
        worst_ratio = max(ratio for row, ratio in zip(window, ratios, strict=True) if row.get("slowest_rank") == rank)
        return [
            warning(
                f"process {rank} was the slowest in {times} of {len(window)} epochs, up to "
                f"{worst_ratio:.2f} times the median process (limit {limits.slow_rank:g}): all wait for it"
            )
        ]
    return [
        healthy(
            f"no process is slow for long: the slowest took {_median(ratios):.2f} times the median "
            f"one's time (median over {len(window)} epochs)"
        )
    ]
