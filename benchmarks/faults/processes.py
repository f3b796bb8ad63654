"""Processes that train together, forked from one that has torch loaded, which saves the seconds of the imports.

Nothing else of that one is theirs. The reports of `Training` have no plots, as drawing takes longer than such a run.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.faults.fault import Fault
from ddpm.run.config import TrainConfig
from ddpm.run.paths import RunPaths

CONTEXT = multiprocessing.get_context("forkserver")
DEADLINE = 60.0  # seconds in which processes that are left have to end by themselves
PATIENCE = 300.0  # seconds that a run may take
ROLL_CALL = 3.0  # seconds in which processes answer that are all on this machine


def join(rank: int, number: int, port: int, output: Path, work: Callable[..., int], arguments: Sequence[Any]) -> None:
    """End with the exit code of `work(*arguments)`, as process `rank` of `number`; its output goes to `output`."""
    with open(output, "a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    raise SystemExit(work(*arguments))


class Processes:
    """Processes that see the variables of torchrun. Nobody looks after them."""

    def __init__(self, output: Path, work: Callable[..., int], *arguments: Sequence[Any]) -> None:
        """Start a process for each of `arguments`, which does `work(*arguments[rank])`."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.output = output
        self.processes = [
            CONTEXT.Process(target=join, args=(rank, len(arguments), port, output, work, each))
            for rank, each in enumerate(arguments)
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
    def sentinels(self) -> list[int]:
        """Of the processes that live: each is ready to be read when its process ends."""
        return [process.sentinel for process in self.processes if process.is_alive()]

    @property
    def alive(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to all that live."""
        for process in self.processes:
            with suppress(ProcessLookupError):
                if process.is_alive():
                    os.kill(process.pid, number)

    def kill(self, *ranks: int) -> None:
        """Kill all of them, or those of these `ranks`. The others have to end by themselves.

        Raises:
            AssertionError: they did not end within `DEADLINE` seconds. They are killed then.
        """
        for rank in ranks or range(len(self.processes)):
            self.processes[rank].kill()
        self.wait(DEADLINE)
        if self.alive:
            self.send(signal.SIGKILL)
            raise AssertionError(f"a process went on for {DEADLINE} s after another was killed: see {self.output}")


class Training(Processes):
    """The processes of a start of train.py; a `fault` happens to some of them."""

    def __init__(self, config: TrainConfig, number: int = 2, fault: Fault | None = None) -> None:
        self.paths = RunPaths(config.output_root, config.run)
        output = config.output_root / f"{config.run}.out"
        super().__init__(output, train_one, *((config, rank, fault) for rank in range(number)))

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


def train_one(config: TrainConfig, rank: int, fault: Fault | None) -> int:
    """Run train.py with a fault."""
    import train
    from ddpm.training.machine import distributed
    from metrics import plots

    distributed.ROLL_CALL = ROLL_CALL
    plots.make_plots = lambda run: []
    if fault:
        fault.arm(rank, RunPaths(config.output_root, config.run))
    return train.main(config, train.StopRequest().install())


def start_server(*modules: str) -> None:
    """Start the process that others are forked from; it loads the modules, which takes seconds.

    Those of the main module count, too, as each process imports its parent's main module again.
    """
    CONTEXT.set_forkserver_preload(["train", *modules])
    first = CONTEXT.Process(target=int)
    first.start()
    first.join()
