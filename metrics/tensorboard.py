"""The rows and sample grids of a run as TensorBoard shows them."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from ddpm.paths import RunPaths

GROUPS = {
    "loss": ("loss_mean", "loss_std", "loss_min", "loss_max", "loss_median", "val_loss", "val_loss_ema"),
    "loss_by_noise_level": ("val_loss_band1", "val_loss_band2", "val_loss_band3", "val_loss_band4"),
    "quality": ("rca", "top1", "top5", "fid_features"),
    "optimizer": ("lr", "grad_norm", "grad_norm_max", "nonfinite_steps", "ema_delta_norm"),
    "speed": ("samples_per_sec", "batches_per_sec", "mfu", "epoch_time_sec"),
    "memory": ("gpu_mem_allocated_mb", "gpu_mem_reserved_mb", "gpu_mem_peak_mb"),
}


class TensorBoard:
    """Writes under `logs/tensorboard/<run>/`; the horizontal axis is images seen."""

    def __init__(self, paths: RunPaths, images_seen: int) -> None:
        """A resumed run hides what was written after `images_seen`, as it will be trained again."""
        self._writer = SummaryWriter(str(paths.tensorboard), purge_step=images_seen + 1 if images_seen else None)

    def add_epoch(self, row: dict[str, Any]) -> None:
        for group, names in GROUPS.items():
            for name in names:
                if row[name] is not None:
                    self._writer.add_scalar(f"{group}/{name}", row[name], row["images_seen"])
        self._writer.flush()

    def add_samples(self, picture: Image.Image, images_seen: int) -> None:
        """Add a sample grid."""
        self._writer.add_image("samples", np.asarray(picture), images_seen, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
