"""The page of a comparison as sections. Its ranking is made in `ranking.py`, its warnings in `cautions.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ddpm.run.datasets import data_words
from ddpm.run.evaluation_figures import CAS, FRECHET, RCA, TOP1, at
from ddpm.run.evaluation_file import load_evaluation
from ddpm.run.format import count, duration, significant, timestamp
from ddpm.run.metrics import (
    DASH,
    DATA,
    ENERGY_WH,
    EPOCH,
    GPU_MEM_PEAK_MB,
    IMAGES_SEEN,
    LOSS_MEAN,
    LOSS_MEDIAN,
    MFU,
    NONFINITE_STEPS,
    NULL_LOSS,
    SAMPLES_PER_SEC,
    STEP,
    TOTAL_TIME_SEC,
    Metric,
    headline,
    select,
)
from ddpm.sampling.options import weights_words
from metrics.compare.cautions import cautions
from metrics.compare.figures import (
    ComparedRun,
    Figure,
    Ranking,
    comparable,
    delta,
    differing,
    has_values,
    loss_levels,
    reached,
    setting_words,
    settings_of_groups,
    values_of,
)
from metrics.compare.plots import caption
from metrics.compare.ranking import ranking_section, seeds_section, told_apart
from metrics.evaluation.plots import sampler_words
from metrics.page import Block, Note, Page, Picture, Section, Table, link
from metrics.starts import computed, stamp_of
from metrics.trends import main_loss, over_epochs

UNITS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))
MARK = "<!-- a comparison, written by metrics.compare -->"
MANY = 5  # up to this many runs stand side by side as columns, more as rows
WIDE = 8  # columns of a table of many runs
FIGURES = {
    "Validation loss": select(group="loss", same=NULL_LOSS),
    "Validation loss of the EMA weights by noise level (band 1: least noise)": select(group="loss_by_noise_level"),
    "Drawn images": select(group="quality"),
    "Training loss": (LOSS_MEAN, LOSS_MEDIAN),
}
SHOWN = {metric for metrics in FIGURES.values() for metric in metrics}
OTHERS = [m for m in select(group="loss") + select(group="optimizer") if m not in SHOWN and m.over_epochs != "sum"]
MACHINE = ("host", "device", "gpu", "world_size", "precision", "compile", "torch", "commit")


def make_page(
    runs: Sequence[ComparedRun], left_out: Sequence[str], ranking: Ranking, levels: Sequence[float], folder: Path,
    plots: Sequence[str], purposes: Section | None = None,
) -> Page:  # fmt: skip
    """The page of a comparison.

    Args:
        levels: losses for the section "When losses were reached"; if empty, they are chosen from the runs.
        folder: where the page will be saved.
        plots: names of the pictures in `folder/plots/`.
        purposes: what the runs were for, and their verdicts.
    """
    pictures = [Picture(folder / "plots" / f"{name}.png", name, caption(name)) for name in plots]
    blocks = [
        *summary(runs, left_out, ranking, purposes),
        seeds_section(ranking),
        settings_section(runs),
        Section("Curves and samples", pictures),
        levels_section(runs, levels),
        figures_section(runs),
        evaluation_section(runs),
        cost_section(runs),
        sources_section(runs, folder),
        f"Made by `python -m metrics.compare` at {datetime.now(UTC).isoformat(timespec='seconds')}.",
    ]
    return Page(f"Comparison of {len(runs)} runs", blocks, MARK)


def summary(
    runs: Sequence[ComparedRun], left_out: Sequence[str], ranking: Ranking, purposes: Section | None = None
) -> list[Block]:
    """The part that is also printed on the terminal: data, criteria, warnings and ranking."""
    metrics = [metric for metric in (ranking.metric, *headline()) if has_values(runs, metric)]
    warned = [*(f"Left out: {line}." for line in left_out), *cautions(runs, metrics)]
    trained_on = f"Trained on: {'; '.join(values_of(runs, DATA.name))}."
    first = [trained_on, *([purposes] if purposes else [])]
    return [*first, *([Note("**Before you compare**", warned)] if warned else []), ranking_section(ranking)]


def runs_tables(runs: Sequence[ComparedRun], columns: Mapping[str, Sequence[str]]) -> list[Table]:
    """Tables of `columns` (heading → a cell of each run): a column per run, or a row per run if there are many; very
    wide tables are split."""
    labels = [f"`{run.short}`" for run in runs]
    if len(runs) <= MANY:
        return [Table("", ["", *labels], [[head, *cells] for head, cells in columns.items()])] if columns else []
    heads = list(columns)
    parts = [heads[first : first + WIDE] for first in range(0, len(heads), WIDE)]
    return [Table("", ["", *part], list(zip(labels, *map(columns.get, part), strict=True))) for part in parts]


# ---- what differs ----------------------------------------------------------------------------------------------------


def settings_section(runs: Sequence[ComparedRun]) -> Section:
    """The settings, and the facts of data and machine, that differ; the equal ones are counted."""
    blocks: list[Block] = []
    kinds = {"settings": [run.recipe for run in runs], "facts of data and machine": list(map(_machine, runs))}
    for what, sections in kinds.items():
        differ, partly, same = differing(sections)
        cells = {name: [setting_words(section.get(name)) for section in sections] for name in differ}
        blocks += [*runs_tables(runs, cells), f"{same} {what} are the same."]
        if partly:
            names = ", ".join(f"`{name}`" for name in partly)
            blocks.append(f"Not recorded by all runs, as older ones lack newer settings: {names}.")
    return Section("Settings that differ", blocks)


def _machine(run: ComparedRun) -> dict[str, Any]:
    document = run.published.document
    return {name: run.published.environment.get(name) for name in MACHINE} | {
        "global_batch_size": document["hyperparameters"].get("global_batch_size"),
        "training_images": run.published.training_images,
    }


# ---- figures ---------------------------------------------------------------------------------------------------------


def figures_section(runs: Sequence[ComparedRun]) -> Section:
    """Best and final value of every measured loss and quality, with the difference from the first run."""
    first = f"`{runs[0].label}`"
    blocks: list[Block] = [
        f"In brackets: the difference from {first}, where a run is comparable with it. Bold: the best, where all are."
    ]
    for title, metrics in FIGURES.items():
        cells = {}
        for metric in metrics:
            if has_values(runs, metric):
                cells[f"best {metric.label}"] = _cells(metric, [run.figure(metric) for run in runs])
                cells[f"final {metric.label}"] = _cells(metric, [Figure(run, run.final(metric)) for run in runs])
        if cells:
            blocks.append(Section(title, runs_tables(runs, cells)))
    rest = {
        metric.label: [metric.text(run.final(metric)) for run in runs] for metric in OTHERS if has_values(runs, metric)
    }
    return Section("Best and final figures", [*blocks, Section("Others, of the last epoch", runs_tables(runs, rest))])


def _cells(metric: Metric, figures: Sequence[Figure]) -> list[str]:
    """`0.12560 (-0.0024), epoch 5` for each run."""
    values = [figure.value for figure in figures if figure.known]
    groups = comparable([figure.run for figure in figures], metric)
    like_first, reference = groups[0], figures[0].value  # the first run is in the first group
    top = (max if metric.larger_is_better else min)(values) if len(groups) == 1 and len(set(values)) > 1 else None
    cells = []
    for place, figure in enumerate(figures):
        cell = f"**{metric.text(figure.value)}**" if figure.value == top else metric.text(figure.value)
        if place and figure.run in like_first and not math.isnan(figure.value - reference):
            cell += f" ({delta(metric, figure.value, reference)})"
        cells.append(cell + (f", epoch {figure.epoch}" if figure.epoch else ""))
    return cells


def evaluation_section(runs: Sequence[ComparedRun]) -> Section | None:
    """What `evaluate.py` measured of the runs, with 95% intervals."""

    def figure(estimate: dict) -> str:
        value, low, high = (significant(estimate[name], 4) for name in ("value", "low", "high"))
        return f"{value} [{low}, {high}]"

    rows, damaged, judges = [], [], set()
    for run in runs:
        try:
            evaluation = load_evaluation(run.paths)
        except ValueError as error:
            damaged.append(f"The evaluation of `{run.label}` cannot be read: {error}.")
            continue
        if evaluation:
            drawn, distance = evaluation["conditional"], FRECHET.of(evaluation["distances"])
            learned = at(evaluation, CAS.place)
            judge = evaluation["classifier"]
            judges.add((judge.get("data_sha256"), judge.get("weights_sha256")))  # older files do not tell
            figures = (
                figure(learned) if learned else DASH, figure(RCA.of(drawn)), figure(TOP1.of(drawn)),
                RCA.of(drawn)["count"],
            )  # fmt: skip
            drawn_with = (
                f"{evaluation['checkpoint']}, {weights_words(evaluation['weights'])}, {sampler_words(evaluation)}"
            )
            if evaluation["data"] != run.published.data:
                drawn_with += f"; compared with {data_words(evaluation['data'])}"
            rows.append((f"`{run.short}`", drawn_with, *figures, figure(distance), distance["count"]))
    heads = ["Run", "Drawn with", CAS.label, RCA.label, TOP1.label, "Images", FRECHET.label, "Images"]
    note = (
        "In brackets: 95% intervals. Figures of different guidance are not comparable, nor are CAS and distances of "
        "different numbers of images."
    )
    known = {judge for judge in judges if judge[1]}
    if len({data for data, _ in known}) < len(known):
        note += (
            " **Not all were judged by the same classifier**, as each was trained on another machine: distances may "
            "differ by some percent for that reason alone."
        )
    blocks = [*([note, Table("", heads, rows)] if rows else []), *damaged]
    return Section("Evaluations by `evaluate.py`", blocks) if blocks else None


# ---- time and compute ------------------------------------------------------------------------------------------------


def cost_section(runs: Sequence[ComparedRun]) -> Section:
    costs = [_costs(run) for run in runs]
    cells = {name: [cost[name] for cost in costs] for name in costs[0]}
    measured = {name: each for name, each in cells.items() if set(each) != {DASH}}
    note = (
        "Time of the epochs: the sum over all epochs that have figures, everything included; its known parts follow. "
        "Computed time: the sum over all starts, each up to its last heartbeat, so work that was lost and repeated "
        "counts too. FLOP: images seen × FLOP per image, forward and backward, training alone."
    )
    return Section("Time and compute", [note, *runs_tables(runs, measured)])


def _costs(run: ComparedRun) -> dict[str, str]:
    """Time, data and compute of a run as text, by heading."""
    rows, starts, last = run.rows, run.published.starts, run.published.last
    images = run.published.status.get(IMAGES_SEEN.name) or IMAGES_SEEN.of(last)  # an epoch may be half done
    spent = computed(starts, images)
    parts = {metric.label: duration(over_epochs(rows, metric)) for metric in select(group="time", over_epochs="sum")}
    return {
        "epochs": count(EPOCH.of(last)),
        **{metric.label: metric.text(over_epochs(rows, metric)) for metric in (STEP, IMAGES_SEEN)},
        "time of the epochs": duration(over_epochs(rows, TOTAL_TIME_SEC)),
        **parts,
        "computed time": duration(spent.seconds),
        "images trained twice": count(spent.repeated),
        "restarts": count(max(len(starts) - 1, 0)),
        **{metric.label: metric.text(over_epochs(rows, metric)) for metric in (SAMPLES_PER_SEC, MFU, NONFINITE_STEPS)},
        **{
            ", ".join(filter(None, (metric.label, metric.unit if metric is ENERGY_WH else ""))): metric.text(
                over_epochs(rows, metric)
            )
            for metric in select(group="cost")
        },
        f"{GPU_MEM_PEAK_MB.label}, MB": GPU_MEM_PEAK_MB.text(over_epochs(rows, GPU_MEM_PEAK_MB)),
        "parameters": count(run.published.document["model"].get("parameters")),
        "FLOP per image": flop_words(run.flops_per_image),
        "FLOP": flop_words(run.final(IMAGES_SEEN) * run.flops_per_image),
    }


def flop_words(value: float) -> str:
    """`38.8 TFLOP`."""
    size, letter = next(((size, letter) for size, letter in UNITS if value >= size), UNITS[-1])
    return DASH if math.isnan(value) else f"{value / size:,.3g} {letter}FLOP"


def levels_section(runs: Sequence[ComparedRun], asked: Sequence[float]) -> Section:
    """Time, images and FLOP until losses were reached, of each group of runs whose losses can be compared."""
    loss = main_loss([run.rows for run in runs])
    blocks: list[Block] = [
        f"At the end of the first epoch whose {loss.label} was at most the value in the heading; {DASH}: not reached."
    ]
    kinds: dict[str, tuple[str, Callable[[float], str]]] = {
        "Time": ("seconds", duration), "Images": ("images", count), "FLOP": ("flop", flop_words),
    }  # fmt: skip
    groups = comparable(runs, loss)
    for group, words in zip(groups, told_apart(groups, settings_of_groups(loss)), strict=True):
        levels = sorted(asked, reverse=True) or loss_levels(group, loss)
        found = {run: [reached(run, loss, level) for level in levels] for run in group}
        tables = []
        for head, (kind, form) in kinds.items():
            rows = [(f"`{run.short}`", *(form(figures[kind]) for figures in each)) for run, each in found.items()]
            tables.append(Table("", [head, *map(significant, levels)], rows))
        blocks += [Section(f"With {words}", tables)] if words else tables
    return Section("When losses were reached", blocks)


def sources_section(runs: Sequence[ComparedRun], folder: Path) -> Section:
    rows = []
    for run in runs:
        page = run.paths.report if run.paths.report.exists() else run.paths.json
        report = link(f"`{run.paths.run}`", page, folder)
        rows.append((f"`{run.label}`", run.published.data_words, report, timestamp(stamp_of(run.published.generated))))
    return Section("The runs", [Table("", ["Run", "Data", "Its report", "Figures of"], rows)])
