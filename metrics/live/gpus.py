"""What the GPUs of a job are doing, read through NVML and published as `gpus/<node>.json`, one file per node.

`starts` in it has the mean utilisation of each start of the run there, and of how many readings it is the mean.

Local rank 0 of every node runs one `GpuSampler`. NVML knows nothing of CUDA_VISIBLE_DEVICES and counts in another order
than CUDA, so the GPUs are named by UUID: those that the job uses on this node, and no others.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from ddpm.run.files import atomic_write
from ddpm.run.paths import RunPaths
from metrics.files import mean_utilization, read_json, starts_of
from metrics.live.status import SafeWriter, job_of_this_process

MEBIBYTE = 2**20
THROTTLE = {  # bit of NVML's clock event reasons: what slows the clock down; an idle GPU is not slowed down
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
STARTS = 200  # of which the mean is kept


class GpuSampler:
    """Writes what the GPUs `uuids` (with or without "GPU-" in front) of the node `node` are doing, every `interval` s.

    A figure that a GPU does not give (a MIG slice has no temperature, say) is null; why it is slowed down, and its
    memory errors, are there if NVML gives them. Where there is no NVIDIA driver, or
    there are no UUIDs, it writes one file that says "no GPU" and rests. `nvml` stands in for the module `pynvml`.
    """

    def __init__(
        self, paths: RunPaths, node: str, uuids: Sequence[str], *, interval: float = 2.0, nvml: Any = None
    ) -> None:
        self.path = paths.gpus / f"{node}.json"
        self.node = node
        self.uuids = list(uuids)
        self._nvml = nvml
        self._interval = interval
        self._starts: list[dict[str, Any]] = []  # the last one is this
        self._writer = SafeWriter()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpus", daemon=True)

    def start(self) -> None:
        """Begin sampling in a daemon thread: NVML may take a second to wake up."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; the last figures stay in the file."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _run(self) -> None:
        nvml = self._open()
        if nvml is None:
            self._starts = starts_of(read_json(self.path))
            self._publish([], note="no GPU")
            return
        try:
            handles = [_handle(nvml, uuid) for uuid in self.uuids]
            begun = {**job_of_this_process(), "time": time.time(), "readings": 0, "mean_utilization": None}
            self._starts = [*starts_of(read_json(self.path)), begun][-STARTS:]
            while not self._closing.is_set():
                gpus = [
                    _sample(nvml, handle, uuid, i)
                    for i, (handle, uuid) in enumerate(zip(handles, self.uuids, strict=True))
                ]
                _count(begun, [gpu["utilization"] for gpu in gpus if gpu["utilization"] is not None])
                self._publish(gpus, note=None)
                self._closing.wait(self._interval)
        finally:
            _ask(nvml.nvmlShutdown)

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
        self._writer.write(atomic_write, self.path, json.dumps(record) + "\n")


def _count(start: dict[str, Any], utilizations: Sequence[float]) -> None:
    """Take further readings into a start's mean."""
    mean, readings = mean_utilization([start])
    if utilizations:
        start["readings"] = readings + len(utilizations)
        start["mean_utilization"] = ((mean or 0.0) * readings + sum(utilizations)) / start["readings"]


def _import_nvml() -> ModuleType:
    import pynvml

    return pynvml


def _ask(question: Callable[..., Any], *args: Any) -> Any | None:
    """NVML's answer, None where it has none: not supported, no permission, a GPU that fell off the bus."""
    try:
        return question(*args)
    except Exception:
        return None


def _handle(nvml: Any, uuid: str) -> Any | None:
    """NVML's handle of a GPU; CUDA gives UUIDs without the prefix that NVML wants."""
    for name in (uuid, f"GPU-{uuid}", f"MIG-{uuid}"):
        handle = _ask(nvml.nvmlDeviceGetHandleByUUID, name)
        if handle is not None:
            return handle
    return None


def _sample(nvml: Any, handle: Any | None, uuid: str, position: int) -> dict[str, Any]:
    """One GPU's figures now; `position` among the job's GPUs serves as its index where NVML has none."""

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
        **_troubles(ask),
    }


def _troubles(ask: Callable[..., Any]) -> dict[str, Any]:
    """`throttle`, what slows the clock down now (names of `THROTTLE`), and `ecc_corrected`, `ecc_uncorrected`, memory
    errors since the driver was loaded; those that NVML does not give, for want of them or of rights, are left out."""
    bits = ask("nvmlDeviceGetCurrentClocksEventReasons")
    if bits is None:  # drivers before 535
        bits = ask("nvmlDeviceGetCurrentClocksThrottleReasons")
    found: dict[str, Any] = {}
    if bits is not None:
        found["throttle"] = [name for bit, name in THROTTLE.items() if bits & bit]
    errors = {name: ask("nvmlDeviceGetTotalEccErrors", kind, VOLATILE) for name, kind in ECC.items()}
    return found | {name: count for name, count in errors.items() if count is not None}
