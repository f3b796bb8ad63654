"""A picture of the first images of each class, to see whether a folder is read as it was meant."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ddpm.data.classes import evenly, shown_words
from ddpm.run.fonts import as_label, font_file

MOST_CLASSES = 100  # rows
PER_CLASS = 12
HEAD = 28  # pixels: height of the line that says which part of the classes is shown
GAP, SMALLEST = 4, 64  # pixels: between images; side up to which images are enlarged
PAPER, INK = 40, 220  # gray, so that the edges of black images can be seen


def part_words(classes: int) -> str:
    """Which part of the classes a contact sheet shows: `100 of 300 classes`; empty if it shows all."""
    return shown_words(min(classes, MOST_CLASSES), classes)


def draw_sheet(class_names: Sequence[str], pixels: np.ndarray, labels: np.ndarray) -> Image.Image:
    """A row for each class, its name and first images; of more than `MOST_CLASSES`, evenly spaced ones, as a line at
    the top says.

    Args:
        pixels: uint8 [N, S, S].
        labels: int64 [N].
    """
    shown, part = evenly(len(class_names), MOST_CLASSES), part_words(len(class_names))
    side = pixels.shape[-1] * max(1, SMALLEST // pixels.shape[-1])
    font = ImageFont.truetype(font_file("DejaVuSans"), 14)
    short, head = [as_label(class_names[label]) for label in shown], HEAD if part else 0
    left = 4 * GAP + round(max(map(font.getlength, short)))
    sheet = Image.new("L", (left + PER_CLASS * (side + GAP), head + len(shown) * (side + GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, head // 2), part, font=font, fill=INK, anchor="lm")
    for row, (label, name) in enumerate(zip(shown, short, strict=True)):
        top = head + GAP + row * (side + GAP)
        draw.text((GAP, top + side // 2), name, font=font, fill=INK, anchor="lm")
        for column, image in enumerate(pixels[np.flatnonzero(labels == label)[:PER_CLASS]]):
            enlarged = Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (left + column * (side + GAP), top))
    return sheet
