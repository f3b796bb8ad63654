"""Figures of GPUs as they are published."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import typing
from functools import partial

import pytest

from metrics.files import energy_wh, read_gpus, read_status
from metrics.live.gpus import GpuSampler
from metrics.live.status import StatusPublisher
from tests.support.nvml import FakeNvml, eventually


def test_gpus_are_sampled_by_uuid_and_what_is_unknown_is_null(paths):
    nvml = FakeNvml()
    sampler = GpuSampler(paths, "vn1", ["aaa", "MIG-bbb", "GPU-lost"], interval=0.02, nvml=nvml)
    sampler.start()
    first = eventually(lambda: read_gpus(paths))[0]
    eventually(lambda: read_gpus(paths)[0]["time"] > first["time"])
    sampler.stop()
    assert not nvml.open
    assert (first["node"], first["note"]) == ("vn1", None)
    whole, part, lost = first["gpus"]
    assert whole == {
        **{"index": 3, "name": "NVIDIA L40S", "utilization": 97, "temperature_c": 61},
        **{"memory_used_mb": 3072, "memory_total_mb": 49152, "power_w": 301.2, "power_limit_w": None},
    }
    assert part["memory_used_mb"] == 3072
    assert part["utilization"] is part["temperature_c"] is part["power_w"] is None
    assert lost["index"] == 2 and lost["utilization"] is None and "GPU-lost" in lost["name"]


def test_the_mean_utilization_and_power_of_each_start_are_kept(paths, monkeypatch):
    class Changing(FakeNvml):
        readings: typing.ClassVar = [10, 20, 90]

        def nvmlDeviceGetUtilizationRates(self, handle):
            self._whole(handle, None)
            return type("Rates", (), {"gpu": self.readings.pop(0) if self.readings else None})

    def starts() -> list[dict]:
        return [start for node in read_gpus(paths) for start in node["starts"]]

    def enough(restart: str) -> bool:
        return any(start["slurm_restart"] == restart and start["readings"] >= 3 for start in starts())

    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for restart, nvml in {"0": Changing(), "1": FakeNvml()}.items():
        monkeypatch.setenv("SLURM_RESTART_COUNT", restart)
        sampler = GpuSampler(paths, "vn1", ["aaa", "MIG-bbb"], interval=0.01, nvml=nvml)
        sampler.start()
        eventually(partial(enough, restart))
        sampler.stop()
    first, second = starts()
    assert (first["slurm_job_id"], first["slurm_restart"], first["readings"]) == ("7", "0", 3)
    assert (first["mean_utilization"], second["mean_utilization"]) == (pytest.approx(40), pytest.approx(97))
    for start in (first, second):  # the power of the GPU that has a sensor
        assert start["mean_power_w"] == pytest.approx(301.2) and start["power_readings"] >= 3 and start["seconds"] > 0
    assert energy_wh([first, second]) == pytest.approx(301.2 * (first["seconds"] + second["seconds"]) / 3600)


def test_the_energy_of_a_start_that_was_killed_is_counted_up_to_its_last_reading(paths):
    nvml, killed = FakeNvml(), []
    sampler = GpuSampler(paths, "vn1", ["aaa", "aaa"], interval=0.01, nvml=nvml)
    sampler.start()
    eventually(lambda: (nodes := read_gpus(paths)) and nodes[0]["starts"][0]["seconds"] >= 0.2)
    killed = read_gpus(paths)[0]["starts"]  # as the file is if nothing ends the sampler
    sampler.stop()
    assert energy_wh(killed) == pytest.approx(2 * 301.2 * killed[0]["seconds"] / 3600)  # both GPUs together
    assert energy_wh([]) is energy_wh([{"mean_utilization": 90.0, "readings": 5}]) is None  # as older versions wrote it
    assert energy_wh([{"mean_power_w": "much", "seconds": 9}, {"mean_power_w": -1, "seconds": 9}]) is None


@pytest.mark.parametrize("uuids", [[], ["GPU-aaa"]], ids=["no GPUs", "no driver"])
def test_without_gpus_one_file_says_so(paths, uuids):
    class NoDriver:
        def nvmlInit(self):
            raise OSError("libnvidia-ml.so.1: cannot open shared object file")

    GpuSampler(paths, "vn2", uuids, nvml=NoDriver()).start()
    record = eventually(lambda: read_gpus(paths))[0]
    assert (record["gpus"], record["note"]) == ([], "no GPU")


def test_the_real_nvml_does_not_hurt_where_it_has_no_such_gpu(paths):
    sampler = GpuSampler(paths, "here", ["GPU-00000000-0000-0000-0000-000000000000"], interval=0.05)
    sampler.start()
    record = eventually(lambda: read_gpus(paths))[0]
    sampler.stop()
    assert all(gpu["utilization"] is None for gpu in record["gpus"])
    assert record["gpus"] or record["note"] == "no GPU"


def test_update_is_cheap_and_safe_from_several_threads(paths):
    publisher = StatusPublisher(paths, interval=0.01)
    publisher.start()
    threads = [
        threading.Thread(target=lambda: [publisher.update(step=n, loss=0.1, epoch=1) for n in range(1000)])
        for _ in range(4)
    ]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began < 2.0  # 4000 updates: 0.5 ms each would already be far too many
    publisher.close("finished")
    assert read_status(paths)["step"] == 999


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("pretty_logger", ("torch", "pandas", "matplotlib", "rich")),
        ("metrics.live.terminal", ("torch", "pandas", "matplotlib")),
    ],
)
def test_the_dashboard_does_not_wait_for_large_libraries(module, without):
    code = f"import sys, {module}; print(*[name for name in {without} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
