"""The straight line through the values of a curve."""

from __future__ import annotations

import numpy as np


def fit_line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The least-squares slope of `y` over `x` (float64 [N], N at least 3, not all `x` equal) and its standard error."""
    x_off, y_off = x - x.mean(), y - y.mean()
    slope = (x_off @ y_off) / (x_off @ x_off)
    residuals = y_off - slope * x_off
    return float(slope), float(np.sqrt(residuals @ residuals / (len(x) - 2) / (x_off @ x_off)))
