"""How many threads torch computes with on a CPU: one for each core that other processes leave to it.

In every operation OpenMP's threads wait for each other. Where another process holds one of their cores, all wait until
its turn is over, and a step takes up to a hundred times as long. One thread alone gets what any process gets.

This module loads before torch does, for libgomp reads its variables when it is loaded.
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

if TYPE_CHECKING:
    import torch

SPINS = "20000"  # about 1 ms; libgomp's 300,000 can let a thread that waits for a busy core burn its whole time slice
INTERVAL = 5.0  # seconds between two looks at what other processes take
TOGETHER = 20  # steps between two looks of several processes, which have to look at the same step
TAKE = 0.5  # cores that others may take of a thread's before it is taken away; a busy process takes a whole one
GIVE = 0.3  # cores that others may take of a thread's for it to be given back
PATIENCE = 30.0  # seconds for which that has to be so; twice as many after each time that it did not last


def limit_spinning() -> None:
    """Let OpenMP's threads wait less busily for each other, unless the user has decided. Before torch is loaded."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS


def _read(path: Path) -> str:
    """The file's content; nothing if there is no such file or it may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def usable_cores() -> set[int]:
    """The cores that the system lets this process run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


@dataclass(frozen=True)
class Quota:
    """Processor time that a container or job may take, in cores, and the folder of the control group that says so."""

    cores: float
    folder: Path


