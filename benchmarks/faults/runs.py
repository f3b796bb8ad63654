"""Small runs that faults strike: their settings and data, and what is compared in the end."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file

from ddpm.data import glyphs
from ddpm.data.emnist import CLASS_NAMES, emnist
from ddpm.data.idx import read_idx, write_idx
from ddpm.run.config import TrainConfig
from ddpm.run.metrics import CAS, RCA, RCA_UNGUIDED, TOP1, TOP5, names
from ddpm.run.paths import RunPaths
from ddpm.training.checkpoint import STATE, WEIGHTS_NAME

SETTINGS = dict(
    block_out_channels=(8, 16), norm_num_groups=4, batch_size=16, epochs=2, precision="fp32", log_every=2,
    val_images=94, samples_per_class=1, sample_steps=2, sample_every=1, warmup_steps=0, checkpoint_minutes=0.002,
    keep_last=2, export=False,
)  # fmt: skip
SHARES = [metric.name for metric in (CAS, RCA, RCA_UNGUIDED, TOP1, TOP5)]  # of images that a classifier reads correctly


def some_of(source: Path, target: Path, images: dict[str, int]) -> Path:
    """Write the first images of each split of EMNIST Balanced under `target`; returns it, for `--data-root`."""
    for split, count in images.items():
        for path, dimensions in zip(emnist(source).files(split), (3, 1), strict=True):
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            write_idx(copy, read_idx(path, dimensions)[:count])
    return target


def glyphs_as_emnist(target: Path, images: dict[str, int]) -> Path:
    """Write about as many characters drawn from fonts under `target`, in files as EMNIST has them; returns it."""
    drawn = glyphs.draw({split: count // len(CLASS_NAMES) for split, count in images.items()}, seed=0)
    for split, pixels in drawn.items():
        files = emnist(target).files(split)
        files[0].parent.mkdir(parents=True, exist_ok=True)
        labels = torch.arange(len(pixels)) % len(CLASS_NAMES)
        for path, content in zip(files, (pixels.transpose(0, 2, 1), labels.byte().numpy()), strict=True):
            write_idx(path, content)
    return target


def outcome(config: TrainConfig) -> tuple[dict[str, torch.Tensor], pd.DataFrame]:
    """Every tensor of the last checkpoint by name, and the rows without their times."""
    paths = RunPaths(config.output_root, config.run)
    state = torch.load(paths.checkpoints / "latest" / STATE, weights_only=True)
    tensors = {f"model.{name}": value for name, value in state["model"].items()}
    for file in (paths.checkpoints / "latest").glob(f"unet*/{WEIGHTS_NAME}"):
        tensors |= {f"{file.parent.name}.{name}": value for name, value in load_file(file).items()}
    for index, moments in state["optimizer"]["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
    return tensors, pd.read_csv(paths.csv).drop(columns=list(names(timed=True)))


def differences(config: TrainConfig, whole: TrainConfig, exactly: bool = True) -> list[str]:
    """What differs from the uninterrupted run: tensors, rows, status, report, files left over.

    Args:
        exactly: False for a run on another number of processes, whose sums are rounded otherwise: only its rows are
            compared, and they may differ a little.
    """
    (mine, rows), (expected, expected_rows) = outcome(config), outcome(whole)
    other = [name for name in expected if name not in mine or (exactly and not mine[name].equal(expected[name]))]
    wrong = [f"{len(other)} of {len(expected)} tensors, such as {other[0]}"] if other else []
    paths = RunPaths(config.output_root, config.run)
    left_over = [path.name for path in paths.checkpoints.glob(".*")] + [paths.lock.name] * paths.lock.exists()
    wrong += [] if same_rows(rows, expected_rows, exactly) else ["rows"]
    wrong += [] if json.loads(paths.status.read_text(encoding="utf-8"))["state"] == "finished" else ["status"]
    wrong += [] if paths.report.exists() else ["no report"]
    return wrong + [f"left over: {name}" for name in left_over]


def same_rows(rows: pd.DataFrame, expected: pd.DataFrame, exactly: bool = True) -> bool:
    """Are the figures of the epochs the same, times aside?

    If not `exactly`, up to the rounding of sums. Then shares of images may differ by some images: one more is a large
    part of few, and a classifier that is trained on generated images (CAS) multiplies each rounding.
    """
    if exactly:
        return rows.equals(expected)
    try:
        for part, tolerances in ((SHARES, {"rtol": 0, "atol": 0.1}), (rows.columns.difference(SHARES), {"rtol": 1e-2})):
            pd.testing.assert_frame_equal(rows[part], expected[part], check_dtype=False, **tolerances)
    except (AssertionError, KeyError):  # KeyError: a column is missing
        return False
    return True
