"""How many threads torch gets on a CPU: by cores and quota, by what other processes take, and as the user says."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

import train
from ddpm.run.signals import StopRequest
from ddpm.training.machine import threads
from ddpm.training.machine.control_groups import Quota, cpu_quota, memory_left
from ddpm.training.machine.distributed import connect
from ddpm.training.machine.threads import (
    PATIENCE,
    Adjustment,
    Reading,
    Threads,
    busy_seconds,
    fitting,
    free_cores,
    limit_spinning,
    most_threads,
    usable_cores,
)
from tests.conftest import ONE, replace
from tests.support.processes import in_processes
from tests.support.runs import paths_of, run

STAT = """cpu  900 10 90 7000 20 1 2 30 5 0
cpu0 100 1 10 1000 500 2 3 4 90 0
cpu1 200 2 20 2000 5 0 0 0 0 0
cpu12 600 0 60 4000 5 0 0 0 0 0
intr 1 2 3
"""


def test_busy_time_is_that_of_the_given_cores_with_steal_and_without_waiting():
    tick = os.sysconf("SC_CLK_TCK")
    assert busy_seconds(STAT, [0]) == (100 + 1 + 10 + 2 + 3 + 4) / tick
    assert busy_seconds(STAT, [0, 1]) == (120 + 222) / tick
    assert busy_seconds("", [0]) is None  # no /proc
    assert busy_seconds("cpu0 0 0 0 0 0 0 0 0 0 0\n", [0]) is None  # a sandbox that counts nothing


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


@pytest.mark.parametrize(
    ("listed", "folder", "files", "cores"),
    [
        ("0::/", "", {"cpu__max": "200000 100000"}, 2),  # v2, as a container sees itself
        ("0::/job/step", "job", {"cpu__max": "150000 100000"}, 1.5),  # a limit further up holds too
        ("0::/", "", {"cpu__max": "max 100000"}, None),
        ("3:cpu,cpuacct:/job\n0::/", "cpu,cpuacct/job",
         {"cpu__cfs_quota_us": "400000", "cpu__cfs_period_us": "100000"}, 4),
        ("3:cpu,cpuacct:/docker/ab", "cpu", {"cpu__cfs_quota_us": "50000", "cpu__cfs_period_us": "100000"}, 0.5),
        ("3:cpu:/", "cpu", {"cpu__cfs_quota_us": "-1", "cpu__cfs_period_us": "100000"}, None),
        ("3:cpuset:/", "cpuset", {"cpu__max": "100000 100000"}, None),
        ("", "", {}, None),
    ],
)  # fmt: skip
def test_a_containers_quota_is_found(tmp_path, listed, folder, files, cores):
    (tmp_path / "cgroup").write_text(listed + "\n" if listed else "")
    write(tmp_path / "fs" / folder, **files)
    found = cpu_quota(tmp_path / "cgroup", tmp_path / "fs")
    assert (found and found.cores) == cores


def test_of_two_quotas_the_tighter_one_counts(tmp_path):
    (tmp_path / "cgroup").write_text("0::/job/step\n")
    write(tmp_path / "fs" / "job", cpu__max="100000 100000")
    write(tmp_path / "fs" / "job" / "step", cpu__max="800000 100000")
    assert cpu_quota(tmp_path / "cgroup", tmp_path / "fs") == Quota(1, tmp_path / "fs" / "job")


@pytest.mark.parametrize(
    ("listed", "folder", "files", "left"),
    [
        ("0::/job", "job", {"memory__max": "1000", "memory__current": "700", "memory__stat": "a 5\ninactive_file 200"},
         500),
        ("0::/job/step", "job", {"memory__max": "1000", "memory__current": "1100", "memory__stat": ""}, 0),
        ("0::/job", "job", {"memory__max": "max", "memory__current": "700"}, None),
        ("4:memory:/slurm/job\n0::/", "memory/slurm",
         {"memory__limit_in_bytes": "1000", "memory__usage_in_bytes": "900", "memory__stat": "total_inactive_file 50"},
         150),
        ("0::/", "", {}, None),
    ],
)  # fmt: skip
def test_the_memory_that_a_job_has_left_is_found(tmp_path, listed, folder, files, left):
    (tmp_path / "cgroup").write_text(listed + "\n")
    write(tmp_path / "fs" / folder, **files)
    assert memory_left(tmp_path / "cgroup", tmp_path / "fs") == left


def test_a_container_with_two_cores_of_many_gets_two_threads(monkeypatch):
    monkeypatch.setattr(threads, "usable_cores", lambda: set(range(64)))
    assert most_threads(64, 1, Quota(2, Path())) == 2
    assert most_threads(64, 1, Quota(2.5, Path())) == 2
    assert most_threads(64, 1, Quota(0.5, Path())) == 1
    assert most_threads(64, 4, Quota(16, Path())) == 4
    assert most_threads(32, 1, None if cpu_quota() is None else Quota(64, Path())) == 32  # torch's own: no hyperthreads


def after(seconds: float, own: float, machine: float | None, group: float | None = None) -> Reading:
    return Reading(at=100 + seconds, own=7 + own, machine=machine and 5000 + machine, group=group and 300 + group)


@pytest.mark.parametrize(
    ("cores", "quota", "now", "free"),
    [
        (2, None, after(4, own=4, machine=4.4), 1.9),  # nobody but us
        (2, None, after(4, own=2, machine=8), 0.5),  # four others on two cores
        (16, None, after(10, own=60, machine=90), 13),
        (64, 2, after(10, own=5, machine=500, group=8), 1.7),  # others in our container
        (64, 2, after(10, own=20, machine=500, group=20), 2),  # others on the machine, which has room for us
        (4, None, after(5, own=5, machine=None), 4),  # /proc tells nothing
        (2, None, after(5, own=5, machine=4.9), 2),  # ticks of 10 ms against nanoseconds
    ],
)
def test_free_is_what_others_leave(cores, quota, now, free):
    before = Reading(at=100, own=7, machine=5000, group=300)
    assert free_cores(cores, quota, [before], [now]) == pytest.approx(free)


def test_what_a_sibling_process_uses_is_not_taken_by_others():
    before = [Reading(0, 0, 0), Reading(0, 0, 0)]
    assert free_cores(4, None, before, [Reading(10, 20, 41), Reading(10, 20, 41)]) == pytest.approx(3.9)


@pytest.mark.parametrize(
    ("most", "free", "number"),
    [(2, 2, 2), (2, 1.6, 2), (2, 1.4, 1), (2, 0, 1), (1, 1, 1), (16, 13, 13), (16, 12.4, 12), (8, 15, 8)],
)
def test_a_thread_less_for_every_core_that_others_take(most, free, number):
    assert fitting(most, free) == number


def test_threads_go_at_once_and_come_back_after_a_while_of_peace_which_doubles():
    adjust = Adjustment(2)
    assert adjust(1.9, at=0) == 2
    assert adjust(0.7, at=5) == 1
    for moment in range(10, 95, 5):  # a machine that is idle only now and then
        assert adjust(1.9 if moment % 10 else 1.0, at=moment) == 1
    assert [adjust(1.9, at) for at in (100, 115, 100 + PATIENCE - 1, 100 + PATIENCE)] == [1, 1, 1, 2]
    assert adjust(1.6, at=135) == 2  # between the limits nothing changes, neither way
    assert adjust(0.5, at=140) == 1
    assert adjust(1.6, at=145) == 1
    peace = [150 + offset for offset in (0, PATIENCE, 2 * PATIENCE - 1, 2 * PATIENCE)]
    assert [adjust(2, at) for at in peace] == [1, 1, 1, 2]


def agreed() -> list:
    """The numbers that one of two processes has, when only the second one's cores are taken, and then are free."""
    os.environ.pop("OMP_NUM_THREADS")
    with connect() as world:
        torch.set_num_threads(8)
        threads.free_cores = lambda *_: 16.0 if world.rank == 0 or free else 4.4
        threads.INTERVAL = 0.0
        free = False
        mine = Threads(world.device, world.gather)
        seen = [mine.number]
        free, mine._adjust._patience = True, 0.0
        told = [mine.step() for _ in range(2 * threads.TOGETHER)]
        return [*seen, mine.number, torch.get_num_threads(), sum(each is not None for each in told)]


