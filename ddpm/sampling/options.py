"""How a trained model draws: the flags that sample.py and evaluate.py have in common, and names of its weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ddpm.run.cli import flag
from ddpm.run.errors import RequestError
from ddpm.run.guidance import EVERYWHERE
from ddpm.run.paths import PROJECT_ROOT

SamplerName = Literal["ddpm", "ddim", "dpm++"]
Weights = Literal["ema", "swa"]
SHORTEST, LONGEST = 0.02, 0.25  # lengths that averages of 0.05 and 0.1 can be made into; a uniform one has 0.289


def check_ema_length(length: float | None) -> None:
    """
    Raises:
        RequestError: `--ema-length` is given, and is none that can be rebuilt.
    """
    if length is not None and not SHORTEST <= length <= LONGEST:
        raise RequestError(f"--ema-length {length:g}: give a relative width from {SHORTEST} to {LONGEST}, such as 0.08")


def weights_of(meta: dict[str, Any], weights: Weights = "ema") -> str:
    """Which weights a model with this meta.json has: `ema`, `swa`, or `ema length 0.08` if they were rebuilt.

    Args:
        weights: those that were loaded, if they were not.
    """
    return f"ema length {meta['ema_length']:g}" if meta.get("ema_length") else weights


def weights_words(weights: str) -> str:
    """The weights as people read them: `EMA weights`, `EMA length 0.08 weights`."""
    return f"{weights[:3].upper()}{weights[3:]} weights"


@dataclass(frozen=True, kw_only=True)
class DrawingOptions:
    """Base class of a command line that draws with a trained model."""

    weights: Weights = "ema"
    """ema: the moving average of the weights. swa: the average over epochs, from runs with --swa-start-epoch."""
    ema_length: float | None = None
    """Instead: the average of this length (relative width, such as 0.08), rebuilt from the --power-ema averages of the
    checkpoint and earlier ones of the run."""
    sampler: SamplerName | None = None
    """Left out: the sampler of the run's sample grids, ddim."""
    steps: int | None = None
    """Denoising steps. Left out: as in the run's sample grids."""
    guidance_scale: float | None = None
    """Classifier-free guidance: 1 is none, 0 ignores the class; larger is more typical, less varied. With --guide, 0
    draws with the guide alone. Left out: as in the run's sample grids."""
    guidance_interval: tuple[float, float] | None = None
    """Guidance only at these noise levels, as parts of the trained timesteps: 0 is clean, 1 is noise. The other steps
    take half the time. Left out: at all of them, 0 1."""
    guide: str | None = None
    """Autoguidance: a weaker model, such as an early checkpoint of the run, takes the place of the model without a
    class. A run, or the folder of a checkpoint or an export; its EMA weights are used."""
    seed: int = 0
    """The same seed draws the same images at any batch size; on another device they differ by rounding."""
    batch_size: int | None = None
    """Images drawn at once; guidance passes twice as many. Left out: chosen for the resolution and the device."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda or cuda:1. A GPU that is there but cannot be used is an error."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Autocast type of the model; auto: bf16 where the device supports it."""
    compile: bool | None = None
    """torch.compile the model, which takes about a minute. Left out: evaluate.py does where, on a GPU, drawing would
    take minutes; sample.py does not."""
    output_root: Path = PROJECT_ROOT
    """Folder with checkpoints/, metrics/output/ and samples/."""

    def __post_init__(self) -> None:
        self.at_least_one(("steps", "batch_size"))
        check_ema_length(self.ema_length)
        if self.ema_length is not None and self.weights != "ema":
            raise RequestError(f"--weights {self.weights} and --ema-length: give one of them")
        check_guidance(self.guidance_scale, self.guidance_interval)
        if not 0 <= self.seed < 2**63:
            raise RequestError(f"--seed {self.seed}: must be 0 or more, and below 2^63")

    def at_least_one(self, names: Iterable[str]) -> None:
        """
        Raises:
            RequestError: one of these settings is given and below 1.
        """
        for name in names:
            value: Any = getattr(self, name)
            if value is not None and value < 1:
                raise RequestError(f"{flag(name)} {value}: must be 1 or more")


def check_guided(
    scale: float, interval: tuple[float, float] | None, guide: str | None, can_be_guided: bool = True
) -> None:
    """
    Args:
        can_be_guided: has the model learned to draw without a label, or a guide?

    Raises:
        RequestError: the command line says how to guide (interval, guide), and the scale is 1, which is no guidance; or
            the model cannot be guided, and the scale is not 1.
    """
    if scale != 1 and not can_be_guided:
        raise RequestError(f"--guidance-scale {scale:g}: the model was trained with every label in place "
                           "(--cfg-dropout-prob 0), so only a --guide could guide it: give 1")  # fmt: skip
    if scale == 1 and (interval or guide):
        raise RequestError("--guide and --guidance-interval change nothing at guidance scale 1: give another "
                           "--guidance-scale, or leave them out")  # fmt: skip


def check_guidance(scale: float | None, interval: tuple[float, float] | None) -> None:
    """
    Raises:
        RequestError: the scale is negative or not finite, or the interval is not within 0 to 1 or empty.
    """
    if scale is not None and not 0 <= scale < math.inf:
        raise RequestError(f"--guidance-scale {scale}: must be 0 or more")
    low, high = interval or EVERYWHERE
    if not 0 <= low < high <= 1:
        raise RequestError(f"--guidance-interval {low:g} {high:g}: give two levels from 0 to 1, the lower one first")
