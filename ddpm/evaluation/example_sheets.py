"""Sheets of examples: misread images, and those closest to training images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from ddpm.evaluation.classifier import Predictions
from ddpm.run.fonts import as_label
from ddpm.sampling.sheets import FAINT, INK, MARGIN, font, headed_sheet

TILE, GAP, TEXT = 84, 14, 22  # pixels: side of a picture, space between tiles, height of the text below a tile
WORST, PAIRS, PAIRS_OF_A_CLASS = 60, 30, 2
LONGEST_NAME = 16  # letters of a class in the text below a tile


def worst_sheet(
    pixels: np.ndarray,
    labels: torch.Tensor,
    class_names: Sequence[str],
    predictions: Predictions,
    title: str,
    caption: str,
) -> Image.Image:
    """The images, among uint8 [N, H, W], that the classifier misreads with the highest confidence: it reads another
    class than `labels`, int64 [N]."""
    confidence, read = predictions.probabilities.max(1)
    wrong = torch.nonzero(read != labels).flatten()
    chosen = wrong[confidence[wrong].argsort(descending=True)][:WORST].tolist()
    tiles = [
        ([pixels[index]], _named(class_names, labels[index], " → ", read[index]), f"{confidence[index]:.0%}")
        for index in chosen
    ]
    return _sheet(tiles, title, caption, columns=10)


def closest_sheet(
    pixels: np.ndarray,
    labels: torch.Tensor,
    class_names: Sequence[str],
    originals: torch.Tensor,
    original_labels: torch.Tensor,
    distances: torch.Tensor,
    title: str,
    caption: str,
) -> Image.Image:
    """The generated images closest to a training image, each beside it. At most two of a class, because otherwise all
    would be simple strokes.

    Args:
        pixels, labels: generated, uint8 [N, H, W], and the classes asked for, int64 [N].
        originals, original_labels: the closest training image of each, uint8 [N, S, S], and its class, int64 [N].
        distances: between the two, float32 [N].
    """
    drawn, chosen = Counter(), []
    for index in distances.argsort().tolist():
        drawn[int(labels[index])] += 1
        if drawn[int(labels[index])] <= PAIRS_OF_A_CLASS:
            chosen.append(index)
    tiles = [
        (
            [pixels[index], originals[index].numpy()],
            _named(class_names, labels[index], " · ", original_labels[index]),
            f"{distances[index]:.2f}",
        )
        for index in chosen[:PAIRS]
    ]
    return _sheet(tiles, title, caption, columns=6)


def _named(class_names: Sequence[str], one: torch.Tensor, between: str, other: torch.Tensor) -> str:
    """Two classes as the text of a tile."""
    return between.join(as_label(class_names[index], LONGEST_NAME) for index in (one, other))


def _sheet(tiles: Sequence[tuple[list[np.ndarray], str, str]], title: str, caption: str, columns: int) -> Image.Image:
    """Tiles of pictures side by side, each with a text below at the left and a fainter one at the right. Where texts
    are wider than pictures, there are fewer columns."""
    small, below = font(13), font(14, bold=True)
    least = TILE * max((len(pictures) for pictures, *_ in tiles), default=1)
    texts = (below.getlength(text) + 6 + small.getlength(aside) for _, text, aside in tiles)
    wide = max(least, math.ceil(max(texts, default=0)))
    columns = max(1, columns * (least + GAP) // (wide + GAP))
    rows, head = -(-len(tiles) // columns), 72
    across = columns * (wide + GAP) - GAP + MARGIN
    sheet, draw = headed_sheet(across, head + rows * (TILE + TEXT + GAP) + MARGIN, title, caption)
    for number, (pictures, text, aside) in enumerate(tiles):
        left, top = MARGIN + number % columns * (wide + GAP), head + number // columns * (TILE + TEXT + GAP)
        for place, picture in enumerate(pictures):
            tile = Image.fromarray(picture).resize((TILE, TILE), Image.Resampling.NEAREST)
            sheet.paste(tile, (left + place * TILE, top))
        draw.text((left, top + TILE + 3), text, font=below, fill=INK)
        draw.text((left + wide, top + TILE + 4), aside, font=small, fill=FAINT, anchor="ra")
    return sheet
