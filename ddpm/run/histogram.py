"""Bins that NumPy takes, whatever the values are."""

from __future__ import annotations

import numpy as np


def span(values: np.ndarray, bins: int) -> tuple[float, float]:
    """The range of a histogram with `bins` bins of the finite `values` (any shape): the least and the largest of them.

    It is wider where the values are equal or differ by so little that float64 has no edges between them, as NumPy
    refuses those ("Too many bins for data range"); 0 to 1 where no value is finite.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    least = bins * float(np.spacing(max(abs(low), abs(high))))
    return (low, high) if high - low > least else (low - max(0.5, least), high + max(0.5, least))
