"""Who is best in a comparison and by how much: runs, and settings over their seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from ddpm.run.metrics import METRICS
from metrics.compare.figures import (
    ComparedRun,
    Ranking,
    best,
    differing,
    in_words,
    over_seeds,
    trained_with,
)
from metrics.markdown import table
from metrics.style import DASH, human_number

Placed = Sequence[tuple[ComparedRun, float, int | None]]  # runs that can be compared, best first, with value and epoch
STATES = {"running": "in progress", "silent": "no sign of life"}


def told_apart(groups: Sequence[Sequence[ComparedRun]], column: str) -> list[str]:
    """For each group of comparable runs the settings that set it apart, "`resolution` 28"; "" if there is but one."""
    names = [name for name in METRICS[column].same if len({str(runs[0].setting(name)) for runs in groups}) > 1]
    return [", ".join(f"`{name}` {runs[0].said(name)}" for name in names) for runs in groups]


def behind(value: float, best: float) -> tuple[str, str]:
    """How far `value` is from the `best`, and that in percent of the best."""
    gap = abs(value - best)
    return human_number(gap, 3), f"{100 * gap / abs(best):.2f}" if best and not math.isnan(gap) else DASH


def state_words(run: ComparedRun) -> str:
    return STATES.get(run.state, run.state)


# ---- runs ------------------------------------------------------------------------------------------------------------


def ranking_section(ranking: Ranking) -> str:
    """The winner in sentences and everybody's place, for each group of runs that can be compared."""
    parts = ["## Ranking"]
    for group, sentences in zip(ranking.groups, verdicts(ranking), strict=True):
        parts.append(sentences)
        first = group[0][1]
        rows = [
            (place, f"`{run.label}`", human_number(value, 5), epoch or DASH, *behind(value, first), state_words(run))
            for place, (run, value, epoch) in enumerate(group, 1)
        ]
        heads = ["", "Run", f"`{ranking.column}`", "Epoch", "Behind", "Behind, % of the best", "State"]
        parts.append(table(heads, rows))
    return "\n\n".join(parts)


def verdicts(ranking: Ranking) -> list[str]:
    """For each group of runs that can be compared: who is best, and by how much.

    Where all settings were trained with two seeds or more, it is the settings that win, by their means.
    """
    apart = told_apart([[run for run, *_ in group] for group in ranking.groups], ranking.column)
    return [
        (f"With {words}: " if words else "") + (_best_settings(ranking, group) or _best_run(ranking, group))
        for group, words in zip(ranking.groups, apart, strict=True)
    ]


def _best_run(ranking: Ranking, group: Placed) -> str:
    column, (winner, value, epoch) = ranking.column, group[0]
    if math.isnan(value):
        return f"no run has a `{column}`."
    what = human_number(value, 5) + (f" (epoch {epoch})" if epoch else "")
    if len(group) == 1 or math.isnan(group[1][1]):
        return f"only `{winner.label}` has a `{column}`: {what}."
    second, next_value, _ = group[1]
    if value == next_value:
        return f"**`{winner.label}` and `{second.label}` are equal** by `{column}`: {what}."
    better = "larger" if ranking.larger else "smaller"
    return (
        f"**`{winner.label}` is best by `{column}`**, {better} is better: {what}. "
        f"Next is `{second.label}` with {human_number(next_value, 5)}, {_distance(next_value, value)}."
    )


def _distance(value: float, best: float) -> str:
    """`0.00489 more (1.07% of the best)`."""
    gap, percent = behind(value, best)
    return f"{gap} {'more' if value > best else 'less'} ({percent}% of the best)"


# ---- settings over their seeds ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seeds:
    """Runs that differ in nothing but the seed, and the figure of each that they are ranked by."""

    settings: str
    runs: list[ComparedRun]
    values: pd.Series

    @property
    def several(self) -> bool:
        """Whether there are figures of two seeds or more."""
        return pd.Series([run.setting("seed") for run in self.runs])[self.values.notna()].nunique() > 1

    def __str__(self) -> str:
        """`0.4596 ± 0.0035 over 2 seeds`."""
        mean, deviation = human_number(self.values.mean(), 5), human_number(self.values.std(), 2)
        return f"{mean} ± {deviation} over {self.values.count()} seeds"


def by_settings(ranking: Ranking, group: Placed) -> list[Seeds]:
    """The runs of a group by their settings, the best mean first; settings are named by what differs in the ranking."""
    everyone = [run for runs in ranking.groups for run, *_ in runs]
    names = [name for name in differing([trained_with(run) for run in everyone])[0] if name != "seed"]
    found = []
    for runs in over_seeds([run for run, *_ in group]):
        runs = sorted(runs, key=lambda run: run.setting("seed"))
        what = ", ".join(f"`{name}` {in_words(trained_with(runs[0]).get(name))}" for name in names)
        values = pd.Series([best(run, ranking.column)[0] for run in runs])
        found.append(Seeds(what or "all the same", runs, values))

    def order(seeds: Seeds) -> tuple[bool, float]:
        mean = seeds.values.mean()
        return math.isnan(mean), -mean if ranking.larger else mean

    return sorted(found, key=order)


def _best_settings(ranking: Ranking, group: Placed) -> str | None:
    """Which settings win over their seeds; None where some have no two of them, or there is nothing to win against."""
    settings = by_settings(ranking, group)
    if len(settings) < 2 or not all(seeds.several for seeds in settings):
        return None
    winner, second, *_ = settings
    better = "larger" if ranking.larger else "smaller"
    gap, spread = abs(second.values.mean() - winner.values.mean()), max(winner.values.std(), second.values.std())
    chance = " That is no more than a standard deviation: it may be chance." if gap <= spread else ""
    run, value, epoch = group[0]
    return (
        f"**{winner.settings} has the best mean `{ranking.column}`**, {better} is better: {winner}. Next is "
        f"{second.settings} with {second}, {_distance(second.values.mean(), winner.values.mean())}.{chance} "
        f"± is the standard deviation. The best single run is `{run.label}`: {human_number(value, 5)}"
        + (f" (epoch {epoch})." if epoch else ".")
    )


def seeds_section(ranking: Ranking) -> str | None:
    """Mean and standard deviation over the seeds, best mean first, where settings were trained with several."""
    groups = [by_settings(ranking, group) for group in ranking.groups]
    if all(len(seeds.runs) == 1 for group in groups for seeds in group):
        return None
    parts = [f"## Over seeds: `{ranking.column}`", "The best mean comes first."]
    heads = ["Settings", "Seeds", "Mean", "Standard deviation", "Smallest", "Largest"]
    for group, words in zip(groups, told_apart([group[0].runs for group in groups], ranking.column), strict=True):
        parts += [f"### With {words}"] if words else []
        rows = []
        for seeds in group:
            values = seeds.values
            figures = (values.mean(), values.std(), values.min(), values.max())
            numbers = ", ".join(str(run.setting("seed")) for run in seeds.runs)
            rows.append((seeds.settings, numbers, *(human_number(figure, 5) for figure in figures)))
        parts.append(table(heads, rows))
    return "\n\n".join(parts)
