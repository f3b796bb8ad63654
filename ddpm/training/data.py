"""EMNIST Balanced, held on the device as uint8; the order in which a run sees it; from stored bytes to model input."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torchvision.datasets import EMNIST

from ddpm.data import emnist, glyphs
from ddpm.run.config import USUAL_VAL_IMAGES, TrainConfig
from ddpm.run.errors import RequestError
from ddpm.run.files import why_and_cure
from ddpm.training.distributed import DistContext
from ddpm.training.seeding import Stream, generator

CLASS_NAMES = emnist.CLASS_NAMES


@dataclass(frozen=True)
class Images:
    """A split on the device: `pixels` uint8 [N, 28, 28], upright, 0 is background; `labels` int64 [N], 0…46."""

    pixels: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen: torch.Tensor) -> Images:
        """Those at the indices `chosen`, int64 [M]."""
        return Images(self.pixels[chosen], self.labels[chosen])

    def counts(self) -> list[int]:
        """Images of each of the 47 classes."""
        return torch.bincount(self.labels, minlength=len(CLASS_NAMES)).tolist()


def split_test(test: Images, val_images: int | None) -> tuple[Images, Images]:
    """The test split in two: images for validation, which choose the best checkpoint, and others for evaluation.

    Validation has the first `val_images` of a fixed random order, evaluation the rest. Where that would leave fewer
    than two images of a class (evaluation compares two halves of real images), evaluation has the whole split, and the
    two share images: `len(validation) + len(evaluation) - len(test)`.

    Args:
        val_images: number of images for validation, at most. None, where `--val-images` was left out: the number that
            a GPU would use, as the number on a CPU may be smaller.
    """
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0)).to(test.labels.device)
    first = USUAL_VAL_IMAGES if val_images is None else val_images
    rest = test[order[first:].sort().values]
    return test[order[:first]], rest if min(rest.counts()) >= 2 else test


def data_root(config: TrainConfig) -> Path:
    """The folder that holds the data's EMNIST/raw/."""
    return config.data_root / "glyphs" if config.data == "glyphs" else config.data_root


def load(config: TrainConfig, world: DistContext) -> tuple[Images, Images]:
    """The training and the test split, on the device of this process.

    Only local rank 0 of each node downloads, draws and checks; the others wait for it.

    Raises:
        RequestError: data are missing or damaged; the message names the file and the fix.
    """
    world.broadcast_result(partial(prepare, config), here=world.local_rank == 0)
    return _read(config, train=True, device=world.device), _read(config, train=False, device=world.device)


def prepare(config: TrainConfig) -> None:
    """Make sure that the files of the data set are there and valid: draw or download them if needed.

    Raises:
        RequestError: they are not; the message names the file and the fix.
    """
    root = data_root(config)
    try:
        if config.data == "glyphs":
            glyphs.ensure_glyphs(root)
        elif config.download:
            _download(root)
    except OSError as error:
        what = error.strerror or error
        raise RequestError(f"{root}: {what}; give a folder that can be written to with --data-root") from error
    for split in ("train", "test"):
        emnist.check_split(root, split)


def agreed_sha256(images: Images, world: DistContext) -> str:
    """The SHA-256 of all pixels and labels, as 64 hexadecimal digits.

    Raises:
        RequestError: the nodes hold different images.
    """
    digest = None
    if world.local_rank == 0:  # one process of each node is enough
        content = hashlib.sha256(images.pixels.cpu().numpy())
        content.update(images.labels.cpu().numpy())
        digest = content.hexdigest()
    found = {node: theirs for theirs, node in world.gather((digest, world.node)) if theirs}
    if len(set(found.values())) > 1:
        nodes = ", ".join(sorted(found))
        raise RequestError(f"--data-root holds different images on different nodes ({nodes}): copy it from one of them")
    return next(iter(found.values()))


def present(config: TrainConfig) -> bool:
    """Are there files of the data set?

    Raises:
        RequestError: their folder cannot be read.
    """
    try:
        os.lstat(emnist.split_files(data_root(config), "train")[1])
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise RequestError(f"--data-root: {why_and_cure(error)}") from error
    return True


def count_images(config: TrainConfig) -> int:
    """The number of training images, without reading or drawing any; the usual number if the data are not there yet.

    Raises:
        RequestError: the files are damaged.
    """
    root = data_root(config)
    _, labels = emnist.split_files(root, "train")
    if not present(config):
        return (glyphs.TRAIN_PER_CLASS if config.data == "glyphs" else 2400) * len(CLASS_NAMES)
    emnist.check_split(root, "train")
    return len(emnist.read_idx(labels, 1))


def epoch_order(images: int, seed: int, epoch: int, device: torch.device) -> torch.Tensor:
    """The order of `epoch` (from 0), a permutation of 0…images-1 as int64 [images]; the same on every process."""
    return torch.randperm(images, generator=generator(device, seed, Stream.ORDER, epoch), device=device)


def global_slice(order: torch.Tensor, batch: int, images: int, world: DistContext) -> torch.Tensor:
    """The indices of this process's `images` images in global batch number `batch` of an epoch: int64 [images]."""
    start = (batch * world.world_size + world.rank) * images
    return order[start : start + images]


def to_model_input(pixels: torch.Tensor, resolution: int) -> torch.Tensor:
    """Stored pixels, uint8 [B, 28, 28], as the model takes them: float32 [B, 1, resolution, resolution] in [-1, 1]."""
    images = pixels.unsqueeze(1).float()
    stored = pixels.shape[-1]
    if resolution != stored:
        size = (resolution, resolution)
        images = F.interpolate(images, size=size, mode="bilinear", antialias=resolution < stored)
    return images / 127.5 - 1


def _read(config: TrainConfig, train: bool, device: torch.device) -> Images:
    split = EMNIST(str(data_root(config)), split="balanced", train=train)
    upright = split.data.transpose(1, 2).contiguous()  # EMNIST is stored transposed
    return Images(upright.to(device), split.targets.to(device))


def _download(root: Path) -> None:
    try:
        EMNIST(str(root), split="balanced", download=True)
    except Exception as error:  # urllib, zipfile and torchvision each raise their own
        archive = root / "EMNIST" / "raw" / "gzip.zip"
        raise RequestError(
            f"{archive} could not be fetched or unpacked ({error}): remove it and try again, or run --download where "
            "there is internet, such as a login node"
        ) from error
