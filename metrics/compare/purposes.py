"""What the runs of a comparison were for and what came of it: the section that stands first on its page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from ddpm.run.criteria import Criterion
from ddpm.run.metrics import DASH, Metric
from ddpm.run.paths import RunPaths
from metrics.compare.figures import ComparedRun, differing
from metrics.criteria.of_run import Purpose, cell, heading, purpose_of, verdicts_of
from metrics.criteria.verdicts import State, Verdict, counts_words
from metrics.note.notes import read_notes
from metrics.page import Block, Bullets, Section, Table, code
from metrics.run_data import RunData
from metrics.run_reader import read_run

MOST_CHANGES = 6  # settings that are named for a run


def purposes_section(
    places: Sequence[RunPaths], runs: Sequence[ComparedRun], metric: Metric, plan: Mapping[str, Purpose]
) -> Section | None:
    """Each run against its criteria; what was changed and why, what was expected and what came. None if no run states
    any of it.

    Args:
        places: of all runs, those without figures included.
        metric: the figure that ranks the runs.
        plan: run → its purpose by the plan, which takes precedence over the settings that the run was started with.
    """
    compared = {run.paths: run for run in runs}
    published = [compared[paths].published if paths in compared else read_run(paths) for paths in dict.fromkeys(places)]
    purposes = [plan.get(run.run) or purpose_of(run) for run in published]
    if not any(purpose.stated for purpose in purposes):
        return None
    labels = [f"`{compared[run.paths].short if run.paths in compared else run.run}`" for run in published]
    judged = [verdicts_of(run, purpose.criteria) for run, purpose in zip(published, purposes, strict=True)]
    problems = dict.fromkeys(purpose.problem for purpose in purposes if purpose.problem)
    blocks: list[Block] = [f"**Problem:** {problem}" for problem in problems]
    if any(judged):
        blocks += [_overall(labels, judged), *_named(judged), criteria_table(labels, judged)]
    changes = _changes(runs)
    rows = [
        (label, purpose.changes or changes.get(run.paths) or DASH, purpose.why or DASH, purpose.expect or DASH,
         _came(run, compared.get(run.paths), metric, found))
        for label, run, purpose, found in zip(labels, published, purposes, judged, strict=True)
    ]  # fmt: skip
    heads = ["Run", "Changed", "Why", "Expected", "What came"]
    return Section("Criteria", [*blocks, Table("", heads, rows), *_notes(labels, published)])


def _notes(labels: Sequence[str], published: Sequence[RunData]) -> list[Block]:
    """The remarks on the runs; one that several have, as by their plan, once."""
    having: dict[str, dict[str, None]] = {}  # text → labels
    for label, run in zip(labels, published, strict=True):
        for note in read_notes(run.paths):
            having.setdefault(note.text, {})[label] = None
    lines = [f"{', '.join(runs) if len(runs) < len(labels) else 'all runs'}: {text}" for text, runs in having.items()]
    return ["**Notes**", Bullets(lines)] if lines else []


def criteria_table(labels: Sequence[str], judged: Sequence[Sequence[Verdict]]) -> Table:
    """A row for each run, a column for each criterion."""
    criteria = list(dict.fromkeys(verdict.criterion for found in judged for verdict in found))
    shared = Counter(criterion.name for criterion in criteria)  # runs may have criteria of one name that ask for more
    heads = [(_short if shared[criterion.name] == 1 else heading)(criterion) for criterion in criteria]
    by_run = [{verdict.criterion: cell(verdict) for verdict in found} for found in judged]
    rows = [
        (label, *(cells.get(criterion, DASH) for criterion in criteria))
        for label, cells in zip(labels, by_run, strict=True)
    ]
    return Table("", ["Run", *heads], rows)


def _short(criterion: Criterion) -> str:
    """A criterion at the head of a column: its name, or what it asks for."""
    return code(criterion.text) if criterion.name == criterion.text else criterion.name


def _named(judged: Sequence[Sequence[Verdict]]) -> list[str]:
    """What the criteria ask for that have a name, as a paragraph; none if none has one."""
    criteria = dict.fromkeys(verdict.criterion for found in judged for verdict in found)
    named = [heading(criterion) for criterion in criteria if criterion.name != criterion.text]
    return ["; ".join(named) + "."] if named else []


def _overall(labels: Sequence[str], judged: Sequence[Sequence[Verdict]]) -> str:
    """How many criteria are met, and which runs meet all of theirs."""
    found = [verdict for each in judged for verdict in each]
    best = [
        label for label, each in zip(labels, judged, strict=True) if each and {one.state for one in each} == {"met"}
    ]
    whole = f"All are met by {', '.join(best)}" if best else "No run meets all of its criteria"
    return f"{counts_words(found)}, over {len(judged)} runs. **{whole}.**"


def _changes(runs: Sequence[ComparedRun]) -> dict[RunPaths, str]:
    """The settings that differ between the runs, with each run's values."""
    names = differing([run.recipe for run in runs])[0]
    more = f" and {len(names) - MOST_CHANGES} more" if len(names) > MOST_CHANGES else ""
    return {run.paths: ", ".join(f"`{name}` {run.said(name)}" for name in names[:MOST_CHANGES]) + more for run in runs}


def _came(run: RunData, compared: ComparedRun | None, metric: Metric, found: Sequence[Verdict]) -> str:
    """The figure that ranks the runs, the criteria that are not met, and how the run ended if not at its end."""
    figure = compared.figure(metric) if compared else None
    parts = [f"{metric.name} {figure.text(metric)}"] if figure and figure.known else []
    unmet: dict[State, list[str]] = {}
    for one in found:
        if one.state != "met":
            brief = one.brief if one.state == "missed" or not one.brief else f"({one.brief})"
            unmet.setdefault(one.state, []).append(f"{_short(one.criterion)} {brief}".strip())
    parts += [f"{state}: {', '.join(named)}" for state, named in unmet.items()]
    parts += ["all criteria met"] if found and not unmet else []
    ended = f"stopped early after epoch {run.last['epoch']} of {run.planned_epochs}" if run.stopped_early else None
    if run.state != "finished":
        ended = run.condition.note.partition(": ")[0] if run.status else run.state  # its message is told above
    return "; ".join([*parts, *([ended] if ended else [])])
