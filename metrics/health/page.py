"""The health check as a page of Markdown, as tables on a terminal, and as one JSON object."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from ddpm.run.config import data_words
from metrics.health.checks import Section, Table, worst
from metrics.health.thresholds import Thresholds
from metrics.markdown import table

VERDICTS = {"–": "healthy", "healthy": "healthy", "warning": "warnings", "unhealthy": "unhealthy"}
EXIT_CODES = {"healthy": 0, "warnings": 1, "unhealthy": 2}
MARKS = {"–": "·", "healthy": "✓", "warning": "▲", "unhealthy": "✗"}
STYLES = {
    "–": "bright_black",
    "healthy": "green",
    "warning": "yellow",
    "unhealthy": "bold red",
    "warnings": "bold yellow",
}
LEGEND = "✓ healthy, ▲ warning, ✗ unhealthy, · a figure that is not judged; – is what was not measured."


@dataclass(frozen=True)
class Health:
    """What a health check of a run has found. `when` is the time of it, `again` the command that checks anew, `place`
    how far the run is, `weights` the figures of every tensor."""

    run: str
    data: str | None  # emnist or glyphs; None if that is not known
    state: str
    place: str
    when: str
    again: str
    sections: list[Section]
    limits: Thresholds
    checkpoint: str | None = None
    weights: dict[str, Any] | None = None

    @property
    def verdict(self) -> str:
        """healthy, warnings or unhealthy: that of the worst finding."""
        return verdict(self.sections)

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]

    @property
    def reasons(self) -> list[str]:
        """What stands against the run, the worst first."""
        return [
            f"{MARKS[kind]} {section.component}: {finding.note}"
            for kind in ("unhealthy", "warning")
            for section in self.sections
            for finding in section.findings
            if finding.status == kind
        ]

    @property
    def in_words(self) -> str:
        """The verdict as a sentence."""
        kinds = [finding.status for section in self.sections for finding in section.findings]
        counts = f"{kinds.count('unhealthy')} unhealthy finding(s), {kinds.count('warning')} warning(s)"
        return f"Verdict: {self.verdict}" + (f" ({counts})" if self.reasons else "")


def verdict(sections: Iterable[Section]) -> str:
    """The verdict of several sections."""
    return VERDICTS[worst(section.status for section in sections)]


def overview(health: Health) -> list[tuple[str, str, str]]:
    """Component, status and note of each section; the note is its worst finding's."""
    rows = []
    for section in health.sections:
        findings = [finding for finding in section.findings if finding.status == section.status]
        more = f" (and {len(findings) - 1} more)" if section.status in ("warning", "unhealthy") and findings[1:] else ""
        rows.append((section.component, section.status, findings[0].note + more if findings else ""))
    return rows


def to_markdown(health: Health) -> str:
    """health.md."""
    data = data_words(health.data) if health.data else "data not known"
    parts = [f"# Health of {_escaped(health.run)}", f"**{health.in_words}**"]
    if health.data == "glyphs":
        parts.append(f"> **Trained on the {data}.**")
    parts.append(
        f"Checked {health.when}; the run is {health.state}, trained on {data}; checkpoint: {health.checkpoint or '–'}. "
        f"`{health.again}` checks it again."
    )
    parts += ["\n".join(f"- {_escaped(reason)}" for reason in health.reasons)] if health.reasons else []
    rows = [(name, f"{MARKS[status]} {status}", _escaped(note)) for name, status, note in overview(health)]
    parts += [table(["Component", "Status", "Note"], rows), LEGEND]
    for section in health.sections:
        parts.append(f"## {section.component[0].upper()}{section.component[1:]}")
        parts.append("\n".join(f"- {MARKS[finding.status]} {_escaped(finding.note)}" for finding in section.findings))
        parts += [_markdown(part) for part in section.tables]
    parts += [
        "## Thresholds",
        "Each can be set: `--threshold name=value`.",
        _folded("All thresholds", health.limits.as_markdown()),
        "## Verdict",
        f"**{health.in_words}**",
    ]
    return "\n\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    """Text from names and messages, so that Markdown shows it as it is."""
    return re.sub(r"([*_`<>\[\]~])", r"\\\1", " ".join(text.split()))


def _markdown(part: Table) -> str:
    numbers = [[_escaped(str(cell)) for cell in row] for row in part.rows]
    lines = table(part.heads, numbers)
    return _folded(part.title, lines) if part.folded else f"**{part.title}**\n\n{lines}"


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def to_json(health: Health) -> dict[str, Any]:
    """All of it, with numbers that JSON knows."""
    from metrics.tracker import jsonable  # with pandas, which the dashboard's one word does without

    return jsonable(
        {
            "run": health.run,
            "verdict": health.verdict,
            "exit_code": health.exit_code,
            "checked": health.when,
            "state": health.state,
            "data": health.data,
            "checkpoint": health.checkpoint,
            "components": [dict(zip(("component", "status", "note"), row, strict=True)) for row in overview(health)],
            "sections": [{**asdict(section), "status": section.status} for section in health.sections],
            "weights": health.weights,
            "thresholds": asdict(health.limits),
        }
    )


def headline(health: Health) -> Text:
    """Run, state and verdict in a line; below, how far the run was and when that was looked at."""
    return Text.assemble(
        (health.run, "bold"),
        f"  {data_words(health.data) if health.data else 'data not known'}, {health.state}  ",
        (health.in_words, STYLES[health.verdict]),
        (f"\n{health.place}, looked at {health.when}", "bright_black"),
    )


def to_table(health: Health) -> RenderableType:
    """The overview for a terminal: headline, a row for each component, verdict."""
    grid = RichTable("Component", "Status", "Note", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, status, note in overview(health):
        grid.add_row(name, Text(f"{MARKS[status]} {status}", STYLES[status]), Text(note))
    return Group(headline(health), grid)


def to_console(health: Health) -> RenderableType:
    """The whole check for a terminal; long tables are left to health.md."""
    parts: list[RenderableType] = [to_table(health)]
    for section in health.sections:
        parts.append(Text(f"\n{section.component}", "bold"))
        listed = RichTable.grid(padding=(0, 1))
        for finding in section.findings:
            listed.add_row(Text(f" {MARKS[finding.status]}", STYLES[finding.status]), Text(finding.note))
        parts.append(listed)
        parts += [_rich(part) for part in section.tables if not part.folded]
    parts += [Text(f"\n{LEGEND}", "bright_black"), Text(health.in_words, STYLES[health.verdict])]
    return Group(*parts)


def _rich(part: Table) -> RichTable:
    grid = RichTable(box=box.SIMPLE_HEAD, title=part.title, title_justify="left", pad_edge=False)
    for index, head in enumerate(part.heads):
        grid.add_column(head, no_wrap=index == 0)  # names are not broken
    for row in part.rows:
        grid.add_row(*(Text(str(cell)) for cell in row))
    return grid
