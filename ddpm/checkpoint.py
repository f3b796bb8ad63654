"""Checkpoints on disk: whole or absent, verified before use, loadable by diffusers.

step_00028200/  unet/ and scheduler/ (diffusers folders; moving-average weights, safetensors)
                unet_swa/ (with --swa-start-epoch: the average of the weights at the ends of epochs)
                train_state.pt (live weights, optimizer, scaler)
                meta.json (identity, settings, counters, metrics, why the state is unsound if it is, SHA-256 of every
                file), written last
latest → the newest checkpoint whose state is sound, best → the best of those
"""

from __future__ import annotations

import errno
import json
import math
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

from ddpm.config import NUM_CLASSES, TrainConfig
from ddpm.errors import RequestError
from ddpm.files import atomic_write, fsync_folder, real, replace_link, sha256_file, why_and_cure
from ddpm.meta import checked_meta
from ddpm.paths import readable_folder
from ddpm.plan import Plan
from ddpm.rules import BETAS, beta_range
from ddpm.soundness import broken

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
        """Why its state is not worth continuing from (see `ddpm/soundness.py`); None if it is."""
        return self.meta.get("unsound")

    def load(self) -> tuple[dict, dict[str, dict[str, torch.Tensor]]]:
        """The training state, and the averaged weights by folder, on the CPU. Only safe formats are read."""
        state = torch.load(self.folder / STATE, map_location="cpu", weights_only=True)
        return state, {path.parent.name: load_file(path) for path in self.folder.glob(f"unet*/{WEIGHTS_NAME}")}


@dataclass(frozen=True)
class Contents:
    """What goes into a checkpoint, in host memory."""

    state: dict[str, Any]  # train_state.pt
    averages: dict[str, dict[str, torch.Tensor]]  # averaged weights by folder: unet (EMA), unet_swa
    unet: UNet2DModel  # of this and the next, only the settings are read
    scheduler: DDPMScheduler
    meta: dict[str, Any]


def write(root: Path, contents: Contents, ours: Callable[[], None] = lambda: None) -> Checkpoint:
    """Write the checkpoint `root/step_…` of `meta["progress"]["step"]` and, if it is sound, point `latest` at it.

    A crash at any moment leaves at most a hidden folder that is never taken for a checkpoint. `meta["unsound"]` says
    what is known to be wrong with the state; the tensors are examined here.

    Args:
        ours: called just before the checkpoint gets its name; raises OSError if the run is no longer ours to write.

    Raises:
        OSError: no room or no permission; the checkpoints that were there still are.
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
    """Replace fields of a checkpoint's meta.json: what became known only after it was written, such as its metrics,
    or that its state is unsound.

    Args:
        ours: as for `write`.

    Raises:
        OSError: no room or no permission; the checkpoint is as it was.
    """
    meta = {**json.loads((folder / "meta.json").read_text(encoding="utf-8")), **fields}
    ours()
    atomic_write(folder / "meta.json", json.dumps(meta, indent=2))
    point_latest(folder.parent)
    return Checkpoint(folder, meta)


def read_meta(folder: Path) -> dict[str, Any]:
    """What a checkpoint's meta.json says; nothing if it cannot be read."""
    try:
        return checked_meta(folder, ())
    except (OSError, ValueError):
        return {}


def sound_folders(root: Path) -> list[Path]:
    """The folders of the checkpoints in `root` whose meta.json can be read and calls them sound, oldest first."""
    metas = {folder: read_meta(folder) for folder in sorted(root.glob("step_*"))}
    return [folder for folder, meta in metas.items() if meta and not meta.get("unsound")]


def point_latest(root: Path) -> None:
    """Point `latest` at the newest checkpoint that is sound; where there is none, there is no `latest`."""
    if sound := sound_folders(root):
        replace_link(root / "latest", sound[-1].name)
    else:
        (root / "latest").unlink(missing_ok=True)


def inspect(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, every file of it compared with its SHA-256 and opened as a safe format.

    Raises:
        RequestError: it is missing, unfinished, damaged or not one of ours; the message names the file.
        OSError: it cannot be read now, which says nothing about what is in it.
    """
    path, mend = folder / "meta.json", "give --resume another step_ folder"
    try:
        meta = checked_meta(folder, ("files", "progress.step", "identity"))
        unlisted = {STATE, WEIGHTS} - set(hashes := meta["files"])
    except GONE:
        raise RequestError(f"{folder} is not a whole checkpoint, it has no meta.json: {mend}") from None
    except ValueError as error:
        raise RequestError(f"{path} does not describe a checkpoint ({error!r}): {mend}") from error
    if unlisted:
        raise RequestError(f"{path} gives no SHA-256 of {', '.join(sorted(unlisted))}: {mend}")
    for name, expected in hashes.items():
        if digest_of(folder / name) != expected:
            raise RequestError(f"{folder / name} is missing or damaged: {mend}")
    try:
        torch.load(folder / STATE, map_location="cpu", weights_only=True, mmap=True)["progress"]
    except (OSError, MemoryError):
        raise
    except Exception as error:  # each way of not being one of our files has an exception of its own
        why = str(error).splitlines()[0] if str(error) else repr(error)
        raise RequestError(f"{folder / STATE} is not a training state that is safe to load ({why}): {mend}") from error
    return Checkpoint(folder, meta)


def digest_of(path: Path) -> str | None:
    """The SHA-256 of a file; None if there is no such file.

    Raises:
        OSError: it cannot be read now.
    """
    try:
        return sha256_file(path)
    except OSError as error:
        if isinstance(error, GONE) or error.errno in (errno.EINVAL, errno.ELOOP):
            return None
        raise


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


def identity_of(config: TrainConfig, plan: Plan, data_sha256: str) -> dict[str, Any]:
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
        "training images": plan.train_images,
        "SHA-256 of the images": data_sha256[:16],
        "global batch": plan.global_batch,
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


def changes(checkpoint: Checkpoint, config: TrainConfig, plan: Plan, threads: int | None = None) -> list[str]:
    """What differs from the start that wrote the checkpoint and is allowed to, in words, and what comes of it.

    Args:
        threads: of torch, on a CPU. Sums are in another order with another number, as with other processes.
    """
    progress = checkpoint.meta["progress"]
    before = {**checkpoint.meta["settings"], "processes": progress["world_size"]}
    now = {**config.to_dict(), "processes": plan.world_size}
    if threads and progress.get("threads"):
        before["threads"], now["threads"] = progress["threads"], threads
    told = [name for name in now if name not in ("resume", "dry_run", "download")]
    differing = [name for name in told if before.get(name) != now[name]]
    words = [f"{name.replace('_', ' ')} {before.get(name)} → {now[name]}" for name in differing]
    if {"processes", "threads"} & set(differing):
        words.append("the run goes on, but not bit for bit: sums are in another order")
    return words + _of_learning_rate(progress.get("lr"), plan)


def _of_learning_rate(saved: dict[str, Any] | None, plan: Plan) -> list[str]:
    """What becomes of the learning rate at the checkpoint's step, if another plan gave another one there."""
    if not saved or saved["step"] >= plan.total_steps:
        return []
    before, now = saved["rate"], plan.learning_rate(saved["step"])
    if math.isclose(before, now, rel_tol=1e-6, abs_tol=1e-12):
        return []
    return [f"learning rate at step {saved['step']} {before:.3g} → {now:.3g}"]


def sweep(root: Path) -> None:
    """Delete what killed jobs left half written or half deleted. Only the run's owner may: see `ddpm/claim.py`."""
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
