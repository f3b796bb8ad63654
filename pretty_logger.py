"""The dashboard of a running, finished or crashed run, from any shell that can read the run's folder.

    python pretty_logger.py RUN [--output-root DIR] [--once]

Live on a terminal, until the run ends or q is pressed; elsewhere, and with `--once`, a single time as text. Training
reports to a `PrettyLogger` (metrics/live/logger.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ddpm.run import cli
from ddpm.run.paths import find_run
from ddpm.run.program import run_program
from metrics.live.logger import PrettyLogger, on_terminal

__all__ = ["PrettyLogger", "main"]


@cli.in_one_line
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    parser = argparse.ArgumentParser(description="Show a run: live until it ends on a terminal, else once as text.")
    parser.add_argument("run", help="the name of a run, or its folder under metrics/output/")
    parser.add_argument("--output-root", type=Path, help="where the run writes (default: the project folder)")
    parser.add_argument("--once", action="store_true", help="print the view once as plain text, and end")
    options = parser.parse_args(arguments)
    paths = find_run(options.run, options.output_root)
    from metrics.live.terminal import show_once, watch  # after parsing, as Rich takes a while to load

    if on_terminal(sys.stdout) and not options.once:
        watch(paths)
    else:
        show_once(paths)
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
