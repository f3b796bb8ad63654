"""The runs of a comparison: their figures, which of them are comparable, their ranking, when losses were reached."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddpm.run.config import NO_RECIPE, TrainConfig
from ddpm.run.datasets import TITLES
from ddpm.run.errors import RequestError
from ddpm.run.metrics import (
    DASH,
    DATA,
    FIGURES,
    IMAGES_SEEN,
    METRICS,
    TOTAL_TIME_SEC,
    Metric,
    headline,
)
from ddpm.run.paths import RunPaths
from metrics import trends
from metrics.run_data import RunData
from metrics.run_reader import read_run

DEFAULTS = {field.name: field.default for field in dataclasses.fields(TrainConfig)}


@dataclass(frozen=True, eq=False)
class ComparedRun:
    """A run under the name that it has in the comparison.

    `short`: the name without a long prefix that all names share, for crowded tables and plots.
    """

    label: str
    short: str
    published: RunData

    @property
    def paths(self) -> RunPaths:
        return self.published.paths

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.published.rows

    def setting(self, name: str) -> Any:
        """A setting; for a run older than the setting its default, which is what the run used."""
        return self.published.data if name == DATA.name else self.published.settings.get(name, DEFAULTS[name])

    def said(self, name: str) -> str:
        """A setting as text; the data in words."""
        return self.published.data_words if name == DATA.name else setting_words(self.setting(name))

    @property
    def data(self) -> tuple[str, ...]:
        """What two runs of the same data share: their words, and of a folder, as others may have its name, its
        classes."""
        words, names = self.published.data_words, self.published.document["data_summary"].get("class_names")
        return (words, *(names or ())) if self.published.data not in TITLES else (words,)

    @property
    def recipe(self) -> dict[str, Any]:
        """The settings that say what is trained and how."""
        settings = {name: value for name, value in self.published.settings.items() if name not in NO_RECIPE}
        return settings | {DATA.name: self.published.data_words}

    def learned_with(self, timed: bool = False) -> dict[str, Any]:
        """The recipe without the seed, with the defaults of settings that are newer than the run: that is what it used.

        The global batch is in it, if that was recorded, and not how processes and steps share it, unless speeds are
        compared (`timed`).
        """
        whole = {name: value for name, value in DEFAULTS.items() if name not in NO_RECIPE} | self.recipe
        batch = self.published.document["hyperparameters"].get("global_batch_size")
        shares = ("batch_size", "grad_accum") if batch and not timed else ()
        learned = {name: value for name, value in whole.items() if name not in ("seed", *shares)}
        learned |= {"global_batch_size": batch} if batch else {}
        return learned | ({"world_size": self.published.environment.get("world_size")} if timed else {})

    @property
    def flops_per_image(self) -> float:
        """Forward and backward; NaN if it was not recorded."""
        return self.published.document["model"].get("flops_per_image") or math.nan

    def figure(self, metric: Metric) -> Figure:
        """The figure of the whole run: of losses and quality the best epoch's, otherwise by `metric.over_epochs`."""
        if metric.over_epochs == "best":
            found = trends.best(self.published.curve(metric))
            return Figure(self, found.value, found.epoch) if found else Figure(self)
        value = trends.over_epochs(self.rows, metric)
        return Figure(self) if value is None else Figure(self, value)

    def final(self, metric: Metric) -> float:
        """The last value that was measured; NaN if there is none."""
        last = self.published.curve(metric).last
        return last.value if last else math.nan


@dataclass(frozen=True)
class Figure:
    """A figure of a run. `value` is NaN if nothing was measured; `epoch` is None if it covers all epochs."""

    run: ComparedRun
    value: float = math.nan
    epoch: int | None = None

    @property
    def known(self) -> bool:
        return not math.isnan(self.value)

    def text(self, metric: Metric) -> str:
        """`0.12345 (epoch 3)`."""
        return metric.text(self.value) + (f" (epoch {self.epoch})" if self.epoch else "")


