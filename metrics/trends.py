"""Properties of a curve, each defined once: best, smoothed best, slope with error, forecast of a target, gap.

Pure functions on a `Curve`. Health check, training log, comparison and dashboard use them; none computes its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddpm.run.format import DASH, significant
from ddpm.run.metrics import LOSS_MEAN, TRAIN_IMAGES, TRAIN_TIME_SEC, VAL_LOSS, VAL_LOSS_EMA, Metric

SMOOTH = 5  # number of measured values whose mean is a smoothed value
WINDOW = 10  # largest number of measured values to which the present slope is fitted
SIGNIFICANT = 2.0  # standard errors
RECENT = 3  # number of values in each median of `gap`


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
class TargetForecast:
    """When a curve reaches a target. `epoch`: the first that did. If none did: `slope` of the latest values (None if
    too few), and the epochs at which a straight line from the last value reaches it: `expected` with that slope,
    `earliest` and `latest` with two standard errors more or less; None unless it goes that way significantly."""

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


def main_loss(runs: Iterable[Sequence[Mapping[str, Any]]], least: int = 1) -> Metric:
    """The most telling loss of which the rows of a run have at least `least` values: validation loss of the EMA
    weights, of the live ones, training loss."""
    known = list(runs)
    enough = (each for each in (VAL_LOSS_EMA, VAL_LOSS) if any(len(Curve.of(rows, each)) >= least for rows in known))
    return next(enough, LOSS_MEAN)


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


def gap_words(metric: Metric, gap: float) -> str:
    """The difference of two values, with three significant digits or all before the point: `0.0123`, `9,876`."""
    percent = metric.format.endswith("%")
    size = 100 * gap if percent else gap
    words = significant(size, max(3, len(f"{size:.0f}")))
    return f"{words}%" if percent and words != DASH else words


def new_bests(curve: Curve) -> Curve:
    """The values that are better than all before them."""
    before = np.minimum.accumulate(np.concatenate([[np.inf], curve.costs]))[:-1]
    return curve[curve.costs < before]


def thinned(curve: Curve, most: int) -> Curve:
    """At most `most` of the values: the first, the last, and some between, evenly by the logarithm of the epoch, as
    curves fall fast at first and then more slowly."""
    if len(curve) <= most:
        return curve
    steps = np.geomspace(max(curve.epochs[0], 1), curve.epochs[-1], most)
    places = np.searchsorted(curve.epochs, steps.round())
    return curve[np.unique([0, *places])]


def over_best(curve: Curve) -> float:
    """The last value over the best one, for figures where smaller is better; 1 without values."""
    found = best(curve)
    return curve.last.value / found.value if found and found.value > 0 else 1.0


def present_slope(curve: Curve) -> Slope | None:
    """The slope over the latest half of the measured values, but at most `WINDOW` and at least 3 of them."""
    return slope(curve[-min(WINDOW, max(3, len(curve) // 2)) :])


def slope(curve: Curve) -> Slope | None:
    """The least-squares slope; None of fewer than 3 values."""
    return fit_line(curve.epochs, curve.values) if len(curve) >= 3 else None


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


def fit_line(epochs: np.ndarray, values: np.ndarray) -> Slope:
    """The least-squares line through 3 values or more."""
    x, y = epochs - epochs.mean(), values - values.mean()
    value = (x @ y) / (x @ x)
    residuals = y - value * x
    error = np.sqrt(residuals @ residuals / (len(x) - 2) / (x @ x))
    return Slope(float(value), float(error), int(epochs[0]), int(epochs[-1]), len(x))
