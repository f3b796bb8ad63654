"""PrettyLogger: what training reports to while it runs. It publishes, keeps the log and shows the dashboard.

    PrettyLogger → status.py, gpus.py → files → metrics/run_reader.py → dashboard.py → terminal.py

It writes `status.json`, `events.jsonl`, `gpus/*.json` and `logs/<run>.log`. On a terminal a thread draws the dashboard
from these files alone; elsewhere (a batch job, a pipe) the lines of the log are printed. `pretty_logger.py` draws the
same files from another shell, or from the login node of a cluster.
"""

from __future__ import annotations

import atexit
import io
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from ddpm.run.errors import EXIT_STOPPED
from ddpm.run.format import clean, clock
from ddpm.run.paths import RunPaths
from metrics.files import SEVERITIES, read_epochs, read_events
from metrics.live.eta import RemainingTime
from metrics.live.gpus import GpuSampler
from metrics.live.lines import ending_line, epoch_line, plain_line, progress_line
from metrics.live.status import SafeWriter, StatusPublisher, append_line

if TYPE_CHECKING:
    from metrics.live.terminal import TerminalView


class PrettyLogger:
    """Publishes a run and shows it. Use it as a context: it then restores the terminal after an exception, too.

    Args:
        paths: the run's files.
        status_fields: initial values of `status.json` (`data`, `device`, `world_size`, `nodes`, `epochs`, ...).
        rank: of this process. On ranks other than 0 the methods publish nothing.
        local_rank: of this process. Local rank 0 of every node samples the node's GPUs, whatever its rank.
        node: name of this node, unique in the job; by default the host's name.
        gpu_uuids: the GPUs that the job uses on this node.
        live: show the dashboard? By default if stdout is a terminal.
        nvml: stands in for the module `pynvml`.
    """

    def __init__(
        self,
        paths: RunPaths,
        status_fields: dict[str, Any] | None = None,
        *,
        rank: int = 0,
        local_rank: int = 0,
        node: str = "",
        gpu_uuids: Sequence[str] = (),
        live: bool | None = None,
        nvml: Any = None,
    ) -> None:
        self.paths = paths
        self._publisher = StatusPublisher(paths, status_fields) if rank == 0 else None
        node = node or socket.gethostname()
        self._sampler = GpuSampler(paths, node, gpu_uuids, nvml=nvml) if local_rank == 0 else None
        self._remaining = RemainingTime(read_epochs(paths) if rank == 0 else ())
        self._log_writer = SafeWriter()
        self._live = live
        self._view: threading.Thread | None = None
        self._showing = False
        self._leave = threading.Event()
        self._stopped = False

    def start(self) -> None:
        """Begin to publish, and show the dashboard if stdout is a terminal."""
        if self._sampler:
            self._sampler.start()
        if self._publisher:
            self._publisher.start()
            atexit.register(self.stop, "failed", None, "the process ended without stopping its logger")
            if on_terminal(sys.stdout) if self._live is None else self._live:
                self._open_view()

    def log(self, message: str, severity: str = "info") -> None:
        """Log `message`, an event per line; `severity` is one of `SEVERITIES`."""
        if self._publisher:
            severity = severity if severity in SEVERITIES else "info"
            for line in clean(message):
                self._publisher.log(line, severity)
                self._print(line, severity)

    def set_progress(self, **fields: Any) -> None:
        """Publish fields of `status.json`. Fields with a `loss` are also logged as a line of progress, and `eta_sec`
        is computed from them unless it is given."""
        if not self._publisher:
            return
        self._publisher.update(**fields)
        if "loss" in fields:
            if "eta_sec" not in fields:
                self._publisher.update(eta_sec=self._remaining.update(self._publisher.fields()))
            self._print(progress_line(self._publisher.fields()))

    def flush(self) -> None:
        """Write `status.json` now: what is read from it next is up to date."""
        if self._publisher:
            self._publisher.flush()

    def log_epoch_summary(self, row: dict[str, Any]) -> None:
        """Publish the row of an epoch that is done, keyed by the columns of the CSV."""
        if self._publisher:
            self._remaining.add_epoch(row)
            self._publisher.epoch(row)
            self._print(epoch_line(row, self._publisher.fields()["epochs"]))

    def stop(self, state: str = "finished", exit_code: int | None = None, message: str | None = None) -> None:
        """Publish how the run ended, and close the dashboard. `log` still works afterwards."""
        if not self._stopped:
            self._stopped = True
            if self._publisher:
                self._publisher.close(state, exit_code, message)
                self._print(ending_line(self._publisher.fields()), "error" if state == "failed" else "info")
            if self._sampler:
                self._sampler.stop()
        self._close_view()
        atexit.unregister(self.stop)

    @contextmanager
    def going_on(self, what: str, severity: str = "error") -> Iterator[None]:
        """Context manager: an exception is logged as "could not write `what`", and training goes on."""
        try:
            yield
        except Exception as error:
            self.log(f"could not write {what}: {type(error).__name__}: {error}", severity)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.stop("finished", 0)
        elif issubclass(kind, KeyboardInterrupt):
            self.stop("stopped", 130, "interrupted")
        elif isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
            self.stop({0: "finished", EXIT_STOPPED: "stopped"}.get(code, "failed"), code)
        else:
            self.stop("failed", 1, " ".join(clean(f"{kind.__name__}: {error}")))

    def _print(self, message: str, severity: str = "info") -> None:
        """Add a line to `logs/<run>.log`, and print it unless the dashboard is shown."""
        line = plain_line(time.time(), severity, message)
        self._log_writer.write(append_line, self.paths.log, line)
        if not self._showing:
            say(line)

    def _open_view(self) -> None:
        from metrics.live.terminal import TerminalView  # here, as a batch job does not need Rich
        from metrics.run_reader import RunReader

        reader = RunReader(self.paths, lambda: self._publisher.writer.trouble or self._log_writer.trouble)
        screen = TerminalView(reader, sys.stdout)
        self._showing = True
        sys.stdout = LineCatcher(sys.stdout, self.log)
        sys.stderr = LineCatcher(sys.stderr, lambda line: self.log(line, "warning"))
        self._view = threading.Thread(target=self._show, args=(screen,), name="dashboard", daemon=True)
        self._view.start()

    def _show(self, screen: TerminalView) -> None:
        """The dashboard's thread. If the terminal goes away, the dashboard ends and training goes on."""
        failure = None
        try:
            with suppress(OSError), screen:
                screen.follow(self._leave.wait)
        except Exception as error:
            failure = error
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if isinstance(stream, LineCatcher):
                setattr(sys, name, stream.behind)
                stream.finish()
        self._showing = False
        if failure:
            self.log(f"the dashboard failed ({type(failure).__name__}: {failure}); plain lines from here", "warning")

    def _close_view(self) -> None:
        if self._view:
            self._leave.set()
            self._view.join()
            self._view = None
            self._print_ending()

    def _print_ending(self) -> None:
        """Print the latest epochs and messages: the terminal shows nothing of the run once the dashboard is closed."""
        status = self._publisher.fields()
        for row in read_epochs(self.paths, last=3):
            say(epoch_line(row, status["epochs"]))
        events = [event for event in read_events(self.paths) if event["kind"] == "log"]
        for event in [event for event in events if event["time"] >= status["started"]][-8:]:
            say(f"{clock(event['time'])}  {event['severity']:<7}  {event['message']}")
        say(f"{self.paths.run} {ending_line(status)}")
        for label, path in (("log", self.paths.log), ("metrics", self.paths.csv)):
            if path.exists():
                say(f"{label} {path}")


