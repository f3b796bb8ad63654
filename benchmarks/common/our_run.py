"""train.py's own loop, stopped after a number of steps: the benchmarks measure the program itself, not a copy."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import train
from ddpm.run.config import TrainConfig
from ddpm.run.lock import RunLock
from ddpm.run.signals import StopRequest
from ddpm.training.machine.distributed import DistContext, StopVote
from metrics.run_logger import RunLogger

FOREVER = 10**6  # epochs, so that no step is the last


class OurRun:
    """A run of train.py that trains on request, with all of its files, heartbeat and log."""

    def __init__(self, run: train.Run) -> None:
        self.run = run
        self._vote = run.vote = Countdown(StopRequest(), run.world)

    def steps(self, count: int) -> None:
        """Train `count` steps, as the loop does, and wait for the device, as the end of an epoch does."""
        progress, self._vote.left = self.run.progress, count
        while self.run.train_epoch(progress.step // self.run.schedule.steps_per_epoch):
            pass  # an epoch is over: the next one

    def validate(self) -> None:
        """Validate, as the end of an epoch does."""
        self._vote.left = FOREVER
        self.run.measure(0, validate=True, evaluate=False)


class Countdown(StopVote):
    """The vote on stopping a run, which also stops it after `left` steps."""

    left = 0

    def passed(self) -> bool:
        if super().passed() or not self.left:
            return True
        self.left -= 1
        return False


@contextmanager
def our_run(config: TrainConfig, world: DistContext, terminal: TextIO | None = None) -> Iterator[OurRun]:
    """Begin a run of `config` in a folder that is removed afterwards. stdout goes to `terminal`, or is discarded."""
    with tempfile.TemporaryDirectory() as folder:
        config = replace(
            config, output_root=Path(folder), run_name="benchmark", resume="never", epochs=FOREVER, max_steps=None
        )
        claim = RunLock(Path(folder) / "claim", config.run)
        with redirect_stdout(terminal or io.StringIO()), claim:
            claim.take()
            run = train.Run(config, StopRequest(), world, claim)
            run.prepare_start()
            with RunLogger(run.paths, run.schedule, world) as run.logger:
                run.build()
                yield OurRun(run)
                run.logger.end("stopped", 0, report=False)
