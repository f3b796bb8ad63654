"""Reads what a run has published.

`training_metrics.json` takes precedence over its copy, the CSV; events add what a killed start could not write. What is
missing, damaged or contradictory is a finding. Needs no torch and no pandas, as the dashboard reads every second.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ddpm.run.format import number
from ddpm.run.paths import RunPaths
from metrics.files import (
    faults,
    missing,
    read_csv,
    read_document,
    read_errors,
    read_events,
    read_gpus,
    read_status,
    starts_of,
)
from metrics.page import Finding
from metrics.run_data import Limits, RunData

CLOCK_SKEW = 60.0  # seconds that the clocks of two nodes may differ
BEAT = 6.0  # seconds in which a living run renews its heartbeat


class RunReader:
    """Reads a run again and again; a file that did not change is not parsed again."""

    def __init__(
        self, paths: RunPaths, trouble: Callable[[], str | None] = lambda: None, limits: Limits | None = None
    ) -> None:
        self.paths = paths
        self.limits = limits or Limits()
        self._trouble = trouble
        self._cache: dict[Callable, tuple[Any, Any]] = {}
        self._beat: tuple[Any, float] | None = None  # the heartbeat, and when we first saw it (monotonic)
        self._beats = 0

    def read(self) -> RunData:
        now = time.time()
        status = self._read_if_changed(self.paths.status, read_status) or {}
        events = self._read_if_changed(self.paths.events, read_events) or []
        document, unreadable = self._read_if_changed(self.paths.json, read_document) or ({}, missing(self.paths))
        copied, lost = self._read_if_changed(self.paths.csv, read_csv) or ([], None)
        rows = document.get("epochs") or copied
        started = number(status.get("started")) or 0.0
        wrong = faults(self.paths, status, document, unreadable, rows, copied, lost)
        return RunData(
            self.paths, now, self.limits, status, document, rows,
            logs=[event for event in events if event["kind"] == "log"],
            errors=self._read_if_changed(self.paths.events, read_errors) or [],
            nodes=[node for node in read_gpus(self.paths) if _used_since(node) > started - CLOCK_SKEW],
            heartbeat_age=self._age(status, now), trouble=self._trouble(), unreadable=unreadable,
            findings=[Finding("warning", note) for note in wrong],
        )  # fmt: skip

    def read_surely(self) -> RunData:
        """As `read`. A heartbeat that is a little too old may come from a wrong clock: waits to see it renewed."""
        run = self.read()
        if run.silent and run.heartbeat_age - self.limits.heartbeat_sec < CLOCK_SKEW:
            time.sleep(BEAT)
            run = self.read()
        return run

    def _read_if_changed(self, path: Path, read: Callable[[RunPaths], Any]) -> Any:
        try:
            stat = path.stat()
        except OSError:
            return None
        signature = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if self._cache.get(read, (None,))[0] != signature:
            self._cache[read] = (signature, read(self.paths))
        return self._cache[read][1]

    def _age(self, status: dict[str, Any], now: float) -> float:
        """Seconds since the last heartbeat: by its time stamp at first, by our own clock once it has changed.

        The clocks of the job's node and of ours may differ, but a heartbeat that changes proves that the run is alive.
        """
        heartbeat = number(status.get("heartbeat"))
        if heartbeat is None:
            with suppress(OSError):  # it lives as long as somebody writes the file
                return max(0.0, now - self.paths.status.stat().st_mtime)
            return 0.0
        if self._beat is None or self._beat[0] != heartbeat:
            self._beat = (heartbeat, time.monotonic())
            self._beats += 1
        return time.monotonic() - self._beat[1] if self._beats > 1 else max(0.0, now - heartbeat)


def _used_since(node: dict[str, Any]) -> float:
    """When the latest start began on a node, by its GPU file: those of nodes that only earlier starts used stay behind.

    Without a GPU, when the file was written.
    """
    starts = starts_of(node) if node["gpus"] else []
    return number((starts[-1] if starts else node).get("time")) or 0.0


def read_run(paths: RunPaths) -> RunData:
    """The run as its files describe it now."""
    return RunReader(paths).read_surely()


def load_run(paths: RunPaths) -> RunData:
    """A run that has figures.

    Raises:
        RequestError: `training_metrics.json` is missing, or is not one.
    """
    return read_run(paths).need_figures()
