"""The published state: whole at any moment, renewed while the process lives, and never a danger to training."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
import threading
import time
import typing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.run.files import strict_json
from ddpm.run.paths import RunPaths
from metrics.files import TAIL_BYTES, energy_wh, read_epochs, read_events, read_gpus, read_status
from metrics.live.gpus import GpuSampler
from metrics.live.status import StatusPublisher


@pytest.fixture
def paths(tmp_path):
    return RunPaths(tmp_path, "a_run")


def eventually(condition, timeout=5.0):
    """Wait until `condition()` holds; its value."""
    end = time.monotonic() + timeout
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.01)
    assert value
    return value


def test_status_has_every_field_from_the_start_and_follows_updates(paths):
    publisher = StatusPublisher(paths, {"data": "glyphs", "epochs": 3}, interval=0.02)
    publisher.start()
    first = read_status(paths)
    expected = """run data state phase message host pid slurm_job_id slurm_restart world_size nodes device gpus started
    heartbeat progress_time phase_time epoch epochs batch batches step start_step total_steps images_seen start_images
    loss lr grad_norm samples_per_sec eta_sec exit_code retry"""
    assert set(first) == set(expected.split())
    assert (first["run"], first["data"], first["state"], first["phase"]) == ("a_run", "glyphs", "running", "starting")
    publisher.update(step=5, phase="training", loss=0.5)
    now = eventually(lambda: (status := read_status(paths))["step"] == 5 and status)
    assert now["progress_time"] > first["progress_time"] and now["phase_time"] > first["phase_time"]
    publisher.update(step=5, phase="training")
    assert publisher.fields()["progress_time"] == now["progress_time"]
    publisher.close("stopped", 75, "asked to stop")
    last = read_status(paths)
    assert (last["state"], last["exit_code"], last["message"], last["phase"]) == (
        "stopped",
        75,
        "asked to stop",
        "training",
    )


def test_values_that_json_does_not_know_are_null_or_plain(paths):
    publisher = StatusPublisher(paths)
    publisher.update(loss=float("nan"), grad_norm=np.float32("inf"), step=np.int64(7), lr=np.float32(0.5))
    publisher.start()
    status = json.loads(paths.status.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (status["loss"], status["grad_norm"], status["step"], status["lr"]) == (None, None, 7, 0.5)
    publisher.close("finished")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float32(0.5), "0.5"),
        (np.int64(7), "7"),
        (np.bool_(True), "true"),
        (torch.tensor(0.5), "0.5"),
        ([float("nan"), np.float64("inf"), -math.inf], "[null, null, null]"),
        (np.array([[1.0, math.nan]]), "[[1.0, null]]"),
        ({"a": (1, Path("b") / "c"), "d": {"e": None}}, '{"a": [1, "b/c"], "d": {"e": null}}'),
        (ValueError("odd"), '"odd"'),
        ("\udcff", r'"\udcff"'),
    ],
)
def test_any_value_is_strict_json(value, text):
    assert strict_json(value) == text


def test_a_reader_never_sees_half_a_status(paths):
    publisher = StatusPublisher(paths, interval=0.0005)
    publisher.start()
    steps, end = set(), time.monotonic() + 1.5
    while time.monotonic() < end:
        publisher.update(step=len(steps) + 1, message="x" * (len(steps) % 5000))
        steps.add(json.loads(paths.status.read_bytes())["step"])
    publisher.close("finished", 0)
    assert len(steps) > 10
    assert [path.name for path in paths.metrics.iterdir()] == ["status.json"]


def test_heartbeat_without_news_and_a_deleted_status_comes_back(paths):
    publisher = StatusPublisher(paths, interval=0.02, heartbeat=0.1)
    publisher.start()
    beat = read_status(paths)["heartbeat"]
    eventually(lambda: read_status(paths)["heartbeat"] > beat)
    paths.status.unlink()
    eventually(paths.status.exists)
    publisher.close("finished")


def test_a_failing_disk_is_said_once_and_outlived(paths, capsys):
    paths.metrics.parent.mkdir(parents=True)
    paths.metrics.write_text("a file where the folder should be")
    publisher = StatusPublisher(paths, interval=0.02, heartbeat=0.05)
    publisher.start()
    for _ in range(5):
        publisher.log("hello")
        time.sleep(0.03)
    assert "status.json" in publisher.writer.trouble or "events.jsonl" in publisher.writer.trouble
    paths.metrics.unlink()
    eventually(lambda: read_status(paths))
    publisher.log("again")
    publisher.close("finished")
    assert [event["message"] for event in read_events(paths)] == ["again"]
    assert capsys.readouterr().err.count("warning:") == 1


def test_events_are_read_from_the_end_without_torn_lines(paths):
    publisher = StatusPublisher(paths)
    for number in range(3000):
        publisher.log(f"message {number} " + "x" * 20, "info")
    publisher.epoch({"epoch": 1, "loss_mean": float("inf")})
    with open(paths.events, "a") as file:
        file.write('{"time": 1, "kind": "log", "mess')
    assert paths.events.stat().st_size > 2 * TAIL_BYTES
    events = read_events(paths, last=2)
    assert events[0]["message"].startswith("message 2999") and events[0]["severity"] == "info"
    assert events[1]["kind"] == "epoch" and events[1]["row"] == {"epoch": 1, "loss_mean": None}
    assert 100 < len(read_events(paths, last=100_000)) < 3000

    resumed = StatusPublisher(paths)  # a new start ends the torn line, so that nothing more is lost
    resumed.start()
    resumed.log("resumed", "success")
    resumed.close("finished")
    assert read_events(paths, last=1)[0]["message"] == "resumed"


def test_epochs_are_numbers_none_where_empty_and_half_a_row_is_left_out(paths):
    assert read_epochs(paths) == []
    paths.metrics.mkdir(parents=True)
    with open(paths.csv, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["epoch", "loss_mean", "mfu", "data"], [1, 0.5, "", "emnist"], [2, 0.25, "", "emnist"]])
        file.write("3,0.1")
    rows = read_epochs(paths)
    assert rows == [
        {"epoch": 1, "loss_mean": 0.5, "mfu": None, "data": "emnist"},
        {"epoch": 2, "loss_mean": 0.25, "mfu": None, "data": "emnist"},
    ]
    assert read_epochs(paths, last=1) == rows[1:]


def test_a_damaged_status_reads_as_none(paths):
    paths.metrics.mkdir(parents=True)
    for damage in (b"", b"{", b"[1]", b"\xff\xfe"):
        paths.status.write_bytes(damage)
        assert read_status(paths) is None


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
