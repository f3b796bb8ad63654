"""Verdicts: whether a run meets its success criteria, as a pure function of its published rows.

A criterion is met (when), missed (when, by how much), open (how far, when at the present slope), or cannot be judged
(why). The share of classes is read from evaluation.json. The language is that of ddpm/run/criteria.py.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ddpm.run.criteria import ClassShares, Condition, Criterion, Improves, NoNewWorst, Threshold, parse_criteria
from ddpm.run.format import plural, shown, significant
from ddpm.run.metrics import Metric
from metrics.criteria.course import Course
from metrics.trends import Curve, best, forecast, gap_words, over_epochs

State = Literal["met", "missed", "open", "cannot be judged"]
STATES: tuple[State, ...] = ("missed", "cannot be judged", "open", "met")  # the first that a condition has counts
RUNNING = {"sum": np.cumsum, "max": np.maximum.accumulate}  # figures of a run that never decrease


@dataclass(frozen=True)
class Judgement:
    """The state of a condition: `words` with its figures, and `brief`, at most a few words, for a table.

    `epoch`: when it was met or missed; None if that is no epoch.
    """

    state: State
    words: str
    brief: str = ""
    epoch: int | None = None


@dataclass(frozen=True)
class Verdict:
    """A criterion, and the judgements of its conditions."""

    criterion: Criterion
    judgements: tuple[Judgement, ...] = field(default_factory=tuple)

    @property
    def state(self) -> State:
        """The worst of the conditions'."""
        return next(state for state in STATES if any(each.state == state for each in self.judgements))

    @property
    def _decisive(self) -> list[Judgement]:
        return [each for each in self.judgements if each.state == self.state]

    @property
    def words(self) -> str:
        """What decided, with figures."""
        return "; ".join(each.words for each in self._decisive)

    @property
    def brief(self) -> str:
        """What decided, in a few words: `epoch 3`, `by 0.012`."""
        latest = max(self._decisive, key=lambda each: each.epoch or 0) if self.state == "met" else self._decisive[0]
        return latest.brief

    @property
    def epoch(self) -> int | None:
        """The epoch at which all conditions were met, or the first was missed; None if that is no epoch."""
        known = [each.epoch for each in self._decisive if each.epoch is not None]
        return (max if self.state == "met" else min)(known, default=None)


def verdicts(texts: Sequence[str], course: Course) -> list[Verdict]:
    """The verdict on each criterion, given as text, in their order.

    Raises:
        RequestError: one cannot be read.
    """
    criteria = parse_criteria(tuple(texts))
    return [Verdict(each, tuple(judge(condition, course) for condition in each.conditions)) for each in criteria]


def counts_words(found: Sequence[Verdict]) -> str:
    """`2 met, 1 missed, 1 open`; states that no criterion has are left out."""
    counts = Counter(verdict.state for verdict in found)
    order: tuple[State, ...] = ("met", "missed", "open", "cannot be judged")
    return ", ".join(f"{counts[state]} {state}" for state in order if counts[state])


def judge(condition: Condition, course: Course) -> Judgement:
    """The judgement on one condition."""
    match condition:
        case Threshold():
            of_best = condition.metric.over_epochs == "best"
            return (_reached if of_best else _of_run)(condition, course.upto(condition.by))
        case NoNewWorst():
            return _no_new_worst(condition, course)
        case Improves():
            return _improves(condition, course)
        case ClassShares():
            return _shares(condition, course)
    raise TypeError(f"no condition: {condition!r}")


# ---- thresholds ------------------------------------------------------------------------------------------------------


def _reached(asked: Threshold, course: Course) -> Judgement:
    """Of a figure whose best epoch counts: has any epoch reached the threshold?"""
    metric, curve = asked.metric, course.curve(asked.metric)
    if not len(curve):
        return _not_measured(metric, course)
    there = np.flatnonzero(asked.holds(curve.values))
    if len(there):
        point = curve.point(int(there[0]))
        return Judgement("met", f"{metric.name} {metric.text(point.value)} at epoch {point.epoch}",
                         f"epoch {point.epoch}", point.epoch)  # fmt: skip
    top = best(curve)
    gap = _gap(metric, top.value - asked.value)
    words = f"best {metric.name} {metric.text(top.value)} (epoch {top.epoch}), {gap} {_side(asked)}"
    if course.closed:
        early = " (stopped early)" if course.cut_short else ""
        return Judgement("missed", f"{words}, {_end_words(course)}", f"by {gap}{early}", course.done)
    return Judgement("open", f"{words}; {_ahead(curve, asked, course)}", f"{gap} to go")


