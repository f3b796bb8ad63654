"""The plots of an evaluation, each a function of the document of `evaluation.json` and nothing else.

"Test images" are those of the data set that were never trained on; "generated" is what the model has drawn.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter
from matplotlib.transforms import Bbox

from metrics.style import (
    BLUE,
    GOLD,
    GREEN,
    MUTED,
    NOTE,
    ORANGE,
    PAGE,
    PANEL,
    PINK,
    PURPLE,
    TEXT,
    headed_figure,
    human_number,
    legend_above,
    shown,
)

FAMILIES = {"ddpm": PURPLE, "ddim": BLUE, "dpm++": ORANGE}
CONFUSIONS = 15  # of the strongest, spelled out
WEAK = 0.8  # a class below this share of the test images' Top-1 is marked


def drawn_with(evaluation: dict) -> str:
    """Checkpoint and sampler, as a line under the title."""
    sampler = evaluation["sampler"]
    how = f"{sampler['name']}, {sampler['steps']} steps, guidance {human_number(sampler['guidance_scale'])}"
    return f"{evaluation['checkpoint']}  ·  {how}"


def strongest_confusions(evaluation: dict, count: int) -> list[tuple[str, str, int, float]]:
    """What is mistaken most often: (asked for, read as, how many, share of those asked for), the most first."""
    names = [entry["name"] for entry in evaluation["conditional"]["per_class"]]
    matrix = np.array(evaluation["conditional"]["confusion"])
    shares = _shares(matrix)
    wrong = np.where(np.eye(len(matrix), dtype=bool), -1, shares)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    places = [place for place in zip(*np.unravel_index(order, matrix.shape), strict=True) if matrix[place] > 0]
    return [(names[row], names[column], int(matrix[row, column]), shares[row, column]) for row, column in places]


def confusion(evaluation: dict) -> Figure:
    """What was asked for against what the classifier reads, and the strongest confusions by name."""
    names = [entry["name"] for entry in evaluation["conditional"]["per_class"]]
    shares = _shares(np.array(evaluation["conditional"]["confusion"]))
    figure = headed_figure(15.5, 11.2, evaluation, drawn_with(evaluation))
    left, right = figure.add_gridspec(1, 2, width_ratios=[4, 1])
    axes = figure.add_subplot(left)
    right_ones = np.eye(len(names), dtype=bool)
    for colour, hidden in ((GREEN, ~right_ones), (ORANGE, right_ones)):
        shades = LinearSegmentedColormap.from_list("", [PANEL, colour])
        visible = np.ma.masked_array(shares, hidden)
        axes.imshow(visible, cmap=shades, norm=PowerNorm(0.5, 0, 1), interpolation="nearest", aspect="auto")
    axes.set_xticks(range(len(names)), names, fontsize=9, color=TEXT)
    axes.set_yticks(range(len(names)), names, fontsize=9, color=TEXT)
    axes.tick_params(length=0, labelright=True, labeltop=True)
    axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.grid(False)
    axes.grid(which="minor", color=PAGE, linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    axes.set(xlabel="the classifier reads", ylabel="asked for")
    axes.set_title("What is read as what", pad=8)
    axes.set_title("green: right, orange: mistaken; the brighter, the more", pad=8, **NOTE)
    _name_confusions(figure.add_subplot(right), evaluation)
    return figure


def _name_confusions(axes: Axes, evaluation: dict) -> None:
    pairs = strongest_confusions(evaluation, CONFUSIONS)
    places, largest = range(len(pairs)), max((share for *_, share in pairs), default=1)
    axes.barh(places, [share for *_, share in pairs], color=ORANGE, height=0.62)
    axes.set_yticks(places, [f"{asked} → {read}" for asked, read, *_ in pairs], fontsize=12, color=TEXT)
    for place, (*_, share) in zip(places, pairs, strict=True):
        axes.text(share + largest * 0.03, place, f"{share:.0%}", va="center", fontsize=9, color=MUTED)
    axes.set(ylim=(CONFUSIONS - 0.4, -0.6), xlim=(0, 1.25 * largest), xticks=[])
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title("Mistaken most often" if pairs else "Nothing is mistaken", pad=21)
    axes.set_xlabel("share of the characters asked for")


def per_class(evaluation: dict) -> Figure:
    """The classifier's Top-1 in each class: generated characters against test images."""
    classes = evaluation["conditional"]["per_class"]
    generated, tests = (_numbers([entry[key] for entry in classes]) for key in ("top1", "real_top1"))
    figure = headed_figure(14, 5, evaluation, drawn_with(evaluation))
    axes = figure.add_subplot()
    weak = generated < WEAK * tests
    for which, colour, label in ((~weak, BLUE, "generated"), (weak, PINK, f"generated, below {WEAK} of test images")):
        if which.any():
            axes.bar(np.flatnonzero(which), generated[which], color=colour, width=0.68, label=label)
    axes.plot(range(len(tests)), tests, "_", color=GREEN, markersize=13, markeredgewidth=2.4, label="test images")
    axes.set(ylim=(0, 1.03), ylabel="Top-1")
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.set_title("Read as what was asked for, by class")
    counts = {entry["count"] for entry in classes}
    each = f"{counts.pop():,}" if len(counts) == 1 else f"{min(counts):,} to {max(counts):,}"
    axes.set_title(f"{each} characters of each class", **NOTE)
    return _by_class(figure, axes, evaluation)


