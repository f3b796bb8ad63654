"""The criteria of a published run: what it was for, the verdicts on it, and how pages show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ddpm.run.config import TrainConfig
from ddpm.run.criteria import ClassShares, Criterion, parse_criteria
from ddpm.run.errors import RequestError
from ddpm.run.evaluation_file import load_evaluation
from ddpm.run.paths import RunPaths
from metrics.criteria.course import Course
from metrics.criteria.verdicts import State, Verdict, counts_words, verdicts
from metrics.page import MARKS, Facts, Section, Table, code
from metrics.run_data import RunData

MARK_OF: dict[State, str] = {
    "met": MARKS["healthy"], "missed": MARKS["unhealthy"], "open": MARKS["–"], "cannot be judged": MARKS["warning"],
}  # fmt: skip


@dataclass(frozen=True)
class Purpose:
    """What a run is for, in words, and the criteria that it is judged by. `changes`: its settings against the base."""

    criteria: tuple[str, ...] = ()
    problem: str | None = None
    why: str | None = None
    expect: str | None = None
    changes: str = ""

    @classmethod
    def of(cls, config: TrainConfig, changes: str = "") -> Purpose:
        return cls(config.criterion, config.problem, config.why, config.expect, changes)

    @property
    def stated(self) -> bool:
        return any((self.criteria, self.problem, self.why, self.expect))


def purpose_of(run: RunData) -> Purpose:
    """What the run's settings say; criteria that this version cannot read are left out."""
    settings = run.settings
    texts = tuple(text for text in settings.get("criterion") or () if _readable(text))
    return Purpose(texts, *(settings.get(name) for name in ("problem", "why", "expect")))


def _readable(text: str) -> bool:
    try:
        return bool(parse_criteria((text,)))
    except RequestError:
        return False


def verdicts_of(run: RunData, criteria: Sequence[str] | None = None) -> list[Verdict]:
    """The verdicts on a run, by its own criteria or by those given."""
    texts = purpose_of(run).criteria if criteria is None else tuple(criteria)
    shares = any(isinstance(each, ClassShares) for one in parse_criteria(texts) for each in one.conditions)
    evaluation, damage = _evaluation(run.paths) if shares else (None, None)
    over = run.document.get("state") == "finished"
    gaps = bool(run.document.get("damaged"))
    return verdicts(texts, Course(run.rows, run.planned_epochs, over, evaluation, damage, gaps, run.altered))


def _evaluation(paths: RunPaths) -> tuple[dict[str, Any] | None, str | None]:
    """The run's evaluation, and why it cannot be read; read again only when it has changed, for the dashboard."""
    try:
        stat = paths.evaluation.stat()
    except OSError:
        return None, None
    return _read_evaluation(paths, paths.evaluation, (stat.st_mtime_ns, stat.st_size, stat.st_ino))


@lru_cache(maxsize=64)
def _read_evaluation(paths: RunPaths, file: Path, signature: Any) -> tuple[dict[str, Any] | None, str | None]:
    try:
        return load_evaluation(paths), None
    except ValueError as error:
        return None, str(error)


# ---- on pages --------------------------------------------------------------------------------------------------------


def count_of(run: RunData) -> str:
    """`2 met, 1 open`; empty without criteria."""
    return counts_words(verdicts_of(run))


def cell(verdict: Verdict) -> str:
    """A verdict in a table: `✓ met, epoch 3`, `✗ missed by 0.012`."""
    joined = " " if verdict.state == "missed" else ", "
    return f"{MARK_OF[verdict.state]} {verdict.state}" + (f"{joined}{verdict.brief}" if verdict.brief else "")


def heading(criterion: Criterion) -> str:
    """A criterion in a table: its name, and what it asks for if the name does not say that."""
    asked = code(criterion.text)
    return asked if criterion.name == criterion.text else f"{criterion.name}: {asked}"


def criteria_section(run: RunData) -> Section | None:
    """What the run is for, and the verdict on each criterion; None if nothing is stated."""
    purpose, found = purpose_of(run), verdicts_of(run)
    if not purpose.stated:
        return None
    facts = Facts({"Problem": purpose.problem, "Why this run": purpose.why, "Expected": purpose.expect})
    rows = [(heading(one.criterion), f"{MARK_OF[one.state]} {one.state}", one.words) for one in found]
    blocks = [facts] if any(facts.values.values()) else []
    blocks += [f"{counts_words(found)}.", Table("", ["Criterion", "Verdict", "Figures"], rows)] if found else []
    return Section("Purpose and criteria", blocks)
