"""The names of data sets: as the flags give them, as files hold them, and in words."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path
from typing import Literal

DataName = Literal["emnist", "kmnist", "fashion", "glyphs", "folder"]
SplitName = Literal["balanced", "letters", "digits", "mnist", "bymerge", "byclass"]
Invert = Literal["auto", "yes", "no"]

TITLES = {  # name in files → words
    "emnist": "EMNIST Balanced",
    "emnist-letters": "EMNIST Letters",
    "emnist-digits": "EMNIST Digits",
    "emnist-mnist": "EMNIST MNIST",
    "emnist-bymerge": "EMNIST ByMerge",
    "emnist-byclass": "EMNIST ByClass",
    "kmnist": "Kuzushiji-MNIST",
    "fashion": "Fashion-MNIST",
    "glyphs": "embedded glyphs, not EMNIST",
}
UNEQUAL = ("bymerge", "byclass")  # splits whose classes differ much in size


def drawn_equally(balance: str | None, data: str, split: str) -> bool:
    """Is every class drawn equally often in an epoch, by these settings?"""
    return balance == "classes" or (balance is None and data == "emnist" and split in UNEQUAL)


FOLDER = "folder-"  # begins the name of a folder of images
LONGEST = 80  # bytes of a folder's name in other names


def published_name(data: str, split: str, root: Path | str = "") -> str:
    """The name of a data set in the files of a run: `emnist` is EMNIST Balanced, as it always was.

    Args:
        root: `--data-root`, by whose name a folder of images is called.
    """
    if data == "folder":
        return FOLDER + safe_name(os.path.basename(os.path.abspath(root)))
    return f"emnist-{split}" if data == "emnist" and split != "balanced" else data


def safe_name(name: str) -> str:
    """`name` as a part of the names of files and runs: letters, digits and `_ . + = -`, at most `LONGEST` bytes."""
    safe = re.sub(r"[^\w.+=-]+", "-", unicodedata.normalize("NFC", name))
    return safe.encode()[:LONGEST].decode(errors="ignore").strip("-.") or "images"


def class_name(text: str) -> str:
    """A class's name as people write it, as data sets hold it: composed letters (NFC), single blanks."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def is_published_name(name: str) -> bool:
    """Is `name` one that `published_name` returns?"""
    folder = name.removeprefix(FOLDER)
    return name in TITLES or (folder != name and safe_name(folder) == folder)


def data_words(name: str) -> str:
    """A data set in words, by its name in files; glyphs are never presented as EMNIST."""
    if name.startswith(FOLDER):
        return f"images of {name.removeprefix(FOLDER)}/"
    return TITLES.get(name, name)
