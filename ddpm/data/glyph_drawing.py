"""Handwritten characters drawn from fonts, as EMNIST's scans look.

The font gives the path of the pen (the skeleton of the glyph), a random map moves the path, and a round pen follows it.
The result is processed as EMNIST processed its scans (Cohen et al. 2017, fig. 1): 128x128 binary scan, Gaussian blur
with sigma 1, bounding box, centred in a square with a border of 2 pixels, resampled to 28x28, stretched to 0..255.

No picture of scan size is needed: pen and blur are functions of the distance to the path, which is kept as a field for
each glyph and sampled at the 28x28 pixels only. Pixels are computed with + - * / and tables alone, as matrix products
and vectorised exponentials differ in their last bits between machines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ddpm.data.emnist import CLASS_NAMES, MERGED
from ddpm.data.idx import IMAGE_SIZE
from ddpm.run.fonts import font_file

# Fonts that matplotlib ships, and the characters to leave out of each: forms that hardly anyone writes by hand (zeros
# with a dot, "a" and "g" of two storeys, digits below the baseline, wide serifs), and dots on i and j that vanish.
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

GLYPH = 64  # longer side of a glyph's box in its distance field, pixels
FIELD = 128  # side of that field, pixels: room for the widest pen around the glyph
BLUR = 0.9  # sigma in pixels of the scan: EMNIST's is 1, which its bicubic resampling sharpens a little
NODES = 5  # grid points of the elastic deformation along each side of the glyph's box
BORDER = 3 + 2  # pixels around the ink of the scan: the reach of the blur, and EMNIST's border


@dataclass(frozen=True)
class Masters:
    """The glyphs of one class: G pairs of a font and a character."""

    fields: np.ndarray  # (G, FIELD, FIELD, 1) float32: distance to the path, where the longer side of the glyph is 2
    paths: np.ndarray  # (G, P, 2) float32: points (x, y) of the path in [-1, 1], the last one repeated to fill P
    sizes: np.ndarray  # (G,) float32: longer side of the glyph, em


# --- glyphs -> paths -> distance fields
def render_glyph(font: str, character: str) -> tuple[np.ndarray, float]:
    """One glyph, centred, its longer side GLYPH pixels.

    Returns:
        The picture, (FIELD, FIELD) bool, and the longer side of the glyph in em.
    """
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
    """Zhang and Suen's two rules (1984): for each of the 256 neighbourhoods, may the centre pixel be removed?"""
    around = [(np.arange(256) >> bit) & 1 for bit in range(8)]  # clockwise from north
    north, east, south, west = around[::2]
    count = sum(around)
    runs = sum((1 - around[bit]) & around[(bit + 1) % 8] for bit in range(8))
    edge = (count >= 2) & (count <= 6) & (runs == 1)
    first = edge & (north * east * south == 0) & (east * south * west == 0)
    second = edge & (north * east * west == 0) & (north * south * west == 0)
    return first, second


def thin(ink: np.ndarray) -> np.ndarray:
    """Skeletons, one pixel wide, of pictures (G, H, W) of bool with an empty rim."""
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


def distances(ink: np.ndarray) -> np.ndarray:
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
    drawn = [render_glyph(font, case) for font, without in FONTS.items() for case in cases if case not in without]
    lines = thin(np.stack([picture for picture, _ in drawn]))
    unit = GLYPH / 2
    paths = [(np.argwhere(line)[:, ::-1] - (FIELD - 1) / 2) / unit for line in lines]
    longest = max(map(len, paths))
    filled = [np.concatenate([path, np.repeat(path[-1:], longest - len(path), 0)]) for path in paths]
    return Masters(
        fields=distances(lines)[..., None] / np.float32(unit),
        paths=np.stack(filled).astype(np.float32),
        sizes=np.array([size for _, size in drawn], np.float32),
    )


# --- random parameters of the handwriting
@dataclass(frozen=True)
class Hands:
    """Random parameters of N handwritten characters, each by a hand of its own."""

    glyph: np.ndarray  # (N,) index among the masters
    linear: np.ndarray  # (N, 2, 2) map of the path: proportions, slant and rotation; determinant 1
    wobble: np.ndarray  # (N, NODES, NODES, 3) elastic deformation: shifts in x and y, relative change of the pen
    em: np.ndarray  # (N,) size of the writing: an em in pixels of the scan
    pen: np.ndarray  # (N,) radius of the pen in pixels of the scan


def _hands(random: np.random.Generator, count: int, glyphs: int) -> Hands:
    """Draw the parameters of `count` characters; their spreads were fitted to EMNIST by eye and by measurement."""
    angle, slant, ratio = random.standard_normal((3, count)) * [[0.11], [0.22], [0.13]]
    slant += 0.08  # most handwriting leans forward
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


# --- pictures
@cache
def _edge() -> np.ndarray:
    """The normal distribution function over [-8, 8] in steps of 1/256: how the blur renders an edge."""
    return np.array([0.5 * (1 + math.erf(step / 256 / math.sqrt(2))) for step in range(-2048, 2049)], np.float32)


def _blurred_edge(distance: np.ndarray) -> np.ndarray:
    """Ink from 0 to 1 at this distance in pixels of the scan from a straight edge; positive is inside."""
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
    """The elastic deformation at points (N, M, 2) of the glyph: shifts (N, M, 2), factors of the pen (N, M)."""
    values = _sample(hands.wobble, np.arange(len(points)), points, 1.0)
    return values[:, :, :2], 1 + values[:, :, 2]


def _draw(master: Masters, hands: Hands) -> np.ndarray:
    """The pictures (N, 28, 28) uint8, upright, of N characters of one class."""
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
    shift, pressure = _wobble(hands, back)  # the inverse shift, to first order
    distance = _sample(master.fields, hands.glyph, back - shift, (FIELD - 1) / GLYPH)[:, :, 0] * unit
    pen = pen * pressure
    ink = _blurred_edge(pen - distance) - _blurred_edge(-pen - distance)
    ink *= 255 / ink.max(1, keepdims=True)
    return np.rint(ink).astype(np.uint8).reshape(-1, IMAGE_SIZE, IMAGE_SIZE)


# --- data set
def draw(counts: dict[str, int], seed: int) -> dict[str, np.ndarray]:
    """Upright pictures (counts[split] * 47, 28, 28) uint8 of each split, its classes in turn: 0, 1, ... t, 0, 1, ...

    Each split and class has its own random stream, so no split depends on the size of another.
    """
    shape = (len(CLASS_NAMES), IMAGE_SIZE, IMAGE_SIZE)
    pictures = {split: np.empty((count, *shape), np.uint8) for split, count in counts.items()}
    for label, name in enumerate(CLASS_NAMES):
        master = masters(name)
        for number, (split, count) in enumerate(counts.items()):
            random = np.random.default_rng([seed, number, label])
            pictures[split][:, label] = _draw(master, _hands(random, count, len(master.sizes)))
    return {split: drawn.reshape(-1, IMAGE_SIZE, IMAGE_SIZE) for split, drawn in pictures.items()}
