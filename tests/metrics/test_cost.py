"""What a run cost: energy, GPU-hours and utilisation, over all its starts and nodes."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from ddpm.run.metrics import ENERGY_WH, GPU_HOURS, GPU_UTILIZATION
from ddpm.run.paths import RunPaths
from metrics.compare.figures import ComparedRun
from metrics.compare.page import cost_section
from metrics.live.cost import cost_so_far, cost_words
from metrics.live.energy import EnergyMeter, read_rapl
from metrics.live.gpus import GpuSampler
from metrics.live.status import StatusPublisher
from metrics.run_data import RunData
from metrics.sections import summary
from metrics.tracker import summarise
from tests.conftest import replace
from tests.support.metrics_documents import make_document
from tests.support.runs import paths_of, run


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    paths = RunPaths(tmp_path, "small")
    paths.metrics.mkdir(parents=True)
    return paths


class Nvml:
    """GPUs of 300 W and 90% that have used 1000 Wh when they are first seen, and 2 Wh more at each look."""

    NVML_TEMPERATURE_GPU = 0

    def __init__(self, looks: int, counter: bool = True) -> None:
        self.looks, self.energy = looks, {}
        if counter:
            self.nvmlDeviceGetTotalEnergyConsumption = self._energy

    def _energy(self, handle: str) -> float:
        if handle == "old":
            raise OSError("Not Supported")
        self.energy[handle] = self.energy.get(handle, 998.0) + 2.0
        return round(self.energy[handle] * 3600 * 1000)

    def nvmlInit(self) -> None: ...

    def nvmlShutdown(self) -> None: ...

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:
        return SimpleNamespace(gpu=90)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return 300_000


def sample(paths: RunPaths, node: str, uuids: list[str], nvml: Nvml, seconds: float = 0.1, **given) -> dict:
    """The entry that a start on a node leaves."""
    sampler = GpuSampler(paths, node, uuids, interval=0.02, nvml=nvml, **given)
    sampler.start()
    time.sleep(seconds)
    sampler.stop()
    return json.loads((paths.gpus / f"{node}.json").read_text())["starts"][-1]


def test_energy_is_what_the_counters_gained(paths: RunPaths):
    nvml = Nvml(5)
    start = sample(paths, "vn1", ["one", "two"], nvml)
    gained = sum(energy - 1000 for energy in nvml.energy.values())
    assert gained > 0 and start["energy_wh"] == pytest.approx(gained)  # not what the power says


@pytest.mark.parametrize("nvml", [Nvml(5, counter=False), Nvml(5)], ids=["no counter", "not supported"])
def test_without_a_counter_power_is_integrated(paths: RunPaths, nvml: Nvml):
    start = sample(paths, "vn1", ["old", "old"], nvml)
    assert start["energy_wh"] == pytest.approx(600 * start["seconds"] / 3600) and start["seconds"] >= 0.1


def test_the_last_reading_is_made_when_the_start_ends(paths: RunPaths):
    sampler = GpuSampler(paths, "vn1", ["old"], interval=60, nvml=Nvml(1))
    sampler.start()
    time.sleep(0.3)
    sampler.stop()
    (start,) = json.loads((paths.gpus / "vn1.json").read_text())["starts"]
    assert start["readings"] == 2 and start["seconds"] >= 0.3


def zones(root: Path, **joules: float) -> Path:
    for number, (name, value) in enumerate(joules.items()):
        zone = root / f"intel-rapl:{number}"
        zone.mkdir(parents=True, exist_ok=True)
        for file, text in {"name": name.replace("_", "-"), "energy_uj": f"{value * 1e6:.0f}",
                           "max_energy_range_uj": "1000000000"}.items():  # fmt: skip
            (zone / file).write_text(text + "\n")
    return root


def test_the_energy_of_processors_goes_on_where_the_counter_begins_again(tmp_path: Path):
    meter = EnergyMeter()
    assert meter.joules is None
    for one, two in ((900, 10), (950, 20), (50, 40)):
        for zone in read_rapl(zones(tmp_path, package_0=one, package_1=two, psys=one + two)):
            meter.count(*zone)
    assert meter.joules == pytest.approx(50 + 100 + 10 + 20)  # psys holds the packages, and counts no second time


def test_a_cpu_has_the_energy_of_its_processors_or_none(paths: RunPaths, tmp_path: Path):
    root = zones(tmp_path / "powercap", package_0=900)
    sampler = GpuSampler(paths, "vn1", [], interval=0.02, powercap=root)
    sampler.start()
    time.sleep(0.1)
    zones(root, package_0=260)
    time.sleep(0.1)
    sampler.stop()
    assert cost_so_far(paths)[ENERGY_WH] == pytest.approx(360 / 3600)
    other = RunPaths(tmp_path / "other", "small")
    GpuSampler(other, "vn1", [], powercap=tmp_path / "none")._run()
    cost = cost_so_far(other)
    assert set(cost.values()) == {None} and cost_words(cost) == "energy not measured"


def test_killed_starts_and_all_nodes_count(paths: RunPaths, monkeypatch):
    paths.gpus.mkdir()
    for node, use in {"vn1": 80.0, "vn2": 90.0}.items():
        killed = {"readings": 100, "mean_utilization": use, "seconds": 900, "energy_wh": 100.0}
        after = {"readings": 100, "mean_utilization": 100.0, "seconds": 3600, "mean_power_w": 200.0}  # an older version
        record = {"node": node, "gpus": [], "starts": [killed, after, {"energy_wh": -5}, {"energy_wh": "much"}]}
        (paths.gpus / f"{node}.json").write_text(json.dumps(record))
    now = time.time()
    for seconds in (900, 3600):  # neither ends: both are killed
        publisher = StatusPublisher(paths, {"gpus": 4, "started": now - seconds, "start_step": 0})
        monkeypatch.setattr(publisher, "_closing", SimpleNamespace(set=lambda: None))
        publisher.flush()
        now += 10_000
        monkeypatch.setattr("time.time", lambda now=now: now)
    cost = cost_so_far(paths)
    assert cost[ENERGY_WH] == pytest.approx(2 * (100 + 200))
    assert cost[GPU_UTILIZATION] == pytest.approx((80 + 90 + 200) / 400)
    assert cost[GPU_HOURS] == pytest.approx(4 * (900 + 3600) / 3600, rel=1e-3)
    assert cost_words(cost) == "energy 600.000 Wh, 5.000 GPU-hours, GPUs in use 92.5% of the time"


def test_a_run_has_its_cost_in_its_rows_summary_card_and_last_lines(small, monkeypatch, quick_reports, capsys):
    nvml = Nvml(10)
    whole = GpuSampler.__init__
    monkeypatch.setattr(
        GpuSampler, "__init__",
        lambda self, paths, node, uuids, **given: whole(self, paths, node, ["one"], interval=0.05, nvml=nvml),
    )  # fmt: skip
    config = replace(small, export=True)
    assert run(replace(config, epochs=1, export=False)) == 0
    first = pd.read_csv(paths_of(config).csv)["energy_wh"].iloc[-1]
    assert run(config) == 0
    rows = pd.read_csv(paths_of(config).csv)
    assert first == rows["energy_wh"].iloc[0] < rows["energy_wh"].iloc[1]  # the first start counts on
    assert rows["gpu_utilization"].tolist() == [0.9, 0.9]
    assert json.loads(paths_of(config).json.read_text())["summary"]["energy_wh"] == rows["energy_wh"].iloc[1]
    assert "cost so far: energy " in capsys.readouterr().out
    card = (paths_of(config).checkpoints / "export" / "README.md").read_text()
    assert f"| energy | {rows['energy_wh'].iloc[1]:,.3f} Wh |" in card


def test_summary_and_comparison_show_what_a_run_cost(tmp_path: Path):
    document = make_document(2)
    document["epochs"][-1] |= {"energy_wh": 1234.5, "gpu_hours": 3.25, "gpu_utilization": 0.875}
    document["summary"] = summarise(document["epochs"], [])
    published = RunData(RunPaths(tmp_path, "small"), 0.0, document=document, rows=document["epochs"])
    shown = {row[0]: row[1] for row in summary(published).blocks[0].rows}
    assert [shown[f"`{name}`"] for name in ("energy_wh", "gpu_hours", "gpu_utilization")] == [
        "1,234.500", "3.250", "87.5%",
    ]  # fmt: skip
    table = cost_section([ComparedRun("a", "a", published)]).blocks[1]
    cells = {row[0]: row[1] for row in table.rows}
    assert (cells["energy, Wh"], cells["GPU-hours"], cells["GPU utilisation"]) == ("1,234.500", "3.250", "87.5%")
