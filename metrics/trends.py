"""What a curve does: its best values, raw and smoothed, its slope with an error, its phases, when it gets to a target.

Pure functions on a curve: a Series of floats by epoch (the index, increasing); NaN where nothing was measured.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from metrics.line import fit_line

SMOOTH = 5  # measured values that a smoothed one is the mean of
WINDOW = 10  # measured values at most that the present slope is of
SIGNIFICANT = 2.0  # standard errors
SHORTEST, MOST = 3, 4  # measured values in a phase at least, and phases at most
PLACES = 200  # where a phase may end: after each value, or in a longer curve at so many, evenly spread
WIGGLE = 0.002  # relative deviations from a straight line below this are no reason for another phase
FAST = 0.05  # relative change per epoch: more is a fast descent
FLAT, FLAT_IN_ALL = 0.001, 0.05  # relative change per epoch, and over all of a phase: less is a plateau
UNSURE = 0.005  # standard error per epoch: an insignificant slope is a plateau below it, above it nothing is known


@dataclass(frozen=True)
class Slope:
    """A straight line through `count` values from epoch `first` to `last`: change per epoch, and its standard error,
    residuals taken as independent."""

    value: float
    error: float
    first: int
    last: int
    count: int

    @property
    def significant(self) -> bool:
        return abs(self.value) > SIGNIFICANT * self.error


@dataclass(frozen=True)
class Smoothed:
    """The mean of the `SMOOTH` values in a row that were measured from epoch `first` to `last`."""

    value: float
    first: int
    last: int


@dataclass(frozen=True)
class Phase:
    """A part of a curve on which its logarithm is about a straight line.

    `rate.value` is the relative change per epoch (-0.12: a fall by 12 %); `begin` and `end` are the first and the last
    value, `mean` and `deviation` (standard, n - 1) are of all of them.
    """

    kind: str
    rate: Slope
    begin: float
    end: float
    mean: float
    deviation: float


@dataclass(frozen=True)
class TargetForecast:
    """A curve and a target. `epoch`: the first that is as good as it. Else `slope` over the latest values, None if they
    are too few, and the epochs at which a straight line with that slope, and with the slope two standard errors steeper
    and less steep, would get there from the last value; all None unless the curve significantly goes that way."""

    epoch: int | None
    slope: Slope | None = None
    expected: float | None = None
    earliest: float | None = None
    latest: float | None = None


def best(curve: pd.Series, larger: bool = False) -> tuple[int, float] | None:
    """Epoch and value of the best; of equal ones the first. None if nothing was measured."""
    known = curve.dropna()
    if known.empty:
        return None
    epoch = known.idxmax() if larger else known.idxmin()
    return int(epoch), float(known[epoch])


def best_smoothed(curve: pd.Series, larger: bool = False) -> Smoothed | None:
    """The best mean of `SMOOTH` measured values in a row; None if there are fewer."""
    known = curve.dropna()
    means = known.rolling(SMOOTH).mean().to_numpy()[SMOOTH - 1 :]
    if not len(means):
        return None
    place = int(means.argmax() if larger else means.argmin())
    return Smoothed(float(means[place]), int(known.index[place]), int(known.index[place + SMOOTH - 1]))


def new_bests(curve: pd.Series, larger: bool = False) -> pd.Series:
    """The values that are better than all before them."""
    known = curve.dropna()
    sign = -1 if larger else 1
    return known[sign * known < (sign * known).cummin().shift(fill_value=math.inf)]


def thinned(bests: pd.Series, most: int) -> pd.Series:
    """At most `most` of the values: the first, the last, and between them those that come first in each of equal steps
    of the epoch's logarithm, as curves fall fast at first and then ever more slowly."""
    if len(bests) <= most:
        return bests
    steps = np.geomspace(max(bests.index[0], 1), bests.index[-1], most)
    places = np.searchsorted(bests.index, steps.round())
    return bests.iloc[np.unique([0, *places.clip(0, len(bests) - 1)])]


