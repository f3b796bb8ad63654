"""What happened in a run, and when: starts, first checkpoint, new bests, learning rate, plateaus, target, end.

Found in the rows of `training_metrics.json`; the wall-clock times are those of `events.jsonl`, where it has them.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from ddpm.run.config import parse_target
from ddpm.run.files import read_file
from ddpm.run.format import number
from ddpm.run.metrics import METRICS
from ddpm.run.paths import RunPaths
from metrics.live.status import read_event
from metrics.markdown import table
from metrics.tracker import human_time
from metrics.trends import Phase, new_bests, reach, thinned

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
        lines = read_file(paths.events).splitlines()
    except OSError:
        return Clock()
    epochs: dict[int, float] = {}
    saved = None
    for line in lines:
        if not any(part in line for part in LOGGED) or not (event := read_event(line)):
            continue
        if event["kind"] == "epoch":
            epochs[event["row"]["epoch"]] = event["time"]
        elif saved is None and (step := re.search(r"step_(\d{1,15})$", event["message"], re.ASCII)):
            saved = (event["time"], int(step[1]))
    return Clock(epochs, saved)


class MilestoneCollector:
    """Collects the milestones of a run.

    Args:
        document: as `metrics.run_data.load_document` gives it.
        frame: its rows, as `metrics.run_data.epochs_frame` gives them.
    """

    def __init__(self, document: dict[str, Any], frame: pd.DataFrame, clock: Clock) -> None:
        self._document, self._frame, self._clock = document, frame, clock
        self.milestones: list[Milestone] = []
        self.notes: list[str] = []  # what was left out
        counted = frame[["images_seen", "step"]].dropna()
        counted = counted[counted["step"] > 0]
        rows_say = float((counted["images_seen"] / counted["step"]).iloc[-1]) if len(counted) else None
        self._batch = number(document["hyperparameters"].get("global_batch_size")) or rows_say

    def in_order(self) -> list[Milestone]:
        """By images seen, those of which that is not known last; at the same place by time, then as they were told."""
        return sorted(self.milestones, key=lambda one: (math.inf if one.images is None else one.images, one.time or 0))

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
            change = f" ({value / before - 1:+.1%} on {before:.5g})" if before else ""
            self.at_epoch(epoch, f"{'first' if before is None else 'new best'} `{column}`: {value:.5g}{change}")
            before = value
        if len(shown) < len(found):
            self.notes.append(
                f"{len(shown)} of {len(found)} new bests are shown: the first, the last, and some between, evenly by "
                "the logarithm of the epoch."
            )

    def learning_rate(self) -> None:
        """The rate at the ends of epochs: after warm-up, where it rose or fell, when a cosine was down to half.

        What it was between them is not told: no row has it, and earlier starts may have had other settings.
        """
        settings, lr = self._document["settings"], self._frame["lr"].dropna()

        def from_to(before: int, after: int) -> str:
            return f"from {lr[before]:.3g} (end of epoch {before}) to {lr[after]:.3g} (end of epoch {after})"

        warmup = number(settings.get("warmup_steps")) or 0
        smooth = str(settings.get("lr_schedule")).startswith("cosine")
        warm = lr[self._frame["step"].reindex(lr.index) >= warmup]
        if warmup and len(warm):
            words = f"the first {_whole(warmup)} steps (`--warmup-steps`) are done: learning rate {warm.iloc[0]:.3g}"
            self.at_epoch(warm.index[0], f"{words} at the end of epoch {warm.index[0]}")
        changes = []
        for before, epoch in itertools.pairwise(warm.index):
            if lr[epoch] > lr[before] * (1 + CHANGE):
                changes.append((epoch, f"learning rate rose {from_to(before, epoch)}"))
            elif not smooth and lr[epoch] < lr[before] * (1 - CHANGE):
                changes.append((epoch, f"learning rate fell {from_to(before, epoch)}"))
        for epoch, what in _few(changes, MOST_OF_A_KIND):
            self.at_epoch(epoch, what)
        if len(changes) > MOST_OF_A_KIND:
            self.notes.append(f"{MOST_OF_A_KIND} of {len(changes)} changes of the learning rate are shown.")
        largest = lr.cummax()[warm.index]
        half = warm.index[(warm <= largest / 2) & (largest > 0)]
        if smooth and len(half):
            words = from_to(int(lr.loc[: half[0]].idxmax()), half[0])
            self.at_epoch(half[0], f"learning rate down to half or less: {words}")

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
        said = str(message or state)
        what = said if said.startswith(state) else f"{state}: {said}"  # "stopped by SIGTERM" says it already
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
    story = MilestoneCollector(document, frame, clock)
    story.learning_rate()
    story.averaging()
    story.skipped_steps()
    story.bests(best_of)
    story.plateaus(column, phases)
    if asked := parse_target(str(target)):
        story.target(*asked, reach(frame[asked[0]], asked[1], METRICS[asked[0]].larger_is_better).epoch)
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
