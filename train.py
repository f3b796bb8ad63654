"""Train a class-conditional diffusion model (DDPM) of handwritten characters: settings → data → model → loop → report.

    python train.py --preset tiny --data glyphs            one process: a GPU if there is one, else the CPU
    torchrun --standalone --nproc_per_node=4 train.py      one process per GPU
    sbatch submit.sh                                       the same on a Slurm cluster

Where to change what: settings in ddpm/run/config.py, figures in ddpm/run/metrics.py; under ddpm/training/, images and
their order in data.py, the network and what makes it fast in model.py, the loss in diffusion.py, the optimizer step in
trainer.py, checkpoints in checkpoint.py (format) and checkpointing.py (when, which), resuming in resume.py; sampling in
ddpm/sampling/pipeline.py, evaluation in ddpm/evaluation/, everything that is logged in metrics/run_logger.py. This file
says in which order.
"""

import os
import sys
from datetime import timedelta

from ddpm.run.arguments import parse_args
from ddpm.run.config import TrainConfig
from ddpm.run.errors import EXIT_STOPPED, NotMetError, ProcessesLost, RequestError, TrainingFailed
from ddpm.run.launch import read_launch
from ddpm.run.program import flush, prepare, run_program
from ddpm.run.signals import TWICE, StopRequest
from ddpm.training.threads import Threads, limit_spinning


def is_first() -> bool:
    """Is this rank 0? As torchrun or srun say it, before the processes have met; if they say nonsense, each is."""
    try:
        return read_launch().rank == 0
    except RequestError:
        return True


def refuse(error: RequestError) -> int:
    """Say in one line what is wrong with the request; one process speaks for all that have met."""
    if is_first() or isinstance(error, NotMetError):
        print(f"error: {error}", file=sys.stderr, flush=True)
    return 2


if __name__ == "__main__":  # before torch takes seconds to load: handle signals, answer --help and typing errors
    STOP = StopRequest().install()
    try:
        prepare()
        CONFIG = parse_args()
        read_launch()
    except RequestError as error:
        sys.exit(refuse(error))
    limit_spinning()

from ddpm.evaluation.in_training import InTrainingEvaluation
from ddpm.run.files import real, why_and_cure
from ddpm.run.lock import RunLock, holder
from ddpm.run.paths import REPORTED, RunPaths
from ddpm.sampling.sheets import draw_samples, labelled_grid
from ddpm.training import checkpoint, data, hardware, soundness
from ddpm.training.checkpointing import Checkpoints, update_best
from ddpm.training.describe import describe_run, dry_run
from ddpm.training.diffusion import Validation
from ddpm.training.distributed import DistContext, StopVote, connect
from ddpm.training.early_stop import out_of_patience
from ddpm.training.model import flops_per_image
from ddpm.training.progress import Progress
from ddpm.training.resume import (
    abandoned_line,
    after_failure,
    changes,
    choose_start,
    damaged_checkpoints,
    identity_of,
    later_pictures,
)
from ddpm.training.schedule import TrainingSchedule
from ddpm.training.trainer import Trainer
from metrics.live.status import last_words, publish_failure, read_status
from metrics.loggers import wandb
from metrics.run_logger import RunLogger
from metrics.tracker import jsonable, loss_statistics

ENOUGH_LOSSES = 25  # steps of an epoch whose mean loss can be compared with an epoch's


