"""What evaluate.py can be asked for: one frozen dataclass, of which the command line and `--help` are made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from ddpm.run.errors import RequestError
from ddpm.run.paths import PROJECT_ROOT


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure how good the characters of a trained model are; docs/evaluation.md explains the figures."""

    model: Positional[str]
    """A run (its best checkpoint), or the folder of a checkpoint or an export."""
    weights: Literal["ema", "swa"] = "ema"
    """The moving average of the weights, or the average over epochs, if --swa-start-epoch made one."""
    samples_per_class: int = 100
    """Characters of each class to draw and classify."""
    data: Literal["emnist", "glyphs"] | None = None
    """The real images to compare with. Left out: what the model was trained on."""
    data_root: Path | None = None
    """Folder that holds EMNIST/raw/ (emnist) or glyphs/. Left out: the one that the model was trained from."""
    download: bool = False
    """Fetch EMNIST into --data-root if it is not there."""
    sampler: Literal["ddpm", "ddim", "dpm++"] = "ddim"
    """How noise is removed."""
    steps: int | None = None
    """In how many steps. Left out: as in the run's sample grids."""
    guidance_scale: float | None = None
    """Classifier-free guidance: 1 is none, 0 ignores the class. Left out: as in the run's sample grids."""
    seed: int = 0
    """The same seed draws the same images, whatever the batch size."""
    batch_size: int | None = None
    """Images in one forward pass. Left out: as many as suit the model's resolution and the device."""
    device: str = "auto"
    """auto takes a GPU if one is granted or there; else cpu, cuda, cuda:1. A GPU that cannot be used is refused."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Autocast type of the model; auto takes bf16 where the device has it. The classifier is always fp32."""
    compile: bool = False
    """torch.compile the model: pays on a GPU with the big presets and many samples."""
    sweeps: bool = True
    """Also compare guidance scales and samplers, and recommend a sampler. On a CPU this takes long."""
    sweep_samples_per_class: int | None = None
    """Characters of each class for each setting compared. Left out: 50 on a GPU, 10 on a CPU."""
    output_root: Path = PROJECT_ROOT
    """Folder with checkpoints/ and metrics/output/ of the runs."""
    out: Path | None = None
    """Folder for all files. Left out: metrics/output/<run>/, and the run's report is brought up to date."""

    def __post_init__(self) -> None:
        for name in ("samples_per_class", "sweep_samples_per_class", "steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RequestError(f"--{name.replace('_', '-')} {value}: must be 1 or more")
        if self.guidance_scale is not None and not 0 <= self.guidance_scale < math.inf:
            raise RequestError(f"--guidance-scale {self.guidance_scale}: must be 0 or more")
        if not 0 <= self.seed < 2**63:
            raise RequestError(f"--seed {self.seed}: must be 0 or more, and below 2^63")
