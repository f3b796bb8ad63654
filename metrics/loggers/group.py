"""The boards that a run is watched on beside others: TensorBoard, and Weights & Biases with `--wandb`.

Both get the same: the columns of `training_metrics.csv`, sample grids, histograms of the weights, settings, and the
summary at the end. The horizontal axis is images seen.
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
from metrics.loggers.tensorboard import TensorBoardLogger
from metrics.loggers.wandb import WandbLogger

BINS = 64  # of a histogram; TensorBoard draws half as many
WEIGHTS_SHOWN = 10  # histograms of the weights in a run, about


def histogram(values: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Counts [64] and edges [65] of the finite `values` in bins of equal width; None if there is no such value."""
    finite = values[np.isfinite(values)].astype(np.float64)  # in float32 the range of huge values overflows
    return np.histogram(finite, BINS, span(finite, BINS)) if finite.size else None


class LoggerGroup:
    """All boards of the run `paths`, as one (rank 0 only)."""

    def __init__(
        self, paths: RunPaths, description: Mapping[str, Any], images_seen: int, log: Callable[[str, str], None]
    ) -> None:
        """
        Args:
            description: settings, environment, data and model, as they stand in the JSON file.
            images_seen: where this start begins; boards forget what came after, as far as they can.
            log: says a message with a severity.
        """
        self._log = log
        self._weights: threading.Thread | None = None
        wandb = [WandbLogger(paths, description, log)] if description["settings"].get("wandb") else []
        self._loggers = [*wandb, TensorBoardLogger(paths, images_seen, description)]  # wandb first, as it never raises

    def log_metrics(self, row: Mapping[str, Any]) -> None:
        """Add an epoch's row, the CSV's columns as keys; empty cells are left out."""
        for logger in self._loggers:
            logger.log_metrics(row)

    def log_samples(self, picture: Image.Image, images_seen: int) -> None:
        """Add a sample grid."""
        for logger in self._loggers:
            logger.log_samples(picture, images_seen)

    def weights_due(self, epoch: int, epochs: int) -> bool:
        """Is it time for `log_weights` at the end of `epoch` (from 1)? About ten times in a run, and at its end."""
        return epoch == epochs or epoch % max(1, epochs // WEIGHTS_SHOWN) == 0

    def log_weights(self, named_tensors: Mapping[str, torch.Tensor], images_seen: int) -> None:
        """Add a histogram of each tensor (any shape and device), under its name: `weights_ema/conv_in.weight`.

        Training waits for a copy to host memory; the rest is done by a thread.
        """
        self._wait()
        copies = {name: tensor.detach().to("cpu", torch.float32, copy=True) for name, tensor in named_tensors.items()}
        self._weights = threading.Thread(
            target=self._add_histograms, args=(copies, images_seen), name="histograms", daemon=True
        )
        self._weights.start()

    def finalize(self, state: str, summary: Mapping[str, Any]) -> None:
        """Add the summary that the JSON file holds, and how the run ended ("finished", "stopped" or "failed")."""
        self._wait()
        for logger in self._loggers:
            logger.finalize(state, summary)

    def _add_histograms(self, tensors: dict[str, torch.Tensor], images_seen: int) -> None:
        try:
            found = {name: counted for name, tensor in tensors.items() if (counted := histogram(tensor.numpy()))}
            for logger in self._loggers:
                logger.log_histograms(found, images_seen)
        except Exception as error:  # a full disk, mostly
            self._log(f"could not write the histograms of the weights: {type(error).__name__}: {error}", "error")

    def _wait(self) -> None:
        if self._weights:
            self._weights.join()
            self._weights = None
