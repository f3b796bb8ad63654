"""A request to stop, by the user (Ctrl-C) or the cluster (SIGTERM, SIGUSR1). Needs no torch: handlers come first."""

from __future__ import annotations

import signal
import time
from types import FrameType


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
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._since = signal.Signals(number), time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > 1.0:
            raise KeyboardInterrupt

    @property
    def requested(self) -> bool:
        return self.signal is not None
