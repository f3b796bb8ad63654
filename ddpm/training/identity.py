"""What makes a run the same run: the settings and data that stay, and what may change from one start to the next."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ddpm.run.arguments import ONCE
from ddpm.run.config import START_ONLY, TrainConfig, preset
from ddpm.run.config.rules import BETAS, beta_range
from ddpm.run.errors import RequestError
from ddpm.training.checkpoint import Checkpoint
from ddpm.training.optimizers import HIDDEN
from ddpm.training.schedule import TrainingSchedule

TEST_IMAGES = "SHA-256 of the test images"
ORDER_OF_SUMS = {"processes", "threads", "device", "precision", "compile"}  # with another one, results differ in bits


def identity_of(
    config: TrainConfig,
    schedule: TrainingSchedule,
    class_names: Sequence[str],
    data_sha256: str,
    test_sha256: str | None = None,
) -> dict[str, Any]:
    """The settings and data that must stay the same when a run is continued. All others may change."""
    names = ("preset", "data", "resolution", "block_out_channels", "layers_per_block", "norm_num_groups",
             "mid_attention", "seed", "diffusion_steps", "beta_schedule", "prediction_type")  # fmt: skip
    settings = config.to_dict()
    betas = beta_range(config)
    return {
        **{name: settings[name] for name in names},
        # None if it is as in older versions: their checkpoints, which lack these entries, can then be continued
        "optimizer": None if config.optimizer == "adamw" else config.optimizer,
        "resnet time scale shift": None if config.resnet_time_scale_shift == "default" else "scale_shift",
        "patch size": None if config.patch_size == 1 else config.patch_size,
        "split": config.split if config.data == "emnist" and config.split != "balanced" else None,
        "balance": "classes" if config.balanced else None,
        "invert": config.invert if config.data == "folder" else None,
        "class names": _in_short(class_names) if config.data == "folder" else None,
        "betas": None if betas in (None, BETAS) else " – ".join(f"{beta:.4g}" for beta in betas),
        "classes": len(class_names),
        "training images": schedule.train_images,
        "SHA-256 of the images": data_sha256[:16],
        TEST_IMAGES: test_sha256 and test_sha256[:16],
        "global batch": schedule.global_batch,
    }


def _in_short(class_names: Sequence[str]) -> str:
    """The first names and, where that is not all, the SHA-256 of all of them."""
    words = ", ".join(class_names)
    return words if len(words) <= 60 else f"{words:.40}… (SHA-256 {hashlib.sha256(words.encode()).hexdigest()[:16]})"


def refuse_other_run(checkpoint: Checkpoint, identity: dict[str, Any]) -> None:
    """Check that a run of this `identity` can continue from `checkpoint`.

    Raises:
        RequestError: the checkpoint has another identity; a table below the message lists what differs.
    """
    saved = checkpoint.meta["identity"]
    known = (name for name in identity if name != TEST_IMAGES or saved.get(name))  # older versions did not keep it
    differing = [name for name in known if saved.get(name) != identity[name]]
    if not differing:
        return
    rows = [(name.replace("_", " "), str(saved.get(name)), str(identity[name])) for name in differing]
    rows.insert(0, ("", "the run so far", "asked for now"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    others = {"SHA-256 of the images", TEST_IMAGES} & set(differing)
    images = "; the images, or their order, have changed since" if others else ""
    batch = " (--batch-size × processes × --grad-accum must stay)" if "global batch" in differing else ""
    raise RequestError(
        f"{checkpoint.folder} is of another run{images}: give the settings of the run so far{batch}, or another "
        "--run-name, or --resume never to begin anew (the old run is set aside)\n  " + "\n  ".join(lines)
    )


def changes(
    checkpoint: Checkpoint, config: TrainConfig, schedule: TrainingSchedule, used: Mapping[str, Any] | None = None,
    **machine: Any,
) -> list[str]:  # fmt: skip
    """Messages: the settings that differ from the start that wrote the checkpoint, which is allowed, and the effects.

    Args:
        used: what was chosen for the device where settings leave it open (`Choices.values`).
        machine: `device`, its name; `threads`, the number of torch's on a CPU, None on a GPU.
    """
    progress = checkpoint.meta["progress"]
    older = preset(config.preset, recipe="reference").to_dict() | ONCE  # settings that the checkpoint's version lacked
    before = {**older, **checkpoint.meta["settings"], "processes": progress["world_size"]}
    now = {**config.to_dict(), "processes": schedule.world_size}
    chosen = checkpoint.meta.get("used") or {}
    for name in chosen.keys() & (used or {}).keys():
        before[name], now[name] = chosen[name], used[name]
    for name, value in machine.items():
        if value and progress.get(name):
            before[name], now[name] = progress[name], value
    compared = [name for name in now if name not in START_ONLY]
    differing = [name for name in compared if before[name] != now[name]]
    words = [f"{name.replace('_', ' ')} {before[name]} → {now[name]}" for name in differing]
    if ORDER_OF_SUMS & set(differing):
        words.append("the run goes on, but not bit for bit: numbers are added in another order")
    return words + _of_learning_rate(progress.get("lr") or {}, schedule)


def _of_learning_rate(saved: dict[str, Any], schedule: TrainingSchedule) -> list[str]:
    """Messages if the settings, or this version, give other learning rates at the checkpoint's step than before."""
    found = []
    if saved and saved["step"] < schedule.total_steps:
        before, now = saved["rate"], schedule.learning_rate(saved["step"])
        if not math.isclose(before, now, rel_tol=1e-6, abs_tol=1e-12):
            found.append(f"learning rate at step {saved['step']} {before:.3g} → {now:.3g}")
    if schedule.config.optimizer == "muon" and saved.get("hidden") != HIDDEN:
        before = saved.get("hidden", "not known (older version)")
        found.append(f"learning rate of hidden layers over that of the others {before} → {HIDDEN:g}")
    return found
