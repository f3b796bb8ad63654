"""Compute every figure of a run's pages again, and fail on the first that differs.

python -m metrics.verify RUN [--output-root DIR]

Exit code 0: all are the same. 1: one differs, and a line says which. 2: there is no such run, or it is running.
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
    from metrics.run_data import load_run  # after parsing, as it loads NumPy

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
    print(f"{sum(counted.values()):,} figures are as they should be: {where}")
    return 0


def checks(run: RunData) -> Iterator[Check]:
    """All checks, those of the data first, as the pages are made from them.

    Raises:
        RequestError: a file cannot be read.
    """
    from ddpm.run.evaluation_file import load_evaluation
    from metrics.files import read_csv, read_json
    from metrics.verify import checks, pages

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
    except ValueError as error:
        raise RequestError(f"{paths.metrics}: a file cannot be read: {error}") from error


if __name__ == "__main__":
    sys.exit(run_program(main))