class LineCatcher(io.TextIOBase):
    """Replaces stdout or stderr (`behind`) while the dashboard is shown, and passes each line to `emit`.

    So what libraries print goes to the log and does not disturb the dashboard.
    """

    def __init__(self, behind: TextIO, emit: Callable[[str], None]) -> None:
        self.behind = behind
        self._emit = emit
        self._rest = ""
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            line = line.rstrip("\r").rpartition("\r")[2]  # the last state of a progress bar that redraws itself
            if line.strip():
                self._emit(line)
        return len(text)

    def finish(self) -> None:
        """Pass on a last line without an end."""
        if self._rest:
            self.write("\n")

    def fileno(self) -> int:
        return self.behind.fileno()

    def isatty(self) -> bool:
        return False

    @property
    def encoding(self) -> str:
        return self.behind.encoding


def on_terminal(stream: TextIO) -> bool:
    """Can `stream` show the dashboard? Variables such as FORCE_COLOR do not matter."""
    capable = os.environ.get("TERM", "") not in ("", "dumb", "unknown")
    return stream.isatty() and capable and (stream.encoding or "").lower().startswith("utf")


def say(text: str) -> None:
    """Print at once. A closed pipe is ignored, so that it does not end the training."""
    with suppress(OSError, ValueError):
        print(text, flush=True)