def cpu_quota(proc: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")) -> Quota | None:
    """The tightest quota of this process's control group and those above it (cgroup v2 or v1); None if there is none.

    Args:
        proc: lists the groups that the process is in.
        groups: where they are mounted. A container sees its own group at the top.
    """
    found = []
    for line in _read(proc).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        for mount in {groups / controllers, groups / "cpu", groups / "cpu,cpuacct"} if controllers else {groups}:
            below = mount / path.lstrip("/")
            for folder in (below, *below.parents):
                if cores := _quota_of(folder):
                    found.append(Quota(cores, folder))
                if folder == mount:
                    break
    return min(found, key=lambda quota: quota.cores, default=None)


def _quota_of(folder: Path) -> float | None:
    limit, _, period = _read(folder / "cpu.max").strip().partition(" ")
    if not limit:
        limit, period = _read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip()
    try:
        return int(limit) / int(period) if int(limit) > 0 else None
    except (ValueError, ZeroDivisionError):  # "max", or no such file
        return None


def _used_in(folder: Path) -> float | None:
    """Seconds of processor time that all processes of a control group have used."""
    for line in _read(folder / "cpu.stat").splitlines():
        if line.startswith("usage_usec "):
            return int(line.split()[1]) / 1e6
    used = _read(folder / "cpuacct.usage").strip()
    return int(used) / 1e9 if used.isdigit() else None


def busy_seconds(stat: str, cores: Iterable[int]) -> float | None:
    """Seconds for which `cores` have been busy since the machine began, by the text of /proc/stat. None if it is empty.

    Time that the host of a virtual machine took away ("steal") counts; waiting for a disk does not.
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
    """Seconds of processor time used up to a moment."""

    at: float
    own: float  # by this process
    machine: float | None  # by all, on this process's cores
    group: float | None = None  # by all in the control group that has a quota

    @staticmethod
    def take(cores: Iterable[int], quota: Quota | None) -> Reading:
        group = _used_in(quota.folder) if quota else None
        machine = busy_seconds(_read(Path("/proc/stat")), cores)
        return Reading(time.monotonic(), time.process_time(), machine, group)


BEGAN = Reading.take(usable_cores(), cpu_quota())  # so that the imports are an interval to judge by


def free_cores(cores: int, quota: float | None, before: Sequence[Reading], now: Sequence[Reading]) -> float:
    """Cores that processes other than ours have left free in the time from `before` to `now`.

    Args:
        cores: that our processes may run on.
        quota: processor time that the control group may take, in cores.
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
    """Threads of a process, at most `most`, for `free` cores: one fewer where more than `spare` of a core is taken."""
    return max(1, min(most, math.ceil(free - 1 + spare)))


def most_threads(default: int, local_world_size: int, quota: Quota | None = None) -> int:
    """Threads of each of `local_world_size` processes when nobody else wants the cores, at most torch's `default`.

    More threads than cores slow each other down tenfold, whatever OMP_NUM_THREADS has been set to.
    """
    cores, quota = len(usable_cores()), quota or cpu_quota()
    allowed = min(cores, math.floor(quota.cores + 0.01)) if quota else cores
    return max(1, min(default, allowed // local_world_size))


class Adjustment:
    """The number of threads as the free cores change: fewer at once, more again only after a while of peace."""

    def __init__(self, most: int) -> None:
        self.most = self.number = most
        self._patience = PATIENCE
        self._peace: tuple[float, int] | None = None  # since when more threads would have fitted, and how many at least
        self._gave = False  # have threads been given back since the last time that they were taken?

    def __call__(self, free: float, at: float) -> int:
        """The number of threads from now on.

        Args:
            free: cores that others have left to this process since the last call.
            at: the time, in seconds.
        """
        fits, could = fitting(self.most, free, TAKE), fitting(self.most, free, GIVE)
        if fits < self.number:
            self._patience *= 2 if self._gave else 1
            self.number, self._gave, self._peace = fits, False, None
        elif could > self.number:
            since, least = self._peace or (at, could)
            self._peace = since, min(least, could)
            if at - since >= self._patience:
                self.number, self._gave, self._peace = self._peace[1], True, None
        else:
            self._peace = None
        return self.number


class Threads:
    """Decides how many threads torch uses in this process, at the start and again as it trains. Every process has one.

    OMP_NUM_THREADS is honoured, and where a GPU trains nothing is changed. The processes of a run agree on one number.
    """

    def __init__(self, device: torch.device, gather: Callable[[object], list] = lambda value: [value]) -> None:
        """
        Args:
            device: what this process trains on.
            gather: returns the value of every process, in rank order, on every process; alone if left out.
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
        self._apply(*self._look())

    @property
    def reduced(self) -> bool:
        """Are there fewer threads than cores for them, because others take those?"""
        return self._adapts and self.number < self._adjust.most

    def step(self) -> str | None:
        """To be called after each step, by all processes. What was changed, in words; None if nothing was."""
        if not self._adapts:
            return None
        self._steps += 1
        alone = len(self._nodes) == 1
        if time.monotonic() < self._next if alone else self._steps % TOGETHER:
            return None
        self._next = time.monotonic() + INTERVAL
        looked = self._look(INTERVAL)
        return self._apply(*looked) if looked else None

    def _look(self, at_least: float = 0.0) -> tuple[float, float, float] | None:
        """(cores, how many of them others have left free, the same for each of our processes there), since the last
        look, on the node that has the fewest free. None if it is less than `at_least` seconds ago."""
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
        number, before = self._adjust(free_each, self._before[0].at), self.number
        if number == before:
            return None
        set_torch_threads(number)
        self.number = number
        taken = f"other processes keep {cores - free:.1f} of {cores:g} cores busy"
        self.reason = taken if number < self._adjust.most else "other processes have left the cores alone for a while"
        return f"{in_words(number)} from here on: {self.reason}"


def settle(device: torch.device) -> str | None:
    """Choose the threads of a program of one process, once. Says so if they are fewer than there are cores for."""
    threads = Threads(device)
    return f"{in_words(threads.number)}: {threads.reason}" if threads.reduced else None


def in_words(number: int) -> str:
    return f"{number} thread{'s' * (number != 1)}"


def torch_threads() -> int:
    import torch

    return torch.get_num_threads()


def set_torch_threads(number: int) -> None:
    """For this thread, which also runs the backward pass of what it computes on a CPU, and for oneDNN and MKL."""
    import torch

    torch.set_num_threads(number)
