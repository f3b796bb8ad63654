"""Write folders of images to try `--data folder` with.

    python -m benchmarks.image_folders digits --out DIR      1,797 real handwritten digits of 8 × 8 pixels, ten classes
    python -m benchmarks.image_folders shapes --out DIR      drawn circles, squares and triangles of 64 × 64 pixels

The digits are those of scikit-learn (UCI, Alpaydin & Kaynak 1998), which only this script needs: `pip install
scikit-learn`. Then: `python train.py --preset tiny --data folder --data-root DIR`.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ddpm.run import cli
from ddpm.run.errors import RequestError
from ddpm.run.program import run_program

SIDE, FINER = 64, 4  # pixels of a drawn image; how many times finer it is drawn
CORNERS = {"circle": 60, "square": 4, "triangle": 3}


def digits() -> Iterator[tuple[str, Image.Image]]:
    """The class and the image of each digit, white on black."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise RequestError(
            f"the digits are in scikit-learn, which is not here ({error}): pip install scikit-learn"
        ) from None
    data = load_digits()
    for image, label in zip(data.images, data.target, strict=True):
        yield str(label), Image.fromarray((image * 255 / 16).round().astype(np.uint8))


def shapes(per_class: int, seed: int) -> Iterator[tuple[str, Image.Image]]:
    """The class and the image of each shape, dark on light paper, in any place, size and rotation."""
    chance = random.Random(seed)
    for name, corners in CORNERS.items():
        for _ in range(per_class):
            yield name, _shape(corners, chance)


def _shape(corners: int, chance: random.Random) -> Image.Image:
    """A filled regular polygon."""
    radius = chance.uniform(0.3, 0.4) * SIDE * FINER
    centre = [chance.uniform(radius, SIDE * FINER - radius) for _ in range(2)]
    turn = chance.uniform(0, math.tau)
    angles = [turn + math.tau * corner / corners for corner in range(corners)]
    points = [(centre[0] + radius * math.cos(angle), centre[1] + radius * math.sin(angle)) for angle in angles]
    image = Image.new("L", (SIDE * FINER, SIDE * FINER), chance.randint(215, 255))
    ImageDraw.Draw(image).polygon(points, fill=chance.randint(0, 60))
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)


def write(images: Iterator[tuple[str, Image.Image]], folder: Path) -> int:
    """Write images as PNG files into a subfolder for each class; returns their number."""
    number = 0
    for number, (name, image) in enumerate(images, 1):
        path = folder / name / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return number


@cli.in_one_line
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", choices=["digits", "shapes"])
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; must not exist yet")
    parser.add_argument("--per-class", type=int, default=1000, help="of the shapes")
    parser.add_argument("--seed", type=int, default=0, help="of the shapes")
    options = parser.parse_args(arguments)
    if options.out.exists():
        raise RequestError(f"--out {options.out}: it is there already; name a new folder")
    images = digits() if options.images == "digits" else shapes(options.per_class, options.seed)
    print(f"{write(images, options.out):,} images in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
