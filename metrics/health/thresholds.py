"""The limits of the health check. Each can be changed:

python -m metrics.health RUN --threshold temperature_warning_c=80 --threshold window=20
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass

from ddpm.run.errors import RequestError
from metrics import phases, trends
from metrics.page import Table
from metrics.run_data import Limits


def limit(default: float, unit: str, reason: str) -> float:
    """A field of `Thresholds`: its value, its unit, and why it is there and has that value."""
    return dataclasses.field(default=default, metadata={"unit": unit, "reason": reason})


@dataclass(frozen=True)
class Thresholds:
    """The limits of the health check; `as_table` lists them with their units and reasons."""

    # fmt: off
    heartbeat_sec: float = limit(Limits.heartbeat_sec, "s", "age of the heartbeat, written every 5 s; a network "
        "file system may delay it by 30 s. Above this the run counts as dead (unhealthy)")
    step_sec: float = limit(Limits.step_sec, "s", "without a step while training: above this the run hangs (unhealthy)")
    phase_sec: float = limit(Limits.phase_sec, "s", "the same in other phases: start, validation … (unhealthy)")
    restarts: int = limit(10, "restarts", "above this, find out why (warning)")
    window: int = limit(trends.WINDOW, "epochs", "measured epochs that recent figures are taken over")
    trend_points: int = limit(5, "epochs", "fewest measured epochs for a trend")
    plateau_change: float = limit(phases.FLAT_NOW, "share", "change of a loss over its last `window` measured epochs "
        "or more: below this it has reached a plateau (warning while the learning rate is high)")
    annealed_lr: float = limit(0.1, "share", "of the peak learning rate: below it a plateau is expected")
    degraded_epochs: int = limit(3, "epochs", "without a new best, from which on a loss above its best is judged")
    degraded_change: float = limit(0.02, "share", "above the best validation loss (warning)")
    overfit_change: float = limit(0.2, "share", "validation loss above its best, while training falls (unhealthy)")
    diverged_factor: float = limit(1.5, "ratio", "a loss over its best: above this it has diverged (unhealthy)")
    useless_loss: float = limit(0.8, "", "validation loss: a network that always answers zero has about 1, or somewhat "
        "less for v-prediction; above this it has learned next to nothing (unhealthy)")
    useless_steps: int = limit(100, "steps", "before these, `useless_loss` is not checked")
    blown_loss: float = limit(3.0, "", "mean training loss of an epoch: above this it has blown up (unhealthy)")
    spike_factor: float = limit(5.0, "ratio", "largest batch loss of an epoch over its median one, from the second "
        "epoch on (warning)")
    nonfinite_share: float = limit(0.01, "share", "of the window's steps skipped as not finite (unhealthy); one after "
        "the first epoch is a warning, as fp16 begins with some")
    ema_lag: float = limit(1.2, "ratio", "validation loss of EMA over live weights: the average lags (warning)")
    quality_drop: float = limit(0.1, "share", "of the best RCA, lost since (warning)")
    temperature_warning_c: float = limit(85, "°C", "data-centre GPUs slow down at about 87 to 92 (warning)")
    temperature_unhealthy_c: float = limit(92, "°C", "they slow down here, and shut down not far above (unhealthy)")
    little_gpu_memory: float = limit(0.25, "share", "of the memory in use in the phase `training`: below it, a larger "
        "batch may be faster (warning)")
    gpu_memory: float = limit(0.97, "share", "of the memory in use: a larger batch or sample may not fit (warning)")
    utilization: float = limit(50, "%", "of a GPU in the phase `training`: below it, something keeps it waiting "
        "(warning)")
    gpu_silent_sec: float = limit(120, "s", "a node writes its GPUs' state every 2 s (warning)")
    slow_epoch: float = limit(1.5, "ratio", "time of an epoch over the median: above this it is named (warning if "
        "it is among the last three, or more than a tenth of all are slow)")
    slowed: float = limit(0.8, "ratio", "images/s of the last three epochs over the run's median (warning)")
    slow_rank: float = limit(1.2, "ratio", "time of the slowest process over the median one's, in most epochs of the "
        "window (warning)")
    train_share: float = limit(0.5, "share", "of the time should be training, not counting the first epoch, which "
        "compiles (warning)")
    class_imbalance: float = limit(1.0, "ratio", "largest over smallest class: EMNIST Balanced is equal (warning)")
    class_spread: float = limit(10.0, "ratio", "the same of the training images of other data, unless --balance draws "
        "the classes equally often (warning)")
    pixel_mean: float = limit(0.01, "of 0 to 1", "distance of the pixels' mean from EMNIST Balanced's (warning)")
    pixel_std: float = limit(0.01, "of 0 to 1", "distance of their standard deviation from it (warning)")
    duplicates: float = limit(0.001, "share", "of the test images that are training images too (warning)")
    weight_growth: float = limit(20.0, "ratio", "root mean square of a tensor over that of its initial draw (warning)")
    weight_max: float = limit(50.0, "", "largest absolute weight (warning)")
    weight_blown: float = limit(1e3, "", "largest absolute weight (unhealthy)")
    ema_distance: float = limit(0.5, "share", "distance of EMA and live weights over the norm of the live ones: above "
        "this the live ones have moved far from their average (warning)")
    dead_share: float = limit(0.05, "share", "of a tensor's output channels whose weights are all near zero (warning)")
    dead_channel: float = limit(1e-3, "ratio", "norm of a channel over the median channel's: below this it is dead")
    fresh_steps: int = limit(20, "steps", "up to here constant tensors and unchanged averages are expected")
    # fmt: on

    def as_table(self) -> Table:
        """A row for each threshold: name, value, unit, what it is for."""
        rows = [
            (f"`{field.name}`", f"{getattr(self, field.name):g}", field.metadata["unit"], field.metadata["reason"])
            for field in dataclasses.fields(self)
        ]
        return Table("All thresholds", ["Threshold", "Value", "Unit", "Meaning"], rows, folded=True)

    @property
    def of_liveness(self) -> Limits:
        return Limits(self.heartbeat_sec, self.step_sec, self.phase_sec)


def parse_thresholds(changes: Iterable[str]) -> Thresholds:
    """The thresholds with `changes` such as `window=20`.

    Raises:
        RequestError: there is no such threshold, or its value is not a number that it can have.
    """
    fields = {field.name: field for field in dataclasses.fields(Thresholds)}
    values: dict[str, float] = {}
    for change in changes:
        name, _, text = change.partition("=")
        if name not in fields:
            raise RequestError(f"--threshold {change}: no such threshold; there are {', '.join(fields)}")
        whole = fields[name].type == "int"
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            kind = "whole number" if whole else "number"
            raise RequestError(
                f"--threshold {change}: give a {kind} that is not negative, such as {name}={fields[name].default:g}"
            )
        values[name] = value
    if min(values.get("window", 3), values.get("trend_points", 3)) < 3:
        raise RequestError("--threshold: window and trend_points must be 3 or more, as a slope needs three values")
    return Thresholds(**values)
