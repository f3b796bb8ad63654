"""A request to stop, by the user (Ctrl-C) or the cluster (SIGTERM, SIGUSR1). Needs no torch: handlers come first."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType

APART = 1.0  # seconds between two SIGINTs that are two, see StopRequest
TWICE = "interrupted twice: stopped at once; the last checkpoint stands"
AT_ONCE = 5.0  # seconds in which the second ends the process, wherever it is


class StopRequest:
    """Remembers the first stop signal; the loop asks at each step boundary.

    A second SIGINT raises KeyboardInterrupt. It has to come a second after the first, because torchrun passes on to its
    workers a Ctrl-C that the terminal has already given to all of them.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._since = 0.0

    def install(self) -> StopRequest:
        """Handle SIGINT, SIGTERM and SIGUSR1 from now on (main thread only)."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._handle)
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=_end_on_second, args=(reader,), name="signals", daemon=True).start()
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._since = signal.Signals(number), time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > APART:
            raise KeyboardInterrupt

    @property
    def requested(self) -> bool:
        return self.signal is not None


def _end_on_second(reader: int) -> None:
    """End the process after a second SIGINT, for which no handler runs while the main thread is in C++ (waiting for
    another process, say)."""
    first = None
    while True:
        for number in os.read(reader, 64):
            now = time.monotonic()
            if first is None:
                first = now
            elif number == signal.SIGINT and now - first > APART:
                time.sleep(AT_ONCE)
                print(TWICE, file=sys.stderr, flush=True)
                os._exit(1)
