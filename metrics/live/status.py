"""Publishes the state of a run while it trains: `status.json` and `events.jsonl` in `metrics/output/<run>/`.

- `status.json`: where the run stands, rewritten atomically about once a second by a background thread. The thread also
  writes when nothing changed (the heartbeat): an old `heartbeat` means that the process is gone, an old
  `progress_time` that it lives but makes no steps.
- `events.jsonl`: a JSON object a line, appended. `{"kind": "log"}` is a message with a severity, `{"kind": "epoch"}` an
  epoch's row of figures, `{"kind": "start"}` the last status of an earlier start.

`metrics/files.py` reads them. Times are seconds since 1970, as other machines read them; intervals are measured on the
monotonic clock.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ddpm.run.files import atomic_write, open_regular, strict_json, without_waiting
from ddpm.run.format import finite
from ddpm.run.launch import torchrun_of
from ddpm.run.paths import RunPaths
from metrics.files import ENDED, NOW, read_status

PROGRESS = (  # fields of status.json that tell when a start began, how far it came, and on what
    "started", "world_size", "nodes", "device", "gpus", "epoch", "epochs", "batch", "batches",
    "step", "start_step", "total_steps", "images_seen", "start_images",
)  # fmt: skip
REACHED = ("epoch", "epochs", "batch", "batches", "step", "total_steps", "images_seen")  # where the run stands
START = (  # fields of status.json that a `start` event keeps of an earlier start
    "state", "started", "heartbeat", "host", "slurm_job_id", "slurm_restart", "torchrun", "world_size", "device",
    "gpus", "step", "start_step", "total_steps", "images_seen", "start_images",
)  # fmt: skip


class SafeWriter:
    """Writes files without ever raising: the first failure is printed on stderr, and later writes are tried again.

    `trouble` says why the latest write failed; None if it did not.
    """

    def __init__(self) -> None:
        self.trouble: str | None = None
        self._warned = False

    def write(self, action: Callable[[Path, str], None], path: Path, text: str) -> bool:
        """Call `action(path, text)` after creating the folder. Returns whether that worked."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            action(path, text)
        except OSError as error:
            self.trouble = f"cannot write {path}: {error.strerror or error}"
            if not self._warned:
                self._warned = True  # before printing, as stderr may be logged and so be written here
                print(f"warning: {self.trouble}; training goes on, and writing is tried again", file=sys.stderr)
            return False
        self.trouble = None
        return True


def append_line(path: Path, line: str) -> None:
    """Append `line` in one write. The file is opened anew, so one that was deleted or rotated is created again.

    Raises:
        OSError: it cannot be written, or not to its end; the next line then begins anew.
    """
    text = (b"" if _ends_whole(path) else b"\n") + line.encode(errors="backslashreplace") + b"\n"
    with open(path, "ab", buffering=0, opener=without_waiting) as file:
        if file.write(text) < len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _ends_whole(path: Path) -> bool:
    """Does a file end with a whole line? A full disk may have cut the last one."""
    with suppress(OSError), open_regular(path) as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"
    return True


