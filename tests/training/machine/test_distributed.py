"""Ranks, agreement between processes, and stop signals."""

import datetime
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import train
from ddpm.run.errors import NotMetError, RequestError
from ddpm.run.launch import Launch, first_host, read_launch
from ddpm.run.paths import PROJECT_ROOT
from ddpm.run.signals import StopRequest
from ddpm.training.machine import rendezvous
from ddpm.training.machine.distributed import StopVote, connect
from ddpm.training.trainer import StepBuffer
from tests.support.processes import in_processes
from tests.support.runs import crew

WHOLE = {
    "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "gpu03",
    "MASTER_PORT": "29500",
}  # fmt: skip
STEP = {
    "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "6", "SLURM_LOCALID": "2", "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_NODELIST": "gpu[03-04]", "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
}  # fmt: skip
UNEVEN = {
    "SLURM_STEP_NUM_TASKS": "5", "SLURM_PROCID": "4", "SLURM_LOCALID": "0", "SLURM_NODEID": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
}  # fmt: skip
LAUNCHES = {
    "nobody": ({}, Launch()),
    "by hand": ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, Launch()),
    "empty variables": ({"RANK": "", "WORLD_SIZE": " "}, Launch()),
    "torchrun": (WHOLE, Launch(5, 1, 8, 4, "gpu03", 29500)),
    "a batch script without srun": ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}, Launch()),
    "srun": (STEP, Launch(6, 2, 8, 4, "gpu03", 20000 + 14567, by_srun=True)),
    "srun, in a script that says where to meet": (
        {**STEP, "MASTER_ADDR": "other", "MASTER_PORT": "1024", "WORLD_SIZE": "8"},
        Launch(6, 2, 8, 4, "other", 1024, by_srun=True),
    ),
    "srun, fewer tasks on the last node": (STEP | UNEVEN, Launch(4, 0, 5, 1, "gpu03", 34567, by_srun=True)),
    "torchrun in a step of srun": ({**STEP, **WHOLE}, Launch(5, 1, 8, 4, "gpu03", 29500)),
}


@pytest.mark.parametrize("launch", LAUNCHES)
def test_ranks_come_from_whoever_started_the_processes(launch: str):
    variables, expected = LAUNCHES[launch]
    assert read_launch(variables) == expected