def present_slope(curve: pd.Series) -> Slope | None:
    """The slope over the latest half of the measured values, but at most `WINDOW` and at least 3 of them."""
    return slope(curve, window=min(WINDOW, max(3, int(curve.count()) // 2)))


def slope(curve: pd.Series, window: int | None = None) -> Slope | None:
    """The least-squares slope over the latest `window` measured values (all if left out); None if they are fewer than
    3."""
    known = curve.dropna()
    if window is not None:
        known = known.iloc[-window:]
    if len(known) < 3:
        return None
    x, y = known.index.to_numpy(float), known.to_numpy(float)
    return Slope(*fit_line(x, y), int(x[0]), int(x[-1]), len(x))


def phases(curve: pd.Series) -> list[Phase]:
    """The phases of a curve of positive values (others are left out), found from it alone.

    At most `MOST` straight lines are fitted to its logarithm, each to `SHORTEST` values or more, by least squares over
    all places where they may meet (Bellman 1961); how many is decided by the Bayesian information criterion (Schwarz
    1978). Neighbours of one kind become one phase. Empty if there are fewer than `SHORTEST` values.
    """
    known = curve.dropna()
    known = known[known > 0]
    if len(known) < SHORTEST:
        return []
    edges = _edges(known.index.to_numpy(float), np.log(known.to_numpy(float)))
    found: list[tuple[int, int, str]] = []
    for start, end in itertools.pairwise(edges):
        kind = _kind(_rate(known.iloc[start:end]))
        if found and found[-1][2] == kind:
            start = found.pop()[0]
        found.append((start, end, kind))
    return [_phase(known.iloc[start:end]) for start, end, _ in found]


def reach(curve: pd.Series, target: float, larger: bool = False) -> TargetForecast:
    """Whether and when the curve gets to `target`. A straight line is as a rule too hopeful: descents slow down."""
    known = curve.dropna()
    there = known[known >= target] if larger else known[known <= target]
    if not there.empty:
        return TargetForecast(int(there.index[0]))
    line = present_slope(known)
    if line is None or not line.significant or (line.value > 0) != larger:
        return TargetForecast(None, line)
    gap = target - float(known.iloc[-1])
    margin = math.copysign(SIGNIFICANT * line.error, line.value)
    expected, earliest, latest = (line.last + gap / (line.value + off) for off in (0, margin, -margin))
    return TargetForecast(None, line, expected, earliest, latest)


def _rate(values: pd.Series) -> Slope:
    """The relative change per epoch: the slope of the logarithm, as a share."""
    line = slope(np.log(values))
    with np.errstate(over="ignore", invalid="ignore"):
        value, error = float(np.expm1(line.value)), float(np.exp(line.value) * line.error)
    return Slope(value, error, line.first, line.last, line.count)


def _kind(rate: Slope) -> str:
    if abs(rate.value) < FLAT and abs(rate.value) * (rate.last - rate.first) < FLAT_IN_ALL:
        return "plateau"
    if not rate.significant:
        return "plateau" if rate.error < UNSURE else "no clear direction"
    if rate.value > 0:
        return "rising"
    return "fast descent" if rate.value < -FAST else "slow descent"


def _phase(values: pd.Series) -> Phase:
    rate = _rate(values)
    ends = float(values.iloc[0]), float(values.iloc[-1])
    return Phase(_kind(rate), rate, *ends, float(values.mean()), float(values.std()))


def _edges(x: np.ndarray, y: np.ndarray) -> list[int]:
    """Where the best straight lines through (x, y) begin, as places in the arrays, and their length at the end."""
    count = len(x)
    places = np.unique(np.linspace(0, count, min(count, PLACES) + 1).round().astype(int))
    cost = _residuals(x - x.mean(), y - y.mean(), places)
    least, came_from = [cost[0]], []  # of 1, 2, … lines: the smallest sum of squares up to each place
    for _ in range(MOST - 1):
        both = least[-1][:, None] + cost
        came_from.append(both.argmin(axis=0))
        least.append(both.min(axis=0))
    squares = np.array([of_each[-1] for of_each in least])
    lines = np.arange(1, MOST + 1)
    score = count * np.log(np.maximum(squares / count, WIGGLE**2)) + (3 * lines - 1) * math.log(count)
    at, edges = len(places) - 1, [count]
    for back in came_from[: int(score.argmin())][::-1]:
        at = int(back[at])
        edges.append(int(places[at]))
    return [0, *reversed(edges)]


def _residuals(x: np.ndarray, y: np.ndarray, places: np.ndarray) -> np.ndarray:
    """[i, j]: sum of squares about the line through the points from place i to place j; inf if they are too few."""
    sums = np.cumsum([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)
    sums = np.concatenate([np.zeros((6, 1)), sums], axis=1)[:, places]
    with np.errstate(divide="ignore", invalid="ignore"):
        n, sx, sy, sxx, sxy, syy = sums[:, None, :] - sums[:, :, None]
        squares = syy - sy * sy / n - (sxy - sx * sy / n) ** 2 / (sxx - sx * sx / n)
    return np.where(n >= SHORTEST, np.maximum(squares, 0), math.inf)
