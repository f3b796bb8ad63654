"""Ranges of histograms that NumPy accepts, whatever the values are."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def span(values: np.ndarray, bins: int) -> tuple[float, float]:
    """The range of a histogram of the finite `values` (any shape): their minimum and maximum.

    The range is wider where the values are equal, or so close that float64 cannot hold `bins` edges between them: NumPy
    refuses those ("Too many bins for data range"). It is 0 to 1 where no value is finite.
    """
    import numpy as np  # here: ddpm/run loads without it

    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    least = bins * float(np.spacing(max(abs(low), abs(high))))
    return (low, high) if high - low > least else (low - max(0.5, least), high + max(0.5, least))
