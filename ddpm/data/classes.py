"""Classes: their names in a checkpoint, which of many pictures show, and how many images of each are drawn."""

from __future__ import annotations

from typing import Any

from ddpm.data.emnist import CLASS_NAMES

MOST_SHOWN = 64  # classes of a picture for which none were chosen; EMNIST ByClass has 62
USUAL_CLASSES = 100  # up to this many classes, each gets its usual number of images
CHARACTERS = ("emnist", "kmnist", "glyphs")  # data sets of characters, EMNIST in all its splits


def evenly(count: int, most: int) -> list[int]:
    """All of the indices 0 to `count` - 1, or `most` of them, evenly spaced, the first and the last included."""
    return list(range(count)) if count <= most else [round(i * (count - 1) / (most - 1)) for i in range(most)]


def shown_labels(classes: int) -> list[int]:
    """The labels of the classes that a picture shows: all, or evenly spaced ones."""
    return evenly(classes, MOST_SHOWN)


def shown_words(shown: int, classes: int) -> str:
    """`64 of 1,000 classes`; empty if all are shown."""
    return f"{shown:,} of {classes:,} classes" if shown < classes else ""


def affordable_per_class(usual: int, classes: int) -> int:
    """Images of each class to draw, so that there are no more in all than USUAL_CLASSES classes have; at least 1."""
    return max(1, min(usual, usual * USUAL_CLASSES // classes))


def class_names_of(meta: dict[str, Any]) -> str | list[str]:
    """The names of the classes of a model with this meta.json, as a pipeline takes them: a string if each is a
    character."""
    names = meta.get("class_names") or CLASS_NAMES  # older checkpoints are all of EMNIST's classes
    return "".join(names) if all(len(name) == 1 for name in names) else list(names)


def thing(data: str) -> str:
    """What sentences call one image of a data set, given by its name in files: `character` or `image`."""
    return "character" if data.partition("-")[0] in CHARACTERS else "image"
