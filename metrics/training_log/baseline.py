"""A run against a target (`--target`) and against another run (`--baseline`): sections of the training log."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ddpm.run.config.rules import parse_target
from ddpm.run.format import count, duration, significant
from ddpm.run.metrics import IMAGES_SEEN, METRICS, TOTAL_TIME_SEC, Metric, headline
from ddpm.run.paths import RunPaths
from metrics.compare.cautions import cautions, listed
from metrics.compare.figures import ComparedRun, comparable, delta, differing, named, why_not
from metrics.page import Bullets, Section, Table
from metrics.run_data import RunData
from metrics.run_reader import read_run
from metrics.trends import Curve, Point, TargetForecast, best, first_as_good, forecast

MOST = 12  # settings that are listed


# ---- target ----------------------------------------------------------------------------------------------------------


def target_section(run: RunData, target: str) -> Section:
    """Whether the target was reached, else how far it is and when it would be reached at the present slope."""
    return Section(f"Target: {target}", [_target_words(run, target)])


def _target_words(run: RunData, target: str) -> str:
    asked = parse_target(target)
    if asked is None:
        return "This is no target: give a column and a number, such as val_loss=0.004."
    metric, value = METRICS[asked[0]], asked[1]
    curve = run.curve(metric)
    top = best(curve)
    if top is None:
        return f"The {metric.label} has not been measured yet."
    known = f"best {metric.label} is {_at(metric, top)}, the last {_at(metric, curve.last)}."
    if there := first_as_good(curve, value):
        what = f"{metric.label} {metric.text(there.value)}, after {_images_and_time(run, there.epoch)}"
        return f"**Reached at epoch {there.epoch}**: {what}. The {known}"
    off = _distance_words(metric, top.value / value) if value > 0 and top.value > 0 else ""
    ahead = _forecast_words(forecast(curve, value), len(curve), run.planned_epochs)
    return f"**Not reached.** The {known}{off} {ahead}"


def _distance_words(metric: Metric, ratio: float) -> str:
    """How far the best value is from the target, as a share of it or, where it is farther, as a multiple."""
    if ratio > 2:
        return f" The best is {significant(ratio, 3)} times the target."
    return f" The best is {abs(ratio - 1):.1%} {'below' if metric.larger_is_better else 'above'} the target."


def _forecast_words(found: TargetForecast, measured: int, planned: int | None) -> str:
    line = found.slope
    if line is None:
        return f"A slope takes three values; there are {measured}."
    words = (
        f"Over the last {line.count} values (epochs {line.first}–{line.last}) the curve changes by {line.value:+.3g} ± "
        f"{line.error:.2g} (standard error) per epoch."
    )
    if found.expected is None:
        return f"{words} At this rate the target is not reached: the slope towards it is below two standard errors."
    expected, earliest, latest = (f"{math.ceil(at):,}" for at in (found.expected, found.earliest, found.latest))
    plan = f"; the run is planned for {planned}" if planned else ""
    return (
        f"{words} On a straight line from the last value it would be reached at about epoch {expected} ({earliest} to "
        f"{latest} within two standard errors of the slope){plan}. This is optimistic: learning curves usually flatten."
    )


def _at(metric: Metric, point: Point) -> str:
    return f"{metric.text(point.value)} (epoch {point.epoch})"


def _images_and_time(run: RunData, epoch: int) -> str:
    """Images and time up to the end of an epoch."""
    row = run.row(epoch)
    return f"{count(IMAGES_SEEN.of(row))} images and {duration(TOTAL_TIME_SEC.of(row))}"


# ---- baseline --------------------------------------------------------------------------------------------------------


def baseline_section(run: RunData, baseline: RunPaths) -> Section:
    """The same figures of both runs at the same images seen, at the end, and at their best; what makes them differ."""
    title = f"Baseline: {baseline.run}"
    if baseline == run.paths:
        return Section(title, ["The baseline is this run itself: name another one."])
    other = read_run(baseline)
    if why := why_not(other):
        return Section(title, [f"Not compared: {why}"])
    both = run, other
    metrics = [metric for metric in headline() if all(len(each.curve(metric)) for each in both)]
    if not metrics:
        return Section(title, ["Not compared: there is no figure yet that both runs have measured."])
    runs = named(both)
    rows = [row for metric in metrics for row in _rows(metric, runs)]
    table = Table("", ["Figure", "Where", "This run", "Baseline", "Difference"], rows)
    differ = differing([each.recipe for each in runs])[0]
    more = f" and {len(differ) - MOST} more" if len(differ) > MOST else ""
    settings = f"Settings that differ (this run, baseline): {listed(runs, differ[:MOST])}{more}."
    remarks = [settings if differ else "No setting differs that both runs have."]
    if len(comparable(runs, metrics[0])) == 1:
        remarks.insert(0, _first_as_good(metrics[0], *both))
    return Section(title, [table, Bullets([*remarks, *cautions(runs, metrics)])])


def _rows(metric: Metric, runs: Sequence[ComparedRun]) -> list[tuple[str, ...]]:
    """The figure of both runs: the latest up to as many images as both have seen, the last, and the best."""
    both, alike = [run.published for run in runs], len(comparable(runs, metric)) == 1
    common = min(IMAGES_SEEN.of(run.last) or 0 for run in both)
    curves = [run.curve(metric) for run in both]
    early = [[row for row in run.rows_of(metric) if (IMAGES_SEEN.of(row) or 0) <= common] for run in both]
    upto = [Curve.of(rows, metric).last for rows in early]
    last = [curve.last for curve in curves]
    places = {f"up to {count(common)} images": upto} if common and None not in upto else {}
    places |= {"last": last} if upto != last else {}
    places["best"] = [best(curve) for curve in curves]
    return [_row(metric, where, *points, alike) for where, points in places.items()]


def _row(metric: Metric, where: str, ours: Point, theirs: Point, alike: bool) -> tuple[str, ...]:
    """`alike`: does the figure measure the same thing in both runs?"""
    if not alike:
        return metric.label, where, _at(metric, ours), _at(metric, theirs), "not comparable"
    one, two = ours.value, theirs.value
    share = f" ({one / two - 1:+.1%})" if two else ""
    verdict = "better" if (one > two) == metric.larger_is_better else "worse"
    difference = "none" if one == two else f"{delta(metric, one, two)}{share}, {verdict}"
    return metric.label, where, _at(metric, ours), _at(metric, theirs), difference


def _first_as_good(metric: Metric, run: RunData, other: RunData) -> str:
    """When this run was first as good as the baseline ever was."""
    top = best(other.curve(metric))
    there = first_as_good(run.curve(metric), top.value)
    needed = _images_and_time(other, top.epoch)
    as_good = f"as good as the baseline's best {metric.label}, {metric.text(top.value)} ({needed})"
    if there is None:
        return f"This run has not been {as_good}."
    return f"This run was {as_good} first at epoch {there.epoch} ({_images_and_time(run, there.epoch)})."
