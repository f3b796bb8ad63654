"""Train a class-conditional diffusion model (DDPM) of handwritten characters: settings → data → model → loop → report.

    python train.py --preset tiny --data glyphs            one process: a GPU if there is one, else the CPU
    torchrun --standalone --nproc_per_node=4 train.py      one process per GPU
    sbatch submit.sh                                       the same on a Slurm cluster

Where to change what: settings in ddpm/run/config/, figures in ddpm/run/metrics.py, data sets in ddpm/data/; under
ddpm/training/, images and their order in data.py, the network in model.py, what makes it fast in layers.py and
compilation.py, the loss in diffusion.py, the optimizer step in trainer.py, checkpoints in checkpoint.py (format),
checkpointing.py (when) and keeping.py (which), resuming in resume.py, devices and processes in machine/; sampling in
ddpm/sampling/pipeline.py, evaluation in ddpm/evaluation/, how a run begins and ends in metrics/lifecycle.py, all
logging in metrics/run_logger.py.
"""

import math
import os
import sys
import time
from datetime import timedelta
from typing import Any

from ddpm.run.arguments import parse_args
from ddpm.run.config import TrainConfig
from ddpm.run.errors import OutOfMemory, ProcessesLost, RequestError, TrainingFailed
from ddpm.run.launch import is_first, read_launch, refuse
from ddpm.run.program import flush, prepare, run_program
from ddpm.run.signals import TWICE, StopRequest
from ddpm.training.machine.compiler import limit_workers
from ddpm.training.machine.threads import limit_spinning

if __name__ == "__main__":  # before torch takes seconds to load: handle signals, --help and wrong flags
    STOP = StopRequest().install()
    try:
        prepare()
        CONFIG, LAUNCH = parse_args(), read_launch()
    except RequestError as error:
        sys.exit(refuse(error))
    limit_spinning()
    limit_workers(LAUNCH.local_world_size)

from ddpm.find_batch_size import find_batch_size
from ddpm.run.files import plain, real
from ddpm.run.lock import RunLock, holder
from ddpm.run.metrics import (
    BANDS,
    BATCHES_PER_SEC,
    DATA,
    EMA_DELTA_NORM,
    EPOCH,
    EVAL_TIME_SEC,
    IMAGES_SEEN,
    LR,
    MFU,
    SAMPLES_PER_SEC,
    STEP,
    VAL_LOSS,
    VAL_LOSS_EMA,
    VAL_LOSS_SWA,
    VAL_TIME_SEC,
    Metric,
    select,
)  # fmt: skip
from ddpm.run.paths import RunPaths
from ddpm.training import data
from ddpm.training.describe import dry_run
from ddpm.training.machine import hardware
from ddpm.training.machine.distributed import connect, leave_traces
from metrics.lifecycle import RunLifecycle
from metrics.live.status import publish_failure
from metrics.loggers import wandb
from metrics.run_logger import RunLogger
from metrics.tracker import loss_statistics


