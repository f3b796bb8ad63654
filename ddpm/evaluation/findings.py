"""What can be concluded from an evaluation, and what its counts cannot show. Pages put it into words.

All take what `load_evaluation` gives, and need no torch.
"""

from __future__ import annotations

from typing import Any, Literal

from ddpm.evaluation.intervals import proportion_interval, ratio_interval
from ddpm.run.evaluation_figures import EvaluationFigure

CHANCE = 0.01  # of a character to be closer to a training image than 99% of the test images, if nothing is copied
NEAR_CHANCE = 2 * CHANCE
WEAK = 0.8  # of the test images' Top-1: a class below it is weak

Copying = Literal["more than chance", "near chance", "too few to tell"]


def copying(evaluation: dict[str, Any]) -> Copying:
    """Are more characters very close to training images than chance would have it?

    The limit is a quantile of the test images, so the chance to be below it is known only as well as their number
    allows.
    """
    part = evaluation["memorisation"]
    low, high = (part["closer_than_heldout_p01"][name] for name in ("low", "high"))
    heldout = sum(part["histogram"]["heldout"])
    _, most = proportion_interval(CHANCE * heldout, heldout)
    if low is not None and low > most:
        return "more than chance"
    if high is not None and high <= NEAR_CHANCE and most <= NEAR_CHANCE:
        return "near chance"
    return "too few to tell"


def class_interval(entry: dict[str, Any]) -> tuple[float, float]:
    """The interval of a class's Top-1, from its entry in `per_class`; NaN if it has none."""
    return proportion_interval(*_hits(entry["top1"], entry["count"]))


def weak_classes(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of the classes that are shown to be weak, the weakest first."""
    classes = [
        entry
        for entry in evaluation["conditional"]["per_class"]
        if ratio_interval(*_hits(entry["top1"], entry["count"]), *_hits(entry["real_top1"], entry["real_count"]))[1]
        < WEAK
    ]
    return sorted(classes, key=lambda entry: entry["rca"] or 0)


def _hits(share: float | None, count: int) -> tuple[int, int]:
    return (round(share * count), count) if share is not None else (0, 0)


def best_row(rows: list[dict[str, Any]], key: str, figure: EvaluationFigure) -> tuple[dict | None, list[dict]]:
    """The row of a sweep whose `key` is best, and the others whose interval overlaps the best one's: it cannot be told
    from these. None if no row has a value."""
    known = [row for row in rows if None not in row[key].values()]
    if not known:
        return None, []
    sign = -1 if figure.better == "higher" else 1
    best = min(known, key=lambda row: sign * row[key]["value"])
    low, high = best[key]["low"], best[key]["high"]
    others = [row for row in known if row is not best and row[key]["low"] <= high and low <= row[key]["high"]]
    return best, others
