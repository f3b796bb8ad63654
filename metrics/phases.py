"""The phases of a curve, the one definition of a descent, a rise and a plateau: pure functions on a `Curve`."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from metrics.trends import WINDOW, Curve, Slope, fit_line

SHORTEST, MOST = 3, 4  # least number of measured values in a phase; most phases
PLACES = 200  # where a phase may end: after each value, or in a longer curve at this many, evenly spread
WIGGLE = 0.002  # relative deviations from a straight line below this are no reason for another phase
FAST = 0.05  # relative change per epoch: more is a fast descent
FLAT, FLAT_IN_ALL = 0.001, 0.05  # relative change per epoch, and over all of a phase: less is a plateau
FLAT_NOW = 0.01  # relative change over the latest values: less, and they are a plateau
UNSURE = 0.005  # standard error per epoch: below it an insignificant slope is a plateau, above it nothing is known


@dataclass(frozen=True)
class Phase:
    """A part of a curve on which its logarithm is about a straight line.

    `rate.value` is the relative change per epoch (-0.12: a fall by 12 %); `begin` and `end` are the first and the last
    value, `mean` and `deviation` (standard, n - 1) are of all of them.
    """

    kind: str  # fast descent, slow descent, plateau, rising, no clear direction
    rate: Slope
    begin: float
    end: float
    mean: float
    deviation: float


def find_phases(curve: Curve, window: int = WINDOW, flat_now: float = FLAT_NOW) -> list[Phase]:
    """The phases of a curve; values that are not positive are left out.

    At most `MOST` straight lines are fitted to its logarithm, each to `SHORTEST` values or more, by least squares over
    all places where they may meet (Bellman 1961); how many is decided by the Bayesian information criterion (Schwarz
    1978). Neighbours of one kind become one phase. If the latest values hardly change, they become a plateau of
    their own, even if the line fitted to them began earlier. Empty if there are fewer than `SHORTEST` values.

    Args:
        window, flat_now: the latest values are a plateau if the line through at least `window` of them changes by a
            smaller share than `flat_now`, and at less than half the rate of the phase that they would be in.
    """
    curve = curve[curve.values > 0]
    if len(curve) < SHORTEST:
        return []
    edges = _breakpoints(curve.epochs.astype(float), np.log(curve.values))
    found: list[tuple[int, int, str]] = []
    for start, end in itertools.pairwise(edges):
        kind = _kind(_rate(curve[start:end]))
        if found and found[-1][2] == kind:
            start = found.pop()[0]
        found.append((start, end, kind))
    flat_from = _flat_since(curve, window, flat_now, abs(_rate(curve[found[-1][0] :]).value))
    if flat_from is not None and found[-1][2] != "plateau":
        found = [(start, min(end, flat_from), kind) for start, end, kind in found if flat_from - start >= SHORTEST]
        found.append((found[-1][1] if found else 0, len(curve), "plateau"))
    return [_phase(curve[start:end], kind) for start, end, kind in found]


def rate_words(rate: Slope) -> str:
    """A relative change per epoch: `-0.11% ± 0.0004% per epoch`."""
    return f"{100 * rate.value:+.3g}% ± {100 * rate.error:.2g}% per epoch"


def _rate(curve: Curve) -> Slope:
    """The relative change per epoch: the slope of the logarithm, as a share."""
    line = fit_line(curve.epochs, np.log(curve.values))
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


def _flat_since(curve: Curve, window: int, flat_now: float, before: float) -> int | None:
    """The index at which the longest flat part at the end begins; None if the latest `window` values are not flat.
    `before`: absolute rate of the phase that they would be in."""
    since = None
    for start in range(len(curve) - max(window, SHORTEST), -1, -1):
        rate = _rate(curve[start:])
        moves = abs(rate.value) * (rate.last - rate.first) >= flat_now or abs(rate.value) > before / 2
        if moves or rate.error >= UNSURE:
            break
        since = start
    return since


def _phase(curve: Curve, kind: str) -> Phase:
    values = curve.values
    mean, deviation = float(values.mean()), float(values.std(ddof=1))
    return Phase(kind, _rate(curve), float(values[0]), float(values[-1]), mean, deviation)


def _breakpoints(x: np.ndarray, y: np.ndarray) -> list[int]:
    """The indices at which the best straight lines through (x, y) begin, followed by len(x)."""
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
