"""The plots of an evaluation, each a function of what `load_evaluation` gives and nothing else.

"Test images" are real images that were never trained on; "generated" is what the model has drawn. The plots of the
sweeps are in evaluation_sweep_plots.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ddpm.evaluation.findings import WEAK, class_interval, weak_classes
from ddpm.run.evaluation_figures import IMBALANCE, TOP1, VERY_CLOSE
from ddpm.run.guidance import guidance_of
from metrics.evaluation_sweep_plots import guidance, numbers, samplers
from metrics.style import BLUE, GOLD, GREEN, MUTED, NOTE, ORANGE, PAGE, PANEL, PINK, TEXT, headed_figure, legend_above

CONFUSIONS = 15  # strongest confusions that are named


def sampler_words(evaluation: dict) -> str:
    """`ddim, 50 steps, guidance 2`"""
    sampler = evaluation["sampler"]
    return f"{sampler['name']}, {sampler['steps']} steps, guidance {guidance_of(sampler)}"


def drawn_with(evaluation: dict) -> str:
    """Checkpoint and sampler, as a line under the title."""
    return f"{evaluation['checkpoint']}  ·  {sampler_words(evaluation)}"


def strongest_confusions(evaluation: dict, count: int) -> list[tuple[str, str, int, float]]:
    """The most frequent misreadings: (asked for, read as, how often, share of those asked for), the most first."""
    names = [entry["name"] for entry in evaluation["conditional"]["per_class"]]
    matrix = np.array(evaluation["conditional"]["confusion"])
    shares = _shares(matrix)
    wrong = np.where(np.eye(len(matrix), dtype=bool), -1, shares)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    places = [place for place in zip(*np.unravel_index(order, matrix.shape), strict=True) if matrix[place] > 0]
    return [(names[row], names[column], int(matrix[row, column]), shares[row, column]) for row, column in places]


def confusion(evaluation: dict) -> Figure:
    """The class asked for against the class read, and the strongest confusions by name."""
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
    axes.set_title("Classes as the classifier reads them", pad=8)
    axes.set_title("green: correct, orange: misread; the brighter, the more often", pad=8, **NOTE)
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
    axes.set_title("Misread most often" if pairs else "Nothing is misread", pad=21)
    axes.set_xlabel("share of the characters asked for")


def per_class(evaluation: dict) -> Figure:
    """The classifier's Top-1 in each class, with its interval: generated characters against test images."""
    classes = evaluation["conditional"]["per_class"]
    generated, tests = (numbers([entry[key] for entry in classes]) for key in (TOP1.key, "real_top1"))
    low, high = numbers([class_interval(entry) for entry in classes]).T
    figure = headed_figure(14, 5, evaluation, drawn_with(evaluation))
    axes = figure.add_subplot()
    weak = np.isin(range(len(classes)), [classes.index(entry) for entry in weak_classes(evaluation)])
    shown_weak = f"generated, shown to be below {WEAK} of test images"
    for which, colour, hatch, label in ((~weak, BLUE, "", "generated"), (weak, PINK, "//", shown_weak)):
        if which.any():
            axes.bar(np.flatnonzero(which), generated[which], color=colour, hatch=hatch, width=0.68, label=label)
    if (none := weak & (generated == 0)).any():  # a bar of no height has no colour
        crosses = {"color": PINK, "markersize": 7, "linestyle": "none", "clip_on": False, "zorder": 5}
        axes.plot(np.flatnonzero(none), np.zeros(none.sum()), "X", label="none is read as its class", **crosses)
    reach = np.maximum([generated - low, high - generated], 0)
    bars = {"fmt": "none", "ecolor": TEXT, "elinewidth": 1, "capsize": 2, "label": "95% interval"}
    axes.errorbar(range(len(classes)), generated, reach, **bars)
    axes.plot(range(len(tests)), tests, "_", color=GREEN, markersize=13, markeredgewidth=2.4, label="test images")
    axes.set(ylim=(0, 1.03), xlabel="class", ylabel="Top-1")
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    axes.set_title("Top-1 by class")
    counts = {entry["count"] for entry in classes}
    each = f"{counts.pop():,}" if len(counts) == 1 else f"{min(counts):,} to {max(counts):,}"
    axes.set_title(f"{each} characters of each class", **NOTE)
    return _by_class(figure, axes, evaluation)


def class_balance(evaluation: dict) -> Figure:
    """The classes that the model draws when it is asked for none."""
    balance = evaluation["class_balance"]
    generated, tests = numbers(balance["shares"]), numbers(balance["real_shares"])
    figure = headed_figure(14, 5, evaluation, drawn_with(evaluation).rsplit(",", 1)[0] + ", no class asked for")
    axes = figure.add_subplot()
    text = IMBALANCE.text
    ours, theirs = (text(balance[key]["value"]) for key in ("total_variation", "real_total_variation"))
    axes.bar(range(len(generated)), generated, color=BLUE, width=0.68, label=f"generated: total variation {ours}")
    style = {"color": GREEN, "markersize": 13, "markeredgewidth": 2.4}
    axes.plot(range(len(tests)), tests, "_", label=f"test images, as many: total variation {theirs}", **style)
    axes.axhline(1 / len(generated), color=GOLD, linestyle="--", linewidth=1.2, label=f"uniform: 1/{len(generated)}")
    axes.set(
        xlabel="class, as the classifier reads it",
        ylabel="share of the characters",
        ylim=(0, 1.08 * np.nanmax([*generated, *tests, 1 / len(generated)])),
    )
    axes.yaxis.set_major_formatter(PercentFormatter(1, 1))
    axes.set_title("Class balance")
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
    """How close generated characters are to training images, compared with test images, which were never trained on."""
    part = evaluation["memorisation"]
    histogram = part["histogram"]
    figure = headed_figure(11, 5, evaluation, drawn_with(evaluation))
    axes = figure.add_subplot()
    sets = (("heldout", GREEN, "--", "test images (never trained on)"), ("generated", BLUE, "-", "generated"))
    for key, colour, line, label in sets:
        counts = numbers(histogram[key])
        shares = counts / (counts.sum() or 1)
        axes.stairs(shares, histogram["edges"], color=colour, fill=True, alpha=0.25)
        axes.stairs(shares, histogram["edges"], color=colour, linestyle=line, linewidth=1.6, label=label)
    closer = VERY_CLOSE.of(part)
    label = f"1% of the test images are closer than this, {VERY_CLOSE.words(closer)} of the generated"
    axes.axvline(part["heldout"]["p01"], color=GOLD, linestyle=":", linewidth=1.3, label=label)
    axes.set(xlabel="distance to the closest training image (L2, pixels from 0 to 1)", ylabel="share of the images")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_title("Memorised?")
    axes.set_title(f"{closer['count']:,} characters, {part['train_images']:,} training images", **NOTE)
    legend_above(axes)
    return figure


def _shares(matrix: np.ndarray) -> np.ndarray:
    return matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)


EVALUATION_PLOTS: dict[str, Callable[[dict], Figure]] = {
    draw.__name__: draw for draw in (confusion, per_class, class_balance, memorisation, guidance, samplers)
}


def plots_of_evaluation(evaluation: dict) -> list[str]:
    """The plots that an evaluation has: those of the sweeps only if they were run."""
    return [name for name in EVALUATION_PLOTS if name not in ("guidance", "samplers") or evaluation[name]]
