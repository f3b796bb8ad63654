"""Resuming: the checkpoint that a run continues from, files that are set aside, the command to use after a failure.

Files that cannot be used are moved to another name or folder, never deleted.
"""

from __future__ import annotations

import hashlib
import math
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ddpm.run.arguments import ONCE
from ddpm.run.config import START_ONLY, TrainConfig, preset
from ddpm.run.config.rules import BETAS, beta_range
from ddpm.run.errors import RequestError
from ddpm.run.files import given_path, read_json, real, why_and_cure
from ddpm.run.paths import RunPaths, grid_epoch, readable_folder
from ddpm.training.checkpoint import Checkpoint, inspect, point_latest, read_meta, sound_folders
from ddpm.training.distributed import DistContext
from ddpm.training.optimizers import HIDDEN
from ddpm.training.schedule import TrainingSchedule

TEST_IMAGES = "SHA-256 of the test images"
ORDER_OF_SUMS = {"processes", "threads", "device", "precision", "compile"}  # with another one, results differ in bits


def find_latest(root: Path) -> tuple[Checkpoint | None, dict[Path, str]]:
    """The newest checkpoint that is whole and sound. Also the damaged ones after it: folder → what is wrong.

    It need not be `latest`: a job may have been killed just before it moved that link. Checkpoints of a line that was
    left are not here: the start that went back has set them aside.

    Raises:
        OSError: one of them, or their folder, cannot be read now.
    """
    readable_folder(root)  # raises if it cannot be read: glob would find nothing there
    damaged = {}
    for folder in sorted(root.glob("step_*"), reverse=True):
        try:
            found = inspect(folder)
        except RequestError as error:
            damaged[folder] = str(error).rpartition(": ")[0]
            continue
        if not found.unsound:
            return found, damaged
    return None, damaged


def choose_start(
    root: Path, resume: str, identity: dict[str, Any], begun: bool = True
) -> tuple[Checkpoint | None, dict[Path, str]]:
    """The checkpoint that `--resume` selects (None: start afresh), and damaged ones: folder → what is wrong.

    Args:
        root: the folder with the run's checkpoints.
        resume: value of `--resume`: auto, never or a folder.
        identity: as `identity_of` returns it.
        begun: has the run published an epoch? Otherwise it begins anew if its only checkpoint is damaged, as it would
            without one: there is less than an epoch to save, and a job at night should not wait for a person.

    Raises:
        RequestError: there are checkpoints, but none is whole or can be read; the folder that `--resume` names is no
            checkpoint; or the checkpoint is of another run.
    """
    if resume == "never":
        return None, {}
    try:
        if resume == "auto":
            found, damaged = find_latest(root)
        else:
            folder = given_path(resume)
            if not folder.is_dir():
                raise RequestError(
                    f"--resume {folder}: no such folder; give auto, never or a step_ folder of checkpoints/"
                )
            found, damaged = inspect(real(folder / "latest" if (folder / "latest").exists() else folder)), {}
    except OSError as error:  # the checkpoints may be intact: nothing is set aside
        raise RequestError(f"no checkpoint can be read: {why_and_cure(error)}") from error
    if found:
        refuse_other_run(found, identity)
    elif damaged and (begun or len(damaged) > 1):
        newest = next(iter(damaged.values()))
        raise RequestError(f"{newest}; or begin anew with --resume never (the old run is set aside)")
    return found, damaged


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


# ---- what is set aside -----------------------------------------------------------------------------------------------


def damaged_checkpoints(root: Path, found: Checkpoint, damaged: dict[Path, str]) -> list[str]:
    """Rename damaged checkpoints to `damaged_…`. Returns messages.

    Args:
        found: the checkpoint that is used instead.
        damaged: folder → what is wrong.
    """
    messages = []
    for folder, problem in damaged.items():
        new = root / f"damaged_{folder.name}"
        while new.exists():
            new = new.with_name(new.name + "+")
        folder.rename(new)
        messages.append(f"{problem}; it is now {new.name}, and {found.folder.name} is taken instead")
    if damaged:
        point_latest(root)
    return messages


