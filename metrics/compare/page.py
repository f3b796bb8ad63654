"""The page of a comparison: its sections in Markdown; who is best is said by `compare_ranking.py`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from ddpm.run.config import data_words
from ddpm.run.evaluation_file import load_evaluation
from ddpm.run.format import NONE, duration
from ddpm.run.metrics import METRICS, names
from metrics.compare.cautions import cautions
from metrics.compare.figures import (
    TRAINING,
    VALIDATION,
    ComparedRun,
    Ranking,
    best,
    comparable,
    differing,
    final,
    has_values,
    in_words,
    loss_column,
    loss_levels,
    reached,
    trained_with,
)
from metrics.compare.ranking import ranking_section, seeds_section, told_apart
from metrics.markdown import table
from metrics.style import DASH, human_number

UNITS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))
MARK = "<!-- a comparison, written by metrics.compare -->"
MANY = 5  # up to so many runs stand side by side as columns, more as rows
WIDE = 8  # columns of a table of many runs
FIGURES = {
    "Validation loss": VALIDATION,
    "Validation loss of the EMA weights by noise level (band 1: least noise)": names(group="loss_by_noise_level"),
    "Drawn characters": names(group="quality"),
    "Training loss": TRAINING[:2],
}
OTHERS = (*TRAINING[2:], "lr", "grad_norm", "grad_norm_max", "ema_delta_norm")
COST = {  # heading: how a run's figure is had
    "epochs": lambda run: human_number(run.frame.index[-1]),
    "steps": lambda run: human_number(final(run, "step"), 9),
    "images": lambda run: human_number(final(run, "images_seen"), 12),
    "time": lambda run: time_words(final(run, "total_time_sec")),
    "training": lambda run: time_words(best(run, "train_time_sec")[0]),
    "validation": lambda run: time_words(best(run, "val_time_sec")[0]),
    "evaluation": lambda run: time_words(best(run, "eval_time_sec")[0]),
    "sample grids": lambda run: time_words(best(run, "sample_time_sec")[0]),
    "checkpoints": lambda run: time_words(best(run, "checkpoint_time_sec")[0]),
    "images/s": lambda run: human_number(best(run, "samples_per_sec")[0], 4),
    "MFU": lambda run: human_number(best(run, "mfu")[0], 3),
    "GPU peak MB": lambda run: human_number(best(run, "gpu_mem_peak_mb")[0]),
    "parameters": lambda run: human_number(run.document["model"].get("parameters"), 12),
    "FLOP per image": lambda run: flop_words(run.flops_per_image),
    "FLOP": lambda run: flop_words(final(run, "images_seen") * run.flops_per_image),
    "skipped steps": lambda run: human_number(best(run, "nonfinite_steps")[0]),
    "restarts": lambda run: human_number(max(len(run.document["starts"]) - 1, 0)),
}


def flop_words(value: float) -> str:
    """`38.8 TFLOP`."""
    size, letter = next(((size, letter) for size, letter in UNITS if value >= size), UNITS[-1])
    return DASH if math.isnan(value) else f"{value / size:,.3g} {letter}FLOP"


def time_words(seconds: float) -> str:
    words = duration(seconds)
    return DASH if words == NONE else words


def runs_table(cells: pd.DataFrame) -> str:
    """A row per run of `cells`, or a column per run where they are few; very wide tables come in parts."""
    many = len(cells) > MANY
    cells = cells.set_axis([f"`{name}`" for name in cells.index]) if many else cells.T
    parts = [cells.iloc[:, first : first + WIDE] for first in range(0, len(cells.columns), WIDE if many else MANY)]
    return "\n\n".join(table(["", *part.columns], part.itertuples()) for part in parts)


def delta(value: float, reference: float) -> str:
    """`−0.0123`: how much `value` is above (+) or below (−) `reference`."""
    difference = value - reference
    sign = "+" if difference > 0 else "−" if difference < 0 else "±"
    return f"{sign}{human_number(abs(difference), 3)}"


def settings_section(runs: Sequence[ComparedRun]) -> str:
    """The settings that differ, and what was made of them on the machine; the equal ones are counted."""
    settings = [trained_with(run) for run in runs]
    machines = [
        {name: run.document["environment"].get(name) for name in ("host", "device", "gpu", "world_size", "precision",
                                                                  "compile", "torch", "commit")}
        | {"global_batch_size": run.document["hyperparameters"].get("global_batch_size"),
           "training_images": (run.document.get("data_summary") or {}).get("train_images")}
        for run in runs
    ]  # fmt: skip
    labels, parts = [run.short for run in runs], ["## Settings that differ"]
    for sections, what in ((settings, "settings"), (machines, "facts of data and machine")):
        differ, partly, same = differing(sections)
        cells = pd.DataFrame([[in_words(section.get(name)) for name in differ] for section in sections], labels, differ)
        if differ:
            parts.append(runs_table(cells))
        parts.append(f"{same} {what} are the same.")
        if partly:
            names = ", ".join(f"`{name}`" for name in partly)
            parts.append(f"Not recorded by all of them, as older runs lack newer settings: {names}.")
    return "\n\n".join(parts)


def figures_section(runs: Sequence[ComparedRun]) -> str:
    """Best and final of every measured column, with the distance from the first run."""
    first, labels = runs[0], [run.short for run in runs]
    parts = [f"## Best and final figures\n\nIn brackets: the distance from `{first.label}`, of runs "
             "that can be compared with it. Bold: the best, where all can be."]  # fmt: skip
    for title, columns in FIGURES.items():
        shown = [name for name in columns if has_values(runs, name)]
        heads = {f"{which} `{name}`": (name, which) for name in shown for which in ("best", "final")}
        if heads:
            cells = pd.DataFrame({head: cell_of_each(runs, *of) for head, of in heads.items()}, labels)
            parts.append(f"### {title}\n\n{runs_table(cells)}")
    rest = {
        f"`{name}`": [human_number(final(run, name), 4) for run in runs] for name in OTHERS if has_values(runs, name)
    }
    parts.append(f"### Others, of the last epoch\n\n{runs_table(pd.DataFrame(rest, labels))}")
    return "\n\n".join(parts)


def evaluation_section(runs: Sequence[ComparedRun]) -> str | None:
    """What `evaluate.py` measured of the runs, with 95% intervals."""

    def figure(estimate: dict) -> str:
        value, low, high = (human_number(estimate[name], 4) for name in ("value", "low", "high"))
        return f"{value} [{low}, {high}]"

    rows = []
    for run in runs:
        with suppress(ValueError):
            if evaluation := load_evaluation(run.paths):
                drawn, distance = evaluation["conditional"], evaluation["distances"]["frechet"]
                figures = (figure(drawn["rca"]), figure(drawn["top1"]), drawn["rca"]["count"])
                rows.append((f"`{run.short}`", evaluation["checkpoint"], *figures, figure(distance), distance["count"]))
    heads = ["Run", "Checkpoint", "RCA", "Top-1", "Images", "Fréchet distance", "Images"]
    note = "In brackets: 95% intervals. Distances of different numbers of images are not comparable."
    return f"## Evaluations by `evaluate.py`\n\n{note}\n\n{table(heads, rows)}" if rows else None


def cell_of_each(runs: Sequence[ComparedRun], column: str, which: str) -> list[str]:
    """`0.1256 (−0.0024), epoch 5` for each run."""
    figures = [best(run, column) if which == "best" else (final(run, column), None) for run in runs]
    values = pd.Series([value for value, _ in figures])
    top = values.max() if METRICS[column].larger_is_better else values.min()
    like_first = next(group for group in comparable(runs, column) if runs[0] in group)
    fair = len(like_first) == len(runs) and values.nunique() > 1
    cells = []
    for place, (value, epoch) in enumerate(figures):
        cell = f"**{human_number(value, 5)}**" if fair and value == top else human_number(value, 5)
        if place and runs[place] in like_first and not math.isnan(value - values[0]):
            cell += f" ({delta(value, values[0])})"
        cells.append(cell + (f", epoch {epoch}" if epoch else ""))
    return cells


def cost_section(runs: Sequence[ComparedRun]) -> str:
    cells = pd.DataFrame(
        {name: [figure(run) for run in runs] for name, figure in COST.items()}, [r.short for r in runs]
    )
    cells = cells.loc[:, (cells != DASH).any()]
    note = ("Time: of all starts, everything included; the parts of it below, in hours:minutes:seconds. FLOP: images × "
            "FLOP per image, forward and backward, of training alone.")  # fmt: skip
    return f"## What they took\n\n{note}\n\n{runs_table(cells)}"


def levels_section(runs: Sequence[ComparedRun], asked: Sequence[float]) -> str:
    """Time, images and FLOP until losses were reached, of each group of runs whose losses can be compared."""
    column = loss_column(runs)
    parts = [f"## When losses were reached\n\nUntil the end of the first epoch whose `{column}` was at most the value "
             f"at the head of the column; {DASH}: not reached."]  # fmt: skip
    forms: dict[str, Callable[[float], str]] = {
        "seconds": time_words, "images": lambda value: human_number(value, 12), "flop": flop_words,
    }  # fmt: skip
    heads = {"seconds": "Time", "images": "Images", "flop": "FLOP"}
    groups = comparable(runs, column)
    for group, words in zip(groups, told_apart(groups, column), strict=True):
        parts += [f"### With {words}"] if words else []
        levels = sorted(asked, reverse=True) or loss_levels(group, column)
        for kind, form in forms.items():
            rows = [(f"`{run.short}`", *(form(reached(run, column, level)[kind]) for level in levels)) for run in group]
            parts.append(table([heads[kind], *(human_number(level) for level in levels)], rows))
    return "\n\n".join(parts)


def sources_section(runs: Sequence[ComparedRun], left_out: Sequence[str], folder: Path) -> str:
    def link(run: ComparedRun) -> str:
        page = run.paths.report if run.paths.report.exists() else run.paths.json
        return f"[`{run.paths.run}`]({quote(Path(os.path.relpath(page, folder)).as_posix())})"

    rows = [
        (f"`{run.label}`", data_words(run.document["data"]), link(run), run.document.get("generated") or DASH)
        for run in runs
    ]
    parts = ["## The runs", table(["Run", "Data", "Its report", "Figures of"], rows)]
    return "\n\n".join(parts + [f"Left out: {line}." for line in left_out])


def make_page(runs: Sequence[ComparedRun], left_out: Sequence[str], ranking: Ranking, levels: Sequence[float],
         folder: Path, plots: Sequence[str]) -> str:  # fmt: skip
    """The comparison as Markdown."""
    warned = [f"> - {caution}" for caution in cautions(runs, ranking)]

    def sections() -> Iterator[str | None]:
        yield f"{MARK}\n# Comparison of {len(runs)} runs"
        yield f"Trained on: {'; '.join(sorted({run.said('data') for run in runs}))}."
        yield "\n".join(["> **Before you compare**", ">", *warned]) if warned else None
        yield ranking_section(ranking)
        yield seeds_section(ranking)
        yield settings_section(runs)
        yield "## Curves and samples"
        yield from (f"![{name}](plots/{name}.png)" for name in plots)
        yield levels_section(runs, levels)
        yield figures_section(runs)
        yield evaluation_section(runs)
        yield cost_section(runs)
        yield sources_section(runs, left_out, folder)
        yield f"Made by `python -m metrics.compare` at {datetime.now(UTC).isoformat(timespec='seconds')}."

    return "\n\n".join(filter(None, sections())) + "\n"
