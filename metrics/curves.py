"""The curves of one run or several as text charts, for people in a terminal.

python -m metrics.curves RUN [RUN ...] [--columns loss_mean val_loss_ema ...] [--log] [--output-root DIR]

Reads each run's published files, also of one in progress. Output to a file or pipe has no colours; if its encoding is
not UTF, the charts are ASCII.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import plotext
from tyro.conf import Positional, arg

from ddpm.run import cli
from ddpm.run.errors import RequestError
from ddpm.run.format import plural, significant
from ddpm.run.metrics import FIGURES, GRAD_NORM, GRAD_NORM_MAX, METRICS, TOTAL_TIME_SEC, Metric, headline, select
from ddpm.run.paths import RunPaths, find_run
from ddpm.run.program import LEGIBLE, run_program
from metrics.run_data import RunData
from metrics.run_reader import load_run
from metrics.trends import Curve

USUAL = headline()
TOGETHER = {  # title of a chart: figures of one unit that share it
    "loss": select(group="loss") + select(group="loss_by_noise_level"),
    "quality": select(group="quality", better="higher"),
    "gradient norm": (GRAD_NORM, GRAD_NORM_MAX),
    "GPU memory, MB": select(group="memory"),
    "seconds": tuple(metric for metric in select(unit="s") if metric is not TOTAL_TIME_SEC),
}
MARKS, COLOURS = "ox+*#@%&=~", ("blue+", "orange", "green+", "magenta+", "cyan+", "red+")
WIDTH, HEIGHT = 78, 16  # of a chart, in characters, where there is no terminal to ask
LEAST_WIDTH, LEAST_HEIGHT = 40, 8
SPAN = 3.0  # curves whose largest value is more than this many times the smallest are easier to read logarithmically


def spans_decades(curves: Iterable[Curve]) -> bool:
    """Are the curves easier to read on a logarithmic axis?"""
    values = np.concatenate([curve.values for curve in curves] or [[]])
    return bool(len(values) and values.min() > 0 and values.max() > SPAN * values.min())


def chart(
    title: str,
    curves: Mapping[str, Curve],
    *,
    log: bool = False,
    width: int = WIDTH,
    height: int = HEIGHT,
    colour: bool = False,
    ascii_only: bool = False,
) -> str:
    """A text chart of `curves` by their names, with a line of title and legend above.

    The line continues across epochs without a value. A logarithmic axis leaves out values that are not positive; the
    title says so. If no values are left, a sentence is returned instead.

    Args:
        width, height: of the chart itself, in characters.
        colour: distinguish curves by colour, with escape codes; otherwise by the character they are drawn with.
    """
    known = {name: curve[curve.values > 0] if log else curve for name, curve in curves.items()}
    dropped = sum(map(len, curves.values())) - sum(map(len, known.values()))
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
        heights = np.log10(curve.values) if log else curve.values
        figure.draw(figure.signal(curve.epochs.tolist(), heights.tolist(), marker=drawn).lines())
        sign = "" if smooth and not colour else ("──" if smooth else mark) + " "
        legend.append(plotext.colorize(f"{sign}{name}", hue).string() if colour else f"{sign}{name}")
    _ticks(figure, known.values(), log, height)
    notes = ["logarithmic"] if log else []
    notes += [f"{dropped} values not above 0 left out"] if dropped else []
    named = "" if list(known) == [title] and not colour and smooth else f": {'   '.join(legend)}"
    head = f"{title} ({', '.join(notes)}){named}" if notes else f"{title}{named}"
    text = figure.build().string(colorless=not colour).rstrip("\n")
    figure.clear()
    text = "\n".join([head, *(line.rstrip() for line in text.splitlines())])
    return text.encode("ascii", LEGIBLE).decode() if ascii_only else text


def _ticks(figure: Any, curves: Iterable[Curve], log: bool, height: int) -> None:
    """Set ticks and limits: whole epochs on x, values with four digits on y, room around a curve of one value."""
    values = np.concatenate([curve.values for curve in curves])
    epochs = np.concatenate([curve.epochs for curve in curves])
    first, last, low, high = epochs.min(), epochs.max(), values.min(), values.max()
    if log:
        low, high = np.log10(low), np.log10(high)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - (0.1 * abs(low) or 1.0), high + (0.1 * abs(high) or 1.0)
    if first == last:
        figure.ruler("x").lim(float(first - 1), float(last + 1))
    ticks = np.unique(np.linspace(first, last, 7).round()).tolist()
    places = np.linspace(low, high, min(5, (height - 3) // 2)).tolist()
    figure.ruler("y").lim(float(low), float(high))
    figure.ruler("y").ticks(places, [significant(10**place if log else place, 4) for place in places])
    figure.ruler("x").ticks(ticks, [f"{epoch:.0f}" for epoch in ticks])
    figure.label("epoch", "x")


def charts(runs: Mapping[str, RunData], metrics: Sequence[Metric], log: bool | None = False, **look: Any) -> list[str]:
    """Charts of `metrics` of the runs by their names: of one run, figures of one unit share a chart; of several, each
    figure has a chart with a curve per run. What no run has measured is left out.

    Args:
        log: None for a logarithmic axis where the values span decades.
        look: width, height, colour, ascii_only, as `chart` takes them.
    """
    curves = {metric: {name: run.curve(metric) for name, run in runs.items()} for metric in metrics}
    curves = {metric: of_each for metric, of_each in curves.items() if any(map(len, of_each.values()))}
    drawn: dict[str, dict[str, Curve]] = {}  # by title
    if len(runs) == 1:
        for metric, of_each in curves.items():
            title = next((title for title, family in TOGETHER.items() if metric in family), metric.label)
            drawn.setdefault(title, {})[metric.label] = next(iter(of_each.values()))
    else:
        drawn = {metric.label: of_each for metric, of_each in curves.items()}
    return [
        chart(title, each, log=spans_decades(each.values()) if log is None else log, **look)
        for title, each in drawn.items()
    ]


def _chosen(columns: Sequence[str]) -> Sequence[Metric]:
    """The figures in these columns.

    Raises:
        RequestError: there is no such column of figures.
    """
    for name in columns:
        if name not in FIGURES:
            raise RequestError(f"--columns {name}: no such column of figures; there are {', '.join(FIGURES)}")
    return [METRICS[name] for name in columns]


def _read_runs(places: Sequence[RunPaths]) -> tuple[dict[str, RunData], list[str]]:
    """The runs by their names, and a line of facts about each."""
    runs, lines = {}, []
    for paths in dict.fromkeys(places):
        name = paths.run if paths.run not in runs else f"{paths.run} ({len(runs) + 1})"
        run = runs[name] = load_run(paths)
        done = plural(run.last["epoch"], "epoch") if run.rows else "no epoch has finished yet"
        facts = (run.data_words, run.state, done, *(finding.note for finding in run.findings))
        lines.append(f"{name}: {'; '.join(facts)}")
    return runs, lines


@dataclass(frozen=True)
class CurvesConfig:
    """Curves of one run or several as text charts."""

    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN [RUN ...]", help_behavior_hint="(required)")]
    """Names of runs, or their folders under metrics/output/."""
    columns: Annotated[tuple[str, ...], arg(metavar="COLUMN [COLUMN ...]")] = tuple(metric.name for metric in USUAL)
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
    chosen = _chosen(config.columns)
    runs, lines = _read_runs([find_run(name, config.output_root) for name in config.runs])
    terminal = sys.stdout.isatty()
    usual = shutil.get_terminal_size((WIDTH, 0)).columns if terminal else WIDTH
    look = {
        "width": config.width or max(usual, LEAST_WIDTH),
        "height": config.height,
        "colour": terminal and os.environ.get("TERM", "dumb") != "dumb" and not os.environ.get("NO_COLOR"),
        "ascii_only": not (sys.stdout.encoding or "").lower().startswith("utf"),
    }
    drawn = charts(runs, chosen, config.log, **look)
    drawn = drawn or [f"nothing to draw yet of {', '.join(metric.label for metric in chosen)}"]
    print("\n".join(lines), *drawn, sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
