"""Compute every figure of a run's pages again, and fail on the first that differs.

python -m metrics.verify RUN [--output-root DIR]

Exit code 0: all are the same; the line also says what was not checked. 1: one differs, and a line says which. 2: there
is no such run, or it is running.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddpm.run import cli
from ddpm.run.command import RunCommand
from ddpm.run.errors import RequestError
from ddpm.run.program import run_program

if TYPE_CHECKING:
    from metrics.run_data import RunData
    from metrics.verify.checks import Check


@dataclass(frozen=True)
class VerifyConfig(RunCommand):
    """Compute every figure of a run's pages again from its CSV and JSON files, and fail on the first that differs."""


@cli.in_one_line
def main(arguments: Sequence[str] | None = None) -> int:
    config = cli.parse(VerifyConfig, arguments, "python -m metrics.verify")
    from metrics.run_reader import load_run  # after parsing, as it loads NumPy

    run = load_run(config.paths)
    if run.lives:
        raise RequestError(f"{run.run} is running and its pages change: verify it when this start has ended")
    counted: dict[str, int] = {}
    for check in checks(run):
        if check.differs:
            print(check)
            return 1
        counted[check.page] = counted.get(check.page, 0) + check.figures
    where = ", ".join(f"{figures:,} of {page}" if figures else page for page, figures in counted.items())
    print(f"{sum(counted.values()):,} figures are as they should be: {where}; not checked: {unchecked(run)}")
    return 0


def unchecked(run: RunData) -> str:
    """What was not checked, in words."""
    from metrics.verify import comparisons, health

    left = ["plots and samples"]
    if os.path.lexists(run.paths.health):
        old = health.is_of_before(run)
        left.append("health.md, older than the run's end" if old else "health.md on data, model, checkpoints, weights")
    pages = comparisons.comparisons_of(run)
    if pages:
        left.append("criteria, levels and warnings of comparisons")
    left += [
        f"the comparison {page.parent.name}, older than its runs" for page in filter(comparisons.is_of_before, pages)
    ]
    return ", ".join(left)


def checks(run: RunData) -> Iterator[Check]:
    """All checks, those of the data first, as the pages are made from them.

    Raises:
        RequestError: a file cannot be read.
    """
    from ddpm.run.evaluation_file import load_evaluation
    from metrics.files import read_csv, read_json
    from metrics.verify import checks, comparisons, health, pages

    paths, epochs = run.paths, run.document["epochs"]
    rows, lost = read_csv(paths)
    yield checks.Check(paths.csv.name, "what cannot be read", lost, None)
    yield checks.Check(paths.json.name, "what cannot be read", run.document["damaged"], None)
    yield from checks.copies(paths.csv.name, rows, epochs)
    yield from checks.sums(paths.csv.name, rows, run.document["hyperparameters"].get("global_batch_size"))
    said = (read_json(paths.json) or {}).get("summary")
    yield from checks.summary(paths.json.name, said, rows, run.document["starts"])
    try:
        if evaluation := load_evaluation(paths):
            yield from checks.evaluation(paths.evaluation.name, evaluation)
        for page, check in pages.PAGES.items():
            if os.path.lexists(getattr(paths, page)):
                yield from check(run)
        if os.path.lexists(paths.health) and not health.is_of_before(run):
            yield from health.health(run)
        for page in comparisons.comparisons_of(run):
            if not comparisons.is_of_before(page):
                yield from comparisons.comparison(run, page)
    except ValueError as error:
        raise RequestError(f"{paths.metrics}: a file cannot be read: {error}") from error


if __name__ == "__main__":
    sys.exit(run_program(main))
