"""A run's published state: what training says of itself while it runs, and how anybody reads it back.

Rank 0 keeps one `StatusPublisher`. It leaves two files in the run's folder under `metrics/output/`:

- `status.json`: where the run stands now, rewritten atomically about once a second by a background thread. The thread
  also writes when nothing changed (the heartbeat), so an old `heartbeat` means that the process is gone, and an old
  `progress_time` that the process lives but no longer steps.
- `events.jsonl`: what happened, one JSON object a line, appended. `{"kind": "log"}` is a message with a severity,
  `{"kind": "epoch"}` the row of an epoch, `{"kind": "start"}` the last that an earlier start said of itself.

The dashboard (`metrics/live/dashboard.py`) draws these files, the CSV and `gpus/*.json`; it never asks training.
Stamps are seconds since 1970, so that another machine can read them; intervals are measured on the monotonic clock.
"""

from __future__ import annotations

import contextlib
import json
import math
import numbers
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddpm.run.files import atomic_write, open_regular, without_waiting
from ddpm.run.lock import slurm_start
from ddpm.run.paths import RunPaths
from metrics.files import ENDED, read_status

PROGRESS = (
    "world_size",
    "nodes",
    "device",
    "epoch",
    "epochs",
    "batch",
    "batches",
    "step",
    "total_steps",
    "images_seen",
    "gpus",
    "start_step",
    "start_images",
)
START = (  # what is kept of a start once another one writes status.json
    "state", "started", "heartbeat", "host", "slurm_job_id", "slurm_restart", "world_size", "device", "gpus",
    "step", "start_step", "total_steps", "images_seen", "start_images",
)  # fmt: skip


class SafeWriter:
    """Writes that must never end training: the first failure is said on stderr, and every write is tried anew.

    `trouble` is the reason of the latest write's failure, None when it went well.
    """

    def __init__(self) -> None:
        self.trouble: str | None = None
        self._warned = False

    def write(self, action: Callable[[Path, str], None], path: Path, text: str) -> bool:
        """Call `action(path, text)`, making the folder first if it is missing; whether it went well."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            action(path, text)
        except OSError as error:
            self.trouble = f"cannot write {path}: {error.strerror or error}"
            if not self._warned:
                self._warned = True  # first, as stderr may lead back here
                print(f"warning: {self.trouble}; training goes on, and writing is tried again", file=sys.stderr)
            return False
        self.trouble = None
        return True


def append_line(path: Path, line: str) -> None:
    """Append `line` in one write, and close the file: a deleted or rotated file comes back with the next line."""
    with open(path, "ab", buffering=0, opener=without_waiting) as file:
        file.write(line.encode(errors="backslashreplace") + b"\n")


def _plain(value: Any) -> Any:
    """What JSON can say of `value`: NumPy's numbers become Python's, NaN and infinity null."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else None


def to_json(fields: dict[str, Any]) -> str:
    """A flat dict as one line of strict JSON."""
    return json.dumps({key: _plain(value) for key, value in fields.items()}, allow_nan=False)


