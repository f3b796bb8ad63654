"""Checkpoints on disk: whole or absent, verified before use, loadable by diffusers.

step_00028200/  unet/ and scheduler/ (diffusers folders; moving-average weights, safetensors)
                unet_swa/ (with --swa-start-epoch: the average of the weights at the ends of epochs)
                unet_power_05/ and unet_power_10/ (unless --no-power-ema: power-function averages)
                train_state.pt (live weights, optimizer, scaler)
                meta.json (identity, settings, counters, metrics, why the state is unsound if it is, SHA-256 of every
                file), written last
latest → the newest checkpoint whose state is sound, best → the best of those
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file

from ddpm.run.errors import RequestError
from ddpm.run.files import atomic_write, fsync_folder, replace_link, sha256_file
from ddpm.run.meta import checked_meta
from ddpm.training.soundness import broken

STATE, WEIGHTS_NAME = "train_state.pt", "diffusion_pytorch_model.safetensors"
WEIGHTS = f"unet/{WEIGHTS_NAME}"
GONE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)  # there is no such file


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint folder and what its meta.json says."""

    folder: Path
    meta: dict[str, Any]

    @property
    def step(self) -> int:
        return self.meta["progress"]["step"]

    @property
    def unsound(self) -> str | None:
        """Why its state is not worth continuing from (see `ddpm/training/soundness.py`); None if it is."""
        return self.meta.get("unsound")

    def load(self) -> tuple[dict, dict[str, dict[str, torch.Tensor]]]:
        """The training state, and the averaged weights by folder, on the CPU. Loading runs no code from the files."""
        state = torch.load(self.folder / STATE, map_location="cpu", weights_only=True)
        return state, {path.parent.name: load_file(path) for path in self.folder.glob(f"unet*/{WEIGHTS_NAME}")}


@dataclass(frozen=True)
class Contents:
    """The content of a checkpoint, in host memory."""

    state: dict[str, Any]  # train_state.pt
    averages: dict[str, dict[str, torch.Tensor]]  # averaged weights by folder: unet (EMA), unet_swa, unet_power_…
    unet: UNet2DModel  # only its config is used, as of the scheduler
    scheduler: DDPMScheduler
    meta: dict[str, Any]


def write(root: Path, contents: Contents, ours: Callable[[], None] = lambda: None) -> Checkpoint:
    """Write the checkpoint `root/step_…` of `meta["progress"]["step"]` and, if it is sound, point `latest` at it.

    A crash at any moment leaves at most a hidden folder that is never taken for a checkpoint. The state is unsound if
    `meta["unsound"]` says so already, or if its tensors are (see `broken` in soundness.py).

    Args:
        ours: called just before the checkpoint gets its name; raises OSError if another process has the run now.

    Raises:
        OSError: no room or no permission; the earlier checkpoints are still there.
    """
    root.mkdir(parents=True, exist_ok=True)
    folder = root / f"step_{contents.meta['progress']['step']:08d}"
    aside = root / f".{folder.name}.{os.getpid()}.tmp"
    try:
        for name, weights in contents.averages.items():
            contents.unet.save_config(aside / name)
            path = aside / name / WEIGHTS_NAME
            save_file(weights, path, metadata={"format": "pt"})
            path.chmod((aside / name / "config.json").stat().st_mode)  # safetensors lets only the owner read
        contents.scheduler.save_pretrained(aside / "scheduler")
        torch.save(contents.state, aside / STATE)
        _make_durable(aside)
        unsound = contents.meta.get("unsound") or broken(contents.state, contents.averages)
        files = {name: sha256_file(aside / name) for name in _files(aside)}
        meta = {**contents.meta, "unsound": unsound, "files": files}
        atomic_write(aside / "meta.json", json.dumps(meta, indent=2))
        ours()
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    fsync_folder(root)
    point_latest(root)
    return Checkpoint(folder, meta)


def amend(folder: Path, ours: Callable[[], None] = lambda: None, **fields: Any) -> Checkpoint:
    """Replace fields of a checkpoint's meta.json that became known only after it was written: its metrics, or that its
    state is unsound.

    Args:
        ours: as for `write`.

    Raises:
        OSError: no room or no permission; the checkpoint is unchanged.
    """
    meta = {**json.loads((folder / "meta.json").read_text(encoding="utf-8")), **fields}
    ours()
    atomic_write(folder / "meta.json", json.dumps(meta, indent=2))
    point_latest(folder.parent)
    return Checkpoint(folder, meta)


