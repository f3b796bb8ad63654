"""The contestants of the tournament: how they are struck, started, and ended as a cluster ends them.

Every fault is a function of (seed, number). It strikes inside the processes, a few milliseconds after a given optimizer
step, so it hits every contestant at the same progress.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Protocol

import torch

from benchmarks.faults.fault import CLOCK, FULL_DISK, STOPPED, TORN_FILE, Fault, after, set_clock_back
from benchmarks.faults.processes import CONTEXT, Processes
from ddpm.run.config import TrainConfig
from ddpm.run.errors import RequestError

SIGNALS = ("SIGTERM", "SIGUSR1")
KINDS = ("SIGKILL", *SIGNALS, FULL_DISK, TORN_FILE, STOPPED, CLOCK)
EVERY = 4  # steps between checkpoints, for all contestants
PAUSE = 1.0  # seconds until processes that are all stopped are continued
STARTS_TAKE = 9  # times --hang-minutes: so long one start may take
Weights = Mapping[str, torch.Tensor]


def last_step(fault: Fault) -> int:
    """The step after which the first start is killed where the clock was set back: it has saved since."""
    return fault.step + EVERY + 1


def draw(seed: int, number: int, steps: int, kinds: tuple[str, ...] = KINDS) -> Fault:
    """Fault `number` of a `seed`, for runs of `steps` optimizer steps. The kinds take turns.

    Half of the faults strike just after a step that is saved, so that some hit a checkpoint that is being written.
    """
    kind, source = kinds[number % len(kinds)], random.Random(f"{seed} {number}")
    first = 2 * EVERY if kind == TORN_FILE else 1  # a checkpoint is there
    last = steps - EVERY - 2 if kind == CLOCK else steps - 1
    step, delay = source.randint(first, last), source.uniform(0, 0.04)
    if source.random() < 0.5:
        step = min(max(round(step / EVERY), 1) * EVERY, last)
    victims = (0, 1)
    if kind in ("SIGKILL", STOPPED):
        victims = source.choice([(0, 1), (0, 1), (0,), (1,)])
    return Fault(kind, step, delay, victims, source.randint(1, 48) if kind == CLOCK else 0)


class Progress:
    """Tells the launcher of every optimizer step of this process, and strikes when the fault's step is done.

    Args:
        folder: the run's, on the disk that is filled.
        fault: None if nothing happens in this start.
        clock: hours by which the clock has been set back before this start.
    """

    def __init__(self, pipe: Connection, rank: int, folder: Path, fault: Fault | None, clock: int) -> None:
        self._pipe, self.rank, self._folder, self._fault = pipe, rank, folder, fault
        if clock:
            set_clock_back(clock)

    def done(self, step: int) -> None:
        """Every contestant calls it after optimizer step `step` (from 1), before it saves."""
        self._pipe.send(step)
        fault = self._fault
        if fault and self.rank in fault.victims and step == fault.step:
            after(fault.delay, self._strike)
        if fault and fault.kind == CLOCK and step == last_step(fault):
            after(fault.delay, lambda: os.kill(os.getpid(), signal.SIGKILL))

    def _strike(self) -> None:
        self._pipe.send("struck")
        self._fault.strike(self.rank, self._folder)


class Contestant(Protocol):
    """A way to train. `config.output_root` is the run's folder."""

    packages: tuple[str, ...]  # whose versions the result tells

    def train(self, config: TrainConfig, progress: Progress) -> int:
        """Train as one of the processes, or go on where the run was interrupted; returns the exit code."""

    def weights(self, config: TrainConfig) -> Weights | None:
        """The final weights; None if the run has not finished."""

    def epochs(self, config: TrainConfig) -> list[int]:
        """The epoch (from 1) of each row of figures that the run has written."""

    def newest(self, config: TrainConfig) -> Path | None:
        """The file or folder of the newest checkpoint."""


@dataclass
class Start:
    """One start of a contestant's processes, after its end."""

    steps: list[tuple[int, int]] = field(default_factory=list)  # (rank, optimizer step) in order
    struck: bool = False
    codes: list[int | None] = field(default_factory=list)  # exit codes by rank
    seconds: float = 0.0


