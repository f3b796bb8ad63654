"""Faults of processes that train, at exact moments; and how they strike from within."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm.run.paths import RunPaths
from ddpm.training.progress import Progress

FULL_DISK, TORN_FILE, STOPPED, CLOCK = "full disk", "torn file", "stopped process", "clock set back"
WRITES = ("open", "os.rename", "os.symlink", "os.mkdir", "os.remove", "shutil.rmtree")  # audit events of Python
NEED_ROOM = ("open", "os.mkdir", "os.symlink")
BY_THE_CLOCK = ("status.json", "/gpus/")  # parts of the names of files that are rewritten every few seconds


@dataclass(frozen=True)
class Fault:
    """What happens in one start of a run to the processes `victims` (ranks), either `delay` seconds after a `step`, or
    at a `write`.

    `kind` is the name of a signal, or:
    - FULL_DISK: after a step, process 0 fills the run's disk for good. At a write, no file can be made until there were
      `lasting` attempts.
    - TORN_FILE: killed; the launcher damages the newest checkpoint.
    - STOPPED: by SIGSTOP.
    - CLOCK: the time of day is set back by `hours`.
    """

    kind: str
    step: int = 0  # the nth optimizer step of the start …
    delay: float = 0.0
    victims: tuple[int, ...] = (0,)
    hours: int = 0
    write: int = 0  # … or the nth time that a process opens a file of the run for writing, moves, links or removes one
    lasting: int = 1

    def __str__(self) -> str:
        who = "both processes" if len(self.victims) == 2 else f"process {self.victims[0]}"
        what = f"{self.kind} by {self.hours} h" if self.hours else self.kind
        late = f"{self.delay * 1000:.0f} ms " if self.delay else ""
        return f"{what}, {who}, " + (f"at write {self.write}" if self.write else f"{late}after step {self.step}")

    def strike(self, rank: int, folder: Path) -> None:
        """Let it happen now to this process, which has this `rank`, in a run that keeps its files in `folder`."""
        if self.kind == FULL_DISK:
            if rank == 0:
                threading.Thread(target=keep_full, args=(folder,), daemon=True).start()
        elif self.kind == CLOCK:
            set_clock_back(self.hours)
            if rank == 0:
                shift_times(folder, self.hours)
        else:
            name = {STOPPED: "SIGSTOP", TORN_FILE: "SIGKILL"}.get(self.kind, self.kind)
            os.kill(os.getpid(), getattr(signal, name))

    def arm(self, rank: int, paths: RunPaths) -> None:
        """Let it happen to this process in its moment, if it trains with train.py and is a victim."""
        if rank not in self.victims:
            return
        if self.write:
            self._count_writes(rank, paths)
            return
        done = 0

        def counted(_: int) -> None:
            nonlocal done
            done += 1
            if done == self.step:
                after(self.delay, lambda: self.strike(rank, paths.root))

        tell_steps(counted)

    def _count_writes(self, rank: int, paths: RunPaths) -> None:
        """Strike at a write, or let the disk be full from there on. What is written by the clock does not count."""
        folders, done = (str(paths.checkpoints), str(paths.metrics)), 0

        def audit(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal done
            if event not in WRITES or not _writes(event, arguments):
                return
            name = os.fsdecode(arguments[0])
            if not name.startswith(folders):
                return
            counts = not any(part in name for part in BY_THE_CLOCK)
            done += counts
            if self.kind == FULL_DISK:
                if event in NEED_ROOM and self.write <= done < self.write + self.lasting:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
            elif counts and done == self.write:
                self.strike(rank, paths.root)

        sys.addaudithook(audit)


def tell_steps(told: Callable[[int], None]) -> None:
    """Let train.py call `told` after each optimizer step of this process, with the steps that the run has had."""
    count_step = Progress.count_step

    def counted(progress: Progress) -> bool:
        first = count_step(progress)
        told(progress.step)
        return first

    Progress.count_step = counted


def after(seconds: float, action: Callable[[], None]) -> None:
    """Call `action` now, or from a thread later."""
    if not seconds:
        action()
        return
    timer = threading.Timer(seconds, action)
    timer.daemon = True  # a run that ends first is not held up
    timer.start()


def _writes(event: str, arguments: tuple[Any, ...]) -> bool:
    """Does an audit event change a file that has a name?"""
    if not isinstance(arguments[0], (str, bytes, os.PathLike)):
        return False
    if event != "open":
        return True
    _, mode, flags = arguments
    return any(letter in mode for letter in "wax+") if mode else bool(flags & (os.O_WRONLY | os.O_RDWR))


def fill(folder: Path) -> None:
    """Take all free space of the disk that `folder` is on."""
    with open(folder / "filler", "ab") as file, suppress(OSError):
        disk = os.fstatvfs(file.fileno())
        if free := disk.f_bavail * disk.f_frsize:
            os.posix_fallocate(file.fileno(), file.tell(), free)


def keep_full(folder: Path) -> None:
    """Fill the disk, and take what pruning frees, too: the disk is shared."""
    while True:
        fill(folder)
        time.sleep(0.005)


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
