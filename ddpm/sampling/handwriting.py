"""Handwriting from single characters: position and size of each on its line, and the paper.

EMNIST scales every character to the same box, which loses size and position. Here capitals and digits are set on the
baseline, small letters get their x-height, ascenders and descenders back, and letters stand as close together as their
outlines allow.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from ddpm.sampling.sheets import BACKGROUND, FAINT, INK, font

Style = Literal["paper", "night"]
COLOURS = {  # paper, ink, rules, margin line, caption
    "paper": ((252, 250, 243), (27, 38, 99), (207, 222, 236), (240, 188, 184), (150, 148, 140)),
    "night": (BACKGROUND, INK, (26, 33, 43), (26, 33, 43), FAINT),
}

NARROWEST = 520  # width of a page in pixels, so that a caption has room
CAPITAL = 72  # height of a capital on the page in pixels, the unit of the lengths below
LINE, GAP, SPACE = 1.85, 0.15, 0.55  # baseline to baseline; between outlines; between words
X_HEIGHT, DESCENT = 0.64, 0.36
HEIGHTS = {**dict.fromkeys("bdfhkl", 1.05), "i": 0.9, "j": 0.9, "t": 0.88}  # above the baseline; others: X_HEIGHT
HANGING = "gjpqy"  # letters with a descender (DESCENT)
WIDEST = {"m": 1.05, "w": 1.05}  # widest letters; for the others see `_measures`
REACH = 0.1  # letters keep their distance over this height above and below a stroke as well
TUCK = 0.25  # how far a letter may move under or over the one before it
EDGE = 0.07  # share of a picture's side that fades out
INK_LEVEL = 0.4  # a pixel counts as ink from this level on, where 1 is the darkest
LARGEST = 8  # side of a picture, in heights of a capital: one that is nearly empty is not enlarged without end
SPECK = 0.02  # share of a picture's ink that is ignored as specks on each side


@dataclass(frozen=True)
class Place:
    """Position of a character's picture on the page: top left corner and side, in pixels."""

    left: int
    top: int
    side: int


@dataclass(frozen=True)
class Page:
    """The layout of a text: page size and baselines in pixels, a place for each character but blanks, in order."""

    width: int
    height: int
    baselines: tuple[int, ...]
    places: tuple[Place, ...]


def wrap(text: str, width: int) -> list[str]:
    """The lines of a text, at most `width` characters each: line breaks are kept, longer words are cut."""
    return [line for part in text.splitlines() for line in textwrap.wrap(part, width) or [""]]


def lay_out(lines: Sequence[str], pixels: np.ndarray) -> Page:
    """The layout of a text.

    Args:
        lines: the text, as `wrap` returns it.
        pixels: uint8 [N, R, R], the finished picture of each non-blank character.
    """
    drawn, places, baselines, right = iter(pixels), [], [], 0.0
    margin = round(0.75 * CAPITAL)
    for number, line in enumerate(lines):
        baselines.append(round(margin + CAPITAL * (1.05 + LINE * number)))
        pen = _Pen(left=1.35 * margin, baseline=baselines[-1])
        for character in line:
            if character.isspace():
                pen.space()
            else:
                places.append(pen.put(character, next(drawn)))
        right = max(right, pen.right)
    height = baselines[-1] + CAPITAL * DESCENT + margin
    return Page(max(NARROWEST, round(right + margin)), round(height), tuple(baselines), tuple(places))


def repeated(page: Page, times: int) -> Page:
    """The page `times` times, one below the other; `places` are those of the first copy, then of the second, …"""
    shifts = [round(LINE * CAPITAL * len(page.baselines) * number) for number in range(times)]
    return Page(
        page.width,
        page.height + shifts[-1],
        tuple(baseline + shift for shift in shifts for baseline in page.baselines),
        tuple(replace(place, top=place.top + shift) for shift in shifts for place in page.places),
    )


def write(
    page: Page, pixels: np.ndarray, style: Style = "paper", caption: str = "", notes: Sequence[str] = ()
) -> Image.Image:
    """The page with pictures of its characters, finished or after any denoising step.

    Args:
        pixels: uint8 [N, R, R], in the order of `page.places`; 0 is background.
        caption: small text in the lower margin.
        notes: short texts in the left margin, spread evenly over the lines.
    """
    sheet = np.asarray(_paper(page, style, caption, notes), np.float32)
    ink = np.array(COLOURS[style][1], np.float32)
    amount = np.zeros(sheet.shape[:2], np.float32)
    for place, picture in zip(page.places, pixels, strict=True):
        left, top = max(place.left, 0), max(place.top, 0)
        window = amount[top : place.top + place.side, left : place.left + place.side]
        large = (_enlarged(picture, place.side) * _fade(place.side))[top - place.top :, left - place.left :]
        np.maximum(window, large[: window.shape[0], : window.shape[1]], out=window)
    amount = _contrast(amount)[..., None]
    return Image.fromarray((sheet * (1 - amount) + ink * amount).round().astype(np.uint8))


