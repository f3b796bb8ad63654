"""What is compared of several runs: which figures, which of them are comparable, who is best, when losses were reached.

Everything is computed from the runs' `training_metrics.json`; `metrics/compare/comparison.py` writes the page.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ddpm.run.config import TrainConfig, data_words
from ddpm.run.errors import RequestError
from ddpm.run.format import clean, ending_line, number
from ddpm.run.metrics import METRICS, names
from ddpm.run.paths import RunPaths
from metrics.live.status import ENDED, read_status
from metrics.run_data import epochs_frame, load_document
from metrics.run_state import RunState
from metrics.style import DASH
from metrics.tracker import NO_RECIPE

VALIDATION = ("val_loss_ema", "val_loss", "val_loss_swa")
TRAINING = ("loss_mean", "loss_median", "loss_min", "loss_max", "loss_std")
DEFAULTS = {field.name: field.default for field in dataclasses.fields(TrainConfig)}


@dataclass(frozen=True, eq=False)
class ComparedRun:
    """A run under the name that it has in the comparison; `frame` is as `metrics.run_data.epochs_frame` makes it.

    `short` is the name for crowded tables and plots: without a long beginning that all names share.
    """

    label: str
    short: str
    paths: RunPaths
    document: dict[str, Any]
    frame: pd.DataFrame
    status: dict[str, Any]  # what status.json says; empty where there is none

    def setting(self, name: str) -> Any:
        """A setting; of runs older than it its default, which is what they did."""
        return self.document["data"] if name == "data" else self.document["settings"].get(name, DEFAULTS[name])

    def said(self, name: str) -> str:
        """A setting as people read it; glyphs are never taken for EMNIST."""
        return data_words(self.document["data"]) if name == "data" else in_words(self.setting(name))

    @property
    def state(self) -> str:
        """`finished`, `stopped`, `failed`, `running`; `silent`: it says that it runs, but its heartbeat is old.

        `training_metrics.json` hears of an end only where the run could still write it.
        """
        if self.document["state"] != "running":
            return self.document["state"]
        now = time.time()
        age = now - (number(self.status.get("heartbeat")) or now)
        if RunState(self.label, now, self.status or None, heartbeat_age=age).dead:
            return "silent"
        return self.status["state"] if self.status.get("state") in ENDED else "running"

    @property
    def flops_per_image(self) -> float:
        """Forward and backward; NaN if it was not recorded."""
        return self.document["model"].get("flops_per_image") or math.nan


def in_words(value: Any) -> str:
    """A setting's value in a table."""
    return DASH if value is None else " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def read_runs(places: Iterable[RunPaths]) -> tuple[list[ComparedRun], list[str]]:
    """The runs that have figures, each once, and for each of the others a line that says why it is left out.

    Raises:
        RequestError: fewer than two are left.
    """
    found: dict[RunPaths, tuple[dict[str, Any], pd.DataFrame, dict[str, Any]]] = {}
    left_out = []
    for paths in dict.fromkeys(places):
        try:
            found[paths] = _read(paths)
        except RequestError as error:
            left_out.append(f"{paths.run}: {error}")
    names = [paths.run for paths in found]
    again = [names[:place].count(name) for place, name in enumerate(names)]  # from several output roots
    labels = [f"{name} ({times + 1})" if times else name for name, times in zip(names, again, strict=True)]
    each = zip(labels, short_names(labels), found.items(), strict=True)
    runs = [ComparedRun(label, short, paths, *figures) for label, short, (paths, figures) in each]
    if len(runs) < 2:
        why = "".join(f"; left out: {line}" for line in left_out)
        raise RequestError(f"a comparison needs two different runs that have figures, and there are {len(runs)}{why}")
    return runs, left_out


def short_names(labels: Sequence[str]) -> list[str]:
    """The names without a beginning of more than 12 letters that they share."""
    alike = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*labels, strict=False))
    shared = re.match(r".*[_-]|", "".join(letters[0] for letters in alike))[0]
    return [f"…{label[len(shared) :]}" if len(shared) > 12 else label for label in labels]


def _read(paths: RunPaths) -> tuple[dict[str, Any], pd.DataFrame, dict[str, Any]]:
    status = read_status(paths) or {}
    ended = " ".join(clean(ending_line(status))) if status.get("state") in ENDED else ""
    if ended and not paths.json.exists():
        raise RequestError(f"{ended}; it has no figures")
    document = load_document(paths)
    try:
        frame = epochs_frame(document)
        if not all(
            isinstance(document[part], dict) for part in ("settings", "model", "environment", "hyperparameters")
        ):
            raise TypeError("a part of it is not a mapping")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RequestError(f"{paths.json} cannot be read as metrics ({error!r})") from error
    if frame.empty:
        raise RequestError(f"{ended}; it has no figures" if ended else "no epoch has finished yet")
    return document, frame, status


# ---- one figure of one run -------------------------------------------------------------------------------------------


def best(run: ComparedRun, column: str) -> tuple[float, int | None]:
    """The figure that stands for the run, and its epoch: of losses and quality the best epoch's, else the whole run's.

    `samples_per_sec` is all images over all seconds of training; other speeds and the epoch's time are medians, memory
    is the largest, times of parts and skipped steps are sums; of the rest the last value counts. NaN if there is none.
    """
    values = run.frame[column].dropna()
    if values.empty:
        return math.nan, None
    metric = METRICS[column]
    if metric.over_epochs == "best":
        epoch = values.idxmax() if metric.larger_is_better else values.idxmin()
        return float(values[epoch]), int(epoch)
    if metric.over_epochs == "images_per_second":
        both = run.frame[["train_images", "train_time_sec"]].dropna().sum()
        return (both["train_images"] / both["train_time_sec"] if both["train_time_sec"] else math.nan), None
    return float(values.iloc[-1] if metric.over_epochs == "last" else getattr(values, metric.over_epochs)()), None


