"""A picture file as a small square of gray: how it is read and checked, its background, its size."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, UnidentifiedImageError

from ddpm.run.datasets import Invert
from ddpm.run.errors import RequestError
from ddpm.run.files import read_file, why_and_cure
from ddpm.run.format import clean

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")
IN_WORDS = "PNG, JPEG, TIFF, BMP, GIF or WebP"
ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".gif", ".webp"})
OTHERS = {  # endings of pictures in formats that are not read → the format
    ".heic": "HEIC", ".heif": "HEIF", ".avif": "AVIF", ".jxl": "JPEG XL", ".jp2": "JPEG 2000", ".svg": "SVG",
    ".psd": "PSD", ".xcf": "XCF", ".tga": "TGA", ".ico": "ICO", ".pgm": "PGM", ".ppm": "PPM", ".pbm": "PBM",
    ".dng": "DNG", ".cr2": "CR2", ".cr3": "CR3", ".nef": "NEF", ".arw": "ARW", ".raw": "RAW",
}  # fmt: skip
MOST_PIXELS = 64_000_000  # while alpha is composed, these take about 600 MB
REDUCED = 4  # libjpeg decodes a large JPEG at a smaller size, but at no less than this many times the side asked for
DARK, LIGHT = 95, 160  # a background is dark up to the first level and light from the second on
TOLERANCE, ENOUGH = 32, 0.5  # a border is a background if this share of its pixels is this close to their median
ORIENTATION = 0x0112  # the EXIF tag
UPRIGHT = {  # its value → what makes the stored picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
FLIPS = (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM)  # keep the size


class _Unusable(Exception):
    """Why a picture cannot be used, and the fix."""


@dataclass(frozen=True)
class Picture:
    """A picture file, made gray, square and small. Its background is still as in the file."""

    pixels: np.ndarray  # uint8 [S, S]
    size: tuple[int, int]  # width and height in pixels, upright, before it was resized
    background: int | None  # level of the border, 0 to 255; None if the border is neither dark nor light as a whole
    digest: bytes  # SHA-256 of the file


def read_picture(path: Path, side: int) -> Picture:
    """Read a picture file. Of an animation, the first frame.

    Args:
        side: height and width of the result, S.

    Raises:
        FileNotFoundError: there is no such file.
        RequestError: it cannot be read or used; one line that names the file, the reason and the fix.
    """
    try:
        content = read_file(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RequestError(in_one_line(why_and_cure(error))) from error
    try:
        return _decode(content, side)
    except _Unusable as error:
        words = str(error)
    except UnidentifiedImageError:
        words = f"is no {IN_WORDS} picture, or its first bytes are damaged: replace or remove it"
        if content.startswith((b"II*\0", b"MM\0*")):
            words = "is a TIFF picture whose kind of pixels Pillow does not know, or damaged: save it as PNG"
    except Image.DecompressionBombError:
        words = _too_large()
    except Exception as error:  # decoders raise errors of many kinds for damaged files
        words = f"is truncated or damaged ({error or type(error).__name__}): replace or remove it"
    raise RequestError(in_one_line(f"{path} {words}"))


def turn_black(pixels: np.ndarray, backgrounds: Sequence[int | None], invert: Invert) -> dict[str, int]:
    """Turn the backgrounds of pictures black, in place.

    auto: a light background is inverted. A picture without a background is inverted if most backgrounds of the data
    set are light; where most pictures have none (photographs), those without one stay as they are.

    Args:
        pixels: uint8 [N, S, S], as in the files.
        backgrounds: of the N pictures, as `read_picture` returns them.
        invert: as `--invert`.

    Returns:
        The number of pictures with a dark and a light background and with none, and of those that were inverted.
    """
    light = sum(level is not None and level >= LIGHT for level in backgrounds)
    none = sum(level is None for level in backgrounds)
    dark = len(backgrounds) - light - none
    others = light > dark and none <= len(backgrounds) / 2
    inverted = 0
    for picture, level in zip(pixels, backgrounds, strict=True):
        if invert == "no":
            break
        negative = invert == "yes" or (others if level is None else level >= LIGHT)
        inverted += negative
        picture[:] = _levels(negative, level)[picture]
    return {"dark": dark, "light": light, "none": none, "inverted": inverted}


def in_one_line(message: str) -> str:
    """A message that holds names of files, which may contain line ends, escape codes and undecodable bytes."""
    return " ".join(clean(message))


def _levels(negative: bool, background: int | None) -> np.ndarray:
    """The new level of each of the 256, uint8 [256]: inverted if asked to, and stretched so that a dark background
    becomes 0."""
    levels = np.arange(256.0)[::-1] if negative else np.arange(256.0)
    black = levels[background] if background is not None else 0
    if 0 < black <= DARK:
        levels = (levels - black).clip(min=0) * 255 / (255 - black)
    return levels.round().astype(np.uint8)


def _decode(content: bytes, side: int) -> Picture:
    if not content:
        raise _Unusable("is empty (0 bytes): replace or remove it")
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        size = image.size
        if size[0] * size[1] > MOST_PIXELS:
            raise _Unusable(_too_large())
        if image.mode.startswith(("I", "F")) or any(re.search(r";16[BLN]\b", str(tile.args)) for tile in image.tile):
            raise _Unusable("has more than 8 bits per channel: save it with 8, as `mogrify -depth 8 FILE` does")
        image.draft("L", (REDUCED * side, REDUCED * side))
        gray = _gray(image)
        with suppress(Exception):  # damaged EXIF data: the pixels may be intact
            if (turn := UPRIGHT.get(image.getexif().get(ORIENTATION))) is not None:  # one of them is 0
                gray = gray.transpose(turn)
                size = size if turn in FLIPS else size[::-1]
    level, clear = _border(np.asarray(gray))
    square = Image.new("L", (side, side), level)
    scale = side / max(gray.size)
    fitted = gray.resize([max(1, round(length * scale)) for length in gray.size], Image.Resampling.BILINEAR)
    square.paste(fitted, [(side - length) // 2 for length in fitted.size])
    return Picture(np.asarray(square), size, level if clear else None, hashlib.sha256(content).digest())


def _gray(image: Image.Image) -> Image.Image:
    """The picture as gray, mode L. Behind transparent pixels lies what the ink is not: white if it is dark, else
    black."""
    if image.mode == "LAB":  # no other mode comes of it without a colour profile
        return image.getchannel("L")
    if image.mode == "La":  # gray that is multiplied with its alpha
        image = image.convert("LA")
    if not image.has_transparency_data:
        return image.convert("L")
    coloured = image.convert("RGBA")
    gray, alpha = coloured.convert("L"), coloured.getchannel("A")
    ink = _total(ImageChops.multiply(gray, alpha)) / max(_total(alpha), 1)  # mean level of what is seen, 0 to 1
    composed = Image.new("L", gray.size, 255 if ink < 0.5 else 0)
    composed.paste(gray, mask=alpha)
    return composed


def _total(image: Image.Image) -> int:
    """The sum of all levels."""
    return sum(level * count for level, count in enumerate(image.histogram()))


def _border(gray: np.ndarray) -> tuple[int, bool]:
    """The median level of the border of a picture, uint8 [H, W], and whether that is a background: dark or light, and
    the level of most of the border."""
    edge = max(1, min(gray.shape) // 32)
    sides = gray[:edge], gray[-edge:], gray[:, :edge], gray[:, -edge:]
    border = np.concatenate([pixels.ravel() for pixels in sides])
    level = int(np.median(border))
    close = np.abs(border.astype(np.int16) - level) <= TOLERANCE
    return level, bool(close.mean() >= ENOUGH) and not DARK < level < LIGHT


def _too_large() -> str:
    return f"has more than {MOST_PIXELS / 1e6:g} million pixels: make it smaller"
