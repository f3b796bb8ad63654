"""What happened in a run, and when: starts, first checkpoint, new bests, learning rate, plateaus, target, end.

Found in the rows of `training_metrics.json`; the wall-clock times are those of `events.jsonl`, where it has them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from ddpm.paths import RunPaths
from ddpm.rules import LARGER_IS_BETTER, parse_target
from metrics.markdown import table
from metrics.text import number
from metrics.tracker import human_time
from metrics.trend import Phase, new_bests, reach, thinned

T = TypeVar("T")
DASH = "\N{EN DASH}"  # stands for a value that is missing

MOST = 8  # new bests that are told; 1000 epochs may have 1000
MOST_OF_A_KIND = 12  # starts or changes of the learning rate that are told
CHANGE = 0.01  # relative change of the learning rate from row to row that is told, where the schedule has steps
LOGGED = (b'"kind": "epoch"', b'"checkpoint: ')  # what lines of events.jsonl are read for


@dataclass(frozen=True)
class Milestone:
    """`time` is a stamp (seconds since 1970), `seconds` are of training over all starts; None if not known."""

    what: str
    time: float | None = None
    seconds: float | None = None
    epoch: int | None = None
    images: float | None = None


@dataclass(frozen=True)
class Clock:
    """When epochs ended and the first checkpoint of a run was whole, as stamps; `saved` is that one's (time, step)."""

    epochs: dict[int, float] = field(default_factory=dict)
    saved: tuple[float, int] | None = None


def read_clock(paths: RunPaths) -> Clock:
    """What `events.jsonl` says of times; lines that are torn are left out. An epoch that was trained again ended when
    it last did."""
    try:
        lines = paths.events.read_bytes().splitlines()
    except OSError:
        return Clock()
    epochs: dict[int, float] = {}
    saved = None
    for line in lines:
        if not any(part in line for part in LOGGED):
            continue
        try:
            event = json.loads(line)
            stamp = float(event["time"])
            if event["kind"] == "epoch":
                epochs[int(event["row"]["epoch"])] = stamp
            elif saved is None and (step := re.search(r"step_(\d+)$", str(event["message"]))):
                saved = (stamp, int(step[1]))
        except (ValueError, KeyError, TypeError):
            continue
    return Clock(epochs, saved)


