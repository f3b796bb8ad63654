"""A trained model, loaded from a run, a checkpoint or an export and ready to sample."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel

from ddpm.run.config import data_words
from ddpm.run.errors import RequestError
from ddpm.run.files import real, why_and_cure
from ddpm.run.meta import checked_meta
from ddpm.run.paths import PROJECT_ROOT, RunPaths, readable_folder
from ddpm.sampling.ema_length import EmaLength, ema_length
from ddpm.sampling.options import Weights, weights_of
from ddpm.sampling.pipeline import CharacterPipeline, make_sampler
from ddpm.training.checkpoint import WEIGHTS_NAME, digest_of
from ddpm.training.data import CLASS_NAMES
from ddpm.training.model import set_layout

NEEDED = (  # parts of meta.json that loading, sampling and the model card read
    *("run", "data", "files", "metrics"),
    *(f"progress.{name}" for name in ("epoch", "step", "global_batch", "images_seen")),
    *(f"settings.{name}" for name in ("sample_steps", "guidance_scale", "data_root", "output_root", "diffusion_steps",
                                      "prediction_type", "epochs", "beta_schedule", "ema_decay", "cfg_dropout_prob")),
)  # fmt: skip


@dataclass(frozen=True)
class TrainedModel:
    """A model with averaged weights, and the meta.json of its checkpoint."""

    folder: Path
    meta: dict[str, Any]  # run, data, settings, progress, metrics: see checkpoints/README.md
    pipeline: CharacterPipeline
    weights: str = "ema"  # as `weights_of` names them
    rebuilt: EmaLength | None = None  # with `--ema-length`: how they were made

    @property
    def run(self) -> str:
        return self.meta["run"]

    @property
    def data(self) -> str:
        """`emnist` or `glyphs`."""
        return self.meta["data"]

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
    def paths(self) -> RunPaths:
        """The files of its run: under the root that `folder` lies in, otherwise under the root of the training."""
        for folder in (real(self.folder), *real(self.folder).parents):
            if folder.parent.name == "checkpoints":  # a copy of a run may be called otherwise than in its meta.json
                return RunPaths(folder.parents[1], folder.name)
        return RunPaths(Path(self.meta["settings"]["output_root"]), self.run)


def load_model(
    name: str,
    device: torch.device,
    output_root: Path = PROJECT_ROOT,
    weights: Weights = "ema",
    length: float | None = None,
) -> TrainedModel:
    """The model of `name`, on `device`.

    Args:
        name: a run (its best checkpoint is taken), or the folder of a checkpoint or an export.
        weights: the moving average (ema), or the average over epochs of `--swa-start-epoch` (swa).
        length: instead, the average of this relative width (see ema_length.py). meta then has it as `ema_length`.

    Raises:
        RequestError: there is no such model, it is damaged, or these weights are not there and cannot be rebuilt.
    """
    folder = find_checkpoint(name, output_root)
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
    settings, rebuilt = meta["settings"], None
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
    pipeline = CharacterPipeline(
        unet, scheduler, CLASS_NAMES, num_inference_steps=settings["sample_steps"],
        guidance_scale=settings["guidance_scale"],
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return TrainedModel(folder, meta, pipeline, weights_of(meta, weights), rebuilt)


def runs_with_checkpoints(output_root: Path) -> list[str]:
    """The names of the runs that have a checkpoint.

    Raises:
        OSError: the folder cannot be read.
    """
    root = real(output_root) / "checkpoints"
    return sorted({link.parent.name for link in root.glob("*/latest")}) if readable_folder(root) else []


def find_checkpoint(name: str, output_root: Path = PROJECT_ROOT) -> Path:
    """The folder of the model `name`: a folder with weights, or the best checkpoint of a run.

    Raises:
        RequestError: there is none; the message lists the runs that have checkpoints.
    """
    root = real(output_root) / "checkpoints"
    try:
        for place in (Path(name), root / name):
            for folder in (place, place / "best", place / "latest"):
                if readable_folder(folder / "unet"):
                    return real(folder)
        known = runs_with_checkpoints(output_root)
    except OSError as error:
        raise RequestError(f"the model {name:.60} cannot be read: {why_and_cure(error)}") from error
    there = f"the runs there are: {', '.join(known)}" if known else "no run has one yet"
    raise RequestError(f"no checkpoint of {name!r} under {root}; {there} (see also --output-root)")
