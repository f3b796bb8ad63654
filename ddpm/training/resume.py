"""Resuming: which checkpoint a run continues from, what is set aside, and the command to continue after a failure.

Files that a start finds and cannot use are moved out of the way, never deleted.
"""

from __future__ import annotations

import math
import os
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ddpm.run.config import BETAS, NUM_CLASSES, TrainConfig, beta_range, preset
from ddpm.run.errors import RequestError
from ddpm.run.files import read_json, real, why_and_cure
from ddpm.run.paths import RunPaths, readable_folder
from ddpm.training.checkpoint import Checkpoint, inspect, point_latest, read_meta, sound_folders
from ddpm.training.distributed import DistContext
from ddpm.training.schedule import TrainingSchedule


def find_latest(root: Path) -> tuple[Checkpoint | None, dict[Path, str]]:
    """The checkpoint that `latest` points to or, if it is damaged, the newest that is whole and sound; and what is
    wrong with the damaged ones that were passed over, by folder.

    Raises:
        OSError: one of them, or their folder, cannot be read now.
    """
    readable_folder(root)  # as glob finds nothing in a folder that may not be read
    newest_first = sorted(root.glob("step_*"), reverse=True)
    newest_first.sort(key=lambda folder: folder != real(root / "latest"))  # stable: `latest` comes to the front
    damaged = {}
    for folder in newest_first:
        try:
            found = inspect(folder)
        except RequestError as error:
            damaged[folder] = str(error).rpartition(": ")[0]
            continue
        if not found.unsound:
            return found, damaged
    return None, damaged


def choose_start(root: Path, resume: str, identity: dict[str, Any]) -> tuple[Checkpoint | None, dict[Path, str]]:
    """The checkpoint that `--resume` means (None: start afresh), and what is wrong with newer ones, by folder.

    Args:
        identity: what the run is, as `identity_of` gives it.

    Raises:
        RequestError: there are checkpoints, but none is whole; or it is one of another run.
    """
    if resume == "never":
        return None, {}
    try:
        if resume == "auto":
            found, damaged = find_latest(root)
        else:
            folder = Path(resume)
            if not folder.is_dir():
                raise RequestError(
                    f"--resume {folder}: no such folder; give auto, never or a step_ folder of checkpoints/"
                )
            found, damaged = inspect(real(folder / "latest" if (folder / "latest").exists() else folder)), {}
    except OSError as error:  # which says nothing about what is in it: nothing is set aside
        raise RequestError(f"no checkpoint can be read: {why_and_cure(error)}") from error
    if found:
        refuse_other_run(found, identity)
    elif damaged:
        newest = next(iter(damaged.values()))
        raise RequestError(f"{newest}; or begin anew with --resume never (the old run is set aside)")
    return found, damaged


def identity_of(config: TrainConfig, schedule: TrainingSchedule, data_sha256: str) -> dict[str, Any]:
    """What makes a run this run and no other. All else may change when it is continued."""
    names = ("preset", "data", "resolution", "block_out_channels", "layers_per_block", "norm_num_groups",
             "mid_attention", "seed", "diffusion_steps", "beta_schedule", "prediction_type")  # fmt: skip
    settings = config.to_dict()
    betas = beta_range(config)
    return {
        **{name: settings[name] for name in names},
        # None where they have always been so: older checkpoints of other betas cannot go on with these
        "betas": None if betas in (None, BETAS) else " – ".join(f"{beta:.4g}" for beta in betas),
        "classes": NUM_CLASSES,
        "training images": schedule.train_images,
        "SHA-256 of the images": data_sha256[:16],
        "global batch": schedule.global_batch,
    }


