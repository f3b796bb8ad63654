"""Sheets of examples: misread images, and those closest to training images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ddpm.evaluation.classifier import Predictions
from ddpm.evaluation.measures import Neighbours
from ddpm.run.files import atomic_write
from ddpm.run.fonts import as_label
from ddpm.sampling.sheets import FAINT, INK, MARGIN, font, headed_sheet, png
from ddpm.training.data import Images

TILE, GAP, TEXT = 84, 14, 22  # pixels: side of a picture, space between tiles, height of the text below a tile
WORST, PAIRS, PAIRS_OF_A_CLASS = 60, 30, 2
LONGEST_NAME = 16  # letters of a class in the text below a tile


def write_worst(
    folder: Path,
    pixels: np.ndarray,
    labels: torch.Tensor,
    predictions: Predictions,
    class_names: Sequence[str],
    caption: str,
) -> None:
    """Write `worst.png`: the images, among uint8 [N, H, W], that the classifier misreads with the highest confidence.
    It reads another class than `labels`, int64 [N]."""
    confidence, read = predictions.probabilities.max(1)
    wrong = torch.nonzero(read != labels).flatten()
    chosen = wrong[confidence[wrong].argsort(descending=True)][:WORST].tolist()
    tiles = [
        ([pixels[index]], _named(class_names, labels[index], " → ", read[index]), f"{confidence[index]:.0%}")
        for index in chosen
    ]
    title = "Asked for → read as: the classifier's most confident misreadings"
    atomic_write(folder / "worst.png", png(_sheet(tiles, title, caption, columns=10)))


def write_closest(
    folder: Path,
    pixels: np.ndarray,
    labels: torch.Tensor,
    closest: Neighbours | None,
    memorisation: dict[str, Any] | None,
    train: Images,
    caption: str,
) -> None:
    """Write `closest_pairs.png`: the generated images closest to a training image, each beside it. At most two of a
    class, because otherwise all would be simple strokes.

    Args:
        pixels, labels: generated, uint8 [N, H, W], and the classes asked for, int64 [N].
        closest: of `train`, to each of them; None if that was not measured: then an earlier picture is removed.
        memorisation: that part of evaluation.json.
    """
    path = folder / "closest_pairs.png"
    if closest is None or memorisation is None:
        path.unlink(missing_ok=True)
        return
    drawn, chosen = Counter(), []
    for index in closest.distances.argsort().tolist():
        drawn[int(labels[index])] += 1
        if drawn[int(labels[index])] <= PAIRS_OF_A_CLASS:
            chosen.append(index)
    chosen = chosen[:PAIRS]
    originals = train[closest.indices[chosen].to(train.labels.device)]
    tiles = [
        (
            [pixels[index], original],
            _named(train.class_names, labels[index], " · ", label),
            f"{closest.distances[index]:.2f}",
        )
        for index, original, label in zip(chosen, originals.pixels.cpu().numpy(), originals.labels, strict=True)
    ]
    title = "Closest to the training images: generated | training image, their classes and distance"
    caption += (
        f" · closest of {len(labels):,}, at most two of a class · 1% of the test images are closer than "
        f"{memorisation['heldout']['p01']:.2f}"
    )
    atomic_write(path, png(_sheet(tiles, title, caption, columns=6)))


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
