"""MetricsTracker: a row of figures per epoch, of the whole job, in a CSV and a JSON file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ddpm.run.config import NO_RECIPE as NO_RECIPE
from ddpm.run.files import atomic_write, read_json
from ddpm.run.metrics import METRICS
from ddpm.run.paths import RunPaths


def loss_statistics(losses: Iterable[float], grad_norms: Iterable[float]) -> dict[str, float | int | None]:
    """The loss and gradient columns of a row.

    Args:
        losses: the loss of each global batch (its mean over all processes' images).
        grad_norms: the gradient's L2 norm of each step; those that are not finite are counted, not averaged.
    """
    losses, norms = np.asarray(losses, dtype=np.float64), np.asarray(grad_norms, dtype=np.float64)
    finite_losses, finite_norms = losses[np.isfinite(losses)], norms[np.isfinite(norms)]
    with_values = finite_losses if finite_losses.size else np.array([math.nan])
    return {
        "loss_mean": with_values.mean(),
        "loss_std": with_values.std(),
        "loss_min": with_values.min(),
        "loss_max": with_values.max(),
        "loss_median": np.median(with_values),
        "grad_norm": finite_norms.mean() if finite_norms.size else math.nan,
        "grad_norm_max": finite_norms.max() if finite_norms.size else math.nan,
        "nonfinite_steps": int(norms.size - finite_norms.size),
    }


def summarise(rows: list[dict[str, Any]], starts: list[dict[str, Any]]) -> dict[str, Any]:
    """The Summary of a run, computed from its rows alone (and the number of restarts from `starts`)."""
    if not rows:
        return {"total_epochs": 0, "total_samples": 0, "total_time_sec": 0.0, "restarts": max(len(starts) - 1, 0)}
    frame = pd.DataFrame(rows, columns=list(METRICS), dtype=object).apply(pd.to_numeric, errors="coerce")
    last = {**dict.fromkeys(METRICS), **rows[-1]}
    best = frame["loss_mean"].idxmin() if frame["loss_mean"].notna().any() else None
    best_val = frame["val_loss_ema"].idxmin() if frame["val_loss_ema"].notna().any() else None
    judged = frame.loc[frame["rca"].notna()]
    train_time = frame["train_time_sec"].sum()
    summary = {
        "total_epochs": last["epoch"],
        "total_samples": last["images_seen"],
        "total_time_sec": last["total_time_sec"],
        "total_time_human": None if last["total_time_sec"] is None else human_time(last["total_time_sec"]),
        "best_epoch": None if best is None else int(frame["epoch"][best]),
        "best_loss": None if best is None else float(frame["loss_mean"][best]),
        "final_loss": last["loss_mean"],
        "final_lr": last["lr"],
        "avg_throughput_sps": frame["train_images"].sum() / train_time if train_time else None,
        "peak_gpu_mem_mb": frame["gpu_mem_peak_mb"].max(),
        "best_val_epoch": None if best_val is None else int(frame["epoch"][best_val]),
        "best_val_loss_ema": None if best_val is None else float(frame["val_loss_ema"][best_val]),
        "final_rca": None if judged.empty else float(judged["rca"].iloc[-1]),
        "best_rca": None if judged.empty else float(judged["rca"].max()),
        "final_fid_features": None if judged.empty else float(judged["fid_features"].iloc[-1]),
        "nonfinite_steps": int(frame["nonfinite_steps"].sum()),
        "restarts": max(len(starts) - 1, 0),
    }
    return jsonable(summary)


def human_time(seconds: float) -> str:
    """`17420` → `4h 50m 20s`."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}h {minutes:02d}m {seconds:02d}s" if hours else f"{minutes}m {seconds:02d}s"


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
    ) -> None:
        """
        Args:
            description: settings, environment, data and model, as they stand in the JSON file.
            step: optimizer steps that the run has behind it.
            rows: the epochs' figures up to there, from the checkpoint.
            cause: how the start before this one ended, if there was one.
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
            },
        ]
        self._document = {**description, "state": "running", "starts": self.starts}
        self._csv_whole = False  # does the file hold the rows, all of them and no others?
        self.write("running")

    def add_epoch(self, row: dict[str, Any]) -> dict[str, Any]:
        """Append an epoch's row to both files. Columns that `row` lacks are left empty; returns the row as written.

        Raises:
            OSError: no room or no permission. The row is not lost: it is written with the next one.
        """
        row = jsonable({name: row.get(name) for name in METRICS})
        if self.rows and self.rows[-1]["epoch"] == row["epoch"]:  # --max-steps had cut it short, and now it went on
            self.rows.pop()
            self._csv_whole = False
        self.rows.append(row)
        if self._csv_whole:
            self._csv_whole = False
            with open(self._paths.csv, "a", encoding="utf-8") as file:
                file.write(_csv([row], header=False))
            self._csv_whole = True
        self.write("running")
        return row

    def write(self, state: str) -> dict[str, Any]:
        """Rewrite the JSON file with the run's `state`, and the CSV if it lacks a row; returns the JSON's content."""
        if not self._csv_whole:
            atomic_write(self._paths.csv, _csv(self.rows, header=True))
            self._csv_whole = True
        self._document |= {
            "state": state,
            "generated": datetime.now(UTC).isoformat(timespec="seconds"),
            "epochs": self.rows,
            "summary": summarise(self.rows, self.starts),
        }
        self._document["artifacts"] = self._paths.artifacts()
        atomic_write(self._paths.json, json.dumps(jsonable(self._document), indent=2, allow_nan=False))
        return self._document


def _csv(rows: list[dict[str, Any]], header: bool) -> str:
    return pd.DataFrame(rows, columns=list(METRICS), dtype=object).to_csv(index=False, header=header)


def _read_starts(path: Path) -> list[dict[str, Any]]:
    """The earlier starts that a JSON file tells of; none if it cannot be read: figures are not worth a training."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return [start for start in read_json(path)["starts"] if isinstance(start, dict)]
    return []


def jsonable(value: Any) -> Any:
    """`value` with NumPy numbers as Python's, and what is not finite as null."""
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
