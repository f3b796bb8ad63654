"""Criteria while a run trains: lines for its log, and whether it should end because it misses one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from metrics.criteria.course import Course
from metrics.criteria.verdicts import verdicts


def changed(texts: Sequence[str], course: Course) -> Iterator[tuple[str, str]]:
    """Lines of the log, with their severity, about the criteria that the last row has decided."""
    before = verdicts(texts, replace(course, rows=course.rows[:-1], over=False))
    after = verdicts(texts, course)
    for earlier, verdict in zip(before, after, strict=True):
        if verdict.state != earlier.state and verdict.state in ("met", "missed"):
            severity = "success" if verdict.state == "met" else "warning"
            yield f"criterion {verdict.state}: {verdict.criterion.name}: {verdict.words}", severity


def out_of_reach(texts: Sequence[str], course: Course) -> str | None:
    """Why a run with `--stop-when missed` should end now; None if it should go on, or is at its end."""
    if not course.rows or course.closed:
        return None
    missed = next((verdict for verdict in verdicts(texts, course) if verdict.state == "missed"), None)
    if missed is None:
        return None
    told = f"the criterion {missed.criterion.name!r} can no longer be met ({missed.words})"
    return f"stopped early after epoch {course.done}: {told}; leave out --stop-when to train on"
