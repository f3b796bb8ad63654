"""The ranking of a comparison: single runs, and settings averaged over their seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ddpm.run.format import duration
from ddpm.run.metrics import DASH, TOTAL_TIME_SEC
from metrics.compare.figures import (
    ComparedRun,
    Figure,
    Ranking,
    best_first,
    differing,
    over_seeds,
    setting_words,
    settings_of_groups,
)
from metrics.page import Block, Section, Table
from metrics.trends import gap_words


def told_apart(groups: Sequence[Sequence[ComparedRun]], names: Sequence[str]) -> list[str]:
    """For each group of comparable runs, the settings that other groups do not have, "`resolution` 28"; "" if alone."""
    names = [name for name in names if len({str(runs[0].setting(name)) for runs in groups}) > 1]
    return [", ".join(f"`{name}` {runs[0].said(name)}" for name in names) for runs in groups]


def share_behind(value: float, best: float) -> str:
    """How far `value` is from the `best`, in percent of the best."""
    gap = abs(value - best)
    return f"{gap / abs(best):.2%}" if best and not math.isnan(gap) else DASH


# ---- runs ------------------------------------------------------------------------------------------------------------


def ranking_section(ranking: Ranking) -> Section:
    """For each group of comparable runs: the winner in sentences, and a table of all places."""
    metric = ranking.metric
    heads = ["", "Run", metric.heading, "Epoch", "Behind", "% of best", "Time", "State"]
    blocks: list[Block] = []
    for group, verdict in zip(ranking.groups, verdicts(ranking), strict=True):
        rows = []
        for place, figure in enumerate(group, 1):
            run, value, first = figure.run, figure.value, group[0].value
            behind = gap_words(metric, abs(value - first)), share_behind(value, first)
            took = duration(run.final(TOTAL_TIME_SEC))
            cells = (f"`{run.short}`", metric.text(value), figure.epoch or DASH, *behind, took, run.published.state)
            rows.append((place, *cells))
        blocks += [verdict, Table("", heads, rows)]
    return Section("Ranking", blocks)


def verdicts(ranking: Ranking) -> list[str]:
    """For each group of comparable runs: which is best, and by how much.

    If all settings were trained with two seeds or more, settings are ranked by their means instead of single runs.
    """
    groups = [[figure.run for figure in group] for group in ranking.groups]
    apart = told_apart(groups, settings_of_groups(ranking.metric))
    return [
        (f"With {words}: " if words else "") + (_best_settings(ranking, group) or _best_run(ranking, group))
        for group, words in zip(ranking.groups, apart, strict=True)
    ]


def _best_run(ranking: Ranking, group: Sequence[Figure]) -> str:
    metric, (winner, *others) = ranking.metric, group
    what, label = winner.text(metric), winner.run.label
    if not winner.known:
        return f"No run has a value of {metric.label}."
    if not others or not others[0].known:
        return f"Only `{label}` has a value of {metric.label}: {what}."
    second = others[0]
    if winner.value == second.value:
        return f"**`{label}` and `{second.run.label}` are equal** by {metric.label}: {what}."
    return (
        f"**`{label}` is best by {metric.label}**, {ranking.direction}: {what}. Next is `{second.run.label}` with "
        f"{metric.text(second.value)}, {_distance(ranking, second.value, winner.value)}."
    )


def _distance(ranking: Ranking, value: float, best: float) -> str:
    """`0.00489 more (1.07% of the best)`."""
    gap = gap_words(ranking.metric, abs(value - best))
    return f"{gap} {'more' if value > best else 'less'} ({share_behind(value, best)} of the best)"


# ---- settings over their seeds ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seeds:
    """Runs that differ in nothing but the seed.

    `values`: for each seed with a figure its value, or the mean of its runs, such as of two machines; `seeds`: all of
    them in words, "0 (2 runs), 1".
    """

    settings: str
    seeds: str
    values: list[float]

    @property
    def several(self) -> bool:
        """Are there figures of two seeds or more?"""
        return len(self.values) > 1

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def deviation(self) -> float:
        """Standard deviation (n - 1)."""
        return statistics.stdev(self.values) if self.several else math.nan


def by_settings(ranking: Ranking, group: Sequence[Figure]) -> list[Seeds]:
    """The runs of a group by their settings, the best mean first; settings are named by what differs in the ranking."""
    everyone = [figure.run for figures in ranking.groups for figure in figures]
    timed = ranking.metric.timed
    names = differing([run.learned_with(timed) for run in everyone])[0]
    found = []
    for runs in over_seeds([figure.run for figure in group], timed):
        what = ", ".join(f"`{name}` {setting_words(runs[0].learned_with(timed).get(name))}" for name in names)
        of_seeds: dict[int, list[Figure]] = {}
        for run in sorted(runs, key=lambda run: run.setting("seed") or 0):
            of_seeds.setdefault(run.setting("seed"), []).append(run.figure(ranking.metric))
        words = (f"{seed} ({len(each)} runs)" if len(each) > 1 else str(seed) for seed, each in of_seeds.items())
        known = [[figure.value for figure in each if figure.known] for each in of_seeds.values()]
        values = [statistics.fmean(each) for each in known if each]
        found.append(Seeds(what or "all the same", ", ".join(words), values))
    return sorted(found, key=lambda seeds: best_first(seeds.mean, ranking.larger))


def _best_settings(ranking: Ranking, group: Sequence[Figure]) -> str | None:
    """The settings with the best mean over seeds, in sentences; None if some have one seed only, or none differ."""
    settings = by_settings(ranking, group)
    if len(settings) < 2 or not all(seeds.several for seeds in settings):
        return None
    metric, (winner, second, *_) = ranking.metric, settings
    gap, spread = abs(second.mean - winner.mean), max(winner.deviation, second.deviation)
    chance = " That is no more than a standard deviation: it may be chance." if gap <= spread else ""

    def words(seeds: Seeds) -> str:
        return f"{metric.text(seeds.mean)} ± {gap_words(metric, seeds.deviation)} over {len(seeds.values)} seeds"

    return (
        f"**{winner.settings} has the best mean {metric.label}**, {ranking.direction}: {words(winner)}. Next is "
        f"{second.settings} with {words(second)}, {_distance(ranking, second.mean, winner.mean)}.{chance} "
        f"± is the standard deviation. The best single run is `{group[0].run.label}`: {group[0].text(metric)}."
    )


def seeds_section(ranking: Ranking) -> Section | None:
    """Mean and standard deviation over the seeds, best mean first, where settings were trained with several."""
    groups = [by_settings(ranking, group) for group in ranking.groups]
    if not any(seeds.several for group in groups for seeds in group):
        return None
    metric = ranking.metric
    blocks: list[Block] = ["The best mean comes first."]
    heads = ["Settings", "Seeds", "Mean", "Standard deviation", "Smallest", "Largest"]
    apart = told_apart([[figure.run for figure in group] for group in ranking.groups], settings_of_groups(metric))
    for group, words in zip(groups, apart, strict=True):
        rows = []
        for seeds in group:
            spread = gap_words(metric, seeds.deviation)
            extremes = (metric.text(extreme(seeds.values, default=None)) for extreme in (min, max))
            rows.append((seeds.settings, seeds.seeds, metric.text(seeds.mean), spread, *extremes))
        table = Table("", heads, rows)
        blocks.append(Section(f"With {words}", [table]) if words else table)
    return Section(f"Over seeds: {metric.label}", blocks)
