"""The health check as a page, as tables on a terminal, and as one JSON object."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ddpm.run.format import plural
from metrics.health.checks import Component
from metrics.health.thresholds import Thresholds
from metrics.page import MARKS, STYLES, Bullets, Note, Page, Section, Table, code, plain, rich_table, to_rich, worst
from metrics.run_data import RunData

VERDICTS = {"–": "healthy", "healthy": "healthy", "warning": "warnings", "unhealthy": "unhealthy"}
EXIT_CODES = {"healthy": 0, "warnings": 1, "unhealthy": 2}
COLOURS = {"healthy": STYLES["healthy"], "warnings": f"bold {STYLES['warning']}", "unhealthy": STYLES["unhealthy"]}
LEGEND = "✓ healthy, ▲ warning, ✗ unhealthy, · not judged, – not measured."


@dataclass(frozen=True)
class Health:
    """The result of a health check of `run`. `weights`: the figures of every tensor of the `checkpoint`."""

    run: RunData
    when: str
    components: list[Component]
    limits: Thresholds
    checkpoint: str | None = None
    weights: dict[str, Any] | None = None

    @property
    def verdict(self) -> str:
        """healthy, warnings or unhealthy: that of the worst finding."""
        return verdict(self.components)

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]

    @property
    def reasons(self) -> list[str]:
        """The findings that are not healthy, the worst first."""
        return reasons(self.components)

    @property
    def in_words(self) -> str:
        """The verdict as a sentence."""
        kinds = [finding.status for component in self.components for finding in component.findings]
        counts = f"{plural(kinds.count('unhealthy'), 'unhealthy finding')}, {plural(kinds.count('warning'), 'warning')}"
        return f"Verdict: {self.verdict}" + (f" ({counts})" if self.reasons else "")

    @property
    def overview(self) -> Table:
        """Component, status and worst finding of each component."""
        return Table("", ["Component", "Status", "Note"], [part.row for part in self.components])


def verdict(components: Iterable[Component]) -> str:
    """The verdict of several components."""
    return VERDICTS[worst(component.status for component in components)]


def reasons(components: Iterable[Component]) -> list[str]:
    """The findings that are not healthy, the worst first."""
    components = list(components)
    return [
        f"{MARKS[kind]} {component.name}: {finding.note}"
        for kind in ("unhealthy", "warning")
        for component in components
        for finding in component.findings
        if finding.status == kind
    ]


def to_page(health: Health) -> Page:
    """The page `health.md`."""
    run, title = health.run, f"**{health.in_words}**"
    checked = f"Checked {health.when}; the run is {run.state}, trained on {run.data_words}; checkpoint: "
    checked += f"{health.checkpoint or '–'}. {code(run.paths.command('python -m metrics.health'))} checks it again."
    blocks = [
        title,
        Note(f"**Trained on the {run.data_words}.**") if run.data == "glyphs" else None,
        checked,
        Bullets(health.reasons) if health.reasons else None,
        health.overview,
        LEGEND,
        *(component.section for component in health.components),
        Section("Thresholds", ["Each can be set: `--threshold name=value`.", health.limits.as_table()]),
        Section("Verdict", [title]),
    ]
    return Page(f"Health of {run.run}", blocks)


def to_json(health: Health) -> dict[str, Any]:
    """The whole check as one JSON object."""
    return {
        "run": health.run.run,
        "verdict": health.verdict,
        "exit_code": health.exit_code,
        "checked": health.when,
        "state": health.run.state,
        "data": health.run.data,
        "checkpoint": health.checkpoint,
        "components": [
            {"component": part.name, "status": part.status, "note": plain(part.note)} for part in health.components
        ],
        "sections": [
            {
                "component": part.name,
                "findings": [{"status": found.status, "note": plain(found.note)} for found in part.findings],
                "tables": [asdict(table) for table in part.tables],
                "status": part.status,
            }
            for part in health.components
        ],
        "weights": health.weights,
        "thresholds": asdict(health.limits),
    }


def to_table(health: Health) -> RenderableType:
    """The overview for a terminal: run, state and verdict, how far the run is, a row for each component."""
    head = Text.assemble(
        (health.run.run, "bold"),
        f"  {health.run.data_words}, {health.run.state}  ",
        (health.in_words, COLOURS[health.verdict]),
        (f"\n{health.run.place('epoch')}, checked {health.when}", "bright_black"),
    )
    return Group(head, rich_table(health.overview))


def to_console(health: Health) -> RenderableType:
    """The whole check for a terminal; long tables are left to health.md."""
    parts = to_rich(component.section for component in health.components)
    verdict = Text(health.in_words, COLOURS[health.verdict])
    return Group(to_table(health), parts, Text(f"\n{LEGEND}", "bright_black"), verdict)
