"""Facade over everything a run logs: console, CSV and JSON files, TensorBoard, samples, report.

Every process has a `RunLogger`; on ranks other than 0 it only samples the GPUs of its node. A file that cannot be
written is logged as an error, and training goes on. Pages are imported when they are written, so that the first step
does not wait for pandas and matplotlib.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from PIL import Image

from ddpm.export import evaluation_or_damage
from ddpm.run.files import atomic_write
from ddpm.run.metrics import Metric
from ddpm.run.paths import REPORTED, RunPaths
from ddpm.sampling.export import export
from ddpm.sampling.load import load_model
from ddpm.sampling.sheets import npz, png
from ddpm.training.describe import in_words
from ddpm.training.machine.distributed import DistContext
from ddpm.training.machine.hardware import device_name, gpu_uuid
from ddpm.training.schedule import TrainingSchedule
from metrics.live.cost import cost_so_far, cost_words
from metrics.live.logger import PrettyLogger
from metrics.loggers.group import LoggerGroup
from metrics.loggers.manifest import add_start, manifest_entry
from metrics.note.notes import add_notes_of_command
from metrics.starts import why_started
from metrics.tracker import MetricsTracker


class RunLogger:
    """Facade over everything a run logs. A context; every process makes one."""

    def __init__(self, paths: RunPaths, schedule: TrainingSchedule, world: DistContext) -> None:
        gpus = world.gather((world.node, gpu_uuid(world.device)))
        fields = {
            "data": schedule.config.data_name, "world_size": world.world_size, "nodes": world.nodes,
            "epochs": schedule.epochs, "total_steps": schedule.total_steps,
            "device": device_name(world.device), "gpus": len({gpu for gpu in gpus if gpu[1]}),
        }  # fmt: skip
        here = list(dict.fromkeys(uuid for node, uuid in gpus if uuid and node == world.node))  # may share one
        self._hosts = list(dict.fromkeys(node for node, _ in gpus))
        self.paths, self._schedule = paths, schedule
        self._logger = PrettyLogger(
            paths, fields, rank=world.rank, local_rank=world.local_rank, node=world.node, gpu_uuids=here
        )
        self.log = self._logger.log
        self._tracker: MetricsTracker | None = None

    def __enter__(self) -> Self:
        self._logger.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._logger.__exit__(kind, error, trace)

    def begin(
        self, description: dict[str, Any], step: int, rows: Sequence[dict[str, Any]], cause: str, notes: Sequence[str],
        altered: Mapping[str, int],
    ) -> None:  # fmt: skip
        """Log what is trained on what, and open the files of metrics (main process only).

        Args:
            description: settings, environment, data and model, as in the JSON file.
            step: where this start begins.
            rows: of the epochs before.
            cause: how the previous start ended, if there was one.
            notes: warnings about files that were found.
            altered: settings that have changed during the run, as `Metric.comparable_from` takes them.
        """
        for line in in_words(description):
            self.log(line)
        for note in notes:
            self.log(note, "warning")
        images = self._schedule.images_seen(step)
        done = rows[-1]["epoch"] if rows else 0
        self._logger.set_progress(start_step=step, start_images=images, epoch=done, step=step, images_seen=images)
        self._tracker = MetricsTracker(self.paths, description, step, rows, cause, altered)
        why = why_started(self._tracker.starts[-1]["cause"])
        self.log(f"begins at step {step} of {self._schedule.total_steps} ({why})", "success")
        self._loggers = LoggerGroup(self.paths, description, images, self.log)

    def manifest(self, description: dict[str, Any]) -> None:
        """Add this start to `manifest.json`: its software, machine and `description` (main process only)."""
        with self._logger.going_on("the manifest", "warning"):
            entry = manifest_entry(description, self._hosts)
            if aside := add_start(self.paths.manifest, entry):
                self.log(f"{self.paths.manifest.name} could not be read: it is now {aside.name}", "warning")

    def remarks(self, texts: Sequence[str]) -> None:
        """Add what a person remarked with `--note` (main process only)."""
        with self._logger.going_on("the notes", "warning"):
            for note in add_notes_of_command(self.paths, texts):
                self.log(f"note: {note}")

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of all epochs so far."""
        return self._tracker.rows

    def progress(self, phase: str, epoch: int, step: int, **figures: float | None) -> None:
        """Publish where the run is, `epoch` counted from 0. With `figures` this is a progress line, else a phase."""
        first, schedule = epoch * self._schedule.steps_per_epoch, self._schedule
        self._logger.set_progress(
            phase=phase, epoch=epoch + 1, batch=step - first, batches=schedule.epoch_end(epoch) - first, step=step,
            images_seen=schedule.images_seen(step), **figures,
        )  # fmt: skip

    def cost(self) -> dict[Metric, float | None]:
        """GPU-hours and energy so far (empty on processes other than the main one)."""
        if self._tracker:
            with self._logger.going_on("what the run has cost"):
                self._logger.flush()  # the GPU-hours are read from the status
                return cost_so_far(self.paths)
        return {}

    def epoch(self, row: dict[str, Any]) -> None:
        """Publish the row of an epoch that is done."""
        if self._tracker:
            with self._logger.going_on("the epoch's metrics"):
                row = self._tracker.add_epoch(row)  # with all columns
                self._loggers.log_metrics(row)
        self._logger.log_epoch_summary(row)
        if self._tracker:
            self._write_training_log()  # after the epoch's event, from which it takes the time

    def weights(self, epoch: int, step: int, models: dict[str, torch.nn.Module]) -> None:
        """Log histograms of the weights of `models`, if they are due (main process only; `epoch` from 1)."""
        if self._loggers.weights_due(epoch, self._schedule.epochs):
            with self._logger.going_on("the histograms of the weights"):
                named = {
                    f"{kind}/{name}": weight
                    for kind, model in models.items()
                    for name, weight in model.named_parameters()
                }
                self._loggers.log_weights(named, self._schedule.images_seen(step))

    def samples(
        self, path: Path, pixels: np.ndarray, labels: torch.Tensor, class_names: Sequence[str], picture: Image.Image,
        step: int,
    ) -> None:  # fmt: skip
        """Write a sample grid to `path`, and beside it (`.npz`) its images, `pixels` uint8 [N, H, W], their `labels`
        int64 [N], and the names of all classes."""
        with self._logger.going_on("the sample grid"):
            atomic_write(path.with_suffix(".npz"), npz(x=pixels, y=labels.numpy(), names=np.array(class_names)))
            atomic_write(path, png(picture))  # last: if it is there, so is the other
            self._loggers.log_samples(picture, self._schedule.images_seen(step))
            self.log(f"samples: {path}")

    def export(self, device: torch.device) -> None:
        """Export the best checkpoint as a folder that diffusers loads; its pictures are sampled on `device`."""
        self._logger.set_progress(phase="exporting")
        with self._logger.going_on(f"the export (later: {self.paths.command('python -m ddpm.export')})"):
            evaluation, damage = evaluation_or_damage(self.paths)
            if damage:
                self.log(f"the model card has no evaluation: {self.paths.evaluation} is damaged ({damage})", "warning")
            trained = load_model(str(self.paths.checkpoints), device, self.paths.root)
            export(trained, evaluation=evaluation, damage=damage)

    def end(self, state: str, code: int, message: str | None = None, retry: bool = False, report: bool = True) -> int:
        """Publish how the run ended and where its files are, and write the report. Returns the exit code.

        Args:
            retry: may the same command get further?
            report: write the report?
        """
        self._logger.set_progress(retry=retry)
        if self._tracker:
            with self._logger.going_on("the metrics"):
                self._loggers.finalize(state, self._tracker.write(state)["summary"])
            outdated = REPORTED  # files of an earlier start, unless the report is written now
            if report:
                self._logger.set_progress(phase="reporting", state=state, exit_code=code, message=message)
                self._logger.flush()  # the report tells of this status
                again = f"(later: {self.paths.command('python -m metrics.report')})"
                with self._logger.going_on(f"the report {again}"):
                    from metrics.report import write_report

                    write_report(self.paths)
                    outdated = ()
                if outdated:
                    message = "; ".join(filter(None, (message, f"its report could not be written {again}")))
            with self._logger.going_on("what the run cost"):
                self.log(f"cost so far: {cost_words(cost_so_far(self.paths))}")
            for label, path in self.paths.artifacts().items():
                if label not in outdated:
                    self.log(f"{label}: {self.paths.root / path}")
        self._logger.stop(state, code, message)
        if self._tracker:
            self._write_training_log()  # again, as only now the status says how the run ended
        return code

    def _write_training_log(self) -> None:
        with self._logger.going_on(f"the training log (later: {self.paths.command('python -m metrics.training_log')})"):
            from metrics.training_log.log import write_training_log

            write_training_log(self.paths)
