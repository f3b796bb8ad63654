"""Saving checkpoints while training goes on: the state is copied to host memory, and a thread writes the copy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ddpm.run.config import TrainConfig
from ddpm.run.files import real
from ddpm.training.checkpoint import Checkpoint, Contents, amend, write
from ddpm.training.keeping import prune, update_best
from ddpm.training.machine.hardware import device_name, synchronize
from ddpm.training.optimizers import HIDDEN
from ddpm.training.progress import Progress
from ddpm.training.schedule import TrainingSchedule
from ddpm.training.trainer import Trainer


class Checkpoints:
    """The checkpoints of a run (main process only): writes new ones, removes old ones, and keeps the link `best`.

    Training waits while the state is copied to host memory, and first for the checkpoint before it: one is written at
    a time.
    """

    def __init__(
        self,
        root: Path,
        config: TrainConfig,
        schedule: TrainingSchedule,
        identity: dict[str, Any],
        start: Checkpoint | None,
        altered: Mapping[str, int],
        log: Callable[[str, str], None],
        ours: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            identity: as `identity_of` in identity.py returns it.
            start: the checkpoint that the run continues from, if any.
            altered: as `altered_settings` in keeping.py returns it.
            log: called with each message and its level (info, warning or error).
            ours: raises OSError if another process has taken the run over.
        """
        self._root, self._config, self._schedule, self._identity = root, config, schedule, identity
        self._log, self._ours, self.altered = log, ours, altered
        self._saved: tuple[int, int] | None = None  # step of the latest checkpoint, and number of rows in it
        self.unsound: str | None = None  # why the state of the latest one is not worth continuing from
        if start and real(start.folder.parent) == real(root):
            self._saved, self.unsound = (start.step, len(start.meta["history"])), start.unsound
        self._saved_at = time.monotonic()
        self._copy = HostCopy()
        self._writer: threading.Thread | None = None
        self.unsaved: str | None = None  # why the latest one could not be written

    @property
    def overdue(self) -> bool:
        """Has it been `--checkpoint-minutes` since the last one, and is that one written?"""
        minutes = self._config.checkpoint_minutes
        if self._writer and self._writer.is_alive():  # a slow disk: other processes do not wait for it
            return False
        return minutes > 0 and time.monotonic() - self._saved_at > 60 * minutes

    def save(
        self, trainer: Trainer, progress: Progress, rows: list[dict[str, Any]], unsound: str | None = None
    ) -> None:
        """Copy the state and begin to write it. A failure is logged, but training goes on: older checkpoints remain.

        Args:
            rows: the figures of all epochs so far.
            unsound: why losses or skipped steps show that the state is unsound (see `ddpm/training/soundness.py`).
        """
        self.wait()
        step = progress.step
        if self._saved == (step, len(rows)):  # asked to stop just after an epoch's checkpoint
            return
        known = {
            "metrics": rows[-1] if rows and rows[-1]["step"] == step else {},
            "history": list(rows),
            "unsound": unsound,
        }
        if self._saved and self._saved[0] == step:  # saved at a stop, before the epoch's figures were known
            known["unsound"] = unsound or self.unsound
            now = self._meta(trainer, progress)  # by which the figures were measured
            known |= {name: now[name] for name in ("settings", "used", "progress")}
            self._begin(step, len(rows), partial(amend, self._root / f"step_{step:08d}", self._ours, **known))
            return
        state = {**trainer.state_dict(), "progress": progress.state_dict()}
        models = trainer.averages() | trainer.power_averages()
        state, averages = self._copy([state, {name: model.state_dict() for name, model in models.items()}])
        meta = self._meta(trainer, progress) | known
        if power := state["power_ema"]:
            meta["power_ema"] = {"updates": int(power["updates"]), "first_step": power["first_step"]}
        contents = Contents(state, averages, trainer.ema.model, trainer.scheduler, meta)
        self._begin(step, len(rows), partial(write, self._root, contents, self._ours))

    def _meta(self, trainer: Trainer, progress: Progress) -> dict[str, Any]:
        """What meta.json says of the run, and of where it stands (see checkpoints/README.md)."""
        config, schedule, step = self._config, self._schedule, progress.step
        epoch, batch = divmod(step, schedule.steps_per_epoch)
        return {
            "run": config.run,
            "data": config.data_name,
            "class_names": list(trainer.class_names),
            "identity": self._identity,
            "settings": config.to_dict(),
            "used": trainer.choices.values(),
            "progress": {
                "step": step,
                "images_seen": schedule.images_seen(step),
                "epoch": epoch,
                "batch": batch,
                "global_batch": schedule.global_batch,
                "world_size": schedule.world_size,
                "altered": self.altered,
                "device": device_name(trainer.world.device),
                "threads": progress.threads[-1]["threads"] if progress.threads else None,
                "lr": _next_lr(schedule, step),
            },
        }

    def wait(self) -> None:
        """Wait until the checkpoint that is being written, if any, is complete or has failed."""
        if self._writer:
            self._writer.join()
            self._writer = None

    def _begin(self, step: int, rows: int, task: Callable[[], Checkpoint]) -> None:
        self._saved_at = time.monotonic()
        self._writer = threading.Thread(target=self._write, args=(step, rows, task), name="checkpoint", daemon=True)
        self._writer.start()

    def _write(self, step: int, rows: int, task: Callable[[], Checkpoint]) -> None:
        try:
            newest = task()
        except Exception as error:  # usually a full disk, for which three libraries have three types of error
            why = error if isinstance(error, OSError) else f"is the disk or the quota full? ({error!r})"
            first = self.unsaved is None
            self.unsaved = f"the checkpoint of step {step} could not be written: {why}"
            again = "; training goes on, older checkpoints are intact, and the next one will be tried"
            self._log(self.unsaved + (again if first else ""), "error" if first else "info")
            return
        self.unsaved, self.unsound, self._saved = None, newest.unsound, (step, rows)
        if newest.unsound:
            latest = self._root / "latest"
            where = f"`latest` stays at {real(latest).name}" if latest.exists() else "there is no sound one yet"
            self._log(f"checkpoint: {newest.folder} is unsound ({newest.unsound}); {where}", "warning")
        else:
            self._log(f"checkpoint: {newest.folder}", "info")
        self._tidy_up(newest)

    def _tidy_up(self, newest: Checkpoint) -> None:
        """Update the link `best` and remove old checkpoints. Errors lose no work here, so they are only logged."""
        try:
            if update_best(self._root, self._config) == newest.folder:
                self._log(f"best so far: {newest.folder.name}", "info")
            for problem in prune(self._root, self._config.keep_last, self._config.keep_every):
                self._log(problem, "warning")
        except OSError as error:
            self._log(f"could not tidy up {self._root}: {error!r}", "warning")


