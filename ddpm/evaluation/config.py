"""The flags of evaluate.py: a frozen dataclass, from which the command line and `--help` are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ddpm.run.datasets import DataName, SplitName
from ddpm.run.errors import RequestError
from ddpm.sampling.options import DrawingOptions, SamplerName


@dataclass(frozen=True)
class EvaluateConfig(DrawingOptions):
    """Measure how good the images of a trained model are; docs/evaluation.md explains the figures."""

    model: Annotated[Positional[str], arg(metavar="RUN")]
    """A run (its best checkpoint), or the folder of a checkpoint or an export."""
    samples_per_class: int | None = None
    """Images of each class to draw and classify. Left out: 100; of more than 100 classes 10,000 images in all."""
    data: DataName | None = None
    """Data set to compare with. Left out: the one that the model was trained on."""
    split: SplitName | None = None
    """The split of EMNIST that --data emnist asks for. Left out: balanced."""
    data_root: Path | None = None
    """Folder that holds EMNIST/raw/, another raw/, or glyphs/. Left out: the one that the model was trained from."""
    download: bool = False
    """Fetch the data set into --data-root if it is not there."""
    sampler: SamplerName = field(default="ddim", kw_only=True)
    """The sampler that removes the noise."""
    cas: bool = True
    """Also measure what a classifier learns from the images (CAS). On two cores this takes minutes."""
    sweeps: bool = True
    """Also compare guidance scales, samplers and EMA lengths, and recommend some. On a CPU this takes long."""
    sweep_samples_per_class: int | None = None
    """Images of each class for each setting compared. Left out: 50 on a GPU, 10 on a CPU; fewer of many classes."""
    out: Path | None = None
    """Folder for all files. Left out: metrics/output/<run>/, and the run's report is updated."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least_one(("samples_per_class", "sweep_samples_per_class"))
        if self.split and self.data != "emnist":
            raise RequestError("--split: only with --data emnist")
        if self.sweep_samples_per_class and not self.sweeps:
            raise RequestError("--sweep-samples-per-class and --no-sweeps: give one of them")
