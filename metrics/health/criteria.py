"""The run's success criteria as a component of its health: one that is missed is a warning."""

from __future__ import annotations

from metrics.criteria.of_run import verdicts_of
from metrics.health.checks import Component
from metrics.page import Finding, Status
from metrics.run_data import RunData

JUDGED: dict[str, Status] = {"met": "healthy", "missed": "warning"}


def criteria(run: RunData) -> list[Component]:
    """The verdict on each criterion; no component without criteria."""
    found = [
        Finding(JUDGED.get(verdict.state, "–"), f"{verdict.criterion.name}: {verdict.state} ({verdict.words})")
        for verdict in verdicts_of(run)
    ]
    return [Component("criteria", found)] if found else []
