"""Add a remark about a run to its training log and report.

python -m metrics.note RUN "text" [--output-root DIR]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from ddpm.run import cli
from ddpm.run.command import RunCommand
from ddpm.run.errors import RequestError
from ddpm.run.program import run_program


@dataclass(frozen=True, kw_only=True)
class NoteConfig(RunCommand):
    """Add a remark with its time to a run's training log and report."""

    text: Annotated[Positional[str], arg(metavar="TEXT")]
    """The remark, in quotes."""


@cli.in_one_line
def main(arguments: Sequence[str] | None = None) -> int:
    config = cli.parse(NoteConfig, arguments, "python -m metrics.note")
    from metrics.note.notes import add_note, in_one_line, read_notes  # after parsing, as what follows takes seconds
    from metrics.report import write_report
    from metrics.run_reader import read_run
    from metrics.training_log.log import write_training_log

    paths, text = config.paths, in_one_line(config.text)
    if not text:
        raise RequestError("the note is empty: give a text in quotes")
    add_note(paths, text)
    run = read_run(paths)
    print(f"{paths.notes}: {len(read_notes(paths))} in all")
    if run.unreadable:
        print("the training log will have it once the run has an epoch")
        return 0
    print(write_training_log(paths))
    if not run.lives:  # a living run writes its report itself
        print(write_report(paths))
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
