"""Energy of GPUs and processors, from counters where there are any, else from power."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import suppress
from pathlib import Path

from ddpm.run.files import read_text

POWERCAP = Path("/sys/class/powercap")  # Linux: energy counters of processors (RAPL), readable by root on most systems
JOULES_PER_WH = 3600.0


class EnergyMeter:
    """Adds up energy. `joules` is None before anything was measured."""

    def __init__(self) -> None:
        self.joules: float | None = None
        self._counters: dict[Hashable, float] = {}

    def add(self, joules: float) -> None:
        self.joules = (self.joules or 0.0) + joules

    def count(self, name: Hashable, counter: float | None, wraps_at: float | None = None) -> bool:
        """Add what a counter, in joules, has gained since its last reading; its first reading adds 0.

        Args:
            wraps_at: where it begins again at 0, which may happen once between two readings.

        Returns:
            Whether something could be added: not if there is no reading, or if it fell for another reason.
        """
        before = self._counters.get(name, counter)
        if counter is None:
            self._counters.pop(name, None)
            return False
        self._counters[name] = counter
        gained = counter - before
        if gained < 0 and wraps_at:
            gained += wraps_at
        if gained < 0:
            return False
        self.add(gained)
        return True


def read_rapl(root: Path = POWERCAP) -> Iterator[tuple[str, float, float | None]]:
    """The energy counters of this machine's processors: zone, joules, and where it begins again at 0. None are there
    without RAPL, or without the right to read it.

    Only packages count: their parts are in them. They count all that the processors do, for other programs too.
    """
    for zone in sorted(root.glob("intel-rapl:*")):  # AMD's processors have this name as well
        with suppress(OSError, ValueError):
            if read_text(zone / "name").startswith("package"):
                joules, end = (int(read_text(zone / file)) / 1e6 for file in ("energy_uj", "max_energy_range_uj"))
                yield zone.name, joules, end
