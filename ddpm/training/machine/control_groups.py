"""What a job or a container may use of a machine: CPU time and memory, by Linux control groups (cgroup v2 or v1).

This module is imported before torch, by `threads.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc/self/cgroup")  # lists the control groups of this process
GROUPS = Path("/sys/fs/cgroup")  # their mount point; a container sees its own group at the top


def read(path: Path) -> str:
    """The content of a file; empty if it is missing or cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


@dataclass(frozen=True)
class Quota:
    """CPU quota of a container or job, in cores, and the folder of the control group that sets it."""

    cores: float
    folder: Path


def cpu_quota(proc: Path = PROC, groups: Path = GROUPS) -> Quota | None:
    """The tightest quota of this process's control group and those above it; None if there is none."""
    quotas = [Quota(cores, folder) for folder in _folders("cpu", proc, groups) if (cores := _quota_of(folder))]
    return min(quotas, key=lambda quota: quota.cores, default=None)


def memory_left(proc: Path = PROC, groups: Path = GROUPS) -> int | None:
    """Bytes that the process's control group and those above it may still take; None if none has a limit."""
    return min((left for folder in _folders("memory", proc, groups) if (left := _left_of(folder)) is not None),
               default=None)  # fmt: skip


def used_in(folder: Path) -> float | None:
    """CPU seconds used by all processes of a control group; None if unknown."""
    for line in read(folder / "cpu.stat").splitlines():
        if line.startswith("usage_usec "):
            return int(line.split()[1]) / 1e6
    used = read(folder / "cpuacct.usage").strip()
    return int(used) / 1e9 if used.isdigit() else None


def _folders(controller: str, proc: Path, groups: Path) -> Iterator[Path]:
    """The folders of the process's control group of this controller, and of those above it."""
    for line in read(proc).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for mount in {groups / controllers, groups / controller, groups / "cpu,cpuacct"} if controllers else {groups}:
            below = mount / path.lstrip("/")
            yield from (folder for folder in (below, *below.parents) if folder.is_relative_to(mount))


def _quota_of(folder: Path) -> float | None:
    limit, _, period = read(folder / "cpu.max").strip().partition(" ")
    if not limit:
        limit, period = read(folder / "cpu.cfs_quota_us").strip(), read(folder / "cpu.cfs_period_us").strip()
    try:
        return int(limit) / int(period) if int(limit) > 0 else None
    except (ValueError, ZeroDivisionError):  # "max", or no such file
        return None


def _left_of(folder: Path) -> int | None:
    """Bytes below the memory limit of a group. What it keeps of files is given back as soon as memory is wanted."""
    second = (folder / "memory.max").exists()
    names = ("memory.max", "memory.current", "inactive_file") if second else (
        "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")  # fmt: skip
    limit, used = (read(folder / name).strip() for name in names[:2])
    if not (limit.isdigit() and used.isdigit()):  # "max", or no such file
        return None
    kept = re.search(rf"^{names[2]} (\d+)$", read(folder / "memory.stat"), re.MULTILINE)
    return max(0, int(limit) - int(used) + int(kept[1] if kept else 0))
