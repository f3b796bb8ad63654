"""The plots of an evaluation's sweeps (guidance scales, samplers): functions of what `load_evaluation` gives."""

from __future__ import annotations

import itertools

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from ddpm.data.classes import thing
from ddpm.run.evaluation_figures import FRECHET, RCA, EvaluationFigure
from ddpm.run.format import significant
from ddpm.run.guidance import guidance_kind, guidance_of
from metrics.style import (
    BLUE,
    GOLD,
    GREEN,
    NOTE,
    ORANGE,
    PAGE,
    PANEL,
    PINK,
    PURPLE,
    TEXT,
    headed_figure,
    legend_above,
)

FAMILIES = {"ddpm": PURPLE, "ddim": BLUE, "dpm++": ORANGE}
SIDE = 0.08  # of a guidance scale: how far points of the same scale are apart


def guidance(evaluation: dict) -> Figure:
    """RCA and Fréchet distance by guidance scale: a line for each kind of guidance, side by side."""
    rows = sorted(evaluation["guidance"], key=lambda row: row["guidance_scale"])
    kinds = sorted({guidance_kind(row) for row in rows})  # the plain one is first
    scales = [row["guidance_scale"] for row in rows]
    places = [row["guidance_scale"] + SIDE * kinds.index(guidance_kind(row)) for row in rows]
    sampler = evaluation["sampler"]
    line = f"{evaluation['checkpoint']}  ·  {sampler['name']}, {sampler['steps']} steps  ·  0 ignores the class"
    figure = headed_figure(13, 5, evaluation, line)
    for place, (score, colour) in enumerate(((RCA, BLUE), (FRECHET, ORANGE)), 1):
        axes = figure.add_subplot(1, 2, place)
        values, errors = _with_errors([score.of(row) for row in rows])
        for kind, shade in zip(kinds, itertools.chain([colour], itertools.cycle((PURPLE, PINK))), strict=False):
            ours = [index for index, row in enumerate(rows) if guidance_kind(row) == kind]
            name = f"guidance {kind}" if kind else "generated, 95% interval"
            style = {"color": shade, "marker": "o", "capsize": 3, "label": name}
            axes.errorbar([places[index] for index in ours], values[ours], errors[:, ours], **style)
        best = int(np.argmax(np.nan_to_num(values if score.better == "higher" else -values, nan=-np.inf)))
        words = f"{'highest' if score is RCA else 'lowest'}: {score.text(values[best])} at {guidance_of(rows[best])}"
        star = {"markersize": 13, "markeredgecolor": PAGE, "linestyle": "none", "zorder": 5}
        axes.plot(places[best], values[best], "*", color=GOLD, label=words, **star)
        if score is FRECHET:
            real = numbers([row["frechet_real"]["value"] for row in rows])
            axes.plot(scales, real, color=GREEN, linestyle="--", linewidth=1.3, label="test images among themselves")
        ticks = sorted(set(scales))
        axes.set_xticks(ticks, [f"{scale:g}" for scale in ticks])
        axes.set_xlabel("guidance scale")
        _finish_score(axes, score, rows, f"{thing(evaluation['data'])}s")
    return figure


def samplers(evaluation: dict) -> Figure:
    """RCA and Fréchet distance of each sampler against its time; the recommended one has a ring."""
    rows, take = evaluation["samplers"], evaluation["recommended"] or {}
    used = guidance_of(evaluation["sampler"])
    line = f"{evaluation['checkpoint']}  ·  guidance {used}  ·  on {evaluation['device']}"
    figure = headed_figure(14, 6, evaluation, line)
    labels = []
    for place, score in enumerate((RCA, FRECHET), 1):
        axes = figure.add_subplot(1, 2, place)
        for family in dict.fromkeys(row["sampler"] for row in rows):
            ours = sorted((row for row in rows if row["sampler"] == family), key=lambda row: row["seconds_per_image"])
            values, errors = _with_errors([score.of(row) for row in ours])
            style = {"color": FAMILIES.get(family, TEXT), "marker": "o", "capsize": 2, "elinewidth": 1}
            axes.errorbar([row["seconds_per_image"] for row in ours], values, errors, linewidth=0.8, **style)
        for row in rows:
            where = row["seconds_per_image"], score.of(row)["value"]
            taken = (row["sampler"], row["steps"]) == (take.get("sampler"), take.get("steps"))
            if taken:
                ring = {"markerfacecolor": "none", "markeredgewidth": 2, "linestyle": "none", "color": GOLD}
                axes.plot(*where, "o", markersize=15, **ring)
                axes.plot([], [], "o", markersize=7, label=f"recommended: {row['sampler']} {row['steps']}", **ring)
            labels.append(_name_point(axes, f"{row['sampler']} {row['steps']}", where, taken))
        bound = [1.0]
        if score is FRECHET:
            bound = [row["frechet_real"]["value"] for row in rows if "frechet_real" in row][:1]  # the same for all
            for real in bound:
                axes.axhline(real, color=GREEN, linestyle="--", linewidth=1.3, label="test images among themselves")
        axes.set_xscale("log")
        axes.margins(x=0.14)
        seconds = [row["seconds_per_image"] for row in rows]
        wide = max(seconds) > 4 * min(seconds)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12) if wide else MaxNLocator(5))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: significant(value, 3)))
        axes.set_xlabel("seconds per image")
        _finish_score(axes, score, rows, f"{thing(evaluation['data'])}s")
        axes.set_ylim(*_vertical_limits([score.of(row) for row in rows], bound))
    _place_labels(figure, labels)
    return figure