def setting_words(value: Any) -> str:
    """A setting's value in a table."""
    return DASH if value is None else " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def delta(metric: Metric, value: float, reference: float) -> str:
    """`-0.0123`: how much `value` is above (+) or below (-) `reference`."""
    sign = "+" if value > reference else "-" if value < reference else "±"
    return sign + trends.gap_words(metric, abs(value - reference))


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_runs(places: Iterable[RunPaths]) -> tuple[list[ComparedRun], list[str]]:
    """The runs that have figures, each once, and for each of the others a line that says why it is left out.

    Raises:
        RequestError: fewer than two are left.
    """
    published = [read_run(paths) for paths in dict.fromkeys(places)]
    reasons = [why_not(run) for run in published]
    left_out = [f"{run.run}: {why}" for run, why in zip(published, reasons, strict=True) if why]
    runs = named([run for run, why in zip(published, reasons, strict=True) if not why])
    if len(runs) < 2:
        why = "".join(f"; left out: {line}" for line in left_out)
        raise RequestError(f"a comparison needs two different runs that have figures, and there are {len(runs)}{why}")
    return runs, left_out


def why_not(run: RunData) -> str | None:
    """Why a run cannot be compared; None if it can."""
    if run.unreadable and (run.rows or os.path.lexists(run.paths.json)):
        return run.unreadable
    if run.rows:
        return None
    if run.status and run.state != "running":
        return f"it has no epoch: {run.condition.note}"
    return run.unreadable or f"no epoch has finished yet: its state is {run.state}"


def named(published: Sequence[RunData]) -> list[ComparedRun]:
    """The runs with unique names: runs of one name (from several output roots) are numbered."""
    names = [run.run for run in published]
    again = [names[:place].count(name) for place, name in enumerate(names)]
    labels = [f"{name} ({times + 1})" if times else name for name, times in zip(names, again, strict=True)]
    return list(map(ComparedRun, labels, short_names(labels), published))


def short_names(labels: Sequence[str]) -> list[str]:
    """The names without the prefix that they share, if it is longer than 12 letters."""
    alike = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*labels, strict=False))
    shared = re.match(r".*[_-]|", "".join(letters[0] for letters in alike))[0]
    return [f"…{label[len(shared) :]}" if len(shared) > 12 else label for label in labels]


# ---- which runs can be compared, and who is best ---------------------------------------------------------------------


def has_values(runs: Iterable[ComparedRun], metric: Metric) -> bool:
    return any(metric.of(row) is not None for run in runs for row in run.rows)


def values_of(runs: Iterable[ComparedRun], name: str) -> list[str]:
    """The different values of a setting, as text."""
    return list(dict.fromkeys(run.said(name) for run in runs))


def setting_apart(runs: Iterable[ComparedRun], metric: Metric) -> list[str]:
    """The settings that differ between the runs and change what the figure measures."""
    return [name for name in metric.same if len(values_of(runs, name)) > 1]


def settings_of_groups(metric: Metric) -> list[str]:
    """The settings that tell groups of `comparable` runs apart."""
    return list(dict.fromkeys((DATA.name, *metric.same)))


def comparable(runs: Sequence[ComparedRun], metric: Metric) -> list[list[ComparedRun]]:
    """The runs in groups; within a group the figure measures the same thing, on the same data."""
    return _grouped(runs, [(run.data, *(run.said(name) for name in metric.same)) for run in runs])


def by_data(runs: Sequence[ComparedRun]) -> list[list[ComparedRun]]:
    """The runs in groups of the same data."""
    return _grouped(runs, [run.data for run in runs])


def over_seeds(runs: Sequence[ComparedRun], timed: bool = False) -> list[list[ComparedRun]]:
    """The runs in groups; within a group only the seed differs, and the machine, unless speeds are compared."""
    return _grouped(runs, [str(sorted(run.learned_with(timed).items())) for run in runs])


def _grouped(runs: Sequence[ComparedRun], keys: Iterable[Hashable]) -> list[list[ComparedRun]]:
    groups: dict[Hashable, list[ComparedRun]] = {}
    for run, key in zip(runs, keys, strict=True):
        groups.setdefault(key, []).append(run)
    return list(groups.values())


