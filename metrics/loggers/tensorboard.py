"""A run on TensorBoard: TIME SERIES, HISTOGRAMS, TEXT, and a row in the table of HPARAMS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from ddpm.run.config import NO_RECIPE
from ddpm.run.datasets import data_words
from ddpm.run.metrics import FID_FEATURES, LOSS_MEAN, RCA, SAMPLES_PER_SEC, VAL_LOSS_EMA
from ddpm.run.paths import RunPaths
from metrics.loggers.logger import Histogram, Logger, finals, scalars, tag

HPARAM_METRICS = (
    *map(tag, (LOSS_MEAN, VAL_LOSS_EMA, RCA, FID_FEATURES, SAMPLES_PER_SEC)),
    *("summary/best_loss", "summary/best_val_loss_ema", "summary/best_rca", "summary/total_time_sec"),
)


class TensorBoardLogger(Logger):
    """Writes to `logs/tensorboard/<run>/`."""

    def __init__(self, paths: RunPaths, images_seen: int, description: Mapping[str, Any]) -> None:
        """
        Args:
            images_seen: where this start begins; what was written of later images is hidden.
            description: settings, environment, data and model, as in the JSON file, for HPARAMS and TEXT. HPARAMS keeps
                the settings of the first start: TensorBoard ignores later ones.
        """
        # purge_step in every start, the first one too: TensorBoard ignores the first purge_step of a folder
        self._writer = SummaryWriter(str(paths.tensorboard), purge_step=images_seen + 1)
        # not add_hparams: it writes to a folder of its own, which TensorBoard shows as a second run
        experiment, start, self._success = hparams(_flat(description), dict.fromkeys(HPARAM_METRICS, 0.0))
        self._writer.file_writer.add_summary(experiment)
        self._writer.file_writer.add_summary(start)
        machine = description["environment"]
        words = f"{data_words(description['data'])}, on {machine['host']}: `{machine['command']}`"
        self._writer.add_text("run", words, images_seen)
        self._writer.flush()

    def log_metrics(self, row: Mapping[str, Any]) -> None:
        self._add_scalars(scalars(row), row["images_seen"])

    def log_samples(self, picture: Image.Image, images_seen: int) -> None:
        self._writer.add_image("samples", np.asarray(picture), images_seen, dataformats="HWC")
        self._writer.flush()

    def log_histograms(self, histograms: Mapping[str, Histogram], images_seen: int) -> None:
        for name, (counts, edges) in histograms.items():
            centres = (edges[:-1] + edges[1:]) / 2
            self._writer.add_histogram_raw(
                name, min=edges[0], max=edges[-1], num=counts.sum(), sum=counts @ centres,
                sum_squares=counts @ centres**2, bucket_limits=edges[1:].tolist(), bucket_counts=counts.tolist(),
                global_step=images_seen,
            )  # fmt: skip
        self._writer.flush()

    def finalize(self, state: str, summary: Mapping[str, Any]) -> None:
        self._add_scalars(finals(summary), summary["total_samples"])
        if state == "finished":  # cannot be taken back, and runs in other states may be resumed
            self._writer.file_writer.add_summary(self._success)
        self._writer.close()

    def _add_scalars(self, values: Mapping[str, float], images_seen: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, images_seen)
        self._writer.flush()


def _flat(description: Mapping[str, Any]) -> dict[str, float | str]:
    """The settings, and what was chosen for the machine, as HPARAMS can show them; those that are None are left out."""
    machine = {name: description["environment"].get(name) for name in ("world_size", "precision", "compile", "gpu")}
    settings = {**description["settings"], **machine, "data": data_words(description["data"])}
    return {
        name: value if isinstance(value, (int, float, str)) and not isinstance(value, bool) else str(value)
        for name, value in settings.items()
        if value is not None and name not in NO_RECIPE
    }
