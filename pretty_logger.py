"""The dashboard of a running, finished or crashed run, from any shell that can read the run's folder.

    python pretty_logger.py RUN [--output-root DIR] [--once]

On a terminal it is live until the run ends or q is pressed. Elsewhere, or with `--once`, it is printed once as text.
Training writes what it shows, through a `PrettyLogger` (metrics/live/logger.py).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ddpm.run import cli
from ddpm.run.command import RunCommand
from ddpm.run.program import run_program
from metrics.live.logger import PrettyLogger, on_terminal

__all__ = ["PrettyLogger", "main"]


@dataclass(frozen=True)
class ViewConfig(RunCommand):
    """Show a run: on a terminal live until it ends, elsewhere once as text."""

    once: bool = False
    """Print the view once as plain text, and end."""


@cli.in_one_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Show the run that the command line names. Returns the exit code."""
    config = cli.parse(ViewConfig, arguments, "pretty_logger.py")
    paths = config.paths
    from metrics.live.terminal import show_once, watch  # after parsing, as Rich takes a while to load

    if on_terminal(sys.stdout) and not config.once:
        watch(paths)
    else:
        show_once(paths)
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