class StatusPublisher:
    """Publishes the state of the run `paths`; `fields` are the first values, in the words of `status.json`.

    `update` only stores, so it costs the training thread microseconds; a daemon thread does the writing.
    """

    def __init__(
        self, paths: RunPaths, fields: dict[str, Any] | None = None, *, interval: float = 1.0, heartbeat: float = 5.0
    ) -> None:
        now = time.time()
        self.paths = paths
        self.writer = SafeWriter()
        self._interval = interval
        self._heartbeat = heartbeat
        self._fields: dict[str, Any] = {
            **{"run": paths.run, "data": None, "state": "running", "phase": "starting", "message": None},
            **{"host": socket.gethostname(), "pid": os.getpid(), **job_of_this_process()},
            **{"world_size": 1, "nodes": 1, "device": "cpu", "gpus": 0},
            **{"started": now, "heartbeat": now, "progress_time": now, "phase_time": now},
            **{"epoch": 0, "epochs": 0, "batch": 0, "batches": 0, "step": 0, "total_steps": 0, "images_seen": 0},
            **{"start_step": None, "start_images": None},  # where this start begins to train
            **dict.fromkeys(("loss", "lr", "grad_norm", "samples_per_sec", "eta_sec", "exit_code")),
            "retry": True,
            **(fields or {}),
        }
        self._changed = True
        self._first = True  # is what was written before another start's?
        self._lock = threading.Lock()  # guards the fields
        self._write_lock = threading.Lock()  # one writer at a time
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)

    def start(self) -> None:
        """Write `status.json` once, then keep writing it from the thread."""
        self._close_torn_line()
        self._write()
        self._thread.start()

    def update(self, **fields: Any) -> None:
        """Store new values; `progress_time` and `phase_time` follow from `step` and `phase`."""
        with self._lock:
            if fields.get("step", self._fields["step"]) != self._fields["step"]:
                self._fields["progress_time"] = time.time()
            if fields.get("phase", self._fields["phase"]) != self._fields["phase"]:
                self._fields["phase_time"] = time.time()
            self._fields.update(fields)
            self._changed = True

    def fields(self) -> dict[str, Any]:
        """A copy of the fields as they stand."""
        with self._lock:
            return dict(self._fields)

    def log(self, message: str, severity: str = "info") -> None:
        """Publish a message, one of `SEVERITIES`."""
        self.event(kind="log", severity=severity, message=message)

    def epoch(self, row: dict[str, Any]) -> None:
        """Publish the row of an epoch, the CSV's columns as keys."""
        self.event(kind="epoch", row={key: _plain(value) for key, value in row.items()})

    def event(self, **event: Any) -> None:
        """Append one line to `events.jsonl`, stamped with the time. Values must be JSON's."""
        self.writer.write(append_line, self.paths.events, json.dumps({"time": time.time(), **event}))

    def close(self, state: str, exit_code: int | None = None, message: str | None = None) -> None:
        """Write the final state before returning, and end the thread."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        phase = {"phase": "done"} if state == "finished" else {}
        self.update(state=state, exit_code=exit_code, message=message, **phase)
        self._write()

    def _run(self) -> None:
        written = time.monotonic()
        while not self._closing.wait(self._interval):
            now = time.monotonic()
            due = self._changed or now - written >= self._heartbeat or not self.paths.status.exists()
            if due and self._write():
                written = now

    def _write(self) -> bool:
        with self._write_lock:
            with self._lock:
                self._fields["heartbeat"] = time.time()
                text = to_json(self._fields)
                self._changed = False
            if self._first:
                self._first = False
                self._keep_earlier()
            return self.writer.write(atomic_write, self.paths.status, text + "\n")

    def _keep_earlier(self) -> None:
        """Keep how far the start before this one came, and when it last gave a sign of life."""
        earlier = read_status(self.paths)
        if earlier:
            self.event(kind="start", **{name: _plain(earlier.get(name)) for name in START})

    def _close_torn_line(self) -> None:
        """A crash may have left half a line: end it, so that the next event is a line of its own."""
        try:
            with open_regular(self.paths.events) as file:
                file.seek(-1, os.SEEK_END)
                torn = file.read(1) != b"\n"
        except OSError:  # no events yet, or none at all in the file
            return
        if torn:
            self.writer.write(append_line, self.paths.events, "")


def job_of_this_process() -> dict[str, str | None]:
    """The Slurm job, and how often Slurm has started it again; null outside Slurm."""
    job = os.environ.get("SLURM_JOB_ID")
    return {"slurm_job_id": job, "slurm_restart": os.environ.get("SLURM_RESTART_COUNT", "0") if job else None}


def publish_failure(paths: RunPaths, data: str, exit_code: int, message: str, keep: bool = False) -> None:
    """Let `status.json` say why a start came to nothing, unless it knows better: of this very process, or of a run that
    is finished. Where nothing can be written, nothing is said.

    Args:
        keep: this start had begun, in another process: what that one said of its progress, and of its end, stays.
    """
    status = read_status(paths) or {}
    itself = (status.get("pid"), status.get("host")) == (os.getpid(), socket.gethostname())
    if itself or status.get("state") in (ENDED if keep else ("finished",)):
        return
    with contextlib.suppress(OSError):
        paths.metrics.mkdir(parents=True, exist_ok=True)
        if os.access(paths.metrics, os.W_OK):
            publisher = StatusPublisher(paths, {"data": data, "retry": exit_code != 2})
            if keep and slurm_start(status) == slurm_start(publisher.fields()):
                publisher.update(**{name: status[name] for name in PROGRESS if name in status})
            publisher.close("failed", exit_code, message)
