"""A side of a benchmark in a process of its own, which stands still when it is not its turn.

No side runs with the settings, the memory or the threads of another, and a loader's workers neither slow down the other
sides nor fill their queues meanwhile.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol

import torch

from benchmarks.rounds import seconds
from ddpm.run.errors import RequestError
from ddpm.training.distributed import DistContext, connect


class Loop(Protocol):
    def steps(self, count: int) -> None:
        """Train `count` steps and wait for the device."""


@dataclass(frozen=True)
class Turn:
    seconds_per_step: float
    peak_memory_gb: float | None  # GB (2^30 bytes) of the device that these steps needed at most; None on a CPU


class Apart:
    """A loop that trains when it is told to, with all the processes that it starts."""

    def __init__(
        self, name: str, make: Callable[[DistContext], AbstractContextManager[tuple[Loop, Any]]], device: str = "auto"
    ) -> None:
        """Begin to load libraries, as several sides do at once.

        Args:
            make: makes the loop in its process, and whatever is to be known of it; can be pickled.
            device: what `--device` says.
        """
        self.name = name
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs, make, device))
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """Of its process, and of the group of all that it starts."""
        return self._process.pid

    def build(self) -> Any:
        """Make the loop. Returns what is to be known of it."""
        self._hear()  # that it has loaded
        return self._ask("build")

    def turn(self, steps: int) -> Turn:
        """Train so many steps, after one that is not timed."""
        return self._ask(steps)

    def close(self) -> None:
        if self._process.is_alive():
            with suppress(ProcessLookupError):  # it has no group of its own before it has loaded
                os.killpg(self.pid, signal.SIGCONT)
            self._pipe.close()
            self._process.join()

    def _ask(self, what: object) -> Any:
        os.killpg(self.pid, signal.SIGCONT)
        self._pipe.send(what)
        return self._hear()

    def _hear(self) -> Any:
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise RequestError(f"side '{self.name}' has failed; why stands above") from None
        if isinstance(answer, RequestError):
            raise answer
        os.killpg(self.pid, signal.SIGSTOP)
        return answer


def _serve(
    pipe: Connection, make: Callable[[DistContext], AbstractContextManager[tuple[Loop, Any]]], device: str
) -> None:
    os.setpgrp()  # its workers are stopped with it; if its parent dies, the system wakes and hangs up the group
    multiprocessing.set_start_method(None, force=True)  # its workers start as they do in any other process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        pipe.send("loaded")
        pipe.recv()
        with connect(device) as world, make(world) as (loop, about):
            pipe.send(about)
            while True:
                steps = pipe.recv()
                loop.steps(1)
                on_gpu = world.device.type == "cuda"
                if on_gpu:  # of the steps alone: what was tried out to find the fastest kernels does not count
                    torch.cuda.reset_peak_memory_stats(world.device)
                taken = seconds(lambda steps=steps: loop.steps(steps), world.device) / steps
                peak = torch.cuda.max_memory_allocated(world.device) / 2**30 if on_gpu else None
                if on_gpu:  # the sides share its memory
                    torch.cuda.empty_cache()
                pipe.send(Turn(taken, peak))
    except (EOFError, BrokenPipeError):
        pass  # enough
    except RequestError as error:
        pipe.send(error)