class Story:
    """Collects the milestones of a run.

    Args:
        document: as `metrics.document.load_document` gives it.
        frame: its rows, as `metrics.document.epochs_frame` gives them.
    """

    def __init__(self, document: dict[str, Any], frame: pd.DataFrame, clock: Clock) -> None:
        self._document, self._frame, self._clock = document, frame, clock
        self.milestones: list[Milestone] = []
        self.notes: list[str] = []  # what was left out
        counted = frame[["images_seen", "step"]].dropna()
        counted = counted[counted["step"] > 0]
        self._batch = float((counted["images_seen"] / counted["step"]).iloc[-1]) if len(counted) else None

    def in_order(self) -> list[Milestone]:
        """By images seen; what happened at the same place stays in the order in which it was told."""
        return sorted(self.milestones, key=lambda one: -1.0 if one.images is None else one.images)

    def at_epoch(self, epoch: int, what: str) -> None:
        """It happened at the end of an epoch that has a row, or within it."""
        row = self._frame.loc[epoch]
        seconds, images = (None if pd.isna(value) else float(value) for value in row[["total_time_sec", "images_seen"]])
        self.milestones.append(Milestone(what, self._clock.epochs.get(epoch), seconds, epoch, images))

    def at_step(self, step: float | None, what: str, time: float | None) -> None:
        """It happened after a step. The time of training is known where a row was made there, and before the first."""
        if step is None:
            self.milestones.append(Milestone(what, time))
            return
        before = self._frame[self._frame["step"] <= step]
        at_row = len(before) and before["step"].iloc[-1] == step
        seconds = float(before["total_time_sec"].iloc[-1]) if at_row else 0.0 if step == 0 else math.nan
        images = 0.0 if step == 0 else step * self._batch if self._batch else None
        epoch = int(before.index[-1]) if len(before) else 0
        self.milestones.append(Milestone(what, time, None if math.isnan(seconds) else seconds, epoch, images))

    def starts(self) -> None:
        """Every start, and why it was needed; of many the first and the last, and some between."""
        starts = self._document["starts"]
        for place, start in _few(list(enumerate(starts)), MOST_OF_A_KIND):
            step, cause = number(start.get("step")), start.get("cause") or "the cause is not known"
            what = "started" if place == 0 and not step else f"start {place + 1}, from step {_whole(step)}: {cause}"
            self.at_step(step, what, _stamp(start.get("time")))
        if len(starts) > MOST_OF_A_KIND:
            self.notes.append(f"{MOST_OF_A_KIND} of {len(starts)} starts are shown.")

    def first_checkpoint(self) -> None:
        if self._clock.saved:
            time, step = self._clock.saved
            self.at_step(step, f"first checkpoint: `step_{step:08d}`", time)

    def bests(self, column: str) -> None:
        """New bests of a loss; of many the first and the last, and some between."""
        found = new_bests(self._frame[column])
        shown = thinned(found, MOST)
        before = None
        for epoch, value in shown.items():
            change = (
                f"new best `{column}`: {value:.5g} ({value / before - 1:+.1%} on the one above)" if before else None
            )
            self.at_epoch(epoch, change or f"first `{column}`: {value:.5g}")
            before = value
        if len(shown) < len(found):
            self.notes.append(
                f"{len(shown)} of {len(found)} new bests are shown: the first, the last, and some between, evenly by "
                "the logarithm of the epoch."
            )

    def learning_rate(self) -> None:
        """The end of warm-up; steps of the learning rate, or of a cosine when it was halved and when it began anew."""
        settings, lr = self._document["settings"], self._frame["lr"].dropna()
        warmup = number(settings.get("warmup_steps")) or 0
        step = self._frame["step"].reindex(lr.index)
        warm = lr[step >= warmup]
        if warmup and len(warm):
            self.at_epoch(
                warm.index[0], f"warm-up over, after step {_whole(warmup)}: learning rate {lr[warm.index[0]]:.3g}"
            )
        changes = []
        smooth = str(settings.get("lr_schedule")).startswith("cosine")
        for (_, old), (epoch, new) in zip(warm.iloc[:-1].items(), warm.iloc[1:].items(), strict=True):
            if new > old * (1 + CHANGE):
                word = "a cycle of the learning rate has begun" if smooth else "learning rate raised"
            elif not smooth and new < old * (1 - CHANGE):
                word = "learning rate lowered"
            else:
                continue
            changes.append((epoch, f"{word}: {old:.3g} → {new:.3g}"))
        for epoch, what in _few(changes, MOST_OF_A_KIND):
            self.at_epoch(epoch, what)
        if len(changes) > MOST_OF_A_KIND:
            self.notes.append(f"{MOST_OF_A_KIND} of {len(changes)} changes of the learning rate are shown.")
        if smooth and len(warm):
            half = warm[warm <= warm.max() / 2]
            if len(half):
                words = f"learning rate at half its largest or less: {warm.max():.3g} → {half.iloc[0]:.3g}"
                self.at_epoch(half.index[0], words)

    def plateaus(self, column: str, phases: Sequence[Phase]) -> None:
        for phase in phases:
            if phase.kind == "plateau":
                words = f"plateau of `{column}` reached: about {phase.mean:.5g} up to epoch {phase.rate.last}"
                self.at_epoch(phase.rate.first, words)

    def averaging(self) -> None:
        first = number(self._document["settings"].get("swa_start_epoch"))
        if first and first in self._frame.index:
            self.at_epoch(int(first), "stochastic weight averaging (SWA) begun")

    def skipped_steps(self) -> None:
        counts = self._frame["nonfinite_steps"]
        counts = counts[counts > 0]
        if len(counts):
            words = f"first steps skipped, their gradient not finite: {counts.iloc[0]:.0f}"
            words += f"; {counts.sum():.0f} in {len(counts)} epoch(s) up to now"
            self.at_epoch(counts.index[0], words)

    def target(self, name: str, value: float, epoch: int | None) -> None:
        if epoch is not None:
            self.at_epoch(epoch, f"target reached: `{name}` {self._frame[name][epoch]:.5g}, asked for {value:g}")

    def end(self, status: dict[str, Any]) -> None:
        """How the run ended, if it has; `status` is what it said then, where that is known."""
        state, message, step = self._document["state"], status.get("message"), number(status.get("step"))
        if state not in ("finished", "stopped", "failed"):
            return
        if step is None and len(self._frame):
            step = self._frame["step"].iloc[-1]
        what = f"{state}: {message}" if message else state
        self.at_step(step, what, _stamp(self._document.get("generated")))


def milestones_section(
    document: dict[str, Any],
    frame: pd.DataFrame,
    clock: Clock,
    status: dict[str, Any],
    best_of: str,
    column: str,
    phases: Sequence[Phase],
    target: str | None,
) -> str:
    """The milestones as a table, by images seen, and what is to be known of it.

    Args:
        status: what `status.json` says.
        best_of: the loss whose new bests are told.
        column: the loss that has the `phases`.
    """
    story = Story(document, frame, clock)
    story.learning_rate()
    story.averaging()
    story.skipped_steps()
    story.bests(best_of)
    story.plateaus(column, phases)
    if asked := parse_target(str(target)):
        story.target(*asked, reach(frame[asked[0]], asked[1], asked[0] in LARGER_IS_BETTER).epoch)
    story.first_checkpoint()
    story.starts()
    story.end(status if status.get("state") == document["state"] else {})
    rows = [
        (
            DASH if one.time is None else f"{datetime.fromtimestamp(one.time, UTC):%Y-%m-%d %H:%M:%S}",
            DASH if one.seconds is None else human_time(one.seconds),
            *(_whole(one.epoch), _whole(one.images), one.what),
        )
        for one in story.in_order()
    ]
    heads = ["Time (UTC)", "Run time", "Epochs done", "Images seen", "What"]
    notes = ["Times are those of the ends of epochs, but for starts, the first checkpoint and the end.", *story.notes]
    return f"## Milestones\n\n{table(heads, rows)}\n\n{' '.join(notes)}"


def _few(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of the items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[place] for place in np.linspace(0, len(items) - 1, most).round().astype(int)]


def _whole(value: float | None) -> str:
    return DASH if value is None or math.isnan(value) else f"{value:,.0f}"


def _stamp(text: Any) -> float | None:
    """A time in ISO 8601 as seconds since 1970."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError):
        return None
