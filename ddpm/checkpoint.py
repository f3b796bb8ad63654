"""Checkpoints: written aside and renamed, verified before use, loadable by diffusers.

step_00028200/  unet/ and scheduler/ (diffusers folders; moving-average weights, safetensors)
                train_state.pt (live weights, optimizer, scaler)
                meta.json (settings, counters, metrics, SHA-256 of every file), written last
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from safetensors import SafetensorError
from safetensors.torch import load_file

from ddpm.config import TrainConfig
from ddpm.errors import RequestError
from ddpm.files import atomic_write, fsync_folder, replace_link, sha256_file
from ddpm.plan import Plan
from ddpm.progress import Progress
from ddpm.step import Trainer

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"

# Settings that say which model is trained on what: a checkpoint that differs in one of them is of another run.
IDENTITY = ("data", "resolution", "block_out_channels", "layers_per_block", "norm_num_groups", "mid_attention", "seed",
            "diffusion_steps", "beta_schedule", "prediction_type")  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint folder and what its meta.json says."""

    folder: Path
    meta: dict[str, Any]

    @property
    def step(self) -> int:
        return self.meta["progress"]["step"]

    def load(self) -> tuple[dict, dict[str, torch.Tensor]]:
        """The training state and the moving average's weights, on the CPU. Only safe formats are read."""
        state = torch.load(self.folder / "train_state.pt", map_location="cpu", weights_only=True)
        return state, load_file(self.folder / WEIGHTS)


def write(root: Path, state: dict, ema: UNet2DModel, scheduler: DDPMScheduler, meta: dict[str, Any]) -> Checkpoint:
    """Write the checkpoint `root/step_…` of `meta["progress"]["step"]` and point `latest` at it.

    A crash at any moment leaves at most a hidden folder that is never taken for a checkpoint.

    Raises:
        OSError: no room or no permission; the checkpoints that were there still are.
    """
    root.mkdir(parents=True, exist_ok=True)
    folder = root / f"step_{meta['progress']['step']:08d}"
    aside = root / f".{folder.name}.{os.getpid()}.tmp"
    try:
        ema.save_pretrained(aside / "unet")
        (aside / WEIGHTS).chmod((aside / "unet" / "config.json").stat().st_mode)  # safetensors lets only the owner read
        scheduler.save_pretrained(aside / "scheduler")
        torch.save(state, aside / "train_state.pt")
        _make_durable(aside)
        meta = {**meta, "files": {name: sha256_file(aside / name) for name in _files(aside)}}
        atomic_write(aside / "meta.json", json.dumps(meta, indent=2))
        if folder.exists():  # one that this run went back behind, as it is damaged, say: kept, under another name
            folder.rename(root / f"replaced_{folder.name}.{os.getpid()}")
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    fsync_folder(root)
    replace_link(root / "latest", folder.name)
    return Checkpoint(folder, meta)


