"""What sample.py can be asked for: one frozen dataclass, of which the command line and `--help` are made."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from ddpm.run.errors import RequestError
from ddpm.run.paths import PROJECT_ROOT


@dataclass(frozen=True)
class SampleConfig:
    """Draw characters, or a text in handwriting, with a trained model."""

    model: Positional[str | None] = None
    """A run (its best checkpoint), or the folder of a checkpoint or an export. Left out: the run, if there is one."""
    weights: Literal["ema", "swa"] = "ema"
    """The moving average of the weights, or the average over epochs, if --swa-start-epoch made one."""
    chars: str | None = None
    """Characters for a sheet, with ranges, such as 0-9A-F. Left out: all 47 classes."""
    text: str | None = None
    """A text to write by hand, each letter a fresh draw; a space is a gap, \\n begins a line."""
    width: int = 24
    """Characters in a line of --text, before it is wrapped."""
    style: Literal["paper", "night"] = "paper"
    """What --text is written on."""
    per_class: int | None = None
    """Pictures of each character on a sheet. Left out: 8, in an animation 3, in a strip 1."""
    grid: bool = False
    """A labelled sheet, as --chars makes, of the characters of --text."""
    strip: tuple[int, ...] | None = None
    """The way out of noise, side by side: at these steps (0 is noise), or evenly if none are given."""
    animate: bool = False
    """The way out of noise as a GIF, or as an MP4 if --out ends so."""
    npz: bool = False
    """Also write the raw images beside the picture: x uint8 [N, H, W], upright, and y, their class indices [N]."""
    out: Path | None = None
    """File for the picture (.png, .gif, .mp4), replaced if it is there. Left out: a new name in this folder."""

    sampler: Literal["ddpm", "ddim", "dpm++"] | None = None
    """How noise is removed. Left out: as in the run's sample grids."""
    steps: int | None = None
    """In how many steps. Left out: as in the run's sample grids."""
    guidance_scale: float | None = None
    """Classifier-free guidance: 1 is none, larger is more typical and less varied. Left out: as in those grids."""
    seed: int = 0
    """The same seed draws the same pictures, whatever the batch size; on another device they differ by rounding."""
    batch_size: int | None = None
    """Images in one forward pass. Left out: as many as suit the model's resolution."""
    device: str = "auto"
    """auto takes a GPU if one is granted or there; else cpu, cuda, cuda:1. A GPU that cannot be used is refused."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Autocast type of the model; auto takes bf16 where the device has it."""
    compile: bool = False
    """torch.compile the model: costs a minute first, so it pays on a GPU, for many images of a big preset."""
    output_root: Path = PROJECT_ROOT
    """Folder with the checkpoints/ of the runs."""

    def __post_init__(self) -> None:
        for wrong, message in self._mistakes():
            if wrong:
                raise RequestError(message)

    def _mistakes(self) -> list[tuple[bool, str]]:
        """Every rule on the request as (is it broken, what to say then)."""
        counts = ("width", "per_class", "steps", "batch_size")
        guidance, suffix = self.guidance_scale, self.suffix
        return [
            *(
                (value is not None and value < 1, f"--{name.replace('_', '-')} {value}: must be 1 or more")
                for name, value in ((name, getattr(self, name)) for name in counts)
            ),
            (guidance is not None and not 0 <= guidance < math.inf, f"--guidance-scale {guidance}: must be 0 or more"),
            (not 0 <= self.seed < 2**63, f"--seed {self.seed}: must be 0 or more, and below 2^63"),
            (
                None not in (self.chars, self.text),
                "--chars and --text: give one of them; --text with --grid makes a sheet",
            ),
            (self.text is not None and not self.text.strip(), "--text is empty: give a text to write"),
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
                f"--out {self.out}: a .png holds no animation; take .gif or .mp4, or leave out --animate",
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
        """Is an animation asked for, by flag or by the name of the file?"""
        return self.suffix != ".png"

    @property
    def suffix(self) -> str:
        return self.out.suffix.lower() if self.out else ".gif" if self.animate else ".png"


def expand(chars: str) -> str:
    """The characters that `--chars` names, ranges written out, without blanks: `0-3xY` → `0123xY`.

    Raises:
        RequestError: a range has no direction or mixes digits, capitals and small letters, or nothing is named.
    """

    def written_out(match: re.Match) -> str:
        first, last = match.group(1), match.group(2)
        kinds = [(end.isdigit(), end.isupper(), end.islower()) for end in (first, last)]
        if kinds[0] != kinds[1] or first > last:
            raise RequestError(f"--chars: {match.group()} is not a range; write such as 0-9, A-Z or a-f")
        return "".join(map(chr, range(ord(first), ord(last) + 1)))

    found = re.sub(r"([0-9A-Za-z])-([0-9A-Za-z])", written_out, "".join(chars.split()))
    if not found:
        raise RequestError("--chars is empty: give characters such as 0-9A-F, or leave it out for all")
    return found
