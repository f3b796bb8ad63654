"""The sample grids of a run as one picture: images drawn from the same noise at different epochs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure

from ddpm.data.classes import evenly
from ddpm.data.emnist import CLASS_NAMES
from ddpm.run.files import atomic_write, read_file
from ddpm.run.paths import RunPaths, by_epoch, grid_epoch
from metrics.style import STYLE, class_labels, headed_figure, height_of_labels, png

SHOWN = "0258ABEGKMQRSagt"  # of EMNIST Balanced: shapes that differ, some of them hard
MOST_ROWS = 12
FEWEST = 10  # columns' width of the picture, so that its head has room
GAP = 2  # pixels between the pictures
NAME = "samples_through_training"


def samples_through_training(paths: RunPaths) -> Path | None:
    """Draw `plots/samples_through_training.png`: a row per sample grid, at most 12, and up to 16 classes as columns.

    Read from the arrays that training saves beside the grids (`samples/<data>_epoch_0010.npz`: `x` uint8 [N, H, W],
    `y` class index [N], `names` of all classes). Those that cannot be read, or that lack a class, are passed over.

    Returns:
        the picture's path; None, and no picture, if there are fewer than two grids to compare.

    Raises:
        OSError: the folder of plots cannot be written.
    """
    read = {file: read_row(file) for file in by_epoch(paths.samples.glob("*.npz")) if grid_epoch(file) is not None}
    rows = {file: row for file, row in read.items() if row is not None}
    rows = {file: row for file, row in rows.items() if row.like(list(rows.values())[-1])}
    picture = paths.plots / f"{NAME}.png"
    if len(rows) < 2:
        picture.unlink(missing_ok=True)
        return None
    files = list(rows)
    chosen = np.unique(np.linspace(0, len(files) - 1, min(len(files), MOST_ROWS)).round().astype(int))
    document = {"run": paths.run, "data": files[-1].stem.rpartition("_epoch_")[0]}
    with style.context(STYLE):
        shown = [files[index] for index in chosen]
        figure = _draw([rows[file] for file in shown], [grid_epoch(file) for file in shown], document)
        content = png(figure, document, NAME, kind="characters")
    paths.plots.mkdir(parents=True, exist_ok=True)
    atomic_write(picture, content)
    return picture


class Row(NamedTuple):
    """The first picture of some classes in a sample grid."""

    names: tuple[str, ...]
    pixels: np.ndarray  # uint8 [classes, H, W]

    def like(self, other: Row) -> bool:
        return self.names == other.names and self.pixels.shape == other.pixels.shape


def read_row(file: Path) -> Row | None:
    """The classes of a grid that are shown; None if they are not all there."""
    try:
        with np.load(io.BytesIO(read_file(file))) as arrays:
            pixels, labels = arrays["x"], arrays["y"].tolist()
            names = arrays["names"].tolist() if "names" in arrays else list(CLASS_NAMES)  # older ones had no other
            shown = column_labels(names, sorted(set(labels)))
            row = pixels[[labels.index(label) for label in shown]]
    except Exception:  # zipfile, zlib and NumPy raise different ones for damaged files
        return None
    sound = row.ndim == 3 and row.dtype == np.uint8 and row.size
    return Row(tuple(names[label] for label in shown), row) if sound else None


def column_labels(names: Sequence[str], drawn: Sequence[int]) -> list[int]:
    """The labels that have a column, of those that were `drawn`: of EMNIST's classes SHOWN, of others evenly spaced
    ones."""
    if set(SHOWN) <= set(names):
        return [names.index(name) for name in SHOWN]
    return [drawn[index] for index in evenly(len(drawn), len(SHOWN))]


def _draw(rows: list[Row], epochs: list[int], document: dict) -> Figure:
    """A mosaic whose rows are named by their epochs and whose columns by their classes."""
    names, (count, height, width) = rows[0].names, rows[0].pixels.shape
    sheet = np.full((len(rows), count, height + GAP, width + GAP), np.nan)
    sheet[:, :, :height, :width] = [row.pixels for row in rows]
    mosaic = sheet.swapaxes(1, 2).reshape(len(rows) * (height + GAP), -1)[:-GAP, :-GAP]
    cell = 0.56  # inches
    what = f"the same noise in every row  ·  EMA weights  ·  epoch {epochs[0]} to {epochs[-1]}"
    figure = headed_figure(
        cell * max(count, FEWEST) + 1.1, cell * len(rows) * height / width + height_of_labels(names), document, what
    )
    axes = figure.add_subplot()
    axes.imshow(mosaic, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_facecolor("none")
    centres = (np.arange(count) + 0.5) * (width + GAP) - GAP / 2
    class_labels(axes, "x", centres, names, size=13, fontweight="bold")
    axes.set_yticks((np.arange(len(rows)) + 0.5) * (height + GAP) - GAP / 2, [f"epoch {epoch}" for epoch in epochs])
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    return figure
