"""Documents as training_metrics.json holds them, for the tests of what is drawn and written from them."""

from __future__ import annotations

import math
from pathlib import Path

from ddpm.run.paths import RunPaths
from metrics.run_data import RunData
from metrics.tracker import summarise

CLASSES = list("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt")
IMAGES, BATCH = 112_800, 4 * 96


def make_row(epoch: int, total: float, gpu: bool, data: str) -> dict:
    """A plausible epoch of the reference run; a few wiggles, no randomness."""
    wave = math.sin(epoch * 2.4)
    loss = 0.021 + 0.06 / epoch + 0.0006 * wave / math.sqrt(epoch)
    train_time, rest = (80 + wave if gpu else 410 + 9 * wave), (95.0 if epoch == 1 else 6.0 + (epoch % 10 == 0) * 9)
    memory = {"gpu_mem_allocated_mb": 2211.5, "gpu_mem_reserved_mb": 40960.0, "gpu_mem_peak_mb": 38211.0 + epoch % 3}
    steps = IMAGES // BATCH
    return {
        "epoch": epoch, "step": epoch * steps, "images_seen": epoch * steps * BATCH,
        "loss_mean": loss, "loss_std": loss * 0.12, "loss_min": loss * 0.7,
        "loss_max": loss * (14.0 if epoch == 1 else 1.6),
        "loss_median": loss * 0.98, "val_loss": loss * 1.03, "val_loss_ema": loss * 0.97 + 0.2 / epoch**2,
        "lr": 1e-4, "grad_norm": 0.08 + 0.5 / epoch, "grad_norm_max": 0.2 + 9 / epoch, "nonfinite_steps": 0,
        "samples_per_sec": steps * BATCH / train_time, "batches_per_sec": steps / train_time,
        "mfu": 0.38 + 0.005 * wave if gpu else None,
        **(memory if gpu else dict.fromkeys(memory)),
        "ema_delta_norm": 3.1 * (1 - math.exp(-epoch / 6)) + 0.3 / epoch, "epoch_time_sec": train_time + rest,
        "total_time_sec": total + train_time + rest,
        "train_time_sec": train_time, "train_images": steps * BATCH, "data": data,
    }  # fmt: skip


def make_document(epochs: int, *, gpu: bool = True, data: str = "emnist", state: str = "finished", **changes) -> dict:
    """A whole document of `epochs` epochs; `changes` replaces top-level entries."""
    rows: list[dict] = []
    for epoch in range(1, epochs + 1):
        rows.append(make_row(epoch, rows[-1]["total_time_sec"] if rows else 0.0, gpu, data))
    document = {
        "run": "balanced_cfg_cosine_ema_600_steps_large", "data": data, "state": state,
        "generated": "2026-05-04T03:02:01+00:00",
        "settings": {"epochs": max(epochs, 1) if state == "finished" else 100, "grad_clip": 1.0},
        "hyperparameters": {"model_name": "UNet2DModel", "size_name": "large", "image_resolution": 96, "epochs": 100},
        "environment": {
            "host": "node7", "platform": "Linux-6.8-x86_64", "python": "3.11.9", "torch": "2.14.1",
            "diffusers": "0.40.0",
            "device": "cuda" if gpu else "cpu", "gpu": "NVIDIA L40S" if gpu else None, "world_size": 4 if gpu else 2,
            "nodes": 1, "precision": "bf16" if gpu else "fp32", "compile": gpu, "command": "train.py --preset large",
            "commit": None, "choices": {"precision": "bf16: the device has it"},
        },
        "data_summary": {
            "train_images": 47 * 2400, "test_images": 47 * 400, "class_names": CLASSES,
            "train_counts": [2400] * 47, "test_counts": [400] * 47,
        },
        "model": {"parameters": 51_234_567, "flops_per_image": 1.2e11, "peak_flops": 3.6e14 if gpu else None},
        "starts": [{"time": "2026-05-04T01:00:00+00:00", "step": 0, "epoch": 0, "cause": "started"}],
        "epochs": rows, "summary": {}, "artifacts": {"log": "logs/balanced_cfg_cosine_ema_600_steps_large.log"},
    }  # fmt: skip
    document.update(changes)
    document["summary"] = summarise(document["epochs"], document["starts"])
    return document


def make_run(document: dict, root: Path = Path("nowhere"), **fields) -> RunData:
    """The run that such a document tells of; `fields` as `RunData` has them."""
    return RunData(RunPaths(root, document["run"]), 0.0, document=document, rows=document["epochs"], **fields)
