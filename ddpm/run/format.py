"""Numbers and rows as people read them, and messages as plain lines. A value that is not there reads "-"."""

from __future__ import annotations

import math
import re
import time
from typing import Any

from ddpm.run import kinds

NONE = "-"
ESCAPES = re.compile(r"\x1b\[[0-9;:?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-Z\\-_]?")


def number(value: Any) -> float | None:
    """`value` if it is a number that a float can hold, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def fixed(value: Any, digits: int = 0, unit: str = "") -> str:
    """`1,234 unit`, with so many decimals."""
    value = number(value)
    return NONE if value is None else f"{value:,.{digits}f}{unit}"


def loss(value: Any) -> str:
    """A loss or a norm with four decimals, or as a power of ten when they would not show it."""
    value = number(value)
    if value is None:
        return NONE
    return f"{value:.4f}" if value == 0 or not math.isfinite(value) or 1e-3 <= abs(value) < 1e4 else f"{value:.2e}"


def rate(value: Any) -> str:
    """A learning rate: `1.0e-04`."""
    value = number(value)
    return NONE if value is None else f"{value:.1e}"


def speed(value: Any) -> str:
    """Images a second, with a decimal while it matters."""
    value = number(value)
    return NONE if value is None else f"{value:,.{0 if abs(value) >= 100 else 1}f}"


def duration(seconds: Any) -> str:
    """`3:07`, `1:02:03`, `2d 03:04`."""
    value = number(seconds)
    if value is None or not math.isfinite(value):
        return NONE
    minutes, second = divmod(max(0, round(value)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}:{minute:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def rough_duration(seconds: float) -> str:
    """`50 s`, `3 min`, `5 h`, `2 days`."""
    for unit, size, least in (("days", 86400, 172800), ("h", 3600, 7200), ("min", 60, 120)):
        if seconds >= least:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"


def clock(stamp: Any, form: str = "%H:%M:%S") -> str:
    """A stamp (seconds since 1970) in local time."""
    stamp = kinds.stamp(stamp)
    return NONE if stamp is None else time.strftime(form, time.localtime(stamp))


def clean(message: Any) -> list[str]:
    """The lines of a message without escape codes and control characters; what no encoding knows is spelled out."""
    text = ESCAPES.sub("", str(message)).encode(errors="backslashreplace").decode().expandtabs(4)
    return ["".join(c for c in line if c.isprintable()).rstrip() for line in text.splitlines()] or [""]


def plain_line(stamp: float, severity: str, message: str) -> str:
    """A line of `logs/<run>.log` and of the output of a batch job."""
    return f"{clock(stamp, '%Y-%m-%d %H:%M:%S')}  {severity:<7}  {message}"


def progress_line(status: dict[str, Any]) -> str:
    """Where the run stands, from the fields of `status.json`."""
    return _facts(
        (f"epoch {status.get('epoch')}/{status.get('epochs')}", ""),
        (f"batch {status.get('batch')}/{status.get('batches')}", ""),
        (f"step {status.get('step')}/{status.get('total_steps')}", ""),
        ("loss", loss(status.get("loss"))),
        ("lr", rate(status.get("lr"))),
        ("grad", loss(status.get("grad_norm"))),
        ("images/s", speed(status.get("samples_per_sec"))),
        ("ETA", duration(status.get("eta_sec"))),
    )


def epoch_line(row: dict[str, Any], epochs: Any = None) -> str:
    """An epoch's row (the CSV's columns) in a line."""
    return _facts(
        (f"epoch {row.get('epoch')}" + (f"/{epochs}" if epochs else "") + " done", ""),
        ("loss", loss(row.get("loss_mean"))),
        ("val", loss(row.get("val_loss"))),
        ("val EMA", loss(row.get("val_loss_ema"))),
        ("lr", rate(row.get("lr"))),
        ("grad", loss(row.get("grad_norm"))),
        ("images/s", speed(row.get("samples_per_sec"))),
        ("time", duration(row.get("epoch_time_sec"))),
    )


def ending_line(status: dict[str, Any]) -> str:
    """How a run ended: `finished (exit code 0)`."""
    code = "" if status.get("exit_code") is None else f" (exit code {status['exit_code']})"
    return f"{status.get('state')}{code}" + (f": {status['message']}" if status.get("message") else "")


def _facts(*facts: tuple[str, str]) -> str:
    """The facts side by side, without those that have no value."""
    return "  ".join(f"{name} {value}".rstrip() for name, value in facts if value != NONE)
