"""The flags of sample.py: a frozen dataclass, from which the command line and `--help` are made."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from ddpm.run.datasets import class_name
from ddpm.run.errors import RequestError
from ddpm.sampling.options import DrawingOptions


@dataclass(frozen=True)
class SampleConfig(DrawingOptions):
    """Draw images of classes, or a text in handwriting, with a trained model."""

    model: Annotated[Positional[str | None], arg(metavar="[RUN]")] = None
    """A run (its best checkpoint), or the folder of a checkpoint or an export. Left out: the only run there is."""
    chars: str | None = None
    """Characters of a sheet, ranges allowed, such as 0-9A-F. Left out: all classes; of more than 64, some."""
    classes: str | None = None
    """Classes of a sheet by their names, such as "Bag, Ankle boot"; a name with a comma in double quotes. Also by their
    numbers, from 0 on, if no class is called by a number. For data whose classes are not characters."""
    text: str | None = None
    """A text to write by hand, every letter drawn anew; \\n starts a new line."""
    width: int | None = None
    """Longest line of --text in characters; longer ones are wrapped. Left out: 24."""
    style: Literal["paper", "night"] | None = None
    """Colours of --text: dark ink on paper, or light ink on a dark page (night). Left out: paper."""
    per_class: int | None = None
    """Pictures of each class on a sheet. Left out: 8; in an animation 3, in a strip 1."""
    grid: bool = False
    """Draw the characters of --text as a labelled sheet, as with --chars."""
    strip: tuple[int, ...] | None = None
    """Show denoising steps side by side: these (0 is noise), or evenly spaced ones if none are given."""
    animate: bool = False
    """Show the denoising steps as a GIF, or as an MP4 if --out ends in .mp4."""
    npz: bool = False
    """Also write the raw images beside the picture: x, uint8 [N, H, W], and y, their class indices [N]."""
    out: Path | None = None
    """File of the picture (.png, .gif, .mp4); an existing one is replaced. Left out: a new file in samples/."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least_one(("width", "per_class"))
        for wrong, message in self._mistakes():
            if wrong:
                raise RequestError(message)

    def _mistakes(self) -> list[tuple[bool, str]]:
        """The rules as pairs (is it broken, message)."""
        suffix = self.suffix
        return [
            (
                None not in (self.chars, self.text),
                "--chars and --text: give one of them; --text with --grid makes a sheet",
            ),
            (
                self.classes is not None and (self.chars, self.text) != (None, None),
                "--classes: leave out --chars and --text, or --classes",
            ),
            (
                self.text is not None and not self.text.replace("\\n", "").strip(),
                "--text is empty: give a text to write",
            ),
            (self.grid and self.text is None, "--grid makes a sheet of --text: give one, or leave out --grid"),
            (
                (self.width, self.style) != (None, None) and not self.handwriting,
                "--width and --style are for handwriting: leave them out, or give --text without --grid",
            ),
            (self.grid and self.strip is not None, "--grid and --strip are different pictures: give one of them"),
            (self.strip is not None and self.animate, "--strip and --animate: give one of them"),
            (
                self.per_class is not None and self.handwriting,
                "--per-class is for sheets: leave it out, or add --grid",
            ),
            (
                suffix not in (".png", ".gif", ".mp4"),
                f"--out {self.out}: the name must end in .png, or .gif or .mp4 for an animation",
            ),
            (
                self.animate and suffix == ".png",
                f"--out {self.out}: a .png cannot hold an animation; take .gif or .mp4, or leave out --animate",
            ),
            (
                self.strip is not None and suffix != ".png",
                f"--out {self.out}: a strip is one picture; take .png, or --animate instead of --strip",
            ),
        ]  # fmt: skip

    @property
    def handwriting(self) -> bool:
        return self.text is not None and not self.grid

    @property
    def moving(self) -> bool:
        """Is an animation asked for, by --animate or by the suffix of --out?"""
        return self.suffix != ".png"

    @property
    def suffix(self) -> str:
        return self.out.suffix.lower() if self.out else ".gif" if self.animate else ".png"


def expand(chars: str) -> str:
    """The characters of `--chars` with ranges written out, without blanks: `0-3xY` → `0123xY`.

    Raises:
        RequestError: a range is descending or mixes digits, capitals and small letters, or there is no character.
    """

    def written_out(match: re.Match) -> str:
        first, last = match.group(1), match.group(2)
        kinds = [(end.isdigit(), end.isupper(), end.islower()) for end in (first, last)]
        if kinds[0] != kinds[1] or first > last:
            raise RequestError(f"--chars: {match.group()} is not a range; write it like 0-9, A-Z or a-f")
        return "".join(map(chr, range(ord(first), ord(last) + 1)))

    found = re.sub(r"([0-9A-Za-z])-([0-9A-Za-z])", written_out, "".join(chars.split()))
    if not found:
        raise RequestError("--chars is empty: give characters such as 0-9A-F, or leave it out for all")
    return found


def chosen_labels(classes: str, names: Sequence[str]) -> list[int]:
    """The labels of `--classes`, whose names are separated by commas: `Bag, 3` → `[8, 3]`.

    A number is a label only where no class is called by one: with classes 9 and 10, label 0 would be class 9.

    Args:
        names: of all classes, in the order of their labels.

    Raises:
        RequestError: there is no such class, or none is given.
    """
    (found,) = csv.reader([class_name(classes)], skipinitialspace=True)
    wanted = [name for name in map(class_name, found) if name]
    if not wanted:
        raise RequestError("--classes is empty: give names of classes, or leave it out for all")
    return [_label_of(name, names) for name in wanted]


def _label_of(wanted: str, names: Sequence[str]) -> int:
    if wanted in names:
        return names.index(wanted)
    numbered = any(name.isdecimal() for name in names)
    if not numbered and wanted.isdecimal() and int(wanted) < len(names):
        return int(wanted)
    from ddpm.sampling.pipeline import listed  # here, as it loads torch

    numbers = "" if numbered else f", or numbers from 0 to {len(names) - 1}"
    raise RequestError(f"--classes: there is no class {wanted!r}; give names of these: {listed(names)}{numbers}")