def _side(asked: Threshold) -> str:
    """Where a value lies that does not hold: `above 0.13`."""
    percent = asked.metric.format.endswith("%")
    limit = significant(100 * asked.value, 12) + "%" if percent else significant(asked.value, 12)
    return f"{'above' if asked.sign[0] == '<' else 'below'} {limit}"


def _ahead(curve: Curve, asked: Threshold, course: Course) -> str:
    """When the threshold would be reached at the present slope."""
    found = forecast(curve, asked.value)
    due = f", and epoch {course.last_epoch} is the last" if course.last_epoch else ""
    if found.slope is None:
        return f"a slope takes three values, and there are {len(curve)}{due}"
    if found.expected is None:
        return f"at the present slope it is not reached{due}"
    earliest, expected, latest = (
        f"{math.ceil(round(at, 6)):,}" for at in (found.earliest, found.expected, found.latest)
    )
    return f"at the present slope it is reached at about epoch {expected} ({earliest} to {latest}){due}"


def _of_run(asked: Threshold, course: Course) -> Judgement:
    """Of a figure of the whole run, such as its speed: decided at the end, or as soon as it cannot change back."""
    metric, curve = asked.metric, course.curve(asked.metric)
    value = over_epochs(course.rows, metric)
    if value is None:
        return _not_measured(metric, course)
    grows, upper = metric.grows or metric.over_epochs in RUNNING, asked.sign[0] == "<"
    running = RUNNING.get(metric.over_epochs, lambda values: values)(curve.values)
    decided = np.flatnonzero(asked.holds(running) != upper) if grows else ()
    epoch = int(curve.epochs[decided[0]]) if len(decided) else course.done
    value = float(running[decided[0]]) if len(decided) else value  # of that epoch: later ones may have added to it
    gap = _gap(metric, value - asked.value)
    words, away = f"{metric.name} {metric.text(value)}", f"{gap} {_side(asked)}"
    if asked.holds(value) and (course.closed or len(decided)):
        return Judgement("met", f"{words} at epoch {epoch}", f"epoch {epoch}", epoch)
    if course.closed or len(decided):
        at = f"epoch {epoch}" if len(decided) else course.end
        return Judgement("missed", f"{words}, {away}, at {at}", f"by {gap}", epoch)
    so_far = "which would meet it" if asked.holds(value) else away
    brief = "holds so far" if asked.holds(value) else f"{gap} to go"
    return Judgement("open", f"{words} so far, {so_far}; decided {_decided(course.last_epoch)}", brief)


# ---- the course of a figure ------------------------------------------------------------------------------------------


def _no_new_worst(asked: NoNewWorst, course: Course) -> Judgement:
    """Is no value within the epochs worse than all before it, those of earlier epochs included?"""
    metric, curve = asked.metric, course.upto(asked.last).curve(asked.metric)
    closed, span = course.closed or course.done >= asked.last, f"epochs {asked.first} to {asked.last}"
    if lost := _lost(metric, course, asked.first, asked.last):
        return lost
    places = [place for place in range(1, len(curve)) if curve.epochs[place] >= asked.first]
    for place in places:
        worst = curve.point(int(curve.costs[:place].argmax()))
        here = curve.point(place)
        if curve.costs[place] > curve.costs[:place].max():
            gap = _gap(metric, here.value - worst.value)
            known = f"{metric.name} {metric.text(here.value)} at epoch {here.epoch}"
            before = f"the worst before, {metric.text(worst.value)} (epoch {worst.epoch})"
            return Judgement("missed", f"{known} is {gap} worse than {before}", f"by {gap}", here.epoch)
    if closed and course.done < asked.last:
        ended = "early stopping ended the run" if course.cut_short else "the run ended"
        words = f"{ended} after epoch {course.done}, before epoch {asked.last}"
        return Judgement("cannot be judged", words, f"ended after epoch {course.done}")
    if closed and not places:
        return Judgement("cannot be judged", f"{metric.name} has no value in {span} that follows another", "no value")
    if closed:
        return Judgement("met", f"no new worst {metric.name} in {span}", f"epoch {asked.last}", asked.last)
    worst = curve.values[curve.costs.argmax()] if len(curve) else math.nan
    room = _gap(metric, curve.last.value - worst) if len(curve) else ""
    so_far = f"the last {metric.name} is {room} better than the worst" if room else f"no {metric.name} yet"
    return Judgement("open", f"{so_far}; decided {_decided(asked.last)}", "none so far")


