"""A run's pages against the same pages made again from its data, line by line."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ddpm.run.files import read_text
from metrics.html import report_title, to_html
from metrics.page import Page, to_markdown
from metrics.report import report_page
from metrics.run_data import RunData
from metrics.training_log.log import log_page
from metrics.verify.checks import Check

HEADING = re.compile(r"#+ (.*)")
CELLS = re.compile(r"(?<!\\)\|")
NUMBER = re.compile(r"\d[\d,.]*")
PICTURE = re.compile(r'src="data:[^"]*"')
TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
DURATION = r"\d+[dhms](?: \d\d[hms])*"
VARIES = (  # what may differ by nature: a page is written before the last heartbeat of its start, and may be moved
    re.compile(rf"(?<=^All starts together took ){DURATION}"),
    re.compile(rf"(?<=^- \*\*Time:\*\* ){DURATION}"),
    re.compile(rf"(?<=no heartbeat for ){DURATION}, since {TIME}"),
    re.compile(rf"(?<=\) at ){TIME}"),  # "failed (exit code 1) at"
    re.compile(r"(?<=^- \*\*Files:\*\* ).*"),  # links: files that came later
    re.compile(r" --output-root ('[^']*'|\S+)|\s+(?=# )"),  # commands for the folder as it was, and their columns
)
STARTS, LASTING = "Starts", (5, 6)  # section, and the columns of its table that count up to the last heartbeat
FILES = "Saved Artifacts"  # section: files that came later
OTHERS = re.compile(r"Baseline: ")  # sections with figures of another run, which may have gone on
DIED = re.compile(r"> \*\*Warning:\*\* no heartbeat for ")  # a run that was killed wrote its pages before
SHOWN = 100  # characters of a long line


def report(run: RunData) -> Iterator[Check]:
    """`training_report.md`."""
    return _page(run.paths.report, report_page(run))


def training_log(run: RunData) -> Iterator[Check]:
    """`training_log.md`, with the target that it names."""
    headings = [found[1] for line in _lines(run.paths.training_log) if (found := HEADING.fullmatch(line))]
    target = next((words.removeprefix("Target: ") for words in headings if words.startswith("Target: ")), None)
    return _page(run.paths.training_log, log_page(run, target, None))


def report_html(run: RunData) -> Iterator[Check]:
    """`training_report.html` against `training_report.md`, whose figures are counted already; without its pictures."""
    page = run.paths.report_html
    should = to_html(run.paths.report, report_title(run.paths)).splitlines()
    says, should = ([PICTURE.sub('src=""', line) for line in lines] for lines in (_lines(page), should))
    for said, expected in itertools.zip_longest(says, should, fillvalue=""):
        yield replace(_check(page.name, "", said, expected), figures=0)


def _page(path: Path, page: Page) -> Iterator[Check]:
    says, should = _lines(path), to_markdown(page, path.parent).splitlines()
    later = set(_section(should, FILES)) - set(_section(says, FILES))
    if not any(map(DIED.match, says)):
        later |= set(filter(DIED.match, should))
    should = [line for line in should if line not in later]
    says, should = (_comparable(lines) for lines in (says, should))
    heading = path.stem
    for said, expected in itertools.zip_longest(says, should, fillvalue=""):
        if found := HEADING.fullmatch(expected):
            heading = found[1]
        yield _check(path.name, heading, said, expected)


def _lines(path: Path) -> list[str]:
    """Raises OSError or UnicodeDecodeError if the page cannot be read."""
    return read_text(path).splitlines()


def _section(lines: Sequence[str], title: str) -> list[str]:
    """The lines of the section of this title, without those of the next."""
    after = itertools.dropwhile(lambda line: line != f"## {title}", lines)
    return list(itertools.takewhile(lambda line: not line.startswith("## "), itertools.islice(after, 1, None)))


def _comparable(lines: Sequence[str]) -> list[str]:
    """The lines that are not empty, without what may differ by nature."""
    kept, title = [], ""
    last = next((line for line in reversed(_section(lines, STARTS)) if line.startswith("|")), None)
    for line in lines:
        title = line[3:] if line.startswith("## ") else title
        if OTHERS.match(title) or not line:
            continue
        if title == STARTS and line == last:
            cells = CELLS.split(line)
            line = "|".join("" if place in LASTING else cell for place, cell in enumerate(cells))
        for pattern in VARIES:
            line = pattern.sub("", line)
        kept.append(line)
    return kept


def _check(page: str, heading: str, says: str, should: str) -> Check:
    """The check of a line; where a table's row differs in one cell, of that cell."""
    check = Check(page, heading, says, should, figures=len(NUMBER.findall(should)))
    if not check.differs:
        return check
    ours, theirs = (CELLS.split(line) for line in (says, should))
    if len(ours) == len(theirs) > 2 and ours[1] == theirs[1]:
        place = next(place for place, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
        row = ", ".join(part for part in (heading, ours[1].strip()) if part)
        return replace(check, figure=row, says=ours[place].strip(), should=theirs[place].strip())
    begin = next((place for place, pair in enumerate(zip(says, should, strict=False)) if pair[0] != pair[1]), 0)
    cut = max(0, begin - SHOWN // 2) if max(len(says), len(should)) > SHOWN else 0
    return replace(check, figure=heading or "a line", says=says[cut:][:SHOWN], should=should[cut:][:SHOWN])


PAGES = {"report": report, "report_html": report_html, "training_log": training_log}  # attribute of RunPaths: check
