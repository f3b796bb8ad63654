"""The face of a run: what it prints, and the dashboard of a running, finished or dead run in any other shell.

    python pretty_logger.py RUN [--output-root DIR] [--once]

Training talks to a `PrettyLogger`. That publishes (`status.json`, `events.jsonl`, `gpus/*.json`) and keeps
`logs/<run>.log`. On a terminal it also shows the dashboard, drawn by a thread from the published files alone;
elsewhere (a batch job, a pipe) it prints the lines of the log. The command above draws the same files from outside:
from another shell, or from the login node of a cluster while the job runs on some other one.

    PrettyLogger -> metrics/{status,gpus}.py -> files -> metrics/run_state.py -> metrics/{dashboard,panels,screen}.py
"""

from __future__ import annotations

import atexit
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from ddpm.run import cli
from ddpm.run.command import RunCommand
from ddpm.run.errors import EXIT_STOPPED
from ddpm.run.format import clean, clock, ending_line, epoch_line, number, plain_line, progress_line
from ddpm.run.paths import RunPaths
from ddpm.run.program import run_program
from metrics.live.gpus import GpuSampler
from metrics.live.status import SEVERITIES, SafeWriter, StatusPublisher, append_line, read_epochs, read_events
from metrics.live.terminal import POLL, HealthWord, LineCatcher, TerminalView, on_terminal, snapshot, watch
from metrics.run_state import RunReader

PLAIN_WIDTH = 100  # columns of the view where there is no terminal to ask


class PrettyLogger:
    """Publishes a run and shows it. To be used as a context: an exception in it still restores the terminal.

    Args:
        paths: where the run's files lie.
        status_fields: first values for `status.json` (`data`, `device`, `world_size`, `nodes`, `epochs`, ...).
        rank: of this process. On other ranks than 0 all calls do nothing,
        local_rank: except that local rank 0 of every node samples the node's GPUs.
        node: the name of this node, unique in the job; the host's name if empty.
        gpu_uuids: the GPUs that the job uses on this node.
        live: whether to show the dashboard; by default where stdout is a terminal.
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
        """Say `message`; `severity` is debug, info, success, warning or error. Each line of it is an event."""
        if self._publisher:
            severity = severity if severity in SEVERITIES else "info"
            for line in clean(message):
                self._publisher.log(line, severity)
                self._print(line, severity)

    def set_progress(self, **fields: Any) -> None:
        """Publish fields of `status.json`; a call with a `loss` is also a plain line.

        `eta_sec` follows from `samples_per_sec`, `step`, `total_steps` and `images_seen` unless it is given.
        """
        if not self._publisher:
            return
        self._publisher.update(**fields)
        if "loss" in fields:
            status = self._publisher.fields()
            if "eta_sec" not in fields:
                status["eta_sec"] = _eta(status)
                self._publisher.update(eta_sec=status["eta_sec"])
            self._print(progress_line(status))

    def log_epoch_summary(self, row: dict[str, Any]) -> None:
        """Publish the row of an epoch that is done, the CSV's columns as keys."""
        if self._publisher:
            self._publisher.epoch(row)
            self._print(epoch_line(row, self._publisher.fields()["epochs"]))

    def stop(self, state: str = "finished", exit_code: int | None = None, message: str | None = None) -> None:
        """Publish how the run ended, and leave the dashboard. After it, `log` still prints and publishes."""
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
    def going_on(self, what: str) -> Iterator[None]:
        """Say what could not be written, and go on: a full disk or an odd picture must not cost the training."""
        try:
            yield
        except Exception as error:
            self.log(f"could not write {what}: {type(error).__name__}: {error}", "error")

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
        """A line for `logs/<run>.log`, and for stdout unless the dashboard is there."""
        line = plain_line(time.time(), severity, message)
        self._log_writer.write(append_line, self.paths.log, line)
        if not self._showing:
            _say(line)

    def _open_view(self) -> None:
        reader = RunReader(self.paths, lambda: self._publisher.writer.trouble or self._log_writer.trouble)
        screen = TerminalView(reader, sys.stdout)
        self._showing = True
        sys.stdout = LineCatcher(sys.stdout, self.log)
        sys.stderr = LineCatcher(sys.stderr, lambda line: self.log(line, "warning"))
        self._view = threading.Thread(target=self._show, args=(screen,), name="dashboard", daemon=True)
        self._view.start()

    def _show(self, screen: TerminalView) -> None:
        """The dashboard's thread. A terminal that goes away takes the view with it, not the training."""
        failure = None
        try:
            with suppress(OSError), screen:
                while not self._leave.wait(POLL):
                    screen.draw()
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
            self._say_goodbye()

    def _say_goodbye(self) -> None:
        """The screen that the dashboard covered shows nothing of the run: say the last of it."""
        status = self._publisher.fields()
        for row in read_epochs(self.paths, last=3):
            _say(epoch_line(row, status["epochs"]))
        said = [
            event for event in read_events(self.paths) if event["kind"] == "log" and event["time"] >= status["started"]
        ]
        for event in said[-8:]:
            _say(f"{clock(event['time'])}  {event['severity']:<7}  {event['message']}")
        _say(f"{self.paths.run} {ending_line(status)}")
        for label, path in (("log", self.paths.log), ("metrics", self.paths.csv)):
            if path.exists():
                _say(f"{label} {path}")


def _eta(status: dict[str, Any]) -> float | None:
    """Seconds to the end at the present speed: steps left * images a step / images a second."""
    step, total, seen, pace = (number(status[key]) for key in ("step", "total_steps", "images_seen", "samples_per_sec"))
    return (total - step) * (seen / step) / pace if step and total and seen and pace else None


def _say(text: str) -> None:
    """Print now; a reader that went away is no reason to end a training."""
    with suppress(OSError, ValueError):
        print(text, flush=True)


@dataclass(frozen=True)
class ViewConfig(RunCommand):
    """Show a run: live until it ends on a terminal, else once as text."""

    once: bool = False
    """Print the view once as plain text, and end."""


@cli.in_one_line
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    config = cli.parse(ViewConfig, arguments, "pretty_logger.py")
    paths = config.paths
    if on_terminal(sys.stdout) and not config.once:
        watch(paths)
    else:
        width = os.get_terminal_size(1).columns if os.isatty(1) else 0
        state = RunReader(paths).read()
        _say(snapshot(state, width or PLAIN_WIDTH, HealthWord(paths)(state)))
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
