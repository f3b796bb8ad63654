"""Early stopping, when a metric no longer improves: `--early-stop-patience`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ddpm.run.config import TrainConfig
from ddpm.run.metrics import METRICS


def out_of_patience(rows: Sequence[dict[str, Any]], config: TrainConfig) -> str | None:
    """Why the run should end now, in words; None if it should go on, or early stopping is off.

    Args:
        rows: the figures of all epochs so far. Epochs without a measurement count as epochs without improvement, once a
            later one is measured.
    """
    name = config.early_stop_metric
    measured = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
    if not (config.early_stop_patience and measured):
        return None
    sign = -1 if METRICS[name].larger_is_better else 1
    best_epoch, best = measured[0]
    for epoch, value in measured:
        if sign * value < sign * best - config.min_delta:
            best_epoch, best = epoch, value
    waited = measured[-1][0] - best_epoch
    if waited < config.early_stop_patience:
        return None
    by = f" by more than {config.min_delta:g}" if config.min_delta else ""
    return (
        f"stopped early after epoch {measured[-1][0]}: {name} has not improved on {best:.5g} (epoch {best_epoch}){by} "
        f"for {waited} epoch{'s' * (waited > 1)}; raise --early-stop-patience to train on"
    )
