"""What happened in a run, and when: starts, first checkpoint, new bests, learning rate, plateaus, target, end.

Found in the rows of `training_metrics.json`; the wall-clock times are those of `events.jsonl`, where it has them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from ddpm.run.config.rules import parse_target
from ddpm.run.files import read_file
from ddpm.run.format import DASH, count, duration, number, plural, timestamp
from ddpm.run.metrics import IMAGES_SEEN, LR, METRICS, NONFINITE_STEPS, STEP, TOTAL_TIME_SEC, Metric
from ddpm.run.paths import RunPaths
from ddpm.training.schedule import PLATEAU, plateau_reductions
from metrics.criteria.of_run import verdicts_of
from metrics.files import ENDED, read_event
from metrics.page import Section, Table
from metrics.phases import Phase
from metrics.run_data import RunData
from metrics.starts import stamp_of, why_started
from metrics.trends import forecast, new_bests, thinned

T = TypeVar("T")
MOST = 8  # new bests that are shown; 1000 epochs may have 1000
MOST_OF_A_KIND = 12  # starts, or changes of the learning rate, that are shown
CHANGE = 0.01  # a larger relative change of the learning rate between rows is shown, unless the schedule is smooth
LOGGED = (b'"kind": "epoch"', b'"checkpoint: ')  # only lines of events.jsonl with these texts are parsed


@dataclass(frozen=True)
class Milestone:
    """`time`: seconds since 1970; `seconds`: time of all epochs up to here; None if not known."""

    what: str
    time: float | None = None
    seconds: float | None = None
    epoch: int | None = None
    images: float | None = None


@dataclass(frozen=True)
class Clock:
    """When epochs ended, in seconds since 1970; `saved`: time and step of the run's first complete checkpoint."""

    epochs: dict[int, float] = field(default_factory=dict)
    saved: tuple[float, int] | None = None