class _Pen:
    """Places the characters of a line, each as close to the one before it as their outlines allow."""

    def __init__(self, left: float, baseline: int) -> None:
        self.right, self.baseline = left, baseline
        self.outline: np.ndarray | None = None  # right edge of the last character's ink, x on the page, by row

    def space(self) -> None:
        self.right += SPACE * CAPITAL
        self.outline = None

    def put(self, character: str, picture: np.ndarray) -> Place:
        """Place a character, uint8 [R, R]; moves `right` to the right edge of its ink."""
        above, below, widest = _measures(character)
        box = _ink_box(picture)
        scale = min((above + below) * CAPITAL / (box[3] - box[1]), widest * CAPITAL / (box[2] - box[0]))
        side = min(round(scale * len(picture)), LARGEST * CAPITAL)
        scale = side / len(picture)
        top = round(self.baseline + below * CAPITAL - box[3] * scale)
        starts, ends = _outlines(_enlarged(picture, side), top - self.baseline)
        if self.outline is None:
            left = self.right - starts.min()
        else:
            distance = (starts - self.outline).min()  # between the outlines with the picture at x = 0
            left = max(GAP * CAPITAL - distance, self.right - starts.min() - TUCK * CAPITAL)
        self.outline = _widened(left + ends)
        self.right = float(left + ends.max())
        return Place(round(left), top, side)


def _measures(character: str) -> tuple[float, float, float]:
    """Height above the baseline, depth below it and greatest width of a character, in heights of a capital."""
    above = HEIGHTS.get(character, X_HEIGHT) if character.islower() else 1.0
    return above, DESCENT if character in HANGING else 0.0, WIDEST.get(character, 1.0 if above == 1 else 0.8)


def _ink_box(picture: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the ink without specks; the whole picture if there is no ink."""
    ink = picture > INK_LEVEL * 255
    if not ink.any():
        return 0, 0, len(picture), len(picture)
    ends = []
    for axis in (0, 1):
        share = ink.sum(axis).cumsum() / ink.sum()  # up to and including each column or row
        ends.append((int((share <= SPECK).sum()), int((share < 1 - SPECK).sum()) + 1))
    (left, right), (top, bottom) = ends
    return left, top, right, bottom


def _outlines(large: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Left and right edge of a picture's ink in each row of the line: x in pixels, infinite in rows without ink."""
    rows = 4 * CAPITAL  # the baseline is the middle one
    starts, ends = np.full(rows, np.inf), np.full(rows, -np.inf)
    ink = large > INK_LEVEL
    first = rows // 2 + top
    for row in np.flatnonzero(ink.any(1)):
        if 0 <= first + row < rows:  # else a speck, far from the character
            across = np.flatnonzero(ink[row])
            starts[first + row], ends[first + row] = across[0], across[-1]
    if not np.isfinite(starts).any():
        starts[:], ends[:] = 0, len(large)
    return starts, ends


def _widened(outline: np.ndarray) -> np.ndarray:
    """The outline widened by REACH up and down, so that strokes one above the other keep their distance too."""
    reach = round(REACH * CAPITAL)
    return np.lib.stride_tricks.sliding_window_view(np.pad(outline, reach, mode="edge"), 2 * reach + 1).max(1)


def _enlarged(picture: np.ndarray, side: int) -> np.ndarray:
    """The picture resampled smoothly, float32 [side, side] in [0, 1]."""
    large = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(large, np.float32) / 255


def _fade(side: int) -> np.ndarray:
    """Weights, float32 [side, side], that fall from 1 to 0 at the edges, so that noise has no sharp border."""
    edge = np.minimum(np.arange(side), np.arange(side)[::-1]) / (EDGE * side)
    return np.minimum.outer(edge, edge).clip(0, 1).astype(np.float32)


def _contrast(amount: np.ndarray) -> np.ndarray:
    """Sharpens the edges of enlarged strokes with a smooth step."""
    step = ((amount - 0.15) / 0.6).clip(0, 1)
    return step * step * (3 - 2 * step)


def _paper(page: Page, style: Style, caption: str, notes: Sequence[str]) -> Image.Image:
    colour, _, rule, margin_line, faint = COLOURS[style]
    sheet = Image.new("RGB", (page.width, page.height), colour)
    draw = ImageDraw.Draw(sheet)
    for baseline in page.baselines:
        draw.line((0, baseline + 2, page.width, baseline + 2), fill=rule, width=2)
    draw.line((0.6 * CAPITAL, 0, 0.6 * CAPITAL, page.height), fill=margin_line, width=2)
    for number, note in enumerate(notes):
        baseline = page.baselines[number * len(page.baselines) // len(notes)]
        draw.text((0.3 * CAPITAL, baseline - 4), note, font=font(13), fill=faint, anchor="ms")
    draw.text((page.width - 14, page.height - 10), caption, font=font(13), fill=faint, anchor="rs")
    return sheet
