"""Validation of values read from a run's files. A value of the wrong kind, from damage or another program, becomes
None: it is shown as missing and never used as a figure.

Without torch, pandas and NumPy: the dashboard reads with it every second.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ddpm.run.config import TrainConfig, in_todays_words
from ddpm.run.datasets import is_published_name
from ddpm.run.metrics import DATA as DATA_SET
from ddpm.run.metrics import METRICS, names

Kind = Callable[[Any], Any]

LAST_STAMP = 2.5e11  # seconds since 1970, in the year 9892: Python's dates end with the year 9999


def text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def data_set(value: Any) -> str | None:
    """The name of a data set, as files hold it."""
    return value if isinstance(value, str) and is_published_name(value) else None


def flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def figure(value: Any) -> int | float | None:
    """A finite number."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and -1e308 < value < 1e308
    return value if known else None


def amount(value: Any) -> int | float | None:
    """A finite number that is not negative."""
    return value if figure(value) is not None and value >= 0 else None


def interval(value: Any) -> list[float] | None:
    """The two ends of an interval within 0 to 1, the lower one first."""
    known = isinstance(value, list) and len(value) == 2 and None not in map(amount, value)
    return value if known and value[0] < value[1] <= 1 else None


def count(value: Any) -> int | None:
    """A whole number that is not negative, and that 64 bits can hold."""
    known = amount(value)
    return int(known) if known is not None and known < 2**63 and known == int(known) else None


def stamp(value: Any) -> float | None:
    """Seconds since 1970."""
    return value if amount(value) is not None and value < LAST_STAMP else None


def anything(kind: type) -> Kind:
    """Any value of this Python type."""
    return lambda value: value if isinstance(value, kind) else None


def one_of(*values: str) -> Kind:
    """One of these texts."""
    return lambda value: value if isinstance(value, str) and value in values else None


def every(kind: Kind) -> Kind:
    """A list of one kind; empty if any item is of another kind."""

    def listed(value: Any) -> list[Any]:
        items = [kind(item) for item in value] if isinstance(value, list) else []
        return [] if None in items else items

    return listed


def some(kind: Kind) -> Kind:
    """A list of one kind; items of another kind are dropped."""
    return lambda value: [
        known for item in (value if isinstance(value, list) else []) if (known := kind(item)) is not None
    ]


def record(**kinds: Kind) -> Kind:
    """An object with only the named fields, each of its kind."""

    def fields(value: Any) -> dict[str, Any] | None:
        if not isinstance(value, dict):
            return None
        return {name: kind(value[name]) for name, kind in kinds.items() if name in value}

    return fields


def mapping(kind: Kind) -> Kind:
    """An object of any names with values of one kind; others are dropped."""
    return lambda value: {
        name: known
        for name, item in (value.items() if isinstance(value, dict) else ())
        if (known := kind(item)) is not None
    }


# ---- settings --------------------------------------------------------------------------------------------------------


def settings(value: Any) -> dict[str, Any]:
    """The settings of a run; one that is not of its field's type becomes None. Texts and numbers of settings that this
    version does not know stay."""
    hints, given = _hints(), in_todays_words(value) if isinstance(value, dict) else {}
    return {name: item if _fits(item, hints.get(name, str | int | float)) else None for name, item in given.items()}


def is_setting(name: str) -> bool:
    """Is there a setting of this name in this version?"""
    return name in _hints()


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(TrainConfig)


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in inner)
    if origin is tuple:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if hint is float:
        return figure(value) is not None
    if hint is int:
        return figure(value) is not None and isinstance(value, int)
    return isinstance(value, str if hint is Path else hint)


# ---- rows of figures -------------------------------------------------------------------------------------------------

CELLS = {**dict.fromkeys(METRICS, amount), **dict.fromkeys(names(whole=True), count), DATA_SET.name: text}


def rows(given: Iterable[Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """The valid rows of epochs, sorted by epoch, and what was dropped, in words such as `2 rows of epochs`.

    A cell of the wrong kind becomes None. A row without an epoch, or whose `data` is not a text, is dropped: its
    columns have shifted. Of two rows of one epoch the later one counts. Two rows are both dropped if a column that can
    only grow decreases from one to the other, and no row between has it.
    """
    found: dict[int, dict[str, Any]] = {}
    lost, cells = 0, 0
    for item in given:
        row = item if isinstance(item, Mapping) else {}
        epoch, data = count(row.get("epoch")), row.get("data")
        if not epoch or (data is not None and text(data) is None):
            lost += 1
            continue
        known = {name: CELLS.get(name, amount)(value) for name, value in row.items()}
        cells += sum(known[name] is None and value is not None for name, value in row.items())
        lost += epoch in found
        found[epoch] = known
    ordered = [found[epoch] for epoch in sorted(found)]
    while odd := _odd(ordered):  # again, as those that are left may not fit either
        ordered = [row for index, row in enumerate(ordered) if index not in odd]
        lost += len(odd)
    words = [f"{lost} row{'s' * (lost != 1)} of epochs"] if lost else []
    return ordered, words + ([f"{cells} cell{'s' * (cells != 1)}"] if cells else [])


def _odd(ordered: Sequence[Mapping[str, Any]]) -> set[int]:
    """The places of rows between which a column that can only grow decreases.

    Optional ones are left out: energy and GPU-hours are read from files that may be lost, or a clock may be set back.
    """
    odd = set()
    for name in names(grows=True, optional=False):
        known = [(index, row[name]) for index, row in enumerate(ordered) if row.get(name) is not None]
        for (earlier, before), (later, value) in pairwise(known):
            odd |= {earlier, later} if value < before and not math.isclose(value, before) else set()
    return odd
