"""Checks of a checkpoint's weights: which tensors are not normal, and which only look abnormal."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ddpm.run.format import plural, shown
from metrics.health.checks import Component, fact, healthy, unhealthy, warning
from metrics.health.tensors import CLASSES, TensorFigures, Weights
from metrics.health.thresholds import Thresholds
from metrics.page import Finding, Table

OUTLIERS = 5  # tensors in the table of outliers, of each kind
NAMED = 3  # tensors in a sentence
REASONS = {  # part of a tensor's name: why unusual figures are normal for it
    "conv_in.weight": "sees the image itself, nine numbers for each output: its weights are large from the start",
    "conv_out.weight": "writes the prediction; its scale is that of the output",
    "class_embedding": "drawn from N(0, 1), a row for each class: entries of 3 to 4 are there from the start",
    "time_embedding": "the time embedding grows most in DDPMs: one vector has to tell all noise levels apart",
    "time_emb_proj": "brings the time embedding, which grows most in DDPMs, into its block",
    "norm": "GroupNorm: its scale begins at 1, its shift at 0",
    "bias": "biases begin near 0 and go where the data need them",
}


def weights_component(weights: Weights, where: str, limits: Thresholds) -> Component:
    """Findings about the weights of the checkpoint called `where`, and tables of its tensors."""
    tensors, fresh = weights.tensors, weights.step < limits.fresh_steps
    numbers = sum(tensor.numbers for tensor in tensors)
    found = [
        fact(
            f"{where}, step {weights.step:,}: {len(tensors)} tensors, {numbers:,} weights, norm {weights.live_norm:.4g}"
        )
    ]
    found += [*_finite(weights), *_constant(tensors, fresh), *_sizes(tensors, limits), *_channels(tensors, limits)]
    found += [*_averages(weights, fresh, limits), *_optimizer(weights, fresh), *_classes(weights)]
    return Component("weights", found, [_outliers(tensors, limits), every_tensor(tensors)])


def _outliers(tensors: list[TensorFigures], limits: Thresholds) -> Table:
    """The tensors with the most extreme figures of each kind, and whether that is normal."""
    kinds = {"largest": lambda t: t.largest, "most grown": lambda t: t.growth or 0, "most uneven": lambda t: t.peak}
    why: dict[str, list[str]] = {}
    for kind, measure in kinds.items():
        for tensor in sorted(tensors, key=measure, reverse=True)[:OUTLIERS]:
            why.setdefault(tensor.name, []).append(kind)
    known = {tensor.name: tensor for tensor in tensors}
    heads = ["Tensor", "Why it is here", "max |w|", "× initial", "max / RMS", "Normal?"]
    rows = [
        (name, ", ".join(kinds), shown(t.largest), shown(t.growth, ".2f"), shown(t.peak, ".1f"), reason(t, limits))
        for name, kinds in why.items()
        for t in [known[name]]
    ]
    return Table("Outliers", heads, rows)


def every_tensor(tensors: Iterable[TensorFigures]) -> Table:
    """All figures of all tensors."""
    heads = [
        "Tensor",
        "Shape",
        "NaN",
        "Inf",
        "Norm",
        "max |w|",
        "Std",
        "× initial",
        "Dead channels",
        "EMA distance",
        "max moment",
        "max moment²",
    ]
    rows = [
        (
            t.name,
            " × ".join(map(str, t.shape)),
            t.nan,
            t.inf,
            shown(t.norm),
            shown(t.largest),
            shown(t.std),
            shown(t.growth, ".2f"),
            shown(t.dead, ".1%"),
            shown(t.ema_distance, ".2%"),
            shown(t.moment),
            shown(t.moment_sq),
        )
        for t in tensors
    ]
    return Table("Every tensor", heads, rows, folded=True)


def reason(tensor: TensorFigures, limits: Thresholds) -> str:
    """Whether the size of a tensor is normal, and why."""
    if tensor.nan or tensor.inf:
        return f"no: {tensor.nan:,} NaN, {tensor.inf:,} Inf"
    grown = tensor.growth is not None and tensor.growth > limits.weight_growth
    nature = next((words for part, words in REASONS.items() if part in tensor.name), None)
    if tensor.largest > limits.weight_max or grown:
        over = (
            f"{tensor.growth:.1f} times its initial size (limit {limits.weight_growth:g})"
            if grown
            else (f"above {limits.weight_max:g}")
        )
        return f"no: {over}" + (f", even though {nature}" if nature else "")
    return f"yes: {nature}" if nature else "yes: within the limits"


def _names(tensors: list[TensorFigures], words: str) -> str:
    """The first few tensors by name, each with `words` (a format that is given the tensor)."""
    named = ", ".join(f"{tensor.name} ({words.format(t=tensor)})" for tensor in tensors[:NAMED])
    return named + (f" and {len(tensors) - NAMED} more" if len(tensors) > NAMED else "")


def _finite(weights: Weights) -> list[Finding]:
    found = []
    if bad := [tensor for tensor in weights.tensors if tensor.nan or tensor.inf]:
        found.append(
            unhealthy(
                f"live weights are not finite in {len(bad)} of {len(weights.tensors)} tensors: "
                f"{_names(bad, '{t.nan:,} NaN, {t.inf:,} Inf of {t.numbers:,}')}; resume from an earlier "
                "checkpoint"
            )
        )
    for folder, troubles in weights.averages.items():
        if troubles:
            named = ", ".join(f"{name} ({what})" for name, what in list(troubles.items())[:NAMED])
            found.append(unhealthy(f"averaged weights in {folder}/: {plural(len(troubles), 'bad tensor')}: {named}"))
    if "unet" not in weights.averages:
        found.append(unhealthy("there are no averaged weights in unet/"))
    if not found:
        found.append(healthy("every weight is finite, live and averaged: no NaN, no Inf"))
    return found


def _constant(tensors: list[TensorFigures], fresh: bool) -> list[Finding]:
    constant = [t for t in tensors if t.numbers > 1 and t.std == 0 and not (t.nan or t.inf)]
    if not constant:
        return [healthy("no tensor is constant")]
    if fresh:
        return [fact(f"{plural(len(constant), 'constant tensor')}, as biases and GroupNorm are at the start")]
    return [
        warning(
            f"{plural(len(constant), 'tensor')} of zero variance, which have learned nothing: "
            f"{_names(constant, 'all about {t.largest:.4g}')}"
        )
    ]


def _sizes(tensors: list[TensorFigures], limits: Thresholds) -> list[Finding]:
    top = max(tensors, key=lambda tensor: tensor.largest, default=None)
    if top is None:
        return []
    grown = sorted((t for t in tensors if (t.growth or 0) > limits.weight_growth), key=lambda tensor: -tensor.growth)
    found = []
    words = f"largest weight {top.largest:.4g}, in {top.name}"
    if top.largest > limits.weight_blown:
        found.append(unhealthy(f"blown up: {words} (limit {limits.weight_blown:g})"))
    elif top.largest > limits.weight_max:
        found.append(warning(f"{words} (limit {limits.weight_max:g})"))
    else:
        found.append(healthy(f"{words} ({reason(top, limits)})"))
    if grown:
        found.append(
            warning(
                f"{plural(len(grown), 'tensor')} grown above {limits.weight_growth:g} times their initial "
                f"size: {_names(grown, '{t.growth:.1f} times')}"
            )
        )
    return found


def _channels(tensors: list[TensorFigures], limits: Thresholds) -> list[Finding]:
    dead = sorted((t for t in tensors if (t.dead or 0) > limits.dead_share), key=lambda tensor: -tensor.dead)
    if dead:
        return [
            warning(
                f"dead output channels in {plural(len(dead), 'tensor')} (limit {limits.dead_share:.0%}): "
                f"{_names(dead, '{t.dead:.1%}')}"
            )
        ]
    most = max((tensor.dead or 0 for tensor in tensors), default=0)
    return [healthy(f"dead output channels: at most {most:.1%} of a tensor")]


def _averages(weights: Weights, fresh: bool, limits: Thresholds) -> list[Finding]:
    if weights.ema_distance is None:
        return []
    far = max((t for t in weights.tensors if t.ema_distance is not None), key=lambda tensor: tensor.ema_distance)
    words = (
        f"EMA and live weights are {weights.ema_distance:.2%} of the live norm apart, most in {far.name} "
        f"({far.ema_distance:.2%})"
    )
    if weights.ema_distance == 0 and not fresh:
        return [fact("EMA and live weights are equal: --ema-decay is 0, or averaging does not work")]
    if weights.ema_distance > limits.ema_distance:
        return [warning(f"{words}, limit {limits.ema_distance:.0%}: the live ones have moved far from their average")]
    return [healthy(words)]


def _optimizer(weights: Weights, fresh: bool) -> list[Finding]:
    with_moments = [tensor for tensor in weights.tensors if tensor.moment is not None]
    if not with_moments:
        return [Finding("–" if fresh else "warning", "the optimizer has no moments: it has made no step")]
    found = []
    if bad := [tensor for tensor in with_moments if tensor.moments_bad]:
        found.append(
            unhealthy(
                f"the optimizer's moments are not finite, or squares below zero, in {plural(len(bad), 'tensor')}: "
                f"{_names(bad, '{t.moments_bad:,} numbers')}"
            )
        )
    if idle := [tensor for tensor in with_moments if tensor.moment == 0]:
        found.append(warning(f"{plural(len(idle), 'tensor')} never had a gradient: {_names(idle, 'moments 0')}"))
    skipped = weights.step - (weights.optimizer_steps or 0)
    note = f"the optimizer has made {weights.optimizer_steps:,} of {weights.step:,} steps ({skipped:,} skipped)"
    top = max(with_moments, key=lambda tensor: tensor.moment_sq or 0)
    found.append(
        fact(
            f"{note}; largest moments {max(t.moment for t in with_moments):.3g} and, squared, "
            f"{top.moment_sq:.3g} ({top.name})"
        )
    )
    return found


def _classes(weights: Weights) -> list[Finding]:
    if len(weights.class_rows) < 2:
        return []
    *classes, null = weights.class_rows
    width = next(tensor.shape[1] for tensor in weights.tensors if tensor.name == CLASSES)
    return [
        fact(
            f"class embedding: norms of the classes' rows {min(classes):.3g} to {max(classes):.3g}, of the null "
            f"class {null:.3g}; a fresh row of {width} numbers has about {math.sqrt(width):.3g}"
        )
    ]
