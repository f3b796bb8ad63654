"""The fonts that matplotlib ships (DejaVu, STIX), the same on every machine, and names as labels in these fonts."""

from __future__ import annotations

from functools import cache
from pathlib import Path

LABELS = ("DejaVuSans", "DejaVuSans-Bold")  # the typeface of all pictures
LONGEST = 24  # letters of a label


def font_file(name: str) -> Path:
    """The file of the font `name`, such as `DejaVuSans-Bold`."""
    import matplotlib  # here, as it takes a while to load and training starts without fonts

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"


def drawable(text: str) -> str:
    """The text with letters that the typeface lacks as their code points: `い` → `U+3044`."""
    if all(map(_is_drawable, text)):
        return text
    words = "".join(letter if _is_drawable(letter) else f" U+{ord(letter):04X} " for letter in text)
    return " ".join(words.split())


def as_label(name: str, longest: int = LONGEST) -> str:
    """A name as a label: drawable, and shortened in the middle, as names often begin or end alike."""
    text = drawable(name)
    if len(text) <= longest:
        return text
    end = (longest - 1) // 2
    return f"{text[: longest - 1 - end]}…{text[-end:]}"


def _is_drawable(letter: str) -> bool:
    return letter.isprintable() and ord(letter) in _code_points()


@cache
def _code_points() -> frozenset[int]:
    """Those that regular and bold face have."""
    from matplotlib.ft2font import FT2Font

    fonts = (FT2Font(font_file(face)) for face in LABELS)
    return frozenset.intersection(*(frozenset(font.get_charmap()) for font in fonts))
