"""Samples the GPUs of a job through NVML and publishes them as `gpus/<node>.json`, one file per node.

Local rank 0 of every node runs one `GpuSampler`. NVML ignores CUDA_VISIBLE_DEVICES and orders GPUs differently from
CUDA, so the GPUs that the job uses are named by UUID.

The file's `starts` has for each start of the run on this node: `time` of its first reading and `seconds` from there to
the latest, `mean_utilization` in percent over `readings` (one per GPU and time), and `mean_power_w` of all these GPUs
together over `power_readings` (one per time; a GPU without a power sensor, such as a MIG slice, adds nothing).
`energy_wh` is what the GPUs' energy counters gained; of a GPU without one it is power times time. On a node without a
GPU it is that of the processors, if RAPL can be read. The file is rewritten with each reading, so what a killed start
used is known.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ddpm.run.files import atomic_write, strict_json
from ddpm.run.paths import RunPaths
from metrics.files import read_json, starts_of
from metrics.live.energy import JOULES_PER_WH, POWERCAP, EnergyMeter, read_rapl
from metrics.live.status import SafeWriter, job_of_this_process

MEBIBYTE = 2**20
THROTTLE = {  # bits of NVML's clock event reasons, without that of an idle GPU
    0x02: "applications_clocks",
    0x04: "sw_power_cap",
    0x08: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal",
    0x40: "hw_thermal",
    0x80: "hw_power_brake",
    0x100: "display_clocks",
}
ECC = {"ecc_corrected": 0, "ecc_uncorrected": 1}  # NVML's types of memory errors, counted since the driver was loaded
VOLATILE = 0  # NVML's name for that count
STARTS = 200  # starts that the file keeps at most


class GpuSampler:
    """Publishes the state of a node's GPUs from a daemon thread.

    A figure that NVML does not give (a MIG slice has no temperature) is null; throttle reasons and memory errors are
    there only if NVML gives them. Without a driver or without UUIDs the file says "no GPU".

    Args:
        node: the node's name, unique in the job.
        uuids: the GPUs that the job uses on this node, with or without "GPU-" in front.
        interval: seconds between readings.
        nvml: stands in for the module `pynvml`.
        powercap: stands in for the folder of the processors' energy counters.
    """

    def __init__(
        self, paths: RunPaths, node: str, uuids: Sequence[str], *, interval: float = 2.0, nvml: Any = None,
        powercap: Path = POWERCAP,
    ) -> None:  # fmt: skip
        self.path = paths.gpus / f"{node}.json"
        self.node = node
        self.uuids = list(uuids)
        self._nvml, self._powercap = nvml, powercap
        self._interval = interval
        self._starts: list[dict[str, Any]] = []  # this start is the last one
        self._writer = SafeWriter()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpus", daemon=True)

    def start(self) -> None:
        """Begin to sample; in a thread, as NVML may take a second to start."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; the latest figures stay in the file."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _run(self) -> None:
        nvml = self._open()
        if nvml is None:
            self._sample_processors()
            return
        try:
            handles = [_handle(nvml, uuid) for uuid in self.uuids]
            meter, before = EnergyMeter(), 0.0
            for start, seconds in self._readings():
                gpus = [
                    _sample(nvml, handle, uuid, i)
                    for i, (handle, uuid) in enumerate(zip(handles, self.uuids, strict=True))
                ]
                watts = _known(gpus, "power_w")
                _update_mean(start, "mean_power_w", "power_readings", [sum(watts)] if watts else [])
                _update_mean(start, "mean_utilization", "readings", _known(gpus, "utilization"))
                for place, (handle, gpu) in enumerate(zip(handles, gpus, strict=True)):
                    if not meter.count(place, _energy(nvml, handle)) and gpu["power_w"] is not None:
                        meter.add(gpu["power_w"] * (seconds - before))
                _note_energy(start, meter)
                before = seconds
                self._publish(gpus, note=None)
        finally:
            _ask(nvml.nvmlShutdown)

    def _sample_processors(self) -> None:
        """Without a GPU: sample the processors' energy, if it can be read."""
        if not any(read_rapl(self._powercap)):
            self._starts = starts_of(read_json(self.path))
            self._publish([], note="no GPU")
            return
        meter = EnergyMeter()
        for start, _ in self._readings():
            for name, joules, wraps_at in read_rapl(self._powercap):
                meter.count(name, joules, wraps_at)
            _note_energy(start, meter)
            self._publish([], note="no GPU")

    def _readings(self) -> Iterator[tuple[dict[str, Any], float]]:
        """The entry of this start and the seconds since its first reading, when a reading is due; one at the end."""
        start, began = _new_start(), time.monotonic()
        self._starts = [*starts_of(read_json(self.path)), start][-STARTS:]
        ended = False
        while True:
            start["seconds"] = round(time.monotonic() - began, 3)
            yield start, start["seconds"]
            if ended:
                return
            ended = self._closing.wait(self._interval)

    def _open(self) -> Any | None:
        if not self.uuids:
            return None
        try:
            nvml = self._nvml or _import_nvml()
            nvml.nvmlInit()
        except Exception:  # no module, no driver, no device: the same to us
            return None
        return nvml

    def _publish(self, gpus: list[dict[str, Any]], note: str | None) -> None:
        record = {"time": time.time(), "node": self.node, "gpus": gpus, "note": note, "starts": self._starts}
        self._writer.write(atomic_write, self.path, strict_json(record) + "\n")