def _improves(asked: Improves, course: Course) -> Judgement:
    """Is each measured value, from that epoch on, better than the one before it?"""
    metric, curve = asked.metric, course.curve(asked.metric)
    if lost := _lost(metric, course, asked.first):
        return lost
    places = [place for place in range(1, len(curve)) if curve.epochs[place] >= asked.first]
    for place in places:
        before, here = curve.point(place - 1), curve.point(place)
        if curve.costs[place] >= curve.costs[place - 1]:
            gap = _gap(metric, here.value - before.value)
            words = f"{metric.name} {metric.text(here.value)} at epoch {here.epoch}"
            after = f"after {metric.text(before.value)} at epoch {before.epoch}"
            return Judgement("missed", f"{words} {after}", f"by {gap}", here.epoch)
    if course.closed and not places:
        none = f"{metric.name} has no value from epoch {asked.first} on that follows another, {_end_words(course)}"
        return Judgement("cannot be judged", none, "no value")
    if course.closed:
        words = f"{metric.name} has improved {plural(len(places), 'time')} of {len(places)}"
        return Judgement("met", words, f"epoch {course.done}", course.done)
    so_far = f"{metric.name} has improved {plural(len(places), 'time')} of {len(places)} so far"
    return Judgement("open", f"{so_far}; decided {_decided(course.last_epoch)}", "holds so far")


# ---- the evaluation --------------------------------------------------------------------------------------------------


def _shares(asked: ClassShares, course: Course) -> Judgement:
    """Is each class drawn as often as asked, when no class is asked for?"""
    if course.damage:
        return Judgement("cannot be judged", f"evaluation.json cannot be read: {course.damage}", "damaged")
    if course.evaluation is None:
        missing = "there is no evaluation yet: run evaluate.py"
        return Judgement("cannot be judged" if course.closed else "open", missing, "not evaluated")
    if not course.evaluation["class_balance"]:
        return Judgement("cannot be judged", "the model never drew without a label", "not measured")
    shares = course.evaluation["class_balance"]["shares"]
    names = [entry["name"] for entry in course.evaluation["conditional"]["per_class"]]
    if None in shares:
        return Judgement("cannot be judged", "the evaluation does not know every class's share", "shares not known")
    times = np.array(shares) * len(shares)
    outside = np.maximum(asked.low - times, times - asked.high)
    place = int(outside.argmax())
    farthest = f"class {names[place]} is drawn {significant(times[place], 3)} times as often as uniform"
    whose = f"of {shown(course.evaluation['class_balance']['count'], ',.0f')} characters"
    if outside[place] > 0:
        gap = significant(float(outside[place]), 3)
        return Judgement("missed", f"{farthest}, {gap} outside {asked.low:g} to {asked.high:g}, {whose}", f"by {gap}")
    span = f"{significant(float(times.min()), 3)} to {significant(float(times.max()), 3)} times as often as uniform"
    return Judgement("met", f"every class is drawn {span}, {whose}", "evaluated")


# ---- words -----------------------------------------------------------------------------------------------------------


def _not_measured(metric: Metric, course: Course) -> Judgement:
    if course.closed:
        words = f"{metric.name} was not measured, {_end_words(course)}"
        unmeasured = Judgement("cannot be judged", words, "not measured")
        return _lost(metric, course) or unmeasured
    return Judgement("open", f"{metric.name} has not been measured yet", "not measured yet")


def _lost(metric: Metric, course: Course, first: int = 1, last: float = math.inf) -> Judgement | None:
    """A miss, if a value in these epochs was no finite number, as in a run that has diverged."""
    for row in course.rows_of(metric):
        if first <= row["epoch"] <= last and metric.lost(row):
            words = f"{metric.name} was no finite number at epoch {row['epoch']}"
            return Judgement("missed", words, "not finite", row["epoch"])
    return None


def _gap(metric: Metric, difference: float) -> str:
    """The size of a difference with its unit: `99,877 images/s`, `1 step`, `0.012`."""
    words, unit = gap_words(metric, abs(difference)), metric.short_unit
    return f"{words} {unit.removesuffix('s') if words == '1' and metric.whole else unit}".rstrip()


def _end_words(course: Course) -> str:
    return f"up to {course.end}" if course.done else "as no epoch has figures"


def _decided(epoch: int | None) -> str:
    return f"after epoch {epoch}" if epoch else "at the end"
