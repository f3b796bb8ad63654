"""`--data glyphs`: the embedded data set, 47 characters drawn from fonts, in files of EMNIST's names and format.

python -m ddpm.data.glyphs [--root DIR] [--seed N] [--sheet PNG]
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image
from tyro.conf import arg

from ddpm.data.emnist import CLASS_NAMES, emnist
from ddpm.data.glyph_drawing import draw
from ddpm.data.idx import IMAGE_SIZE, IdxSet, read_idx, write_idx
from ddpm.run import cli
from ddpm.run.datasets import TITLES
from ddpm.run.errors import RequestError
from ddpm.run.files import atomic_write, read_json
from ddpm.run.paths import PROJECT_ROOT
from ddpm.run.program import run_program

TRAIN_PER_CLASS, TEST_PER_CLASS = 400, 80
VERSION = 1  # of the pictures: raise it when a change of glyph_drawing.py changes them
DEFAULT_ROOT = PROJECT_ROOT / "data" / "glyphs"


def ensure_glyphs(
    root: Path = DEFAULT_ROOT,
    seed: int = 0,
    train_per_class: int = TRAIN_PER_CLASS,
    test_per_class: int = TEST_PER_CLASS,
) -> None:
    """Draw the data set into `root`/EMNIST/raw/, unless a complete one with the same parameters is there.

    Raises:
        RequestError: there are files of another origin (such as EMNIST itself), which are left alone.
        OSError: the folder cannot be written.
    """
    note = Path(root) / "EMNIST" / "raw" / "glyphs.json"
    wanted = {"generator": "ddpm.data.glyphs", "version": VERSION, "seed": seed}
    wanted |= {"train_per_class": train_per_class, "test_per_class": test_per_class}
    if is_whole(Path(root), note, wanted):
        return
    foreign = [file for split in ("train", "test") for file in emnist(root).files(split) if os.path.lexists(file)]
    if foreign and not os.path.lexists(note):
        raise RequestError(
            f"{foreign[0]} was not drawn by ddpm.data.glyphs and is kept: give glyphs a folder of their own"
        )
    note.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(note, json.dumps(wanted | {"whole": False}, indent=2))
    for split, pictures in draw({"train": train_per_class, "test": test_per_class}, seed).items():
        images, labels = emnist(root).files(split)
        write_idx(images, pictures.transpose(0, 2, 1))
        write_idx(labels, (np.arange(len(pictures)) % len(CLASS_NAMES)).astype(np.uint8))
    atomic_write(note, json.dumps(wanted | {"whole": True}, indent=2))


class GlyphSet(IdxSet):
    """The data set under `root`; it is drawn where others are downloaded."""

    def __init__(self, root: Path) -> None:
        numbers = {"usual_images": TRAIN_PER_CLASS, "usual_test_images": TEST_PER_CLASS}
        numbers = {name: per_class * len(CLASS_NAMES) for name, per_class in numbers.items()}
        super().__init__(**vars(emnist(root)) | numbers | {"title": TITLES["glyphs"]})

    def prepare(self, download: bool = False) -> None:
        """Draw the files unless they are there."""
        ensure_glyphs(self.root)
        super().prepare(download=False)


def is_whole(root: Path, note: Path, wanted: dict) -> bool:
    """Was the drawing with these parameters finished, and are its files intact?"""
    try:
        if read_json(note) != wanted | {"whole": True}:
            return False
        for split in ("train", "test"):
            emnist(root).check(split)
    except (OSError, ValueError):  # no note, a torn note, or (a RequestError) damaged files
        return False
    return True


def contact_sheet(root: Path, rows: int = 16) -> Image.Image:
    """The first `rows` training pictures of each class, in one column per class."""
    stored = read_idx(emnist(root).files("train")[0], 3)[: rows * len(CLASS_NAMES)]
    sheet = stored.reshape(-1, len(CLASS_NAMES), IMAGE_SIZE, IMAGE_SIZE).transpose(0, 3, 1, 2)
    return Image.fromarray(sheet.reshape(-1, len(CLASS_NAMES) * IMAGE_SIZE))


@dataclass(frozen=True)
class GlyphsConfig:
    """Draw the embedded data set."""

    root: Path = DEFAULT_ROOT
    """Folder that will hold EMNIST/raw/."""
    seed: int = 0
    """Another seed gives other handwriting."""
    sheet: Annotated[Path | None, arg(metavar="PNG")] = None
    """Also write a contact sheet to this file."""


@cli.in_one_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the data set, and the contact sheet if asked for. Returns 0, or 2 for a wrong request."""
    config = cli.parse(GlyphsConfig, arguments, "python -m ddpm.data.glyphs")
    ensure_glyphs(config.root, config.seed)
    print(f"glyphs: {config.root / 'EMNIST' / 'raw'}")
    if config.sheet:
        try:
            contact_sheet(config.root).save(config.sheet)
        except ValueError as error:  # Pillow knows no such format
            raise RequestError(f"--sheet {config.sheet}: {error}") from error
        print(f"contact sheet: {config.sheet}")
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
