"""The model card of an export: Hub front matter and the facts that model_card_template.md shows.

`card_data` and `evaluation_results` also make the front matter of a run's training report.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ddpm.data.classes import class_names_of, thing
from ddpm.data.emnist import SPLITS
from ddpm.data.idx import IMAGE_SIZE
from ddpm.run.datasets import TITLES, data_words
from ddpm.run.evaluation_figures import at, found, measured
from ddpm.run.evaluation_file import real_images_words
from ddpm.run.format import duration, plural
from ddpm.run.guidance import guidance_of
from ddpm.run.metrics import ENERGY_WH, EPOCH, LOSS_MEAN, LR, METRICS, TOTAL_TIME_SEC, VAL_LOSS_EMA, select
from ddpm.sampling.markdown import cell, code, escaped
from ddpm.sampling.options import SamplerName, weights_of, weights_words

TEMPLATE = Path(__file__).with_name("model_card_template.md")
TASK = "unconditional-image-generation"  # the closest task of the Hub: it has none for drawing by class
# machine-specific settings: the card leaves them out, and an export's meta.json has these values
MACHINE_SPECIFIC = {
    "data_root": "data", "output_root": ".", "resume": "auto", "device": "auto", "config": None, "criteria": None,
}  # fmt: skip
SHOWN_EPOCHS, NAMED_CLASSES = 10, 60
HUB = {"emnist": "emnist", "kmnist": "tanganke/kmnist", "fashion": "zalando-datasets/fashion_mnist"}  # data sets there
PAPERS = {
    "emnist": "Cohen, Afshar, Tapson, van Schaik: EMNIST: an extension of MNIST to handwritten letters, 2017.",
    "kmnist": "Clanuwat, Bober-Irizar, Kitamoto, Lamb, Yamamoto, Ha: Deep Learning for Classical Japanese Literature, "
    "2018.",
    "fashion": "Xiao, Rasul, Vollgraf: Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning "
    "Algorithms, 2017.",
}
ALIKE = set("0O1IL2Z5S9gq")  # characters that look alike
EPOCH_COLUMNS = [EPOCH, LOSS_MEAN, VAL_LOSS_EMA, LR]


@dataclass(frozen=True)
class CardFacts:
    """What the card needs besides meta.json."""

    folder: str  # name of the exported folder
    samples: str  # caption of samples.png
    unet: dict[str, Any]  # the network's config.json
    parameters: int
    evaluation: dict[str, Any] | None = None  # evaluation.json, as `load_evaluation` returns it
    damage: str | None = None  # why evaluation.json cannot be read
    license: str | None = None  # of the weights, as the Hub calls it
    guidance: dict[str, Any] = field(default_factory=dict)  # how the pipeline guides, as in meta.json


def model_card(meta: dict[str, Any], facts: CardFacts) -> str:
    """README.md of an export.

    Args:
        meta: run, data, settings, used, progress, metrics and history, as in a checkpoint's meta.json.
    """
    loss, results = VAL_LOSS_EMA.of(meta["metrics"]), []
    if loss is not None and weights_of(meta) == "ema":
        results.append(_result(meta["data"], "loss", VAL_LOSS_EMA.label, loss))
    if facts.evaluation and _of_this_model(facts.evaluation, meta, facts.guidance):
        results += evaluation_results(facts.evaluation)
    front_matter = card_data(meta["run"], meta["data"], results, facts.license)
    return str(ModelCard.from_template(front_matter, str(TEMPLATE), **template_variables(meta, facts))).rstrip() + "\n"


def card_data(run: str, data: str, results: Sequence[EvalResult] = (), license: str | None = None) -> ModelCardData:
    """The Hub's front matter for a model of `run`.

    Args:
        data: the data set's name in files. Glyphs and folders of images are no data sets of the Hub.
        results: what was measured of it, for the `model-index`.
        license: of the weights; without one the front matter names none.
    """
    family = _family(data)
    tags = ["diffusers", "ddpm", "class-conditional-image-generation"]
    tags += ["handwriting"] if family in ("emnist", "kmnist") else []
    tags += [data] if data in TITLES else []
    return ModelCardData(
        license=license, library_name="diffusers", pipeline_tag=TASK, tags=tags,
        datasets=[HUB[family]] if family in HUB else None, model_name=run, eval_results=list(results) or None,
    )  # fmt: skip


def evaluation_results(evaluation: dict[str, Any]) -> list[EvalResult]:
    """The figures of an evaluation that have a value, for a `model-index`.

    Args:
        evaluation: as `load_evaluation` returns it.
    """
    return [_result(evaluation["data"], figure.name, figure.label, value) for figure, value in measured(evaluation)]


def _result(data: str, kind: str, name: str, value: float) -> EvalResult:
    """A figure measured on test images, called `kind` by programs and `name` by people."""
    return EvalResult(
        task_type=TASK, dataset_type=data if data in TITLES else "folder", dataset_name=data_words(data),
        dataset_split="test", metric_type=kind, metric_name=name, metric_value=value,
    )  # fmt: skip


def template_variables(meta: dict[str, Any], facts: CardFacts) -> dict[str, Any]:
    """The variables of model_card_template.md, except `card_data`."""
    settings, evaluation = meta["settings"] | meta.get("used", {}), facts.evaluation
    shown = {name: value for name, value in settings.items() if name not in MACHINE_SPECIFIC}
    names, family = class_names_of(meta), _family(meta["data"])
    size = facts.unet["sample_size"] * math.isqrt(facts.unet["in_channels"])
    return {
        "run": meta["run"],
        "emnist": family == "emnist",
        "glyphs": family == "glyphs",
        "things": f"{thing(meta['data'])}s",
        "draws_text": isinstance(names, str),
        "example": _example(names),
        "knows": _knows(meta["data"], names),
        "alike": set(names) >= ALIKE,
        "paper": PAPERS.get(family),
        "source": escaped(data_words(meta["data"])),
        "samples": escaped(facts.samples),
        "folder": json.dumps(facts.folder),
        "size": size,
        "channels": facts.unet["in_channels"],
        "network_size": facts.unet["sample_size"],
        "original_size": IMAGE_SIZE,
        "enlarged": size > IMAGE_SIZE and meta["data"] in TITLES,  # a folder's images have sizes of their own
        "parameters": f"{facts.parameters:,}",
        "classes": len(names),
        "two_labels": (10, 36) if len(names) > 36 else (0, len(names) - 1),
        "steps": min(100, settings["diffusion_steps"]),
        "samplers": ", ".join(f'`"{name}"`' for name in get_args(SamplerName)),
        "last_timestep": settings["diffusion_steps"] - 1,
        "predicts_noise": settings["prediction_type"] == "epsilon",
        "cosine_schedule": settings["beta_schedule"] == "squaredcos_cap_v2",
        "label_dropout": settings["cfg_dropout_prob"],
        "guide": facts.guidance.get("guide"),
        "guidance_interval": facts.guidance.get("guidance_interval"),
        "training": _training(meta),
        "epoch_columns": [metric.label for metric in EPOCH_COLUMNS],
        "epochs": _epochs(meta.get("history", [])),
        "damage": facts.damage,
        "evaluation": evaluation and _evaluation(evaluation),
        "other_model": evaluation and not _of_this_model(evaluation, meta, facts.guidance) and _model_words(evaluation),
        "other_guide": evaluation and _with_other_guide(evaluation, facts.guidance),
        "settings": json.dumps(shown, indent=2),
        "settings_as_used": "used" in meta,
    }


def _family(data: str) -> str:
    """`emnist` for each of its splits, the name of any other data set."""
    return "emnist" if data.startswith("emnist-") else data


def _example(names: str | list[str]) -> str:
    """What the card's example draws, as Python: a text, or a list of classes."""
    if isinstance(names, str):
        hello = "Hello World"
        known = {*names, *names.lower()} >= set(hello.replace(" ", ""))
        return json.dumps(hello if known else names[:10], ensure_ascii=False)
    return json.dumps(names[:3], ensure_ascii=False)


