"""Panels of the dashboard: progress, epochs, log (GPUs: gpu_panel.py), each drawn from a `RunData` for a given size.

They are lines of text whose columns are computed here, as drawing with Rich's tables would take three times as long and
slow down training.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterable
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from ddpm.run.format import DASH, clock, count, duration, number
from ddpm.run.metrics import (
    EPOCH,
    EPOCH_TABLE,
    EPOCH_TIME_SEC,
    FID_FEATURES,
    GRAD_NORM,
    LOSS_MEAN,
    LR,
    RCA,
    SAMPLES_PER_SEC,
    VAL_LOSS,
    VAL_LOSS_EMA,
    VAL_LOSS_SWA,
    Metric,
)
from metrics.criteria.of_run import count_of
from metrics.live.lines import SHORT, now, part
from metrics.run_data import RunData
from metrics.starts import computed
from metrics.trends import Point, best

ACCENT = "cyan"
SEVERITY_MARKS = {
    "debug": ("·", "bright_black"),
    "info": ("•", "default"),
    "success": ("✓", "green"),
    "warning": ("!", "yellow"),
    "error": ("✗", "bold red"),
}
BLOCKS = "▁▂▃▄▅▆▇█"
GAP = "  "  # between figures
CELL_WIDTH = 10  # of the table of epochs, at least
EPOCH_COLUMNS = (  # the most important first
    EPOCH, LOSS_MEAN, VAL_LOSS_EMA, RCA, EPOCH_TIME_SEC, VAL_LOSS, FID_FEATURES, SAMPLES_PER_SEC, LR, GRAD_NORM,
    VAL_LOSS_SWA,
)  # fmt: skip


def panel(content: RenderableType, title: str, subtitle: str | None = None) -> Panel:
    return Panel(
        content,
        title=f"[bold {ACCENT}]{title}[/]",
        title_align="left",
        subtitle=Text(subtitle, style="bright_black") if subtitle else None,
        subtitle_align="right",
        border_style="bright_black",
        padding=(0, 1),
    )


def line(*parts: str | Text | tuple[str, str]) -> Text:
    """A line of text, cut where the panel ends; a part may be (text, style)."""
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def fitting(parts: Iterable[str], width: int, gap: str) -> list[str]:
    """As many of the first parts as fit into `width` columns with a `gap` between them."""
    found: list[str] = []
    for text in parts:
        if len(gap.join([*found, text])) > width:
            break
        found.append(text)
    return found


def bar(share: float, width: int, style: str) -> Text:
    """A bar of `width` columns; the `share` (0 to 1) that is done has the style. Empty if `width` is 0 or less."""
    halves = round(min(1.0, max(0.0, share)) * 2 * max(0, width))
    done = "━" * (halves // 2) + "╸" * (halves % 2)
    return Text.assemble((done, style), ("─" * (width - len(done)), "bright_black"))


def fractions(status: dict[str, Any]) -> tuple[float, float]:
    """How much of the run and of the epoch is done, 0 to 1."""

    def share(done: str, whole: str) -> float:
        total = number(status.get(whole))
        return min(1.0, max(0.0, (number(status.get(done)) or 0.0) / total)) if total else 0.0

    of_run = share("step", "total_steps") if number(status.get("total_steps")) else share("epoch", "epochs")
    return of_run, share("batch", "batches")


def eta(run: RunData) -> str:
    """`ETA 1h 02m 03s (17:45)`; of a run that ended the time its starts took, of a silent one its last heartbeat."""
    status = run.status
    if run.ended:
        starts = f" in {len(run.starts)} starts" if len(run.starts) > 1 else ""
        return f"took {duration(computed(run.starts, None).seconds)}{starts}"
    if run.silent:
        return f"silent since {clock(status.get('heartbeat'), _clock_format(run.heartbeat_age))}"
    left = number(status.get("eta_sec"))
    if left is None:
        return f"ETA {DASH}"
    return f"ETA {duration(left)} ({clock((number(status.get('progress_time')) or 0.0) + left, _clock_format(left))})"


def _clock_format(seconds: float) -> str:
    """The format of a time that is `seconds` away: the weekday beyond a day, the date beyond a week."""
    return "%H:%M" if seconds < 86400 else "%a %H:%M" if seconds < 7 * 86400 else "%Y-%m-%d"


def _machine_facts(run: RunData) -> list[str]:
    """`vn1`, `4 x cuda`, `2 nodes`, `Slurm 7`, and while it runs `up 1h 02m 03s`."""
    status = run.status
    host, device = status.get("host") or DASH, status.get("device") or DASH
    world, nodes = status.get("world_size"), status.get("nodes")
    parts = [str(host), device if world == 1 else f"{count(world)} x {device}"]
    parts += [f"{count(nodes)} nodes"] if nodes != 1 else []
    parts += [f"Slurm {status['slurm_job_id']}"] if status.get("slurm_job_id") else []
    if not (run.ended or run.silent):
        parts.append(f"up {duration(run.job_now - (number(status.get('started')) or run.job_now))}")
    return parts


def progress_panel(run: RunData, width: int) -> Panel:
    """Two bars, the figures of the moment, and the losses of all epochs as a line of blocks."""
    status = run.status
    of_run, of_epoch = fractions(status)
    steps = f"step {count(status.get('step'))}/{count(status.get('total_steps'))}"
    rows = (
        ("epoch", part(status, "epoch", "epochs"), of_run, ACCENT, eta(run)),
        ("batch", part(status, "batch", "batches"), of_epoch, "magenta", steps),
    )
    done_width, more_width = (max(len(row[place]) for row in rows) for place in (1, 4))
    bars = [
        line(
            (f"{name} ", style),
            bar(share, width - 4 - 6 - done_width - 8 - more_width, style),
            f" {done:>{done_width}} ",
            (f"{share:4.0%} ", "bright_black"),
            f" {more:<{more_width}}",
        )
        for name, done, share, style, more in rows
    ]
    where = " · ".join(fitting(_machine_facts(run), width - 8, " · "))
    return panel(Group(*bars, _figures(run, width - 4), _trend(run, width - 4)), "progress", where)


def _figures(run: RunData, width: int) -> Text:
    """The figures of the moment, the most important first; those that do not fit are left out.

    Of a run that ended the speed is that of all its epochs: images over seconds.
    """
    figures = {SHORT[metric]: now(run.status, metric) for metric in (LOSS_MEAN, SAMPLES_PER_SEC, LR, GRAD_NORM)}
    if run.ended and (speed := run.summary.get("avg_throughput_sps")) is not None:
        figures[SHORT[SAMPLES_PER_SEC]] = SAMPLES_PER_SEC.text(speed)
    if judged := count_of(run):
        figures = dict(itertools.islice(figures.items(), 2)) | {"criteria": judged} | figures
    figures["seen"] = count(run.status.get("images_seen"))
    cells = fitting((f"{name} {value}" for name, value in figures.items()), width, GAP)
    parts = [cell.partition(" ") for cell in cells]
    return Text(GAP).join(line((f"{name} ", "bright_black"), (value, "bold")) for name, _, value in parts)


def _trend(run: RunData, width: int) -> Text:
    """The loss of each epoch, on a logarithmic scale; the earliest are left out where there is no room."""
    losses = [float(value) for value in run.curve(LOSS_MEAN).values if value > 0]
    if len(losses) < 2:
        return Text("the loss of each epoch will show here", style="bright_black italic")
    first, last = LOSS_MEAN.text(losses[0]), LOSS_MEAN.text(losses[-1])
    logs = [math.log(value) for value in losses[-max(2, width - len(first) - len(last) - 10) :]]
    low, span = min(logs), (max(logs) - min(logs)) or 1.0
    blocks = "".join(BLOCKS[round((value - low) / span * (len(BLOCKS) - 1))] for value in logs)
    return line(("trend ", "bright_black"), f"{first} ", (blocks, "green"), f" {last}")


def epochs_panel(run: RunData, width: int, rows: int) -> Panel:
    """The latest epochs; the one with the lowest validation loss of the EMA weights carries a star.

    The checkpoint `best` may be of another epoch (`--best-by`). Columns without any figure are left out, and the least
    important ones where not all fit.
    """
    if not run.rows:
        words = "no epoch has figures" if run.ended else "no epoch is done yet"
        return panel(Text(words, style="bright_black italic"), "epochs")
    lowest = best(run.curve(VAL_LOSS_EMA))
    columns = epoch_columns(run, width)
    cell_width = (width - 4) // len(columns)
    lines = [line(("".join(column.heading.rjust(cell_width) for column in columns), "bright_black"))]
    for row in run.rows[-max(1, rows) :]:
        starred = lowest is not None and EPOCH.of(row) == lowest.epoch
        cells = [column.text_of(row) for column in columns]
        cells[0] = f"★ {cells[0]}" if starred else cells[0]
        lines.append(line(("".join(cell.rjust(cell_width) for cell in cells), "bold green" if starred else "")))
    return panel(Group(*lines), "epochs", " · ".join(fitting(_legend(run, lowest), width - 6, " · ")))


def epoch_columns(run: RunData, width: int) -> list[Metric]:
    """The columns that the table of epochs has in a panel of `width` columns."""
    measured = [
        metric
        for metric in EPOCH_COLUMNS
        if not metric.optional or any(metric.of(row) is not None for row in reversed(run.rows))
    ]
    chosen = measured[: max(1, (width - 4) // CELL_WIDTH)]
    return [metric for metric in EPOCH_TABLE if metric in chosen]


def _legend(run: RunData, lowest: Point | None) -> list[str]:
    """What the star means, and the latest RCA: `lowest Val EMA 0.03500, epoch 30`, `RCA 0.931, epoch 30`."""
    words = {
        f"lowest {VAL_LOSS_EMA.heading}": (VAL_LOSS_EMA, lowest),
        RCA.heading: (RCA, run.curve(RCA).last),
    }
    return [f"{name} {metric.text(at.value)}, epoch {at.epoch}" for name, (metric, at) in words.items() if at]


def log_panel(run: RunData, width: int, rows: int, hint: str = "") -> Panel:
    return panel(Group(*log_lines(run, width - 4, rows)), "log", hint)


def log_lines(run: RunData, width: int, rows: int) -> list[Text]:
    """The latest messages that fit, oldest first; long ones are wrapped."""
    lines: list[Text] = []
    for event in reversed(run.logs):
        mark, style = SEVERITY_MARKS.get(str(event.get("severity")), SEVERITY_MARKS["info"])
        stamp = f"{clock(event.get('time'))} " if width >= 40 else ""
        indent = " " * (len(stamp) + 2)
        first, *more = textwrap.wrap(str(event.get("message")), max(8, width - len(indent))) or [""]
        message = [line((stamp, "bright_black"), (f"{mark} {first}", style))]
        message += [line((indent + text, style)) for text in more]
        if lines and len(lines) + len(message) > rows:
            break
        lines[:0] = message
    return lines[: max(0, rows)]
