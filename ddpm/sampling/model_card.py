"""The model card of an exported model: what it is, how to use it, how good it was measured to be, where it ends."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ddpm.run import kinds
from ddpm.run.config import data_words
from ddpm.run.metrics import METRICS
from ddpm.training.emnist import CLASS_NAMES, MERGED

TASK = "unconditional-image-generation"  # the Hub's nearest: it has no task for classes
SHOWN_EPOCHS = 10
USAGE = """\
```python
import numpy as np
import torch
from diffusers import DiffusionPipeline, UNet2DModel
from PIL import Image

folder = {name}  # where this folder lies, or the model's name on the Hugging Face Hub
pipeline = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)

# Text: a picture for each character, blanks left out. The same seed draws the same characters again.
images = pipeline("Hello World", generator=torch.Generator().manual_seed(0)).images
Image.fromarray(np.concatenate(images, axis=1)).save("hello.png")

# Labels, in the order of pipeline.config.class_names; {null} means "any". Here as an array, uint8 [3, {size}, {size}].
pixels = pipeline([10, 36, {null}], num_inference_steps={steps}, guidance_scale=1.0, output_type="np").images

# The network alone: noisy images in [-1, 1], timesteps, labels. What it predicts is {predicts}.
unet = UNet2DModel.from_pretrained(folder, subfolder="unet")
prediction = unet(torch.randn(1, 1, {size}, {size}), timestep={last}, class_labels=torch.tensor([10])).sample
```"""
EVALUATION = {  # row: (figure, the same of as many real images), as places in evaluation.json; name on the Hub
    "Top-1 of a classifier": ("conditional.top1", "classifier.top1", "top1"),
    "Top-5 of a classifier": ("conditional.top5", "classifier.top5", "top5"),
    "Top-1 relative to real images (RCA)": ("conditional.rca", None, "rca"),
    "Fréchet distance": ("distances.frechet", "distances.frechet_real", "frechet_distance"),
    "Kernel distance": ("distances.kernel", "distances.kernel_real", "kernel_distance"),
    "Precision": ("distances.precision", None, "precision"),
    "Recall": ("distances.recall", None, "recall"),
    "Classes drawn without a label: distance from uniform": (
        "class_balance.total_variation", "class_balance.real_total_variation", "total_variation",
    ),
    "Share that is very close to a training image": (
        "memorisation.closer_than_heldout_p01", None, "closer_than_heldout_p01",
    ),
}  # fmt: skip
EVALUATION_NOTES = """\
In brackets: the 95% bootstrap interval. The classifier is a small one, trained on the real training images; distances,
precision and recall are taken in its features (they are not comparable with distances in Inception features). Distance
from uniform: total variation. Very close: closer than 99% of held-out real images are to their nearest training image,
so that 0.01 is what a model that copies nothing comes to."""


@dataclass(frozen=True)
class CardFacts:
    """What the card is made from, beside the checkpoint's meta.json."""

    folder: str  # the name of the exported folder
    source: str  # what the model was trained on, in words
    sheet: str  # what the sample sheet shows, in words
    unet: dict[str, Any]  # the network's config.json
    parameters: int
    evaluation: dict[str, Any] | None  # evaluation.json, if the run has one


def model_card(meta: dict[str, Any], facts: CardFacts) -> str:
    """README.md of the exported folder: front matter for the Hugging Face Hub, and the page.

    Args:
        meta: run, data, settings, progress, metrics and history, as in a checkpoint's meta.json.
    """
    settings, size = meta["settings"], facts.unet["sample_size"]
    parts = [
        f"---\n{_front_matter(meta, facts).to_yaml()}\n---",
        f"# {meta['run']}",
        f"Draws handwritten characters: give it text or classes, get a picture of {size} × {size} pixels for each. "
        f"A class-conditional diffusion model (DDPM) of {facts.parameters / 1e6:.1f} M parameters, trained on "
        f"{facts.source}.",
        _warning(meta),
        f"![Characters drawn by this model](samples.png)\n\n*{facts.sheet}*",
        "## Use it",
        USAGE.format(
            name=json.dumps(facts.folder), size=size, null=len(CLASS_NAMES), last=settings["diffusion_steps"] - 1,
            steps=min(100, settings["diffusion_steps"]),
            predicts="the noise" if settings["prediction_type"] == "epsilon" else "the velocity (Salimans & Ho 2022)",
        ),
        "It needs torch and diffusers (0.35 or newer) and no network. `trust_remote_code` lets diffusers run "
        "`pipeline.py` of this folder: read it, it is short. `pipeline.to(\"cuda\")` puts it on a GPU; "
        "`sampler=\"ddpm\"`, `\"ddim\"` or `\"dpm++\"` chooses how to denoise.",
        "## Training", _training(meta, facts),
        "## Evaluation", _evaluation(meta, facts.evaluation),
        "## Settings", "```json\n" + json.dumps(settings, indent=2) + "\n```",
        "## Limits", _limits(meta, size),
        "## References", _references(meta),
    ]  # fmt: skip
    return "\n\n".join(filter(None, parts)) + "\n"