def refuse_other_run(checkpoint: Checkpoint, identity: dict[str, Any]) -> None:
    """Check that `identity` is that of the run that `checkpoint` is of.

    Raises:
        RequestError: it is not; a table below the message lists what differs.
    """
    saved = checkpoint.meta["identity"]
    differing = [name for name in identity if saved.get(name) != identity[name]]
    if not differing:
        return
    rows = [(name.replace("_", " "), str(saved.get(name)), str(identity[name])) for name in differing]
    rows.insert(0, ("", "the run so far", "asked for now"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    batch = " (--batch-size × processes × --grad-accum must stay)" if "global batch" in differing else ""
    raise RequestError(
        f"{checkpoint.folder} is of another run: give the settings of the run so far{batch}, or another --run-name, or "
        "--resume never to begin anew (the old run is set aside)\n  " + "\n  ".join(lines)
    )


def changes(
    checkpoint: Checkpoint, config: TrainConfig, schedule: TrainingSchedule, threads: int | None = None
) -> list[str]:
    """What differs from the start that wrote the checkpoint and is allowed to, in words, and what comes of it.

    Args:
        threads: of torch, on a CPU. Sums are in another order with another number, as with other processes.
    """
    progress = checkpoint.meta["progress"]
    before = {**checkpoint.meta["settings"], "processes": progress["world_size"]}
    now = {**config.to_dict(), "processes": schedule.world_size}
    if threads and progress.get("threads"):
        before["threads"], now["threads"] = progress["threads"], threads
    told = [name for name in now if name not in ("resume", "dry_run", "download")]
    differing = [name for name in told if before.get(name) != now[name]]
    words = [f"{name.replace('_', ' ')} {before.get(name)} → {now[name]}" for name in differing]
    if {"processes", "threads"} & set(differing):
        words.append("the run goes on, but not bit for bit: sums are in another order")
    return words + _of_learning_rate(progress.get("lr"), schedule)


def _of_learning_rate(saved: dict[str, Any] | None, schedule: TrainingSchedule) -> list[str]:
    """What becomes of the learning rate at the checkpoint's step, if another plan gave another one there."""
    if not saved or saved["step"] >= schedule.total_steps:
        return []
    before, now = saved["rate"], schedule.learning_rate(saved["step"])
    if math.isclose(before, now, rel_tol=1e-6, abs_tol=1e-12):
        return []
    return [f"learning rate at step {saved['step']} {before:.3g} → {now:.3g}"]


# ---- what is set aside -----------------------------------------------------------------------------------------------


def damaged_checkpoints(root: Path, found: Checkpoint, damaged: dict[Path, str]) -> list[str]:
    """Rename damaged checkpoints to `damaged_…`. `damaged` says what is wrong with each. Returns what to tell."""
    told = []
    for folder, problem in damaged.items():
        new = root / f"damaged_{folder.name}"
        while new.exists():
            new = new.with_name(new.name + "+")
        folder.rename(new)
        told.append(f"{problem}; it is now {new.name}, and {found.folder.name} is taken instead")
    if damaged:
        point_latest(root)
    return told


def abandoned_line(paths: RunPaths, start: Checkpoint) -> list[str]:
    """Move what lies beyond `start`, which the run goes back to, into folders `abandoned-<time>`: checkpoints, and an
    export or evaluation of one of them. If `start` is another run's, all of this run's are. Returns what to tell.

    Otherwise `best`, the pages and the pruning would count weights that the run no longer leads to.
    """
    root = paths.checkpoints
    ours = real(start.folder.parent) == real(root)
    steps = [folder for folder in sorted(root.glob("step_*")) if not ours or folder.name > start.folder.name]
    made = [
        (paths.checkpoints / "export", _step(paths.checkpoints / "export" / "meta.json", "progress")),
        (paths.evaluation, evaluated := _step(paths.evaluation)),
        (paths.evaluation_files, evaluated),
    ]
    gone = steps + [path for path, step in made if os.path.lexists(path) and step is not None and step > start.step]
    if not gone:
        return []
    names = [f"{folder.name}{_why(folder)}" for folder in steps] + [path.name for path in gone[len(steps) :]]
    where = sorted({str(_move(path).parent) for path in gone})
    point_latest(root)
    return [f"going back to {start.folder.name}; moved to {' and '.join(where)}: {', '.join(names)}"]


def later_pictures(paths: RunPaths, epochs: int) -> list[str]:
    """Move sample grids of epochs that are trained (again), of which `epochs` are done. Returns what to tell."""
    later = [path for path in sorted(paths.samples.glob("*_epoch_*.*")) if _epoch(path) > epochs]
    where = {str(_move(path).parent) for path in later}
    return [f"sample grids from epoch {epochs + 1} on moved to {where.pop()}"] if later else []


def _move(path: Path) -> Path:
    """Move `path` into a folder `abandoned-<time>` beside it; returns its new place."""
    folder = path.parent / time.strftime("abandoned-%Y%m%d-%H%M%S")
    while (folder / path.name).exists():
        folder = folder.with_name(folder.name + "+")
    folder.mkdir(exist_ok=True)
    return path.rename(folder / path.name)


def _why(folder: Path) -> str:
    unsound = read_meta(folder).get("unsound")
    return f" (unsound: {unsound})" if unsound else ""


def _step(file: Path, *keys: str) -> int | None:
    """The step that a JSON file is of; None if it does not say."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        document = read_json(file)
        for key in keys:
            document = document[key]
        return int(document["step"])
    return None


def _epoch(picture: Path) -> int:
    number = picture.stem.rpartition("_")[2]
    return int(number) if number.isdigit() else 0


# ---- after a failure -------------------------------------------------------------------------------------------------


def after_failure(config: TrainConfig, paths: RunPaths, world: DistContext) -> str:
    """Names the newest sound checkpoint of the run, and the command that continues from it with a smaller learning
    rate: the checkpoint's own if that was smaller, else a tenth. Without a sound one, the command that begins anew
    with the preset's, or a tenth."""
    sound = sound_folders(paths.checkpoints)
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
    """How the processes of this run were started, as one types it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return "python train.py"
    if "SLURM_JOB_ID" in os.environ:
        return "sbatch submit.sh"
    return f"torchrun --standalone --nproc_per_node={world.local_world_size} train.py"