def run_as(
    contestant: Contestant, config: TrainConfig, rank: int, pipe: Connection, fault: Fault | None, clock: int
) -> int:
    """Run the contestant as process `rank` of two."""
    os.environ["PATH"] = f"{beside(config, 'bin')}{os.pathsep}{os.environ['PATH']}"
    return contestant.train(config, Progress(pipe, rank, config.output_root, fault, clock))


def beside(config: TrainConfig, what: str) -> Path:
    """A path that is not on the run's disk: the processes' output (out), the folder of the stand-in for Slurm's
    scontrol (bin), the note that it was called (requeue)."""
    return config.output_root.with_suffix(f".{what}")


def make_scontrol(config: TrainConfig) -> None:
    """A `scontrol` that only leaves a note that the job asks to be started again."""
    program = beside(config, "bin") / "scontrol"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(f"#!/bin/sh\ntouch '{beside(config, 'requeue')}'\n", encoding="utf-8")
    program.chmod(0o755)


def start(contestant: Contestant, config: TrainConfig, fault: Fault | None = None, clock: int = 0) -> Start:
    """Start the two processes and wait for their end.

    As torchrun and Slurm do, the launcher sends SIGTERM to the rest when one has failed, when the job was requeued, or
    when its time is over (`--hang-minutes` after a stop signal), and SIGKILL after `--hang-minutes` more.
    """
    patience = 60 * config.hang_minutes
    make_scontrol(config)
    note = beside(config, "requeue")
    note.unlink(missing_ok=True)
    pipes = [CONTEXT.Pipe(duplex=False) for _ in range(2)]
    processes = Processes(
        beside(config, "out"),
        run_as,
        *((contestant, config, rank, writer, fault, clock) for rank, (_, writer) in enumerate(pipes)),
    )
    for _, writer in pipes:
        writer.close()
    result, began = Start(), time.monotonic()
    ends, continues, told = began + STARTS_TAKE * patience, None, None
    readers = {reader: rank for rank, (reader, _) in enumerate(pipes)}
    while processes.alive:
        wait([*readers, *processes.sentinels], timeout=0.05)
        now = time.monotonic()
        if _hear(readers, result) and fault.kind in SIGNALS:
            ends = min(ends, now + patience)
        elif result.struck and fault.kind == STOPPED and len(fault.victims) == 2:
            continues = continues or now + PAUSE
        if continues and now > continues:
            processes.send(signal.SIGCONT)
            continues = float("inf")
        failed = any(processes.exit_codes)
        if told is None and (failed or now > ends or note.exists()):
            processes.send(signal.SIGTERM)
            told = now
        elif told and now > told + patience:
            processes.send(signal.SIGKILL)
    _hear(readers, result)
    result.codes, result.seconds = processes.exit_codes, time.monotonic() - began
    return result


def _hear(readers: dict[Connection, int], result: Start) -> bool:
    """Read what the processes have sent. Returns whether a fault has struck since the last call."""
    struck = result.struck
    for reader, rank in list(readers.items()):
        try:
            while reader.poll():
                word = reader.recv()
                if word == "struck":
                    result.struck = True
                else:
                    result.steps.append((rank, word))
        except (EOFError, OSError):
            del readers[reader]
    return result.struck and not struck


def tear(newest: Path | None) -> None:
    """Cut the largest file of the newest checkpoint (a folder or a file) to half, as a power failure leaves a file that
    was not flushed."""
    if newest is not None:
        files = [path for path in newest.rglob("*") if path.is_file()] if newest.is_dir() else [newest]
        largest = max(files, key=lambda path: path.stat().st_size, default=None)
        if largest is not None:
            os.truncate(largest, largest.stat().st_size // 2)


@contextmanager
def own_disk(folder: Path) -> Iterator[None]:
    """A small file system for `folder`.

    Raises:
        RequestError: it may not be mounted.
    """
    folder.mkdir(parents=True)
    made = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(made, capture_output=True).returncode:
        raise RequestError("a disk that can be filled needs root (mount): leave out `full disk` with --kinds")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