def _front_matter(meta: dict[str, Any], facts: CardFacts) -> ModelCardData:
    emnist = meta["data"] == "emnist"
    tags = ["diffusers", "ddpm", "class-conditional-image-generation", "handwriting", "emnist" if emnist else "glyphs"]
    measured = _measured(meta, facts.evaluation)
    return ModelCardData(
        license="mit",
        library_name="diffusers",
        pipeline_tag=TASK,
        tags=tags,
        datasets=["emnist"] if emnist else None,
        model_name=meta["run"],
        eval_results=[
            EvalResult(
                task_type=TASK, dataset_type=data, dataset_name=data_words(data), dataset_split="test",
                metric_type=kind, metric_name=name, metric_value=value,
            )
            for data, kind, name, value in measured
        ] or None,
    )  # fmt: skip


def _measured(meta: dict[str, Any], evaluation: dict[str, Any] | None) -> list[tuple[str, str, str, float]]:
    """The figures that were measured of this very checkpoint, as (data, kind, name, value)."""
    figures = []
    if (loss := meta["metrics"].get("val_loss_ema")) is not None:
        figures.append((meta["data"], "loss", "validation loss", loss))
    if evaluation and _same_checkpoint(meta, evaluation):
        data = evaluation.get("data", meta["data"])
        for name, (place, _, kind) in EVALUATION.items():
            estimate = _at(evaluation, place)
            if estimate and estimate["value"] is not None:
                figures.append((data, kind, name, estimate["value"]))
    return figures


def _warning(meta: dict[str, Any]) -> str:
    if meta["data"] == "emnist":
        return ""
    return ("> **Trained on embedded glyphs, not EMNIST.** They are drawn from fonts; nothing here says how well the "
            "model would draw handwriting.")  # fmt: skip


def _training(meta: dict[str, Any], facts: CardFacts) -> str:
    settings, done, last = meta["settings"], meta["progress"], meta["metrics"]
    rows = [
        ("data", facts.source),
        ("epochs", f"{done['epoch']} of {settings['epochs']}"),
        ("steps", f"{done['step']:,}, of {done['global_batch']:,} images each"),
        ("images seen", f"{done['images_seen']:,}"),
        ("noise", f"{settings['diffusion_steps']} levels, `{settings['beta_schedule']}`"),
        ("the network predicts", "noise" if settings["prediction_type"] == "epsilon" else "velocity"),
        ("weights", f"moving average (EMA), decay {settings['ema_decay']:g}"),
        ("labels left out", f"{settings['cfg_dropout_prob']:.0%}, for classifier-free guidance"),
        ("validation loss, on test images", METRICS["val_loss_ema"].text(last.get("val_loss_ema"))),
        ("time", f"{last['total_time_sec'] / 60:,.1f} minutes" if last.get("total_time_sec") else _number(None)),
    ]
    history = meta.get("history", [])
    every = math.ceil(len(history) / SHOWN_EPOCHS) or 1
    shown = history[::-every][::-1]  # the last one is among them
    columns = [METRICS[name] for name in ("epoch", "loss_mean", "val_loss_ema", "lr")]
    epochs = [[metric.text(row.get(metric.name)) for metric in columns] for row in shown]
    tables = [_table(("", ""), rows)] + ([_table([metric.label for metric in columns], epochs)] if epochs else [])
    return "\n\n".join(tables)


def _evaluation(meta: dict[str, Any], evaluation: dict[str, Any] | None) -> str:
    if not evaluation:
        return "Not measured yet, so nobody knows how readable, varied and original its characters are."
    drawn = evaluation["sampler"]
    how = (
        f"{evaluation['samples_per_class']} characters of each class, drawn with {drawn['name']}, {drawn['steps']} "
        f"steps, guidance {drawn['guidance_scale']:g}, compared with "
        + data_words(evaluation.get("data", meta["data"]))
    )
    other = ""
    if not _same_checkpoint(meta, evaluation):
        other = (f"> **Measured on another checkpoint of this run**, `{evaluation['checkpoint']}`; this export is of "
                 f"step {meta['progress']['step']:,}.")  # fmt: skip
    rows = []
    for name, (place, real, _) in EVALUATION.items():
        if estimate := _at(evaluation, place):
            rows.append((name, _interval(estimate), _interval(_at(evaluation, real)), f"{estimate['count']:,}"))
    table = _table(("", "generated", "real images", "images"), rows)
    best = evaluation.get("recommended")
    advice = f'Recommended: `sampler="{best["sampler"]}"`, {best["steps"]} steps: {best["why"]}.' if best else ""
    return "\n\n".join(filter(None, [other, f"{how}.", table, EVALUATION_NOTES, advice]))


