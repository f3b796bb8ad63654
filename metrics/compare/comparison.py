"""Runs side by side, as a Markdown page with plots: what differs, who is best and by how much, what it took.

python -m metrics.compare RUN RUN [RUN ...] [--rank-by COLUMN] [--loss-levels LOSS ...] [--out FOLDER]
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ddpm.run.errors import RequestError
from ddpm.run.files import atomic_write, read_text
from ddpm.run.paths import RunPaths
from metrics.compare.cautions import cautions
from metrics.compare.figures import ComparedRun, Ranking, final, rank, read_runs
from metrics.compare.page import MARK, make_page, time_words
from metrics.compare.plots import data_of, draw_plots, save_plots
from metrics.compare.ranking import behind, state_words, verdicts
from metrics.style import DASH, human_number

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


def compare(
    places: Sequence[RunPaths], folder: Path, rank_by: str | None = None, levels: Sequence[float] = (),
    console: Console | None = None,
) -> Path:  # fmt: skip
    """Write the page and its plots into `folder`, print the summary, and return the page's path.

    Raises:
        RequestError: fewer than two runs have figures, `rank_by` is no column with values, or `folder` holds something
            else; nothing has been written then.
        OSError: `folder` cannot be written.
    """
    check_folder(folder)
    runs, left_out = read_runs(places)
    ranking = rank(runs, rank_by)
    plots = draw_plots(runs, ranking.column)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(
        folder / PAGE, make_page(runs, left_out, ranking, levels, folder, list(plots))
    )  # first: it is the mark
    save_plots(plots, runs, folder / "plots")
    tell(console or Console(), runs, left_out, ranking)
    return folder / PAGE


def tell(console: Console, runs: Sequence[ComparedRun], left_out: Sequence[str], ranking: Ranking) -> None:
    """Print cautions, ranking and winner."""

    def say(line: str, style: str = "") -> None:
        console.print(line.replace("`", "").replace("**", ""), style=style, markup=False, highlight=False)

    for line in left_out:
        say(f"left out: {line}", "yellow")
    for caution in cautions(runs, ranking):
        say(f"caution: {caution}", "yellow")
    for group, sentences in zip(ranking.groups, verdicts(ranking), strict=True):
        shown = Table(title=data_of([run for run, *_ in group]), title_justify="left", box=SIMPLE)
        for name in ("", "run", ranking.column, "epoch", "behind", "% of best", "time", "state"):
            text = name in ("run", "state")
            shown.add_column(name, justify="left" if text else "right", no_wrap=not text, overflow="fold")
        for place, (run, value, epoch) in enumerate(group, 1):
            took = time_words(final(run, "total_time_sec"))
            cells = (place, run.short, human_number(value, 5), epoch or DASH, *behind(value, group[0][1]), took)
            style = "bold green" if place == 1 and len(group) > 1 else ""
            shown.add_row(*map(str, cells), state_words(run), style=style)
        console.print(shown)
        say(sentences)
