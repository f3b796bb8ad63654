"""Train a class-conditional diffusion model (DDPM) of handwritten characters: settings → data → model → loop → report.

    python train.py --preset tiny --data glyphs            one process: a GPU if there is one, else the CPU
    torchrun --standalone --nproc_per_node=4 train.py      one process per GPU
    sbatch submit.sh                                       the same on a Slurm cluster

Where to change what: settings in ddpm/config.py, images and their order in ddpm/data.py, the network in ddpm/model.py,
loss and sampling in ddpm/diffusion.py, the optimizer step in ddpm/step.py, what is kept in ddpm/checkpoint.py, figures
in metrics/tracker.py. This file says in which order things happen.
"""

import os
import sys

from ddpm.config import TrainConfig, parse_args
from ddpm.errors import RequestError, TrainingFailed
from ddpm.signals import StopRequest


def is_first() -> bool:
    """Is this rank 0? As torchrun or srun say it, before the processes have met."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def refuse(error: RequestError) -> int:
    """Say in one line what is wrong with the request; one process speaks for all."""
    if is_first():
        print(f"error: {error}", file=sys.stderr, flush=True)
    return 2


if __name__ == "__main__":  # before torch takes seconds to load: handle signals, answer --help and typing errors
    STOP = StopRequest().install()
    try:
        CONFIG = parse_args()
    except RequestError as error:
        sys.exit(refuse(error))

from ddpm import data, hardware
from ddpm.checkpoint import Checkpoints, choose_start
from ddpm.describe import describe_run, dry_run, in_words
from ddpm.diffusion import Validation
from ddpm.distributed import StopVote, World, connect
from ddpm.files import atomic_write
from ddpm.model import flops_per_image
from ddpm.paths import RunPaths
from ddpm.pictures import draw_samples, png
from ddpm.plan import Plan
from ddpm.progress import Progress
from ddpm.step import Trainer
from metrics.report import write_report
from metrics.status import alive, publish_failure, read_status
from metrics.tensorboard import TensorBoard
from metrics.tracker import MetricsTracker, jsonable, loss_statistics
from pretty_logger import PrettyLogger

STOPPED = 75  # EX_TEMPFAIL: run the same command again


class Run:
    """One process's part in a run: what it trains on, what has been learned, and where it tells of it."""

    def __init__(self, config: TrainConfig, stop: StopRequest, world: World) -> None:
        self.config, self.world = config, world
        self.paths = RunPaths(config.output_root.resolve(), config.run)
        self.flops_per_image = flops_per_image(config)
        self.choices = hardware.choose(config, world.device, self.flops_per_image)
        self.train_set, self.test_set = data.load(config, world)
        self.plan = Plan(config, world.world_size, len(self.train_set))
        self.vote = StopVote(stop, world)
        self.progress = Progress(world.device, self.plan.global_batch)
        self.tracker: MetricsTracker | None = None  # this and the next, on the main process only
        self.checkpoints: Checkpoints | None = None

    def main(self) -> int:
        """Train to the end, or until asked to stop. Returns the exit code."""
        self.claim()
        if self.was_finished and self.start and self.start.step >= self.plan.total_steps:
            return self.nothing_to_do()
        with self.open_logger() as self.logger:
            try:
                self.build()
                while self.progress.step < self.plan.total_steps:
                    epoch = self.progress.step // self.plan.steps_per_epoch
                    if not self.train_epoch(epoch):
                        return self.stopped()
                    self.finish_epoch(epoch)
                return self.finished()
            except TrainingFailed as error:
                return self.failed(error)
            except BaseException as error:
                why = (
                    "interrupted twice" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
                )
                self.end("failed", 1, why, report=False)
                raise

    # ---- the loop ----------------------------------------------------------------------------------------------------

    def train_epoch(self, epoch: int) -> bool:
        """Train from the current step to the end of `epoch`. False if the processes agreed to stop before it."""
        plan, progress, size = self.plan, self.progress, self.config.batch_size
        order = data.epoch_order(len(self.train_set), self.config.seed, epoch, self.world.device)
        first = epoch * plan.steps_per_epoch
        self.publish("training" if progress.warm or not self.choices.compile else "compiling", epoch)
        progress.resume_timing()
        while progress.step < plan.epoch_end(epoch):
            if self.vote.passed():
                self.tell_progress(epoch)
                return False
            chosen = data.global_slice(order, progress.step - first, size, self.world)
            seen, lr = plan.images_seen(progress.step), plan.learning_rate(progress.step)
            self.trainer.step(self.train_set, chosen, seen, lr)
            if progress.count_step():
                self.publish("training", epoch)
            if self.trainer.record.full:
                self.tell_progress(epoch)
        self.tell_progress(epoch)
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
                lr=self.plan.learning_rate(self.progress.step - 1),
                grad_norm=grad_norms[-1],
                samples_per_sec=self.progress.recent_images_per_sec,
            )

    def finish_epoch(self, epoch: int) -> None:
        """Validate, publish the epoch's row, and save and draw where they are due."""
        config, last = self.config, self.progress.step == self.plan.total_steps

        def due(every: int) -> bool:
            return every > 0 and (last or (epoch + 1) % every == 0)

        row = self.epoch_row(epoch, validate=due(config.val_every))
        if self.tracker:
            with self.logger.going_on("the epoch's metrics"):
                self.tracker.add_epoch(row)
                self.board.add_epoch(row)
        self.logger.log_epoch_summary(row)
        if self.progress.step % self.plan.steps_per_epoch == 0:
            self.progress.begin_epoch()
        if due(config.checkpoint_every):
            self.publish("saving", epoch)
            if self.checkpoints:
                self.checkpoints.save(self.trainer, self.progress, row)
        if self.choices.samples_per_class and (last or due(config.sample_every)):
            self.publish("sampling", epoch)
            self.draw_samples(epoch)

    def epoch_row(self, epoch: int, validate: bool) -> dict:
        """The epoch's figures, of all processes (every process calls it)."""
        progress, plan, trainer, world = self.progress, self.plan, self.trainer, self.world
        losses = [None, None]
        if validate:
            self.publish("validating", epoch)
            with trainer.autocast():
                losses = self.validation(trainer.model, trainer.ema.model)
        rate = progress.images_per_sec
        memory = [max(of_each) for of_each in zip(*world.gather(hardware.memory_mb(world.device)), strict=True)]
        row = {
            "epoch": epoch + 1,
            "step": progress.step,
            "images_seen": plan.images_seen(progress.step),
            **loss_statistics(progress.losses, progress.grad_norms),
            **dict(zip(("val_loss", "val_loss_ema"), losses, strict=True)),
            "lr": plan.learning_rate(progress.step - 1),
            "samples_per_sec": rate,
            "batches_per_sec": rate / plan.global_batch,
            "mfu": hardware.flop_utilisation(self.flops_per_image, rate, world.device, world.world_size),
            **dict(zip(("gpu_mem_allocated_mb", "gpu_mem_reserved_mb", "gpu_mem_peak_mb"), memory, strict=True)),
            "ema_delta_norm": trainer.ema.delta_norm(),
            **progress.times(),
            "data": self.config.data,
        }
        return jsonable(row)

    # ---- beginning ---------------------------------------------------------------------------------------------------

    def claim(self) -> None:
        """Decide where the run starts, and make a place for its files without writing over anything.

        Raises:
            RequestError: the run is alive, its checkpoint is damaged or of another run, or a folder is not writable.
        """

        def decide() -> tuple:
            status = read_status(self.paths)
            if alive(status):
                raise RequestError(
                    f"{self.config.run} is being trained by process {status['pid']} on {status['host']}: watch it with "
                    f"python pretty_logger.py {self.config.run}, or give another --run-name"
                )
            start, problems = choose_start(self.paths.checkpoints, self.config, self.plan.global_batch)
            was_finished = status is not None and status["state"] == "finished"
            return start, problems, self.paths.claim(afresh=start is None), was_finished

        decided = self.world.together(decide, here=self.world.is_main)
        self.start, self.passed_over, self.set_aside, self.was_finished = decided

    def nothing_to_do(self) -> int:
        if self.world.is_main:
            print(f"{self.config.run} is finished: {self.start.step} of {self.plan.total_steps} steps are done; "
                  "raise --epochs to train on, or begin anew with --resume never")  # fmt: skip
            for label, path in self.paths.artifacts().items():
                print(f"{label}: {self.paths.root / path}")
        return 0

    def open_logger(self) -> PrettyLogger:
        world, plan = self.world, self.plan
        fields = {
            "data": self.config.data, "world_size": world.world_size, "nodes": world.nodes, "epochs": plan.epochs,
            "device": hardware.device_name(world.device), "total_steps": plan.total_steps,
        }  # fmt: skip
        gpus = world.gather((world.node, hardware.gpu_uuid(world.device)))
        here = [uuid for node, uuid in gpus if uuid and node == world.node]
        return PrettyLogger(
            self.paths, fields, rank=world.rank, local_rank=world.local_rank, node=world.node, gpu_uuids=here
        )

    def build(self) -> None:
        """Make the model, and take up the checkpoint that the run continues from."""
        config = self.config
        self.trainer = Trainer(config, self.choices, self.world)
        self.validation = Validation(config, self.test_set, self.choices.val_images, self.trainer.scheduler, self.world)
        if self.start:
            state, ema_weights = self.start.load()
            self.trainer.load_state_dict(state, ema_weights)
            self.progress.load_state_dict(state["progress"])
        if self.world.is_main:
            self.open_metrics()
        self.progress.start_clock()

    def open_metrics(self) -> None:
        """Say what is trained on what, and take up the files of figures and checkpoints (main process only)."""
        config, plan, log = self.config, self.plan, self.logger.log
        description = describe_run(
            config, self.choices, self.world, plan, self.flops_per_image, self.train_set, self.test_set
        )
        for line in in_words(description):
            log(line)
        for problem in self.passed_over:
            log(f"passed over: {problem.partition(': give --resume')[0]}", "warning")
        for folder in self.set_aside:
            log(f"the files of an earlier run of this name are now in {folder}", "warning")
        cause = f"resumed from {self.start.folder.name}" if self.start else "started"
        log(f"{cause} at step {self.progress.step} of {plan.total_steps}", "success")
        self.checkpoints = Checkpoints(self.paths.checkpoints, config, plan, self.start, log)
        self.tracker = MetricsTracker(self.paths, description, self.progress.step, cause)
        self.board = TensorBoard(self.paths, plan.images_seen(self.progress.step))

    # ---- now and then ------------------------------------------------------------------------------------------------

    def publish(self, phase: str, epoch: int, **figures: float | None) -> None:
        """Tell the dashboard where the run is; with `figures` this is a progress line, else a change of phase."""
        plan, step = self.plan, self.progress.step
        first = epoch * plan.steps_per_epoch
        if figures:
            figures["step"] = step
        self.logger.set_progress(
            phase=phase, epoch=epoch + 1, batch=step - first, batches=plan.epoch_end(epoch) - first,
            images_seen=plan.images_seen(step), **figures,
        )  # fmt: skip

    def draw_samples(self, epoch: int) -> None:
        """Draw a grid of generated characters with the averaged weights (every process calls it)."""
        model, scheduler, per_class = self.trainer.ema.model, self.trainer.scheduler, self.choices.samples_per_class
        with self.trainer.autocast():
            picture = draw_samples(self.config, model, scheduler, per_class, self.world, epoch + 1)
        if picture:
            path = self.paths.samples / f"{self.config.data}_epoch_{epoch + 1:04d}.png"
            with self.logger.going_on("the sample grid"):
                atomic_write(path, png(picture))
                self.board.add_samples(picture, self.plan.images_seen(self.progress.step))
                self.logger.log(f"samples: {path}")

    # ---- ending ------------------------------------------------------------------------------------------------------

    def finished(self) -> int:
        self.vote.close()
        unsaved = self.checkpoints and self.checkpoints.unsaved
        return self.end("failed" if unsaved else "finished", 1 if unsaved else 0, unsaved)

    def stopped(self) -> int:
        """Save first: the cluster may give no more than half a minute."""
        self.vote.close()
        self.publish("saving", self.progress.step // self.plan.steps_per_epoch)
        if self.checkpoints:
            self.checkpoints.save(self.trainer, self.progress, row={})
            if self.checkpoints.unsaved:
                return self.end("failed", 1, self.checkpoints.unsaved)
        code = 0 if "TORCHELASTIC_RUN_ID" in os.environ else STOPPED  # torchrun calls any code but 0 a failure
        again = "run the same command again" if self.config.resume == "auto" else "run it with --resume auto"
        return self.end("stopped", code, f"{self.vote.reason}; {again} to continue")

    def failed(self, error: TrainingFailed) -> int:
        latest = self.paths.checkpoints / "latest"
        last = f"the last checkpoint is {latest.resolve()}" if latest.exists() else "there is no checkpoint yet"
        return self.end("failed", 1, f"{error}; {last}")

    def end(self, state: str, code: int, message: str | None = None, report: bool = True) -> int:
        """Publish how the run ended and where its files are. Returns the exit code."""
        if self.tracker:
            with self.logger.going_on("the metrics"):
                self.tracker.write(state)
                self.board.close()
            if report:
                self.logger.set_progress(phase="reporting", state=state, exit_code=code, message=message)
                with self.logger.going_on(f"the report (later: python -m metrics.report {self.config.run})"):
                    write_report(self.paths)
            for label, path in self.paths.artifacts().items():
                self.logger.log(f"{label}: {self.paths.root / path}")
        self.logger.stop(state, code, message)
        return code


def main(config: TrainConfig, stop: StopRequest) -> int:
    """Run `config` as one of the processes that were started. Returns the exit code, as README lists them."""
    paths = RunPaths(config.output_root.resolve(), config.run)
    try:
        with connect() as world:
            if config.dry_run:
                dry_run(config, world)
                return 0
            return Run(config, stop, world).main()
    except RequestError as error:
        if is_first() and not config.dry_run:
            publish_failure(paths, config.data, 2, str(error))
        return refuse(error)
    except KeyboardInterrupt:
        print("interrupted twice: stopped at once; the last checkpoint stands", file=sys.stderr)
        return 1
    except Exception as error:
        if is_first() and not config.dry_run:
            publish_failure(paths, config.data, 1, f"{type(error).__name__}: {error}")
        raise


if __name__ == "__main__":
    sys.exit(main(CONFIG, STOP))
