"""Resuming: the checkpoint that a run continues from, files that are set aside, the command to use after a failure.

Files that cannot be used are moved to another name or folder, never deleted.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ddpm.run.config import TrainConfig, preset
from ddpm.run.errors import RequestError
from ddpm.run.files import given_path, read_json, real, why_and_cure
from ddpm.run.paths import RunPaths, grid_epoch, readable_folder
from ddpm.training.checkpoint import Checkpoint, inspect, point_latest, read_meta, sound_folders
from ddpm.training.identity import refuse_other_run
from ddpm.training.machine.distributed import DistContext


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
