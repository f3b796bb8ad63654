"""`--data glyphs`: the embedded data set, 47 characters drawn from fonts, written in EMNIST's own files.

A character is drawn as a hand would: the font gives the path of the pen (the skeleton of the glyph), a random map moves
the path, and a round pen follows it. It is then processed as EMNIST processed its scans (Cohen et al. 2017, fig. 1):
128x128 binary scan, Gaussian blur with sigma 1, bounding box, centred in a square with a border of 2 pixels, resampled
to 28x28, stretched to 0..255.

The pen and the blur need no picture at scan size: both are functions of the distance to the path, kept once a glyph as
a field and sampled at the 28x28 pixels only. What decides a pixel is computed with + - * / and tables: matrix products
and vectorised exponentials differ in their last bits from machine to machine.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tyro.conf import arg

from ddpm.run import cli
from ddpm.run.errors import RequestError
from ddpm.run.files import atomic_write, read_json
from ddpm.run.fonts import font_file
from ddpm.run.paths import PROJECT_ROOT
from ddpm.run.program import run_program
from ddpm.training.emnist import CLASS_NAMES, IMAGE_SIZE, MERGED, check_split, read_idx, split_files, write_idx

TRAIN_PER_CLASS, TEST_PER_CLASS = 400, 80
VERSION = 1  # of the pictures: raise it when a change here changes them
DEFAULT_ROOT = PROJECT_ROOT / "data" / "glyphs"

# Fonts that matplotlib ships, and the characters to leave out of each: those that hardly anyone writes so (zeros with a
# dot, "a" and "g" of two storeys, digits that hang below the line, wide serifs), and dots on i and j that thin away.
FONTS = {
    "DejaVuSans": "a",
    "DejaVuSans-Oblique": "a",
    "DejaVuSans-Bold": "a",
    "DejaVuSansMono": "0a",
    "DejaVuSansMono-Oblique": "0a",
    "DejaVuSansMono-Bold": "0a",
    "cmss10": "ag",
    "cmtt10": "agijrMNW",
    "cmti10": "37MNW",
    "cmmi10": "0123456789MNW",
    "STIXGeneralItalic": "gjEFMNWX",
    "DejaVuSerif-Italic": "rAEFHKMNRTWXY",
}

GLYPH = 64  # the longer side of a glyph's box in its distance field, pixels
FIELD = 128  # the side of that field: room for the widest pen around the glyph
BLUR = 0.9  # sigma in pixels of the scan: EMNIST's is 1, of which its bicubic resampling takes a little back
NODES = 5  # of the elastic part, along each side of the glyph's box
BORDER = 3 + 2  # around the ink of the scan, in pixels: the reach of the blur, and EMNIST's border


@dataclass(frozen=True)
class Masters:
    """Every way to draw one class: G glyphs (a font and a character each)."""

    fields: np.ndarray  # (G, FIELD, FIELD, 1) float32: distance to the path, where the longer side of the glyph is 2
    paths: np.ndarray  # (G, P, 2) float32: points (x, y) of the path in [-1, 1], the last one repeated to fill P
    sizes: np.ndarray  # (G,) float32: longer side of the glyph, em


# --- glyphs -> paths -> distance fields
def _render(font: str, character: str) -> tuple[np.ndarray, float]:
    """One glyph, centred, its longer side GLYPH pixels: ((FIELD, FIELD) bool, that side in em)."""
    file = font_file(font)
    left, top, right, bottom = ImageFont.truetype(file, 256).getbbox(character)
    size = max(right - left, bottom - top) / 256
    sized = ImageFont.truetype(file, GLYPH / size)
    left, top, right, bottom = sized.getbbox(character)
    picture = Image.new("L", (FIELD, FIELD))
    corner = ((FIELD - left - right) / 2, (FIELD - top - bottom) / 2)
    ImageDraw.Draw(picture).text(corner, character, font=sized, fill=255)
    return np.asarray(picture) > 127, size


@cache
def _removable() -> tuple[np.ndarray, np.ndarray]:
    """Zhang and Suen's two rules (1984): for each of the 256 neighbourhoods, may the pixel in the middle go?"""
    around = [(np.arange(256) >> bit) & 1 for bit in range(8)]  # clockwise from north
    north, east, south, west = around[::2]
    count = sum(around)
    runs = sum((1 - around[bit]) & around[(bit + 1) % 8] for bit in range(8))
    edge = (count >= 2) & (count <= 6) & (runs == 1)
    first = edge & (north * east * south == 0) & (east * south * west == 0)
    second = edge & (north * east * west == 0) & (north * south * west == 0)
    return first, second