def inspect(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, every file of it compared with its SHA-256.

    Raises:
        RequestError: it is missing, unfinished or damaged; the message names the file.
    """
    path, mend = folder / "meta.json", "give --resume another step_ folder"
    if not path.is_file():
        raise RequestError(f"{folder} is not a whole checkpoint, it has no meta.json: {mend}")
    try:
        meta = json.loads(path.read_text())
        hashes, _ = meta["files"], meta["progress"]["step"]
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{path} does not describe a checkpoint ({error!r}): {mend}") from error
    for name, expected in hashes.items():
        if not (folder / name).is_file() or sha256_file(folder / name) != expected:
            raise RequestError(f"{folder / name} is missing or damaged: {mend}")
    return Checkpoint(folder, meta)


def find_latest(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint that `latest` points to or, if it is damaged, the newest that is whole; and what is wrong with
    those that were passed over."""
    newest_first = sorted(root.glob("step_*"), reverse=True)
    newest_first.sort(key=lambda folder: folder != (root / "latest").resolve())  # stable: `latest` comes to the front
    problems = []
    for folder in newest_first:
        try:
            return inspect(folder), problems
        except RequestError as error:
            problems.append(str(error))
    return None, problems


def choose_start(root: Path, config: TrainConfig, global_batch: int) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint that `--resume` means (None: start afresh), and what is wrong with newer ones, if any.

    Raises:
        RequestError: it is damaged, or of another run.
    """
    if config.resume == "never":
        return None, []
    if config.resume == "auto":
        found, problems = find_latest(root)
    else:
        folder = Path(config.resume)
        if not folder.is_dir():
            raise RequestError(f"--resume {folder}: no such folder; give auto, never or a step_ folder of checkpoints/")
        found, problems = inspect(folder / "latest" if (folder / "latest").exists() else folder), []
    if found:
        refuse_other_run(found, config, global_batch)
    elif problems:
        raise RequestError(f"{problems[0]}; or begin anew with --resume never (the old run is set aside)")
    return found, problems


def refuse_other_run(checkpoint: Checkpoint, config: TrainConfig, global_batch: int) -> None:
    """Check that `config` continues the run that `checkpoint` is of.

    Raises:
        RequestError: it does not; the message lists the settings that differ.
    """
    saved = {**checkpoint.meta["settings"], "global batch": checkpoint.meta["progress"]["global_batch"]}
    asked = {**config.to_dict(), "global batch": global_batch}
    differing = [
        f"{name.replace('_', ' ')} was {saved.get(name)}, now {asked[name]}"
        for name in (*IDENTITY, "global batch")
        if saved.get(name) != asked[name]
    ]
    if differing:
        raise RequestError(
            f"{checkpoint.folder} is of another run: {'; '.join(differing)}. Give the old settings, or another "
            "--run-name, or --resume never to begin anew (the old run is set aside)"
        )


def update_best(root: Path, newest: Checkpoint) -> bool:
    """Point `best` at `newest` if its `val_loss_ema` is lower than that of the best so far. Says whether it did."""
    score, best = newest.meta["metrics"].get("val_loss_ema"), root / "best"
    if score is None:
        return False
    if best.exists():
        best_score = json.loads((best / "meta.json").read_text())["metrics"].get("val_loss_ema")
        if best_score is not None and score >= best_score:
            return False
    replace_link(best, newest.folder.name)
    return True


def prune(root: Path, keep_last: int, keep_every: int) -> list[str]:
    """Remove old checkpoints, except the newest `keep_last`, every `keep_every`-th epoch's, `best` and `latest`.

    Returns what could not be removed, as messages: that is no reason to stop training.
    """
    linked = {(root / name).resolve() for name in ("best", "latest")}
    problems = []
    for folder in sorted(root.glob("step_*"))[:-keep_last]:
        if folder.resolve() in linked or (keep_every and _completed_epoch(folder) % keep_every == 0):
            continue
        try:
            _remove(folder)
        except OSError as error:
            problems.append(f"old checkpoint {folder} could not be removed: {error.strerror or error}")
    return problems


def _completed_epoch(folder: Path) -> float:
    """The epoch that ended at this checkpoint; NaN, which divides by nothing, for one taken within an epoch."""
    progress = json.loads((folder / "meta.json").read_text())["progress"]
    return progress["epoch"] if progress["batch"] == 0 else float("nan")


def _remove(folder: Path) -> None:
    """Delete a checkpoint; its name goes first, so that half of it is never taken for one."""
    doomed = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    folder.rename(doomed)
    shutil.rmtree(doomed)


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


class Checkpoints:
    """The checkpoints of a run (main process only): writes new ones, removes old ones, and points out the best."""

    def __init__(
        self, root: Path, config: TrainConfig, plan: Plan, start: Checkpoint | None, log: Callable[[str, str], None]
    ) -> None:
        """`start` is the checkpoint that the run continues from, if any."""
        self._root, self._config, self._plan, self._log = root, config, plan, log
        self._saved_step = start.step if start else None
        self.unsaved: str | None = None  # why the latest one could not be written

    def save(self, trainer: Trainer, progress: Progress, row: dict[str, Any]) -> None:
        """Write a checkpoint. A failure is loud, but no reason to stop: the old ones still stand.

        Args:
            row: the figures of the epoch that has just ended; empty within an epoch.
        """
        config, plan, step = self._config, self._plan, progress.step
        if step == self._saved_step:  # asked to stop just after an epoch's checkpoint
            return
        epoch, batch = divmod(step, plan.steps_per_epoch)
        place = {"step": step, "images_seen": plan.images_seen(step), "epoch": epoch, "batch": batch}
        place |= {"global_batch": plan.global_batch, "world_size": plan.world_size}
        meta = {"run": config.run, "data": config.data, "settings": config.to_dict(), "metrics": row, "progress": place}
        state = {**trainer.state_dict(), "progress": progress.state_dict()}
        try:
            newest = write(self._root, state, trainer.ema.model, trainer.scheduler, meta)
        except (OSError, RuntimeError, SafetensorError) as error:  # a full disk, as three libraries put it
            self.unsaved = f"the checkpoint of step {step} could not be written: {error}"
            self._log(self.unsaved, "error")
            return
        self.unsaved, self._saved_step = None, step
        self._log(f"checkpoint: {newest.folder}", "info")
        self._tidy_up(newest)

    def _tidy_up(self, newest: Checkpoint) -> None:
        """Point out the best and remove the old. What goes wrong here costs no work, so it is only told."""
        try:
            if update_best(self._root, newest):
                self._log(f"best so far: {newest.folder.name}", "info")
            for problem in prune(self._root, self._config.keep_last, self._config.keep_every):
                self._log(problem, "warning")
        except (OSError, ValueError, KeyError) as error:
            self._log(f"could not tidy up {self._root}: {error!r}", "warning")
