"""Estimates how long a run will still take, without jumping with every interval's speed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ddpm.run.format import finite
from ddpm.run.metrics import SAMPLES_PER_SEC, TRAIN_TIME_SEC, select

MEMORY = 600.0  # seconds of training over which the mean speed is taken
MOST = 60.0  # seconds at most that one interval counts: it may contain a pause (Ctrl-Z)
PARTS = select(group="time", over_epochs="sum")  # columns that say what an epoch's time went into


class RemainingTime:
    """Seconds to the end of a run: the images left at the mean speed of this start's last `MEMORY` seconds of training,
    times the ratio of all time to training time in `rows` (with validation, evaluation, sample grids, checkpoints)."""

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self._seconds = self._images = 0.0  # of training, in this start
        self._seen: float | None = None  # images seen at the last update
        self._training = self._everything = 0.0  # seconds, of all rows
        for row in rows:
            self.add_epoch(row)

    def add_epoch(self, row: Mapping[str, Any]) -> None:
        """Take in the row of an epoch that is done."""
        if training := TRAIN_TIME_SEC.of(row):
            self._training += training
            self._everything += sum(part.of(row) or 0.0 for part in PARTS)

    def update(self, status: Mapping[str, Any]) -> float | None:
        """Take in the progress in `status` (fields of `status.json`). Returns the seconds left, None if not known."""
        step, total, seen = (finite(status.get(name)) for name in ("step", "total_steps", "images_seen"))
        if not (step and total and seen):
            return None
        before = finite(status.get("start_images")) or 0.0 if self._seen is None else self._seen
        self._seen = seen
        speed = finite(status.get(SAMPLES_PER_SEC.name))
        if speed and speed > 0 and seen > before:
            self._add(seen - before, (seen - before) / speed)
        if not self._images:
            return None
        images = (total - step) * seen / step
        return images * self._seconds / self._images * (self._everything / self._training if self._training else 1.0)

    def _add(self, images: float, seconds: float) -> None:
        """Add an interval; earlier ones are scaled down so that all together count at most `MEMORY` seconds."""
        weight = min(1.0, MOST / seconds)
        fade = min(1.0, (MEMORY - weight * seconds) / self._seconds) if self._seconds else 1.0
        self._seconds = fade * self._seconds + weight * seconds
        self._images = fade * self._images + weight * images
