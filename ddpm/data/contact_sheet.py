"""A picture of the first images of each class, to see whether a folder is read as it was meant."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ddpm.run.fonts import as_label, font_file

MOST_CLASSES = 100  # rows
PER_CLASS = 12
GAP, SMALLEST = 4, 64  # pixels: between images; side up to which images are enlarged
PAPER, INK = 40, 220  # gray, so that the edges of black images can be seen


def draw_sheet(class_names: Sequence[str], pixels: np.ndarray, labels: np.ndarray) -> Image.Image:
    """A row for each of the first `MOST_CLASSES` classes: its name and first images.

    Args:
        pixels: uint8 [N, S, S].
        labels: int64 [N].
    """
    names = class_names[:MOST_CLASSES]
    side = pixels.shape[-1] * max(1, SMALLEST // pixels.shape[-1])
    font = ImageFont.truetype(font_file("DejaVuSans"), 14)
    short = list(map(as_label, names))
    left = 4 * GAP + round(max(map(font.getlength, short)))
    sheet = Image.new("L", (left + PER_CLASS * (side + GAP), len(names) * (side + GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for label, name in enumerate(short):
        top = GAP + label * (side + GAP)
        draw.text((GAP, top + side // 2), name, font=font, fill=INK, anchor="lm")
        for column, image in enumerate(pixels[np.flatnonzero(labels == label)[:PER_CLASS]]):
            enlarged = Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (left + column * (side + GAP), top))
    return sheet
