"""A request to stop, by the user (Ctrl-C) or the cluster (SIGTERM, SIGUSR1). Needs no torch: handlers come first."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType

APART = 1.0  # seconds: SIGINTs that are closer count as one, see StopRequest
TWICE = "interrupted twice: stopped at once; the last checkpoint is kept"
AT_ONCE = 5.0  # seconds from the second SIGINT to the end of the process, even where no Python code can run


class StopRequest:
    """Remembers the first stop signal; the training loop checks it before each step.

    A second SIGINT raises KeyboardInterrupt. It must come more than a second after the first: torchrun forwards to its
    workers a Ctrl-C that the terminal has already sent to all of them.
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
    """End the process after a second SIGINT, also where no Python handler runs because the main thread is in C++
    (waiting for another process, say)."""
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