def final(run: ComparedRun, column: str) -> float:
    """The last value that was measured; NaN if there is none."""
    values = run.frame[column].dropna()
    return math.nan if values.empty else float(values.iloc[-1])


# ---- which runs can be compared, and who is best ---------------------------------------------------------------------


def comparable(runs: Sequence[ComparedRun], column: str) -> list[list[ComparedRun]]:
    """The runs in groups in which `column` measures the same."""
    groups: dict[str, list[ComparedRun]] = {}
    for run in runs:
        groups.setdefault(str([run.setting(name) for name in METRICS[column].same]), []).append(run)
    return list(groups.values())


@dataclass(frozen=True)
class Ranking:
    """`groups`: runs that can be compared, best first and those without a value last, with value and epoch."""

    column: str
    larger: bool
    groups: list[list[tuple[ComparedRun, float, int | None]]]


def parse_rank_by(text: str) -> tuple[str, bool]:
    """`rca`, `grad_norm:down` or `lr:up` as column and whether larger is better.

    Raises:
        RequestError: no such column of figures, or it is not known what is better.
    """
    column, _, direction = text.partition(":")
    if column not in METRICS or column in ("data", "epoch"):
        known = ", ".join(name for name in METRICS if name not in ("data", "epoch"))
        raise RequestError(f"--rank-by {text}: no such column of training_metrics.csv; there are {known}")
    if direction not in ("", "up", "down") or not (direction or METRICS[column].better):
        raise RequestError(
            f"--rank-by {text}: say what is better, {column}:down for smaller values or {column}:up for larger ones"
        )
    return column, direction == "up" if direction else METRICS[column].larger_is_better


def rank(runs: Sequence[ComparedRun], rank_by: str | None = None) -> Ranking:
    """Rank the runs by a column; left out, by the first of `val_loss_ema`, `val_loss` and `loss_mean` with a value.

    Raises:
        RequestError: no such column, or no run has a value there.
    """
    if rank_by is None:
        rank_by = loss_column(runs)
    column, larger = parse_rank_by(rank_by)
    with_values = [name for name in (*VALIDATION, *TRAINING[:1], *names(group="quality")) if has_values(runs, name)]
    if not has_values(runs, column):
        there = f"there are values of {', '.join(with_values)}" if with_values else "none has a loss either"
        raise RequestError(f"--rank-by {rank_by}: no run has a value there; {there}")

    def order(place: tuple[ComparedRun, float, int | None]) -> tuple[bool, float]:
        return math.isnan(place[1]), -place[1] if larger else place[1]

    groups = comparable(runs, column)
    return Ranking(
        column, larger, [sorted([(run, *best(run, column)) for run in group], key=order) for group in groups]
    )


def has_values(runs: Iterable[ComparedRun], column: str) -> bool:
    return any(run.frame[column].notna().any() for run in runs)


def loss_column(runs: Sequence[ComparedRun]) -> str:
    """The loss that most says how good a run is, of those that were measured."""
    return next((name for name in ("val_loss_ema", "val_loss") if has_values(runs, name)), "loss_mean")


# ---- when a loss was reached -----------------------------------------------------------------------------------------


def loss_levels(runs: Sequence[ComparedRun], column: str) -> list[float]:
    """Losses that tell the runs apart, largest first, rounded up to three digits: one on the way, the best of the
    worst run (which all reach), the best of all, and one between."""
    measured = [run.frame[column].dropna() for run in runs]
    measured = [values[values > 0] for values in measured]
    bests = [values.min() for values in measured if not values.empty]
    if not bests:
        return []
    start = min(values.iloc[0] for values in measured if not values.empty)
    worst, least = max(bests), min(bests)
    return sorted({_round_up(level) for level in (math.sqrt(start * worst), worst, math.sqrt(worst * least), least)})[
        ::-1
    ]


def _round_up(value: float) -> float:
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f"{math.ceil(round(value / unit, 6)) * unit:.3g}")


def reached(run: ComparedRun, column: str, level: float) -> dict[str, float]:
    """Seconds (of all starts), images and FLOP at the end of the first epoch whose loss is at most `level`, or NaN."""
    there = run.frame[run.frame[column] <= level]
    row = there.iloc[0] if len(there) else dict.fromkeys(("images_seen", "total_time_sec"), math.nan)
    images = float(row["images_seen"])
    return {"seconds": float(row["total_time_sec"]), "images": images, "flop": images * run.flops_per_image}


# ---- settings --------------------------------------------------------------------------------------------------------


def differing(sections: Sequence[dict[str, Any]]) -> tuple[list[str], list[str], int]:
    """Of mappings of one kind: the names whose values differ, those that not all have, and the number of the others."""
    names = dict.fromkeys(name for section in sections for name in section)
    partly = [name for name in names if any(name not in section for section in sections)]
    differ = [name for name in names if len({str(section[name]) for section in sections if name in section}) > 1]
    return differ, [name for name in partly if name not in differ], len(names) - len({*differ, *partly})


def trained_with(run: ComparedRun) -> dict[str, Any]:
    """The settings that say what is trained and how."""
    return {name: value for name, value in run.document["settings"].items() if name not in NO_RECIPE} | {
        "data": run.said("data")
    }


def over_seeds(runs: Sequence[ComparedRun]) -> list[list[ComparedRun]]:
    """The runs in groups that differ in nothing but the seed."""
    groups: dict[str, list[ComparedRun]] = {}
    for run in runs:
        settings = {name: value for name, value in trained_with(run).items() if name != "seed"}
        groups.setdefault(str(sorted(settings.items())), []).append(run)
    return list(groups.values())
