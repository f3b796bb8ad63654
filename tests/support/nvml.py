"""A stand-in for NVIDIA's management library, and waiting for what comes of it."""

from __future__ import annotations

import time


def eventually(condition, timeout=5.0):
    """Wait until `condition()` holds; its value."""
    end = time.monotonic() + timeout
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.01)
    assert value
    return value


class FakeNvml:
    """Two GPUs as NVML shows them; the second is a MIG slice, of which it tells only the memory."""

    NVML_TEMPERATURE_GPU = 0

    class NotSupported(Exception):
        pass

    def __init__(self):
        self.open = False

    def nvmlInit(self):
        self.open = True

    def nvmlShutdown(self):
        self.open = False

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return {"GPU-aaa": 3, "MIG-bbb": "slice"}[uuid]

    def nvmlDeviceGetIndex(self, handle):
        return self._whole(handle, 3)

    def nvmlDeviceGetName(self, handle):
        return b"NVIDIA L40S"

    def nvmlDeviceGetMemoryInfo(self, handle):
        return type("Memory", (), {"used": 3 * 2**30, "total": 48 * 2**30})

    def nvmlDeviceGetUtilizationRates(self, handle):
        return self._whole(handle, type("Rates", (), {"gpu": 97}))

    def nvmlDeviceGetTemperature(self, handle, kind):
        return self._whole(handle, 61)

    def nvmlDeviceGetPowerUsage(self, handle):
        return self._whole(handle, 301_234)

    # nvmlDeviceGetEnforcedPowerLimit is missing, as in an old driver

    def _whole(self, handle, value):
        if handle == "slice":
            raise self.NotSupported
        return value
