"""The four panels of the dashboard: progress, GPUs, epochs, log. Each is drawn from a `RunState` for a given room.

They are lines of text whose columns we reckon ourselves: training pays for every drawing, and with Rich's tables one
would cost three times as much.
"""

from __future__ import annotations

import math
import textwrap
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from metrics.run_state import RunState
from metrics.text import NONE, clock, duration, fixed, loss, number, rate, speed

ACCENT = "cyan"
SEVERITY_MARKS = {
    "debug": ("·", "bright_black"),
    "info": ("•", "default"),
    "success": ("✓", "green"),
    "warning": ("!", "yellow"),
    "error": ("✗", "bold red"),
}
BLOCKS = "▁▂▃▄▅▆▇█"


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


def eta(status: dict[str, Any], ended: bool) -> str:
    """`ETA 1:02:03 (17:45)`, or the time it took."""
    if ended:
        return f"took {duration((number(status.get('heartbeat')) or 0) - (number(status.get('started')) or 0))}"
    eta = number(status.get("eta_sec"))
    if eta is None:
        return "ETA -"
    end = (number(status.get("progress_time")) or 0.0) + eta
    return f"ETA {duration(eta)}" + (f" ({clock(end, '%H:%M')})" if eta < 86400 else f" ({clock(end, '%a %H:%M')})")


def _where(state: RunState) -> str:
    """`vn1 · 4 x cuda · 2 nodes · Slurm 7 · up 1:02:03`."""
    status = state.status or {}
    world, nodes = status.get("world_size"), status.get("nodes")
    parts = [status.get("host"), f"{world} x {status.get('device')}" if world != 1 else status.get("device")]
    parts += [f"{nodes} nodes"] if nodes != 1 else []
    parts += [f"Slurm {status['slurm_job_id']}"] if status.get("slurm_job_id") else []
    parts += [] if state.ended else [f"up {duration(state.now - (number(status.get('started')) or state.now))}"]
    return " · ".join(str(part) for part in parts)


