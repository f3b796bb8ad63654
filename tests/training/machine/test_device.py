"""Which device is taken, and that a GPU which was granted but cannot be used is refused. NVML and torch.cuda are
stand-ins, so that every machine shows the same."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import evaluate
import sample
import train
from ddpm import export
from ddpm.run.arguments import parse_args
from ddpm.run.config import preset
from ddpm.run.errors import RequestError
from ddpm.run.paths import PROJECT_ROOT
from ddpm.run.signals import StopRequest
from ddpm.training.describe import hyperparameters
from ddpm.training.machine import device as devices
from ddpm.training.machine.device import Driver, granted, hidden, pick_device, plainly_there
from ddpm.training.machine.hardware import choose
from ddpm.training.schedule import TrainingSchedule
from tests.conftest import as_arguments

GRANTED = {"SLURM_JOB_GPUS": "0,1,2,3"}


def nvml(driver: str = "535.129.03", cuda: int = 12020, gpus: int = 1, forbidden: int = 0) -> SimpleNamespace:
    """A stand-in for the module `pynvml`: a driver and its GPUs, of which the first `forbidden` are for others."""

    class NVMLError(Exception):
        pass

    def handle(index: int) -> int:
        if index < forbidden:
            raise NVMLError("Insufficient Permissions")
        return index

    return SimpleNamespace(
        NVMLError=NVMLError, nvmlInit=lambda: None, nvmlShutdown=lambda: None,
        nvmlSystemGetDriverVersion=lambda: driver, nvmlSystemGetCudaDriverVersion_v2=lambda: cuda,
        nvmlDeviceGetCount=lambda: gpus, nvmlDeviceGetHandleByIndex=handle,
    )  # fmt: skip


def broken_nvml(why: str) -> SimpleNamespace:
    def fail() -> None:
        raise RuntimeError(why)

    return SimpleNamespace(NVMLError=RuntimeError, nvmlInit=fail)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """`machine(shown, found, variables, cuda, hip)`: what NVML shows, how many GPUs torch finds, for what it is built.
    Before it is called: a machine without a driver, and a torch for CUDA 13.0 that finds nothing."""
    for name in (*devices.GRANTS, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(devices, "DEVICE_FILES", str(tmp_path / "nvidia[0-9]*"))
    monkeypatch.setattr(devices, "DRIVER_FILE", tmp_path / "version")

    def make(shown=None, found: int = 0, variables: dict | None = None, cuda: str | None = "13.0", hip=None) -> None:
        def init() -> None:
            if not found:
                raise RuntimeError("No CUDA GPUs are available\nand more of it")

        monkeypatch.setitem(sys.modules, "pynvml", shown or broken_nvml("NVML Shared Library Not Found"))
        for name, stand_in in {
            "is_available": lambda: found > 0, "device_count": lambda: found, "init": init,
            "get_device_capability": lambda device: (6, 1), "get_arch_list": lambda: ["sm_75", "sm_90"],
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, stand_in)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(devices, "try_out", lambda device: None)
        for name, value in (variables or {}).items():
            monkeypatch.setenv(name, value)

    make()
    return make


@pytest.mark.parametrize(
    ("variables", "by"),
    [
        ({}, None),
        ({"SLURM_JOB_GPUS": "0,1"}, "SLURM_JOB_GPUS=0,1"),
        ({"SLURM_STEP_GPUS": "3"}, "SLURM_STEP_GPUS=3"),
        ({"SLURM_GPUS_ON_NODE": "4"}, "SLURM_GPUS_ON_NODE=4"),
        ({"SLURM_GPUS_ON_NODE": "0", "SLURM_JOB_GPUS": ""}, None),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8932f937"}, "CUDA_VISIBLE_DEVICES=GPU-8932f937"),
        ({"CUDA_VISIBLE_DEVICES": "0"}, "CUDA_VISIBLE_DEVICES=0"),
        ({"CUDA_VISIBLE_DEVICES": ""}, None),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, None),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, None),
        ({"CUDA_VISIBLE_DEVICES": "", "SLURM_JOB_GPUS": "0"}, "SLURM_JOB_GPUS=0"),
    ],
)
def test_who_has_granted_gpus(variables: dict, by: str | None, machine):
    machine(variables=variables)
    assert granted() == by
    assert hidden() == (variables.get("CUDA_VISIBLE_DEVICES") in ("", "-1", "NoDevFiles"))


def test_without_any_gpu_the_cpu_is_taken_and_a_gpu_that_works_is_taken(machine):
    assert pick_device("auto") == (torch.device("cpu"), "there is no GPU")
    machine(nvml(), found=2)
    assert pick_device("auto") == (torch.device("cuda", 0), "a GPU is there")
    assert pick_device("auto", local_rank=1, local_world_size=2)[0] == torch.device("cuda", 1)
    assert pick_device("cuda:1")[0] == torch.device("cuda", 1)
    assert pick_device("cpu") == (torch.device("cpu"), "--device cpu")


NO_CUDA = {"cuda": None}
REFUSED = {  # the machine → what the line must name
    "a driver too old for this torch": (
        {"shown": nvml(), "variables": GRANTED},
        ("SLURM_JOB_GPUS=0,1,2,3", "built for CUDA 13.0", "535.129.03", "up to 12.2", "docs/install.md"),
    ),
    "no grant, but a GPU is there": ({"shown": nvml()}, ("NVML shows 1 GPU", "built for CUDA 13.0", "535.129.03")),
    "a torch without CUDA": (
        {"shown": nvml("580.65.06", 13000), "variables": GRANTED, "cuda": None},
        ("built without CUDA", "580.65.06", "up to 13.0", "docs/install.md"),
    ),
    "a torch for ROCm": ({"variables": GRANTED, "cuda": None, "hip": "6.4"}, ("built for ROCm 6.4",)),
    "no driver, as in a container": ({"variables": GRANTED}, ("no NVIDIA driver", "--nv")),
    "a driver that was replaced under a running system": (
        {"shown": broken_nvml("Driver/library version mismatch"), "variables": GRANTED},
        ("550.54.15", "Driver/library version mismatch"),
    ),
    "hidden from the job that has them": (
        {"shown": nvml(), "variables": {**GRANTED, "CUDA_VISIBLE_DEVICES": ""}}, ("unset CUDA_VISIBLE_DEVICES",),
    ),
    "a GPU that is not there": (
        {"shown": nvml("580.65.06", 13000), "variables": {"CUDA_VISIBLE_DEVICES": "99"}},
        ("CUDA_VISIBLE_DEVICES=99", "No CUDA GPUs are available; name those that are there"),
    ),
    "one of those that are named is not there": (
        {"shown": nvml("580.65.06", 13000, 4), "found": 1, "variables": {"CUDA_VISIBLE_DEVICES": "0,7,1"}},
        ("CUDA_VISIBLE_DEVICES=0,7,1", "3 of them", "torch finds 1"),
    ),
    "one of those that Slurm granted has failed": (
        {"shown": nvml("580.65.06", 13000, 3), "found": 3, "variables": {"SLURM_GPUS_ON_NODE": "4"}},
        ("SLURM_GPUS_ON_NODE=4", "torch finds 3"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_gpu_that_cannot_be_used_is_refused_in_one_line(case: str, machine, tmp_path: Path):
    if "replaced" in case:
        (tmp_path / "version").write_text(
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version: 12\n"
        )
    situation, named = REFUSED[case]
    machine(**situation)
    with pytest.raises(RequestError) as refusal:
        pick_device("auto")
    line = str(refusal.value)
    assert [word for word in (*named, "--device cpu") if word not in line] == []
    assert "\n" not in line
    assert pick_device("cpu")[0].type == "cpu"


def test_a_gpu_that_does_not_answer_is_refused(machine, monkeypatch: pytest.MonkeyPatch):
    machine(nvml("580.65.06", 13000), found=1)

    def fail(device: torch.device) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile with …")

    monkeypatch.setattr(devices, "try_out", fail)
    with pytest.raises(RequestError, match=r"no kernel image .*capability 6\.1; this torch is for sm_75 sm_90"):
        pick_device("auto")


@pytest.mark.parametrize(
    ("name", "found", "processes", "own", "complaint"),
    [
        ("cuda", 0, 1, False, "--device cuda"),
        ("cuda:2", 2, 1, False, "--device cuda:2"),
        ("auto", 2, 4, False, "4 processes but 2 GPU"),
        ("auto", 1, 4, False, "4 processes but 1 GPU"),
        ("auto", 1, 4, True, None),  # srun --gpus-per-task=1
        ("tpu", 1, 1, False, "--device tpu"),
    ],
)
def test_what_is_not_there_is_refused(name, found, processes, own, complaint, machine):
    machine(found=found)
    if complaint:
        with pytest.raises(RequestError, match=complaint):
            pick_device(name, processes - 1, processes, own)
    else:
        assert pick_device(name, processes - 1, processes, own)[0] == torch.device("cuda", 0)


def test_gpus_of_others_and_hidden_ones_are_no_grant(machine, tmp_path: Path):
    machine(nvml(gpus=4, forbidden=4))  # a job without GPUs on a node with some
    assert pick_device("auto")[0].type == "cpu"
    machine(nvml(gpus=4, forbidden=3))
    assert plainly_there() == "NVML shows 1 GPU"
    machine()
    (tmp_path / "nvidia0").touch()
    assert plainly_there() == f"{tmp_path / 'nvidia0'} is there"
    machine(nvml(), variables={"CUDA_VISIBLE_DEVICES": ""})
    assert pick_device("auto") == (torch.device("cpu"), "CUDA_VISIBLE_DEVICES hides all GPUs")


def test_the_driver_is_what_nvml_says_or_the_kernel(machine, tmp_path: Path):
    machine(nvml("560.35.03", 12060, 2))
    assert Driver.found() == Driver("560.35.03", (12, 6), 2)
    machine()
    assert Driver.found().version == ""
    kernel = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build"
    (tmp_path / "version").write_text(f"{kernel}\n")
    assert Driver.found().version == "580.65.06"


COMMANDS = {
    "train.py": lambda nowhere: train.main(preset("tiny", data_root=nowhere, output_root=nowhere), StopRequest()),
    "sample.py": lambda nowhere: sample.main(["RUN", "--output-root", str(nowhere)]),
    "evaluate.py": lambda nowhere: evaluate.main(["RUN", "--output-root", str(nowhere)]),
    "ddpm.export": lambda nowhere: export.main(["RUN", "--output-root", str(nowhere)]),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_before_it_reads_anything(command, machine, tmp_path, capsys):
    machine(nvml(), variables=GRANTED)
    assert COMMANDS[command](tmp_path / "nowhere") == 2
    told = capsys.readouterr().err
    assert told.startswith("error: GPUs are granted (SLURM_JOB_GPUS=0,1,2,3)")
    assert told.count("\n") == 1


NVML_OF_AN_OLD_DRIVER = """
class NVMLError(Exception): pass
def nvmlInit(): pass
def nvmlShutdown(): pass
def nvmlSystemGetDriverVersion(): return "470.82.01"
def nvmlSystemGetCudaDriverVersion_v2(): return 11040
def nvmlDeviceGetCount(): return 4
def nvmlDeviceGetHandleByIndex(index): return index
"""


def test_a_job_whose_driver_is_too_old_ends_with_one_line_and_exit_code_2(small, tmp_path: Path):
    """A real process; GPUs that this machine may have are hidden from it."""
    (tmp_path / "pynvml.py").write_text(NVML_OF_AN_OLD_DRIVER)
    environment = {**os.environ, **GRANTED, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "train.py", *as_arguments(small)]
    ended = subprocess.run(command, cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "the driver is 470.82.01 and supports CUDA up to 11.4" in ended.stderr
    status = json.loads((tmp_path / "metrics" / "output" / small.run / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 2)


def test_the_cpu_that_is_meant_is_no_setting_of_the_run(machine, tmp_path: Path):
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"device": "cpu", "lr": 0.5}}))
    (tmp_path / "mine.yaml").write_text("device: cpu")
    assert parse_args(["--config", str(tmp_path / "run.json")]).device == "auto"
    assert parse_args(["--config", str(tmp_path / "mine.yaml")]).device == "cpu"


def test_a_run_on_the_cpu_of_a_machine_with_gpus_counts_none(machine, small):
    machine(found=4)
    choices = choose(small, 47, torch.device("cpu"), 1e8)
    assert hyperparameters(small, choices, TrainingSchedule(small, 1, 282), 47, on_gpu=False)["num_gpus"] == 0
