"""Comparisons that the run is part of: their tables against the same ones made again, if no run has gone on since."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

from ddpm.run.evaluation_file import load_evaluation
from ddpm.run.format import timestamp
from ddpm.run.metrics import FIGURES, METRICS
from ddpm.run.paths import RunPaths
from metrics.compare.comparison import PAGE
from metrics.compare.figures import ComparedRun, Ranking, rank, read_runs
from metrics.compare.page import cost_section, evaluation_section, figures_section, settings_section
from metrics.compare.ranking import ranking_section, seeds_section
from metrics.files import ENDED
from metrics.page import Page, to_markdown
from metrics.run_data import RunData
from metrics.starts import stamp_of
from metrics.verify.checks import Check
from metrics.verify.pages import compare, lines_of, section_of

RUN = re.compile(r"\| .* \| \[`.+`\]\((.+)\) \| (.{19} UTC) \|")  # link to its report or figures, and their time
MADE = re.compile(r"Made by `python -m metrics.compare` at (\S+)\.")


def comparisons_of(run: RunData) -> list[Path]:
    """The pages under its output root that name the run."""
    pages = sorted(run.paths.root.glob(f"metrics/comparisons/*/{PAGE}"))
    return [page for page in pages if run.paths in (places for places, _ in _runs_on(page))]


def comparison(run: RunData, page: Path) -> Iterator[Check]:
    """Settings, ranking, figures, evaluations and cost of a page that is not outdated."""
    says, name = lines_of(page), f"{page.parent.name}/{page.name}"
    runs, _ = read_runs(places for places, _ in _runs_on(page))
    ranking = _ranking(runs, section_of(says, "Ranking"))
    sections = [ranking_section(ranking), seeds_section(ranking), settings_section(runs), figures_section(runs),
                evaluation_section(runs), cost_section(runs)]  # fmt: skip
    should = to_markdown(Page("", sections), page.parent).splitlines()
    for section in filter(None, sections):
        yield from compare(run, name, section_of(says, section.title), section_of(should, section.title))


def is_of_before(page: Path) -> bool:
    """Has one of its runs gone on since, is it gone, running, or evaluated later?"""
    made = max((stamp_of(found[1]) or 0.0 for line in lines_of(page) if (found := MADE.match(line))), default=0.0)
    named = _runs_on(page)
    if len(named) < 2 or not all(places.json.exists() for places, _ in named):
        return True
    runs, left_out = read_runs(places for places, _ in named)
    evaluated = [stamp_of((load_evaluation(run.paths) or {}).get("generated")) or 0.0 for run in runs]
    times = [timestamp(stamp_of(run.published.generated)) for run in runs]
    ended = all(run.published.status.get("state") in ENDED for run in runs)
    return bool(left_out) or not ended or times != [time for _, time in named] or max(evaluated) > made


def _runs_on(page: Path) -> list[tuple[RunPaths, str]]:
    """The runs of a page, by its links, and the times of their figures."""
    rows = [found for line in section_of(lines_of(page), "The runs") if (found := RUN.fullmatch(line))]
    folders = [((page.parent / unquote(row[1])).resolve().parent, row[2]) for row in rows]
    return [(RunPaths(folder.parents[2], folder.name), time) for folder, time in folders if len(folder.parents) > 2]


def _ranking(runs: Sequence[ComparedRun], section: Sequence[str]) -> Ranking:
    """The ranking by the figure that heads the page's table."""
    heads = next((line.split(" | ") for line in section if line.startswith("|  | Run |")), [])
    name = next((name for name in FIGURES if METRICS[name].heading in heads[2:3]), None)
    up = any("larger is better" in line for line in section)
    return rank(runs, name and f"{name}:{'up' if up else 'down'}")
