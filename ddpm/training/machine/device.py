"""The device that a process computes on. A GPU that is granted but cannot be used is an error."""

from __future__ import annotations

import glob
import os
import re
import socket
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from ddpm.run.errors import RequestError
from ddpm.run.format import plural

GRANTS = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE")
DEVICE_FILES = "/dev/nvidia[0-9]*"
DRIVER_FILE = Path("/proc/driver/nvidia/version")
CPU_IS_MEANT = "or give --device cpu if the CPU is meant"
OTHER_TORCH = "install a torch for it (docs/install.md, 'Which torch for which driver')"


def pick_device(
    name: str, local_rank: int = 0, local_world_size: int = 1, own_gpu: bool = False
) -> tuple[torch.device, str]:
    """The device that `--device` selects for a process, and the reason in words.

    Args:
        name: auto (a GPU if one is granted or present, else the CPU), cpu, cuda, or cuda:N for GPU number N.
        local_rank: number of the process among the `local_world_size` of its host; each takes its own GPU.
        own_gpu: each process sees its own GPU only, as with `srun --gpus-per-task=1`.

    Raises:
        RequestError: a GPU was asked for, granted or is present, and torch cannot use it; or there are too few.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", name):
        raise RequestError(f"--device {name}: take auto, cpu or cuda, or cuda:1 for the second GPU")
    if name == "cpu":
        return torch.device("cpu"), "--device cpu"
    grant = granted()
    asked = f"--device {name}" if name != "auto" else f"GPUs are granted ({grant})" if grant else None
    with warnings.catch_warnings():  # torch's warnings about the errors raised below
        warnings.simplefilter("ignore")
        if torch.cuda.is_available():
            index = int(name.partition(":")[2] or local_rank)
            asked = asked or "a GPU is there"
            return _gpu(index, local_world_size, own_gpu, asked), asked
    if asked := asked or plainly_there():
        raise _refusal(asked)
    return torch.device("cpu"), "CUDA_VISIBLE_DEVICES hides all GPUs" if hidden() else "there is no GPU"


def granted() -> str | None:
    """The variable, with its value, by which Slurm or a user grants this process GPUs; None if there is none."""
    for name in GRANTS:
        value = os.environ.get(name, "").strip()
        if value.lower() not in ("", "none", "(null)") and (name, value) != ("SLURM_GPUS_ON_NODE", "0"):
            return f"{name}={value}"
    return f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']}" if _named() else None


def hidden() -> bool:
    """Does CUDA_VISIBLE_DEVICES hide every GPU? Slurm's way to say so is NoDevFiles."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") is not None and not _named()


def _named() -> list[str]:
    """The GPUs that CUDA_VISIBLE_DEVICES names; CUDA stops at the first name that is invalid."""
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    end = (i for i, name in enumerate(names) if not name or name.startswith("-") or name == "NoDevFiles")
    return names[: next(end, len(names))]


def plainly_there() -> str | None:
    """Evidence that this process may use a GPU, whatever torch says; None without any, or if the user hides them."""
    if hidden():
        return None
    if gpus := Driver.found().gpus:
        return f"NVML shows {plural(gpus, 'GPU')}"
    return next((f"{path} is there" for path in sorted(glob.glob(DEVICE_FILES)) if _opens(path)), None)


