"""The number of steps of a run, and the learning rate of each, for any number of processes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ddpm.run.config import TrainConfig, preset
from ddpm.run.config.rules import beyond_the_end, without_effect
from ddpm.run.errors import RequestError
from ddpm.run.format import plural
from ddpm.run.metrics import METRICS

PLATEAU = ("plateau_metric", "plateau_factor", "plateau_patience", "plateau_cooldown", "plateau_lowest")  # settings
THRESHOLD = 1e-4  # smallest relative improvement that counts, as in torch
NEGLIGIBLE = 1e-8  # smallest change of the learning rate that is made, as in torch


@dataclass(frozen=True)
class Reduction:
    """From `step` on, after `epoch`, the learning rate is `rate`, which was `before`; `reason` in words."""

    step: int
    epoch: int
    before: float
    rate: float
    reason: str


def plateau_reductions(
    rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], peak: float, steps_per_epoch: int
) -> list[Reduction]:
    """The reductions of the learning rate, by the rule of torch.optim.lr_scheduler.ReduceLROnPlateau with a relative
    threshold. A function of the published rows alone, so it is the same when a run is resumed and on every process.

    Args:
        rows: of all epochs so far; those without the figure do not count, nor does one that `--max-steps` cut short,
            as it is trained to its end when the run is continued.
        settings: those of `PLATEAU`.
        peak: the learning rate before the first reduction.
    """
    name, factor, patience, cooldown, lowest = (settings[each] for each in PLATEAU)
    metric, rate, found = METRICS[name], peak, []
    best, best_epoch, bad, resting = None, 0, 0, 0
    for row in rows:
        value = metric.of(row)
        if value is None or not row.get("step") or row["step"] % steps_per_epoch:
            continue
        margin = 1 + THRESHOLD if metric.larger_is_better else 1 - THRESHOLD
        if best is None or (value > best * margin if metric.larger_is_better else value < best * margin):
            best, best_epoch, bad = value, row["epoch"], 0
        else:
            bad += 1
        if resting:
            resting, bad = resting - 1, 0
        if bad <= patience:
            continue
        resting, bad, lowered = cooldown, 0, max(rate * factor, lowest)
        if rate - lowered > NEGLIGIBLE:
            why = f"{name} has not improved on {metric.text(best)} (epoch {best_epoch}) by epoch {row['epoch']}"
            found.append(Reduction(row["step"], row["epoch"], rate, lowered, why))
            rate = lowered
    return found


@dataclass(frozen=True)
class TrainingSchedule:
    """The run in global batches: every process takes `images_per_step` images of each, in `grad_accum` passes.

    `reductions`: of the plateau schedule so far, the same on every process.
    """

    config: TrainConfig
    world_size: int
    train_images: int
    reductions: list[Reduction] = field(default_factory=list, compare=False)

    def __post_init__(self) -> None:
        if self.global_batch > self.train_images:
            raise RequestError(
                f"--batch-size {self.config.batch_size} times --grad-accum {self.config.grad_accum} on "
                f"{plural(self.world_size, 'process')} is a global batch of {self.global_batch}, but there are only "
                f"{plural(self.train_images, 'training image')}: take a smaller batch"
            )
        config, total = self.config, self.total_steps
        if config.lr_schedule == "plateau" and config.plateau_lowest >= self.peak_lr:
            raise RequestError(
                f"--plateau-lowest {config.plateau_lowest:g}: must be below the learning rate, {self.peak_lr:g}, or "
                "nothing is ever lowered"
            )
        if config.warmup_steps >= total and config.warmup_steps != self._usual.warmup_steps:
            raise RequestError(
                f"--warmup-steps {config.warmup_steps}: the run has only {plural(total, 'step')}, so the learning rate "
                "would never reach its peak: give fewer, or 0"
            )
        if beyond := beyond_the_end(config.parsed_criteria, self.epochs, f"--max-steps {config.max_steps}"):
            raise RequestError(beyond)
        if config.lr_schedule == "cosine_restarts" and config.lr_cycles > total:
            raise RequestError(f"--lr-cycles {config.lr_cycles}: the run has only {plural(total, 'step')}: give fewer")

    def remarks(self) -> list[str]:
        """Settings that do nothing, or what the user may not expect, a line each."""
        config, total = self.config, self.total_steps
        planned, whole = config.epochs * self.steps_per_epoch, total // self.steps_per_epoch
        found = list(without_effect(config, self._usual))
        if config.warmup_steps >= total:
            found.append(
                f"the preset's --warmup-steps {config.warmup_steps} are more than the {plural(total, 'step')} of the "
                "run: the learning rate never reaches its peak; give fewer, or 0"
            )
        if config.lr_schedule == "plateau" and config.plateau_patience >= self.epochs - 1:
            few = f"the run is too short for the learning rate to be lowered ({plural(self.epochs, 'epoch')})"
            found.append(f"--plateau-patience {config.plateau_patience}: {few}")
        if config.max_steps and config.max_steps > planned:
            found.append(f"--max-steps {config.max_steps} does nothing: --epochs {config.epochs} end at step {planned}")
        if config.max_steps and whole < min(config.swa_start_epoch, config.epochs):
            found.append(
                f"--swa-start-epoch {config.swa_start_epoch}: --max-steps ends the run before, in epoch {self.epochs}"
            )
        if config.max_steps and config.lr_schedule == "step" and total <= config.lr_step_epochs * self.steps_per_epoch:
            found.append(f"--lr-step-epochs {config.lr_step_epochs:g}: --max-steps ends the run before the first decay")
        return found

    @property
    def _usual(self) -> TrainConfig:
        """The settings of the preset and recipe, which nobody has typed."""
        return preset(self.config.preset, recipe=self.config.recipe)

    @property
    def global_batch(self) -> int:
        return self.config.images_per_step * self.world_size

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in the training set; the last incomplete one is left out of each epoch."""
        return self.train_images // self.global_batch

    @property
    def total_steps(self) -> int:
        planned = self.config.epochs * self.steps_per_epoch
        return min(planned, self.config.max_steps or planned)

    @property
    def epochs(self) -> int:
        """Epochs that are begun; `--max-steps` can make them fewer than `--epochs` and the last one shorter."""
        return math.ceil(self.total_steps / self.steps_per_epoch)

    def epoch_end(self, epoch: int) -> int:
        """The step count at which `epoch` (from 0) is over."""
        return min((epoch + 1) * self.steps_per_epoch, self.total_steps)

    def images_seen(self, step: int) -> int:
        return step * self.global_batch

    @property
    def peak_lr(self) -> float:
        return scaled_lr(self.config, self.global_batch)

    def learning_rate(self, step: int) -> float:
        """The learning rate of the step that follows `step` others: linear warm-up, times the schedule's factor.

        It depends on the global batch, but not on the number of processes that share it.
        """
        config = self.config
        warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
        return self.peak_lr * warmup * self._schedule(step)

    def _schedule(self, step: int) -> float:
        config = self.config
        match config.lr_schedule:
            case "cosine":
                return _half_cosine(step / self.total_steps)
            case "cosine_restarts":
                return _half_cosine(step * config.lr_cycles / self.total_steps % 1)
            case "step":
                done = round(step / self.steps_per_epoch / config.lr_step_epochs, 9)  # 0.3 / 0.1 is a little below 3
                return config.lr_step_factor ** int(done)
            case "plateau":
                lowered = (each.rate for each in reversed(self.reductions) if each.step <= step)
                return next(lowered, self.peak_lr) / self.peak_lr
            case _:
                return 1.0

    def whole_epochs(self, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The rows without that of an epoch which `--max-steps` cut short: it is trained to its end later."""
        return [row for row in rows if row["step"] % self.steps_per_epoch == 0]

    def follow(self, reductions: Sequence[Reduction]) -> None:
        """Take over the reductions of the plateau schedule up to now."""
        self.reductions[:] = reductions

    def reductions_by(self, rows: Sequence[Mapping[str, Any]]) -> list[Reduction]:
        """The reductions that the rows ask for; none with another schedule."""
        if self.config.lr_schedule != "plateau":
            return []
        return plateau_reductions(rows, vars(self.config), self.peak_lr, self.steps_per_epoch)


def scaled_lr(config: TrainConfig, global_batch: int) -> float:
    """`--lr`, scaled by the global batch as `--scale-lr` asks for it."""
    larger = global_batch / config.usual_batch
    return config.lr * {"none": 1.0, "linear": larger, "sqrt": math.sqrt(larger)}[config.scale_lr]


def _half_cosine(done: float) -> float:
    """From 1 to 0 as `done` goes from 0 to 1."""
    return 0.5 * (1 + math.cos(math.pi * done))
