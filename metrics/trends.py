"""What a curve does, defined once: best, smoothed best, slope with error, phases, forecast of a target, gap.

Pure functions on a `Curve`. Health, training log, comparison and dashboard word what they find; none computes its own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddpm.run.metrics import TRAIN_IMAGES, TRAIN_TIME_SEC, Metric

SMOOTH = 5  # measured values that a smoothed one is the mean of
WINDOW = 10  # measured values at most that the present slope is of
SIGNIFICANT = 2.0  # standard errors
SHORTEST, MOST = 3, 4  # measured values in a phase at least, and phases at most
PLACES = 200  # where a phase may end: after each value, or in a longer curve at this many, evenly spread
WIGGLE = 0.002  # relative deviations from a straight line below this are no reason for another phase
FAST = 0.05  # relative change per epoch: more is a fast descent
FLAT, FLAT_IN_ALL = 0.001, 0.05  # relative change per epoch, and over all of a phase: less is a plateau
UNSURE = 0.005  # standard error per epoch: an insignificant slope is a plateau below it, above it nothing is known
RECENT = 3  # values that the medians of `gap` are of


@dataclass(frozen=True, eq=False)
class Curve:
    """The measured values of a figure: `epochs` int64 [N], increasing, and `values` float64 [N], finite."""

    metric: Metric
    epochs: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]], metric: Metric) -> Curve:
        """The figure in rows with an `epoch`; what is no finite number was not measured."""
        pairs = [(row["epoch"], value) for row in rows if (value := metric.of(row)) is not None]
        epochs, values = zip(*pairs, strict=True) if pairs else ((), ())
        return cls(metric, np.array(epochs, np.int64), np.array(values, np.float64))

    def __len__(self) -> int:
        return len(self.epochs)

    def __getitem__(self, part: slice | np.ndarray) -> Curve:
        return Curve(self.metric, self.epochs[part], self.values[part])

    def point(self, place: int) -> Point:
        return Point(int(self.epochs[place]), float(self.values[place]))

    @property
    def last(self) -> Point | None:
        return self.point(-1) if len(self) else None

    @property
    def costs(self) -> np.ndarray:
        """The values with the sign that makes smaller ones better."""
        return -self.values if self.metric.larger_is_better else self.values


@dataclass(frozen=True)
class Point:
    """A value and its epoch."""

    epoch: int
    value: float


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

    kind: str  # fast descent, slow descent, plateau, rising, no clear direction
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


@dataclass(frozen=True)
class Gap:
    """Training and validation loss, each as medians of three epochs: at the epoch of the best validation, and at last.

    `rise` of validation and `fall` of training are relative, since `best`.
    """

    best: Point  # of validation
    last: Point
    train_at_best: float
    train_at_last: float

    @property
    def rise(self) -> float:
        return self.last.value / self.best.value - 1

    @property
    def fall(self) -> float:
        return 1 - self.train_at_last / self.train_at_best


def best(curve: Curve) -> Point | None:
    """The best value; of equal ones the first. None if nothing was measured."""
    return curve.point(int(curve.costs.argmin())) if len(curve) else None


def first_as_good(curve: Curve, target: float) -> Point | None:
    """The first value that is as good as `target`; None if there is none."""
    there = np.flatnonzero(curve.costs <= (-target if curve.metric.larger_is_better else target))
    return curve.point(int(there[0])) if len(there) else None


def over_epochs(rows: Sequence[Mapping[str, Any]], metric: Metric) -> float | None:
    """The one figure of the run that `metric.over_epochs` makes of its epochs; None if nothing was measured."""
    if metric.over_epochs == "images_per_second":
        timed = [(TRAIN_IMAGES.of(row), TRAIN_TIME_SEC.of(row)) for row in rows]
        images, seconds = np.sum([pair for pair in timed if None not in pair] or [(0, 0)], axis=0)
        return float(images / seconds) if seconds else None
    curve = Curve.of(rows, metric)
    if not len(curve):
        return None
    if metric.over_epochs in ("best", "last"):
        return (best(curve) if metric.over_epochs == "best" else curve.last).value
    return float(getattr(np, metric.over_epochs)(curve.values))


def best_smoothed(curve: Curve) -> Smoothed | None:
    """The best mean of `SMOOTH` measured values in a row; None if there are fewer."""
    if len(curve) < SMOOTH:
        return None
    means = np.lib.stride_tricks.sliding_window_view(curve.costs, SMOOTH).mean(axis=1)
    place = int(means.argmin())
    mean = curve.values[place : place + SMOOTH].mean()
    return Smoothed(float(mean), int(curve.epochs[place]), int(curve.epochs[place + SMOOTH - 1]))


def new_bests(curve: Curve) -> Curve:
    """The values that are better than all before them."""
    before = np.minimum.accumulate(np.concatenate([[np.inf], curve.costs]))[:-1]
    return curve[curve.costs < before]


def thinned(curve: Curve, most: int) -> Curve:
    """At most `most` of the values: the first, the last, and between them those that come first in each of equal steps
    of the epoch's logarithm, as curves fall fast at first and then ever more slowly."""
    if len(curve) <= most:
        return curve
    steps = np.geomspace(max(curve.epochs[0], 1), curve.epochs[-1], most)
    places = np.searchsorted(curve.epochs, steps.round())
    return curve[np.unique([0, *places.clip(0, len(curve) - 1)])]


