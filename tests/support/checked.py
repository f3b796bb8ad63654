"""Runs whose health is checked."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pandas as pd

from ddpm.run.paths import RunPaths
from metrics.health.checker import main
from tests.support.metrics_documents import make_document

RUN = "a_run"
GPU = {
    "index": 0, "name": "NVIDIA L40S", "utilization": 98, "memory_used_mb": 30_000.0, "memory_total_mb": 46_000.0,
    "temperature_c": 70, "power_w": 290.0, "power_limit_w": 350.0,
}  # fmt: skip


def learning(epochs: int, **columns) -> list[dict]:
    """Rows of a run that learns; `columns` are functions of the epoch that replace some of them."""
    rows = make_document(epochs, data=columns.pop("data", "emnist"))["epochs"]
    return [{**row, **{name: value(row["epoch"]) for name, value in columns.items()}} for row in rows]


def publish(
    root: Path, rows: list[dict], gpus: list[dict] | None = None, document: dict | None = None, **status
) -> RunPaths:
    """A run's published files; `status` replaces fields of a status that says it finished."""
    paths, now = RunPaths(root, RUN), time.time()
    paths.gpus.mkdir(parents=True)
    pd.DataFrame(rows, columns=list(rows[0]) if rows else ["epoch"]).to_csv(paths.csv, index=False)
    settings = {"epochs": 30, "grad_clip": 1.0, "ema_decay": 0.999, "val_every": 1, "checkpoint_every": 5}
    made = make_document(1, run=RUN, settings=settings, **(document or {})) | {"epochs": rows}
    paths.json.write_text(json.dumps(made))
    state = {"run": RUN, "data": made["data"], "state": "finished", "phase": "done", "exit_code": 0, "host": "vn1",
             "pid": 7, "started": now - 1000, "heartbeat": now, "progress_time": now, "phase_time": now, "epoch": 12,
             "epochs": 30, "batch": 3, "batches": 293, "step": 3500, "total_steps": 8790, "images_seen": 1e6,
             "eta_sec": 600}  # fmt: skip
    paths.status.write_text(json.dumps(state | status))
    if gpus is not None:
        (paths.gpus / "vn1.json").write_text(json.dumps({"time": now, "node": "vn1", "gpus": gpus, "note": None}))
    return paths


def check(paths: RunPaths, *arguments: str) -> tuple[int, str]:
    """The exit code of the command, and health.md."""
    code = main([RUN, "--output-root", str(paths.root), *arguments])
    return code, paths.metrics.joinpath("health.md").read_text().replace("\\", "")


RUNNING = {"state": "running", "phase": "training", "exit_code": None}
