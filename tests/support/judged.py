"""Rows that success criteria are judged by, and their verdicts."""

from __future__ import annotations

from metrics.criteria.course import Course
from metrics.criteria.verdicts import Verdict, verdicts


def losses(*values: float | None, name: str = "val_loss_ema") -> list[dict]:
    """Rows whose figure has these values from epoch 1 on; None: not measured."""
    return [{"epoch": epoch, name: value} for epoch, value in enumerate(values, 1)]


def verdict(text: str, rows: list[dict], **course) -> Verdict:
    return verdicts([text], Course(rows, **{"last_epoch": 6, **course}))[0]
