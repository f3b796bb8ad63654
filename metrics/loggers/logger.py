"""What TensorBoard and Weights & Biases have in common: the interface of a logger, and the names of its curves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from ddpm.run.format import number
from ddpm.run.metrics import METRICS, Metric

Histogram = tuple[np.ndarray, np.ndarray]  # counts int64 [N] and edges float64 [N + 1]


class Logger(ABC):
    """Shows a run somewhere. The horizontal axis is images seen."""

    @abstractmethod
    def log_metrics(self, row: Mapping[str, Any]) -> None:
        """Add an epoch's row, keyed by the columns of the CSV; empty cells are left out."""

    @abstractmethod
    def log_samples(self, picture: Image.Image, images_seen: int) -> None:
        """Add a sample grid."""

    @abstractmethod
    def log_histograms(self, histograms: Mapping[str, Histogram], images_seen: int) -> None:
        """Add histograms, by name."""

    @abstractmethod
    def finalize(self, state: str, summary: Mapping[str, Any]) -> None:
        """Add the figures of the whole run, as the JSON file has them, and how it ended (finished, stopped, failed)."""


def tag(metric: Metric) -> str:
    """The name of a figure's curve: `loss/val_loss`."""
    return f"{metric.group}/{metric.name}"


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """The figures of an epoch's row by their `tag`."""
    figures = ((METRICS[name], value) for name, value in row.items() if number(value) is not None)
    return {tag(metric): value for metric, value in figures if metric.group}


def finals(summary: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a run's summary as `summary/name`."""
    return {f"summary/{name}": value for name, value in summary.items() if number(value) is not None}
