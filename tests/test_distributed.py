"""Ranks, agreement between processes, and stop signals."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from ddpm.distributed import StopVote, _first_host, _ranks, connect
from ddpm.errors import RequestError
from ddpm.paths import PROJECT_ROOT
from ddpm.signals import StopRequest
from tests.processes import in_processes

LAUNCHES = {
    "nobody": ({}, (0, 0, 1, 1)),
    "by hand": ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, (0, 0, 1, 1)),
    "torchrun": ({"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, (5, 1, 8, 4)),
    "a batch script without srun": ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}, (0, 0, 1, 1)),
    "srun": (
        {
            "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "6", "SLURM_LOCALID": "2", "SLURM_JOB_ID": "1234567",
            "SLURM_STEP_NODELIST": "gpu[03-04]", "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
        },
        (6, 2, 8, 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("launch", LAUNCHES)
def test_ranks_come_from_whoever_started_the_processes(launch: str, monkeypatch: pytest.MonkeyPatch):
    variables, expected = LAUNCHES[launch]
    monkeypatch.setattr(os, "environ", dict(variables))
    assert _ranks() == expected
    if launch == "srun":
        assert os.environ["MASTER_ADDR"] == "gpu03"
        assert 1024 < int(os.environ["MASTER_PORT"]) < 65536


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("vn1", "vn1"), ("vn1,vn2", "vn1"), ("vn[1-2]", "vn1"), ("gpu[003,007-9],cpu1", "gpu003"), ("a,b[1-2]", "a")],
)
def test_the_first_host_of_a_node_list(nodes: str, first: str):
    assert _first_host(nodes) == first


def threads() -> int:
    torch.set_num_threads(64)
    with connect():
        return torch.get_num_threads()


def test_the_processes_of_a_node_share_its_cores():
    cores = len(os.sched_getaffinity(0))
    assert in_processes(threads, 1) == [cores]
    assert in_processes(threads, 2) == [max(1, cores // 2)] * 2


def nodes(local_world_size: int, hosts: list[str]) -> int:
    os.environ["LOCAL_WORLD_SIZE"] = str(local_world_size)
    host = hosts[int(os.environ["RANK"])]
    socket.gethostname = lambda: host
    with connect() as world:
        return world.nodes


def test_nodes_are_hosts_however_many_launchers_run_on_each():
    """srun --ntasks-per-node=2 starts two, each of which calls its own processes local."""
    assert in_processes(nodes, 2, 1, ["vn1", "vn1"]) == [1, 1]
    assert in_processes(nodes, 2, 2, ["vn1", "vn2"]) == [2, 2]


def ask_together(failing_rank: int | None) -> str:
    def task() -> str:
        if failing_rank == 1:
            raise RequestError("a file is missing")
        return "from process 1"

    with connect() as world:
        try:
            return world.together(task, here=world.rank == 1)
        except RequestError as error:
            return f"refused: {error}"


def test_what_one_process_does_or_fails_at_reaches_all():
    assert in_processes(ask_together, 3, None) == ["from process 1"] * 3
    assert in_processes(ask_together, 3, 1) == ["refused: a file is missing"] * 3


def stop_at(signalled: int, at_step: int) -> int:
    """Count steps until the vote passes; process `signalled` gets a real SIGUSR1 before step `at_step`."""
    stop = StopRequest().install()
    with connect() as world:
        vote = StopVote(stop, world)
        for step in range(100):
            if step == at_step and world.rank == signalled:
                os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.002 * world.rank)  # out of step with each other
            if vote.passed():
                vote.close()
                return step
    return -1


@pytest.mark.parametrize(("world_size", "signalled"), [(1, 0), (2, 1), (3, 0)])
def test_all_processes_stop_at_the_same_step(world_size: int, signalled: int):
    steps = in_processes(stop_at, world_size, signalled, 7)
    assert set(steps) == {7 if world_size == 1 else 8}


HANDLE = """
import os, signal, sys, time
from ddpm.signals import StopRequest
stop = StopRequest().install()
assert "torch" not in sys.modules
{script}
"""


def run_script(script: str) -> subprocess.CompletedProcess:
    code = HANDLE.format(script=script)
    return subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_is_remembered_and_nothing_is_interrupted(name: str):
    ended = run_script(f"os.kill(os.getpid(), signal.{name}); time.sleep(0.1); print(stop.signal.name, stop.requested)")
    assert (ended.returncode, ended.stdout) == (0, f"{name} True\n")


def test_a_second_ctrl_c_interrupts_but_not_the_copy_that_torchrun_passes_on():
    twice = "os.kill(os.getpid(), signal.SIGINT); time.sleep({pause}); os.kill(os.getpid(), signal.SIGINT); print('on')"
    assert run_script(twice.format(pause=0.1)).stdout == "on\n"
    second = run_script(twice.format(pause=1.2))
    assert second.stdout == ""
    assert "KeyboardInterrupt" in second.stderr
