"""A run's loggers as one: TensorBoard, and Weights & Biases with `--wandb`.

Both get the columns of `training_metrics.csv`, sample grids, histograms of the weights, settings, and at the end the
summary.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from ddpm.run.histogram import span
from ddpm.run.paths import RunPaths
from metrics.loggers.logger import Histogram, Logger
from metrics.loggers.tensorboard import TensorBoardLogger
from metrics.loggers.wandb import WandbLogger

BINS = 64  # of a histogram; TensorBoard draws half as many
WEIGHTS_SHOWN = 10  # times in a run that the weights are logged, about


def histogram(values: np.ndarray) -> Histogram | None:
    """Counts [64] and edges [65] of the finite `values` in bins of equal width; None if there is no such value."""
    finite = values[np.isfinite(values)].astype(np.float64)  # in float32 the range of huge values overflows
    return np.histogram(finite, BINS, span(finite, BINS)) if finite.size else None


class LoggerGroup(Logger):
    """All loggers of a run (rank 0 only)."""

    def __init__(
        self, paths: RunPaths, description: Mapping[str, Any], images_seen: int, log: Callable[[str, str], None]
    ) -> None:
        """
        Args:
            description: settings, environment, data and model, as in the JSON file.
            images_seen: where this start begins; what was logged of later images is hidden, where that is possible.
            log: takes a message and its severity.
        """
        self._log = log
        self._weights: threading.Thread | None = None
        wandb = [WandbLogger(paths, description, log)] if description["settings"].get("wandb") else []
        # wandb first, as it never raises
        self._loggers: list[Logger] = [*wandb, TensorBoardLogger(paths, images_seen, description)]

    def log_metrics(self, row: Mapping[str, Any]) -> None:
        for logger in self._loggers:
            logger.log_metrics(row)

    def log_samples(self, picture: Image.Image, images_seen: int) -> None:
        for logger in self._loggers:
            logger.log_samples(picture, images_seen)

    def log_histograms(self, histograms: Mapping[str, Histogram], images_seen: int) -> None:
        for logger in self._loggers:
            logger.log_histograms(histograms, images_seen)

    def weights_due(self, epoch: int, epochs: int) -> bool:
        """Is `log_weights` due at the end of `epoch` (from 1)? About ten times in a run, and at its end."""
        return epoch == epochs or epoch % max(1, epochs // WEIGHTS_SHOWN) == 0

    def log_weights(self, named_tensors: Mapping[str, torch.Tensor], images_seen: int) -> None:
        """Add a histogram of each tensor (any shape and device) by its name, such as `weights_ema/conv_in.weight`.

        Training waits for a copy to host memory; a thread does the rest.
        """
        self._wait()
        copies = {name: tensor.detach().to("cpu", torch.float32, copy=True) for name, tensor in named_tensors.items()}
        self._weights = threading.Thread(
            target=self._add_histograms, args=(copies, images_seen), name="histograms", daemon=True
        )
        self._weights.start()

    def finalize(self, state: str, summary: Mapping[str, Any]) -> None:
        self._wait()
        for logger in self._loggers:
            logger.finalize(state, summary)

    def _add_histograms(self, tensors: dict[str, torch.Tensor], images_seen: int) -> None:
        try:
            found = {name: counted for name, tensor in tensors.items() if (counted := histogram(tensor.numpy()))}
            self.log_histograms(found, images_seen)
        except Exception as error:  # a full disk, mostly
            self._log(f"could not write the histograms of the weights: {type(error).__name__}: {error}", "error")

    def _wait(self) -> None:
        if self._weights:
            self._weights.join()
            self._weights = None