def read_clock(paths: RunPaths) -> Clock:
    """The times in `events.jsonl`; torn lines are left out. An epoch that was trained again ended when it last did."""
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
    """Collects the milestones of a run, and notes on what was left out."""

    def __init__(self, run: RunData, clock: Clock) -> None:
        self._run, self._clock = run, clock
        self._rows = {row["epoch"]: row for row in run.rows}
        self.milestones: list[Milestone] = []
        self.notes: list[str] = []
        known = [(IMAGES_SEEN.of(row), STEP.of(row)) for row in run.rows]
        rows_say = next((images / step for images, step in reversed(known) if images and step), None)
        self._batch = (run.document.get("hyperparameters") or {}).get("global_batch_size") or rows_say

    def in_order(self) -> list[Milestone]:
        """By images seen, unknown ones last; at the same place by time, then as they were added."""
        return sorted(self.milestones, key=lambda one: (math.inf if one.images is None else one.images, one.time or 0))

    def at_epoch(self, epoch: int, what: str) -> None:
        """Add what happened within an epoch that has a row, or at its end."""
        row = self._rows[epoch]
        time = self._clock.epochs.get(epoch)
        self.milestones.append(Milestone(what, time, TOTAL_TIME_SEC.of(row), epoch, IMAGES_SEEN.of(row)))

    def at_step(self, step: float | None, what: str, time: float | None) -> None:
        """Add what happened after a step. The epochs' time is known only at step 0 and at the step of a row."""
        if step is None:
            self.milestones.append(Milestone(what, time))
            return
        before = next((row for row in reversed(self._run.rows) if (STEP.of(row) or math.inf) <= step), {})
        seconds = TOTAL_TIME_SEC.of(before) if STEP.of(before) == step else 0.0 if step == 0 else None
        images = 0.0 if step == 0 else step * self._batch if self._batch else None
        self.milestones.append(Milestone(what, time, seconds, before.get("epoch", 0), images))

    def starts(self) -> None:
        """Every start, and why it was needed; of many the first and the last, and some between."""
        starts = self._run.document.get("starts") or []
        for place, start in self._few(list(enumerate(starts)), "starts"):
            step, why = start.get("step"), why_started(start.get("cause"))
            what = "started" if place == 0 and not step else f"start {place + 1}, from step {count(step)}; {why}"
            self.at_step(step, what, stamp_of(start.get("time")))

    def first_checkpoint(self) -> None:
        if self._clock.saved:
            time, step = self._clock.saved
            self.at_step(step, f"first checkpoint: `step_{step:08d}`", time)

    def bests(self, metric: Metric) -> None:
        """New bests of a loss; of many the first and the last, and some between."""
        found = new_bests(self._run.curve(metric))
        shown = thinned(found, MOST)
        before = None
        for epoch, value in zip(shown.epochs, shown.values, strict=True):
            change = f" ({value / before - 1:+.1%} on {metric.text(before)})" if before else ""
            first = "first" if before is None else "new best"
            self.at_epoch(int(epoch), f"{first} `{metric.name}`: {metric.text(float(value))}{change}")
            before = float(value)
        if len(shown) < len(found):
            which = "the first, the last, and some between, evenly by the logarithm of the epoch"
            self.notes.append(f"{len(shown)} of {len(found)} new bests are shown: {which}.")

    def learning_rate(self) -> None:
        """The rate at the ends of epochs: after warm-up, where it rose or fell, when a cosine was down to half.

        The rate between these is not known: no row has it, and earlier starts may have had other settings.
        """
        settings, rates = self._run.settings, self._run.curve(LR)
        warmup = settings.get("warmup_steps") or 0
        smooth = str(settings.get("lr_schedule")).startswith("cosine")
        reasons = self._reasons()
        steps = np.array([STEP.of(self._rows[epoch]) or 0 for epoch in rates.epochs.tolist()])
        warm = rates[steps >= warmup]
        if warmup and len(warm):
            first = warm.point(0)
            words = f"the first {count(warmup)} steps (`--warmup-steps`) are done: learning rate {LR.text(first.value)}"
            self.at_epoch(first.epoch, f"{words} at the end of epoch {first.epoch}")
        changes = []
        for place in range(1, len(warm)):
            before, after = warm.values[place - 1], warm.values[place]
            rose, fell = after > before * (1 + CHANGE), not smooth and after < before * (1 - CHANGE)
            if rose or fell:
                words = f"learning rate {'rose' if rose else 'fell'} {_from_to(warm, place - 1, place)}"
                epoch = int(warm.epochs[place - 1])
                changes.append((int(warm.epochs[place]), words + (f": {reasons[epoch]}" if epoch in reasons else "")))
        for epoch, what in self._few(changes, "changes of the learning rate"):
            self.at_epoch(epoch, what)
        largest = np.maximum.accumulate(rates.values)[len(rates) - len(warm) :]
        half = np.flatnonzero((warm.values <= largest / 2) & (largest > 0))
        if smooth and len(half):
            until = rates[rates.epochs <= warm.epochs[half[0]]]
            words = _from_to(until, int(until.values.argmax()), -1)
            self.at_epoch(until.last.epoch, f"learning rate down to half or less: {words}")

    def _reasons(self) -> dict[int, str]:
        """Why the plateau schedule lowered the rate: epoch after which it did → reason; empty for other schedules."""
        settings = {name: self._run.settings.get(name) for name in PLATEAU}
        known = self._run.document.get("hyperparameters") or {}
        peak, steps = number(known.get("learning_rate")), number(known.get("steps_per_epoch"))
        if self._run.settings.get("lr_schedule") != "plateau" or None in settings.values() or not (peak and steps):
            return {}
        return {each.epoch: each.reason for each in plateau_reductions(self._run.rows, settings, peak, int(steps))}

    def plateaus(self, metric: Metric, phases: Sequence[Phase]) -> None:
        for phase in phases:
            if phase.kind == "plateau":
                until = f"about {metric.text(phase.mean)} up to epoch {phase.rate.last}"
                self.at_epoch(phase.rate.first, f"plateau of `{metric.name}` reached: {until}")

    def averaging(self) -> None:
        first = self._run.settings.get("swa_start_epoch")
        if first and first in self._rows:
            self.at_epoch(first, "stochastic weight averaging (SWA) begun")

    def skipped_steps(self) -> None:
        curve = self._run.curve(NONFINITE_STEPS)
        curve = curve[curve.values > 0]
        if len(curve):
            words = f"first steps skipped, their gradient not finite: {curve.values[0]:.0f}"
            words += f"; {curve.values.sum():.0f} in {plural(len(curve), 'epoch')} up to now"
            self.at_epoch(int(curve.epochs[0]), words)

    def target(self, asked: str | None) -> None:
        if asked and (parsed := parse_target(asked)):
            metric, value = METRICS[parsed[0]], parsed[1]
            epoch = forecast(self._run.curve(metric), value).epoch
            if epoch is not None:
                words = f"`{metric.name}` {metric.text_of(self._rows[epoch])}, asked for {metric.text(value)}"
                self.at_epoch(epoch, f"target reached: {words}")

    def criteria(self) -> None:
        """The epochs at which a criterion was met or missed."""
        for verdict in verdicts_of(self._run):
            if verdict.state in ("met", "missed") and verdict.epoch in self._rows:
                words = f"criterion {verdict.state}: {verdict.criterion.name}"
                said = verdict.words if verdict.criterion.name != verdict.criterion.text else verdict.brief
                self.at_epoch(verdict.epoch, f"{words} ({said})")

    def end(self) -> None:
        """How the run ended, if it has; with the message of its status, if that is about the same end."""
        run, state = self._run, self._run.document.get("state")
        if state not in ENDED:
            return
        trained = run.status.get("start_step", 0) is not None  # else it tells how another start failed
        status = run.status if run.status.get("state") == state and trained else {}
        step = status.get("step", STEP.of(run.last))
        said = str(status.get("message") or state)
        what = said if said.startswith(state) else f"{state}: {said}"  # "stopped by SIGTERM" says it already
        self.at_step(step, what, stamp_of(run.generated))

    def _few(self, items: Sequence[T], what: str) -> list[T]:
        """At most `MOST_OF_A_KIND` of the items, evenly spread, the first and the last among them; a note says so."""
        if len(items) <= MOST_OF_A_KIND:
            return list(items)
        self.notes.append(f"{MOST_OF_A_KIND} of {len(items)} {what} are shown.")
        return [items[place] for place in np.linspace(0, len(items) - 1, MOST_OF_A_KIND).round().astype(int)]


