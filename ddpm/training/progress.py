"""Where a run stands: steps done, the current epoch's losses, and time, over all starts of the run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ddpm.run.metrics import (
    CHECKPOINT_TIME_SEC,
    EPOCH_TIME_SEC,
    EVAL_TIME_SEC,
    METRICS,
    SAMPLE_TIME_SEC,
    TOTAL_TIME_SEC,
    TRAIN_IMAGES,
    TRAIN_TIME_SEC,
    VAL_TIME_SEC,
    Metric,
)
from ddpm.training.machine.hardware import synchronize

SPENT = (VAL_TIME_SEC, EVAL_TIME_SEC, SAMPLE_TIME_SEC, CHECKPOINT_TIME_SEC)  # an epoch's times besides training


class Progress:
    """Counts steps and time. Training time leaves out the first step after a start (which compiles), validation,
    sampling and checkpoints; the images counted against it are those of the steps it covers."""

    def __init__(self, device: torch.device, global_batch: int) -> None:
        self._device, self._global_batch = device, global_batch
        self.step = 0
        self.row_step = 0  # the step at which the latest epoch's row was made
        self.lr = float("nan")  # learning rate of the latest step
        self.warm = False  # has this process made its first step?
        self.recent_images_per_sec = float("nan")  # over the steps between the last two notes
        self.threads: list[dict[str, int | None]] = []  # on a CPU: how many, from which step on
        self._elapsed_before = 0.0  # seconds of earlier starts
        self._clock = time.monotonic()
        self._epoch_began = self._row_at = 0.0  # `elapsed` at the last two rows
        self._reset_epoch()

    def _reset_epoch(self) -> None:
        self._spent = dict.fromkeys(SPENT, 0.0)
        self.losses: list[float] = []
        self.grad_norms: list[float] = []
        self._train_sec, self._train_images = 0.0, 0
        self._since, self._untimed_images = time.monotonic(), 0

    def start_clock(self) -> None:
        """Training begins: count time from now on."""
        self._clock = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, over all starts, with everything that is done between steps."""
        return self._elapsed_before + time.monotonic() - self._clock

    @contextmanager
    def spending(self, column: Metric) -> Iterator[None]:
        """Context manager: adds the time to `column`, one of `SPENT`, and leaves it out of the training time."""
        began = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - began
            self._spent[column] += spent
            self._since += spent

    def resume_timing(self) -> None:
        """Time the steps that follow from here on: something else was done before."""
        self._since = time.monotonic()

    def count_step(self) -> bool:
        """Count a step that was issued to the device. For the first one of this process, waits for it and returns
        True."""
        self.step += 1
        if self.warm:
            self._untimed_images += self._global_batch
            return False
        synchronize(self._device)
        self.warm, self._since = True, time.monotonic()
        return True

    def note(self, losses: np.ndarray, grad_norms: np.ndarray) -> None:
        """Add losses and gradient norms, float64 [steps] each, of the steps that the device has just finished."""
        self.losses.extend(losses.tolist())
        self.grad_norms.extend(grad_norms.tolist())
        now = time.monotonic()
        if self._untimed_images:
            self.recent_images_per_sec = self._untimed_images / (now - self._since)
            self._train_sec += now - self._since
            self._train_images += self._untimed_images
        self._since, self._untimed_images = now, 0

    def note_threads(self, number: int | None) -> None:
        """Record the number of torch's threads for the coming steps (None on a GPU). Another number adds in another
        order, which changes results in their last bits."""
        if [each["threads"] for each in self.threads[-1:]] != [number]:
            self.threads.append({"step": self.step, "threads": number})

    def end_row(self, epoch_over: bool) -> None:
        """The row of the epoch so far is made; if the epoch is over, its figures are reset."""
        self.row_step = self.step
        if epoch_over:
            self._epoch_began = self._row_at
            self._reset_epoch()

    def adopt_row(self, row: dict[str, Any], epoch_over: bool) -> None:
        """As `end_row`, with a row that was added to the checkpoint after its state had been saved."""
        self._elapsed_before = self._row_at = max(self._elapsed_before, TOTAL_TIME_SEC.of(row) or 0.0)
        self.end_row(epoch_over)

    @property
    def images_per_sec(self) -> float:
        """Images per second of the whole job over this epoch's training time; NaN before there is any."""
        return self._train_images / self._train_sec if self._train_sec else float("nan")

    def times(self) -> dict[Metric, float | int]:
        """The times of the row that is made now. `epoch_time_sec` is measured from row to row, so that the sum over all
        rows is `total_time_sec`."""
        now = self._row_at = self.elapsed
        return {
            EPOCH_TIME_SEC: now - self._epoch_began,
            TOTAL_TIME_SEC: now,
            TRAIN_TIME_SEC: self._train_sec,
            TRAIN_IMAGES: self._train_images,
            **self._spent,
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "row_step": self.row_step,
            "lr": self.lr,
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "grad_norms": torch.tensor(self.grad_norms, dtype=torch.float64),
            "train_sec": self._train_sec,
            TRAIN_IMAGES.name: self._train_images,
            "elapsed": self.elapsed,
            "epoch_began": self._epoch_began,
            "spent": {metric.name: seconds for metric, seconds in self._spent.items()},
            "threads": list(self.threads),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.row_step = state["step"], state["row_step"]
        self.losses, self.grad_norms = state["losses"].tolist(), state["grad_norms"].tolist()
        self._train_sec, self._train_images = state["train_sec"], state[TRAIN_IMAGES.name]
        self._spent |= {METRICS[name]: seconds for name, seconds in state.get("spent", {}).items()}
        self.lr = state.get("lr", float("nan"))
        self.threads[:] = state.get("threads", [])
        self._elapsed_before, self._epoch_began = state["elapsed"], state["epoch_began"]