class StatusPublisher:
    """Publishes the state of the run `paths`.

    `update` only stores values, which costs the training thread microseconds; a daemon thread writes them.

    Args:
        fields: initial values, by their names in `status.json`.
        interval: seconds between writes of changed values.
        heartbeat: seconds between writes of unchanged ones.
    """

    def __init__(
        self, paths: RunPaths, fields: dict[str, Any] | None = None, *, interval: float = 1.0, heartbeat: float = 5.0
    ) -> None:
        now, earlier = time.time(), read_status(paths) or {}
        self.paths = paths
        self.writer = SafeWriter()
        self._interval = interval
        self._heartbeat = heartbeat
        self._fields: dict[str, Any] = {
            **{"run": paths.run, "data": None, "state": "running", "phase": "starting", "message": None},
            **{"host": socket.gethostname(), "pid": os.getpid(), **job_of_this_process()},
            **{"torchrun": torchrun_of(os.environ), "world_size": 1, "nodes": 1, "device": "cpu", "gpus": 0},
            **{"started": now, "heartbeat": now, "progress_time": now, "phase_time": now},
            **{name: earlier.get(name) or 0 for name in REACHED},  # a start that fails at once changes nothing of it
            **{"start_step": None, "start_images": None},  # where this start begins to train
            **dict.fromkeys((*NOW, "eta_sec", "exit_code")),
            "retry": True,
            **(fields or {}),
        }
        self._changed = True
        self._first = True  # is the file on disk that of an earlier start?
        self._lock = threading.Lock()  # guards the fields
        self._write_lock = threading.Lock()  # one writer at a time
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)

    def start(self) -> None:
        """Write `status.json`, and start the thread that keeps it up to date."""
        self._close_torn_line()
        self._write()
        self._thread.start()

    def update(self, **fields: Any) -> None:
        """Store new values. A new `step` sets `progress_time`, a new `phase` sets `phase_time`."""
        with self._lock:
            if fields.get("step", self._fields["step"]) != self._fields["step"]:
                self._fields["progress_time"] = time.time()
            if fields.get("phase", self._fields["phase"]) != self._fields["phase"]:
                self._fields["phase_time"] = time.time()
            self._fields.update(fields)
            self._changed = True

    def fields(self) -> dict[str, Any]:
        """A copy of the present values."""
        with self._lock:
            return dict(self._fields)

    def log(self, message: str, severity: str = "info") -> None:
        """Publish a message, one of `SEVERITIES`."""
        self.event(kind="log", severity=severity, message=message)

    def epoch(self, row: dict[str, Any]) -> None:
        """Publish an epoch's row, keyed by the columns of the CSV."""
        self.event(kind="epoch", row=row)

    def event(self, **event: Any) -> None:
        """Append an event, with the time, to `events.jsonl`."""
        self.writer.write(append_line, self.paths.events, strict_json({"time": time.time(), **event}))

    def flush(self) -> None:
        """Write `status.json` now."""
        if not self._ended_by_another():
            self._write()

    def close(self, state: str, exit_code: int | None = None, message: str | None = None) -> None:
        """End the thread, and write the final state."""
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
            if due and not self._ended_by_another() and self._write():
                written = now

    def _ended_by_another(self) -> bool:
        """Has another process of this start published the end of the run? This one may hang, and be killed soon."""
        status, mine = read_status(self.paths) or {}, self.fields()
        same = [status.get(name) for name in ("pid", "host")] == [mine["pid"], mine["host"]]
        return status.get("state") in ENDED and not same and (status.get("started") or 0) >= mine["started"]

    def _write(self) -> bool:
        with self._write_lock:
            with self._lock:
                self._fields["heartbeat"] = time.time()
                text = strict_json(self._fields)
                self._changed = False
            if self._first:
                self._first = False
                self._keep_earlier()
            return self.writer.write(atomic_write, self.paths.status, text + "\n")

    def _keep_earlier(self) -> None:
        """Keep the status that the previous start left, as a `start` event."""
        earlier = read_status(self.paths)
        if earlier:
            self.event(kind="start", **{name: earlier.get(name) for name in START})

    def _close_torn_line(self) -> None:
        """End a line that a crash cut off, so that the next event is a line of its own."""
        try:
            with open_regular(self.paths.events) as file:
                file.seek(-1, os.SEEK_END)
                torn = file.read(1) != b"\n"
        except OSError:  # no file yet, or an empty one
            return
        if torn:
            self.writer.write(append_line, self.paths.events, "")


def job_of_this_process() -> dict[str, str | None]:
    """Slurm job and restart count; None outside Slurm."""
    job = os.environ.get("SLURM_JOB_ID")
    return {"slurm_job_id": job, "slurm_restart": os.environ.get("SLURM_RESTART_COUNT", "0") if job else None}


def publish_failure(paths: RunPaths, data: str, exit_code: int, message: str, since: float | None = None) -> None:
    """Record a failed start in `status.json`, unless this process already wrote one or the run is finished.

    Write errors are ignored.

    Args:
        since: when this start began, if another process of it may have published since: its progress is kept, and its
            final state if it wrote one.
    """
    status = read_status(paths) or {}
    itself = (status.get("pid"), status.get("host")) == (os.getpid(), socket.gethostname())
    of_this_start = since is not None and (finite(status.get("started")) or 0.0) >= since
    if itself or status.get("state") in (ENDED if of_this_start else ("finished",)):
        return
    with suppress(OSError):
        paths.metrics.mkdir(parents=True, exist_ok=True)
        if os.access(paths.metrics, os.W_OK):
            publisher = StatusPublisher(paths, {"data": data, "retry": exit_code != 2})
            if of_this_start:
                publisher.update(**{name: status[name] for name in PROGRESS if name in status})
            publisher.close("failed", exit_code, message)