def abandoned_line(paths: RunPaths, start: Checkpoint) -> list[str]:
    """Move what was made after `start`, to which the run goes back, into folders `abandoned-<time>`: later checkpoints,
    and an export or evaluation of one of them. If `start` is a checkpoint of another run, all of this run are moved.
    Returns messages.

    Otherwise `best`, reports and pruning would use weights that are no longer part of the run.
    """
    root = paths.checkpoints
    ours = _is_of(paths, start)
    steps = [folder for folder in sorted(root.glob("step_*")) if not ours or folder.name > start.folder.name]
    gone = {folder: f"{folder.name}{_why(folder)}" for folder in steps}
    made = [
        (root / "export", _step(root / "export" / "meta.json", "progress")),
        (paths.evaluation, evaluated := _step(paths.evaluation)),
        (paths.evaluation_files, evaluated),
    ]
    later = [path for path, step in made if not ours or (step is not None and step > start.step)]
    gone |= {path: path.name for path in later if os.path.lexists(path)}
    if not gone:
        return []
    where = sorted({str(_move(path).parent) for path in gone})
    point_latest(root)
    return [f"going back to {start.folder.name}; moved to {' and '.join(where)}: {', '.join(gone.values())}"]


def later_pictures(paths: RunPaths, start: Checkpoint | None) -> list[str]:
    """Move sample grids of epochs after `start`, which are trained again; all, if it is of another run. Returns
    messages."""
    epochs = start.meta["progress"]["epoch"] if start and _is_of(paths, start) else 0
    later = [path for path in sorted(paths.samples.glob("*_epoch_*.*")) if (grid_epoch(path) or 0) > epochs]
    where = {str(_move(path).parent) for path in later}
    return [f"sample grids from epoch {epochs + 1} on moved to {where.pop()}"] if later else []


def _is_of(paths: RunPaths, start: Checkpoint) -> bool:
    """Is it a checkpoint of this run?"""
    return real(start.folder.parent) == real(paths.checkpoints)


def _move(path: Path) -> Path:
    """Move `path` into a folder `abandoned-<time>` beside it; returns its new place."""
    folder = path.parent / time.strftime("abandoned-%Y%m%d-%H%M%S")
    while (folder / path.name).exists():
        folder = folder.with_name(folder.name + "+")
    folder.mkdir(exist_ok=True)
    return path.rename(folder / path.name)


def _why(folder: Path) -> str:
    """` (unsound: …)` for an unsound checkpoint, else nothing."""
    unsound = read_meta(folder).get("unsound")
    return f" (unsound: {unsound})" if unsound else ""


def _step(file: Path, *keys: str) -> int | None:
    """The step in a JSON file, in the object that `keys` lead to; None if there is none."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        document = read_json(file)
        for key in keys:
            document = document[key]
        return int(document["step"])
    return None


# ---- after a failure -------------------------------------------------------------------------------------------------


def after_failure(config: TrainConfig, paths: RunPaths, world: DistContext) -> str:
    """A message with the newest sound checkpoint and the command that continues from it with a smaller learning rate:
    the checkpoint's if that was smaller, else a tenth of the current one. Without a sound checkpoint, the command
    begins anew, with the preset's learning rate if that is smaller, else a tenth."""
    try:
        sound = sound_folders(paths.checkpoints)
    except OSError as error:
        return f"which checkpoints are sound cannot be read now: {why_and_cure(error)}"
    before = read_meta(sound[-1]).get("settings", {}).get("lr", config.lr) if sound else preset(config.preset).lr
    lr = before if before < config.lr else config.lr / 10
    where = f"the newest sound checkpoint is {sound[-1]}" if sound else "no checkpoint of the run is sound"
    flags = [*without(sys.argv[1:], "--lr", "--resume"), "--lr", f"{lr:g}", "--resume", "auto" if sound else "never"]
    return f"{where}; {'continue from it' if sound else 'begin anew'} with: {_launcher(world)} {shlex.join(flags)}"


def without(arguments: Sequence[str], *flags: str) -> list[str]:
    """`arguments` without these flags and their values, given as `--lr 1` or `--lr=1`."""
    kept, value_follows = [], False
    for argument in arguments:
        if not value_follows and argument.partition("=")[0] not in flags:
            kept.append(argument)
        value_follows = not value_follows and argument in flags
    return kept


def _launcher(world: DistContext) -> str:
    """The command that started the processes of this run, or words for it."""
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    if by_torchrun and "SLURM_JOB_ID" in os.environ:
        return "sbatch submit.sh"
    if by_torchrun and world.nodes == 1:
        return f"torchrun --standalone --nproc_per_node={world.world_size} train.py"
    return "python train.py" if world.world_size == 1 else "(the launcher as before) train.py"