def progress_panel(state: RunState, width: int) -> Panel:
    """Two bars, the figures of the moment, and the losses of all epochs as a line of blocks."""
    status = state.status or {}
    run, epoch = fractions(status)
    rows = (
        ("epoch", run, ACCENT, eta(status, state.ended)),
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
    figures = line()
    for name, value in (
        ("loss", loss(status.get("loss"))),
        ("lr", rate(status.get("lr"))),
        ("grad", loss(status.get("grad_norm"))),
        ("images/s", speed(status.get("samples_per_sec"))),
        *([("seen", fixed(status.get("images_seen")))] if width >= 72 else []),
    ):
        figures.append(f"{name} ", style="bright_black").append(f"{value}  ", style="bold")
    subtitle = _where(state)[: width - 8]
    return panel(Group(*bars, figures, _trend(state, width - 4)), "progress", subtitle)


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


def gpus_of(state: RunState) -> list[tuple[str, dict[str, Any]]]:
    """Every GPU of the job as (node, figures)."""
    return [(str(node.get("node")), gpu) for node in state.nodes for gpu in node.get("gpus") or []]


def _short_name(gpu: dict[str, Any]) -> str:
    return str(gpu.get("name")).removeprefix("NVIDIA ")


def _heat(value: Any, warm: float, hot: float) -> str:
    value = number(value)
    return "default" if value is None else "red" if value >= hot else "yellow" if value >= warm else "green"


def _gigabytes(gpu: dict[str, Any]) -> str:
    used, total = (number(gpu.get(f"memory_{name}_mb")) for name in ("used", "total"))
    return f"{fixed(used and used / 1024, 1)}/{fixed(total and total / 1024)} GB"


def gpu_panel(state: RunState, width: int, rows: int) -> Panel:
    """A line a GPU; where they do not all fit, the last line sums up the others."""
    gpus = gpus_of(state)
    if not gpus:
        return panel(Text("no GPU" if state.nodes else "no word of any GPU yet", style="bright_black italic"), "GPUs")
    shown = gpus if len(gpus) <= rows else gpus[: rows - 1]
    several = len(state.nodes) > 1
    names = [
        f"{node}:{gpu.get('index')}" if several else f"{gpu.get('index')} {_short_name(gpu)}" for node, gpu in shown
    ]
    name_width = min(18, max(map(len, names), default=0))
    lines = []
    for name, (_, gpu) in zip(names, shown, strict=True):
        use, heat, watts, limit = (
            number(gpu.get(key)) for key in ("utilization", "temperature_c", "power_w", "power_limit_w")
        )
        figures = [
            (f" {fixed(use, 0, ' %'):>5} ", ""),
            (f"{fixed(heat, 0, '°C'):>5} ", _heat(heat, 75, 85)),
            (f"{_gigabytes(gpu):>13} ", ""),
            (f"{fixed(watts):>5}", ""),
            (f"/{fixed(limit)} W" if limit is not None else " W", "bright_black"),
        ]
        room = width - 4 - name_width - 1 - sum(len(text) for text, _ in figures)
        lines.append(line((f"{name[:18]:<{name_width}} ", "bold"), bar((use or 0) / 100, room, "green"), *figures))
    if len(shown) == len(gpus):
        return panel(Group(*lines), "GPUs", _gpu_subtitle(gpus) if several else None)
    others = gpus[len(shown) :]
    return panel(Group(*lines, gpu_summary(others, f"… {len(others)} more:")), "GPUs", _gpu_subtitle(gpus))


def _gpu_subtitle(gpus: list[tuple[str, dict[str, Any]]]) -> str:
    names = sorted({_short_name(gpu) for _, gpu in gpus})
    nodes = len({node for node, _ in gpus})
    return f"{len(gpus)} x {', '.join(names)}" + (f" on {nodes} nodes" if nodes > 1 else "")


def gpu_summary(gpus: list[tuple[str, dict[str, Any]]], title: str) -> Text:
    """Several GPUs in a line: the mean of what they do, the hottest, the memory of the fullest, the power of all."""

    def values(name: str) -> list[float]:
        return [value for _, gpu in gpus if (value := number(gpu.get(name))) is not None]

    use, heat, watts = values("utilization"), values("temperature_c"), values("power_w")
    fullest = max((gpu for _, gpu in gpus), key=lambda gpu: number(gpu.get("memory_used_mb")) or 0.0)
    parts = [
        title,
        f"{sum(use) / len(use):.0f} %" if use else NONE,
        f"{max(heat):.0f}°C" if heat else NONE,
        _gigabytes(fullest),
        f"{sum(watts):,.0f} W" if watts else NONE,
    ]
    return line("  ".join(parts))


def epochs_panel(state: RunState, width: int, rows: int) -> Panel:
    """The latest epochs; the best one, by the validation loss of the EMA weights, carries a star."""
    if not state.epochs:
        return panel(Text("no epoch is done yet", style="bright_black italic"), "epochs")
    columns = [("epoch", "epoch", str), ("loss", "loss_mean", loss), ("val loss", "val_loss", loss)]
    columns += [("val EMA", "val_loss_ema", loss), ("lr", "lr", rate), ("grad", "grad_norm", loss)]
    columns += [("images/s", "samples_per_sec", speed), ("time", "epoch_time_sec", duration)]
    scores = [(number(row.get("val_loss_ema")) or math.inf, row.get("epoch")) for row in state.epochs]
    best = min(scores)[1] if min(scores)[0] < math.inf else None
    cell_width = (width - 4) // len(columns)
    lines = [line(("".join(title.rjust(cell_width) for title, _, _ in columns), "bright_black"))]
    for row in state.epochs[-max(1, rows) :]:
        is_best = best is not None and row.get("epoch") == best
        cells = [form(row.get(key)) for _, key, form in columns]
        cells[0] = f"★ {cells[0]}" if is_best else cells[0]
        lines.append(line(("".join(cell.rjust(cell_width) for cell in cells), "bold green" if is_best else "")))
    legend = None if best is None else f"best: epoch {best}, val EMA {loss(min(scores)[0])}"
    return panel(Group(*lines), "epochs", legend)


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