def _thin(ink: np.ndarray) -> np.ndarray:
    """The skeletons, one pixel wide, of pictures (G, H, W) of bool with an empty rim."""
    steps = [(-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1)]
    ink = ink.copy()
    inner = ink[:, 1:-1, 1:-1]
    bits = ink.view(np.uint8)
    height, width = inner.shape[1:]
    before, now = -1, int(ink.sum())
    while now != before:
        for rule in _removable():
            code = np.zeros(inner.shape, np.uint8)
            for bit, (down, right) in enumerate(steps):
                code |= bits[:, 1 + down : 1 + down + height, 1 + right : 1 + right + width] << bit
            inner &= ~rule[code]
        before, now = now, int(ink.sum())
    return ink


def _distances(ink: np.ndarray) -> np.ndarray:
    """Distance in pixels to the nearest True of each picture (G, H, W), exact up to a limit beyond any pen's reach."""
    reach = (FIELD - GLYPH) // 2
    squared = np.where(ink, 0, 2 * reach * reach).astype(np.int32)
    for axis in (1, 2):
        rows = np.moveaxis(squared, axis, 1)
        nearest = rows.copy()
        for step in range(1, reach + 1):
            np.minimum(nearest[:, step:], rows[:, :-step] + step * step, out=nearest[:, step:])
            np.minimum(nearest[:, :-step], rows[:, step:] + step * step, out=nearest[:, :-step])
        squared = np.moveaxis(nearest, 1, axis)
    return np.sqrt(squared.astype(np.float32))


def masters(name: str) -> Masters:
    """The glyphs of the class `name`: one a font, or two where EMNIST merged the cases."""
    cases = (name, name.lower()) if name in MERGED else (name,)
    drawn = [_render(font, case) for font, without in FONTS.items() for case in cases if case not in without]
    lines = _thin(np.stack([picture for picture, _ in drawn]))
    unit = GLYPH / 2
    paths = [(np.argwhere(line)[:, ::-1] - (FIELD - 1) / 2) / unit for line in lines]
    longest = max(map(len, paths))
    filled = [np.concatenate([path, np.repeat(path[-1:], longest - len(path), 0)]) for path in paths]
    return Masters(
        fields=_distances(lines)[..., None] / np.float32(unit),
        paths=np.stack(filled).astype(np.float32),
        sizes=np.array([size for _, size in drawn], np.float32),
    )


# --- hands
@dataclass(frozen=True)
class Hands:
    """How each of N characters is written."""

    glyph: np.ndarray  # (N,) which of the masters
    linear: np.ndarray  # (N, 2, 2) map of the path: its proportions, slant and rotation; the determinant is 1
    wobble: np.ndarray  # (N, NODES, NODES, 3) elastic part: shifts in x and y, relative change of the pen
    em: np.ndarray  # (N,) size of the hand: an em in pixels of the scan
    pen: np.ndarray  # (N,) radius of the pen in pixels of the scan


