"""Shows the dashboard on a terminal, or prints it once as plain text."""

from __future__ import annotations

import io
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Self, TextIO

from rich.console import Console
from rich.live import Live

from ddpm.run.paths import RunPaths
from metrics.live.dashboard import Verdict, natural_height, render
from metrics.run_data import RunData
from metrics.run_reader import RunReader, read_run

POLL = 0.25  # seconds between looks at the terminal's size and the keyboard
REJUDGE = 10.0  # seconds between judgements of a run whose state does not change
REDRAW = 1.0  # seconds between drawings: the status is not published more often
PLAIN_WIDTH = 100  # columns where there is no terminal to ask
LEAVE = "q leaves, the run goes on"


class HealthWord:
    """A run's health in one word and its reason, as `python -m metrics.health` finds it. None if it cannot be judged.

    Judged anew every `REJUDGE` seconds, and at once when the run's state changes.
    """

    def __init__(self) -> None:
        self._judged = -REJUDGE
        self._state: str | None = None
        self._verdict: Verdict | None = None

    def __call__(self, run: RunData) -> Verdict | None:
        if not run.status:
            return None
        if run.state != self._state or time.monotonic() - self._judged >= REJUDGE:
            self._verdict = _judge(run)
            self._judged, self._state = time.monotonic(), run.state
        return self._verdict


def _judge(run: RunData) -> Verdict | None:
    try:
        from metrics.health.checker import verdict_of  # here, as only the verdict needs it

        return verdict_of(run)
    except Exception:  # a failed health check must not end the dashboard
        return None


class TerminalView:
    """The dashboard on the alternate screen of the terminal `out`: a context that leaves the terminal as it was.

    `hint` says what keys do, if any.
    """

    def __init__(self, reader: RunReader, out: TextIO, hint: str = "") -> None:
        self._reader = reader
        self._health = HealthWord()
        self._out = out
        self._hint = hint
        self._drawn = -REDRAW
        self._size = (0, 0)
        # Everything is set here, as Rich would otherwise follow FORCE_COLOR, COLUMNS and the like.
        self.console = Console(
            file=out, force_terminal=True, force_interactive=True, force_jupyter=False, legacy_windows=False
        )
        self._live = Live(
            console=self.console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def follow(self, wait: Callable[[float], bool]) -> None:
        """Draw again and again, until `wait(seconds)` is true."""
        while not wait(POLL):
            self.draw()

    def draw(self) -> RunData | None:
        """Draw if that is due or the terminal was resized. Returns the run that was drawn."""
        columns, rows = os.get_terminal_size(self._out.fileno())
        size = (columns or 80, rows or 24)
        if size == self._size and time.monotonic() - self._drawn < REDRAW:
            return None
        run = self._reader.read()
        self.console.size = self._size = size
        self._live.update(render(run, size, self._health(run), self._hint), refresh=True)
        self._drawn = time.monotonic()
        return run


def snapshot(run: RunData, width: int, verdict: Verdict | None = None) -> str:
    """The dashboard as plain text, `width` columns wide."""
    out, height = io.StringIO(), natural_height(run, width, verdict)
    console = Console(
        file=out, width=width, height=height, color_system=None, force_terminal=False, force_jupyter=False
    )
    console.print(render(run, (width, height), verdict), height=height)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


def show_once(paths: RunPaths) -> None:
    """Print the dashboard as plain text."""
    width = os.get_terminal_size(1).columns if os.isatty(1) else 0
    run = read_run(paths)
    print(snapshot(run, width or PLAIN_WIDTH, HealthWord()(run)), flush=True)


def watch(paths: RunPaths) -> None:
    """Show the run until it ends, or until q or Ctrl-C. The dashboard of a run that ended stays on the terminal."""
    run = None
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda *_: sys.exit(0))
    screen = TerminalView(RunReader(paths), sys.stdout, LEAVE if sys.stdin.isatty() else "")
    with suppress(KeyboardInterrupt), _keyboard() as key, screen:
        while not (run and run.ended) and key(POLL) not in ("q", "Q"):
            run = screen.draw() or run
    if run and run.ended:
        width, verdict = screen.console.width, HealthWord()(run)
        height = natural_height(run, width, verdict)
        screen.console.print(render(run, (width, height), verdict), height=height)


@contextmanager
def _keyboard() -> Iterator[Callable[[float], str]]:
    """Gives `key(timeout)`: the key pressed within `timeout` seconds, or "". Keys are not echoed meanwhile."""
    import termios  # not on every system, and needed on a terminal only
    import tty

    if not sys.stdin.isatty():
        yield lambda timeout: time.sleep(timeout) or ""
        return
    keys = sys.stdin.fileno()
    before = termios.tcgetattr(keys)
    try:
        tty.setcbreak(keys)
        yield lambda timeout: os.read(keys, 1).decode("latin-1") if select.select([keys], [], [], timeout)[0] else ""
    finally:
        termios.tcsetattr(keys, termios.TCSADRAIN, before)
