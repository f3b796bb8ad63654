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
from metrics.verify.going_on import going_on

HEADING = re.compile(r"#+ (.*)")
CELLS = re.compile(r"(?<!\\)\|")
NUMBER = re.compile(r"\d[\d,.]*")
PICTURE = re.compile(r'src="data:[^"]*"')
TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
DURATION = r"\d+[dhms](?: \d\d[hms])*"
COUNT = r"\d+(?:,\d{3})*"
VARIES = tuple(  # what may differ by nature (group `v`), and what it is if it is a figure that goes on after the page
    (re.compile(pattern), kind)
    for pattern, kind in (
        (rf"^All starts together took (?P<v>{DURATION})", "time of all starts"),
        (rf"^- \*\*Time:\*\* (?P<v>{DURATION})", "time of all starts"),
        (rf"no heartbeat for (?P<v>{DURATION})", "time without a heartbeat"),
        (rf"no heartbeat for , since (?P<v>{TIME})", "last heartbeat"),
        (rf"\) at (?P<v>{TIME})", "last heartbeat"),  # "failed (exit code 1) at"
        (rf" as of (?P<v>{TIME})", "last heartbeat"),
        (rf" as of : epoch .*, step (?P<v>{COUNT})", "last step"),
        (rf" as of : epoch .*, (?P<v>{COUNT}) images seen", "images seen"),
        (r"(?P<v>, so|; if it is started again,) the \d+ to come", None),  # a killed run wrote it while it lived
        (r"^- \*\*Files:\*\* (?P<v>.*)", None),  # links: files that came later
        (r"(?P<v> --output-root ('[^']*'|\S+)|\s+(?=# ))", None),  # commands for the folder as it was; their columns
    )
)
STARTS = "Starts"  # section, and the columns of its last row that go on
LASTING = {5: "time of the last start", 6: "GPU-hours of the last start"}
FILES = "Saved Artifacts"  # section: files that came later
MILESTONES = "Milestones"  # section: of a run that was killed, those after its last page
OTHERS = re.compile(r"Baseline: ")  # sections with figures of another run, which may have gone on
DIED = re.compile(r"> \*\*Warning:\*\* no heartbeat for ")  # a run that was killed wrote its pages before
SHOWN = 100  # characters of a long line


def report(run: RunData) -> Iterator[Check]:
    """`training_report.md`."""
    return _page(run, run.paths.report, report_page(run))


def training_log(run: RunData) -> Iterator[Check]:
    """`training_log.md`, with the target that it names."""
    headings = [found[1] for line in lines_of(run.paths.training_log) if (found := HEADING.fullmatch(line))]
    target = next((words.removeprefix("Target: ") for words in headings if words.startswith("Target: ")), None)
    return _page(run, run.paths.training_log, log_page(run, target, None))


def report_html(run: RunData) -> Iterator[Check]:
    """`training_report.html` against `training_report.md`, whose figures are counted already; without its pictures."""
    page = run.paths.report_html
    should = to_html(run.paths.report, report_title(run.paths)).splitlines()
    says, should = ([PICTURE.sub('src=""', line) for line in lines] for lines in (lines_of(page), should))
    for said, expected in itertools.zip_longest(says, should, fillvalue=""):
        yield replace(_check(page.name, "", said, expected), figures=0)


def _page(run: RunData, path: Path, page: Page) -> Iterator[Check]:
    says, should = lines_of(path), to_markdown(page, path.parent).splitlines()
    growing = (FILES, MILESTONES) if run.silent else (FILES,)
    later = {line for title in growing for line in section_of(should, title)} - set(says)
    if not any(map(DIED.match, says)):
        later |= set(filter(DIED.match, should))
    should = [line for line in should if line not in later]
    yield from compare(run, path.name, says, should)


def compare(run: RunData, page: str, says: Sequence[str], should: Sequence[str]) -> Iterator[Check]:
    """The lines of a page, or of a part of it, against those that it should have."""
    (says, reached), (should, latest) = (_comparable(lines) for lines in (says, should))
    heading = Path(page).stem
    for said, expected in itertools.zip_longest(says, should, fillvalue=""):
        if found := HEADING.fullmatch(expected):
            heading = found[1]
        yield _check(page, heading, said, expected)
    if [kind for kind, _ in reached] != [kind for kind, _ in latest]:
        return  # a line that has other kinds of figures is found above
    for (kind, said), (_, last) in zip(reached, latest, strict=True):
        yield going_on(page, kind, said, last, run)


def lines_of(path: Path) -> list[str]:
    """Raises OSError or UnicodeDecodeError if the page cannot be read."""
    return read_text(path).splitlines()


def section_of(lines: Sequence[str], title: str) -> list[str]:
    """The lines of the section of this title, without those of the next."""
    after = itertools.dropwhile(lambda line: line != f"## {title}", lines)
    return list(itertools.takewhile(lambda line: not line.startswith("## "), itertools.islice(after, 1, None)))


def _comparable(lines: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The lines that are not empty, without what may differ by nature; and its figures, each with what it is."""
    kept, figures, title = [], [], ""
    last = next((line for line in reversed(section_of(lines, STARTS)) if line.startswith("|")), None)
    for line in lines:
        title = line[3:] if line.startswith("## ") else title
        if OTHERS.match(title) or not line:
            continue
        if title == STARTS and line == last:
            cells = CELLS.split(line)
            figures += [(kind, cells[place].strip()) for place, kind in LASTING.items() if place < len(cells)]
            line = "|".join("" if place in LASTING else cell for place, cell in enumerate(cells))
        for pattern, kind in VARIES:
            figures += [(kind, found["v"]) for found in pattern.finditer(line) if kind]
            line = pattern.sub(_without, line)
        kept.append(line)
    return kept, figures


def _without(found: re.Match[str]) -> str:
    """The match without its group `v`."""
    begin, end = (place - found.start() for place in found.span("v"))
    return found[0][:begin] + found[0][end:]


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