def _name_point(axes: Axes, name: str, where: tuple[float, float], taken: bool) -> Annotation:
    outline = [withStroke(linewidth=3, foreground=PANEL)]  # readable on top of a line
    style = {"color": GOLD if taken else TEXT, "fontweight": "bold" if taken else "normal", "fontsize": 9}
    offset = {"xytext": (7, 6), "textcoords": "offset points"}
    label = axes.annotate(name, where, **offset, path_effects=outline, zorder=6, **style)
    label.set_in_layout(False)
    return label


def _vertical_limits(estimates: list[dict], bound: list[float | None]) -> tuple[float, float]:
    """Limits of the vertical axis: all intervals and `bound`, with room for labels."""
    ends = numbers([*bound, *(estimate[key] for estimate in estimates for key in ("value", "low", "high"))])
    known = ends[~np.isnan(ends)]
    if not len(known):
        return 0, 1
    room = 0.1 * np.ptp(known) or 0.5
    return known.min() - room, known.max() + room


def _finish_score(axes: Axes, score: EvaluationFigure, rows: list[dict], things: str) -> None:
    """Titles and axis of a panel of RCA or of the Fréchet distance; `things`: characters or images."""
    axes.set_title("RCA: readability relative to test images" if score is RCA else "Fréchet distance to test images")
    counts = {score.of(row)["count"] for row in rows}
    axes.set_title(
        f"{score.better} is better, {' or '.join(f'{count:,}' for count in sorted(counts))} {things}", **NOTE
    )
    axes.set_ylabel(score.label)
    if score is RCA:
        axes.axhline(1, color=GREEN, linestyle="--", linewidth=1.3, label="1: as readable as test images")
    axes.margins(y=0.08)
    axes.set_ylim(bottom=0)
    legend_above(axes)


def _place_labels(figure: Figure, labels: list[Annotation]) -> None:
    """Move labels around their points until they hide neither each other nor, if possible, a point."""
    figure.draw_without_rendering()
    taken = [Bbox.from_bounds(*(label.axes.transData.transform(label.xy) - 5), 10, 10) for label in labels]
    for label in labels:
        best = None
        for offset in ((7, 6), (7, -14), (-7, 6), (-7, -14), (0, 13), (0, -22), (9, 20), (-9, 20), (9, -28), (-9, -28)):
            label.set_position(offset)
            label.set_horizontalalignment("left" if offset[0] > 0 else "right" if offset[0] < 0 else "center")
            box, inside = label.get_window_extent(), label.axes.get_window_extent()
            clashes = sum(box.overlaps(other) for other in taken) + 3 * (
                box.x0 < inside.x0 or box.x1 > inside.x1 or box.y0 < inside.y0 or box.y1 > inside.y1
            )
            if best is None or clashes < best[0]:
                best = clashes, offset, label.get_horizontalalignment(), box
        label.set_position(best[1])
        label.set_horizontalalignment(best[2])
        taken.append(best[3])


def numbers(values: list) -> np.ndarray:
    """As floats; null is NaN."""
    return np.array(values, dtype=float)


def _with_errors(estimates: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Values [N] and how far their intervals reach below and above [2, N], as matplotlib takes them."""
    values, low, high = (numbers([estimate[key] for estimate in estimates]) for key in ("value", "low", "high"))
    return values, np.maximum(np.stack([values - low, high - values]), 0)
