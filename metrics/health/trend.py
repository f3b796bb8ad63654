"""Where a series of figures is heading: a straight line through its last values, with the error of its slope."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from metrics.health.thresholds import Thresholds
from metrics.line import fit_line


@dataclass(frozen=True)
class Trend:
    """The least-squares line through a series' last values. `slope` and its standard error `error` are per epoch;
    `epochs` are the window's first and last one; `change` is what the line does between them, as a share of its value
    at the first: infinite where it begins at zero or below, as one does that rises steeply."""

    slope: float
    error: float
    change: float
    epochs: tuple[int, int]

    @property
    def certain(self) -> bool:
        """Is the slope more than two standard errors from zero?"""
        return abs(self.slope) > 2 * self.error

    @property
    def figures(self) -> str:
        first, last = self.epochs
        line = f"slope {self.slope:+.2e} ± {self.error:.1e} an epoch over epochs {first} to {last}"
        return f"{line}, fitted change {self.change:+.1%}" if math.isfinite(self.change) else line


def trend(epochs: np.ndarray, values: np.ndarray, limits: Thresholds) -> Trend | None:
    """The trend of the last `limits.window` values that are numbers; None where there are too few.

    Args:
        epochs, values: float64 [rows].
    """
    known = np.isfinite(values)
    x, y = epochs[known][-limits.window :], values[known][-limits.window :]
    if len(x) < limits.trend_points:
        return None
    slope, error = fit_line(x, y)
    begin = y.mean() + slope * (x[0] - x.mean())
    change = slope * (x[-1] - x[0]) / begin if begin > 0 else math.inf
    return Trend(slope, error, float(change), (int(x[0]), int(x[-1])))
