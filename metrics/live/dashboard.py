"""The dashboard: draws what a run has published. `render` depends on a `RunData` and a size, and on nothing else.

A large terminal gets four panels side by side, 80x24 gets them stacked, and a smaller one gets the same facts as lines.
"""

from __future__ import annotations

import textwrap

from rich.console import Group, RenderableType
from rich.layout import Layout
from rich.text import Text

from ddpm.run.format import DASH, duration, number
from ddpm.run.metrics import EPOCH, LOSS_MEAN, LR, SAMPLES_PER_SEC, VAL_LOSS_EMA
from metrics.live.gpu_panel import gpu_panel, gpu_rows, gpu_summary, gpus_of
from metrics.live.lines import now, part
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
from metrics.run_data import RunData

Verdict = tuple[str, str | None]  # healthy, warnings or unhealthy, and the worst finding as its reason

WIDE, VERY_WIDE = 110, 150  # columns: progress beside GPUs; epochs beside log
NO_GPUS = 28  # columns of the GPUs' panel when it has only to say that there are none
SMALL = (60, 18)  # columns and rows below which panels do not fit
ROOM = 22  # rows from which there is room for the reason of a verdict
PROGRESS_ROWS = 4
STATES = {"running": "green", "finished": "bright_cyan", "stopped": "yellow", "failed": "red"}
HEALTH = {"healthy": "green", "warnings": "yellow", "unhealthy": "bold red"}
ALARM = "bold white on red"


