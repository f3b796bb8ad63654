"""Folders of images for tests."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageDraw

from ddpm.data.folder import FolderSet
from ddpm.data.sets import dataset
from ddpm.run.config import TrainConfig, preset
from tests.conftest import SMALL

SIDE = 28
FORMATS = {
    "png": {}, "jpg": {"quality": 100}, "tiff": {}, "bmp": {}, "gif": {}, "webp": {"lossless": True},
}  # fmt: skip


def stroke(number: int, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    """A white stroke on black, different for each number."""
    image = Image.new("L", size)
    middle = number % 7 + 8
    ImageDraw.Draw(image).line(
        [(8, middle), (19, 22 - number % 5), (12 + number % 3, 9)], fill=255 - number % 40, width=3
    )
    return image


def make_folder(root: Path, classes: dict[str, int], start: int = 0) -> Path:
    """A folder with PNG files: class → number of images, all of them different."""
    number = start
    for name, count in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for _ in range(count):
            image = stroke(number)
            image.putpixel((number % 5 + 5, number // 5 % 15 + 5), number % 200 + 50)
            image.save(root / name / f"{number}.png")
            number += 1
    return root


def letters(parent: Path) -> Path:
    """A folder of three classes, small, smaller and as small as can be."""
    return make_folder(parent / "letters", {"a": 12, "b": 5, "c": 2})


def png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def config_of(root: Path, **changes) -> TrainConfig:
    """Settings of a run of seconds on the folder `root`."""
    return preset("tiny", **SMALL, data="folder", data_root=root, output_root=root.parent / "out", **changes)


def folder_set(root: Path, **changes) -> FolderSet:
    return dataset(config_of(root, **changes))


def prepared(root: Path, **changes) -> FolderSet:
    """The folder's images, after a first start has read them."""
    folder_set(root, **changes).prepare(download=False)
    return folder_set(root, **changes)


def kept(root: Path) -> list[str]:
    """The names of the files beside the outputs."""
    return sorted(str(path.relative_to(root.parent / "out")) for path in (root.parent / "out").rglob("*"))
