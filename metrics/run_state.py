"""Everything a run has published, as one value: what the dashboard draws, and what is wrong with the run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddpm.run.files import open_regular
from ddpm.run.format import number, rough_duration
from ddpm.run.paths import RunPaths
from metrics.live.gpus import read_gpus
from metrics.live.status import ENDED, read_csv, read_events, read_status

DEAD_AFTER = 45.0  # seconds; the heartbeat comes every 5, and a network file system may hold it back for some 30
STUCK_AFTER = 300.0  # seconds without a step while training
BUSY_AFTER = 1800.0  # seconds in any other phase
CLOCK_SKEW = 60.0  # seconds that the clocks of two nodes may differ


@dataclass(frozen=True)
class RunState:
    """The published state of the run `run` at the time `now`; `heartbeat_age` is in seconds.

    `trouble`: what the run itself could not write; `damaged`: what of its files cannot be read.
    """

    run: str
    now: float
    status: dict[str, Any] | None = None
    logs: list[dict[str, Any]] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    nodes: list[dict[str, Any]] = field(default_factory=list)
    heartbeat_age: float = 0.0
    trouble: str | None = None
    damaged: str | None = None

    @property
    def ended(self) -> bool:
        return self.status is not None and self.status.get("state") in ENDED

    @property
    def dead(self) -> bool:
        """It says that it runs, but nobody has renewed that for a while."""
        return self.status is not None and not self.ended and self.heartbeat_age > DEAD_AFTER

    @property
    def notice(self) -> str | None:
        """What is wrong, in a line; None when all is well."""
        return "; ".join(filter(None, (self._ill, self.damaged))) or None

    @property
    def _ill(self) -> str | None:
        status = self.status
        if status is None or self.trouble:
            return self.trouble
        if self.ended:
            return status.get("message") if status.get("state") == "failed" else None
        if self.dead:
            job = f", Slurm job {status['slurm_job_id']}" if status.get("slurm_job_id") else ""
            where = f"the job on node {status.get('host')} (pid {status.get('pid')}{job})"
            return f"no heartbeat for {rough_duration(self.heartbeat_age)}: {where} has probably died"
        phase = status.get("phase")
        since = number(status.get("progress_time" if phase == "training" else "phase_time"))
        idle = self.now - max(since or self.now, number(status.get("phase_time")) or 0.0)
        if idle > (STUCK_AFTER if phase == "training" else BUSY_AFTER):
            return f"the job lives, but made no step for {rough_duration(idle)} (phase: {phase})"
        return None


class RunReader:
    """Reads a run's state again and again; a file that did not change is not parsed again."""

    def __init__(self, paths: RunPaths, trouble: Callable[[], str | None] = lambda: None) -> None:
        self.paths = paths
        self._trouble = trouble
        self._cache: dict[Path, tuple[Any, Any]] = {}
        self._beat: tuple[Any, float] | None = None  # the heartbeat, and when we first saw it (monotonic)
        self._beats = 0

    def read(self) -> RunState:
        now = time.time()
        status = self._fresh(self.paths.status, read_status)
        events = self._fresh(self.paths.events, read_events) or []
        epochs, damaged = self._fresh(self.paths.csv, read_csv) or ([], None)
        started = number((status or {}).get("started")) or 0.0
        return RunState(
            run=self.paths.run,
            now=now,
            status=status,
            logs=[event for event in events if event.get("kind") == "log"],
            epochs=epochs,
            # the files of nodes that only an earlier start of the run used stay behind
            nodes=[node for node in read_gpus(self.paths) if (number(node.get("time")) or 0) > started - CLOCK_SKEW],
            heartbeat_age=self._age(status, now),
            trouble=self._trouble(),
            damaged=self._unreadable(status) or damaged,
        )

    def _unreadable(self, status: dict[str, Any] | None) -> str | None:
        """Which of the published files is there and cannot be read, and why."""
        for path in (self.paths.status, self.paths.events, self.paths.csv):
            try:
                open_regular(path).close()
            except FileNotFoundError:
                continue
            except OSError as error:
                return f"{path.name} cannot be read: {error.strerror}"
            if path == self.paths.status and status is None:
                return f"{path.name} is damaged: it names no state"
        return None

    def _fresh(self, path: Path, read: Callable[[RunPaths], Any]) -> Any:
        try:
            stat = path.stat()
        except OSError:
            return None
        signature = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if self._cache.get(path, (None,))[0] != signature:
            self._cache[path] = (signature, read(self.paths))
        return self._cache[path][1]

    def _age(self, status: dict[str, Any] | None, now: float) -> float:
        """Seconds since the last heartbeat: by the stamp at first, by our own clock once we saw it beat.

        The job's node and ours may disagree about the time; a heart that beats before our eyes is alive all the same.
        """
        heartbeat = number((status or {}).get("heartbeat"))
        if heartbeat is None:
            return 0.0
        if self._beat is None or self._beat[0] != heartbeat:
            self._beat = (heartbeat, time.monotonic())
            self._beats += 1
        return time.monotonic() - self._beat[1] if self._beats > 1 else max(0.0, now - heartbeat)