def class_balance(evaluation: dict) -> Figure:
    """Which classes the model draws when it is asked for none."""
    balance = evaluation["class_balance"]
    generated, tests = _numbers(balance["shares"]), _numbers(balance["real_shares"])
    figure = headed_figure(14, 5, evaluation, drawn_with(evaluation).rsplit(",", 1)[0] + ", no class asked for")
    axes = figure.add_subplot()
    ours, theirs = (shown(balance[key]["value"], ".3f") for key in ("total_variation", "real_total_variation"))
    axes.bar(range(len(generated)), generated, color=BLUE, width=0.68, label=f"generated: total variation {ours}")
    style = {"color": GREEN, "markersize": 13, "markeredgewidth": 2.4}
    axes.plot(range(len(tests)), tests, "_", label=f"test images, as many: total variation {theirs}", **style)
    axes.axhline(1 / len(generated), color=GOLD, linestyle="--", linewidth=1.2, label=f"uniform: 1/{len(generated)}")
    axes.set(ylabel="share", ylim=(0, 1.08 * np.nanmax([*generated, *tests, 1 / len(generated)])))
    axes.yaxis.set_major_formatter(PercentFormatter(1, 1))
    axes.set_title("Class balance, as the classifier reads it")
    axes.set_title(f"{balance['count']:,} characters", **NOTE)
    return _by_class(figure, axes, evaluation)


def _by_class(figure: Figure, axes: Axes, evaluation: dict) -> Figure:
    names = [entry["name"] for entry in evaluation["conditional"]["per_class"]]
    axes.set_xticks(range(len(names)), names, fontsize=11, color=TEXT)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="x", visible=False)
    axes.set_xlim(-0.7, len(names) - 0.3)
    legend_above(axes)
    return figure


def memorisation(evaluation: dict) -> Figure:
    """How near generated characters are to training images, against test images, which were never trained on."""
    part = evaluation["memorisation"]
    histogram = part["histogram"]
    figure = headed_figure(11, 5, evaluation, drawn_with(evaluation))
    axes = figure.add_subplot()
    for key, colour, label in (("heldout", GREEN, "test images (never trained on)"), ("generated", BLUE, "generated")):
        counts = _numbers(histogram[key])
        shares = counts / (counts.sum() or 1)
        axes.stairs(shares, histogram["edges"], color=colour, fill=True, alpha=0.25)
        axes.stairs(shares, histogram["edges"], color=colour, linewidth=1.6, label=label)
    near = part["heldout"]["p01"]
    closer = part["closer_than_heldout_p01"]
    label = f"1% of the test images are nearer, {shown(closer['value'], '.1%')} of the generated"
    axes.axvline(near, color=GOLD, linestyle="--", linewidth=1.3, label=label)
    axes.set(xlabel="distance to the nearest training image (L2, pixels from 0 to 1)", ylabel="share of the images")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_title("Has it learned images by heart?")
    axes.set_title(f"{closer['count']:,} characters, {part['train_images']:,} training images", **NOTE)
    legend_above(axes)
    return figure


def guidance(evaluation: dict) -> Figure:
    """What the guidance scale does to readability and distance."""
    rows = sorted(evaluation["guidance"], key=lambda row: row["guidance_scale"])
    scales = [row["guidance_scale"] for row in rows]
    sampler = evaluation["sampler"]
    line = f"{evaluation['checkpoint']}  ·  {sampler['name']}, {sampler['steps']} steps  ·  0 ignores the class"
    figure = headed_figure(13, 5, evaluation, line)
    for place, (key, colour) in enumerate({"rca": BLUE, "frechet": ORANGE}.items(), 1):
        axes = figure.add_subplot(1, 2, place)
        values, errors = _with_errors([row[key] for row in rows])
        axes.errorbar(scales, values, errors, color=colour, marker="o", capsize=3, label="generated, 95% interval")
        best = int(np.argmax(np.nan_to_num(values if key == "rca" else -values, nan=-np.inf)))
        words = f"best: {human_number(values[best], 3)} at {human_number(scales[best])}"
        star = {"markersize": 13, "markeredgecolor": PAGE, "linestyle": "none", "zorder": 5}
        axes.plot(scales[best], values[best], "*", color=GOLD, label=words, **star)
        if key == "frechet":
            real = _numbers([row["frechet_real"]["value"] for row in rows])
            axes.plot(scales, real, color=GREEN, linestyle="--", linewidth=1.3, label="test images among themselves")
        axes.set_xticks(scales, [human_number(scale) for scale in scales])
        axes.set_xlabel("guidance scale")
        _finish_score(axes, key, rows)
    return figure


