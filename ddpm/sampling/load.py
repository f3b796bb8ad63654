"""A trained model, loaded from a run, a checkpoint or an export and ready to sample."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel

from ddpm.data.classes import class_names_of
from ddpm.run.datasets import data_words
from ddpm.run.errors import RequestError
from ddpm.run.files import given_path, real, why_and_cure
from ddpm.run.meta import checked_meta
from ddpm.run.paths import PROJECT_ROOT, RunPaths, readable_folder
from ddpm.sampling.ema_length import EmaLength, ema_length
from ddpm.sampling.options import Weights, weights_of, weights_words
from ddpm.sampling.pipeline import EVERYWHERE, CharacterPipeline, make_sampler, resolution
from ddpm.training.checkpoint import WEIGHTS_NAME, digest_of
from ddpm.training.model import set_layout

NEEDED = (  # parts of meta.json that loading, sampling and the model card read
    *("run", "data", "files", "metrics"),
    *(f"progress.{name}" for name in ("epoch", "step", "global_batch", "images_seen")),
    *(f"settings.{name}" for name in ("sample_steps", "guidance_scale", "data_root", "output_root", "diffusion_steps",
                                      "prediction_type", "epochs", "beta_schedule", "ema_decay", "cfg_dropout_prob")),
)  # fmt: skip
NETWORK = (WEIGHTS_NAME, "config.json")  # the files of a network


@dataclass(frozen=True)
class Guide:
    """The weaker model of autoguidance."""

    # `step_00000500`, of the model's own run; of another one `other/step_00000500`. Weights that are not the EMA of the
    # training are named: `step_00000500 (EMA length 0.2 weights)`
    name: str
    folder: Path  # of its network
    files: dict[str, str]  # file of the network -> SHA-256
    unet: UNet2DModel


@dataclass(frozen=True)
class TrainedModel:
    """A model with averaged weights, and the meta.json of its checkpoint."""

    folder: Path
    place: Path  # the same as it was asked for: links in it are not resolved
    meta: dict[str, Any]  # run, data, settings, progress, metrics: see checkpoints/README.md
    pipeline: CharacterPipeline
    weights: str = "ema"  # as `weights_of` names them
    rebuilt: EmaLength | None = None  # with `--ema-length`: how they were made
    guide: Guide | None = None  # its network is a part of the pipeline

    @property
    def run(self) -> str:
        return self.meta["run"]

    @property
    def data(self) -> str:
        """The name of the data set in files."""
        return self.meta["data"]

    @property
    def exported(self) -> bool:
        """Is it an export, whose meta.json tells nothing of the machine that it was trained on?"""
        return "guidance" in self.meta

    @property
    def draws_without_label(self) -> bool:
        """Has it learned to draw without a label (`--cfg-dropout-prob`)?"""
        return self.meta["settings"]["cfg_dropout_prob"] > 0

    @property
    def can_be_guided(self) -> bool:
        return self.draws_without_label or self.guide is not None

    @property
    def source(self) -> str:
        """The training data in words, short enough for captions."""
        return data_words(self.data)

    @property
    def progress(self) -> str:
        """How long the model was trained: `epoch 6, step 3528`."""
        done = self.meta["progress"]
        if done.get("batch"):
            return f"in epoch {done['epoch'] + 1}, step {done['step']}"
        return f"epoch {done['epoch']}, step {done['step']}" if done["epoch"] else f"step {done['step']}"

    @property
    def paths(self) -> RunPaths | None:
        """The files of the run in whose folder under `checkpoints/` it lies; None if it lies in none.

        A copy of a run may be called otherwise than in its meta.json, and `checkpoints/` may be a link to another disk.
        """
        for path in (self.place, self.folder):
            for folder in (path, *path.parents):
                if folder.parent.name == "checkpoints":
                    return RunPaths(folder.parents[1], folder.name)
        return None


def load_model(
    name: str,
    device: torch.device,
    output_root: Path = PROJECT_ROOT,
    weights: Weights = "ema",
    length: float | None = None,
    guide: str | None = None,
) -> TrainedModel:
    """The model of `name`, on `device`.

    Args:
        name: a run (its best checkpoint is taken), or the folder of a checkpoint or an export.
        weights: the moving average (ema), or the average over epochs of `--swa-start-epoch` (swa).
        length: instead, the average of this relative width (see ema_length.py). meta then has it as `ema_length`.
        guide: name of the model for autoguidance; None: the one in an export, if it has one.

    Raises:
        RequestError: there is no such model, it is damaged, or these weights are not there and cannot be rebuilt; or
            the guide does not fit it.
    """
    place = find_checkpoint(name, output_root)
    folder = real(place)
    part = "unet" if weights == "ema" else "unet_swa"
    if weights != "ema" and not (folder / part).is_dir():
        raise RequestError(f"--weights {weights}: {folder} has none; --swa-start-epoch makes them in training")
    try:
        meta = checked_meta(folder, NEEDED)
        for file in (f"{part}/{WEIGHTS_NAME}", f"{part}/config.json", "scheduler/scheduler_config.json"):
            if digest_of(folder / file) != meta["files"].get(file, "not listed"):
                raise RequestError(f"{folder / file} is missing or damaged: give another checkpoint")
    except OSError as error:
        raise RequestError(f"{folder} cannot be read: {why_and_cure(error)}") from error
    except RequestError:
        raise
    except ValueError as error:
        raise RequestError(f"{folder / 'meta.json'} does not describe a model ({error}): give another one") from error
    settings, guidance, rebuilt = meta["settings"], meta.get("guidance", {}), None
    if length is not None:
        rebuilt = ema_length(folder, meta, length)
        averaged, meta = rebuilt.weights(), meta | {"ema_length": length}
    try:
        unet = UNet2DModel.from_pretrained(folder / part, use_safetensors=True, low_cpu_mem_usage=False)
        if rebuilt:
            unet.load_state_dict(averaged)
        set_layout(unet.to(device), channels_last=device.type == "cuda")
        scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
        make_sampler("ddpm", scheduler, settings["sample_steps"])
    except Exception as error:  # diffusers and torch raise errors of their own for configs that make no network
        words = (str(error).strip() or repr(error)).splitlines()[0]
        raise RequestError(f"{folder} cannot be loaded ({words}): give another checkpoint") from error
    names = class_names_of(meta)
    if len(names) != unet.config.num_class_embeds - 1:
        drawn = unet.config.num_class_embeds - 1
        raise RequestError(f"{folder} names {len(names)} classes and draws {drawn}: give another checkpoint")
    pipeline = CharacterPipeline(
        unet, scheduler, names, num_inference_steps=settings["sample_steps"],
        guidance_scale=guidance.get("guidance_scale", settings["guidance_scale"]),
        guidance_interval=guidance.get("guidance_interval", EVERYWHERE),
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    trained = TrainedModel(folder, place, meta, pipeline, weights_of(meta, weights), rebuilt)
    found = _own_guide(trained) if guide is None else _other_guide(trained, guide, output_root)
    pipeline.register_modules(guide=found and found.unet)
    trained = replace(trained, guide=found)
    if not trained.can_be_guided:  # whatever its settings say
        pipeline.register_to_config(guidance_scale=1.0)
    return trained


def _own_guide(model: TrainedModel) -> Guide | None:
    """The guide in an export; None if it has none.

    Raises:
        RequestError: it is damaged.
    """
    folder, files = model.folder / "guide", {file: model.meta["files"].get(f"guide/{file}") for file in NETWORK}
    if not any(files.values()):
        return None
    try:
        whole = all(digest_of(folder / file) == expected for file, expected in files.items())
        unet = whole and UNet2DModel.from_pretrained(folder, use_safetensors=True, low_cpu_mem_usage=False)
    except OSError as error:
        raise RequestError(f"{folder} cannot be read: {why_and_cure(error)}") from error
    if not unet:
        raise RequestError(f"{folder} is missing or damaged: export again, or give another model")
    device = model.pipeline.device
    set_layout(unet.to(device), channels_last=device.type == "cuda")
    return Guide(model.meta.get("guidance", {}).get("guide", "its guide"), folder, files, unet)


def _other_guide(model: TrainedModel, name: str, output_root: Path) -> Guide:
    """The model `name` as the guide of another one.

    Raises:
        RequestError: there is no such model, or it cannot guide this one.
    """
    try:
        guide = load_model(name, model.pipeline.device, output_root)
    except RequestError as error:
        raise RequestError(f"--guide: {error}") from error
    if unlike := _unlike(guide.pipeline, model.pipeline):
        raise RequestError(f"--guide {name}: {unlike}; give an earlier checkpoint of the same run")
    step = f"step_{guide.meta['progress']['step']:08d}"
    if guide.weights != "ema":  # an export of another --ema-length may be of the model's own step
        step += f" ({weights_words(guide.weights)})"
    files = {file: guide.meta["files"][f"unet/{file}"] for file in NETWORK}
    called = step if guide.run == model.run else f"{guide.run}/{step}"
    return Guide(called, guide.folder / "unet", files, guide.pipeline.unet)


def _unlike(guide: CharacterPipeline, model: CharacterPipeline) -> str:
    """Why the one cannot guide the other, in words; empty if it can."""
    theirs, ours = (resolution(pipeline.unet) for pipeline in (guide, model))
    if theirs != ours:
        return f"it draws {theirs} pixels, the model {ours}"
    if list(guide.config.class_names) != list(model.config.class_names):
        return "its classes are not the model's"
    theirs, ours = (pipeline.scheduler.config.prediction_type for pipeline in (guide, model))
    if theirs != ours:
        return f"it predicts {theirs}, the model predicts {ours}"
    if not guide.scheduler.alphas_cumprod.equal(model.scheduler.alphas_cumprod):
        return "its noise schedule (--diffusion-steps, --beta-schedule) is not the model's"
    pairs = zip(guide.unet.parameters(), model.unet.parameters(), strict=False)
    return "it is the model itself" if all(one.equal(other) for one, other in pairs) else ""


def networks_of(pipeline: CharacterPipeline) -> list[UNet2DModel]:
    """The model's network, and the guide if there is one."""
    return [network for network in (pipeline.unet, pipeline.guide) if network is not None]


def runs_with_checkpoints(output_root: Path) -> list[str]:
    """The names of the runs that have a checkpoint.

    Raises:
        OSError: the folder cannot be read.
    """
    root = real(output_root) / "checkpoints"
    return sorted({link.parent.name for link in root.glob("*/latest")}) if readable_folder(root) else []


def find_checkpoint(name: str, output_root: Path = PROJECT_ROOT) -> Path:
    """The folder of the model `name`: a folder with weights, or the best checkpoint of a run. Links are not resolved.

    Raises:
        RequestError: there is none; the message lists the runs that have checkpoints.
    """
    root = real(output_root) / "checkpoints"
    try:
        for place in (given_path(name), root / name):
            for folder in (place, place / "best", place / "latest"):
                if readable_folder(folder / "unet"):
                    return Path(os.path.abspath(folder))
        known = runs_with_checkpoints(output_root)
    except OSError as error:
        raise RequestError(f"the model {name:.60} cannot be read: {why_and_cure(error)}") from error
    there = f"the runs there are: {', '.join(known)}" if known else "no run has one yet"
    raise RequestError(f"no checkpoint of {name!r} under {root}; {there} (see also --output-root)")
