"""A trained model, taken from a run, a checkpoint or an export, ready to draw."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DDPMScheduler, UNet2DModel

from ddpm.run.config import data_words
from ddpm.run.errors import RequestError
from ddpm.run.files import real, why_and_cure
from ddpm.run.meta import checked_meta
from ddpm.run.paths import PROJECT_ROOT, RunPaths, readable_folder
from ddpm.sampling.pipeline import CharacterPipeline, make_sampler
from ddpm.training.checkpoint import WEIGHTS_NAME, digest_of
from ddpm.training.data import CLASS_NAMES
from ddpm.training.model import set_layout

Weights = Literal["ema", "swa"]
NEEDED = (  # what is read of meta.json, and shown of it
    *("run", "data", "files", "metrics"),
    *(f"progress.{name}" for name in ("epoch", "step", "global_batch", "images_seen")),
    *(f"settings.{name}" for name in ("sample_steps", "guidance_scale", "data_root", "output_root", "diffusion_steps",
                                      "prediction_type", "epochs", "beta_schedule", "ema_decay", "cfg_dropout_prob")),
)  # fmt: skip


@dataclass(frozen=True)
class TrainedModel:
    """A model with its averaged weights, and what is known of its training."""

    folder: Path
    meta: dict[str, Any]  # run, data, settings, progress, metrics: see checkpoints/README.md
    pipeline: CharacterPipeline

    @property
    def run(self) -> str:
        return self.meta["run"]

    @property
    def data(self) -> str:
        """`emnist` or `glyphs`."""
        return self.meta["data"]

    @property
    def source(self) -> str:
        """What it was trained on, in words that can stand under a picture."""
        return data_words(self.data)

    @property
    def progress(self) -> str:
        """How long it was trained, in words."""
        done = self.meta["progress"]
        if done.get("batch"):
            return f"in epoch {done['epoch'] + 1}, step {done['step']}"
        return f"epoch {done['epoch']}, step {done['step']}" if done["epoch"] else f"step {done['step']}"

    @property
    def paths(self) -> RunPaths:
        """The files of its run: where the folder lies, if it is one of the run's, else where it was trained."""
        roots = [parent.parent for parent in real(self.folder).parents if parent.name == "checkpoints"]
        return RunPaths(roots[0] if roots else Path(self.meta["settings"]["output_root"]), self.run)


def load(what: str, device: torch.device, output_root: Path = PROJECT_ROOT, weights: Weights = "ema") -> TrainedModel:
    """The model that `what` names, on `device`: a run (its best checkpoint), a checkpoint's or an export's folder.

    Args:
        weights: the moving average (ema), or the average over epochs that `--swa-start-epoch` makes (swa).

    Raises:
        RequestError: there is no such model, or it is damaged, or lacks these weights.
    """
    folder = find(what, output_root)
    unet = "unet" if weights == "ema" else "unet_swa"
    if weights != "ema" and not (folder / unet).is_dir():
        raise RequestError(f"--weights {weights}: {folder} has none; --swa-start-epoch makes them in training")
    try:
        meta = checked_meta(folder, NEEDED)
        needed = (f"{unet}/{WEIGHTS_NAME}", f"{unet}/config.json", "scheduler/scheduler_config.json")
        for file in needed:
            if digest_of(folder / file) != meta["files"].get(file, "not listed"):
                raise RequestError(f"{folder / file} is missing or damaged: give another checkpoint")
    except OSError as error:
        raise RequestError(f"{folder} cannot be read: {why_and_cure(error)}") from error
    except RequestError:
        raise
    except ValueError as error:
        raise RequestError(f"{folder / 'meta.json'} does not describe a model ({error}): give another one") from error
    settings = meta["settings"]
    try:
        unet = UNet2DModel.from_pretrained(folder / unet, use_safetensors=True, low_cpu_mem_usage=False)
        set_layout(unet.to(device), channels_last=device.type == "cuda")
        scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
        make_sampler("ddpm", scheduler, settings["sample_steps"])
    except Exception as error:  # diffusers and torch each have their own for settings that make no network
        words = (str(error).strip() or repr(error)).splitlines()[0]
        raise RequestError(f"{folder} cannot be loaded ({words}): give another checkpoint") from error
    pipeline = CharacterPipeline(
        unet, scheduler, CLASS_NAMES, num_inference_steps=settings["sample_steps"],
        guidance_scale=settings["guidance_scale"],
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return TrainedModel(folder, meta, pipeline)


def runs_with_checkpoints(output_root: Path) -> list[str]:
    """The names of the runs that have a checkpoint.

    Raises:
        OSError: the folder cannot be looked into.
    """
    root = real(output_root) / "checkpoints"
    return sorted({link.parent.name for link in root.glob("*/latest")}) if readable_folder(root) else []


def find(what: str, output_root: Path = PROJECT_ROOT) -> Path:
    """The folder of weights that `what` names: a folder that has some, or the best checkpoint of a run.

    Raises:
        RequestError: there is none; the message lists the runs that have checkpoints.
    """
    root = real(output_root) / "checkpoints"
    try:
        for place in (Path(what), root / what):
            for folder in (place, place / "best", place / "latest"):
                if readable_folder(folder / "unet"):
                    return real(folder)
        known = runs_with_checkpoints(output_root)
    except OSError as error:
        raise RequestError(f"the model {what:.60} cannot be read: {why_and_cure(error)}") from error
    there = f"the runs there are: {', '.join(known)}" if known else "no run has one yet"
    raise RequestError(f"no checkpoint of {what!r} under {root}; {there} (see also --output-root)")