def _opens(path: str) -> bool:
    """May this process use the device file? In a Slurm job without GPUs it exists, but only other jobs can open it."""
    try:
        os.close(os.open(path, os.O_RDWR))
    except (PermissionError, FileNotFoundError):
        return False
    except OSError:
        return True  # permitted, but broken
    return True


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver, as NVML or the kernel reports it."""

    version: str = ""  # empty: no driver
    cuda: tuple[int, int] | None = None  # the newest CUDA version that it supports, if known
    gpus: int = 0  # number that this process may use
    complaint: str = ""  # error of NVML

    @classmethod
    def found(cls) -> Driver:
        version, cuda, gpus, complaint = "", None, 0, ""
        try:
            import pynvml as nvml

            nvml.nvmlInit()
            version = _text(nvml.nvmlSystemGetDriverVersion())
            number = nvml.nvmlSystemGetCudaDriverVersion_v2()
            cuda = number // 1000, number % 1000 // 10
            for index in range(nvml.nvmlDeviceGetCount()):
                with suppress(nvml.NVMLError):  # in a job with fewer GPUs than the node has
                    nvml.nvmlDeviceGetHandleByIndex(index)
                    gpus += 1
            nvml.nvmlShutdown()
        except Exception as error:  # no pynvml, no driver, or their versions differ
            complaint = str(error)
        return cls(version or _version_of_the_kernel(), cuda, gpus, complaint)

    def __str__(self) -> str:
        if not self.version:
            return f"{socket.gethostname()} shows no NVIDIA driver ({self.complaint})"
        if not self.cuda:
            return f"the driver is {self.version} and does not work: {self.complaint}"
        return f"the driver is {self.version} and supports CUDA up to {self.cuda[0]}.{self.cuda[1]}"


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _version_of_the_kernel() -> str:
    try:
        found = re.search(r"\s(\d{3,}\.[\d.]+)\s", DRIVER_FILE.read_text(encoding="utf-8"))
    except OSError:
        return ""
    return found[1] if found else ""


def _gpu(index: int, processes: int, own_gpu: bool, asked: str) -> torch.device:
    """GPU number `index`, or the only one that this process sees, after a test that it works.

    Raises:
        RequestError: there are too few GPUs, or it does not work.
    """
    try:
        torch.cuda.init()
        there = torch.cuda.device_count()
    except Exception as error:  # torch raises RuntimeError and other types
        raise _refusal(asked, error) from error
    host, named = socket.gethostname(), _named()
    expected = os.environ.get("SLURM_GPUS_ON_NODE", "") if "CUDA_VISIBLE_DEVICES" not in os.environ else ""
    if named and not named[0].startswith("MIG"):  # of MIG devices CUDA shows one, however many are named
        expected = str(len(named))
    if expected.isdigit() and there < int(expected):
        raise RequestError(
            f"{asked}, {expected} of them, but torch finds {there} on {host}: the others are not there or have failed; "
            f"name those that work in CUDA_VISIBLE_DEVICES (see nvidia-smi -L), {CPU_IS_MEANT}"
        )
    only = there == 1 and own_gpu
    if there < processes and not only:
        untold = "RANK" in os.environ and not os.environ.get("LOCAL_WORLD_SIZE", "").strip()
        raise RequestError(
            f"{plural(processes, 'process')} but {plural(there, 'GPU')} on {host}: start one process per GPU"
            + (", and set LOCAL_WORLD_SIZE to the number of them on this host" if untold else "")
        )
    if index >= there and not only:
        raise RequestError(f"--device cuda:{index}: {host} has {plural(there, 'GPU')}, counted from 0")
    device = torch.device("cuda", 0 if only else index)
    try:
        try_out(device)
    except Exception as error:
        raise _refusal(asked, error, device) from error
    return device


def try_out(device: torch.device) -> None:
    """Make the GPU this process's current device and compute 0 + 1 on it.

    Raises:
        RuntimeError: this torch has no code for the GPU, its memory is full, it has failed, or another process uses it
            exclusively.
    """
    torch.cuda.set_device(device)
    torch.zeros(1, device=device).add_(1).item()


def _refusal(asked: str, error: Exception | None = None, device: torch.device | None = None) -> RequestError:
    """The error for a GPU that cannot be used: versions, reason and fix in one line.

    Args:
        asked: how the GPU was asked for or found, in words.
        error: torch's error, if there is one already.
        device: the GPU, if it is known.
    """
    driver = Driver.found()
    hip, cuda = getattr(torch.version, "hip", None), torch.version.cuda
    built = f"for CUDA {cuda}" if cuda else f"for ROCm {hip}" if hip else "without CUDA"
    facts = [f"torch {torch.__version__} is built {built}", str(driver)]
    if hidden():
        fix = "unset CUDA_VISIBLE_DEVICES, which hides them"
    elif not cuda and not hip:
        fix = OTHER_TORCH
    elif not driver.cuda and not hip:
        fix = "take a host whose driver works, or start the container with its GPUs (apptainer --nv, docker --gpus all)"
    elif cuda and driver.cuda and driver.cuda[0] < int(cuda.split(".")[0]):
        fix = f"{OTHER_TORCH}, a newer driver"
    else:
        facts.append(_why_not(error, device))
        fix = "name those that are there in CUDA_VISIBLE_DEVICES (see nvidia-smi -L)" if _named() else "see nvidia-smi"
    return RequestError(f"{asked}, but torch cannot use a GPU: {'; '.join(facts)}; {fix}, {CPU_IS_MEANT}")


def _why_not(error: Exception | None, device: torch.device | None) -> str:
    """torch's error in one line, with the GPUs it is built for if it has no code for this one."""
    if error is None:
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as caught:
            error = caught
    words = str(error or "it finds none").strip().splitlines()[0].rstrip(".")
    if device is not None and "no kernel image" in words:
        major, minor = torch.cuda.get_device_capability(device)
        known = " ".join(torch.cuda.get_arch_list())
        words += f" (a GPU of compute capability {major}.{minor}; this torch is for {known})"
    return words