NONSENSE = {  # variables → the one that the line must name
    "RANK alone": ({"RANK": "1"}, "WORLD_SIZE"),
    "WORLD_SIZE alone": ({"WORLD_SIZE": "4"}, "RANK"),
    "LOCAL_RANK alone": ({"LOCAL_RANK": "1"}, "RANK"),
    "no number": ({"RANK": "x", "WORLD_SIZE": "1"}, "RANK=x"),
    "not of this world": (WHOLE | {"RANK": "8"}, "RANK=8"),
    "not of this node": (WHOLE | {"LOCAL_RANK": "4"}, "LOCAL_RANK=4"),
    "a node larger than the world": (WHOLE | {"LOCAL_WORLD_SIZE": "9"}, "LOCAL_WORLD_SIZE=9"),
    "nobody": (WHOLE | {"WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
    "negative": (WHOLE | {"RANK": "-1"}, "RANK=-1"),
    "no address": (WHOLE | {"MASTER_ADDR": ""}, "MASTER_ADDR"),
    "no port": (WHOLE | {"MASTER_PORT": ""}, "MASTER_PORT"),
    "no LOCAL_RANK": (WHOLE | {"LOCAL_RANK": ""}, "LOCAL_RANK"),
    "no such port": (WHOLE | {"MASTER_PORT": "65536"}, "MASTER_PORT=65536"),
    "a port's name": (WHOLE | {"MASTER_PORT": "http"}, "MASTER_PORT=http"),
    "srun said otherwise": (STEP | {"WORLD_SIZE": "4"}, "RANK"),
    "half a step": ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1"}, "SLURM_LOCALID"),
    "a task without its step": ({"SLURM_PROCID": "3"}, "SLURM_STEP_NUM_TASKS"),
    "a step without its nodes": (STEP | {"SLURM_STEP_NODELIST": ""}, "SLURM_STEP_NODELIST"),
    "nodes that cannot be read": (STEP | {"SLURM_STEP_NODELIST": "vn[1-"}, "SLURM_STEP_NODELIST=vn[1-"),
    "tasks that cannot be read": (STEP | {"SLURM_STEP_TASKS_PER_NODE": "four"}, "SLURM_STEP_TASKS_PER_NODE=four"),
    "a task too many": (STEP | {"SLURM_PROCID": "8"}, "SLURM_PROCID=8"),
}


@pytest.mark.parametrize("case", NONSENSE)
def test_variables_that_are_half_set_or_nonsense_are_refused(case: str):
    variables, named = NONSENSE[case]
    with pytest.raises(RequestError, match=re.escape(named)) as refusal:
        read_launch(variables)
    assert "\n" not in str(refusal.value)


def train_with(variables: dict[str, str], *arguments: str) -> subprocess.Popen:
    """train.py with these variables and no other process of its job."""
    inherited = {name: value for name, value in os.environ.items() if name not in {*WHOLE, *STEP, *UNEVEN}}
    return subprocess.Popen(
        [sys.executable, "train.py", *arguments], cwd=PROJECT_ROOT, env=inherited | variables,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_whoever_has_such_variables_says_so_in_one_line_whatever_its_rank():
    cases = ["RANK alone", "WORLD_SIZE alone", "no number", "no address"]
    for case, process in [(case, train_with(NONSENSE[case][0])) for case in cases]:
        told = process.communicate(timeout=60)[1]
        assert (process.returncode, told.count("\n")) == (2, 1), told
        assert told.startswith("error: ")
        assert NONSENSE[case][1] in told


def test_what_is_wrong_on_one_node_only_is_said_there_by_one_process():
    """Such as a file of settings on a disk of that node: rank 0 knows nothing of it, and waits."""
    for local_rank, lines in ("0", 1), ("1", 0):
        variables = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": "4",
                     "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}  # fmt: skip
        process = train_with(variables, "--config", "/nowhere/settings.yaml")
        told = process.communicate(timeout=60)[1]
        assert (process.returncode, told.count("\n")) == (2, lines), told


def test_a_port_in_use_is_one_line():
    with socket.create_server(("", 0)) as other:
        port = str(other.getsockname()[1])
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        process = train_with({"RANK": "0", "LOCAL_RANK": "0", **shared})
        told = process.communicate(timeout=60)[1]
    assert (process.returncode, told.count("\n")) == (2, 1), told
    assert f"MASTER_PORT {port}" in told


def alone(rank: int, address: str, answers: bool) -> tuple[str, bool]:
    """Why process `rank` of two, whose other never comes, gives up; and whether each process is to say so."""
    rendezvous.MEETING, rendezvous.HANDSHAKE = datetime.timedelta(seconds=0.5), 0.5
    with socket.create_server(("", 0)) as silent:  # is never accepted
        port = silent.getsockname()[1]
        if not answers:
            silent.close()
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
        os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
        try:
            with connect():
                return "met", False
        except RequestError as error:
            return str(error).replace(str(port), "PORT"), isinstance(error, NotMetError)


@pytest.mark.parametrize(
    ("rank", "address", "answers", "complaint"),
    [
        (0, "127.0.0.1", False, "for process 1 of 2"),
        (1, "127.0.0.1", False, "for process 0 at 127.0.0.1:PORT"),
        (1, "127.0.0.1", True, "127.0.0.1:PORT does not answer"),
        (1, "no..host", False, "MASTER_ADDR=no..host"),
    ],
)
def test_whoever_waits_in_vain_says_for_whom(rank: int, address: str, answers: bool, complaint: str):
    told, by_each = in_processes(alone, 1, rank, address, answers)[0]
    assert complaint in told
    assert by_each


def test_processes_that_have_not_met_each_speak(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    for name, value in WHOLE.items():
        monkeypatch.setenv(name, value)
    assert train.refuse(RequestError("said by process 0")) == 2
    assert train.refuse(NotMetError("said by process 5")) == 2
    assert capsys.readouterr().err == "error: said by process 5\n"


def test_a_process_0_that_dies_before_the_group_is_made_is_told_of_by_process_1(small, monkeypatch, capsys):
    def fail(launch: Launch) -> None:
        raise torch.distributed.DistNetworkError("Connection reset by peer")

    monkeypatch.setattr("ddpm.training.machine.distributed.meet", fail)
    for rank in ("1", "5"):
        for name, value in (WHOLE | {"RANK": rank}).items():
            monkeypatch.setenv(name, value)
        assert train.main(small, StopRequest()) == 1
    assert capsys.readouterr().err.count("process 0 was lost") == 1


def test_one_process_without_its_gpu_ends_all_with_one_line_that_names_it(small, tmp_path: Path):
    """Two real processes without data: what the second was granted is hidden from it. No data are read before that."""
    config, granted = replace(small, data_root=tmp_path / "nowhere"), {"SLURM_JOB_GPUS": "0"}
    with crew(config, second=granted, CUDA_VISIBLE_DEVICES="") as processes:
        told = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert (told[0].count("\n"), told[1]) == (1, ""), told
    assert f"(process 1 of 2, on {socket.gethostname()})" in told[0]


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("vn1", "vn1"), ("vn1,vn2", "vn1"), ("vn[1-2]", "vn1"), ("gpu[003,007-9],cpu1", "gpu003"), ("a,b[1-2]", "a"),
        ("rack[1-2]n[01-04],x", "rack1n01"), ("vn[3-5,8]-ib.cluster", "vn3-ib.cluster"), ("a-b", "a-b"),
    ],
)  # fmt: skip
def test_the_first_host_of_a_node_list(nodes: str, first: str):
    assert first_host(nodes) == first


@pytest.mark.parametrize("nodes", ["", ",a", "a[1-2", "a]", "a b", "[", "a[]"])
def test_what_is_no_node_list(nodes: str):
    with pytest.raises(RequestError, match="SLURM_STEP_NODELIST"):
        first_host(nodes)


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
    os.environ["LOCAL_RANK"] = str(int(os.environ["RANK"]) % local_world_size)
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
            return world.broadcast_result(task, here=world.rank == 1)
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
from ddpm.run.signals import StopRequest
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


def losses_taken(parts: tuple[int, ...]) -> list[float]:
    """The losses of fifteen steps, taken after so many steps each."""
    with connect() as world:
        of_steps = torch.rand(sum(parts), generator=torch.Generator().manual_seed(world.rank))
        buffer, taken = StepBuffer(len(of_steps), world), []
        for part in of_steps.split(parts):
            for loss in part:
                buffer.add(loss, torch.tensor(1.0))
            taken += buffer.take()[0].tolist()
    return taken


def test_losses_of_several_processes_do_not_depend_on_when_they_are_taken():
    """A start in the middle of an epoch takes fewer at once, and Gloo adds the parts of a tensor in another order."""
    assert in_processes(losses_taken, 3, (11, 4)) == in_processes(losses_taken, 3, (15,))
