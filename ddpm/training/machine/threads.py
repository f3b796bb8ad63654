"""The number of threads that torch computes with on a CPU: one for each core that other processes leave free.

OpenMP's threads wait for each other in every operation. If another process runs on one of their cores, all of them
wait for that core, and a step takes up to a hundred times as long. A single thread gets its share of a core, like any
process.

This module is imported before torch, because libgomp reads its variables when it is loaded.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm.training.machine.control_groups import Quota, cpu_quota, read, used_in

if TYPE_CHECKING:
    import torch

SPINS = "20000"  # about 1 ms; libgomp's 300,000 can let a thread that waits for a busy core burn its whole time slice
INTERVAL = 5.0  # seconds between two measurements of the load of other processes
TOGETHER = 20  # steps between two measurements of several processes, which must measure at the same step
TAKE = 0.5  # a thread is dropped if others use more of its core than this; a busy process uses all of it
GIVE = 0.3  # a thread is added if others use at most this much of its core
PATIENCE = 30.0  # seconds that the core must stay free before that; doubled whenever an added thread was dropped again


def limit_spinning() -> None:
    """Shorten the busy waiting of OpenMP's threads, unless the user has set it. To be called before torch is loaded."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS


def usable_cores() -> set[int]:
    """The cores that this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def busy_seconds(stat: str, cores: Iterable[int]) -> float | None:
    """Seconds that `cores` have been busy since boot, from the text of /proc/stat. None if it has no such cores.

    Time that the host of a virtual machine took ("steal") counts; waiting for a disk does not.
    """
    wanted, ticks = {f"cpu{number}" for number in cores}, 0
    for line in stat.splitlines():
        name, *counts = line.split()
        if name in wanted:
            user, nice, system, _idle, _iowait, *rest = map(int, counts)
            ticks += user + nice + system + sum(rest[:3])  # irq, softirq, steal; guests are counted as users
    return ticks / os.sysconf("SC_CLK_TCK") if ticks else None


@dataclass(frozen=True)
class Reading:
    """CPU seconds used up to the time `at`."""

    at: float
    own: float  # by this process
    machine: float | None  # by all processes, on this process's cores
    group: float | None = None  # by all processes of the control group that has a quota

    @staticmethod
    def take(cores: Iterable[int], quota: Quota | None) -> Reading:
        group = used_in(quota.folder) if quota else None
        machine = busy_seconds(read(Path("/proc/stat")), cores)
        return Reading(time.monotonic(), time.process_time(), machine, group)


BEGAN = Reading.take(usable_cores(), cpu_quota())  # the first interval is the time that imports take


def free_cores(cores: int, quota: float | None, before: Sequence[Reading], now: Sequence[Reading]) -> float:
    """Cores that were not used by other processes in the time from `before` to `now`.

    Args:
        cores: number of cores that our processes may run on.
        quota: CPU quota of the control group, in cores.
        before, now: readings of each of our processes on this machine, in the same order.
    """
    seconds = max(now[0].at - before[0].at, 1e-9)
    own = sum(late.own - early.own for early, late in zip(before, now, strict=True))

    def taken(early: float | None, late: float | None) -> float:
        return max(0.0, late - early - own) / seconds if early is not None and late is not None else 0.0

    free = cores - taken(before[0].machine, now[0].machine)
    if quota is not None:
        free = min(free, quota - taken(before[0].group, now[0].group))
    return max(0.0, free)


def fitting(most: int, free: float, spare: float = TAKE) -> int:
    """Threads for `free` cores, 1 to `most`: a core counts as free while others use at most `spare` of it."""
    return max(1, min(most, math.ceil(free - 1 + spare)))


def most_threads(default: int, local_world_size: int, quota: Quota | None = None) -> int:
    """Threads of each of `local_world_size` processes on an otherwise idle machine, at most torch's `default`.

    More threads than cores slow each other down tenfold, whatever OMP_NUM_THREADS says.
    """
    cores, quota = len(usable_cores()), quota or cpu_quota()
    allowed = min(cores, math.floor(quota.cores + 0.01)) if quota else cores
    return max(1, min(default, allowed // local_world_size))


class Adjustment:
    """Adapts the number of threads to the free cores: reduces it at once, raises it again only after a quiet period."""

    def __init__(self, most: int) -> None:
        self.most = self.number = most
        self._patience = PATIENCE
        self._quiet: tuple[float, int] | None = None  # time since which more threads fit, and how many fit throughout
        self._added = False  # have threads been added since some were last dropped?

    def __call__(self, free: float, at: float) -> int:
        """The number of threads from now on.

        Args:
            free: cores that others have left free for this process since the last call.
            at: time in seconds.
        """
        fits, could = fitting(self.most, free, TAKE), fitting(self.most, free, GIVE)
        if fits < self.number:
            self._patience *= 2 if self._added else 1
            self.number, self._added, self._quiet = fits, False, None
        elif could > self.number:
            since, least = self._quiet or (at, could)
            self._quiet = since, min(least, could)
            if at - since >= self._patience:
                self.number, self._added, self._quiet = self._quiet[1], True, None
        else:
            self._quiet = None
        return self.number


class Threads:
    """Sets the number of torch's threads in this process, at the start and during training. Every process has one.

    OMP_NUM_THREADS is respected, and nothing changes where a GPU trains. The processes of a run agree on one number.
    """

    def __init__(self, device: torch.device, gather: Callable[[object], list] = lambda value: [value]) -> None:
        """
        Args:
            device: what this process trains on.
            gather: returns the values of all processes, in rank order, on every process. Left out: a single process.
        """
        self._gather, self._node = gather, socket.gethostname()
        self._cores, self._quota = usable_cores(), cpu_quota()
        self._next = time.monotonic() + INTERVAL
        self._steps = 0
        on_cpu = device.type == "cpu"
        self.number = torch_threads() if on_cpu else None
        asked = os.environ.get("OMP_NUM_THREADS")
        self.reason = f"OMP_NUM_THREADS={asked}" if asked else "as many as there are cores for it"
        self._adapts = on_cpu and not asked
        if not on_cpu:
            return
        everyone = gather((self._adapts, self.number, self._node, BEGAN))
        self._adapts = all(adapts for adapts, *_ in everyone)
        if not self._adapts:
            return
        self._nodes = [node for _, _, node, _ in everyone]
        self._before = [reading for *_, reading in everyone]
        self._adjust = Adjustment(min(number for _, number, *_ in everyone))
        self._apply(*self._measure())

    @property
    def reduced(self) -> bool:
        """Are there fewer threads than cores, because other processes use those?"""
        return self._adapts and self.number < self._adjust.most

    def step(self) -> str | None:
        """All processes call it after each step. Returns a description of a change, None if there was none."""
        if not self._adapts:
            return None
        self._steps += 1
        alone = len(self._nodes) == 1
        if time.monotonic() < self._next if alone else self._steps % TOGETHER:
            return None
        self._next = time.monotonic() + INTERVAL
        measured = self._measure(INTERVAL)
        return self._apply(*measured) if measured else None

    def _measure(self, at_least: float = 0.0) -> tuple[float, float, float] | None:
        """(free cores for each of our processes, free cores, usable cores) since the last measurement, of the node with
        the fewest free cores. None if that was less than `at_least` seconds ago."""
        now = self._gather(Reading.take(self._cores, self._quota))
        if now[0].at - self._before[0].at < at_least:
            return None
        cores, quota = len(self._cores), self._quota and self._quota.cores
        ours = [rank for rank, node in enumerate(self._nodes) if node == self._node]
        free = free_cores(cores, quota, [self._before[rank] for rank in ours], [now[rank] for rank in ours])
        self._before = now
        here = free / len(ours), free, min(cores, quota or cores)
        return min(self._gather(here))

    def _apply(self, free_each: float, free: float, cores: float) -> str | None:
        """Set the number of threads for this measurement. Returns a description of a change, None if there was none."""
        number, before = self._adjust(free_each, self._before[0].at), self.number
        if number == before:
            return None
        set_torch_threads(number)
        self.number = number
        taken = f"other processes keep {cores - free:.1f} of {cores:g} cores busy"
        self.reason = taken if number < self._adjust.most else "other processes have left the cores alone for a while"
        return f"{in_words(number)} from here on: {self.reason}"


def settle(device: torch.device) -> str | None:
    """Choose the threads of a single-process program, once. Returns a description if they are fewer than the cores."""
    threads = Threads(device)
    return f"{in_words(threads.number)}: {threads.reason}" if threads.reduced else None


def in_words(number: int) -> str:
    return f"{number} thread{'s' * (number != 1)}"


def torch_threads() -> int:
    import torch

    return torch.get_num_threads()


def set_torch_threads(number: int) -> None:
    """Set the number of threads for the calling thread's operations, backward passes on a CPU, oneDNN and MKL."""
    import torch

    torch.set_num_threads(number)
