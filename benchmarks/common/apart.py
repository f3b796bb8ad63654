"""One side of a benchmark in a process of its own, which is stopped while the other sides are measured.

So no side shares settings, memory or threads with another, and the workers of a data loader neither slow down the other
sides nor fill their queues in the meantime.
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

from benchmarks.common.rounds import seconds
from ddpm.run.errors import RequestError
from ddpm.training.machine.distributed import DistContext, connect


class Loop(Protocol):
    def steps(self, count: int) -> None:
        """Train `count` steps and wait for the device."""


@dataclass(frozen=True)
class Turn:
    """The figures of one turn."""

    seconds_per_step: float
    peak_memory_gb: float | None  # GB (2^30 bytes) of the device that these steps needed at most; None on a CPU


class SideProcess:
    """A training loop in its own process; between turns it is stopped, with all processes that it has started."""

    def __init__(
        self, name: str, make: Callable[[DistContext], AbstractContextManager[tuple[Loop, Any]]], device: str = "auto"
    ) -> None:
        """Start the process, which loads its libraries while other sides load theirs.

        Args:
            make: called in the process, makes the loop and facts about it; can be pickled, as can the facts.
            device: value of `--device`.
        """
        self.name = name
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs, make, device))
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """Id of the process, and of the group of all processes that it starts."""
        return self._process.pid

    def build(self) -> Any:
        """Make the loop. Returns the facts that `make` gives about it.

        Raises:
            RequestError: the side has failed.
        """
        self._receive()  # wait until it has loaded
        return self._ask("build")

    def turn(self, steps: int) -> Turn:
        """Train `steps` steps, after one that is not timed.

        Raises:
            RequestError: the side has failed.
        """
        return self._ask(steps)

    def call(self, function: Callable[[Loop, torch.device], Any]) -> Any:
        """What `function(loop, device)` returns in the process, both of which can be pickled.

        Raises:
            RequestError: the side has failed.
        """
        return self._ask(function)

    def close(self) -> None:
        if self._process.is_alive():
            with suppress(ProcessLookupError):  # it has no group of its own before it has loaded
                os.killpg(self.pid, signal.SIGCONT)
            self._pipe.close()
            self._process.join()

    def _ask(self, what: object) -> Any:
        os.killpg(self.pid, signal.SIGCONT)
        self._pipe.send(what)
        return self._receive()

    def _receive(self) -> Any:
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise RequestError(f"side '{self.name}' has failed, see above") from None
        if isinstance(answer, RequestError):
            raise answer
        os.killpg(self.pid, signal.SIGSTOP)
        return answer


def _serve(
    pipe: Connection, make: Callable[[DistContext], AbstractContextManager[tuple[Loop, Any]]], device: str
) -> None:
    # else ours would take the other sides' turns for the load of other programs, and compute with fewer threads
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    os.setpgrp()  # its workers are stopped with it; if the parent dies, the group gets SIGHUP and SIGCONT
    multiprocessing.set_start_method(None, force=True)  # its workers start as they do in any other process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        pipe.send("loaded")
        pipe.recv()
        with connect(device) as world, make(world) as (loop, about):
            pipe.send(about)
            while True:
                asked = pipe.recv()
                if callable(asked):
                    pipe.send(asked(loop, world.device))
                    continue
                loop.steps(1)
                on_gpu = world.device.type == "cuda"
                if on_gpu:  # of these steps alone, without the search for the fastest kernels
                    torch.cuda.reset_peak_memory_stats(world.device)
                taken = seconds(lambda steps=asked: loop.steps(steps), world.device) / asked
                peak = torch.cuda.max_memory_allocated(world.device) / 2**30 if on_gpu else None
                if on_gpu:  # the sides share its memory
                    torch.cuda.empty_cache()
                pipe.send(Turn(taken, peak))
    except (EOFError, BrokenPipeError):
        pass  # the parent has closed the pipe
    except RequestError as error:
        pipe.send(error)
