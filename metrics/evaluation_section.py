"""The section "Evaluation" of a run's report, and its plots, made from the `evaluation.json` of evaluate.py."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult
from matplotlib import style

from ddpm.evaluation.findings import NEAR_CHANCE, WEAK, best_row, class_interval, copying, weak_classes
from ddpm.run.config import data_words
from ddpm.run.evaluation_figures import FIGURES, FRECHET, IMBALANCE, PRECISION, RCA, RECALL, TOP1, VERY_CLOSE, at
from ddpm.run.evaluation_file import load_evaluation, real_images_words
from ddpm.run.files import atomic_write
from ddpm.run.metrics import DASH
from ddpm.run.paths import RunPaths
from ddpm.sampling.model_card import evaluation_results
from metrics.evaluation_plots import EVALUATION_PLOTS, plots_of_evaluation, sampler_words, strongest_confusions
from metrics.page import Block, Facts, Note, Picture, Section, Table, code
from metrics.style import STYLE, png

SHOWN_CLASSES = 3  # weakest classes that are named
CAPTIONS = {
    "worst": "The classifier's most confident misreadings: the class asked for, and the class read.",
    "per_class": "Top-1 of each class, with 95% intervals.",
    "confusion": "The class asked for against the class read.",
    "class_balance": "Classes of the characters drawn when no class was asked for.",
    "closest_pairs": "The characters closest to training images, each beside that image.",
    "memorisation": "Distance of generated characters and of test images to the closest training image.",
    "samplers": "RCA and Fréchet distance of each sampler against its time, with 95% intervals.",
    "guidance": "RCA and Fréchet distance by guidance scale, with 95% intervals.",
}


def write_evaluation_plots(paths: RunPaths) -> list[Path]:
    """Draw the plots of a run's evaluation into `evaluation/`, each replaced in one step; returns their paths.

    Plots of sweeps that the evaluation does not have are removed: they would show an earlier one. Without an
    evaluation, or with a damaged one, nothing is drawn or removed.

    Raises:
        OSError: the folder cannot be written.
    """
    try:
        evaluation = load_evaluation(paths)
    except ValueError:
        return []  # evaluation_section reports the damage
    if evaluation is None:
        return []
    paths.evaluation_files.mkdir(parents=True, exist_ok=True)
    drawn = []
    with style.context(STYLE):
        for name, draw in EVALUATION_PLOTS.items():
            file = paths.evaluation_files / f"{name}.png"
            if name in plots_of_evaluation(evaluation):
                atomic_write(file, png(draw(evaluation), evaluation, f"evaluation, {name}"))
                drawn.append(file)
            else:
                file.unlink(missing_ok=True)
    return drawn


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
        return [Picture(file, name.replace("_", " "), CAPTIONS[name]) for name, file in files if os.path.isfile(file)]

    def compared(name: str) -> list[Block]:
        return [*pictures(name), sweep_table(evaluation, name)] if evaluation[name] else []

    glyphs = "**Measured on the embedded glyphs, not EMNIST**: nothing here is about handwriting."
    return Section("Evaluation", [
        *([] if evaluation["data"] == "emnist" else [Note(glyphs)]),
        *lead(evaluation),
        Section("Readability", [*readability_words(evaluation), *pictures("worst", "per_class", "confusion")]),
        Section("Variety", [variety_words(evaluation), *pictures("class_balance")]),
        Section("Memorised?", [copying_words(evaluation), *pictures("closest_pairs", "memorisation")]),
        Section("Which sampler to take", [recommended_words(evaluation), *compared("samplers")]),
        Section("Which guidance scale to take", [guidance_words(evaluation), *compared("guidance")]),
        Section("Figures", [figures_table(evaluation, meanings=True)]),
        Section("How it was measured", [how(evaluation)]),
    ])  # fmt: skip


# ---- what it means ---------------------------------------------------------------------------------------------------


def lead(evaluation: dict[str, Any]) -> list[str]:
    """First the classifier's own accuracy, then its results for the model's characters."""
    classifier, generated, distances = (evaluation[part] for part in ("classifier", "conditional", "distances"))
    usual = " (with all 112,800 training images of EMNIST Balanced, 88 to 91% is usual; with fewer it is less)"
    return [
        f"The check first: a classifier, trained on the {classifier['train_images']:,} training images, reads "
        f"{TOP1.words_of(classifier)} of the {classifier['test_images']:,} test images correctly"
        f"{usual if evaluation['data'] == 'emnist' else ''}. {test_images_sentence(evaluation)}",
        f"It reads {TOP1.words_of(generated)} of the {TOP1.of(generated)['count']:,} generated characters as the "
        f"class that was asked for: **RCA {RCA.words_of(generated)}**, where 1 is as readable as test images. "
        f"Their Fréchet distance to test images is {FRECHET.words_of(distances)}, that of other test images "
        f"{FRECHET.words(distances['frechet_real'])}.",
    ]


def test_images_sentence(evaluation: dict[str, Any]) -> str:
    images = evaluation["test_images"]
    if images is None:
        return "Some may also be used for validation: this evaluation was made before the two sets were separated."
    return f"Test images, here and below, are {real_images_words(images)}."


def readability_words(evaluation: dict[str, Any]) -> list[str]:
    """The classes that are shown to be weak, and the strongest confusions."""
    weak = weak_classes(evaluation)
    named = ", ".join(
        f"{code(entry['name'])} ({TOP1.text(TOP1.of(entry))} {_interval(class_interval(entry))}; test images "
        f"{TOP1.text(entry['real_top1'])})"
        for entry in weak[:SHOWN_CLASSES]
    )
    each = _count_per_class([entry["count"] for entry in evaluation["conditional"]["per_class"]])
    if weak:
        words = f"{len(weak)} class(es) are below {WEAK} of the test images' Top-1, the weakest: {named}, of {each}."
    else:
        words = f"No class is shown to be below {WEAK} of the test images' Top-1, with {each}."
    pairs = strongest_confusions(evaluation, 4)
    mistaken = ", ".join(
        f"{code(asked)} as {code(read)} ({count} times, {share:.0%})" for asked, read, count, share in pairs
    )
    return [words, f"Misread most often: {mistaken or 'none'}."]


def _interval(ends: tuple[float, float]) -> str:
    return TOP1.interval_text(dict(zip(("low", "high"), ends, strict=True)))


def _count_per_class(counts: Sequence[int]) -> str:
    few, many = min(counts), max(counts)
    return f"{few:,} characters of each class" if few == many else f"{few:,} to {many:,} characters of each class"


def variety_words(evaluation: dict[str, Any]) -> str:
    distances, balance = evaluation["distances"], evaluation["class_balance"]
    names = [entry["name"] for entry in evaluation["conditional"]["per_class"]]
    order = sorted(zip(balance["shares"], names, strict=True), key=lambda pair: pair[0] or 0)
    least, most = (f"{code(name)} ({TOP1.text(share)})" for share, name in (order[0], order[-1]))
    return (
        f"{PRECISION.words_of(distances)} of the generated characters lie among the test images "
        f"(precision); {RECALL.words_of(distances)} of the test images lie among the generated "
        f"characters (recall). Of {balance['count']:,} characters drawn when no class was asked for, {most} was most "
        f"frequent and {least} least, where an even share is {TOP1.text(1 / len(names))}. Their imbalance (total "
        f"variation) is {IMBALANCE.words_of(balance)}, that of as many test images "
        f"{IMBALANCE.words(balance['real_total_variation'])}."
    )


def copying_words(evaluation: dict[str, Any]) -> str:
    """Whether characters were memorised, as far as the counts can show it."""
    estimate = at(evaluation, VERY_CLOSE.place)
    words = (
        f"{VERY_CLOSE.words(estimate)} of the {estimate['count']:,} generated characters are closer to a training "
        "image than 99% of the test images are; 1% would be chance."
    )
    heldout = sum(evaluation["memorisation"]["histogram"]["heldout"])
    return {
        "more than chance": f"{words} This is more: look at the closest pairs. One cause is copying. Another is strong "
        "guidance: it makes characters plainer than real ones, and plain characters are close to many images.",
        "near chance": f"{words} There is no sign of copying.",
        "too few to tell": f"{words} {estimate['count']:,} characters and {heldout:,} test images are too few to tell "
        f"whether it is less than {NEAR_CHANCE:.0%}.",
    }[copying(evaluation)]


def recommended_words(evaluation: dict[str, Any]) -> str:
    rows, take = evaluation["samplers"], evaluation["recommended"]
    if not rows:
        return "Samplers were not compared (evaluate.py --sweeps does)."
    if take:
        return f"**`--sampler {take['sampler']} --steps {take['steps']}`**: {take['why']}."
    if len(rows) == 1:
        return "None is recommended: only one was measured."
    return (
        f"None is recommended: {RCA.of(rows[0])['count']:,} characters each are too few to tell them apart "
        "(--sweep-samples-per-class)."
    )


def guidance_words(evaluation: dict[str, Any]) -> str:
    """The best guidance scale by RCA and by Fréchet distance, and the scales that cannot be distinguished from it."""
    rows = evaluation["guidance"]
    if not rows:
        return "Guidance scales were not compared (evaluate.py --sweeps does)."
    sentences = []
    for figure, what in ((RCA, "highest RCA"), (FRECHET, "lowest Fréchet distance")):
        best, others = best_row(rows, figure)
        if best is None:
            continue
        scales = ", ".join(f"{row['guidance_scale']:g}" for row in others)
        apart = f"{scales} cannot be distinguished from it" if others else "it differs significantly from all others"
        scale, value = f"{best['guidance_scale']:g}", figure.words_of(best)
        sentences.append(f"Guidance {scale} has the {what}, {value}; {apart}.")
    count = f"Each was measured on {RCA.of(rows[0])['count']:,} characters."
    return " ".join([count, *sentences, "Stronger guidance makes characters plainer and more alike."])


# ---- tables ----------------------------------------------------------------------------------------------------------


def figures_table(evaluation: dict[str, Any], meanings: bool = False) -> Table:
    """All figures with their intervals and counts, those of test images below those of generated characters."""
    rows = []
    for figure in FIGURES.values():
        for place, label in ((figure.place, figure.heading), (figure.real, "– of test images")):
            if place:
                estimate = at(evaluation, place)
                cells = (
                    label,
                    figure.text(estimate["value"]),
                    figure.interval_text(estimate),
                    f"{estimate['count']:,}",
                )
                rows.append((*cells, figure.meaning if place == figure.place else "") if meanings else cells)
    heads = ["Figure", "Value", "95% interval", "Images", *(["What it says"] if meanings else [])]
    title = "" if meanings else f"{evaluation['run']}, {evaluation['checkpoint']}: {sampler_words(evaluation)}"
    return Table(title, heads, rows)


def sweep_table(evaluation: dict[str, Any], name: str) -> Table:
    """The rows of a sweep: guidance scales in order, or samplers, the fastest first and the recommended one bold."""
    take, guidance = evaluation["recommended"] or {}, name == "guidance"
    cells = []
    for row in sorted(evaluation[name], key=lambda row: row["guidance_scale" if guidance else "seconds_per_image"]):
        label = f"{row['guidance_scale']:g}" if guidance else f"{row['sampler']} {row['steps']}"
        if not guidance and (row["sampler"], row["steps"]) == (take.get("sampler"), take.get("steps")):
            label = f"**{label}**"
        figures = RCA.words_of(row), FRECHET.words_of(row), f"{RCA.of(row)['count']:,}"
        cells.append((label, *figures, milliseconds(row.get("seconds_per_image"))))
    first = "Guidance scale" if guidance else "Sampler, steps"
    return Table("", [first, RCA.label, FRECHET.label, "Images", "Time per image"], cells)


def milliseconds(seconds: float | None) -> str:
    """`12.3 ms`, `1,230 ms`"""
    return DASH if seconds is None else f"{1000 * seconds:,.{0 if seconds >= 0.1 else 1}f} ms"


def how(evaluation: dict[str, Any]) -> Facts:
    images = evaluation["test_images"]
    return Facts({
        "Command": code(evaluation["command"]),
        "Model": f"{evaluation['checkpoint']}, {sampler_words(evaluation)}; "
        f"{milliseconds(evaluation['sampler']['seconds_per_image'])} per image",
        "Data": data_words(evaluation["data"]),
        "Test images": images and real_images_words(images),
        "Intervals": "95%; proportions: Wilson's (exact where none or all are hits), RCA: MOVER-R, others: bootstrap",
        "Seed": str(evaluation["seed"]),
        "Characters": f"{evaluation['samples_per_class']:,} of each class",
        "Device": evaluation["device"],
        "Time": evaluation["generated"],
    })  # fmt: skip
