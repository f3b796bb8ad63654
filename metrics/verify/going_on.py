"""Figures of a page that went on after it was written: they lie between the run's rows and its last heartbeat."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ddpm.run.format import count, duration, timestamp
from ddpm.run.metrics import EPOCH_TIME_SEC, IMAGES_SEEN, STEP, TOTAL_TIME_SEC
from metrics.run_data import RunData
from metrics.verify.checks import Check

SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
DAY = SECONDS["d"]  # from here on a duration is told in minutes


def going_on(page: str, kind: str, said: str, last: str, run: RunData) -> Check:
    """The check of a figure that the page gives as `said` and that is `last` by the run's files as they are now."""
    value, least, form = _bounds(run)[kind]
    right = said == last or (least <= value(said) <= value(last))
    return Check(page, kind, said, said if right else f"{form(least)} to {last}", figures=0)


def _bounds(run: RunData) -> dict[str, tuple[Callable[[str], Any], Any, Callable[[Any], str]]]:
    """What a figure is → how its text is read, the least that it can be by the run's rows, and that as text."""
    latest = run.starts[-1] if run.starts else None
    first = (latest.epoch or 0) + bool(latest.began_at) if latest else 0  # an earlier start may have begun its epoch
    mine = [EPOCH_TIME_SEC.of(row) or 0.0 for row in run.rows if row["epoch"] > first]
    began = timestamp(latest.began if latest else 0.0)
    return {
        "time of all starts": (_seconds, _rounded(TOTAL_TIME_SEC.of(run.last) or 0.0), duration),
        "time of the last start": (_seconds, _rounded(sum(mine)), duration),
        "time without a heartbeat": (_seconds, 0, duration),
        "last heartbeat": (str, began, str),
        "last step": (_number, STEP.of(run.last) or 0, count),
        "images seen": (_number, IMAGES_SEEN.of(run.last) or 0, count),
        "GPU-hours of the last start": (_number, 0.0, count),
    }


def _rounded(seconds: float) -> float:
    """The least duration that a page tells for so much time: both ends are rounded."""
    return max(0.0, seconds - (1 if seconds < DAY else SECONDS["m"]))


def _seconds(text: str) -> int:
    return sum(int(number) * SECONDS[unit] for number, unit in re.findall(r"(\d+)([dhms])", text))


def _number(text: str) -> float:
    """A number with thousands separators; -1 if it is none."""
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return -1.0
