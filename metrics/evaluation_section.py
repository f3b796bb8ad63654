"""The section "Evaluation" of a run's report, and its plots, made from the `evaluation.json` of evaluate.py."""

from __future__ import annotations

import math
import os
from pathlib import Path

from huggingface_hub import EvalResult
from matplotlib import style

from ddpm.run.files import atomic_write
from ddpm.run.paths import RunPaths
from ddpm.sampling.model_card import evaluation_results
from metrics.evaluation_document import Estimate, load_evaluation
from metrics.evaluation_plots import FIGURES, drawn_with, figures_of, strongest_confusions
from metrics.markdown import picture, table
from metrics.style import DASH, STYLE, data_words, human_number, png

FIGURES_TABLE = {  # (part, figure): (what it is, form, what it says)
    ("classifier", "top1"): ("classifier on test images, Top-1", "%", "the check: are the data read rightly?"),
    ("classifier", "top5"): ("classifier on test images, Top-5", "%", "the class is among its first five"),
    ("conditional", "top1"): ("generated, Top-1", "%", "read as what was asked for"),
    ("conditional", "top5"): ("generated, Top-5", "%", "the same, among the first five"),
    ("conditional", "rca"): ("RCA", "", "Top-1 of generated / of test images: 1 is as readable as they are"),
    ("class_balance", "total_variation"): ("class balance, generated", "", "total variation from uniform, unasked"),
    ("class_balance", "real_total_variation"): ("class balance, test images", "", "of as many: what chance gives"),
    ("distances", "frechet"): ("Fréchet distance, generated", "", "to test images, in the classifier's features"),
    ("distances", "frechet_real"): ("Fréchet distance, test images", "", "of other test images: as near as it gets"),
    ("distances", "kernel"): ("kernel distance × 1000, generated", "k", "the same question; needs fewer images"),
    ("distances", "kernel_real"): ("kernel distance × 1000, test images", "k", "of other test images"),
    ("distances", "precision"): ("precision", "%", "generated images that lie among the test images"),
    ("distances", "recall"): ("recall", "%", "test images that lie among the generated ones"),
    ("memorisation", "closer_than_heldout_p01"): (
        "nearer than 99% of test images", "%", "generated, to their nearest training image; chance: 1%"
    ),
}  # fmt: skip
DAMAGED = "**`evaluation.json` cannot be read as an evaluation** ({}); run evaluate.py again to replace it."


def write_evaluation_plots(paths: RunPaths) -> list[Path]:
    """Draw the plots of a run's evaluation into `evaluation/`, each replaced in one step; returns their paths.

    Plots of sweeps that the evaluation does not have are removed: they would be of an earlier one. Without an
    evaluation, or with a damaged one, nothing is drawn or removed.

    Raises:
        OSError: the folder cannot be written.
    """
    try:
        evaluation = load_evaluation(paths)
    except ValueError:
        return []  # the report says it
    if evaluation is None:
        return []
    paths.evaluation_files.mkdir(parents=True, exist_ok=True)
    drawn = []
    with style.context(STYLE):
        for name in FIGURES:
            file = paths.evaluation_files / f"{name}.png"
            if name in figures_of(evaluation):
                atomic_write(file, png(FIGURES[name](evaluation), evaluation, f"evaluation, {name}"))
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