def milestones_section(
    run: RunData, best_of: Metric, metric: Metric, phases: Sequence[Phase], target: str | None
) -> Section:
    """The milestones as a table, by images seen.

    Args:
        best_of: the loss whose new bests are shown.
        metric: the loss that has the `phases`.
    """
    collector = MilestoneCollector(run, read_clock(run.paths))
    collector.learning_rate()
    collector.averaging()
    collector.skipped_steps()
    collector.bests(best_of)
    collector.plateaus(metric, phases)
    collector.target(target)
    collector.criteria()
    collector.first_checkpoint()
    collector.starts()
    collector.end()
    heads = ["Time", "Run time", "Epochs done", "Images seen", "What"]
    notes = ["Times are those of the ends of epochs, except for starts, the first checkpoint and the end."]
    table = Table("", heads, list(_rows(collector.in_order())))
    return Section("Milestones", [table, " ".join([*notes, *collector.notes])])


def _rows(milestones: Sequence[Milestone]) -> Iterator[tuple[Any, ...]]:
    for one in milestones:
        done = DASH if one.epoch is None else one.epoch
        yield timestamp(one.time), duration(one.seconds), done, count(one.images), one.what


def _from_to(rates: Any, before: int, after: int) -> str:
    """`from 1.000e-04 (end of epoch 3) to 5.000e-05 (end of epoch 4)`."""
    ends = [f"{LR.text(point.value)} (end of epoch {point.epoch})" for point in map(rates.point, (before, after))]
    return f"from {ends[0]} to {ends[1]}"
