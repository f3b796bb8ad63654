"""Numbers and times as people read them: one form each, for every page and program. A missing value reads "–"."""

from __future__ import annotations

import math
import re
import time
from typing import Any

from ddpm.run import kinds
from ddpm.run.metrics import DASH

ESCAPES = re.compile(r"\x1b\[[0-9;:?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-Z\\-_]?")


def number(value: Any) -> float | None:
    """`value` if it is a number that a float can hold, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def finite(value: Any) -> float | None:
    """`value` if it is a finite number, else None."""
    value = number(value)
    return value if value is not None and math.isfinite(value) else None


def significant(value: Any, digits: int = 6) -> str:
    """At most `digits` significant digits, with thousands separators: `12,345`, `0.0123`, `1e-4`."""
    value = finite(value)
    if value is None:
        return DASH
    if 0 < abs(value) < 1e-3:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
    rounded = f"{value + 0:,.{digits}g}"  # + 0 takes the sign from a -0
    return f"{float(rounded):,.0f}" if "e" in rounded and abs(value) < 1e15 else rounded


def shown(value: Any, form: str = ".4g", unit: str = "") -> str:
    """A number in the Python format `form`, with its unit: `shown(0.5, ".0%")`."""
    value = finite(value)
    return DASH if value is None else f"{value:{form}}{unit}"


def count(value: Any) -> str:
    """A whole number, with thousands separators."""
    return shown(value, ",.0f")


def percent(value: Any) -> str:
    """A share from 0 to 1: `41.2%`."""
    return shown(value, ".1%")


def duration(seconds: Any) -> str:
    """`50s`, `15m 14s`, `4h 50m 20s`, `2d 03h 04m`."""
    value = finite(seconds)
    if value is None:
        return DASH
    minutes, second = divmod(max(0, round(value)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}h {minute:02}m"
    if hours:
        return f"{hours}h {minute:02}m {second:02}s"
    return f"{minutes}m {second:02}s" if minutes else f"{second}s"


def timestamp(stamp: Any) -> str:
    """Seconds since 1970 as a page shows them: `2026-05-04 01:00:00 UTC`."""
    stamp = kinds.stamp(stamp)
    return DASH if stamp is None else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(stamp))


def clock(stamp: Any, form: str = "%H:%M:%S") -> str:
    """Seconds since 1970 as local time, for live displays."""
    stamp = kinds.stamp(stamp)
    return DASH if stamp is None else time.strftime(form, time.localtime(stamp))


def plural(number: int, noun: str) -> str:
    """`1 epoch`, `2 epochs`, `2 classes`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "es" if noun.endswith("s") else "s")


def clean(message: Any) -> list[str]:
    """The lines of a message without escape codes and control characters; lone surrogates are backslash-escaped."""
    text = ESCAPES.sub("", str(message)).encode(errors="backslashreplace").decode().expandtabs(4)
    return ["".join(c for c in line if c.isprintable()).rstrip() for line in text.splitlines()] or [""]
