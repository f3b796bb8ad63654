"""A run against a target (`--target`) and against another run (`--baseline`): sections of the training log."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from ddpm.run.config import parse_target
from ddpm.run.errors import RequestError
from ddpm.run.metrics import METRICS, headline
from ddpm.run.paths import RunPaths
from metrics.markdown import table
from metrics.run_data import epochs_frame, load_document
from metrics.tracker import NO_RECIPE, human_time
from metrics.trends import best, reach

MOST = 12  # settings that are listed


def target_section(frame: pd.DataFrame, target: str, planned: int | None) -> str:
    """Whether the target was reached, else how far it is and when it would be reached at the present slope."""
    head = f"## Target: {target}\n\n"
    asked = parse_target(str(target))
    if asked is None:
        return f"{head}This is no target: give a column and a number, such as val_loss=0.004."
    name, value = asked
    larger = METRICS[name].larger_is_better
    found, known = best(frame[name], larger), frame[name].dropna()
    if found is None:
        return f"{head}`{name}` has not been measured yet."
    way = reach(frame[name], value, larger)
    if way.epoch is not None:
        images, seconds = (frame[column][way.epoch] for column in ("images_seen", "total_time_sec"))
        after = [f"{images:,.0f} images"] if pd.notna(images) else []
        after += [human_time(seconds)] if pd.notna(seconds) else []
        when = f", after {' and '.join(after)}" if after else ""
        return (
            f"{head}**Reached at epoch {way.epoch}**: `{name}` {known[way.epoch]:.5g}{when}. The best is "
            f"{found[1]:.5g} (epoch {found[0]}), the last {known.iloc[-1]:.5g} (epoch {known.index[-1]})."
        )
    off = _distance(found[1] / value, larger) if value > 0 and found[1] > 0 else ""
    lines = [
        f"**Not reached.** The best `{name}` is {found[1]:.5g} (epoch {found[0]}){off}; "
        f"the last is {known.iloc[-1]:.5g} (epoch {known.index[-1]})."
    ]
    line = way.slope
    if line is None:
        return head + " ".join([*lines, f"A slope takes three values; there are {len(known)}."])
    lines.append(
        f"Over its last {line.count} values (epochs {line.first}–{line.last}) it changes by {line.value:+.3g} ± "
        f"{line.error:.2g} (standard error) per epoch."
    )
    if way.expected is None:
        lines.append(
            "At the present rate it is not to be reached: by two standard errors, that is no change towards the target."
        )
        return head + " ".join(lines)
    expected, earliest, latest = (math.ceil(epoch) for epoch in (way.expected, way.earliest, way.latest))
    lines.append(
        f"On a straight line from the last value it would be reached at about epoch {expected:,} "
        f"({earliest:,} to {latest:,} within two standard errors of the slope)"
        + (f"; the run is planned for {planned}." if planned else ".")
        + " Curves flatten, so this is hopeful."
    )
    return head + " ".join(lines)


def _distance(ratio: float, larger: bool) -> str:
    """How far a figure is from its target, of which it is `ratio` times as large."""
    if ratio > 2:
        return f", {ratio:.3g} times it"
    return f", {abs(ratio - 1):.1%} {'below' if larger else 'above'} it"


def baseline_section(document: dict[str, Any], frame: pd.DataFrame, baseline: RunPaths, itself: bool) -> str:
    """The same figures of both runs at the same images seen, at the end, and at their best; what makes them differ."""
    head = f"## Baseline: {baseline.run}\n\n"
    if itself:
        return f"{head}The baseline is this run itself: name another one."
    try:
        other = load_document(baseline)
    except RequestError as error:
        return f"{head}Not compared: {error}"
    theirs = epochs_frame(other)
    names = [name for name in headline() if frame[name].notna().any() and theirs[name].notna().any()]
    if not names:
        return f"{head}Not compared: there is no figure yet that both runs have measured."
    common = min(_last_images(frame), _last_images(theirs))
    rows = [row for name in names for row in _rows(name, frame, theirs, common)]
    heads = ["Figure", "Where", "This run", "Baseline", "Difference"]
    lines = [_first_as_good(names[0], frame, theirs), *_cautions(document, other)]
    return f"{head}{table(heads, rows)}\n\n" + "\n".join(f"- {line}" for line in lines)


def _last_images(frame: pd.DataFrame) -> float:
    known = frame["images_seen"].dropna()
    return float(known.iloc[-1]) if len(known) else float("nan")


def _rows(name: str, ours: pd.DataFrame, theirs: pd.DataFrame, common: float) -> list[tuple[str, ...]]:
    """The figure `name` of both: the latest of each up to `common` images, the last of each, and the best."""
    frames = (ours, theirs)
    curves = [frame[name].dropna() for frame in frames]
    upto = [frame.loc[frame["images_seen"] <= common, name].dropna() for frame in frames]
    larger = METRICS[name].larger_is_better
    rows = []
    if all(len(curve) for curve in upto):
        rows.append(_row(name, f"up to {common:,.0f} images", *((curve.index[-1], curve.iloc[-1]) for curve in upto)))
    last = _row(name, "last", *((curve.index[-1], curve.iloc[-1]) for curve in curves))
    if not rows or rows[0][2:] != last[2:]:
        rows.append(last)
    return [*rows, _row(name, "best", *(best(curve, larger) for curve in curves))]


def _row(name: str, where: str, one: tuple[int, float], two: tuple[int, float]) -> tuple[str, ...]:
    change = one[1] - two[1]
    share = f" ({one[1] / two[1] - 1:+.1%})" if two[1] else ""
    verdict = "better" if (change > 0) == METRICS[name].larger_is_better else "worse"
    values = (f"{value:.5g} (epoch {epoch})" for epoch, value in (one, two))
    return (f"`{name}`", where, *values, f"{change:+.3g}{share}, {verdict}" if change else "none")


def _first_as_good(name: str, ours: pd.DataFrame, theirs: pd.DataFrame) -> str:
    """When this run was first as good as the baseline ever was."""
    larger = METRICS[name].larger_is_better
    epoch, value = best(theirs[name], larger)
    there = reach(ours[name], value, larger).epoch
    images, seconds = theirs.loc[epoch, ["images_seen", "total_time_sec"]]
    took = f"{images:,.0f} images, {human_time(seconds)}" if pd.notna(seconds) else f"{images:,.0f} images"
    if there is None:
        return f"This run has not been as good as the baseline's best `{name}`, {value:.5g} ({took})."
    images, seconds = ours.loc[there, ["images_seen", "total_time_sec"]]
    here = f"{images:,.0f} images, {human_time(seconds)}" if pd.notna(seconds) else f"{images:,.0f} images"
    return f"As good as the baseline's best `{name}`, {value:.5g} ({took}): first at epoch {there} ({here})."


def _cautions(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """What has to be known before the two are compared."""
    one, two = ({**document["settings"], "data": document["data"]} for document in (ours, theirs))
    differ = [name for name in one if name in two and one[name] != two[name] and name not in (*NO_RECIPE, "data_root")]
    shown = ", ".join(f"`{name}` {one[name]} against {two[name]}" for name in differ[:MOST])
    more = f" and {len(differ) - MOST} more" if len(differ) > MOST else ""
    lines = [f"Settings that differ: {shown}{more}." if differ else "No setting differs that both runs have."]
    if other := [name for name in METRICS["val_loss_ema"].same if name in differ]:
        lines.append(f"**The losses are not comparable**: they measure other things where {_listed(other)} differ(s).")
    elif other := [name for name in METRICS["loss_mean"].same if name in differ]:
        lines.append(f"`loss_mean` is not comparable: it measures other things where {_listed(other)} differ(s).")
    counts = [document["hyperparameters"].get("val_images") for document in (ours, theirs)]
    if None not in counts and counts[0] != counts[1]:
        lines.append(f"Validation is of {counts[0]} test images here and of {counts[1]} there.")
    if theirs["state"] != "finished":
        lines.append(f"The baseline is not finished: its state is {theirs['state']}.")
    lines.append("One run of each: how far chance alone would take them apart is not known.")
    return lines


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