def render(run: RunData, size: tuple[int, int], verdict: Verdict | None = None, hint: str = "") -> RenderableType:
    """The view of a run, exactly `size` (columns, rows) large; `hint` says what keys do."""
    width, height = size
    if width < SMALL[0] or height < SMALL[1]:
        return _lines(run, width, height, verdict, hint)
    head = _head(run, width, height, verdict)
    top = Layout(Group(*head), size=len(head))
    if not run.status:
        waiting = Text("waiting for the run to publish its status …", style="dim italic", justify="center")
        body = [Layout(panel(Group(*[""] * (height // 2 - 2), waiting), "progress", hint))]
    else:
        body = _body(run, width, height - len(head), hint)
    page = Layout()
    page.split_column(top, *body)
    return page


def natural_height(run: RunData, width: int, verdict: Verdict | None = None) -> int:
    """The rows that show everything at this width without empty space; at most 40."""
    gpus = gpu_rows(run, 8) + 2
    top = max(PROGRESS_ROWS + 2, gpus) if width >= WIDE else PROGRESS_ROWS + 2 + gpus
    epochs, log = min(len(run.rows), 10) + 3, len(log_lines(run, width - 4, 12)) + 2
    rest = max(epochs, log) if width >= VERY_WIDE else epochs + max(3, log)
    return min(40, max(SMALL[1], 1 + len(_head(run, width, ROOM, verdict)) + top + rest))


def _body(run: RunData, width: int, height: int, hint: str) -> list[Layout]:
    """Progress and GPUs, epochs and log, sized so that the log gets what the others do not need."""
    if width >= WIDE:
        top = max(PROGRESS_ROWS + 2, gpu_rows(run, height // 2 - 4) + 2)
        right = width // 2 if gpus_of(run) else NO_GPUS
        upper = Layout(size=top)
        upper.split_row(
            Layout(progress_panel(run, width - right), size=width - right),
            Layout(gpu_panel(run, right, top - 2), size=right),
        )
        above = [upper]
    else:
        gpus = 2 + gpu_rows(run, max(1, (height - 15) // 2))
        top = PROGRESS_ROWS + 2 + gpus
        above = [
            Layout(progress_panel(run, width), size=PROGRESS_ROWS + 2),
            Layout(gpu_panel(run, width, gpus - 2), size=gpus),
        ]
    rest = height - top
    if width >= VERY_WIDE:
        left = min(max(88, 4 + CELL_WIDTH * len(epoch_columns(run, width))), width - 62)
        lower = Layout()
        lower.split_row(
            Layout(epochs_panel(run, left, rest - 3), size=left), Layout(log_panel(run, width - left, rest - 2, hint))
        )
        return [*above, lower]
    rows = max(1, min(len(run.rows), rest // 2 - 3))
    return [
        *above,
        Layout(epochs_panel(run, width, rows), size=rows + 3),
        Layout(log_panel(run, width, rest - rows - 5, hint)),
    ]


def _badge(run: RunData, verdict: Verdict | None) -> Text:
    """State, phase with its age, and health, in their colours: `● running  training 3m 12s  healthy`."""
    badge = _state(run)
    return badge.append(f"  {verdict[0]}", style=HEALTH.get(verdict[0], "default")) if verdict else badge


def _state(run: RunData) -> Text:
    if not run.status:
        return Text("○ waiting", style="yellow")
    if run.silent:
        return Text("✗ no heartbeat", style="bold red")
    name = str(run.status.get("state"))
    badge = Text(f"● {name}", style=f"bold {STATES.get(name, 'default')}")
    if run.ended:
        code = run.status.get("exit_code")
        return badge if code is None else badge.append(f" (exit {code})", style="default")
    phase_age = run.job_now - (number(run.status.get("phase_time")) or run.job_now)
    return badge.append(f"  {run.status.get('phase') or DASH} {duration(phase_age)}", style="default")


def _head(run: RunData, width: int, height: int, verdict: Verdict | None) -> list[Text]:
    """The run's name and state, what is wrong, and, if there is room, why it is not healthy."""
    data = run.status.get("data")
    badge = _badge(run, verdict)
    title = Text.assemble((" ▚ ", ACCENT), (run.run, "bold"), (f"  {data}" if data else "", ACCENT))
    title.truncate(max(0, width - badge.cell_len - 2), overflow="ellipsis", pad=True)
    notice = [line((f"  {text}".ljust(width), ALARM)) for text in _wrapped(_notice(run), width - 4, 3)]
    reason = _wrapped(_reason(run, verdict), width - 4, 2) if height >= ROOM else []
    return [line(title, " ", badge), *notice, *(line((f"   {text}", "dim")) for text in reason)]


def _notice(run: RunData) -> str | None:
    """What is wrong, in a line; None when all is well."""
    wrong = run.trouble
    if not wrong and run.status and run.condition.status == "unhealthy":
        wrong = run.status.get("message") if run.state == "failed" else run.condition.note
    return "; ".join(filter(None, [wrong, *(finding.note for finding in run.findings)])) or None


def _reason(run: RunData, verdict: Verdict | None) -> str | None:
    """Why the verdict is not `healthy`, unless the notice says it."""
    known = verdict is None or verdict[0] == "healthy" or (_notice(run) and run.condition.status == "unhealthy")
    return None if known else verdict[1]


def _wrapped(text: str | None, width: int, most: int) -> list[str]:
    return textwrap.wrap(text or "", max(8, width), max_lines=most, placeholder=" …")


def _lines(run: RunData, width: int, height: int, verdict: Verdict | None, hint: str) -> RenderableType:
    """The view of a terminal that is too small for panels: the same facts, the most important first."""
    status = run.status
    head = [line((run.run, "bold"), (f"  {hint}" if hint else "", "bright_black")), line(_badge(run, verdict))]
    head += [line((text, ALARM)) for text in _wrapped(_notice(run), width, 3)]
    if status:
        of_run, of_epoch = fractions(status)
        for name, whole, share, style, more in (
            ("epoch", "epochs", of_run, ACCENT, eta(run)),
            ("batch", "batches", of_epoch, "magenta", f"{of_epoch:.0%}"),
        ):
            count = part(status, name, whole)
            head.append(line((f"{name} {count} ", style), bar(share, width // 4, style), f" {more}"))
        pace = f"{now(status, SAMPLES_PER_SEC)} images/s"
        head.append(line(f"loss {now(status, LOSS_MEAN)}  lr {now(status, LR)}  {pace}"))
        gpus = gpus_of(run)
        name = f"{len(gpus)} GPUs" if len(gpus) > 1 else "GPU"
        head.append(gpu_summary(gpus, name, width) if gpus else line(("no GPU", "bright_black")))
        for row in run.rows[-1:]:
            scores = f"loss {LOSS_MEAN.text_of(row)}, val EMA {VAL_LOSS_EMA.text_of(row)}"
            head.append(line(f"epoch {EPOCH.text_of(row)}: {scores}"))
        head += [line((text, "dim")) for text in _wrapped(_reason(run, verdict), width, 2)]
    lines = head[:height]
    return Group(*lines, *log_lines(run, width, height - len(lines)))
