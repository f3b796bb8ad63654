"""The data set that a model is compared with: the one it was trained on, or the one that the command line names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ddpm.evaluation.config import EvaluateConfig
from ddpm.run.config import TrainConfig
from ddpm.run.datasets import FOLDER, data_words
from ddpm.run.errors import RequestError
from ddpm.sampling.load import TrainedModel
from ddpm.sampling.pipeline import listed
from ddpm.training import data
from ddpm.training.data import Images
from ddpm.training.machine.distributed import DistContext


@dataclass(frozen=True)
class RealData:
    """A data set, with the classes of the model in their order."""

    name: str  # in files
    train: Images
    test: Images
    of_training: bool  # was the model trained on `train`?


def load_real_data(
    config: EvaluateConfig, model: TrainedModel, device: torch.device, say: Callable[[str], None]
) -> RealData:
    """Load the data that `config` asks for.

    Raises:
        RequestError: they are not there, are not those of the training without being asked for, or have other classes.
    """
    source = _settings(config, model)
    train, test = data.load(source, DistContext(0, 0, 1, 1, device))
    found = RealData(source.data_name, train, test, _of_training(source.data_name, train, model))
    if not found.of_training:
        _check_asked(found, config, model, say)
    _check_classes(found, model)
    return found


def _settings(config: EvaluateConfig, model: TrainedModel) -> TrainConfig:
    trained = model.meta["settings"]
    names = {name: trained[name] for name in ("data", "split", "invert", "resolution") if name in trained}
    if config.data:
        names |= {"data": config.data, "split": config.split or "balanced"}
    root, folder, was_folder = config.data_root, names.get("data") == "folder", trained.get("data") == "folder"
    if root is None and folder and (model.exported or not was_folder):
        which = "an export does not tell where its images are" if model.exported else "--data folder"
        raise RequestError(f"{which}: give their folder with --data-root")
    if root is None:  # nothing else may be put into somebody's folder of images
        root = trained["data_root"] if folder == was_folder else TrainConfig.data_root
    return TrainConfig(
        **names, data_root=Path(root), download=config.download,
        output_root=config.output_root, block_out_channels=(32,),  # one level, which fits any resolution
    )  # fmt: skip


def _of_training(name: str, train: Images, model: TrainedModel) -> bool:
    """Are these the images of the training? Of old checkpoints only the data set's name is known."""
    trained = model.meta.get("identity", {}).get("SHA-256 of the images", "")
    folders = name.startswith(FOLDER) and model.data.startswith(FOLDER)  # somebody may have renamed it
    return (name == model.data or (folders and trained != "")) and data.sha256(train).startswith(trained)


def _check_asked(found: RealData, config: EvaluateConfig, model: TrainedModel, say: Callable[[str], None]) -> None:
    """Does the command line ask for other images than those of the training? They are said to be others."""
    changed = f"{data_words(found.name)} holds other images than those that the model was trained on"
    if found.name == model.data and not config.data_root:
        raise RequestError(
            f"{changed}: give the folder of those with --data-root; --data-root "
            f"{model.meta['settings']['data_root']} compares with the images that are there now"
        )
    say(f"{changed}: whether it copies those is not measured")


def _check_classes(found: RealData, model: TrainedModel) -> None:
    ours, theirs = list(model.pipeline.config.class_names), list(found.train.class_names)
    if ours != theirs:
        raise RequestError(
            f"the model draws {len(ours)} classes ({listed(ours, 60)}), {data_words(found.name)} has "
            f"{len(theirs)} ({listed(theirs, 60)}): compare with the data that it was trained on"
        )