def evaluation_section(paths: RunPaths) -> list[str]:
    """The report's section "Evaluation" as lines of Markdown; none if the run has not been evaluated.

    Pictures are shown if they are there: `write_evaluation_plots` first.
    """
    try:
        evaluation = load_evaluation(paths)
    except ValueError as error:
        return ["## Evaluation", "", DAMAGED.format(error)]
    if evaluation is None:
        return []
    compared, guided = ([name] if evaluation[name] else [] for name in ("samplers", "guidance"))
    shown = {  # heading: words, pictures, a table
        "Readability": (_weakest(evaluation), ["worst", "per_class", "confusion"], ""),
        "Variety": (_variety(evaluation), ["class_balance"], ""),
        "Learned by heart?": (_by_heart(evaluation), ["closest_pairs", "memorisation"], ""),
        "Which sampler to take": (_which_sampler(evaluation), compared, _samplers(evaluation) if compared else ""),
        "How strongly to guide": (_guidance(evaluation), guided, ""),
    }
    parts = ["## Evaluation", *_lead(evaluation)]
    for heading, (words, pictures, figures) in shown.items():
        files = (paths.evaluation_files / f"{name}.png" for name in pictures)
        parts += [f"### {heading}", words, *(picture(paths, file) for file in files if os.path.isfile(file))]
        parts += [figures] if figures else []
    parts += ["### Figures", _figures(evaluation), "### How it was measured", _how(evaluation)]
    return "\n\n".join(parts).splitlines()


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _shown(value: float | None, form: str) -> str:
    """A figure: `%` as a percentage, `k` times a thousand, else three digits."""
    if not _known(value):
        return DASH
    if form == "%":
        return f"{value:.1%}"
    return human_number(1000 * value if form == "k" else value, 3)


def _interval(estimate: Estimate, form: str) -> str:
    return f"[{_shown(estimate['low'], form)}, {_shown(estimate['high'], form)}]"


def _with_interval(estimate: Estimate, form: str = "") -> str:
    return f"{_shown(estimate['value'], form)} {_interval(estimate, form)}"


def _lead(evaluation: dict) -> list[str]:
    """What it means, in a paragraph; above it, if need be, what must not be overlooked."""
    judge, drawn, distances = (evaluation[part] for part in ("classifier", "conditional", "distances"))
    emnist = evaluation["data"] == "emnist"
    check = (
        f"The check first: a classifier, trained on the {judge['train_images']:,} training images, reads "
        f"{_with_interval(judge['top1'], '%')} of the {judge['test_images']:,} test images rightly"
    )
    known = " (with all 112,800 training images of EMNIST Balanced, 88 to 91% is usual; with fewer it is less)"
    apart = (
        f"Their Fréchet distance to test images is {_shown(distances['frechet']['value'], '')}, where that of other "
        f"test images is {_shown(distances['frechet_real']['value'], '')}."
    )
    words = (
        f"{check}{known if emnist else ''}. Of the characters that the model has drawn it reads "
        f"{_with_interval(drawn['top1'], '%')} as what they were asked to be: **they are "
        f"{_shown(drawn['rca']['value'], '')} times as readable as test images (RCA).** {apart}"
    )
    glyphs = "> **Measured on the embedded glyphs, not EMNIST**: nothing here is about handwriting."
    return [words] if emnist else [glyphs, words]


def _weakest(evaluation: dict) -> str:
    classes = [entry for entry in evaluation["conditional"]["per_class"] if _known(entry["rca"])]
    weakest = sorted(classes, key=lambda entry: entry["rca"])[:3]
    weak = ", ".join(
        f"`{entry['name']}` ({_shown(entry['top1'], '%')}; test images {_shown(entry['real_top1'], '%')})"
        for entry in weakest
    )
    pairs = strongest_confusions(evaluation, 4)
    mistaken = ", ".join(f"`{asked}` as `{read}` ({share:.0%})" for asked, read, _, share in pairs)
    words = f"Weakest, compared with test images: {weak}, of {classes[0]['count']:,} each." if weak else ""
    return f"{words} Mistaken most often: {mistaken or 'none'}."


def _variety(evaluation: dict) -> str:
    distances, balance = evaluation["distances"], evaluation["class_balance"]
    names = [entry["name"] for entry in evaluation["conditional"]["per_class"]]
    order = sorted(zip(balance["shares"], names, strict=True), key=lambda pair: pair[0] or 0)
    least, most = (f"`{name}` ({_shown(share, '%')})" for share, name in (order[0], order[-1]))
    return (
        f"{_shown(distances['precision']['value'], '%')} of the generated characters lie among the test images "
        f"(precision), {_shown(distances['recall']['value'], '%')} of the test images lie among the generated ones "
        f"(recall: how much of their variety is there). Asked for no class, the model draws {most} most often and "
        f"{least} least; {_shown(1 / len(names), '%')} each would be even."
    )