def test_processes_agree_on_the_least_number():
    assert in_processes(agreed, 2) == [[2, 8, 8, 1]] * 2


def test_the_users_number_is_honoured_whatever_others_take(monkeypatch):
    monkeypatch.setattr(threads, "free_cores", lambda *_: 0.0)
    monkeypatch.setattr(threads, "INTERVAL", 0.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    chosen = Threads(ONE.device)
    assert (chosen.number, chosen.step()) == (torch.get_num_threads(), None)
    assert "OMP_NUM_THREADS=1" in chosen.reason


@pytest.mark.parametrize(
    ("variables", "spins"),
    [
        ({}, threads.SPINS),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "passive"}, None),
    ],
)
def test_threads_spin_for_a_millisecond_unless_the_user_says_otherwise(monkeypatch, variables, spins):
    monkeypatch.setattr(os, "environ", dict(variables))
    limit_spinning()
    assert os.environ.get("GOMP_SPINCOUNT") == spins


@pytest.fixture
def several_threads():
    """This process has as many threads as cores meanwhile, and no more afterwards than before."""
    before = torch.get_num_threads()
    torch.set_num_threads(len(usable_cores()))
    yield len(usable_cores())
    torch.set_num_threads(before)


def test_beside_busy_processes_a_run_takes_one_thread(monkeypatch, several_threads):
    monkeypatch.delenv("OMP_NUM_THREADS")
    with ExitStack() as stack:
        for _ in range(several_threads + 1):
            busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(busy.wait)
            stack.callback(busy.kill)
        time.sleep(0.5)
        monkeypatch.setattr(threads, "BEGAN", Reading.take(usable_cores(), cpu_quota()))
        time.sleep(1.5)
        assert Threads(ONE.device).number == torch.get_num_threads() == 1


@pytest.mark.skipif(len(usable_cores()) < 2, reason="needs two cores")
@pytest.mark.usefixtures("quick_reports")
def test_a_run_that_goes_on_with_another_number_of_threads_says_so_and_records_it(small, monkeypatch, several_threads):
    torch.set_num_threads(1)
    assert run(replace(small, epochs=1)) == 0
    paths = paths_of(small)
    assert json.loads(paths.json.read_text())["environment"]["threads"] == [{"step": 0, "threads": 1}]
    torch.set_num_threads(2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    stop = StopRequest()
    stop._handle(signal.SIGTERM, None)
    assert train.main(small, stop) == 75
    assert "threads 1 → 2; the run goes on, but not bit for bit" in paths.log.read_text()
    environment = json.loads(paths.json.read_text())["environment"]
    assert environment["threads"] == [{"step": 0, "threads": 1}, {"step": 8, "threads": 2}]
    assert environment["choices"]["threads"] == "2 (OMP_NUM_THREADS=2)"