def _knows(data: str, names: str | list[str]) -> str:
    """The classes in sentences."""
    count = f"It knows {len(names):,} classes: "
    if _family(data) not in ("emnist", "glyphs"):
        more = len(names) - NAMED_CLASSES
        named = ", ".join(map(code, names[:NAMED_CLASSES]))
        return f"{count}{named}{f' and {more:,} more: see `pipeline.config.class_names`' if more > 0 else ''}."
    both = SPLITS[data.partition("-")[2] or "balanced"].both_cases
    small = [name for name in names if name.islower()]
    parts = ["the ten digits"] if "0" in names else []
    parts += ["the capitals"] if "A" in names else []
    parts += ["the small letters" + (f" {' '.join(small)}" if len(small) < 26 else "")] if small else []
    merged = f" In {' '.join(both)} both cases are one class: ask for `s` or `S`, and you may get either."
    known = ", ".join([*parts[:-1], f"and {parts[-1]}"]) if len(parts) > 1 else parts[0]
    return f"{count}{known}.{merged if both else ''} There are no accents, no punctuation and no other scripts."


def _training(meta: dict[str, Any]) -> dict[str, str]:
    """The facts of the training, by name."""
    settings, done, last, used = meta["settings"], meta["progress"], meta["metrics"], meta.get("used", {})
    validation = f" on {plural(used['val_images'], 'test image')}" if used.get("val_images") else " on test images"
    weights, dropout = f"moving average (EMA), decay {settings['ema_decay']:g}", settings["cfg_dropout_prob"]
    if meta.get("ema_length"):
        validation += f", of the {weights}"
        weights = f"average of length {meta['ema_length']:g}, rebuilt after training (Karras et al. 2024)"
    return {
        "data": cell(escaped(data_words(meta["data"]))),
        "epochs completed": f"{METRICS['epoch'].text(done['epoch'])} of {settings['epochs']}",
        "optimizer steps": f"{METRICS['step'].text(done['step'])}, {plural(done['global_batch'], 'image')} each",
        "images seen": METRICS["images_seen"].text(done["images_seen"]),
        "noise schedule": f"{settings['diffusion_steps']} levels, `{settings['beta_schedule']}`",
        "the network predicts": "noise" if settings["prediction_type"] == "epsilon" else "velocity",
        "weights": weights,
        "label dropout": f"{dropout:.0%}, for classifier-free guidance" if dropout else "none",
        "validation loss": VAL_LOSS_EMA.text_of(last) + validation,
        "time": duration(TOTAL_TIME_SEC.of(last)),
        **{
            metric.label: f"{metric.text_of(last)} {metric.unit if metric is ENERGY_WH else ''}".rstrip()
            for metric in select(group="cost")
            if metric.of(last) is not None
        },
        **({"precision": used["precision"]} if used.get("precision") else {}),
        **({"compiled": "yes" if used["compile"] else "no"} if used.get("compile") is not None else {}),
    }  # fmt: skip