def _hands(random: np.random.Generator, count: int, glyphs: int) -> Hands:
    """Draw `count` hands; the spreads were set by eye and by measure beside EMNIST."""
    angle, slant, ratio = random.standard_normal((3, count)) * [[0.11], [0.22], [0.13]]
    slant += 0.08  # most hands lean forward
    cos, sin, wide = np.cos(angle), np.sin(angle), np.exp(ratio)
    # rotation times [[wide, -slant], [0, 1 / wide]]; y points down, so a negative shear leans to the right
    linear = [wide * cos, -slant * cos - sin / wide, wide * sin, -slant * sin + cos / wide]
    return Hands(
        glyph=random.integers(glyphs, size=count),
        linear=np.stack(linear, -1).reshape(-1, 2, 2).astype(np.float32),
        wobble=(random.standard_normal((count, NODES, NODES, 3)) * [0.065, 0.065, 0.1]).astype(np.float32),
        em=45 * np.exp(0.22 * random.standard_normal(count)),
        pen=1.4 + np.exp(0.5 * random.standard_normal(count)),
    )


def _apply(matrices: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Matrices (N, 2, 2) times points (N, M, 2)."""
    return matrices[:, None, :, 0] * points[:, :, None, 0] + matrices[:, None, :, 1] * points[:, :, None, 1]


def _inverse(matrices: np.ndarray) -> np.ndarray:
    """Inverse of matrices (N, 2, 2) of determinant 1."""
    (a, b), (c, d) = np.moveaxis(matrices, 0, 2)
    return np.stack([d, -b, -c, a], -1).reshape(-1, 2, 2)


# --- scans
@cache
def _edge() -> np.ndarray:
    """The normal distribution function over [-8, 8] in steps of 1/256: how the blur renders an edge."""
    return np.array([0.5 * (1 + math.erf(step / 256 / math.sqrt(2))) for step in range(-2048, 2049)], np.float32)


def _blurred_edge(distance: np.ndarray) -> np.ndarray:
    return _edge()[np.clip(np.rint(distance * np.float32(256 / BLUR)), -2048, 2048).astype(np.int32) + 2048]


def _sample(fields: np.ndarray, which: np.ndarray, points: np.ndarray, reach: float) -> np.ndarray:
    """Bilinear values (N, M, C) of fields[which] at points (N, M, 2); a field (side, side, C) covers +-reach."""
    side, channels = fields.shape[2:]
    half = np.float32((side - 1) / 2)
    place = np.clip(points * (half / np.float32(reach)) + half, 0, np.float32(side - 1.001))
    corner = place.astype(np.int32)
    x, y = np.split(place - corner, 2, axis=2)
    start = (which[:, None].astype(np.int32) * side + corner[:, :, 1]) * side + corner[:, :, 0]
    flat = fields.reshape(-1, channels)
    top = flat[start] * (1 - x) + flat[start + 1] * x
    bottom = flat[start + side] * (1 - x) + flat[start + side + 1] * x
    return top * (1 - y) + bottom * y


def _wobble(hands: Hands, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The elastic part at points (N, M, 2) of the glyph: shifts (N, M, 2), factors of the pen (N, M)."""
    values = _sample(hands.wobble, np.arange(len(points)), points, 1.0)
    return values[:, :, :2], 1 + values[:, :, 2]


def _draw(master: Masters, hands: Hands) -> np.ndarray:
    """The pictures (N, 28, 28) uint8, upright."""
    path = master.paths[hands.glyph]
    # pixels of the scan to a unit of the glyph: small letters are written larger than they are printed, hence the root
    unit = (hands.em * np.sqrt(master.sizes[hands.glyph]) / 2).astype(np.float32)[:, None]
    pen = hands.pen.astype(np.float32)[:, None]

    written = _apply(hands.linear, path + _wobble(hands, path)[0]) * unit[:, :, None]
    low, high = written.min(1), written.max(1)
    side = (high - low).max(1, keepdims=True) + 2 * pen + 2 * BORDER  # of the square that becomes 28x28
    grid = (np.arange(IMAGE_SIZE, dtype=np.float32) + np.float32(0.5)) / IMAGE_SIZE - np.float32(0.5)
    pixels = np.stack(np.meshgrid(grid, grid), -1).reshape(1, -1, 2)
    scan = pixels * side[:, :, None] + ((low + high) / 2)[:, None]

    back = _apply(_inverse(hands.linear), scan / unit[:, :, None])
    shift, pressure = _wobble(hands, back)  # to first order, what moved a point there moves it back from here
    distance = _sample(master.fields, hands.glyph, back - shift, (FIELD - 1) / GLYPH)[:, :, 0] * unit
    pen = pen * pressure
    ink = _blurred_edge(pen - distance) - _blurred_edge(-pen - distance)
    ink *= 255 / ink.max(1, keepdims=True)
    return np.rint(ink).astype(np.uint8).reshape(-1, IMAGE_SIZE, IMAGE_SIZE)


# --- the data set
def draw(counts: dict[str, int], seed: int) -> dict[str, np.ndarray]:
    """Upright pictures (counts[split] * 47, 28, 28) uint8 of each split, its classes in turn: 0, 1, ... t, 0, 1, ...

    Each split and class draws from a stream of its own, so no split depends on the size of another.
    """
    shape = (len(CLASS_NAMES), IMAGE_SIZE, IMAGE_SIZE)
    pictures = {split: np.empty((count, *shape), np.uint8) for split, count in counts.items()}
    for label, name in enumerate(CLASS_NAMES):
        master = masters(name)
        for number, (split, count) in enumerate(counts.items()):
            random = np.random.default_rng([seed, number, label])
            pictures[split][:, label] = _draw(master, _hands(random, count, len(master.sizes)))
    return {split: drawn.reshape(-1, IMAGE_SIZE, IMAGE_SIZE) for split, drawn in pictures.items()}


def ensure_glyphs(
    root: Path = DEFAULT_ROOT,
    seed: int = 0,
    train_per_class: int = TRAIN_PER_CLASS,
    test_per_class: int = TEST_PER_CLASS,
) -> None:
    """Draw the data set into `root`/EMNIST/raw/, unless a whole one with the same parameters is there.

    Raises:
        RequestError: the files there were not drawn here (EMNIST itself, say); they are left alone.
        OSError: the folder cannot be written.
    """
    note = Path(root) / "EMNIST" / "raw" / "glyphs.json"
    wanted = {"generator": "ddpm.training.glyphs", "version": VERSION, "seed": seed}
    wanted |= {"train_per_class": train_per_class, "test_per_class": test_per_class}
    if _is_whole(Path(root), note, wanted):
        return
    foreign = [file for split in ("train", "test") for file in split_files(root, split) if os.path.lexists(file)]
    if foreign and not os.path.lexists(note):
        raise RequestError(
            f"{foreign[0]} was not drawn by ddpm.training.glyphs, so it stays: give glyphs a folder of their own"
        )
    note.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(note, json.dumps(wanted | {"whole": False}, indent=2))
    for split, pictures in draw({"train": train_per_class, "test": test_per_class}, seed).items():
        images, labels = split_files(root, split)
        write_idx(images, pictures.transpose(0, 2, 1))
        write_idx(labels, (np.arange(len(pictures)) % len(CLASS_NAMES)).astype(np.uint8))
    atomic_write(note, json.dumps(wanted | {"whole": True}, indent=2))


def _is_whole(root: Path, note: Path, wanted: dict) -> bool:
    """Was drawing with these parameters finished, and are its files still sound?"""
    try:
        if read_json(note) != wanted | {"whole": True}:
            return False
        for split in ("train", "test"):
            check_split(root, split)
    except (OSError, ValueError):  # no note, half a note, or (a RequestError) damaged files
        return False
    return True


def contact_sheet(root: Path, rows: int = 16) -> Image.Image:
    """The first `rows` training pictures of each class, a column a class."""
    stored = read_idx(split_files(root, "train")[0], 3)[: rows * len(CLASS_NAMES)]
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
    config = cli.parse(GlyphsConfig, arguments, "python -m ddpm.training.glyphs")
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
