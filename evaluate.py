"""How good are the images that a model draws? Measured by a classifier that was trained on the real ones.

    python evaluate.py RUN                       the best checkpoint of a run; also a checkpoint's or an export's folder
    python evaluate.py RUN --no-sweeps           without comparing guidance scales and samplers, which takes longest
    python evaluate.py RUN --no-cas              without what a classifier learns from the images

Writes evaluation.json, pictures and the generated images, and adds a section to the run's report. In ddpm/evaluation/:
the flags in config.py, the measurements in evaluator.py. This file prints the results, and updates the report.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from ddpm.evaluation.config import EvaluateConfig
from ddpm.run import cli
from ddpm.run.program import run_program
from ddpm.training.machine.compiler import limit_workers
from ddpm.training.machine.threads import limit_spinning

if TYPE_CHECKING:
    from ddpm.evaluation.evaluator import Evaluator

INTERRUPTED = 130


@cli.in_one_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate as the command line asks. Returns 0, 2 for a wrong request, 130 for Ctrl-C."""
    typed = sys.argv[1:] if arguments is None else list(arguments)
    return evaluate(cli.parse(EvaluateConfig, arguments, "evaluate.py"), shlex.join(["python", "evaluate.py", *typed]))


def evaluate(config: EvaluateConfig, command: str) -> int:
    """Measure, print the results and update the run's report. Returns the exit code."""
    limit_spinning()
    limit_workers(1)
    evaluator, console = None, Console()
    try:
        from ddpm.evaluation.evaluator import Evaluator  # here: imports torch, so a wrong flag is reported before
        from metrics.evaluation.section import figures_table, sweep_table
        from metrics.evaluation.words import copying_words, learning_words, length_words, recommended_words
        from metrics.page import plain, rich_table

        evaluator = Evaluator(config, command, console)
        evaluator.measure()
        console.print(rich_table(figures_table(evaluator.evaluation)))
        for sentence in (*learning_words(evaluator.evaluation), copying_words(evaluator.evaluation)):
            evaluator.say(plain(sentence))
        for name in evaluator.sweeps:
            evaluator.sweep(name)
            console.print(rich_table(sweep_table(evaluator.evaluation, name)))
            if name == "ema_lengths":
                evaluator.say(plain(length_words(evaluator.evaluation)))
        if config.sweeps:
            evaluator.say(plain(recommended_words(evaluator.evaluation)))
    except KeyboardInterrupt:
        kept = "nothing was measured yet"
        if evaluator and evaluator.saved:
            kept = f"what has been measured is in {evaluator.json}"
        print(f"interrupted; {kept}", file=sys.stderr)
        return INTERRUPTED
    finally:
        if evaluator and evaluator.saved:
            publish(evaluator)
    return 0


def publish(evaluator: Evaluator) -> None:
    """Update the run's training log and report (not with --out), draw the plots, and print the path of every file."""
    from metrics.evaluation.section import write_evaluation_plots
    from metrics.report import write_report
    from metrics.training_log.log import write_training_log

    paths = None if evaluator.config.out else evaluator.model.paths
    evaluator.log("drawing the plots")
    if paths and os.path.lexists(paths.json):
        evaluator.say(f"training log: {write_training_log(paths)}")  # a criterion may be about the evaluation
        evaluator.say(f"report: {write_report(paths)}")
    else:  # for somebody else, or the checkpoint was copied here without its run's figures
        write_evaluation_plots(evaluator.json, evaluator.folder)
    for path in (evaluator.json, *sorted(evaluator.folder.glob("*.*"))):
        evaluator.say(f"{path.stem.replace('_', ' ')}: {path}")


if __name__ == "__main__":
    sys.exit(run_program(main))