def read_meta(folder: Path) -> dict[str, Any]:
    """The content of a checkpoint's meta.json; empty if it cannot be read."""
    try:
        return _meta(folder)
    except OSError:
        return {}


def sound_metas(root: Path) -> dict[Path, dict[str, Any]]:
    """The meta.json of each checkpoint in `root` that it calls sound, by folder, oldest first.

    Raises:
        OSError: one cannot be read now. It may be intact, so nobody must delete it or take another for the newest.
    """
    metas = {folder: _meta(folder) for folder in sorted(root.glob("step_*"))}
    return {folder: meta for folder, meta in metas.items() if _is_sound(meta)}


def sound_folders(root: Path) -> list[Path]:
    """The folders of the sound checkpoints in `root`, oldest first; raises OSError as `sound_metas` does."""
    return list(sound_metas(root))


def _meta(folder: Path) -> dict[str, Any]:
    """The content of a checkpoint's meta.json; empty if there is none, or a damaged one."""
    try:
        return checked_meta(folder, ())
    except ValueError:
        return {}
    except OSError as error:
        if _no_file(error):
            return {}
        raise


def _is_sound(meta: dict[str, Any]) -> bool:
    return bool(meta) and not meta.get("unsound")


def point_latest(root: Path) -> None:
    """Point `latest` at the newest sound checkpoint; remove it if there is none."""
    for folder in sorted(root.glob("step_*"), reverse=True):
        if _is_sound(_meta(folder)):
            replace_link(root / "latest", folder.name)
            return
    (root / "latest").unlink(missing_ok=True)


def inspect(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, after all its files were compared with their SHA-256 and the training state was read
    without running code from it.

    Raises:
        RequestError: it is missing, unfinished, damaged or not of this project; the message names the file.
        OSError: it cannot be read now; it may be intact.
    """
    path, fix = folder / "meta.json", "give --resume another step_ folder"
    try:
        meta = checked_meta(folder, ("files", "progress.step", "identity"))
        unlisted = {STATE, WEIGHTS} - set(hashes := meta["files"])
    except OSError as error:
        if not _no_file(error):
            raise
        raise RequestError(f"{folder} is not a whole checkpoint, it has no meta.json: {fix}") from None
    except ValueError as error:
        raise RequestError(f"{path} does not describe a checkpoint ({error!r}): {fix}") from error
    if unlisted:
        raise RequestError(f"{path} gives no SHA-256 of {', '.join(sorted(unlisted))}: {fix}")
    for name, expected in hashes.items():
        if digest_of(folder / name) != expected:
            raise RequestError(f"{folder / name} is missing or damaged: {fix}")
    try:
        torch.load(folder / STATE, map_location="cpu", weights_only=True, mmap=True)["progress"]
    except (OSError, MemoryError):
        raise
    except Exception as error:  # torch raises many types of error for files that are no training state
        why = str(error).splitlines()[0] if str(error) else repr(error)
        raise RequestError(f"{folder / STATE} is not a training state that is safe to load ({why}): {fix}") from error
    return Checkpoint(folder, meta)


def digest_of(path: Path) -> str | None:
    """The SHA-256 of a file; None if there is no such file.

    Raises:
        OSError: it cannot be read now.
    """
    try:
        return sha256_file(path)
    except OSError as error:
        if _no_file(error):
            return None
        raise


def _no_file(error: OSError) -> bool:
    """Does the error mean that there is no regular file, but nothing, a folder, a pipe or a loop of links?"""
    return isinstance(error, GONE) or error.errno in (errno.EINVAL, errno.ELOOP)


def sweep(root: Path) -> None:
    """Delete what killed jobs left half written or half deleted. Only the owner of the run's lock may call it."""
    for pattern in (".step_*.tmp", ".step_*.old"):
        for folder in root.glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)
    for link in root.glob(".*.tmp"):
        with suppress(OSError):
            link.unlink()


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _make_durable(folder: Path) -> None:
    """fsync every file and folder below `folder`."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            fsync_folder(path)
        else:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
