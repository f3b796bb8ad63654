"""A figure as a file says it and as it should be; and the figures of CSV, JSON and evaluation computed again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddpm.evaluation.scores import Estimate
from ddpm.evaluation.sweeps import recommend, recommend_length
from ddpm.run.evaluation_figures import CAS, FIGURES, FRECHET, RCA, RCA_UNGUIDED, TOP1, at
from ddpm.run.format import DASH
from ddpm.run.metrics import (
    BATCHES_PER_SEC,
    EPOCH_TIME_SEC,
    IMAGES_SEEN,
    METRICS,
    SAMPLES_PER_SEC,
    STEP,
    TOTAL_TIME_SEC,
    TRAIN_IMAGES,
    TRAIN_TIME_SEC,
    Metric,
)
from metrics.tracker import summarise

CLOSE = 1e-9  # relative difference of sums that NumPy may add in another order
SINGLE = 1e-5  # the same of what was computed in float32
ROUNDED = 1e-3  # seconds: epochs' times are read from a clock


@dataclass(frozen=True)
class Check:
    """A figure: where it stands, what it says, what it should be. A text of a page may hold several `figures`."""

    page: str
    figure: str
    says: Any
    should: Any
    tolerance: float = 0.0  # relative
    figures: int = 1

    @property
    def differs(self) -> bool:
        numbers = [isinstance(value, (int, float)) for value in (self.says, self.should)]
        if all(numbers) and self.tolerance:
            return not math.isclose(self.says, self.should, rel_tol=self.tolerance, abs_tol=self.tolerance * 1e-3)
        return self.says != self.should

    def __str__(self) -> str:
        says, should = (DASH if value is None else str(value) for value in (self.says, self.should))
        return f"{self.page}: {self.figure} says {says or 'nothing'}, should be {should or 'nothing'}"


# ---- CSV and JSON ----------------------------------------------------------------------------------------------------


def copies(page: str, rows: Sequence[Mapping[str, Any]], epochs: Sequence[Mapping[str, Any]]) -> Iterator[Check]:
    """The rows of the CSV against those of the JSON file, figure by figure."""
    yield Check(page, "number of rows", len(rows), len(epochs))
    for row, epoch in zip(rows, epochs, strict=True):
        for name in METRICS:
            yield Check(page, f"{name} of epoch {epoch['epoch']}", row.get(name), epoch.get(name))


def sums(page: str, rows: Sequence[Mapping[str, Any]], global_batch: int | None) -> Iterator[Check]:
    """Columns that follow from others: times that add up, speeds, images."""
    total = 0.0
    for row in rows:

        def check(metric: Metric, should: float | None, tolerance: float = CLOSE, row=row) -> Iterator[Check]:
            if should is not None and metric.of(row) is not None:
                yield Check(page, f"{metric.name} of epoch {row['epoch']}", metric.of(row), should, tolerance)

        spent, images, seconds = (metric.of(row) for metric in (EPOCH_TIME_SEC, TRAIN_IMAGES, TRAIN_TIME_SEC))
        total = None if None in (total, spent) else total + spent
        yield from check(TOTAL_TIME_SEC, total, ROUNDED / max(total or 1, 1))
        rate = images / seconds if images and seconds else None
        yield from check(SAMPLES_PER_SEC, rate)
        if global_batch:
            yield from check(BATCHES_PER_SEC, rate and rate / global_batch)
            yield from check(IMAGES_SEEN, STEP.of(row) and STEP.of(row) * global_batch, 0.0)


def summary(page: str, said: Any, rows: list[dict[str, Any]], starts: Sequence[Any]) -> Iterator[Check]:
    """The summary against the rows. A figure that an older version did not have is left out."""
    said = said if isinstance(said, dict) else {}
    for name, should in summarise(rows, starts).items():
        if name in said:
            yield Check(page, f"summary.{name}", said[name], should, CLOSE)


# ---- evaluation ------------------------------------------------------------------------------------------------------


def evaluation(page: str, document: dict[str, Any]) -> Iterator[Check]:
    """What follows from other figures of `evaluation.json`: ratios, shares, sums, recommendations."""
    for figure, should in _derived(document):
        says = document
        for key in figure.split("."):
            says = says[int(key)] if isinstance(says, list) else says.get(key) if says else None
        if says is not None and should is not None:
            yield Check(page, figure, says, should, SINGLE)
    for figure in FIGURES.values():
        estimate = at(document, figure.place)
        if estimate and None not in (estimate["low"], estimate["high"]):
            low, high = estimate["low"], estimate["high"]
            yield Check(
                page, f"interval of {figure.place}", f"[{low}, {high}]", f"[{min(low, high)}, {max(low, high)}]"
            )


def _derived(document: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Place of a figure → what it should be; None where that cannot be computed."""
    conditional, balance = document["conditional"], document["class_balance"]
    confusion, real = conditional["confusion"], _value(conditional.get("real_top1"))  # at the model's resolution
    hits = [row[place] for place, row in enumerate(confusion)]
    yield f"{TOP1.place}.value", _over(sum(hits), sum(map(sum, confusion)))
    yield f"{RCA.place}.value", _over(_value(at(document, TOP1.place)), real)
    unguided = document["unguided"] or {}
    yield f"{RCA_UNGUIDED.place}.value", _over(_value(unguided.get(TOP1.key)), real)
    for place, each in enumerate(conditional["per_class"]):
        name = f"conditional.per_class.{place}"
        yield f"{name}.{TOP1.key}", _over(hits[place], sum(confusion[place]))
        yield f"{name}.{RCA.key}", _over(each[TOP1.key], each["real_top1"])
    for shares, figure in {"shares": "total_variation", "real_shares": "real_total_variation"}.items():
        if balance and None not in balance[shares]:
            spread = sum(abs(share - 1 / len(balance[shares])) for share in balance[shares]) / 2
            yield f"class_balance.{figure}.value", spread
    if learning := document["learning"]:
        yield f"{CAS.place}.value", _over(*(_value(learning[name]) for name in ("accuracy", "real_accuracy")))
        for place, each in enumerate(learning["per_class"]):
            cas = _over(each["accuracy"], each["real_accuracy"])
            yield f"learning.per_class.{place}.{CAS.key}", cas
    yield from _recommended(document)


def _recommended(document: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    sweeps = {"recommended": ("samplers", recommend), "recommended_length": ("ema_lengths", recommend_length)}
    for part, (sweep, judge) in sweeps.items():
        if document[part] and document[sweep]:
            found = judge([_estimated(row) for row in document[sweep]]) or {}
            for name in document[part].keys() - {"why"}:
                yield f"{part}.{name}", found.get(name, DASH)


def _estimated(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a sweep as the sweep had it: estimates as such."""
    estimates = {name: row[name] for name in (CAS.key, RCA.key, FRECHET.key) if row.get(name)}
    return row | {
        name: Estimate(**{key: math.nan if value is None else value for key, value in estimate.items()})
        for name, estimate in estimates.items()
    }


def _value(estimate: Mapping[str, Any] | None) -> float | None:
    return estimate["value"] if estimate else None


def _over(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None
