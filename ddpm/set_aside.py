"""What a start finds of the run and cannot use is moved out of the way, never deleted."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from ddpm.checkpoint import Checkpoint, point_latest, read_meta
from ddpm.files import read_json, real
from ddpm.paths import RunPaths


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
