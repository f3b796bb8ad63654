"""`python -m metrics.compare RUN RUN [RUN ...]`: the command line of `comparison.py`."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ddpm.run import cli
from ddpm.run.errors import RequestError
from ddpm.run.files import why
from ddpm.run.paths import PROJECT_ROOT, find_run
from ddpm.run.program import run_program


@dataclass(frozen=True)
class CompareConfig:
    """Compare runs: write a Markdown page with plots, and print a summary."""

    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN RUN [RUN ...]", help_behavior_hint="(required)")]
    """Names of runs, or their folders under metrics/output/."""
    out: Path | None = None
    """Folder for page and plots. Left out: metrics/comparisons/<names>/ under the output root."""
    rank_by: Annotated[str | None, arg(metavar="COLUMN")] = None
    """Column of training_metrics.csv that decides the ranking. A column without a better direction needs one: lr:up or
    lr:down. Left out: val_loss_ema, if the runs have it."""
    loss_levels: Annotated[tuple[float, ...] | None, arg(metavar="LOSS [LOSS ...]")] = None
    """Losses for which the page says when each run reached them. Left out: chosen from the runs."""
    output_root: Path = PROJECT_ROOT
    """Folder that the runs write to."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise RequestError("name two runs or more: python -m metrics.compare RUN RUN [RUN ...]")
        for level in self.loss_levels or ():
            if not 0 < level < math.inf:
                raise RequestError(f"--loss-levels {level:g}: give losses as numbers above 0, such as 0.13 0.125")


@cli.in_one_line
def main(arguments: Sequence[str] | None = None) -> int:
    config = cli.parse(CompareConfig, arguments, "python -m metrics.compare")
    from metrics.compare.comparison import compare, default_folder  # here, as it loads pandas and matplotlib
    from metrics.compare.figures import parse_rank_by

    if config.rank_by:
        parse_rank_by(config.rank_by)
    places = [find_run(name, config.output_root) for name in config.runs]
    try:
        print(compare(places, config.out or default_folder(places), config.rank_by, config.loss_levels or ()))
    except BrokenPipeError:  # stdout was closed, as by `| head`; the folder is fine
        raise
    except OSError as error:
        raise RequestError(f"cannot write the comparison: {why(error)}; choose another folder with --out") from error
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
