"""MetricsTracker: a row of figures per epoch, of the whole job, in a CSV and a JSON file."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ddpm.run.files import atomic_write, plain, read_json, strict_json
from ddpm.run.format import duration
from ddpm.run.metrics import (
    ENERGY_WH,
    EPOCH,
    FID_FEATURES,
    GPU_HOURS,
    GPU_MEM_PEAK_MB,
    GPU_UTILIZATION,
    GRAD_NORM,
    GRAD_NORM_MAX,
    IMAGES_SEEN,
    LOSS_MAX,
    LOSS_MEAN,
    LOSS_MEDIAN,
    LOSS_MIN,
    LOSS_STD,
    LR,
    METRICS,
    NONFINITE_STEPS,
    RCA,
    TOTAL_TIME_SEC,
    TRAIN_IMAGES,
    TRAIN_TIME_SEC,
    VAL_LOSS_EMA,
    Metric,
    altered_of,
)
from ddpm.run.paths import RunPaths
from metrics.trends import Curve, best, over_epochs


def loss_statistics(losses: Iterable[float], grad_norms: Iterable[float]) -> dict[Metric, float | int | None]:
    """The losses and gradient norms of an epoch's row.

    Args:
        losses: the loss of each global batch (its mean over all processes' images).
        grad_norms: the gradient's L2 norm of each step; those that are not finite are counted, not averaged.
    """
    losses, norms = np.asarray(losses, dtype=np.float64), np.asarray(grad_norms, dtype=np.float64)
    finite_losses, finite_norms = losses[np.isfinite(losses)], norms[np.isfinite(norms)]
    with_values = finite_losses if finite_losses.size else np.array([math.nan])
    return {
        LOSS_MEAN: with_values.mean(),
        LOSS_STD: with_values.std(),
        LOSS_MIN: with_values.min(),
        LOSS_MAX: with_values.max(),
        LOSS_MEDIAN: np.median(with_values),
        GRAD_NORM: finite_norms.mean() if finite_norms.size else math.nan,
        GRAD_NORM_MAX: finite_norms.max() if finite_norms.size else math.nan,
        NONFINITE_STEPS: int(norms.size - finite_norms.size),
    }


def summarise(rows: list[dict[str, Any]], starts: Sequence[Any]) -> dict[str, Any]:
    """The Summary of a run, computed from its rows alone (and from `starts` their number, and which rows can be
    compared)."""
    restarts = max(len(starts) - 1, 0)
    if not rows:
        return {"total_epochs": 0, "total_samples": 0, "total_time_sec": 0.0, "restarts": restarts}
    last = {**dict.fromkeys(METRICS), **rows[-1]}
    altered = altered_of(starts[-1] if starts else {})
    compared = {metric: rows[metric.comparable_from(altered) :] for metric in (LOSS_MEAN, VAL_LOSS_EMA, RCA)}
    loss, val, rca = (Curve.of(those, metric) for metric, those in compared.items())
    best_loss, best_val, best_rca = best(loss), best(val), best(rca)
    seconds, images = (
        Curve.of(rows, TRAIN_TIME_SEC).values.sum(),
        Curve.of(rows, TRAIN_IMAGES).values.sum(),
    )
    peak = Curve.of(rows, GPU_MEM_PEAK_MB).values
    total = TOTAL_TIME_SEC.of(last)
    summary = {
        "total_epochs": EPOCH.of(last),
        "total_samples": IMAGES_SEEN.of(last),
        "total_time_sec": total,
        "total_time_human": None if total is None else duration(total),
        "best_epoch": best_loss and best_loss.epoch,
        "best_loss": best_loss and best_loss.value,
        "final_loss": LOSS_MEAN.of(last),
        "final_lr": LR.of(last),
        "avg_throughput_sps": images / seconds if seconds else None,
        "peak_gpu_mem_mb": peak.max() if len(peak) else None,
        "best_val_epoch": best_val and best_val.epoch,
        "best_val_loss_ema": best_val and best_val.value,
        "final_rca": rca.last and rca.last.value,
        "best_rca": best_rca and best_rca.value,
        "final_fid_features": FID_FEATURES.of(next((row for row in reversed(rows) if RCA.of(row) is not None), {})),
        "nonfinite_steps": int(Curve.of(rows, NONFINITE_STEPS).values.sum()),
        "restarts": restarts,
        **{metric.name: over_epochs(rows, metric) for metric in (ENERGY_WH, GPU_HOURS, GPU_UTILIZATION)},
    }
    return plain(summary)


class MetricsTracker:
    """Writes `training_metrics.csv` and `training_metrics.json` of a run, a row at the end of each epoch.

    A resumed run takes up the rows of its checkpoint; later ones, which will be trained again, are dropped.
    """

    def __init__(
        self,
        paths: RunPaths,
        description: dict[str, Any],
        step: int = 0,
        rows: Sequence[dict[str, Any]] = (),
        cause: str = "",
        altered: Mapping[str, int] | None = None,
    ) -> None:
        """
        Args:
            description: settings, environment, data and model, as they stand in the JSON file.
            step: optimizer steps done so far.
            rows: the epochs' figures up to there, from the checkpoint.
            cause: how the start before this one ended, if there was one.
            altered: settings that have changed during the run, as `Metric.comparable_from` takes them.
        """
        self._paths = paths
        paths.metrics.mkdir(parents=True, exist_ok=True)
        self.rows: list[dict[str, Any]] = list(rows)
        before = _read_starts(paths.json)
        self.starts: list[dict[str, Any]] = [
            *before,
            {
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "step": step,
                "epoch": self.rows[-1]["epoch"] if self.rows else 0,
                "cause": cause if before or step else "started",
                "altered": dict(altered or {}),
            },
        ]
        self._document = {**description, "state": "running", "starts": self.starts}
        self._csv_bytes = -1  # size of the CSV when it held the rows, all of them and no others
        self.write("running")

    def add_epoch(self, row: dict[str, Any]) -> dict[str, Any]:
        """Append an epoch's row to both files. Columns that `row` lacks are left empty; returns the row as written.

        Raises:
            OSError: no room or no permission. The row is not lost: it is written with the next one.
        """
        row = plain({name: row.get(name) for name in METRICS})
        if self.rows and self.rows[-1]["epoch"] == row["epoch"]:  # --max-steps had cut it short; now it is complete
            self.rows.pop()
            self._csv_bytes = -1
        whole = self._csv_is_whole()
        self.rows.append(row)
        self._csv_bytes = -1
        if whole:
            with open(self._paths.csv, "ab") as file:
                file.write(_csv([row], header=False))
                self._csv_bytes = file.tell()
        self.write("running")
        return row

    def write(self, state: str) -> dict[str, Any]:
        """Rewrite the JSON file with the run's `state`, and the CSV if it lacks a row; returns the JSON's content."""
        if not self._csv_is_whole():
            text = _csv(self.rows, header=True)
            atomic_write(self._paths.csv, text)
            self._csv_bytes = len(text)
        self._document |= {
            "state": state,
            "generated": datetime.now(UTC).isoformat(timespec="seconds"),
            "epochs": self.rows,
            "summary": summarise(self.rows, self.starts),
        }
        self._document["artifacts"] = self._paths.artifacts()
        atomic_write(self._paths.json, strict_json(self._document, indent=2))
        return self._document

    def _csv_is_whole(self) -> bool:
        """Does the CSV hold the rows, all of them and no others? Somebody may have moved the run's folder."""
        with suppress(OSError):
            return self._paths.csv.stat().st_size == self._csv_bytes
        return False


def _csv(rows: list[dict[str, Any]], header: bool) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(METRICS), extrasaction="ignore", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _read_starts(path: Path) -> list[dict[str, Any]]:
    """The earlier starts in a JSON file; none if it cannot be read, as that must not end a training."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return [start for start in read_json(path)["starts"] if isinstance(start, dict)]
    return []