class HostCopy:
    """Copies nested tensors to host memory, which later calls use again (page-locked for a GPU)."""

    def __init__(self) -> None:
        self._places: dict[str, torch.Tensor] = {}

    def __call__(self, tree: Any) -> Any:
        """`tree` (dicts and lists) with every tensor replaced by its copy, which is valid until the next call."""
        pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        copied = self._placed(tree, "", pairs)
        if pairs:
            places, tensors = zip(*pairs, strict=True)
            torch._foreach_copy_(places, tensors, non_blocking=True)
            for device in {tensor.device for tensor in tensors}:
                synchronize(device)
        return copied

    def _placed(self, tree: Any, name: str, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> Any:
        if isinstance(tree, dict):
            return {key: self._placed(value, f"{name}/{key}", pairs) for key, value in tree.items()}
        if isinstance(tree, list):
            return [self._placed(value, f"{name}/{index}", pairs) for index, value in enumerate(tree)]
        if not isinstance(tree, torch.Tensor):
            return tree
        place = self._places.get(name)
        if place is None or (place.shape, place.dtype) != (tree.shape, tree.dtype):
            place = self._places[name] = _host_memory(tree)
        pairs.append((place, tree))
        return place


def _host_memory(like: torch.Tensor) -> torch.Tensor:
    """Host memory for a tensor, page-locked if the tensor is on a GPU and the system allows as much."""
    if like.is_cuda:
        with suppress(RuntimeError):
            return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)
    return torch.empty(like.shape, dtype=like.dtype)


def _next_lr(schedule: TrainingSchedule, step: int) -> dict[str, float]:
    """The learning rate of the next step after `step` steps, or of the last step: resuming compares it."""
    step = min(step, schedule.total_steps - 1)
    muon = {"hidden": HIDDEN} if schedule.config.optimizer == "muon" else {}
    return {"step": step, "rate": schedule.learning_rate(step), **muon}
