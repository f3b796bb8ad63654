"""The flags of evaluate.py: a frozen dataclass, from which the command line and `--help` are made."""

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
    """ema: the moving average of the weights. swa: the average over epochs, from runs with --swa-start-epoch."""
    samples_per_class: int = 100
    """Characters of each class to draw and classify."""
    data: Literal["emnist", "glyphs"] | None = None
    """Data set to compare with. Left out: the one that the model was trained on."""
    data_root: Path | None = None
    """Folder that holds EMNIST/raw/ (emnist) or glyphs/. Left out: the one that the model was trained from."""
    download: bool = False
    """Fetch EMNIST into --data-root if it is not there."""
    sampler: Literal["ddpm", "ddim", "dpm++"] = "ddim"
    """The sampler that removes the noise."""
    steps: int | None = None
    """Denoising steps. Left out: as in the run's sample grids."""
    guidance_scale: float | None = None
    """Classifier-free guidance: 1 is none, 0 ignores the class. Left out: as in the run's sample grids."""
    seed: int = 0
    """The same seed draws the same images, whatever the batch size."""
    batch_size: int | None = None
    """Images in one forward pass. Left out: chosen for the resolution and the device."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda or cuda:1. A GPU that is there but cannot be used is an error."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Autocast type of the model; auto: bf16 where the device supports it. The classifier is always fp32."""
    compile: bool = False
    """torch.compile the model: takes about a minute, worth it for many images of a big preset on a GPU."""
    sweeps: bool = True
    """Also compare guidance scales and samplers, and recommend a sampler. On a CPU this takes long."""
    sweep_samples_per_class: int | None = None
    """Characters of each class for each setting compared. Left out: 50 on a GPU, 10 on a CPU."""
    output_root: Path = PROJECT_ROOT
    """Folder with checkpoints/ and metrics/output/ of the runs."""
    out: Path | None = None
    """Folder for all files. Left out: metrics/output/<run>/, and the run's report is updated."""

    def __post_init__(self) -> None:
        for name in ("samples_per_class", "sweep_samples_per_class", "steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RequestError(f"--{name.replace('_', '-')} {value}: must be 1 or more")
        if self.guidance_scale is not None and not 0 <= self.guidance_scale < math.inf:
            raise RequestError(f"--guidance-scale {self.guidance_scale}: must be 0 or more")
        if not 0 <= self.seed < 2**63:
            raise RequestError(f"--seed {self.seed}: must be 0 or more, and below 2^63")
