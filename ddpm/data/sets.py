"""The data set that a run's settings ask for."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np

from ddpm.data.emnist import emnist
from ddpm.data.folder import FolderSet
from ddpm.data.glyphs import GlyphSet
from ddpm.data.idx import Split
from ddpm.data.others import fashion, kmnist
from ddpm.run.datasets import Invert


class DataSet(Protocol):
    """Images of characters in classes, in a training and a test split."""

    title: str
    class_names: tuple[str, ...]  # in the order of the labels

    def prepare(self, download: bool) -> None:
        """Make sure that the files are there and valid: fetch (if asked to), draw or convert them first.

        Raises:
            RequestError: they are not; the message names the file and the fix.
            OSError: the folder cannot be written to.
        """

    def present(self) -> bool:
        """Are there files of the data set?"""

    def check(self, split: Split) -> None:
        """Check the files of a split without reading its pixels.

        Raises:
            RequestError: they are missing or damaged.
        """

    def count(self, split: Split = "train") -> int:
        """The number of images of a split, without preparing any; an estimate if they are not there yet."""

    def read(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Pixels, uint8 [N, S, S], upright, 0 is background; and labels, int64 [N]."""

    def remarks(self) -> list[str]:
        """What was found in the files beside the images, a line each."""


class DataSettings(Protocol):
    """The settings that say what the data are: those of a TrainConfig."""

    data: str
    split: str
    data_root: Path | str
    resolution: int
    invert: Invert
    output_root: Path | str


def sha256(pixels: np.ndarray, labels: np.ndarray) -> str:
    """The SHA-256 of upright pixels, then of labels, as `DataSet.read` gives them: 64 hexadecimal digits."""
    content = hashlib.sha256(pixels)
    content.update(labels)
    return content.hexdigest()


def dataset(settings: DataSettings) -> DataSet:
    """The data set of `--data`, `--split` and `--data-root`. Reads nothing."""
    root = Path(settings.data_root)
    if settings.data == "emnist":
        return emnist(root, settings.split)
    if settings.data == "glyphs":
        return GlyphSet(root / "glyphs")
    if settings.data == "folder":
        return FolderSet(root, settings.resolution, settings.invert, Path(settings.output_root) / "data" / "prepared")
    return {"kmnist": kmnist, "fashion": fashion}[settings.data](root)