def _epochs(history: list[dict[str, Any]]) -> list[list[str]]:
    """At most SHOWN_EPOCHS rows of the epochs' figures, evenly spaced, the last one included."""
    every = math.ceil(len(history) / SHOWN_EPOCHS) or 1
    return [[metric.text(row.get(metric.name)) for metric in EPOCH_COLUMNS] for row in history[::-every][::-1]]


def _evaluation(evaluation: dict[str, Any]) -> dict[str, Any]:
    """An evaluation in words: how it was made, a row for each figure, and the recommended sampler."""
    images, drawn, rows = evaluation["test_images"], evaluation["sampler"], []
    for figure in found(evaluation):
        estimate = at(evaluation, figure.place)
        real = figure.words(at(evaluation, figure.real)) if figure.real else ""
        meaning = figure.meaning.replace("character", thing(evaluation["data"]))
        rows.append((figure.heading, figure.words(estimate), real, f"{estimate['count']:,}", meaning))
    return {
        "sampler": f"{drawn['name']}, {plural(drawn['steps'], 'step')}, guidance {guidance_of(drawn)}",
        "samples": plural(evaluation["samples_per_class"], thing(evaluation["data"])),
        "data": escaped(data_words(evaluation["data"])),
        "test_images": images and real_images_words(images),
        "rows": rows,
        "recommended": evaluation["recommended"],
    }


def _of_this_model(evaluation: dict[str, Any], meta: dict[str, Any], guidance: dict[str, Any]) -> bool:
    """Was the evaluation made of the weights that are exported, and with no guide but the exported one?"""
    ours = (evaluation["step"], evaluation["weights"]) == (meta["progress"]["step"], weights_of(meta))
    return ours and not _with_other_guide(evaluation, guidance)


def _with_other_guide(evaluation: dict[str, Any], guidance: dict[str, Any]) -> bool:
    return evaluation["sampler"].get("guide") not in (None, guidance.get("guide"))


def _model_words(evaluation: dict[str, Any]) -> str:
    """The model that an evaluation was made of."""
    words = f"`{evaluation['checkpoint']}`, {weights_words(evaluation['weights'])}"
    guide = evaluation["sampler"].get("guide")
    return f"{words}, guided by `{guide}`" if guide else words
