"""The section "Evaluation" of a run's report, and its plots, made from the `evaluation.json` of evaluate.py."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult
from matplotlib import style
from PIL import Image

from ddpm.data.classes import thing
from ddpm.run.datasets import data_words
from ddpm.run.evaluation_figures import CAS, FRECHET, RCA, at, found
from ddpm.run.evaluation_file import load_evaluation, read_evaluation, real_images_words
from ddpm.run.files import atomic_write
from ddpm.run.guidance import guidance_of
from ddpm.run.metrics import DASH
from ddpm.run.paths import RunPaths
from ddpm.sampling.model_card import evaluation_results
from ddpm.sampling.options import weights_words
from metrics.evaluation.plots import EVALUATION_PLOTS, plots_of_evaluation, sampler_words
from metrics.evaluation.words import (
    copying_words,
    guidance_words,
    lead,
    learning_words,
    length_words,
    readability_words,
    recommended_words,
    things,
    variety_words,
)  # fmt: skip
from metrics.html import PLOT
from metrics.page import Block, Facts, Note, Picture, Section, Table, code
from metrics.style import STYLE, png

CAPTIONS = {
    "worst": "The classifier's most confident misreadings: the class asked for, and the class read.",
    "per_class": "Top-1 of each class, with 95% intervals.",
    "confusion": "The class asked for against the class read.",
    "class_balance": "Classes of the {things} drawn when no class was asked for.",
    "closest_pairs": "The {things} closest to training images, each beside that image.",
    "memorisation": "Distance of generated {things} and of test images to the closest training image.",
    "samplers": "RCA and Fréchet distance of each sampler against its time, with 95% intervals.",
    "guidance": "RCA and Fréchet distance by guidance, with 95% intervals.",
}


RECOMMENDED_IN = {"samplers": "recommended", "ema_lengths": "recommended_length"}  # sweep → part of evaluation.json


def write_evaluation_plots(file: Path, folder: Path) -> list[Path]:
    """Draw the plots of the evaluation in `file` into `folder`, each replaced in one step; returns their paths.

    Our plots of sweeps that the evaluation does not have are removed: they would show an earlier one. Without an
    evaluation, or with a damaged one, nothing is drawn or removed.

    Raises:
        OSError: the folder cannot be written.
    """
    try:
        evaluation = read_evaluation(file)
    except ValueError:
        return []  # evaluation_section reports the damage
    if evaluation is None:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    with style.context(STYLE):
        for name, draw in EVALUATION_PLOTS.items():
            file = folder / f"{name}.png"
            if name in plots_of_evaluation(evaluation):
                atomic_write(file, png(draw(evaluation), evaluation, f"evaluation, {name}"))
                drawn.append(file)
            elif _is_plot(file):
                file.unlink()
    return drawn


def _is_plot(file: Path) -> bool:
    """Is it one of ours? The folder of --out may hold a picture of the same name."""
    with suppress(OSError), Image.open(file) as picture:
        return picture.info.get("Description") == PLOT
    return False


def model_index(paths: RunPaths) -> list[EvalResult]:
    """The figures of the evaluation, for a model card's front matter; none if there is no evaluation to be read."""
    try:
        evaluation = load_evaluation(paths)
    except ValueError:
        return []
    return evaluation_results(evaluation) if evaluation else []


def evaluation_section(paths: RunPaths) -> Section | None:
    """The report's section "Evaluation"; None if the run has not been evaluated.

    Pictures are shown if they are there: `write_evaluation_plots` first.
    """
    try:
        evaluation = load_evaluation(paths)
    except ValueError as error:
        words = f"**`evaluation.json` cannot be read as an evaluation** ({error}): run evaluate.py again to replace it."
        return Section("Evaluation", [Note(words)])
    if evaluation is None:
        return None

    def pictures(*names: str) -> list[Picture]:
        files = [(name, paths.evaluation_files / f"{name}.png") for name in names]
        return [
            Picture(file, name.replace("_", " "), CAPTIONS[name].format(things=things(evaluation)))
            for name, file in files
            if os.path.isfile(file)
        ]

    def compared(name: str) -> list[Block]:
        return [*pictures(name), sweep_table(evaluation, name)] if evaluation[name] else []

    lengths = []
    if evaluation["ema_lengths"]:
        lengths = [Section("Which EMA length to take", [length_words(evaluation), *compared("ema_lengths")])]
    glyphs = "**Measured on the embedded glyphs, not EMNIST**: nothing here is about handwriting."
    return Section("Evaluation", [
        *([Note(glyphs)] if evaluation["data"] == "glyphs" else []),
        *lead(evaluation),
        Section("What can be learned from them", learning_words(evaluation)),
        Section("Readability", [*readability_words(evaluation), *pictures("worst", "per_class", "confusion")]),
        Section("Variety", [variety_words(evaluation), *pictures("class_balance")]),
        Section("Memorised?", [copying_words(evaluation), *pictures("closest_pairs", "memorisation")]),
        Section("Which sampler to take", [recommended_words(evaluation), *compared("samplers")]),
        Section("Which guidance to take", [guidance_words(evaluation), *compared("guidance")]),
        *lengths,
        Section("Figures", [figures_table(evaluation, meanings=True)]),
        Section("How it was measured", [how(evaluation)]),
    ])  # fmt: skip


