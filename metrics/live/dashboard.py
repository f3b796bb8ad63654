"""The dashboard: draws what a run has published. `render` is a function of a `RunState` and a size, of nothing else.

A large terminal gets four panels side by side, 80x24 gets them stacked, and a smaller one gets the same facts as lines.
"""

from __future__ import annotations

import textwrap

from rich.console import Group, RenderableType
from rich.layout import Layout
from rich.text import Text

from ddpm.run.format import duration, loss, number, rate, speed
from metrics.live.gpu_panel import gpu_panel, gpu_rows, gpu_summary, gpus_of
from metrics.live.panels import (
    ACCENT,
    CELL_WIDTH,
    bar,
    epoch_columns,
    epochs_panel,
    eta,
    fractions,
    line,
    log_lines,
    log_panel,
    panel,
    progress_panel,
)
from metrics.run_state import RunState

WIDE, VERY_WIDE = 110, 150  # columns: progress beside GPUs; epochs beside log
NO_GPUS = 28  # columns of the GPUs' panel when it has only to say that there are none
SMALL = (60, 18)  # columns and rows below which panels do not fit
PROGRESS_ROWS = 4
STATES = {"running": "green", "finished": "bright_cyan", "stopped": "yellow", "failed": "red"}
HEALTH = {"healthy": "green", "warnings": "yellow", "unhealthy": "bold red"}


def render(state: RunState, size: tuple[int, int], health: str | None = None) -> RenderableType:
    """The view of a run, exactly `size` (columns, rows) large; `health` is its health in one word, if that is known."""
    width, height = size
    if width < SMALL[0] or height < SMALL[1]:
        return _lines(state, width, height, health)
    notice = textwrap.wrap(state.notice or "", width - 4)[:3]
    top = Layout(_header(state, width, notice, health), size=1 + len(notice))
    if state.status is None:
        waiting = Text("waiting for the run to publish its status …", style="dim italic", justify="center")
        body = [Layout(panel(Group(*[""] * (height // 2 - 2), waiting), "progress"))]
    else:
        body = _body(state, width, height - 1 - len(notice))
    page = Layout()
    page.split_column(top, *body)
    return page


def natural_height(state: RunState, width: int) -> int:
    """The rows that show everything at this width without empty space; at most 40."""
    gpus = gpu_rows(state, 8) + 2
    top = max(PROGRESS_ROWS + 2, gpus) if width >= WIDE else PROGRESS_ROWS + 2 + gpus
    epochs, log = min(len(state.epochs), 10) + 3, len(log_lines(state, width - 4, 12)) + 2
    rest = max(epochs, log) if width >= VERY_WIDE else epochs + max(3, log)
    return min(40, max(SMALL[1], 2 + top + rest))


def _body(state: RunState, width: int, height: int) -> list[Layout]:
    """Progress and GPUs, epochs and log, sized so that the log gets what the others do not need."""
    if width >= WIDE:
        top = max(PROGRESS_ROWS + 2, gpu_rows(state, height // 2 - 4) + 2)
        right = width // 2 if gpus_of(state) else NO_GPUS
        upper = Layout(size=top)
        upper.split_row(
            Layout(progress_panel(state, width - right), size=width - right),
            Layout(gpu_panel(state, right, top - 2), size=right),
        )
        above = [upper]
    else:
        gpus = 2 + gpu_rows(state, max(1, (height - 15) // 2))
        top = PROGRESS_ROWS + 2 + gpus
        above = [
            Layout(progress_panel(state, width), size=PROGRESS_ROWS + 2),
            Layout(gpu_panel(state, width, gpus - 2), size=gpus),
        ]
    rest = height - top
    if width >= VERY_WIDE:
        left = min(max(88, 4 + CELL_WIDTH * len(epoch_columns(state, width))), width - 62)
        lower = Layout()
        lower.split_row(
            Layout(epochs_panel(state, left, rest - 3), size=left), Layout(log_panel(state, width - left, rest - 2))
        )
        return [*above, lower]
    rows = max(1, min(len(state.epochs), rest // 2 - 3))
    return [
        *above,
        Layout(epochs_panel(state, width, rows), size=rows + 3),
        Layout(log_panel(state, width, rest - rows - 5)),
    ]


def _badge(state: RunState, health: str | None) -> Text:
    """State, phase with its age, and health, in their colours: `● running  training 3:12  healthy`."""
    badge = _state(state)
    return badge.append(f"  {health}", style=HEALTH.get(health, "default")) if health else badge


def _state(state: RunState) -> Text:
    status = state.status
    if status is None:
        return Text("○ waiting", style="yellow")
    if state.dead:
        return Text("✗ no heartbeat", style="bold red")
    name = str(status.get("state"))
    badge = Text(f"● {name}", style=f"bold {STATES.get(name, 'default')}")
    if state.ended:
        code = status.get("exit_code")
        return badge if code is None else badge.append(f" (exit {code})", style="default")
    phase_age = state.now - (number(status.get("phase_time")) or state.now)
    return badge.append(f"  {status.get('phase')} {duration(phase_age)}", style="default")


def _header(state: RunState, width: int, notice: list[str], health: str | None) -> RenderableType:
    data = (state.status or {}).get("data")
    badge = _badge(state, health)
    title = Text.assemble((" ▚ ", ACCENT), (state.run, "bold"), (f"  {data}" if data else "", ACCENT))
    title.truncate(max(0, width - badge.cell_len - 2), overflow="ellipsis", pad=True)
    warnings = [line((f"  {text}".ljust(width), "bold white on red")) for text in notice]
    return Group(line(title, " ", badge), *warnings)


def _lines(state: RunState, width: int, height: int, health: str | None) -> RenderableType:
    """The view of a terminal that is too small for panels: the same facts, the most important first."""
    status = state.status
    head = [line((state.run, "bold")), line(_badge(state, health))]
    head += [line((text, "bold white on red")) for text in textwrap.wrap(state.notice or "", max(8, width))[:3]]
    if status is not None:
        run, epoch = fractions(status)
        for name, count, share, style, more in (
            ("epoch", f"{status.get('epoch')}/{status.get('epochs')}", run, ACCENT, eta(state)),
            ("batch", f"{status.get('batch')}/{status.get('batches')}", epoch, "magenta", f"{epoch:.0%}"),
        ):
            head.append(line((f"{name} {count} ", style), bar(share, width // 4, style), f" {more}"))
        pace = f"{speed(status.get('samples_per_sec'))} images/s"
        head.append(line(f"loss {loss(status.get('loss'))}  lr {rate(status.get('lr'))}  {pace}"))
        gpus = gpus_of(state)
        name = f"{len(gpus)} GPUs" if len(gpus) > 1 else "GPU"
        head.append(gpu_summary(gpus, name, width) if gpus else line(("no GPU", "bright_black")))
        for row in state.epochs[-1:]:
            scores = f"loss {loss(row.get('loss_mean'))}, val EMA {loss(row.get('val_loss_ema'))}"
            head.append(line(f"epoch {row.get('epoch')}: {scores}"))
    lines = head[:height]
    return Group(*lines, *log_lines(state, width, height - len(lines)))
