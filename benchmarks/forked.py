"""Starts of a run in processes that are forked from one with torch loaded, and faults that happen to them.

Forking saves the seconds of the imports; the processes have nothing else in common with that one. Their reports have
no plots, as drawing takes longer than such a run.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ddpm.run.config import TrainConfig
from ddpm.run.paths import RunPaths
from ddpm.training.progress import Progress

CONTEXT = multiprocessing.get_context("forkserver")
# with what the main modules of benchmarks import, as each process imports its parent's main module again
CONTEXT.set_forkserver_preload(
    ["train", "benchmarks.consistency", "benchmarks.faults", "metrics.compare.comparison", "metrics.verify.pages"]
)
DEADLINE = 60.0  # seconds in which processes that are left have to end by themselves
PATIENCE = 300.0  # seconds that a run may take
ROLL_CALL = 3.0  # seconds in which processes answer that are all on this machine
FULL_DISK = "full disk"
WRITES = ("open", "os.rename", "os.symlink", "os.mkdir", "os.remove", "shutil.rmtree")  # audit events of Python
NEED_ROOM = ("open", "os.mkdir", "os.symlink")
BY_THE_CLOCK = ("status.json", "/gpus/")  # parts of the names of files that are rewritten every few seconds


@dataclass(frozen=True)
class Fault:
    """What happens to process `rank` at an exact moment: its `nth` step, or the `nth` time that it opens a file of the
    run for writing, or moves, links or removes one; what is written by the clock does not count.

    `what`: the name of a signal, or `FULL_DISK`: no file can be made until there were `lasting` attempts.
    """

    what: str
    rank: int = 0
    moment: Literal["step", "write"] = "step"
    nth: int = 1
    lasting: int = 1

    def __str__(self) -> str:
        return f"{self.what} of process {self.rank} at {self.moment} {self.nth}"

    def arm(self, paths: RunPaths) -> None:
        """Let it happen in this process."""
        done = 0
        if self.moment == "step":
            count_step = Progress.count_step

            def counted(progress: Progress) -> bool:
                nonlocal done
                first = count_step(progress)
                done += 1
                self._strike(done)
                return first

            Progress.count_step = counted
            return
        folders = str(paths.checkpoints), str(paths.metrics)

        def audit(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal done
            if event not in WRITES or not _writes(event, arguments):
                return
            name = os.fsdecode(arguments[0])
            if name.startswith(folders):
                by_the_clock = any(part in name for part in BY_THE_CLOCK)
                done += not by_the_clock
                if self.what == FULL_DISK or not by_the_clock:
                    self._strike(done, name if event in NEED_ROOM else None)

        sys.addaudithook(audit)

    def _strike(self, number: int, made: str | None = None) -> None:
        """Let it happen if `number` is due; `made` names the file that is being made, if one is."""
        if self.what == FULL_DISK:
            if made and self.nth <= number < self.nth + self.lasting:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), made)
        elif number == self.nth:
            os.kill(os.getpid(), getattr(signal, self.what))


def _writes(event: str, arguments: tuple[Any, ...]) -> bool:
    """Does an audit event change a file that has a name?"""
    if not isinstance(arguments[0], (str, bytes, os.PathLike)):
        return False
    if event != "open":
        return True
    _, mode, flags = arguments
    return any(letter in mode for letter in "wax+") if mode else bool(flags & (os.O_WRONLY | os.O_RDWR))


def train_one(config: TrainConfig, rank: int, number: int, port: int, output: Path, fault: Fault | None) -> None:
    """Run train.py as process `rank` of `number`; its output goes to `output`."""
    with open(output, "a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    import train
    from ddpm.training import distributed
    from metrics import plots

    distributed.ROLL_CALL = ROLL_CALL
    plots.make_plots = lambda run: []
    if fault and fault.rank == rank:
        fault.arm(RunPaths(config.output_root, config.run))
    sys.exit(train.main(config, train.StopRequest().install()))


class Processes:
    """The processes of a start of a run; a `fault` happens to one of them."""

    def __init__(self, config: TrainConfig, number: int = 2, fault: Fault | None = None) -> None:
        self.paths = RunPaths(config.output_root, config.run)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.output = config.output_root / f"{config.run}.out"
        self.processes = [
            CONTEXT.Process(target=train_one, args=(config, rank, number, port, self.output, fault))
            for rank in range(number)
        ]
        for process in self.processes:
            process.start()

    def wait(self, seconds: float = PATIENCE) -> bool:
        """Wait for the end, at most `seconds`; did all end well?"""
        until = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
        return set(self.exit_codes) == {0}

    @property
    def exit_codes(self) -> list[int | None]:
        """Of each process; None while it lives, the signal's number below 0 if it was killed."""
        return [process.exitcode for process in self.processes]

    @property
    def alive(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    @property
    def saving(self) -> bool:
        """Is a checkpoint being written?"""
        return any(self.paths.checkpoints.glob(".step_*.tmp"))

    def phase(self) -> str:
        """The phase that the main process has published, if any."""
        with suppress(OSError, ValueError):
            status = json.loads(self.paths.status.read_text(encoding="utf-8"))
            if status["pid"] == self.processes[0].pid:
                return status["phase"] + (", saving" if self.saving else "")
        return "before anything is published"

    def kill(self, *ranks: int) -> None:
        """Kill all of them, or those of these `ranks`. The others have to end by themselves.

        Raises:
            AssertionError: they did not end within `DEADLINE` seconds. They are killed then.
        """
        for rank in ranks or range(len(self.processes)):
            self.processes[rank].kill()
        self.wait(DEADLINE)
        if self.alive:
            for process in self.processes:
                process.kill()
            raise AssertionError(f"a process went on for {DEADLINE} s after another was killed: {self.paths.run}")


def start_server() -> None:
    """Start the process that others are forked from; it loads torch, which takes seconds."""
    first = CONTEXT.Process(target=int)
    first.start()
    first.join()