def _new_start() -> dict[str, Any]:
    """The entry of this start, before its first reading."""
    counts = {"seconds": 0.0, "readings": 0, "mean_utilization": None, "power_readings": 0, "mean_power_w": None}
    return {**job_of_this_process(), "time": time.time(), **counts, "energy_wh": None}


def _note_energy(start: dict[str, Any], meter: EnergyMeter) -> None:
    start["energy_wh"] = None if meter.joules is None else meter.joules / JOULES_PER_WH


def _energy(nvml: Any, handle: Any | None) -> float | None:
    """The energy counter of a GPU, in joules since the driver was loaded; None if it has none."""
    counter = getattr(nvml, "nvmlDeviceGetTotalEnergyConsumption", None)
    millijoules = None if handle is None else _ask(counter, handle)
    return None if millijoules is None else millijoules / 1000


def _known(gpus: Sequence[dict[str, Any]], figure: str) -> list[float]:
    return [gpu[figure] for gpu in gpus if gpu[figure] is not None]


def _update_mean(start: dict[str, Any], mean: str, count: str, values: Sequence[float]) -> None:
    """Update `start[mean]`, the mean of `start[count]` values, by further ones."""
    if values:
        total = (start[mean] or 0.0) * start[count] + sum(values)
        start[count] += len(values)
        start[mean] = total / start[count]


def _import_nvml() -> ModuleType:
    import pynvml

    return pynvml


def _ask(question: Callable[..., Any], *args: Any) -> Any | None:
    """NVML's answer; None if it has none: not supported, no permission, a GPU that fell off the bus."""
    try:
        return question(*args)
    except Exception:
        return None


def _handle(nvml: Any, uuid: str) -> Any | None:
    """NVML's handle of a GPU. CUDA gives UUIDs without the prefix that NVML wants."""
    for name in (uuid, f"GPU-{uuid}", f"MIG-{uuid}"):
        handle = _ask(nvml.nvmlDeviceGetHandleByUUID, name)
        if handle is not None:
            return handle
    return None


def _sample(nvml: Any, handle: Any | None, uuid: str, position: int) -> dict[str, Any]:
    """The present figures of one GPU; its `position` among the job's GPUs is its index if NVML has none."""

    def ask(name: str, *args: Any) -> Any | None:
        return None if handle is None else _ask(getattr(nvml, name, None), handle, *args)

    def scaled(value: Any | None, divisor: float) -> float | None:
        return None if value is None else round(value / divisor, 1)

    index, name = ask("nvmlDeviceGetIndex"), ask("nvmlDeviceGetName")
    memory, rates = ask("nvmlDeviceGetMemoryInfo"), ask("nvmlDeviceGetUtilizationRates")
    return {
        "index": position if index is None else index,
        "name": name.decode() if isinstance(name, bytes) else name or f"GPU {uuid}",
        "utilization": getattr(rates, "gpu", None),
        "memory_used_mb": scaled(getattr(memory, "used", None), MEBIBYTE),
        "memory_total_mb": scaled(getattr(memory, "total", None), MEBIBYTE),
        "temperature_c": ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
        "power_w": scaled(ask("nvmlDeviceGetPowerUsage"), 1000),
        "power_limit_w": scaled(ask("nvmlDeviceGetEnforcedPowerLimit"), 1000),
        **_throttling_and_errors(ask),
    }


def _throttling_and_errors(ask: Callable[..., Any]) -> dict[str, Any]:
    """`throttle`: what slows the clock down, names of `THROTTLE`; `ecc_corrected`, `ecc_uncorrected`: memory errors
    since the driver was loaded. Left out if NVML does not support them or refuses."""
    bits = ask("nvmlDeviceGetCurrentClocksEventReasons")
    if bits is None:  # drivers before 535
        bits = ask("nvmlDeviceGetCurrentClocksThrottleReasons")
    found: dict[str, Any] = {}
    if bits is not None:
        found["throttle"] = [name for bit, name in THROTTLE.items() if bits & bit]
    errors = {name: ask("nvmlDeviceGetTotalEccErrors", kind, VOLATILE) for name, kind in ECC.items()}
    return found | {name: count for name, count in errors.items() if count is not None}