def _by_heart(evaluation: dict) -> str:
    closer = evaluation["memorisation"]["closer_than_heldout_p01"]
    words = (
        f"{_with_interval(closer, '%')} of the generated characters are nearer to a training image than 99% of the "
        "test images are; 1% would be chance."
    )
    if _known(closer["low"]) and closer["low"] > 0.01:
        return (
            f"{words} That is more: look at the closest pairs. Copies are one cause, characters plainer than real "
            "ones, which are near to many, another; strong guidance makes them so."
        )
    return f"{words} There is no sign of copying."


def _which_sampler(evaluation: dict) -> str:
    if not evaluation["samplers"]:
        return "Samplers were not compared (evaluate.py --sweeps does)."
    if take := evaluation["recommended"]:
        return f"**`--sampler {take['sampler']} --steps {take['steps']}`**: {take['why']}."
    return "None is recommended: too few were compared."


def _samplers(evaluation: dict) -> str:
    """The samplers, the fastest first."""
    take = evaluation["recommended"] or {}
    rows = []
    for row in sorted(evaluation["samplers"], key=lambda row: row["seconds_per_image"]):
        name = f"{row['sampler']} {row['steps']}"
        if name == f"{take.get('sampler')} {take.get('steps')}":
            name = f"**{name}**"
        figures = _milliseconds(row["seconds_per_image"]), _with_interval(row["rca"]), _with_interval(row["frechet"])
        rows.append((name, *figures, f"{row['rca']['count']:,}"))
    return table(["Sampler, steps", "Time per image", "RCA", "Fréchet distance", "Images"], rows)


def _guidance(evaluation: dict) -> str:
    rows = evaluation["guidance"]
    if not rows:
        return "Guidance scales were not compared (evaluate.py --sweeps does)."
    best = max(rows, key=lambda row: row["rca"]["value"] or 0)
    near = min(rows, key=lambda row: math.inf if row["frechet"]["value"] is None else row["frechet"]["value"])
    nearest = f"nearest to test images (Fréchet distance {_with_interval(near['frechet'])})"
    other = "" if near is best else f"{human_number(near['guidance_scale'])} is "
    return (
        f"Guidance {human_number(best['guidance_scale'])} is read best (RCA {_with_interval(best['rca'])}) and "
        f"{other}{nearest}, of {rows[0]['rca']['count']:,} images each. More makes characters plainer and more alike."
    )


def _milliseconds(seconds: float | None) -> str:
    return f"{human_number(float(f'{1000 * seconds:.3g}'))} ms" if _known(seconds) else DASH


def _figures(evaluation: dict) -> str:
    rows = []
    for (part, name), (what, form, meaning) in FIGURES_TABLE.items():
        estimate = evaluation[part][name]
        cells = _shown(estimate["value"], form), _interval(estimate, form), f"{estimate['count']:,}"
        rows.append((what, *cells, meaning))
    return table(["Figure", "Value", "95% interval", "Images", "What it says"], rows)


def _how(evaluation: dict) -> str:
    closing = drawn_with(evaluation).replace("  ·  ", ", ")
    rows = [
        ("Command", f"`{evaluation['command']}`"),
        ("Model", f"{closing}; {_milliseconds(evaluation['sampler']['seconds_per_image'])} per image"),
        ("Data", f"{data_words(evaluation)}"),
        ("Seed", evaluation["seed"]),
        ("Characters", f"{evaluation['samples_per_class']:,} of each class"),
        ("Device", evaluation["device"]),
        ("Time", evaluation["generated"]),
    ]
    return "\n".join(f"- **{name}:** {value}" for name, value in rows)
