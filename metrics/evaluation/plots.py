"""The plots of an evaluation, each a function of what `load_evaluation` gives and nothing else.

"Test images" are real images that were never trained on; "generated" is what the model has drawn. The plots of the
sweeps are in sweep_plots.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ddpm.data.classes import shown_labels, shown_words, thing
from ddpm.evaluation.findings import WEAK, class_interval, weak_classes
from ddpm.run.evaluation_figures import IMBALANCE, TOP1, VERY_CLOSE
from ddpm.run.fonts import as_label
from ddpm.run.guidance import guidance_of
from metrics.evaluation.sweep_plots import guidance, numbers, samplers
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
    TEXT,
    class_labels,
    headed_figure,
    legend_above,
)

CONFUSIONS = 15  # strongest confusions that are named
LONGEST_NAME = 16  # letters of a class among them


def sampler_words(evaluation: dict) -> str:
    """`ddim, 50 steps, guidance 2`"""
    sampler = evaluation["sampler"]
    return f"{sampler['name']}, {sampler['steps']} steps, guidance {guidance_of(sampler)}"


def names_of(evaluation: dict) -> list[str]:
    return [entry["name"] for entry in evaluation["conditional"]["per_class"]]


def part_shown(evaluation: dict) -> tuple[list[int], str]:
    """The labels of the classes that plots show, and which part of all classes they are: `, 64 of 1,000 classes`."""
    classes = len(names_of(evaluation))
    shown = shown_labels(classes)
    return shown, f", {words}" if (words := shown_words(len(shown), classes)) else ""


def drawn_with(evaluation: dict) -> str:
    """Checkpoint and sampler, as a line under the title."""
    return f"{evaluation['checkpoint']}  ·  {sampler_words(evaluation)}"


def strongest_confusions(evaluation: dict, count: int) -> list[tuple[str, str, int, float]]:
    """The most frequent misreadings: (asked for, read as, how often, share of those asked for), the most first."""
    names = names_of(evaluation)
    matrix = np.array(evaluation["conditional"]["confusion"])
    shares = _shares(matrix)
    wrong = np.where(np.eye(len(matrix), dtype=bool), -1, shares)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    places = [place for place in zip(*np.unravel_index(order, matrix.shape), strict=True) if wrong[place] > 0]
    return [(names[row], names[column], int(matrix[row, column]), shares[row, column]) for row, column in places]


def confusion(evaluation: dict) -> Figure:
    """The class asked for against the class read, and the strongest confusions by name."""
    shown, part = part_shown(evaluation)
    names = [names_of(evaluation)[index] for index in shown]
    shares = _shares(np.array(evaluation["conditional"]["confusion"]))[np.ix_(shown, shown)]
    figure = headed_figure(15.5, 11.2, evaluation, drawn_with(evaluation))
    left, right = figure.add_gridspec(1, 2, width_ratios=[4, 1])
    axes = figure.add_subplot(left)
    right_ones = np.eye(len(names), dtype=bool)
    for colour, hidden in ((GREEN, ~right_ones), (ORANGE, right_ones)):
        shades = LinearSegmentedColormap.from_list("", [PANEL, colour])
        visible = np.ma.masked_array(shares, hidden)
        axes.imshow(visible, cmap=shades, norm=PowerNorm(0.5, 0, 1), interpolation="nearest", aspect="auto")
    for side in ("x", "y"):
        class_labels(axes, side, range(len(names)), names, size=9, color=TEXT)
    if max(map(len, names)) == 1:
        axes.tick_params(labelright=True, labeltop=True)
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.grid(False)
    axes.grid(which="minor", color=PAGE, linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    axes.set(xlabel="the classifier reads", ylabel="asked for")
    axes.set_title(f"Classes as the classifier reads them{part}", pad=8)
    note = "green: correct, orange: misread" + ("" if part else "; the brighter, the more often")
    axes.set_title(note, pad=8, **NOTE)
    _name_confusions(figure.add_subplot(right), evaluation)
    return figure


def _name_confusions(axes: Axes, evaluation: dict) -> None:
    pairs = strongest_confusions(evaluation, CONFUSIONS)
    places, largest = range(len(pairs)), max((share for *_, share in pairs), default=1)
    axes.barh(places, [share for *_, share in pairs], color=ORANGE, height=0.62)
    texts = [" → ".join(as_label(name, LONGEST_NAME) for name in names) for *names, _, _ in pairs]
    axes.set_yticks(places, texts, fontsize=12 if max(map(len, texts), default=0) <= 5 else 8.5, color=TEXT)
    for place, (*_, share) in zip(places, pairs, strict=True):
        axes.text(share + largest * 0.03, place, f"{share:.0%}", va="center", fontsize=9, color=MUTED)
    axes.set(ylim=(CONFUSIONS - 0.4, -0.6), xlim=(0, 1.25 * largest), xticks=[])
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title("Misread most often" if pairs else "Nothing is misread", pad=21)
    axes.set_xlabel(f"share of the {thing(evaluation['data'])}s asked for")


def per_class(evaluation: dict) -> Figure:
    """The classifier's Top-1 in each class, with its interval: generated images against test images."""
    shown, part = part_shown(evaluation)
    classes = [evaluation["conditional"]["per_class"][index] for index in shown]
    generated, tests = (numbers([entry[key] for entry in classes]) for key in (TOP1.key, "real_top1"))
    low, high = numbers([class_interval(entry) for entry in classes]).T
    figure = headed_figure(14, 5, evaluation, drawn_with(evaluation))
    axes = figure.add_subplot()
    all_weak = weak_classes(evaluation)
    weak = np.array([entry in all_weak for entry in classes])
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
    axes.set_title(f"Top-1 by class{part}")
    counts = {entry["count"] for entry in classes}
    each = f"{counts.pop():,}" if len(counts) == 1 else f"{min(counts):,} to {max(counts):,}"
    axes.set_title(f"{each} {thing(evaluation['data'])}s of each class", **NOTE)
    return _by_class(figure, axes, [entry["name"] for entry in classes])