def samplers(evaluation: dict) -> Figure:
    """What each sampler gives for its time; the recommended one has a ring."""
    rows, take = evaluation["samplers"], evaluation["recommended"] or {}
    scale = human_number(evaluation["sampler"]["guidance_scale"])
    line = f"{evaluation['checkpoint']}  ·  guidance {scale}  ·  on {evaluation['device']}"
    figure = headed_figure(14, 6, evaluation, line)
    labels = []
    for place, key in enumerate(("rca", "frechet"), 1):
        axes = figure.add_subplot(1, 2, place)
        for family in dict.fromkeys(row["sampler"] for row in rows):
            ours = sorted((row for row in rows if row["sampler"] == family), key=lambda row: row["seconds_per_image"])
            values, errors = _with_errors([row[key] for row in ours])
            style = {"color": FAMILIES.get(family, TEXT), "marker": "o", "capsize": 2, "elinewidth": 1}
            axes.errorbar([row["seconds_per_image"] for row in ours], values, errors, linewidth=0.8, **style)
        for row in rows:
            where = row["seconds_per_image"], row[key]["value"]
            taken = (row["sampler"], row["steps"]) == (take.get("sampler"), take.get("steps"))
            if taken:
                ring = {"markerfacecolor": "none", "markeredgewidth": 2, "linestyle": "none", "color": GOLD}
                axes.plot(*where, "o", markersize=15, **ring)
                axes.plot([], [], "o", markersize=7, label=f"take this one: {row['sampler']} {row['steps']}", **ring)
            labels.append(_name_point(axes, f"{row['sampler']} {row['steps']}", where, taken))
        bound = [1.0]
        if key == "frechet":
            bound = [row["frechet_real"]["value"] for row in rows if "frechet_real" in row][:1]  # the same for all
            for real in bound:
                axes.axhline(real, color=GREEN, linestyle="--", linewidth=1.3, label="test images among themselves")
        axes.set_xscale("log")
        axes.margins(x=0.14)
        seconds = [row["seconds_per_image"] for row in rows]
        wide = max(seconds) > 4 * min(seconds)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12) if wide else MaxNLocator(5))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human_number(value, 3)))
        axes.set_xlabel("seconds per image")
        _finish_score(axes, key, rows)
        axes.set_ylim(*_reach([row[key] for row in rows], bound))
    _place(figure, labels)
    return figure


def _name_point(axes: Axes, name: str, where: tuple[float, float], taken: bool) -> Annotation:
    outline = [withStroke(linewidth=3, foreground=PANEL)]  # readable also across a line
    style = {"color": GOLD if taken else TEXT, "fontweight": "bold" if taken else "normal", "fontsize": 9}
    offset = {"xytext": (7, 6), "textcoords": "offset points"}
    label = axes.annotate(name, where, **offset, path_effects=outline, zorder=6, **style)
    label.set_in_layout(False)
    return label


def _reach(estimates: list[dict], bound: list[float | None]) -> tuple[float, float]:
    """From below the lowest interval to above the highest, `bound` included, with room for names."""
    ends = _numbers([*bound, *(estimate[key] for estimate in estimates for key in ("value", "low", "high"))])
    known = ends[~np.isnan(ends)]
    if not len(known):
        return 0, 1
    room = 0.1 * np.ptp(known) or 0.5
    return known.min() - room, known.max() + room


def _finish_score(axes: Axes, key: str, rows: list[dict]) -> None:
    """Titles and axis of a panel of RCA or of the Fréchet distance."""
    better = "higher is better" if key == "rca" else "lower is better"
    axes.set_title("RCA: readable as test images are" if key == "rca" else "Fréchet distance to test images")
    counts = {row[key]["count"] for row in rows}
    axes.set_title(f"{better}, {' or '.join(f'{count:,}' for count in sorted(counts))} characters", **NOTE)
    axes.set_ylabel("RCA" if key == "rca" else "Fréchet distance")
    if key == "rca":
        axes.axhline(1, color=GREEN, linestyle="--", linewidth=1.3, label="1: as readable as test images")
    axes.margins(y=0.08)
    axes.set_ylim(bottom=0)
    legend_above(axes)


def _place(figure: Figure, labels: list[Annotation]) -> None:
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


def _shares(matrix: np.ndarray) -> np.ndarray:
    return matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)


def _numbers(values: list) -> np.ndarray:
    """As floats; null is NaN."""
    return np.array(values, dtype=float)


def _with_errors(estimates: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Values [N] and how far their intervals reach below and above [2, N], as matplotlib takes them."""
    values, low, high = (_numbers([estimate[key] for estimate in estimates]) for key in ("value", "low", "high"))
    return values, np.maximum(np.stack([values - low, high - values]), 0)


FIGURES: dict[str, Callable[[dict], Figure]] = {
    draw.__name__: draw for draw in (confusion, per_class, class_balance, memorisation, guidance, samplers)
}


def figures_of(evaluation: dict) -> list[str]:
    """The plots that an evaluation has: those of the sweeps only if they were run."""
    return [name for name in FIGURES if name not in ("guidance", "samplers") or evaluation[name]]
