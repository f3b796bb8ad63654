"""The names of data sets: as the flags give them, as files hold them, and in words."""

from __future__ import annotations

from typing import Literal

DataName = Literal["emnist", "kmnist", "fashion", "glyphs"]
SplitName = Literal["balanced", "letters", "digits", "mnist", "bymerge", "byclass"]

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


def published_name(data: str, split: str) -> str:
    """The name of a data set in the files of a run: `emnist` is EMNIST Balanced, as it always was."""
    return f"emnist-{split}" if data == "emnist" and split != "balanced" else data


def data_words(name: str) -> str:
    """A data set in words, by its name in files; glyphs are never presented as EMNIST."""
    return TITLES.get(name, name)