def class_balance(evaluation: dict) -> Figure:
    """The classes that the model draws when it is asked for none."""
    balance, things = evaluation["class_balance"], f"{thing(evaluation['data'])}s"
    shown, part = part_shown(evaluation)
    generated, tests = (numbers(balance[shares])[shown] for shares in ("shares", "real_shares"))
    even = 1 / len(balance["shares"])
    figure = headed_figure(14, 5, evaluation, drawn_with(evaluation).rsplit(",", 1)[0] + ", no class asked for")
    axes = figure.add_subplot()
    text = IMBALANCE.text
    ours, theirs = (text(balance[key]["value"]) for key in ("total_variation", "real_total_variation"))
    axes.bar(range(len(generated)), generated, color=BLUE, width=0.68, label=f"generated: total variation {ours}")
    style = {"color": GREEN, "markersize": 13, "markeredgewidth": 2.4}
    axes.plot(range(len(tests)), tests, "_", label=f"test images, as many: total variation {theirs}", **style)
    axes.axhline(even, color=GOLD, linestyle="--", linewidth=1.2, label=f"uniform: 1/{len(balance['shares'])}")
    axes.set(
        xlabel="class, as the classifier reads it",
        ylabel=f"share of the {things}",
        ylim=(0, 1.08 * np.nanmax([*generated, *tests, even])),
    )
    axes.yaxis.set_major_formatter(PercentFormatter(1, 1 if even > 0.01 else 2))
    axes.set_title(f"Class balance{part}")
    axes.set_title(f"{balance['count']:,} {things}", **NOTE)
    return _by_class(figure, axes, [names_of(evaluation)[index] for index in shown])


def _by_class(figure: Figure, axes: Axes, names: list[str]) -> Figure:
    class_labels(axes, "x", range(len(names)), names, size=11, color=TEXT)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="x", visible=False)
    axes.set_xlim(-0.7, len(names) - 0.3)
    legend_above(axes)
    return figure


def memorisation(evaluation: dict) -> Figure:
    """How close generated images are to training images, compared with test images, which were never trained on."""
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
    axes.set_title(
        f"{closer['count']:,} {thing(evaluation['data'])}s, {part['train_images']:,} training images", **NOTE
    )
    legend_above(axes)
    return figure


def _shares(matrix: np.ndarray) -> np.ndarray:
    return matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)


EVALUATION_PLOTS: dict[str, Callable[[dict], Figure]] = {
    draw.__name__: draw for draw in (confusion, per_class, class_balance, memorisation, guidance, samplers)
}


def plots_of_evaluation(evaluation: dict) -> list[str]:
    """The plots that an evaluation has: those of parts that were measured."""
    return [name for name in EVALUATION_PLOTS if name not in evaluation or evaluation[name]]
