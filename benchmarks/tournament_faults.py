"""The faults of the tournament, and the launcher that starts a contestant's processes and ends them as a cluster does.

Every fault is a function of (seed, number). It strikes inside the processes, a few milliseconds after a given optimizer
step, so it hits every contestant at the same progress.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Protocol

import torch

from benchmarks.forked import CONTEXT
from ddpm.run.config import TrainConfig
from ddpm.run.errors import RequestError

CONTEXT.set_forkserver_preload(["train", "benchmarks.tournament_peers"])
KINDS = ("SIGKILL", "SIGTERM", "SIGUSR1", "full disk", "torn file", "stopped process", "clock set back")
SIGNALS = {"SIGTERM": signal.SIGTERM, "SIGUSR1": signal.SIGUSR1}
EVERY = 4  # steps between checkpoints, for all contestants
PAUSE = 1.0  # seconds until processes that are all stopped are continued
STARTS_TAKE = 9  # times --hang-minutes: so long one start may take
Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Fault:
    """What happens to a run in its first start."""

    kind: str
    step: int  # it strikes after this optimizer step (from 1) …
    delay: float  # … and after this many seconds more
    victims: tuple[int, ...]  # ranks
    hours: int = 0  # by which the clock is set back

    @property
    def last_step(self) -> int:
        """The step after which the first start is killed where the clock was set back: it has saved since."""
        return self.step + EVERY + 1

    def __str__(self) -> str:
        who = "both processes" if len(self.victims) == 2 else f"process {self.victims[0]}"
        what = f"{self.kind} by {self.hours} h" if self.hours else self.kind
        return f"{what}, {who}, {self.delay * 1000:.0f} ms after step {self.step}"


def draw(seed: int, number: int, steps: int, kinds: tuple[str, ...] = KINDS) -> Fault:
    """Fault `number` of a `seed`, for runs of `steps` optimizer steps. The kinds take turns.

    Half of the faults strike just after a step that is saved, so that some hit a checkpoint that is being written.
    """
    kind, source = kinds[number % len(kinds)], random.Random(f"{seed} {number}")
    first = 2 * EVERY if kind == "torn file" else 1  # a checkpoint is there
    last = steps - EVERY - 2 if kind == "clock set back" else steps - 1
    step, delay = source.randint(first, last), source.uniform(0, 0.04)
    if source.random() < 0.5:
        step = min(max(round(step / EVERY), 1) * EVERY, last)
    victims = (0, 1)
    if kind in ("SIGKILL", "stopped process"):
        victims = source.choice([(0, 1), (0, 1), (0,), (1,)])
    return Fault(kind, step, delay, victims, source.randint(1, 48) if kind == "clock set back" else 0)


# ---- inside the processes --------------------------------------------------------------------------------------------


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
            self._after(fault.delay, self._strike)
        if fault and fault.kind == "clock set back" and step == fault.last_step:
            self._after(fault.delay, lambda: os.kill(os.getpid(), signal.SIGKILL))

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        timer = threading.Timer(seconds, action)
        timer.daemon = True  # a run that ends first is not held up
        timer.start()

    def _strike(self) -> None:
        self._pipe.send("struck")
        match self._fault.kind:
            case "SIGTERM" | "SIGUSR1" as name:
                os.kill(os.getpid(), SIGNALS[name])
            case "stopped process":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "full disk" if self.rank == 0:
                while True:  # what pruning frees is taken too: the disk is shared
                    fill(self._folder)
                    time.sleep(0.005)
            case "clock set back":
                set_clock_back(self._fault.hours)
                if self.rank == 0:
                    shift_times(self._folder, self._fault.hours)
            case "SIGKILL" | "torn file":
                os.kill(os.getpid(), signal.SIGKILL)


def fill(folder: Path) -> None:
    """Take all free space of the disk that `folder` is on."""
    with open(folder / "filler", "ab") as file, suppress(OSError):
        disk = os.fstatvfs(file.fileno())
        if free := disk.f_bavail * disk.f_frsize:
            os.posix_fallocate(file.fileno(), file.tell(), free)


def set_clock_back(hours: int) -> None:
    """Let this process read a time of day that is `hours` earlier."""
    now, now_ns = time.time, time.time_ns
    time.time, time.time_ns = lambda: now() - 3600 * hours, lambda: now_ns() - 3600 * 10**9 * hours


def shift_times(folder: Path, hours: int) -> None:
    """Move the times of all files ahead: seen from a clock that was set back, they are of the future."""
    for path in folder.rglob("*"):
        with suppress(OSError):  # a temporary file is gone
            stat = path.lstat()
            times = (stat.st_atime + 3600 * hours, stat.st_mtime + 3600 * hours)
            os.utime(path, times, follow_symlinks=False)


# ---- around them -----------------------------------------------------------------------------------------------------


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


def run_as(contestant: Contestant, config: TrainConfig, rank: int, port: int, pipe: Connection, fault: Fault | None,
           clock: int) -> None:  # fmt: skip
    """Run the contestant as process `rank` of two."""
    output = os.open(beside(config, "out"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["PATH"] = f"{beside(config, 'bin')}{os.pathsep}{os.environ['PATH']}"
    raise SystemExit(contestant.train(config, Progress(pipe, rank, config.output_root, fault, clock)))


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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pipes = [CONTEXT.Pipe(duplex=False) for _ in range(2)]
    processes = [
        CONTEXT.Process(target=run_as, args=(contestant, config, rank, port, pipes[rank][1], fault, clock))
        for rank in range(2)
    ]
    for process, (_, writer) in zip(processes, pipes, strict=True):
        process.start()
        writer.close()
    result, began = Start(), time.monotonic()
    ends, continues, told = began + STARTS_TAKE * patience, None, None
    readers = {reader: rank for rank, (reader, _) in enumerate(pipes)}
    while any(process.is_alive() for process in processes):
        wait([*readers, *(each.sentinel for each in processes if each.is_alive())], timeout=0.05)
        now = time.monotonic()
        if _hear(readers, result) and fault.kind in SIGNALS:
            ends = min(ends, now + patience)
        elif result.struck and fault.kind == "stopped process" and len(fault.victims) == 2:
            continues = continues or now + PAUSE
        if continues and now > continues:
            _signal(processes, signal.SIGCONT)
            continues = float("inf")
        failed = any(process.exitcode for process in processes)
        if told is None and (failed or now > ends or note.exists()):
            _signal(processes, signal.SIGTERM)
            told = now
        elif told and now > told + patience:
            _signal(processes, signal.SIGKILL)
    _hear(readers, result)
    result.codes, result.seconds = [process.exitcode for process in processes], time.monotonic() - began
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


def _signal(processes: list, number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            if process.is_alive():
                os.kill(process.pid, number)


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