@dataclass(frozen=True)
class Ranking:
    """`groups`: figures of runs that can be compared, the best first and those without a value last."""

    metric: Metric
    larger: bool
    groups: list[list[Figure]]

    @property
    def direction(self) -> str:
        return f"{'larger' if self.larger else 'smaller'} is better"


def best_first(value: float, larger: bool) -> tuple[bool, float]:
    """A key to sort by: the best value first, NaN last."""
    return math.isnan(value), -value if larger else value


def parse_rank_by(text: str) -> tuple[Metric, bool]:
    """Parse `rca`, `grad_norm:down` or `lr:up` into the figure and whether larger is better.

    Raises:
        RequestError: no such column of figures, or its better direction is neither known nor given.
    """
    column, _, direction = text.partition(":")
    if column not in FIGURES:
        raise RequestError(f"--rank-by {text}: no such column of training_metrics.csv; there are {', '.join(FIGURES)}")
    metric = METRICS[column]
    if direction not in ("", "up", "down") or not (direction or metric.better):
        raise RequestError(
            f"--rank-by {text}: say what is better, {column}:down for smaller values or {column}:up for larger ones"
        )
    return metric, direction == "up" if direction else metric.larger_is_better


def rank(runs: Sequence[ComparedRun], rank_by: str | None = None) -> Ranking:
    """Rank the runs by a column; left out, by the first of `val_loss_ema`, `val_loss` and `loss_mean` with a value.

    Raises:
        RequestError: no such column, or no run has a value there.
    """
    metric, larger = parse_rank_by(rank_by or trends.main_loss([run.rows for run in runs]).name)
    if not has_values(runs, metric):
        there = ", ".join(other.name for other in headline() if has_values(runs, other))
        there = f"there are values of {there}" if there else "none has a loss either"
        raise RequestError(f"--rank-by {rank_by or metric.name}: no run has a value there; {there}")
    figures = [[run.figure(metric) for run in group] for group in comparable(runs, metric)]
    groups = [sorted(group, key=lambda figure: best_first(figure.value, larger)) for group in figures]
    return Ranking(metric, larger, groups)


# ---- when a loss was reached -----------------------------------------------------------------------------------------


def loss_levels(runs: Sequence[ComparedRun], loss: Metric) -> list[float]:
    """Up to four losses at which the runs differ, largest first, rounded up to three digits: the worst run's best (all
    reach it), the best of all runs, one between these two, and one between the first epoch and the worst run's best."""
    curves = [run.published.curve(loss) for run in runs]
    measured = [values for curve in curves if len(values := curve.values[curve.values > 0])]
    if not measured:
        return []
    start, bests = min(values[0] for values in measured), [values.min() for values in measured]
    worst, least = max(bests), min(bests)
    levels = (math.sqrt(start * worst), worst, math.sqrt(worst * least), least)
    return sorted({_round_up(level) for level in levels}, reverse=True)


def _round_up(value: float) -> float:
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f"{math.ceil(round(value / unit, 6)) * unit:.3g}")


def reached(run: ComparedRun, loss: Metric, level: float) -> dict[str, float]:
    """Seconds (of all epochs), images and FLOP at the end of the first epoch whose loss is at most `level`, or NaN."""
    found = trends.first_as_good(run.published.curve(loss), level)
    row = run.published.row(found.epoch) if found else {}
    seconds, images = (metric.of(row) or math.nan for metric in (TOTAL_TIME_SEC, IMAGES_SEEN))
    return {"seconds": seconds, "images": images, "flop": images * run.flops_per_image}


# ---- settings --------------------------------------------------------------------------------------------------------


def differing(sections: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str], int]:
    """Compare mappings. Returns names whose values differ, other names that some lack, and the number of equal ones."""
    names = dict.fromkeys(name for section in sections for name in section)
    partly = [name for name in names if any(name not in section for section in sections)]
    differ = [name for name in names if len({str(section[name]) for section in sections if name in section}) > 1]
    return differ, [name for name in partly if name not in differ], len(names) - len({*differ, *partly})