def over_best(curve: Curve) -> float:
    """How many times its best value (of figures of which smaller is better) the last one is; 1 without values."""
    found = best(curve)
    return curve.last.value / found.value if found and found.value > 0 else 1.0


def present_slope(curve: Curve) -> Slope | None:
    """The slope over the latest half of the measured values, but at most `WINDOW` and at least 3 of them."""
    return slope(curve[-min(WINDOW, max(3, len(curve) // 2)) :])


def slope(curve: Curve) -> Slope | None:
    """The least-squares slope; None of fewer than 3 values."""
    return _fit(curve.epochs, curve.values) if len(curve) >= 3 else None


def phases(curve: Curve) -> list[Phase]:
    """The phases of a curve of positive values (others are left out), found from it alone.

    At most `MOST` straight lines are fitted to its logarithm, each to `SHORTEST` values or more, by least squares over
    all places where they may meet (Bellman 1961); how many is decided by the Bayesian information criterion (Schwarz
    1978). Neighbours of one kind become one phase. Empty if there are fewer than `SHORTEST` values.
    """
    curve = curve[curve.values > 0]
    if len(curve) < SHORTEST:
        return []
    edges = _edges(curve.epochs.astype(float), np.log(curve.values))
    found: list[tuple[int, int, str]] = []
    for start, end in itertools.pairwise(edges):
        kind = _kind(_rate(curve[start:end]))
        if found and found[-1][2] == kind:
            start = found.pop()[0]
        found.append((start, end, kind))
    return [_phase(curve[start:end]) for start, end, _ in found]


def forecast(curve: Curve, target: float) -> TargetForecast:
    """Whether and when the curve gets to `target`. A straight line is optimistic: descents slow down."""
    larger = curve.metric.larger_is_better
    if there := first_as_good(curve, target):
        return TargetForecast(there.epoch)
    line = present_slope(curve)
    if line is None or not line.significant or (line.value > 0) != larger:
        return TargetForecast(None, line)
    gap = target - curve.last.value
    margin = math.copysign(SIGNIFICANT * line.error, line.value)
    expected, earliest, latest = (line.last + gap / (line.value + off) for off in (0, margin, -margin))
    return TargetForecast(None, line, expected, earliest, latest)


def gap(train: Curve, valid: Curve) -> Gap | None:
    """How training and validation loss have moved since validation was best; None if no epoch has both."""
    common, ours, theirs = np.intersect1d(train.epochs, valid.epochs, return_indices=True)
    if not len(common):
        return None
    trained, validated = _medians(train.values[ours]), _medians(valid.values[theirs])
    place = int(validated.argmin())
    found, last = ((int(common[i]), float(validated[i])) for i in (place, -1))
    return Gap(Point(*found), Point(*last), float(trained[place]), float(trained[-1]))


def _medians(values: np.ndarray) -> np.ndarray:
    """The median of each value and the two before it (the first stands for those that are not there)."""
    padded = np.concatenate([values[:1]] * (RECENT - 1) + [values])
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, RECENT), axis=1)


def _fit(epochs: np.ndarray, values: np.ndarray) -> Slope:
    """The least-squares line through 3 values or more."""
    x, y = epochs - epochs.mean(), values - values.mean()
    value = (x @ y) / (x @ x)
    residuals = y - value * x
    error = np.sqrt(residuals @ residuals / (len(x) - 2) / (x @ x))
    return Slope(float(value), float(error), int(epochs[0]), int(epochs[-1]), len(x))


def _rate(curve: Curve) -> Slope:
    """The relative change per epoch: the slope of the logarithm, as a share."""
    line = _fit(curve.epochs, np.log(curve.values))
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


def _phase(curve: Curve) -> Phase:
    rate, values = _rate(curve), curve.values
    return Phase(
        _kind(rate), rate, float(values[0]), float(values[-1]), float(values.mean()), float(values.std(ddof=1))
    )


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
