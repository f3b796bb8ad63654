"""Success criteria of a run: conditions on its published figures, in a small language that is parsed, never evaluated.

    val_loss_ema <= 0.13                           reached in any epoch: figures whose best epoch counts
    samples_per_sec >= 400                         of the whole run: the other figures
    rca >= 95%                                     shares and ratios may be in percent
    val_loss_ema <= 0.14 by epoch 4                the same, at the end of epoch 4 at the latest
    no new worst of val_loss_ema in epochs 3-6     no value there is worse than all before it
    val_loss_ema improves from epoch 5 on          each measured value is better than the one before it
    share of every class in 0.5..2 of uniform      of the classes that are drawn when none is asked for (evaluate.py)

Conditions are joined by `and`; a name may stand before them: `readable: rca >= 0.95 and cas >= 0.9`. Whether a run
meets its criteria is decided in metrics/criteria/verdicts.py.
"""

from __future__ import annotations

import difflib
import math
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from ddpm.run.errors import RequestError
from ddpm.run.metrics import FIGURES, METRICS, Metric

SIGNS = {"<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt}
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
EPOCH = r"[1-9]\d{0,8}"
FIGURE = r"(?P<figure>[A-Za-z]\w*)"
EXAMPLES = (
    "val_loss_ema <= 0.13", "val_loss_ema <= 0.14 by epoch 4", "no new worst of val_loss_ema in epochs 3-6",
    "val_loss_ema improves from epoch 5 on", "share of every class in 0.5..2 of uniform",
)  # fmt: skip


@dataclass(frozen=True)
class Condition(ABC):
    """A part of a criterion; `text` as it was written. A subclass has a `form`, the pattern of its text."""

    text: str
    form: ClassVar[str]

    @classmethod
    @abstractmethod
    def read(cls, text: str, parts: Mapping[str, str]) -> Condition:
        """The condition that `text` says; `parts`: the groups of the pattern `form`."""

    @property
    def metric(self) -> Metric | None:
        """The figure of the epochs' rows that it is about, if it is about one."""
        return None

    @property
    def last_named(self) -> int:
        """The last epoch that it names; 0 if it names none."""
        return 0

    @property
    def window(self) -> tuple[int, int] | None:
        """The first and last epoch in which its figure must be measured, if it names both."""
        return None

    @property
    def problem(self) -> str | None:
        """Why it makes no sense, though its form is right; None if it does."""
        return None


@dataclass(frozen=True)
class OfFigure(Condition):
    """A condition on one figure of the epochs' rows."""

    name: str

    @property
    def metric(self) -> Metric:
        return METRICS[self.name]

    @property
    def undirected(self) -> str | None:
        if self.metric.better is None:
            return f"of {self.name} neither lower nor higher is better; compare it with a number"
        return None


@dataclass(frozen=True)
class Threshold(OfFigure):
    """`val_loss_ema <= 0.14 by epoch 4`; `by` is None without a deadline."""

    sign: str
    value: float
    by: int | None = None
    form: ClassVar = rf"{FIGURE} ?(?P<sign><=|>=|<|>) ?(?P<value>{NUMBER}%?)(?: by epoch (?P<by>{EPOCH}))?"

    @classmethod
    def read(cls, text: str, parts: Mapping[str, str]) -> Threshold:
        by = int(parts["by"]) if parts["by"] else None
        number, percent, _ = parts["value"].partition("%")
        if percent and not METRICS[parts["figure"]].in_percent:
            raise ValueError(f"{parts['figure']} is no share: write a number without %")
        return cls(text, parts["figure"], parts["sign"], float(number) / (100 if percent else 1), by)

    def holds(self, value: Any) -> Any:
        """Is the value, or each of an array, on the right side?"""
        return SIGNS[self.sign](value, self.value)

    @property
    def of_weights(self) -> bool:
        """Is its figure one of the weights at the end of an epoch, and not of the run?"""
        return self.metric.over_epochs == "best"

    @property
    def last_named(self) -> int:
        return self.by or 0

    @property
    def window(self) -> tuple[int, int] | None:
        return (1, self.by) if self.by else None

    @property
    def problem(self) -> str | None:
        better = self.metric.better
        if better and (self.sign[0] == ">") != self.metric.larger_is_better:
            right = self.text.translate(str.maketrans("<>", "><"))
            return f"of {self.name} {better} is better: write {right}"
        if not math.isfinite(self.value):
            return f"{self.value} is not finite"
        return self.metric.out_of_range(self.value)


@dataclass(frozen=True)
class NoNewWorst(OfFigure):
    """`no new worst of val_loss_ema in epochs 3-6`, both included."""

    first: int
    last: int
    form: ClassVar = rf"no new worst of {FIGURE} in epochs (?P<first>{EPOCH}) ?- ?(?P<last>{EPOCH})"

    @classmethod
    def read(cls, text: str, parts: Mapping[str, str]) -> NoNewWorst:
        return cls(text, parts["figure"], int(parts["first"]), int(parts["last"]))

    @property
    def last_named(self) -> int:
        return self.last

    @property
    def window(self) -> tuple[int, int]:
        return self.first, self.last

    @property
    def problem(self) -> str | None:
        wrong = self.first > self.last
        return f"{self.first}-{self.last} is no range of epochs: give the first one first" if wrong else self.undirected


@dataclass(frozen=True)
class Improves(OfFigure):
    """`val_loss_ema improves from epoch 5 on`"""

    first: int
    form: ClassVar = rf"{FIGURE} improves from epoch (?P<first>{EPOCH}) on"

    @classmethod
    def read(cls, text: str, parts: Mapping[str, str]) -> Improves:
        return cls(text, parts["figure"], int(parts["first"]))

    @property
    def last_named(self) -> int:
        return self.first

    @property
    def problem(self) -> str | None:
        return self.undirected


@dataclass(frozen=True)
class ClassShares(Condition):
    """`share of every class in 0.5..2 of uniform`: share times the number of classes, between these."""

    low: float
    high: float
    form: ClassVar = rf"share of every class in (?P<low>{NUMBER}) ?\.\. ?(?P<high>{NUMBER}) of uniform"

    @classmethod
    def read(cls, text: str, parts: Mapping[str, str]) -> ClassShares:
        return cls(text, float(parts["low"]), float(parts["high"]))

    @property
    def problem(self) -> str | None:
        if not 0 <= self.low <= self.high:
            return f"{self.low:g}..{self.high:g} is no range: give the smaller number first, as in 0.5..2"
        if not self.low <= 1 <= self.high:
            return f"the mean over the classes is 1, so that not every class can be in {self.low:g}..{self.high:g}"
        return None


@dataclass(frozen=True)
class Criterion:
    """Conditions that are all to be met, under a name: the one given, else the text itself."""

    name: str
    conditions: tuple[Condition, ...]

    @property
    def text(self) -> str:
        return " and ".join(condition.text for condition in self.conditions)

    @property
    def of_weights(self) -> tuple[Threshold, ...]:
        """Its conditions that compare a figure of the weights at the end of an epoch with a number: not those on the
        course of the run, its speed or its evaluation."""
        return tuple(each for each in self.conditions if isinstance(each, Threshold) and each.of_weights)

    def met_by_weights(self, row: Mapping[str, Any]) -> bool:
        """Do the weights at the end of an epoch meet it, by its row, deadlines aside? False where the row lacks a
        figure, or no condition is one on weights."""
        values = [(each, each.metric.of(row)) for each in self.of_weights]
        return bool(values) and all(value is not None and each.holds(value) for each, value in values)


# ---- reading ---------------------------------------------------------------------------------------------------------


@cache
def parse_criteria(texts: tuple[str, ...]) -> tuple[Criterion, ...]:
    """The criteria that these texts, such as `name: condition and condition`, say.

    Raises:
        RequestError: one cannot be read, names no figure, or has the name of another.
    """
    found = tuple(map(parse_criterion, texts))
    names = [criterion.name for criterion in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RequestError(f"two criteria are called {twice!r}: give each a name of its own")
    return found


def parse_criterion(text: str) -> Criterion:
    """One criterion.

    Raises:
        RequestError: it cannot be read, or names no figure; says how to write it.
    """
    words = " ".join(text.split())
    name, colon, rest = words.partition(": ")
    parts = (rest if colon else words).split(" and ")
    try:
        if colon and not name:
            raise ValueError("there is no name before the colon")
        return Criterion(name if colon else words, tuple(map(_condition, parts)))
    except ValueError as error:
        raise RequestError(f"criterion {words!r}: {error}") from None


def _condition(text: str) -> Condition:
    """Raises ValueError, without the criterion that it stands in."""
    for kind in (Threshold, NoNewWorst, Improves, ClassShares):
        if found := re.fullmatch(kind.form, text, re.ASCII):
            parts = found.groupdict()
            _check_figure(parts.get("figure"))
            condition = kind.read(text, parts)
            if condition.problem:
                raise ValueError(condition.problem)
            return condition
    raise ValueError(f"{text!r} is no condition; write one like {', '.join(map(repr, EXAMPLES))}")


def _check_figure(name: str | None) -> None:
    if name and name not in FIGURES:
        near = difflib.get_close_matches(name, FIGURES, 3, 0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "metrics/README.md lists them"
        raise ValueError(f"there is no figure {name}; {hint}")


def criteria_texts(content: Any) -> list[str]:
    """The criteria of a plan as texts: a list, each item a text or `name: text`, or a mapping of names to texts.

    Raises:
        ValueError: it is neither.
    """
    items = [content] if isinstance(content, dict) else content
    texts: list[str] = []
    for item in items if isinstance(items, list) else [None]:
        pairs = [(f"{name}: ", text) for name, text in item.items()] if isinstance(item, dict) else [("", item)]
        for prefix, text in pairs:
            if not isinstance(text, str):
                raise ValueError(f"criteria: must be a list such as [{EXAMPLES[0]!r}], each with a name if you like")
            texts.append(prefix + text)
    return texts
