"""How the dashboard gets onto a terminal and off it again, or onto paper as plain text."""

from __future__ import annotations

import io
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self, TextIO

from rich.console import Console
from rich.live import Live

from ddpm.run.paths import RunPaths
from metrics.live.dashboard import natural_height, render
from metrics.live.status import read_json
from metrics.run_state import RunReader, RunState

POLL = 0.25  # seconds between looks at the terminal's size and the keyboard
REJUDGE = 10.0  # seconds between judgements of the run's health
REDRAW = 1.0  # seconds between drawings: the status is not published more often


def on_terminal(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that can show the dashboard; variables such as FORCE_COLOR have no say."""
    capable = os.environ.get("TERM", "") not in ("", "dumb", "unknown")
    return stream.isatty() and capable and (stream.encoding or "").lower().startswith("utf")


class HealthWord:
    """A run's health in one word, as `python -m metrics.health` finds it, anew every 10 s; None if it can't."""

    def __init__(self, paths: RunPaths) -> None:
        self._paths = paths
        self._judged = -REJUDGE
        self._read: tuple[Any, dict[str, Any]] = (None, {})  # when the settings were written, and what they are
        self._word: str | None = None

    def __call__(self, state: RunState) -> str | None:
        if state.status is not None and time.monotonic() - self._judged >= REJUDGE:
            self._word = self._judge(state)
            self._judged = time.monotonic()
        return self._word if state.status is not None else None

    def _judge(self, state: RunState) -> str | None:
        try:
            from metrics.health.checker import in_one_word  # here, as it is not needed for the rest of the view

            written = self._paths.json.stat().st_mtime_ns
            if self._read[0] != written:
                self._read = written, (read_json(self._paths.json) or {}).get("settings") or {}
            return in_one_word(state, self._read[1])
        except Exception:  # a view does not fail because a judgement does
            return None


class TerminalView:
    """The dashboard on the alternate screen of the terminal `out`: a context that leaves the terminal as it was."""

    def __init__(self, reader: RunReader, out: TextIO) -> None:
        self._reader = reader
        self._health = HealthWord(reader.paths)
        self._out = out
        self._drawn = -REDRAW
        self._size = (0, 0)
        # All is decided here: Rich would otherwise let FORCE_COLOR, COLUMNS and the like decide.
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

    def draw(self) -> RunState | None:
        """Draw if it is time to, or if the terminal was resized; the state that was drawn."""
        columns, rows = os.get_terminal_size(self._out.fileno())
        size = (columns or 80, rows or 24)
        if size == self._size and time.monotonic() - self._drawn < REDRAW:
            return None
        state = self._reader.read()
        self.console.size = self._size = size
        self._live.update(render(state, size, self._health(state)), refresh=True)
        self._drawn = time.monotonic()
        return state


class LineCatcher(io.TextIOBase):
    """Stands in for stdout or stderr (`behind`) while the screen is up, and hands each line to `emit`.

    What libraries print then neither spoils the picture nor gets lost.
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
            line = line.rstrip("\r").rpartition("\r")[2]  # of a progress bar's redrawings, the last
            if line.strip():
                self._emit(line)
        return len(text)

    def finish(self) -> None:
        """Hand on a last line that has no end."""
        if self._rest:
            self.write("\n")

    def fileno(self) -> int:
        return self.behind.fileno()

    def isatty(self) -> bool:
        return False

    @property
    def encoding(self) -> str:
        return self.behind.encoding


def snapshot(state: RunState, width: int, health: str | None = None) -> str:
    """The view as plain text, `width` columns wide; `health` is the run's health in one word, if that is known."""
    out, height = io.StringIO(), natural_height(state, width)
    console = Console(
        file=out, width=width, height=height, color_system=None, force_terminal=False, force_jupyter=False
    )
    console.print(render(state, (width, height), health), height=height)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


def watch(paths: RunPaths) -> None:
    """Show the run until it ends, or until q or Ctrl-C; the view of a run that ended stays on the terminal."""
    screen = TerminalView(RunReader(paths), sys.stdout)
    state = None
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda *_: sys.exit(0))
    with suppress(KeyboardInterrupt), _keyboard() as key, screen:
        while not (state and state.ended) and key(POLL) not in ("q", "Q"):
            state = screen.draw() or state
    if state and state.ended:
        width = screen.console.width
        height = natural_height(state, width)
        screen.console.print(render(state, (width, height), HealthWord(paths)(state)), height=height)


@contextmanager
def _keyboard() -> Iterator[Callable[[float], str]]:
    """Gives `key(timeout)`: the key pressed within so many seconds, or "". Meanwhile keys are not echoed."""
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