def _limits(meta: dict[str, Any], size: int) -> str:
    alone = [name for name in CLASS_NAMES if name.islower()]
    points = [
        "It knows 47 classes: the ten digits, the capitals, and the small letters "
        f"{' '.join(alone)}. In {' '.join(MERGED)} both cases are one class: ask for `s` or `S`, and either may come. "
        "There are no accents, no punctuation, no other scripts.",
        "Some classes look alike even when people write them: 0 and O; 1, I and L; 2 and Z; 5 and S; 9, g and q.",
        "Characters are drawn one by one: a word is not in one hand, and letters do not join.",
    ]
    if meta["data"] == "emnist":
        points.append(
            "EMNIST was written by some 3,600 people in the United States, census staff and high-school students, "
            "before 1995. Other people's handwriting looks different."
        )
    else:
        points.append("The training images were drawn from fonts, with small distortions: it has seen no handwriting.")
    if size > 28:
        points.append(f"The data are 28 × 28 pixels, enlarged to {size}: pictures are smoother, not richer in detail.")
    if not meta["settings"]["cfg_dropout_prob"]:
        points.append('It was trained with every label in place: `guidance_scale` has to be 1; it cannot draw "any".')
    else:
        points.append("Guidance above 1 makes characters more typical and less varied; far above, strokes multiply.")
    return "\n".join(f"- {point}" for point in points)


def _references(meta: dict[str, Any]) -> str:
    papers = [
        "Ho, Jain, Abbeel: Denoising Diffusion Probabilistic Models, 2020.",
        "Nichol, Dhariwal: Improved Denoising Diffusion Probabilistic Models, 2021 (the cosine schedule).",
        "Ho, Salimans: Classifier-Free Diffusion Guidance, 2022.",
    ]
    if meta["data"] == "emnist":
        papers.append("Cohen, Afshar, Tapson, van Schaik: EMNIST: an extension of MNIST to handwritten letters, 2017.")
    return "\n".join(f"- {paper}" for paper in papers)


def check_evaluation(evaluation: Any) -> None:
    """See that all is there, and of its kind, that a card shows of evaluation.json.

    Raises:
        ValueError: it is not; says in a few words why.
    """
    known = kinds.record(
        sampler=kinds.record(name=kinds.text, steps=kinds.count, guidance_scale=kinds.amount),
        samples_per_class=kinds.count, checkpoint=kinds.text, step=kinds.count, data=kinds.one_of(*kinds.DATA),
    )(evaluation)  # fmt: skip
    best = (evaluation or {}).get("recommended") if known else None
    whole = kinds.record(sampler=kinds.text, steps=kinds.count, why=kinds.text)
    parts = [("the file", known, 5), ("sampler", (known or {}).get("sampler"), 3)]
    if best is not None:  # there is none without a comparison of samplers
        parts.append(("recommended", whole(best), 3))
    for name, found, size in parts:
        if not found or len(found) < size or None in found.values():
            raise ValueError(f"{name} is not what it should be")
    for places in EVALUATION.values():
        for place in filter(None, places[:2]):
            estimate = _at(evaluation, place)
            if estimate is not None and not _is_estimate(estimate):
                raise ValueError(f"{place} is not what it should be")


def _is_estimate(estimate: Any) -> bool:
    if not isinstance(estimate, dict) or kinds.count(estimate.get("count")) is None:
        return False
    figures = [estimate.get(name, ...) for name in ("value", "low", "high")]
    return all(value is None or kinds.figure(value) is not None for value in figures)


def _same_checkpoint(meta: dict[str, Any], evaluation: dict[str, Any]) -> bool:
    return evaluation.get("step") == meta["progress"]["step"]


def _at(document: dict[str, Any], place: str | None) -> dict[str, Any] | None:
    """The estimate at `part.figure` of evaluation.json, if it was made."""
    part, _, figure = (place or "").partition(".")
    found = document.get(part)
    return found.get(figure) if isinstance(found, dict) else None


def _interval(estimate: dict[str, Any] | None) -> str:
    if not estimate:
        return ""
    return f"{_number(estimate['value'])} ({_number(estimate['low'])} to {_number(estimate['high'])})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)