class Run(RunLifecycle):
    """The training loop of one process. How a run begins, saves and ends is in metrics/lifecycle.py."""

    def main(self) -> int:
        """Train to the end, or until asked to stop. Returns the exit code."""
        self.prepare_start()
        reached = self.start and (self.start.step >= self.schedule.total_steps or self.ended_early)
        if self.was_finished and reached and not self.notes:
            return self.nothing_to_do()
        with RunLogger(self.paths, self.schedule, self.world) as self.logger:
            try:
                with self.world.explaining():
                    self.build()
                    return self.train()
            except TrainingFailed as error:
                return self.failed(error)
            except Exception as error:
                self.crashed(error)
                raise
            except KeyboardInterrupt:
                self.logger.end("failed", 1, "interrupted twice", retry=True, report=False)
                raise

    # ---- the loop ----------------------------------------------------------------------------------------------------

    def train(self) -> int:
        """Train epoch by epoch from the current step. Returns the exit code."""
        self.vote.passed()  # its result comes a call later: a request to stop is known before the first step
        epochs_begun = math.ceil(self.progress.step / self.schedule.steps_per_epoch)
        first = max(epochs_begun - 1, 0)  # the last epoch that was begun: its row or samples may be missing
        for epoch in range(first, self.schedule.epochs):
            if not (self.train_epoch(epoch) and self.finish_epoch(epoch)):
                return self.stopped()
            if self.ended_early:
                break
        return self.finished()

    def train_epoch(self, epoch: int) -> bool:
        """Train from the current step to the end of `epoch`. False if the processes agreed to stop before it."""
        schedule, progress, images = self.schedule, self.progress, self.config.images_per_step
        if progress.step >= schedule.epoch_end(epoch):
            return True
        order = data.epoch_order(self.train_set, self.config, epoch)
        first = epoch * schedule.steps_per_epoch
        self.publish("training" if progress.warm or not self.choices.compile else "compiling", epoch)
        progress.resume_timing()
        while progress.step < schedule.epoch_end(epoch):
            if self.vote.passed():
                self.publish_progress(epoch)
                return False
            chosen = data.global_slice(order, progress.step - first, images, self.world)
            seen, lr = schedule.images_seen(progress.step), schedule.learning_rate(progress.step)
            self.trainer.step(self.train_set, chosen, seen, lr)
            progress.lr = lr
            if progress.count_step():
                self.publish("training", epoch)
                self.world.expect_answers_within(timedelta(minutes=self.config.hang_minutes))
            if changed := self.threads.step():
                progress.note_threads(self.threads.number)
                self.logger.log(f"step {progress.step}: {changed}", "warning")
            if self.trainer.record.full:
                self.publish_progress(epoch)
                if self.checkpoints and self.checkpoints.overdue and progress.step < schedule.epoch_end(epoch):
                    self.save()
        self.publish_progress(epoch)
        if progress.step == (epoch + 1) * schedule.steps_per_epoch:  # --max-steps may have cut it short
            self.trainer.end_epoch(epoch)
        return True

    def publish_progress(self, epoch: int) -> None:
        """Publish the losses and gradient norms of the latest steps: only here does the loop wait for the device."""
        losses, grad_norms = self.trainer.record.take()
        if len(losses):
            self.progress.note(losses, grad_norms)
            self.publish(
                "training",
                epoch,
                loss=losses.mean(),
                lr=self.progress.lr,
                grad_norm=grad_norms[-1],
                samples_per_sec=self.progress.recent_images_per_sec,
            )

    def finish_epoch(self, epoch: int) -> bool:
        """Validate, publish the epoch's row, save a checkpoint and draw samples: what is due and not done yet.

        False if the processes agreed to stop first.
        """
        config, progress = self.config, self.progress
        if progress.row_step != progress.step:
            row = self.measured_row(epoch)
            if row is None:
                return False
            self.publish_row(row)
            progress.end_row(epoch_over=progress.step % self.schedule.steps_per_epoch == 0)
            may_be_best = self.due(self.choices.eval_every, epoch) and config.best_by != VAL_LOSS.name
            if may_be_best or any(self.due(every, epoch) for every in (config.checkpoint_every, config.keep_every)):
                self.save()
        if self.choices.samples_per_class and (self.at_end or self.due(config.sample_every, epoch)):
            return self.draw_samples(epoch)
        return True

    @property
    def at_end(self) -> bool:
        """Is the last step done, or the run to end early?"""
        return self.progress.step == self.schedule.total_steps or self.ended_early is not None

    def due(self, every: int, epoch: int) -> bool:
        """Is a task with a period of `every` epochs (0: never) due after `epoch`, or because the run ends there?"""
        return every > 0 and (self.at_end or (epoch + 1) % every == 0)

    def measured_row(self, epoch: int) -> dict[str, Any] | None:
        """The epoch's row with all figures that are due: if the run ends early by it, all. None if asked to stop."""
        found: dict[Metric, Any] = {}
        validated = evaluated = False  # the same on all processes, which `found` is not
        for _ in range(2):  # once more if the run ends early by what the first pass has shown
            validate = not validated and self.due(self.config.val_every, epoch)
            evaluate = not evaluated and self.due(self.choices.eval_every, epoch)
            measured = self.measure(epoch, validate, evaluate)
            if measured is None:
                return None
            found |= measured
            validated, evaluated = validated or validate, evaluated or evaluate
            row = self.epoch_row(epoch, found)
            if not self.ends_early(row):
                break
        return row

    def measure(self, epoch: int, validate: bool, evaluate: bool) -> dict[Metric, Any] | None:
        """The row's figures that need forward passes. Every process calls it. None if asked to stop."""
        trainer, figures = self.trainer, {}
        with trainer.autocast():
            if validate:
                self.publish("validating", epoch)
                models = [trainer.model, *trainer.averages().values()]
                with self.progress.spending(VAL_TIME_SEC):
                    losses = self.validation(*models, interrupted=self.vote.passed)
                if losses is None:
                    return None
                live, ema, *swa = losses
                figures = {VAL_LOSS: live.mean, VAL_LOSS_EMA: ema.mean}
                figures |= {VAL_LOSS_SWA: swa[0].mean} if swa else {}
                figures |= dict(zip(BANDS, ema.bands, strict=True)) | self.validation.slowest_rank()
            if evaluate:
                with self.progress.spending(EVAL_TIME_SEC):
                    scores = self.evaluate_samples(epoch)
                if scores is None:
                    return None
                figures |= scores
        return figures

    def evaluate_samples(self, epoch: int) -> dict[Metric, float] | None:
        """Judge drawn characters by a classifier. Every process calls it. None if asked to stop.

        The first call may train the classifier. Doing so at the start of the run would delay the first step.
        """
        self.publish("preparing", epoch)
        where, asked = self.paths.classifiers, lambda: self.vote.requested
        if not self.evaluation.prepare(where, self.logger.log, interrupted=asked):
            return None
        self.publish("evaluating", epoch)
        return self.evaluation(self.trainer.ema.model, self.trainer.scheduler, interrupted=self.vote.passed)

    def epoch_row(self, epoch: int, measured: dict[Metric, Any]) -> dict[str, Any]:
        """The epoch's row, column → value, over all processes. Every process calls it."""
        progress, schedule, trainer, world = self.progress, self.schedule, self.trainer, self.world
        rate = progress.images_per_sec
        memory = [max(of_each) for of_each in zip(*world.gather(hardware.memory_mb(world.device)), strict=True)]
        figures = {
            EPOCH: epoch + 1,
            STEP: progress.step,
            IMAGES_SEEN: schedule.images_seen(progress.step),
            **loss_statistics(progress.losses, progress.grad_norms),
            **measured,
            LR: progress.lr,
            SAMPLES_PER_SEC: rate,
            BATCHES_PER_SEC: rate / schedule.global_batch,
            MFU: hardware.flop_utilisation(self.flops_per_image, rate, world.device, world.world_size),
            **dict(zip(select(group="memory"), memory, strict=True)),
            EMA_DELTA_NORM: trainer.ema.delta_norm(),
            **progress.times(),
            **self.logger.cost(),
            DATA: self.config.data_name,
        }
        return plain({metric.name: value for metric, value in figures.items()})


