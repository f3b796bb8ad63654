"""A run as TensorBoard shows it: TIME SERIES, HISTOGRAMS, TEXT, and a line in the table of HPARAMS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from ddpm.run.config import data_words
from ddpm.run.format import number
from ddpm.run.metrics import METRICS
from ddpm.run.paths import RunPaths
from metrics.tracker import NO_RECIPE

HPARAM_METRICS = (
    *("loss/loss_mean", "loss/val_loss_ema", "quality/rca", "quality/fid_features", "speed/samples_per_sec"),
    *("summary/best_loss", "summary/best_val_loss_ema", "summary/best_rca", "summary/total_time_sec"),
)


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """The figures of an epoch's row as `group/column`."""
    return {
        f"{METRICS[name].group}/{name}": value
        for name, value in row.items()
        if METRICS[name].group and number(value) is not None
    }


def finals(summary: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a run's summary as `summary/name`."""
    return {f"summary/{name}": value for name, value in summary.items() if number(value) is not None}


class TensorBoardLogger:
    """Writes under `logs/tensorboard/<run>/`, one folder a run, whatever is shown of it."""

    def __init__(self, paths: RunPaths, images_seen: int, description: Mapping[str, Any]) -> None:
        """A resumed run hides what was written after `images_seen`, as it will be trained again.

        Args:
            description: settings, environment, data and model, as they stand in the JSON file, for HPARAMS and TEXT.
                Of settings that changed on resuming, HPARAMS shows the first: TensorBoard takes no second ones.
        """
        # always, as TensorBoard takes the first such mark in a folder for a beginning, and only later ones for a resume
        self._writer = SummaryWriter(str(paths.tensorboard), purge_step=images_seen + 1)
        # not by add_hparams: it makes a folder of its own, which is shown as a second run
        experiment, start, self._success = hparams(_flat(description), dict.fromkeys(HPARAM_METRICS, 0.0))
        self._writer.file_writer.add_summary(experiment)
        self._writer.file_writer.add_summary(start)
        machine = description["environment"]
        words = f"{data_words(description['data'])}, on {machine['host']}: `{machine['command']}`"
        self._writer.add_text("run", words, images_seen)
        self._writer.flush()

    def log_metrics(self, row: Mapping[str, Any]) -> None:
        """Add an epoch's row, the CSV's columns as keys."""
        self._add_scalars(scalars(row), row["images_seen"])

    def log_samples(self, picture: Image.Image, images_seen: int) -> None:
        """Add a sample grid."""
        self._writer.add_image("samples", np.asarray(picture), images_seen, dataformats="HWC")
        self._writer.flush()

    def log_histograms(self, histograms: Mapping[str, tuple[np.ndarray, np.ndarray]], images_seen: int) -> None:
        """Add histograms as (counts [N], edges [N + 1])."""
        for name, (counts, edges) in histograms.items():
            centres = (edges[:-1] + edges[1:]) / 2
            self._writer.add_histogram_raw(
                name, min=edges[0], max=edges[-1], num=counts.sum(), sum=counts @ centres,
                sum_squares=counts @ centres**2, bucket_limits=edges[1:].tolist(), bucket_counts=counts.tolist(),
                global_step=images_seen,
            )  # fmt: skip
        self._writer.flush()

    def finalize(self, state: str, summary: Mapping[str, Any]) -> None:
        """Add the final figures; only a run that is finished is marked as a success, as that cannot be taken back."""
        self._add_scalars(finals(summary), summary["total_samples"])
        if state == "finished":
            self._writer.file_writer.add_summary(self._success)
        self._writer.close()

    def _add_scalars(self, values: Mapping[str, float], images_seen: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, images_seen)
        self._writer.flush()


def _flat(description: Mapping[str, Any]) -> dict[str, float | str]:
    """The settings as HPARAMS can show them, and what was chosen for the machine; without what is not set."""
    machine = {name: description["environment"].get(name) for name in ("world_size", "precision", "compile", "gpu")}
    settings = {**description["settings"], **machine, "data": data_words(description["data"])}
    return {
        name: value if isinstance(value, (int, float, str)) and not isinstance(value, bool) else str(value)
        for name, value in settings.items()
        if value is not None and name not in (*NO_RECIPE, "data_root")
    }
