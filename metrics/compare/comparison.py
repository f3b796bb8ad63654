"""Runs side by side, as a Markdown page with plots: settings that differ, a ranking, and the cost of each run.

python -m metrics.compare RUN RUN [RUN ...] [--rank-by COLUMN] [--loss-levels LOSS ...] [--out FOLDER]
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType

from rich.console import Console

from ddpm.run.errors import RequestError
from ddpm.run.files import atomic_write, read_text
from ddpm.run.paths import RunPaths
from metrics.compare.figures import rank, read_runs
from metrics.compare.page import MARK, make_page, summary
from metrics.compare.plots import draw_plots, save_plots
from metrics.compare.purposes import purposes_section
from metrics.criteria.of_run import Purpose
from metrics.page import to_markdown, to_rich

PAGE = "comparison.md"
PLAIN_WIDTH = 120  # columns where there is no terminal to ask


def default_folder(places: Sequence[RunPaths]) -> Path:
    """`metrics/comparisons/<names>/` under the first run's output root."""
    names = "_vs_".join(paths.run for paths in places)
    if len(names) > 100:
        names = f"{places[0].run[:60]}_and_{len(places) - 1}_others_{sha256(names.encode()).hexdigest()[:6]}"
    return places[0].root / "metrics" / "comparisons" / names


def check_folder(folder: Path) -> None:
    """Raises RequestError if `folder` holds something other than a comparison."""
    try:
        if not folder.exists() or not any(folder.iterdir()) or read_text(folder / PAGE).startswith(MARK):
            return
    except (OSError, ValueError):
        pass
    raise RequestError(
        f"{folder} exists and does not hold a comparison, so it is not overwritten; choose another --out"
    )


def compare(
    places: Sequence[RunPaths], folder: Path, rank_by: str | None = None, levels: Sequence[float] = (),
    plan: Mapping[str, Purpose] = MappingProxyType({}),
) -> Path:  # fmt: skip
    """Write the page and its plots into `folder`, print the summary, and return the page's path.

    Args:
        plan: run → what it is for, by the plan that it belongs to.

    Raises:
        RequestError: fewer than two runs have figures, `rank_by` is no column with values, or `folder` holds something
            else. Nothing has been written then.
        OSError: `folder` cannot be written.
        BrokenPipeError: nobody reads the summary any more; the page is written.
    """
    check_folder(folder)
    runs, left_out = read_runs(places)
    ranking = rank(runs, rank_by)
    plots = draw_plots(runs, ranking.metric)
    purposes = purposes_section(places, runs, ranking.metric, plan)
    folder.mkdir(parents=True, exist_ok=True)
    page = make_page(runs, left_out, ranking, levels, folder, list(plots), purposes)
    atomic_write(folder / PAGE, to_markdown(page, folder))  # first: its MARK shows that the folder is a comparison's
    save_plots(plots, runs, folder / "plots")
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    with console.capture() as captured:  # Rich itself would end the process on a closed pipe
        console.print(to_rich(summary(runs, left_out, ranking, purposes)))
    print(captured.get(), flush=True)
    return folder / PAGE