def main(config: TrainConfig, stop: StopRequest) -> int:
    """Run `config` in this process, one of those that were started. Returns the exit code (see docs/training.md)."""
    paths, began = RunPaths(real(config.output_root), config.run), time.time()

    def publish(code: int, message: str) -> None:
        if is_first() and not config.only_asks and not os.path.exists(paths.lock):  # a lock: another job trains it
            publish_failure(paths, config.data_name, code, message)

    lock_name, met = None, False
    try:
        if config.wandb:
            wandb.require()
        leave_traces(paths.nccl_traces)
        met = True  # from here on, what is wrong for one is known to all
        with connect(config.device) as world, world.explaining():
            if config.only_asks:
                (dry_run if config.dry_run else find_batch_size)(config, world)
                return 0
            with RunLock(paths.lock, config.run) as run_lock:
                lock_name = world.broadcast_result(run_lock.take, here=world.is_main)
                return Run(config, stop, world, run_lock).main()
    except (OutOfMemory, ProcessesLost) as error:
        if error.reported_here:
            print(f"error: {error}", file=sys.stderr, flush=True)
        ours = not config.only_asks and holder(paths.lock) in (lock_name, None)  # else the run has been taken over
        if ours and (error.reported_here or is_first()):
            since = None if is_first() else began  # process 0 publishes later than that
            publish_failure(paths, config.data_name, error.exit_code, str(error), since)
        return error.exit_code
    except RequestError as error:
        publish(2, str(error))
        return refuse(error, met)
    except KeyboardInterrupt:
        print(TWICE, file=sys.stderr)
        return 1
    except Exception as error:
        publish(1, f"{type(error).__name__}: {error}")
        raise


if __name__ == "__main__":
    CODE = run_program(lambda: main(CONFIG, STOP))
    if CODE in (1, 2):  # end at once: a thread may still be writing, or NCCL waiting for lost processes
        flush()
        os._exit(CODE)
    sys.exit(CODE)
