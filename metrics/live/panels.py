"""Panels of the dashboard: progress, epochs, log (GPUs: gpu_panel.py), each drawn from a `RunState` for a given room.

They are lines of text whose columns we reckon ourselves: training pays for every drawing, and with Rich's tables one
would cost three times as much.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from operator import itemgetter
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from ddpm.run.format import clock, duration, fixed, loss, number, rate, speed
from ddpm.run.metrics import EPOCH_TABLE, METRICS, Metric
from metrics.run_state import RunState

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
EPOCH_COLUMNS = (  # of the CSV, the most important first
    "epoch", "loss_mean", "val_loss_ema", "rca", "epoch_time_sec", "val_loss", "fid_features", "samples_per_sec", "lr",
    "grad_norm", "val_loss_swa",
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
    """A line of text, cut where the room ends; a part may be (text, style)."""
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def fitting(parts: Iterable[str], width: int, gap: str) -> list[str]:
    """The first of the parts, as many as find room whole in `width` columns with a `gap` between them."""
    found: list[str] = []
    for part in parts:
        if len(gap.join([*found, part])) > width:
            break
        found.append(part)
    return found


def bar(share: float, width: int, style: str) -> Text:
    """A bar of `width` columns, of which the `share` (0 to 1) that is done has the style; nothing without room."""
    halves = round(min(1.0, max(0.0, share)) * 2 * max(0, width))
    done = "━" * (halves // 2) + "╸" * (halves % 2)
    return Text.assemble((done, style), ("─" * (width - len(done)), "bright_black"))


def fractions(status: dict[str, Any]) -> tuple[float, float]:
    """How much of the run and of the epoch is done, 0 to 1."""

    def share(part: str, whole: str) -> float:
        total = number(status.get(whole))
        return min(1.0, max(0.0, (number(status.get(part)) or 0.0) / total)) if total else 0.0

    run = share("step", "total_steps") if number(status.get("total_steps")) else share("epoch", "epochs")
    return run, share("batch", "batches")


def eta(state: RunState) -> str:
    """`ETA 1:02:03 (17:45)`; of a run that ended the time it took, of a dead one when it was last heard of."""
    status = state.status or {}
    if state.ended:
        return f"took {duration((number(status.get('heartbeat')) or 0) - (number(status.get('started')) or 0))}"
    if state.dead:
        return f"silent since {clock(status.get('heartbeat'), _day(state.heartbeat_age))}"
    eta = number(status.get("eta_sec"))
    if eta is None:
        return "ETA -"
    return f"ETA {duration(eta)} ({clock((number(status.get('progress_time')) or 0.0) + eta, _day(eta))})"


def _day(seconds: float) -> str:
    """How the time of something so far away is written: with the day where it is not within one, with the date where
    it is not within a week.
    """
    return "%H:%M" if seconds < 86400 else "%a %H:%M" if seconds < 7 * 86400 else "%Y-%m-%d"


def _where(state: RunState) -> list[str]:
    """`vn1`, `4 x cuda`, `2 nodes`, `Slurm 7`, `up 1:02:03`, the last of a run that lives."""
    status = state.status or {}
    world, nodes = status.get("world_size"), status.get("nodes")
    parts = [status.get("host"), f"{world} x {status.get('device')}" if world != 1 else status.get("device")]
    parts += [f"{nodes} nodes"] if nodes != 1 else []
    parts += [f"Slurm {status['slurm_job_id']}"] if status.get("slurm_job_id") else []
    if not (state.ended or state.dead):
        parts.append(f"up {duration(state.now - (number(status.get('started')) or state.now))}")
    return [str(part) for part in parts]


def progress_panel(state: RunState, width: int) -> Panel:
    """Two bars, the figures of the moment, and the losses of all epochs as a line of blocks."""
    status = state.status or {}
    run, epoch = fractions(status)
    rows = (
        ("epoch", run, ACCENT, eta(state)),
        ("batch", epoch, "magenta", f"step {fixed(status.get('step'))}/{fixed(status.get('total_steps'))}"),
    )
    counts = [
        f"{status.get(name)}/{status.get(f'{name}{plural}')}" for name, plural in (("epoch", "s"), ("batch", "es"))
    ]
    count_width, more_width = max(map(len, counts)), max(len(more) for *_, more in rows)
    bars = [
        line(
            (f"{name} ", style),
            bar(share, width - 4 - 6 - count_width - 8 - more_width, style),
            f" {count:>{count_width}} ",
            (f"{share:4.0%} ", "bright_black"),
            f" {more:<{more_width}}",
        )
        for (name, share, style, more), count in zip(rows, counts, strict=True)
    ]
    where = " · ".join(fitting(_where(state), width - 8, " · "))
    return panel(Group(*bars, _figures(status, width - 4), _trend(state, width - 4)), "progress", where)


def _figures(status: dict[str, Any], width: int) -> Text:
    """The figures of the moment, the most important first; those that find no room are left out whole."""
    figures = {
        "loss": loss(status.get("loss")),
        "images/s": speed(status.get("samples_per_sec")),
        "lr": rate(status.get("lr")),
        "grad": loss(status.get("grad_norm")),
        "seen": fixed(status.get("images_seen")),
    }
    cells = fitting((f"{name} {value}" for name, value in figures.items()), width, GAP)
    parts = [cell.partition(" ") for cell in cells]
    return Text(GAP).join(line((f"{name} ", "bright_black"), (value, "bold")) for name, _, value in parts)


def _trend(state: RunState, width: int) -> Text:
    """The loss of each epoch, on a logarithmic scale; the earliest are left out where there is no room."""
    values = [number(row.get("loss_mean")) for row in state.epochs]
    logs = [math.log(value) for value in values if value is not None and 0 < value < math.inf]
    if len(logs) < 2:
        return Text("the loss of each epoch will show here", style="bright_black italic")
    first, last = (loss(math.exp(value)) for value in (logs[0], logs[-1]))
    logs = logs[-max(2, width - len(first) - len(last) - 10) :]
    low, span = min(logs), (max(logs) - min(logs)) or 1.0
    blocks = "".join(BLOCKS[round((value - low) / span * (len(BLOCKS) - 1))] for value in logs)
    return line(("trend ", "bright_black"), f"{first} ", (blocks, "green"), f" {last}")


def epochs_panel(state: RunState, width: int, rows: int) -> Panel:
    """The latest epochs; the one with the lowest validation loss of the EMA weights carries a star.

    That need not be the checkpoint `best`: what the run chooses it by (`--best-by`) is not published.

    Where the columns do not all fit, the least important are left out; those without any figure are left out anyway.
    """
    if not state.epochs:
        return panel(Text("no epoch is done yet", style="bright_black italic"), "epochs")
    scores = [(number(row.get("val_loss_ema")), row.get("epoch")) for row in state.epochs]
    scores = [(score, epoch) for score, epoch in scores if score is not None and math.isfinite(score)]
    lowest = min(scores, key=itemgetter(0), default=None)
    columns = epoch_columns(state, width)
    cell_width = (width - 4) // len(columns)
    lines = [line(("".join(column.heading.rjust(cell_width) for column in columns), "bright_black"))]
    for row in state.epochs[-max(1, rows) :]:
        starred = lowest is not None and row.get("epoch") == lowest[1]
        cells = [column.text(row.get(column.name)) for column in columns]
        cells[0] = f"★ {cells[0]}" if starred else cells[0]
        lines.append(line(("".join(cell.rjust(cell_width) for cell in cells), "bold green" if starred else "")))
    return panel(Group(*lines), "epochs", " · ".join(fitting(_legend(state, lowest), width - 6, " · ")))


def epoch_columns(state: RunState, width: int) -> list[Metric]:
    """What the table of epochs shows in a panel of `width` columns."""
    measured = [
        name
        for name in EPOCH_COLUMNS
        if not METRICS[name].optional or any(row.get(name) is not None for row in reversed(state.epochs))
    ]
    chosen = measured[: max(1, (width - 4) // CELL_WIDTH)]
    return [METRICS[name] for name in EPOCH_TABLE if name in chosen]


def _legend(state: RunState, lowest: tuple[float, Any] | None) -> list[str]:
    """What the star says, and the latest word on quality: `lowest Val EMA 0.03500, epoch 30`, `RCA 0.931, epoch 30`."""
    parts = [] if lowest is None else [f"lowest Val EMA {METRICS['val_loss_ema'].text(lowest[0])}, epoch {lowest[1]}"]
    judged = next((row for row in reversed(state.epochs) if number(row.get("rca")) is not None), None)
    return parts + ([f"RCA {METRICS['rca'].text(judged['rca'])}, epoch {judged.get('epoch')}"] if judged else [])


def log_panel(state: RunState, width: int, rows: int) -> Panel:
    return panel(Group(*log_lines(state, width - 4, rows)), "log")


def log_lines(state: RunState, width: int, rows: int) -> list[Text]:
    """The latest messages that fit, oldest first; long ones are wrapped."""
    lines: list[Text] = []
    for event in reversed(state.logs):
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