class Run:
    """One process's part in a run: what it trains on, what has been learned, and where it tells of it."""

    def __init__(self, config: TrainConfig, stop: StopRequest, world: DistContext, run_lock: RunLock) -> None:
        self.config, self.world, self.run_lock = config, world, run_lock
        self.paths = RunPaths(real(config.output_root), config.run)
        self.flops_per_image = flops_per_image(config)
        self.choices = hardware.choose(config, world.device, self.flops_per_image)
        self.train_set, self.test_set = data.load(config, world)
        self.schedule = TrainingSchedule(config, world.world_size, len(self.train_set))
        self.identity = identity_of(config, self.schedule, data.agreed_sha256(self.train_set, world))
        self.vote = StopVote(stop, world)
        self.progress = Progress(world.device, self.schedule.global_batch)
        self.checkpoints: Checkpoints | None = None  # on the main process only
        self.blown_up: str | None = None  # why the losses of the latest row call the state unsound (main process only)

    def main(self) -> int:
        """Train to the end, or until asked to stop. Returns the exit code."""
        self.prepare_start()
        reached = self.start and (self.start.step >= self.schedule.total_steps or self.ended_early)
        if self.was_finished and reached and not self.notes:
            return self.nothing_to_do()
        with RunLogger(self.paths, self.schedule, self.world) as self.herald:
            try:
                self.build()
                return self.train()
            except TrainingFailed as error:
                return self.failed(error)
            except Exception as error:
                error = self.world.explain(error)
                self.crashed(error)
                raise error from None
            except KeyboardInterrupt:
                self.herald.end("failed", 1, "interrupted twice", retry=True, report=False)
                raise

    # ---- the loop ----------------------------------------------------------------------------------------------------

    def train(self) -> int:
        """Train epoch by epoch from where the run stands. Returns the exit code."""
        self.vote.passed()  # so that a request that came meanwhile is known before the first step
        done = -(
            -self.progress.step // self.schedule.steps_per_epoch
        )  # the last of them may lack its figures or samples
        for epoch in range(max(done - 1, 0), self.schedule.epochs):
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
        order = data.epoch_order(len(self.train_set), self.config.seed, epoch, self.world.device)
        first = epoch * schedule.steps_per_epoch
        self.publish("training" if progress.warm or not self.choices.compile else "compiling", epoch)
        progress.resume_timing()
        while progress.step < schedule.epoch_end(epoch):
            if self.vote.passed():
                self.tell_progress(epoch)
                return False
            chosen = data.global_slice(order, progress.step - first, images, self.world)
            seen, lr = schedule.images_seen(progress.step), schedule.learning_rate(progress.step)
            self.trainer.step(self.train_set, chosen, seen, lr)
            if progress.count_step():
                self.publish("training", epoch)
                self.world.expect_answers_within(timedelta(minutes=self.config.hang_minutes))
            if changed := self.threads.step():
                progress.note_threads(self.threads.number)
                self.herald.log(f"step {progress.step}: {changed}", "warning")
            if self.trainer.record.full:
                self.tell_progress(epoch)
                if self.checkpoints and self.checkpoints.overdue and progress.step < schedule.epoch_end(epoch):
                    self.save()
        self.tell_progress(epoch)
        if progress.step == (epoch + 1) * schedule.steps_per_epoch:  # --max-steps may have cut it short
            self.trainer.end_epoch(epoch)
        return True

    def tell_progress(self, epoch: int) -> None:
        """Bring losses and norms of the latest steps to the host: only here does the loop wait for the device."""
        losses, grad_norms = self.trainer.record.take()
        if len(losses):
            self.progress.note(losses, grad_norms)
            self.publish(
                "training",
                epoch,
                loss=losses.mean(),
                lr=self.schedule.learning_rate(self.progress.step - 1),
                grad_norm=grad_norms[-1],
                samples_per_sec=self.progress.recent_images_per_sec,
            )

    def finish_epoch(self, epoch: int) -> bool:
        """Validate, publish the epoch's row, save and draw where they are due, and have not been done yet.

        False if the processes agreed to stop before that.
        """
        config, progress = self.config, self.progress

        def last() -> bool:
            return progress.step == self.schedule.total_steps or self.ended_early is not None

        def due(every: int) -> bool:
            return every > 0 and (last() or (epoch + 1) % every == 0)

        if progress.row_step != progress.step:
            evaluate = due(self.choices.eval_every)
            measured = self.measure(epoch, validate=due(config.val_every), evaluate=evaluate)
            if measured is None:
                return False
            self.publish_row(self.epoch_row(epoch, measured))
            if progress.step % self.schedule.steps_per_epoch == 0:
                progress.begin_epoch()
            if due(config.checkpoint_every) or due(config.keep_every) or (evaluate and config.best_by != "val_loss"):
                self.save()
        if self.choices.samples_per_class and (last() or due(config.sample_every)):
            return self.draw_samples(epoch)
        return True

    def publish_row(self, row: dict) -> None:
        """Publish an epoch's figures, and learn from all of them whether the run has stopped getting better."""
        if self.world.is_main:
            losses = {name: row[name] for name in ("loss_mean", "val_loss", "val_loss_ema") if name in row}
            self.blown_up = soundness.blown_up(losses, self.herald.rows[self.checkpoints.losses_since :])
        self.herald.epoch(row)
        if self.world.is_main:
            if unsound := self.unsound:
                self.herald.log(f"after epoch {row['epoch']} the state is unsound: {unsound}", "warning")
            models = {"weights_live": self.trainer.model, "weights_ema": self.trainer.ema.model}
            self.herald.weights(row["epoch"], row["step"], models)
        if self.config.early_stop_patience:
            self.ended_early = self.world.broadcast_result(
                lambda: out_of_patience(self.herald.rows, self.config), here=self.world.is_main
            )

    def measure(self, epoch: int, validate: bool, evaluate: bool) -> dict | None:
        """The row's columns that take forward passes to find out (every process calls it). None if asked to stop."""
        trainer, columns = self.trainer, {}
        with trainer.autocast():
            if validate:
                self.publish("validating", epoch)
                models = [trainer.model, *trainer.averages().values()]
                with self.progress.spending("val_time_sec"):
                    losses = self.validation(*models, interrupted=self.vote.passed)
                if losses is None:
                    return None
                names = ("val_loss", "val_loss_ema", "val_loss_swa")
                columns = {name: loss.mean for name, loss in zip(names, losses, strict=False)}
                columns |= {f"val_loss_band{number}": loss for number, loss in enumerate(losses[1].bands, start=1)}
                columns |= self.validation.slowest_rank()
            if evaluate:
                with self.progress.spending("eval_time_sec"):
                    scores = self.evaluate(epoch)
                if scores is None:
                    return None
                columns |= scores
        return columns

    def evaluate(self, epoch: int) -> dict | None:
        """How good drawn characters are (every process calls it). The first time a classifier may have to be trained:
        not before training begins, so that the first step need not wait for it. None if asked to stop."""
        self.publish("preparing", epoch)
        where, asked = self.paths.classifiers, lambda: self.vote.requested
        if not self.evaluation.prepare(where, self.herald.log, interrupted=asked):
            return None
        self.publish("evaluating", epoch)
        return self.evaluation(self.trainer.ema.model, self.trainer.scheduler, interrupted=self.vote.passed)

    def epoch_row(self, epoch: int, measured: dict) -> dict:
        """The epoch's figures, of all processes (every process calls it)."""
        progress, schedule, trainer, world = self.progress, self.schedule, self.trainer, self.world
        rate = progress.images_per_sec
        memory = [max(of_each) for of_each in zip(*world.gather(hardware.memory_mb(world.device)), strict=True)]
        row = {
            "epoch": epoch + 1,
            "step": progress.step,
            "images_seen": schedule.images_seen(progress.step),
            **loss_statistics(progress.losses, progress.grad_norms),
            **measured,
            "lr": schedule.learning_rate(progress.step - 1),
            "samples_per_sec": rate,
            "batches_per_sec": rate / schedule.global_batch,
            "mfu": hardware.flop_utilisation(self.flops_per_image, rate, world.device, world.world_size),
            **dict(zip(("gpu_mem_allocated_mb", "gpu_mem_reserved_mb", "gpu_mem_peak_mb"), memory, strict=True)),
            "ema_delta_norm": trainer.ema.delta_norm(),
            **progress.times(),
            "data": self.config.data,
        }
        return jsonable(row)

    # ---- beginning ---------------------------------------------------------------------------------------------------

    def prepare_start(self) -> None:
        """Decide where the run starts, and make a place for its files without writing over anything.

        Raises:
            RequestError: its checkpoints are damaged or of another run, or a folder is not writable.
        """

        def decide() -> tuple:
            try:
                return look()
            except OSError as error:
                raise RequestError(f"the run's files cannot be taken up: {why_and_cure(error)}") from error

        def look() -> tuple:
            status, root = read_status(self.paths), self.paths.checkpoints
            resume = "auto" if self.world.restarted else self.config.resume  # what it began with is behind it
            start, damaged = choose_start(root, resume, self.identity)
            was_finished = status is not None and status.get("state") == "finished"
            notes = []
            if start is None and resume == "auto" and any(root.glob("step_*")):
                notes.append("no checkpoint of the earlier start is sound: the run begins anew")
            notes += [
                f"earlier files of this name are now in {old}" for old in self.paths.prepare(afresh=start is None)
            ]
            if start:
                notes += damaged_checkpoints(root, start, damaged)
                notes += abandoned_line(self.paths, start)
                update_best(root, self.config.best_by)
            checkpoint.point_latest(root)
            checkpoint.sweep(root)
            return start, was_finished, last_words(status), notes

        decided = self.world.broadcast_result(decide, here=self.world.is_main)
        self.start, self.was_finished, self.cause, self.notes = decided
        self.ended_early = out_of_patience(self.start.meta["history"], self.config) if self.start else None

    def nothing_to_do(self) -> int:
        if self.world.is_main:
            old: tuple[str, ...] = ()
            report, figures = self.paths.report, self.paths.json
            if figures.exists() and not (report.exists() and report.stat().st_mtime >= figures.stat().st_mtime):
                try:
                    from metrics.report import write_report  # here, as the first step need not wait for what draws it

                    write_report(self.paths)  # it was killed meanwhile
                except Exception as error:
                    old, again = REPORTED, self.paths.command("python -m metrics.report")
                    print(f"could not write the report (later: {again}): {error}", file=sys.stderr)
            limit = "--max-steps" if self.schedule.total_steps == self.config.max_steps else "--epochs"
            print(f"{self.config.run} is finished: {self.start.step} of {self.schedule.total_steps} steps are done; "
                  f"{self.ended_early or f'raise {limit} to train on'}, or begin anew with --resume never")  # fmt: skip
            for label, path in self.paths.artifacts().items():
                if label not in old:
                    print(f"{label}: {self.paths.root / path}")
        return 0

    def build(self) -> None:
        """Make the model, and take up the checkpoint that the run continues from."""
        config = self.config
        self.threads = Threads(self.world.device, self.world.gather)
        self.trainer = Trainer(config, self.choices, self.world)
        self.validation = Validation(config, self.test_set, self.choices.val_images, self.trainer.scheduler, self.world)
        if self.start:
            state, averages = self.start.load()
            self.trainer.load_state_dict(state, averages)
            self.progress.load_state_dict(state["progress"])
            self.notes += self.trainer.settle_average(self.progress.step // self.schedule.steps_per_epoch)
        self.progress.note_threads(self.threads.number)
        if self.world.is_main:
            self.open_files()
        self.evaluation = InTrainingEvaluation(config, self.train_set, self.test_set, self.world)
        self.progress.start_clock()

    def open_files(self) -> None:
        """Take up the files of checkpoints and figures, and say what is trained (main process only)."""
        config, start = self.config, self.start
        description = describe_run(
            config, self.choices, self.world, self.schedule, self.flops_per_image, self.train_set, self.test_set,
            self.threads, self.progress.threads,
        )  # fmt: skip
        rows = start.meta["history"] if start else []
        self.herald.begin(description, self.progress.step, rows, self.cause, [*self.notes, *self.schedule.remarks()])
        for note in later_pictures(self.paths, start.meta["progress"]["epoch"] if start else 0):
            self.herald.log(note)
        if start:
            changed = "; ".join(changes(start, config, self.schedule, self.threads.number)) or "nothing"
            self.herald.log(f"resumed from {start.folder.name}; changed since: {changed}")
            if start.unsound:
                self.herald.log(f"{start.folder.name} is unsound ({start.unsound}); it was asked for", "warning")
            self.blown_up = start.unsound
        self.checkpoints = Checkpoints(
            self.paths.checkpoints, config, self.schedule, self.identity, start, self.herald.log, self.run_lock.check
        )
        if start:
            self.save()  # here too, if --resume took it from another run's folder

    # ---- now and then ------------------------------------------------------------------------------------------------

    def publish(self, phase: str, epoch: int, **figures: float | None) -> None:
        self.herald.progress(phase, epoch, self.progress.step, **figures)

    def save(self) -> None:
        """Begin to write a checkpoint of the current step (on the main process)."""
        if self.checkpoints:
            with self.progress.spending("checkpoint_time_sec"):
                self.checkpoints.save(self.trainer, self.progress, self.herald.rows, self.unsound)

    @property
    def unsound(self) -> str | None:
        """What steps and losses say against the present state (main process only); None if they say nothing."""
        progress, unsound = self.progress, self.trainer.record.unsound or self.blown_up
        if unsound or len(progress.losses) < ENOUGH_LOSSES:
            return unsound
        so_far = loss_statistics(progress.losses, progress.grad_norms)
        earlier = self.herald.rows[self.checkpoints.losses_since :]
        return soundness.blown_up({"loss_mean": float(so_far["loss_mean"])}, earlier)

    def draw_samples(self, epoch: int) -> bool:
        """Draw a grid of generated characters with the averaged weights, unless it is there (every process calls it).

        False if asked to stop meanwhile.
        """
        path = self.paths.samples / f"{self.config.data}_epoch_{epoch + 1:04d}.png"
        if self.world.broadcast_result(path.exists, here=self.world.is_main):
            return True
        self.publish("sampling", epoch)
        model, scheduler, per_class = self.trainer.ema.model, self.trainer.scheduler, self.choices.samples_per_class
        with self.trainer.autocast(), self.progress.spending("sample_time_sec"):
            drawn = draw_samples(self.config, model, scheduler, per_class, self.world, interrupted=self.vote.passed)
        if drawn is not None and self.world.is_main:
            self.herald.samples(path, drawn, labelled_grid(self.config, drawn, epoch + 1), self.progress.step)
        return drawn is not None

    # ---- ending ------------------------------------------------------------------------------------------------------

    def finished(self) -> int:
        self.vote.close()
        unsaved = self.last_checkpoint()
        unsound = self.world.broadcast_result(lambda: self.unsound or self.checkpoints.unsound, here=self.world.is_main)
        if unsound and not unsaved:
            return self.failed(TrainingFailed(f"trained to the end, but the state is unsound: {unsound}"))
        if self.config.export and self.world.is_main and not unsaved:
            self.herald.export(self.world.device)
        return self.herald.end("failed" if unsaved else "finished", 1 if unsaved else 0, unsaved or self.ended_early)

    def stopped(self) -> int:
        """Save first: the cluster may give no more than half a minute."""
        self.vote.close()
        self.publish("saving", self.progress.step // self.schedule.steps_per_epoch)
        self.save()
        if unsaved := self.last_checkpoint():
            return self.herald.end("failed", 1, unsaved)
        code = 0 if "TORCHELASTIC_RUN_ID" in os.environ else EXIT_STOPPED  # torchrun calls any code but 0 a failure
        again = "run the same command again" if self.config.resume == "auto" else "run it with --resume auto"
        way = f"{again} to continue"
        if self.world.is_main and (unsound := self.unsound or self.checkpoints.unsound):
            way = f"the state is unsound: {unsound}; {after_failure(self.config, self.paths, self.world)}"
        return self.herald.end("stopped", code, f"{self.vote.reason}; {way}", retry=True)

    def failed(self, error: TrainingFailed) -> int:
        self.last_checkpoint()
        return self.herald.end("failed", 1, f"{error}; {after_failure(self.config, self.paths, self.world)}")

    def crashed(self, error: Exception) -> None:
        self.last_checkpoint()
        why = str(error) if isinstance(error, ProcessesLost) else f"{type(error).__name__}: {error}"
        self.herald.end("failed", 1, why, retry=True, report=False)

    def last_checkpoint(self) -> str | None:
        """Wait for the checkpoint that is being written. Returns why the latest could not be, if so."""
        if self.checkpoints:
            self.checkpoints.wait()
            return self.checkpoints.unsaved
        return None


def main(config: TrainConfig, stop: StopRequest) -> int:
    """Run `config` as one of the processes that were started. Returns the exit code, as README lists them."""
    paths = RunPaths(real(config.output_root), config.run)

    def publish(code: int, message: str) -> None:
        if is_first() and not config.dry_run and not os.path.exists(paths.lock):  # else another job has the run
            publish_failure(paths, config.data, code, message)

    lock_name = None
    try:
        if config.wandb:
            wandb.require()
        with connect(config.device) as world:
            if config.dry_run:
                dry_run(config, world)
                return 0
            with RunLock(paths.lock, config.run) as run_lock:
                lock_name = world.broadcast_result(run_lock.take, here=world.is_main)
                try:
                    return Run(config, stop, world, run_lock).main()
                except Exception as error:
                    raise world.explain(error) from None
    except RequestError as error:
        publish(2, str(error))
        return refuse(error)
    except ProcessesLost as error:
        if error.spokesman:
            print(f"error: {error}", file=sys.stderr, flush=True)
            if holder(paths.lock) in (lock_name, None):  # else the run has been taken over
                publish_failure(paths, config.data, 1, str(error), keep=True)
        return 1
    except KeyboardInterrupt:
        print(TWICE, file=sys.stderr)
        return 1
    except Exception as error:
        publish(1, f"{type(error).__name__}: {error}")
        raise


if __name__ == "__main__":
    CODE = run_program(lambda: main(CONFIG, STOP))
    if CODE == 1:  # at once: a thread may still write, or NCCL wait for the dead
        flush()
        os._exit(CODE)
    sys.exit(CODE)
