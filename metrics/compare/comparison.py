"""Runs side by side, as a Markdown page with plots: what differs, who is best and by how much, what it took.

python -m metrics.compare RUN RUN [RUN ...] [--rank-by COLUMN] [--loss-levels LOSS ...] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from rich.console import Console

from ddpm.run import cli
from ddpm.run.errors import RequestError
from ddpm.run.files import atomic_write, read_text, why
from ddpm.run.paths import PROJECT_ROOT, RunPaths, find_run
from metrics.compare.figures import parse_rank_by, rank, read_runs
from metrics.compare.page import MARK, make_page, summary
from metrics.compare.plots import draw_plots, save_plots
from metrics.page import to_markdown, to_rich

PAGE = "comparison.md"


def default_folder(places: Sequence[RunPaths]) -> Path:
    """`metrics/comparisons/<names>/` under the first run's output root."""
    names = "_vs_".join(paths.run for paths in places)
    if len(names) > 100:
        names = f"{places[0].run[:60]}_and_{len(places) - 1}_others_{sha256(names.encode()).hexdigest()[:6]}"
    return places[0].root / "metrics" / "comparisons" / names


def check_folder(folder: Path) -> None:
    """Raises RequestError if `folder` holds something else than a comparison."""
    try:
        if not folder.exists() or not any(folder.iterdir()) or read_text(folder / PAGE).startswith(MARK):
            return
    except (OSError, ValueError):
        pass
    raise RequestError(
        f"{folder} is there and is not a comparison's folder: nothing is written over; choose another --out"
    )


def compare(places: Sequence[RunPaths], folder: Path, rank_by: str | None = None, levels: Sequence[float] = ()) -> Path:
    """Write the page and its plots into `folder`, print the summary, and return the page's path.

    Raises:
        RequestError: fewer than two runs have figures, `rank_by` is no column with values, or `folder` holds something
            else; nothing has been written then.
        OSError: `folder` cannot be written.
        BrokenPipeError: nobody reads the summary any more; the page is written.
    """
    check_folder(folder)
    runs, left_out = read_runs(places)
    ranking = rank(runs, rank_by)
    plots = draw_plots(runs, ranking.metric)
    folder.mkdir(parents=True, exist_ok=True)
    page = make_page(runs, left_out, ranking, levels, folder, list(plots))
    atomic_write(folder / PAGE, to_markdown(page, folder))  # first: it is the mark
    save_plots(plots, runs, folder / "plots")
    console = Console()
    with console.capture() as told:  # where nobody reads on, Rich would end the process itself
        console.print(to_rich(summary(runs, left_out, ranking)))
    print(told.get(), flush=True)
    return folder / PAGE


def parse_levels(texts: Iterable[str]) -> list[float]:
    """`--loss-levels`.

    Raises:
        RequestError: one of them is no loss.
    """
    levels = []
    for text in texts:
        with suppress(ValueError):
            levels.append(float(text))
            if 0 < levels[-1] < math.inf:
                continue
        raise RequestError(f"--loss-levels {text}: give losses as numbers above 0, such as 0.13 0.125")
    return levels


@cli.in_one_line
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m metrics.compare", description="Compare runs: a Markdown page with plots, and a summary here."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="name of a run, or its folder under metrics/output/")
    parser.add_argument("--out", type=Path, help="folder for page and plots (default: metrics/comparisons/<names>/)")
    rank_help = "column of training_metrics.csv; lr:up, lr:down for one where nobody knows what is better"
    parser.add_argument("--rank-by", metavar="COLUMN", help=f"{rank_help} (default: val_loss_ema)")
    parser.add_argument("--loss-levels", nargs="+", default=(), metavar="LOSS",
                        help="losses to reach (default: chosen from the runs)")  # fmt: skip
    parser.add_argument("--output-root", type=Path, default=PROJECT_ROOT, help="where runs given by name wrote to")
    options = parser.parse_args(arguments)
    if options.rank_by:
        parse_rank_by(options.rank_by)
    levels = parse_levels(options.loss_levels)
    places = [find_run(name, options.output_root) for name in options.runs]
    try:
        print(compare(places, options.out or default_folder(places), options.rank_by, levels))
    except BrokenPipeError:  # not the folder: whoever read the summary has seen enough
        raise
    except OSError as error:
        raise RequestError(f"cannot write the comparison: {why(error)}; choose another folder with --out") from error
    return 0
