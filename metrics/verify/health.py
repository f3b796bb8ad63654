"""`health.md`: what it says of the run's published files. Data, model, checkpoints and weights are not read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ddpm.run.evaluation_file import load_evaluation
from ddpm.run.format import timestamp
from metrics.health.checker import published
from metrics.health.thresholds import parse_thresholds
from metrics.page import Page, Section, Table, to_markdown
from metrics.run_data import RunData
from metrics.starts import stamp_of
from metrics.verify.checks import Check
from metrics.verify.pages import compare, lines_of, section_of

MADE = re.compile(r"Checked (.{19} UTC); the run is (\w+),")
THRESHOLD = re.compile(r"\| `(\w+)` \| ([^| ]+) \|")
OVERVIEW = "Overview"


def health(run: RunData) -> Iterator[Check]:
    """Progress, losses, GPUs, performance and criteria, with the thresholds that the page names."""
    says = lines_of(run.paths.health)
    named = [found for line in section_of(says, "Thresholds") if (found := THRESHOLD.match(line))]
    components = published(run, parse_thresholds(f"{found[1]}={found[2]}" for found in named))
    overview = Table("", ["", "", ""], [part.row for part in components])
    page = Page("", [Section(OVERVIEW, [overview]), *(part.section for part in components)])
    should = to_markdown(page, run.paths.metrics).splitlines()
    rows = [line for line in section_of(should, OVERVIEW) if line.startswith("|")][-len(components) :]
    for row, part in zip(rows, components, strict=True):
        yield from compare(run, run.paths.health.name, [_row_of(says, part.name)], [row])
    for part in components:
        title = part.section.title
        yield from compare(run, run.paths.health.name, section_of(says, title), section_of(should, title))


def is_of_before(run: RunData) -> bool:
    """Was it made before the run had its present figures, or in another state?"""
    made = next((found for line in lines_of(run.paths.health) if (found := MADE.match(line))), None)
    evaluation = load_evaluation(run.paths) or {}
    stamps = [run.status.get("heartbeat"), stamp_of(run.generated), stamp_of(evaluation.get("generated"))]
    return not made or made[2] != run.state or made[1] < max(timestamp(stamp) for stamp in stamps if stamp)


def _row_of(lines: Sequence[str], name: str) -> str:
    return next((line for line in lines if line.startswith(f"| {name} |")), "")
