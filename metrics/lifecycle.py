"""How a run begins, saves and ends; what it does in between is the loop of `train.py`."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

from ddpm.evaluation.in_training import InTrainingEvaluation
from ddpm.run.command import same_command
from ddpm.run.config import TrainConfig
from ddpm.run.errors import EXIT_STOPPED, ProcessesLost, RequestError, TrainingFailed
from ddpm.run.files import real
from ddpm.run.lock import RunLock
from ddpm.run.metrics import (
    CHECKPOINT_TIME_SEC,
    LOSS_MEAN,
    LR,
    METRICS,
    SAMPLE_TIME_SEC,
    VAL_LOSS,
    VAL_LOSS_EMA,
    Metric,
)
from ddpm.run.paths import RunPaths, find_run
from ddpm.run.signals import StopRequest
from ddpm.sampling.sheets import draw_samples, grid_labels, labelled_grid
from ddpm.training import data, soundness
from ddpm.training.checkpointing import Checkpoints
from ddpm.training.describe import describe_run
from ddpm.training.diffusion import Validation
from ddpm.training.early_stop import out_of_patience
from ddpm.training.identity import changes, identity_of
from ddpm.training.keeping import altered_settings
from ddpm.training.machine import hardware
from ddpm.training.machine.distributed import STARTING, DistContext, StopVote
from ddpm.training.machine.threads import Threads
from ddpm.training.model import flops_per_image
from ddpm.training.progress import Progress
from ddpm.training.resume import after_failure, later_pictures
from ddpm.training.schedule import TrainingSchedule
from ddpm.training.trainer import Trainer
from metrics.beginning import prepare_beginning
from metrics.criteria.course import Course
from metrics.criteria.in_training import changed, out_of_reach
from metrics.jobs.finished import bring_up_to_date
from metrics.run_logger import RunLogger
from metrics.tracker import loss_statistics

ENOUGH_LOSSES = 25  # from this many steps on, the mean loss of an unfinished epoch is judged


class RunLifecycle:
    """One process's part in a run: what it trains on, what has been learned, and how it begins and ends."""

    logger: RunLogger

    def __init__(self, config: TrainConfig, stop: StopRequest, world: DistContext, run_lock: RunLock) -> None:
        self.config, self.world, self.run_lock = config, world, run_lock
        self.paths = RunPaths(real(config.output_root), config.run)
        self.flops_per_image = flops_per_image(config)
        self.train_set, self.test_set = data.load(config, world)
        self.data_sha256, test_sha256 = data.agreed_sha256(self.train_set, self.test_set, world)
        images = data.images_per_epoch(config, len(self.train_set), self.train_set.num_classes)
        self.schedule = TrainingSchedule(config, world.world_size, images)
        steps = self.schedule.total_steps
        self.choices = hardware.choose(
            config, self.train_set.num_classes, world.device, self.flops_per_image, world.gather, steps
        ).for_test_images(len(self.test_set))
        self.identity = identity_of(config, self.schedule, self.train_set.class_names, self.data_sha256, test_sha256)
        self.vote = StopVote(stop, world)
        self.progress = Progress(world.device, self.schedule.global_batch)
        self.checkpoints: Checkpoints | None = None  # on the main process only
        self.blown_up: str | None = None  # why the losses of the latest row call the state unsound (main process only)

    # ---- beginning ---------------------------------------------------------------------------------------------------

    def prepare_start(self) -> None:
        """Decide where the run starts, and make a place for its files without writing over anything.

        Raises:
            RequestError: its checkpoints are damaged or of another run, or its files cannot be used.
        """
        self.start, self.was_finished, self.cause, self.notes = self.world.broadcast_result(
            lambda: prepare_beginning(self.paths, self.config, self.identity, self.world.restarted),
            here=self.world.is_main,
        )
        device = hardware.device_name(self.world.device)
        self.altered = altered_settings(self.start, self.config, self.choices.values(), device)
        rows = self.start.meta["history"] if self.start else []
        self.schedule.follow(self.schedule.reductions_by(rows))
        self.ended_early = self.reason_to_end(rows) if rows else None

    def reason_to_end(self, rows: Sequence[dict]) -> str | None:
        """Why the run should end before its last epoch, by the rows so far; None if it should not, or is at its end."""
        if rows[-1]["step"] >= self.schedule.total_steps:
            return None
        rows = self.schedule.whole_epochs(rows)
        config = self.config
        missed = config.stop_when and out_of_reach(config.criterion, self.course(rows))
        return out_of_patience(self.comparable(rows, METRICS[config.early_stop_metric]), config) or missed

    def course(self, rows: Sequence[dict], over: bool = False) -> Course:
        return Course(rows, self.schedule.epochs, over, altered=self.altered)

    def without_baseline(self) -> Iterator[str]:
        """Why the training log cannot compare this run with `--baseline` yet, if so."""
        if self.config.baseline is not None:
            try:
                find_run(self.config.baseline, self.paths.root)
            except RequestError as error:
                yield f"--baseline {self.config.baseline}: {error}; training_log.md compares with it once it is there"

    def nothing_to_do(self) -> int:
        """Say that the run is finished, and bring its files up to date with this command. Returns the exit code."""
        if not self.world.is_main:
            return 0
        limit = "--max-steps" if self.schedule.total_steps == self.config.max_steps else "--epochs"
        print(f"{self.config.run} is finished: {self.start.step} of {self.schedule.total_steps} steps are done; "
              f"{self.ended_early or f'raise {limit} to train on'}, or begin anew with --resume never")  # fmt: skip
        for remark in self.without_baseline():
            print(remark)
        return bring_up_to_date(self.paths, self.config)

    def build(self) -> None:
        """Build the model, and load the checkpoint that the run continues from."""
        config = self.config
        self.threads = Threads(self.world.device, self.world.gather)
        self.trainer = Trainer(config, self.train_set.class_names, self.choices, self.world)
        self.validation = Validation(config, self.test_set, self.choices.val_images, self.trainer.scheduler, self.world)
        if self.start:
            state, averages = self.start.load()
            self.notes += self.trainer.load_state_dict(state, averages)
            self.load_progress(state["progress"], self.start.meta["history"])
            self.notes += self.trainer.settle_average(self.progress.step // self.schedule.steps_per_epoch)
        self.progress.note_threads(self.threads.number)
        if self.world.is_main:
            self.open_files()
        self.evaluation = InTrainingEvaluation(config, self.train_set, self.test_set, self.world)
        self.progress.start_clock()

    def load_progress(self, state: dict[str, Any], rows: Sequence[dict]) -> None:
        """Continue where the checkpoint was saved; `rows` may have one of its last step that was made after that."""
        progress, schedule = self.progress, self.schedule
        progress.load_state_dict(state)
        if math.isnan(progress.lr) and progress.step:  # an older version did not keep it
            progress.lr = schedule.learning_rate(progress.step - 1)
        if rows and rows[-1]["step"] == progress.step != progress.row_step:
            progress.adopt_row(rows[-1], epoch_over=progress.step % schedule.steps_per_epoch == 0)

    def open_files(self) -> None:
        """Open the files of checkpoints and figures, and log what is trained (main process only)."""
        config, start = self.config, self.start
        description = describe_run(
            config, self.choices, self.world, self.schedule, self.flops_per_image, self.train_set, self.test_set,
            self.data_sha256, self.threads, self.progress.threads,
        )  # fmt: skip
        rows = start.meta["history"] if start else []
        notes = [*self.without_baseline(), *self.notes, *self.schedule.remarks()]
        self.logger.begin(description, self.progress.step, rows, self.cause, notes, self.altered)
        self.logger.manifest(description)
        self.logger.remarks(config.note)
        for note in later_pictures(self.paths, start):
            self.logger.log(note)
        if start:
            machine = {"device": hardware.device_name(self.world.device), "threads": self.threads.number}
            changed = "; ".join(changes(start, config, self.schedule, self.choices.values(), **machine)) or "nothing"
            self.logger.log(f"resumed from {start.folder.name}; changed since: {changed}")
            if start.unsound:
                self.logger.log(f"{start.folder.name} is unsound ({start.unsound}); it was asked for", "warning")
            self.blown_up = start.unsound
        self.checkpoints = Checkpoints(
            self.paths.checkpoints, config, self.schedule, self.identity, start, self.altered, self.logger.log,
            self.run_lock.check,
        )  # fmt: skip
        if start:
            self.save()  # here too, if --resume took it from another run's folder

    # ---- while it trains ---------------------------------------------------------------------------------------------

    def publish(self, phase: str, epoch: int, **figures: float | None) -> None:
        self.logger.progress(phase, epoch, self.progress.step, **figures)

    def publish_row(self, row: dict) -> None:
        """Publish an epoch's figures, and decide whether the state is unsound."""
        if self.world.is_main:
            judged = (metric.name for metric in (LOSS_MEAN, VAL_LOSS, VAL_LOSS_EMA))
            losses = {name: row[name] for name in judged if name in row}
            self.blown_up = soundness.blown_up(losses, self.comparable(self.logger.rows, LOSS_MEAN))
        self.logger.epoch(row)
        if self.world.is_main:
            if unsound := self.unsound:
                self.logger.log(f"after epoch {row['epoch']} the state is unsound: {unsound}", "warning")
            models = {"weights_live": self.trainer.model, "weights_ema": self.trainer.ema.model}
            self.logger.weights(row["epoch"], row["step"], models)
        if self.config.lr_schedule == "plateau":
            self.follow_plateau()
        if self.world.is_main:
            rows, over = self.logger.rows, self.ended_early is not None
            for line, severity in changed(self.config.criterion, self.course(rows, over)):
                self.logger.log(line, severity)

    def ends_early(self, row: dict) -> bool:
        """Is the run to end with this row, before its last epoch? Decided by the main process, for all."""
        if self.config.early_stop_patience or self.config.stop_when:

            def reason() -> str | None:
                return self.reason_to_end([*(each for each in self.logger.rows if each["epoch"] < row["epoch"]), row])

            self.ended_early = self.world.broadcast_result(reason, here=self.world.is_main)
        return self.ended_early is not None

    def follow_plateau(self) -> None:
        """Lower the learning rate, on every process, if the main process's rows ask for it."""
        known = len(self.schedule.reductions)
        self.schedule.follow(
            self.world.broadcast_result(lambda: self.schedule.reductions_by(self.logger.rows), here=self.world.is_main)
        )
        for lowered in self.schedule.reductions[known:] if self.progress.step < self.schedule.total_steps else ():
            rates = f"{LR.text(lowered.before)} → {LR.text(lowered.rate)}"
            self.logger.log(f"learning rate {rates} from step {lowered.step} on: {lowered.reason}")

    def save(self) -> None:
        """Begin to write a checkpoint of the current step (on the main process)."""
        if self.checkpoints:
            with self.progress.spending(CHECKPOINT_TIME_SEC):
                self.checkpoints.save(self.trainer, self.progress, self.logger.rows, self.unsound)

    @property
    def unsound(self) -> str | None:
        """Why the present state is unsound, judged by its steps and losses (main process only); None if it is sound."""
        progress, unsound = self.progress, self.trainer.record.unsound or self.blown_up
        if unsound or len(progress.losses) < ENOUGH_LOSSES:
            return unsound
        so_far = loss_statistics(progress.losses, progress.grad_norms)
        earlier = self.comparable(self.logger.rows, LOSS_MEAN)
        return soundness.blown_up({LOSS_MEAN.name: float(so_far[LOSS_MEAN])}, earlier)

    def comparable(self, rows: Sequence[dict], metric: Metric) -> Sequence[dict]:
        """The rows whose figure was measured with the settings of now."""
        return rows[metric.comparable_from(self.altered) :]

    def draw_samples(self, epoch: int) -> bool:
        """Draw a grid of generated images with the averaged weights, unless it is there (every process calls it).

        False if asked to stop meanwhile.
        """
        path = self.paths.sample_grid(self.config.data_name, epoch + 1)
        if self.world.broadcast_result(path.exists, here=self.world.is_main):
            return True
        self.publish("sampling", epoch)
        model, scheduler, names = self.trainer.ema.model, self.trainer.scheduler, self.train_set.class_names
        labels = grid_labels(len(names), self.choices.samples_per_class)
        with self.trainer.autocast(), self.progress.spending(SAMPLE_TIME_SEC):
            drawn = draw_samples(self.config, model, scheduler, labels, self.world, interrupted=self.vote.passed)
        if drawn is not None and self.world.is_main:
            picture = labelled_grid(self.config, names, labels, drawn, epoch + 1)
            self.logger.samples(path, drawn, labels, names, picture, self.progress.step)
        return drawn is not None

    # ---- ending ------------------------------------------------------------------------------------------------------

    def finished(self) -> int:
        self.vote.close()
        self.world.expect_answers_within(STARTING)  # process 0 may wait for a slow disk
        unsaved = self.last_checkpoint()
        unsound = self.world.broadcast_result(lambda: self.unsound or self.checkpoints.unsound, here=self.world.is_main)
        if unsound and not unsaved:
            return self.failed(TrainingFailed(f"trained to the end, but the state is unsound: {unsound}"))
        if self.config.export and self.world.is_main and not unsaved:
            self.logger.export(self.world.device)
        return self.logger.end("failed" if unsaved else "finished", 1 if unsaved else 0, unsaved or self.ended_early)

    def stopped(self) -> int:
        """End a run that was asked to stop. It saves first: the cluster may give no more than half a minute."""
        self.vote.close()
        self.publish("saving", max(math.ceil(self.progress.step / self.schedule.steps_per_epoch) - 1, 0))
        self.save()
        if unsaved := self.last_checkpoint():
            return self.logger.end("failed", 1, unsaved)
        code = 0 if "TORCHELASTIC_RUN_ID" in os.environ else EXIT_STOPPED  # torchrun calls any code but 0 a failure
        way = f"{same_command(self.config.resume)} to continue"
        if self.world.is_main and (unsound := self.unsound or self.checkpoints.unsound):
            way = f"the state is unsound: {unsound}; {after_failure(self.config, self.paths, self.world)}"
        return self.logger.end("stopped", code, f"{self.vote.reason}; {way}", retry=True)

    def failed(self, error: TrainingFailed) -> int:
        self.last_checkpoint()
        return self.logger.end("failed", 1, f"{error}; {after_failure(self.config, self.paths, self.world)}")

    def crashed(self, error: Exception) -> None:
        self.last_checkpoint()
        refused = isinstance(error, RequestError)  # the same command would fail again
        why = str(error) if refused or isinstance(error, ProcessesLost) else f"{type(error).__name__}: {error}"
        self.logger.end("failed", 2 if refused else 1, why, retry=not refused, report=False)

    def last_checkpoint(self) -> str | None:
        """Wait for the checkpoint that is being written. Returns why the latest could not be, if so."""
        if self.checkpoints:
            self.checkpoints.wait()
            return self.checkpoints.unsaved
        return None
