"""The curves of one run or several as text charts, for people in a terminal.

python -m metrics.curves RUN [RUN ...] [--columns loss_mean val_loss_ema ...] [--log] [--output-root DIR]

Needs only `training_metrics.json` of each run, also of one in progress. Off a terminal there are no colours, and where
the encoding knows no line drawing, the charts are ASCII.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from ddpm.run import cli
from ddpm.run.config import data_words
from ddpm.run.errors import RequestError
from ddpm.run.metrics import METRICS, headline, names
from ddpm.run.paths import RunPaths, find_run
from ddpm.run.program import LEGIBLE, run_program

if TYPE_CHECKING:  # pandas, NumPy and plotext are loaded once there is something to draw
    import pandas as pd

USUAL = headline()
LOSSES = tuple(name for name in USUAL if METRICS[name].group == "loss")
TOGETHER = {  # columns of one unit share a chart: its title
    "loss": tuple(dict.fromkeys((*LOSSES, *names(group="loss"), *names(group="loss_by_noise_level")))),
    "quality": ("rca", "top1", "top5"),
    "gradient norm": ("grad_norm", "grad_norm_max"),
    "GPU memory, MB": names(group="memory"),
    "seconds": tuple(name for name in names(unit="s") if name != "total_time_sec"),
}
MARKS, COLOURS = "ox+*#@%&=~", ("blue+", "orange", "green+", "magenta+", "cyan+", "red+")
WIDTH, HEIGHT = 78, 16  # of a chart, in characters, where there is no terminal to ask
LEAST_WIDTH, LEAST_HEIGHT = 40, 8
SPAN = 3.0  # a curve whose largest value is so many times its smallest is easier to read on a logarithmic axis


def spans_decades(curves: dict[str, pd.Series]) -> bool:
    """Whether the curves are easier to read on a logarithmic axis."""
    values = [value for curve in curves.values() for value in curve.dropna()]
    return bool(values) and min(values) > 0 and max(values) > SPAN * min(values)


def chart(
    title: str,
    curves: dict[str, pd.Series],
    *,
    log: bool = False,
    width: int = WIDTH,
    height: int = HEIGHT,
    colour: bool = False,
    ascii_only: bool = False,
) -> str:
    """A text chart of `curves` (name → values by epoch) with a line of title and legend above.

    Values that are missing are bridged; on a logarithmic axis those that are not positive are left out, which the title
    says. A sentence stands for a chart without values.

    Args:
        width, height: of the chart itself, in characters.
        colour: tell the curves apart by colour, with the terminal's escape codes; else by the characters they are of.
    """
    import plotext

    known = {name: curve.dropna() for name, curve in curves.items()}
    dropped = sum(int((curve <= 0).sum()) for curve in known.values()) if log else 0
    known = {name: curve[curve > 0] if log else curve for name, curve in known.items()}
    known = {name: curve for name, curve in known.items() if len(curve)}
    if not known:
        return f"{title}: no values" + (f" above 0 for a logarithmic axis ({dropped} are not)" if dropped else " yet")
    smooth = not ascii_only and (colour or len(known) == 1)
    figure = plotext.figure
    figure.clear()  # plotext keeps one figure
    figure.theme("simple" if colour else "colorless")
    figure.plot_size(width, height)
    legend = []
    for number, (name, curve) in enumerate(known.items()):
        hue, mark = COLOURS[number % len(COLOURS)], MARKS[number % len(MARKS)]
        marker = "braille" if smooth else mark
        drawn = plotext.marker(marker, hue) if colour else marker
        heights = curve.map(math.log10) if log else curve
        figure.draw(figure.signal(curve.index.tolist(), heights.tolist(), marker=drawn).lines())
        sign = "" if smooth and not colour else ("──" if smooth else mark) + " "
        legend.append(plotext.colorize(f"{sign}{name}", hue).string() if colour else f"{sign}{name}")
    _ticks(figure, known, log, height)
    notes = ["logarithmic"] if log else []
    notes += [f"{dropped} values not above 0 left out"] if dropped else []
    named = "" if list(known) == [title] and not colour and smooth else f": {'   '.join(legend)}"
    head = f"{title} ({', '.join(notes)}){named}" if notes else f"{title}{named}"
    text = figure.build().string(colorless=not colour).rstrip("\n")
    figure.clear()
    text = "\n".join([head, *(line.rstrip() for line in text.splitlines())])
    return text.encode("ascii", LEGIBLE).decode() if ascii_only else text


def _ticks(figure: Any, curves: dict[str, pd.Series], log: bool, height: int) -> None:
    """Whole epochs below, values with four digits at the side, lines apart; a curve of one point has room about it."""
    import numpy as np
    import pandas as pd

    values = pd.concat(list(curves.values()))
    epochs = np.unique(np.linspace(values.index.min(), values.index.max(), 7).round())
    low, high = float(values.min()), float(values.max())
    if log:
        low, high = math.log10(low), math.log10(high)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - (0.1 * abs(low) or 1.0), high + (0.1 * abs(high) or 1.0)
    if values.index.min() == values.index.max():
        figure.ruler("x").lim(epochs[0] - 1, epochs[0] + 1)
    places = np.linspace(low, high, min(5, (height - 3) // 2))
    figure.ruler("y").lim(low, high)
    figure.ruler("y").ticks(places.tolist(), [f"{10**place if log else place:.4g}" for place in places])
    figure.ruler("x").ticks(epochs.tolist(), [f"{epoch:.0f}" for epoch in epochs])
    figure.label("epoch", "x")


def charts(runs: dict[str, pd.DataFrame], columns: Sequence[str], log: bool | None = False, **look: Any) -> list[str]:
    """Charts of `columns` of the runs (name → rows by epoch): of one run, columns of one unit share a chart; of
    several, each column has a chart with a curve per run. Columns that no run has measured are left out.

    Args:
        log: None for a logarithmic axis where the values ask for it.
        look: width, height, colour, ascii_only, as `chart` takes them.
    """
    measured = [name for name in columns if any(frame[name].notna().any() for frame in runs.values())]
    drawn = []
    if len(runs) == 1:
        frame = next(iter(runs.values()))
        drawn = [(title, {name: frame[name] for name in family}) for title, family in _families(measured).items()]
    else:
        drawn = [(column, {run: frame[column] for run, frame in runs.items()}) for column in measured]
    return [chart(title, curves, log=spans_decades(curves) if log is None else log, **look) for title, curves in drawn]


def _families(columns: Sequence[str]) -> dict[str, list[str]]:
    """The columns by the title of the chart that they share."""
    families: dict[str, list[str]] = {}
    for column in columns:
        title = next((title for title, family in TOGETHER.items() if column in family), column)
        families.setdefault(title, []).append(column)
    return families


def _checked(columns: Sequence[str]) -> Sequence[str]:
    from metrics.run_data import FIGURES

    for name in columns:
        if name not in FIGURES:
            raise RequestError(f"--columns {name}: no such column of figures; there are {', '.join(FIGURES)}")
    return columns


def _read_runs(places: Sequence[RunPaths]) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """The rows of each run by its name, and what is to be known of each in a line."""
    from metrics.run_data import epochs_frame, load_document

    runs, lines = {}, []
    for paths in dict.fromkeys(places):
        document = load_document(paths)
        name = paths.run if paths.run not in runs else f"{paths.run} ({len(runs) + 1})"
        frame = runs[name] = epochs_frame(document)
        done = f"{frame.index[-1]} epochs" if len(frame) else "no epoch has finished yet"
        damaged = f"; {document['damaged']}" if document["damaged"] else ""
        lines.append(f"{name}: {data_words(document['data'])}; {document['state']}, {done}{damaged}")
    return runs, lines


@dataclass(frozen=True)
class CurvesConfig:
    """Curves of one run or several as text charts."""

    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN [RUN ...]", help_behavior_hint="(required)")]
    """Names of runs, or their folders under metrics/output/."""
    columns: Annotated[tuple[str, ...], arg(metavar="COLUMN [COLUMN ...]")] = USUAL
    """Columns of training_metrics.csv."""
    log: bool = False
    """Logarithmic axes."""
    width: int | None = None
    """Width of a chart, in characters. Left out: the terminal's."""
    height: int = HEIGHT
    """Height of a chart, in lines."""
    output_root: Path | None = None
    """Folder that the runs write to. Left out: the project folder."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise RequestError("name one run or more: python -m metrics.curves RUN [RUN ...]")
        if (self.width or LEAST_WIDTH) < LEAST_WIDTH or self.height < LEAST_HEIGHT:
            raise RequestError(f"a chart needs --width {LEAST_WIDTH} and --height {LEAST_HEIGHT} or more")


@cli.in_one_line
def main(arguments: Sequence[str] | None = None) -> int:
    config = cli.parse(CurvesConfig, arguments, "python -m metrics.curves")
    columns = _checked(config.columns)
    runs, lines = _read_runs([find_run(name, config.output_root) for name in config.runs])
    terminal = sys.stdout.isatty()
    usual = shutil.get_terminal_size((WIDTH, 0)).columns if terminal else WIDTH
    look = {
        "width": config.width or max(usual, LEAST_WIDTH),
        "height": config.height,
        "colour": terminal and os.environ.get("TERM", "dumb") != "dumb" and not os.environ.get("NO_COLOR"),
        "ascii_only": not (sys.stdout.encoding or "").lower().startswith("utf"),
    }
    drawn = charts(runs, columns, config.log, **look) or [f"nothing to draw yet of {', '.join(columns)}"]
    print("\n".join(lines), *drawn, sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
