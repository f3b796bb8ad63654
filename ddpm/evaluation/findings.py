"""Conclusions from an evaluation, drawn only where it has enough images. Reports put them into words.

The functions take (parts of) an evaluation as `load_evaluation` returns it, and need no torch.
"""

from __future__ import annotations

from typing import Any, Literal

from ddpm.evaluation.intervals import proportion_interval, ratio_interval
from ddpm.run.evaluation_figures import RCA, TOP1, VERY_CLOSE, EvaluationFigure

CHANCE = 0.01  # probability that a character is closer to a training image than 99% of test images, if none is copied
NEAR_CHANCE = 2 * CHANCE
WEAK = 0.8  # a class is weak if its Top-1 is less than this times that of its test images

Copying = Literal["more than chance", "near chance", "too few to tell"]


def copying(evaluation: dict[str, Any]) -> Copying:
    """Are more images very close to training images than expected by chance?

    The limit of "very close" is a quantile of the test images, so few test images give an uncertain limit. The chance
    of a character to be below it can then be more than 1%: at most `most`, with 95% confidence.
    """
    part = evaluation["memorisation"]
    low, high = (VERY_CLOSE.of(part)[name] for name in ("low", "high"))
    heldout = sum(part["histogram"]["heldout"])
    _, most = proportion_interval(CHANCE * heldout, heldout)
    if low is not None and low > most:
        return "more than chance"
    if high is not None and high <= NEAR_CHANCE and most <= NEAR_CHANCE:
        return "near chance"
    return "too few to tell"


def class_interval(entry: dict[str, Any]) -> tuple[float, float]:
    """The interval of a class's Top-1, from its entry in `per_class`; NaN if it has no Top-1."""
    return proportion_interval(*_hits(TOP1.of(entry), entry["count"]))


def weak_classes(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """The `per_class` entries of weak classes, the weakest first: the whole interval of their ratio is below `WEAK`."""
    classes = [
        entry
        for entry in evaluation["conditional"]["per_class"]
        if ratio_interval(*_hits(TOP1.of(entry), entry["count"]), *_hits(entry["real_top1"], entry["real_count"]))[1]
        < WEAK
    ]
    return sorted(classes, key=lambda entry: RCA.of(entry) or 0)


def _hits(share: float | None, count: int) -> tuple[int, int]:
    return (round(share * count), count) if share is not None else (0, 0)


def best_row(rows: list[dict[str, Any]], figure: EvaluationFigure) -> tuple[dict | None, list[dict]]:
    """The row of a sweep whose figure is best, and the other rows that may be as good, as their intervals overlap its
    interval. (None, []) if no row has a value."""
    known = [row for row in rows if row.get(figure.key) and None not in figure.of(row).values()]
    if not known:
        return None, []
    sign = -1 if figure.better == "higher" else 1
    best = min(known, key=lambda row: sign * figure.of(row)["value"])
    low, high = figure.of(best)["low"], figure.of(best)["high"]
    others = [
        row for row in known
        if row is not best and figure.of(row)["low"] <= high and low <= figure.of(row)["high"]
    ]  # fmt: skip
    return best, others