# ---- tables ----------------------------------------------------------------------------------------------------------


def figures_table(evaluation: dict[str, Any], meanings: bool = False) -> Table:
    """All figures with their intervals and counts, those of test images below those of generated images."""
    rows, what = [], thing(evaluation["data"])
    for figure in found(evaluation):
        for place, label in ((figure.place, figure.heading), (figure.real, "– of test images")):
            if place:
                estimate = at(evaluation, place)
                cells = (
                    label,
                    figure.text(estimate["value"]),
                    figure.interval_text(estimate),
                    f"{estimate['count']:,}",
                )
                meaning = figure.meaning.replace("character", what) if place == figure.place else ""
                rows.append((*cells, meaning) if meanings else cells)
    heads = ["Figure", "Value", "95% interval", "Images", *(["What it says"] if meanings else [])]
    title = "" if meanings else f"{evaluation['run']}, {evaluation['checkpoint']}: {sampler_words(evaluation)}"
    return Table(title, heads, rows)


def sweep_table(evaluation: dict[str, Any], name: str) -> Table:
    """The rows of a sweep: guidance by scale, EMA lengths in order, or samplers, the fastest first; the recommended
    sampler and length are bold."""
    first, order, label_of = {
        "guidance": ("Guidance", "guidance_scale", guidance_of),
        "samplers": ("Sampler, steps", "seconds_per_image", lambda row: f"{row['sampler']} {row['steps']}"),
        "ema_lengths": ("EMA length", "ema_length", lambda row: f"{row['ema_length'] or 'EMA of the training'}"),
    }[name]
    take = evaluation[RECOMMENDED_IN[name]] if name in RECOMMENDED_IN else None
    judges = [CAS, RCA, FRECHET] if any(row.get(CAS.key) for row in evaluation[name]) else [RCA, FRECHET]
    cells = []
    for row in sorted(evaluation[name], key=lambda row: row[order] or 0):
        label = label_of(row)
        if take and all(row[key] == value for key, value in take.items() if key != "why"):
            label = f"**{label}**"
        scores = [figure.words_of(row) if row.get(figure.key) else DASH for figure in judges]
        cells.append((label, *scores, f"{RCA.of(row)['count']:,}", milliseconds(row.get("seconds_per_image"))))
    return Table("", [first, *(figure.label for figure in judges), "Images", "Time per image"], cells)


def milliseconds(seconds: float | None) -> str:
    """`12.3 ms`, `1,230 ms`"""
    return DASH if seconds is None else f"{1000 * seconds:,.{0 if seconds >= 0.1 else 1}f} ms"


def how(evaluation: dict[str, Any]) -> Facts:
    images = evaluation["test_images"]
    return Facts({
        "Command": code(evaluation["command"]),
        "Model": f"{evaluation['checkpoint']}, {weights_words(evaluation['weights'])}, "
        f"{sampler_words(evaluation)}; "
        f"{milliseconds(evaluation['sampler']['seconds_per_image'])} per image",
        "Data": data_words(evaluation["data"]),
        "Test images": images and real_images_words(images),
        "Intervals": "95%; proportions: Wilson's (exact where none or all are hits), RCA: MOVER-R, CAS: spread "
        "over classifiers and test images, others: bootstrap",
        "Seed": str(evaluation["seed"]),
        things(evaluation).capitalize(): f"{evaluation['samples_per_class']:,} of each class",
        "Device": evaluation["device"],
        "Time": evaluation["generated"],
    })  # fmt: skip
