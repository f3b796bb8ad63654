"""Rebuild a run's `training_log.md` at any time, also with another target or baseline.

python -m metrics.training_log RUN [--output-root DIR] [--target NAME=VALUE] [--baseline RUN]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from ddpm.run import cli
from ddpm.run.command import RunCommand
from ddpm.run.config.rules import target_problem
from ddpm.run.errors import RequestError
from ddpm.run.paths import find_run
from ddpm.run.program import run_program


@dataclass(frozen=True)
class TrainingLogConfig(RunCommand):
    """Rebuild a run's training_log.md, with milestones and curves."""

    target: Annotated[str | None, arg(metavar="NAME=VALUE")] = None
    """A figure to reach, such as val_loss=0.004."""
    baseline: Annotated[str | None, arg(metavar="RUN")] = None
    """A run to compare with: its name, or its folder."""

    def __post_init__(self) -> None:
        if wrong := target_problem(self.target):
            raise RequestError(wrong)


@cli.in_one_line
def main(arguments: Sequence[str] | None = None) -> int:
    config = cli.parse(TrainingLogConfig, arguments, "python -m metrics.training_log")
    from metrics.training_log.log import write_training_log  # after parsing, as it loads NumPy

    baseline = find_run(config.baseline, config.paths.root) if config.baseline else None
    print(write_training_log(config.paths, config.target, baseline))
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
