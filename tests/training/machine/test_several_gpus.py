"""Several processes on GPUs: they must be equal, and NCCL must leave word of a hang. The GPUs are stand-ins."""

import os
import socket

import pytest
import torch

import train
from ddpm.run.config import TrainConfig
from ddpm.run.errors import RequestError
from ddpm.run.signals import StopRequest
from ddpm.training.machine import rendezvous
from ddpm.training.machine.distributed import connect
from tests.support.processes import in_processes

RECORDER = {"TORCH_FR_BUFFER_SIZE", "TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DUMP_ON_TIMEOUT"}


def mixed(names: list[str]) -> str:
    """What becomes of processes that find these devices, of GPUs their names; "met" if they can train together."""
    name = names[int(os.environ["RANK"])]
    rendezvous.pick_device = lambda *_: (torch.device("cpu" if name == "cpu" else "cuda"), "")
    rendezvous.device_name = lambda _: name
    begin = torch.distributed.init_process_group  # by Gloo alone, as the GPUs are stand-ins
    torch.distributed.init_process_group = lambda backend, device_id, **group: begin("gloo", **group)
    try:
        with connect():
            return "met"
    except RequestError as error:
        return str(error)


@pytest.mark.parametrize("names", [["cpu", "cpu"], ["NVIDIA L40S", "NVIDIA L40S"]])
def test_processes_with_equal_devices_train_together(names: list[str]):
    assert in_processes(mixed, 2, names) == ["met", "met"]


@pytest.mark.parametrize("names", [["NVIDIA L40S", "cpu", "NVIDIA L40S"], ["NVIDIA A30", "NVIDIA L40S", "NVIDIA A30"]])
def test_a_run_is_not_trained_on_different_devices(names: list[str]):
    told = set(in_processes(mixed, 3, names))
    assert len(told) == 1
    line, host = told.pop(), socket.gethostname()
    assert "\n" not in line
    assert f"process 0, 2 on {host}: {names[0]}; process 1 on {host}: {names[1]}" in line
    assert "--device cpu" in line


def recorder(name: str, config: TrainConfig, asked: dict[str, str]) -> dict[str, str]:
    """The variables that NCCL finds when a run on such a device makes its process group."""
    found = {}

    def begin(_backend: str, store: torch.distributed.Store, rank: int, **_) -> None:
        found.update({name: value for name, value in os.environ.items() if name in RECORDER | asked.keys()})
        store.set(f"seen/{rank}", "")
        store.wait(["seen/0", "seen/1"])  # process 0 serves the store
        raise RequestError("enough")

    rendezvous.pick_device = lambda *_: (torch.device(name), "")
    rendezvous.device_name = lambda _: name
    torch.distributed.init_process_group = begin
    for variable in RECORDER:  # an earlier test's, if the server that processes are forked from began after it
        os.environ.pop(variable, None)
    os.environ |= asked
    train.main(config, StopRequest())
    return found


def test_nccl_is_to_leave_its_latest_collectives_beside_the_runs_log(small):
    prefix = str(small.output_root / "logs" / "small.nccl_rank_")
    expected = dict(zip(sorted(RECORDER), ["2000", prefix, "1"], strict=True))
    assert in_processes(recorder, 2, "cuda", small, {}) == [expected] * 2
    asked = {"TORCH_NCCL_TRACE_BUFFER_SIZE": "9", "TORCH_NCCL_DUMP_ON_TIMEOUT": "0", "TORCH_FR_DUMP_TEMP_FILE": "mine_"}
    assert in_processes(recorder, 2, "cuda", small, asked) == [asked] * 2
    assert "TORCH_FR_BUFFER_SIZE" not in in_processes(recorder, 2, "cpu", small, {})[0]
