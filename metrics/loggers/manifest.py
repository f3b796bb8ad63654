"""`manifest.json`: for each start of a run, what it was made of: enough to make the run again.

It is for people and other programs: no page is made from it. Entries are added at the end and never changed.
"""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ddpm.run.files import atomic_write, read_json, strict_json
from ddpm.run.paths import SET_ASIDE
from metrics.live.status import job_of_this_process

VARIABLES = (  # environment variables that can change speed or results
    "CONDA_DEFAULT_ENV", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "LD_PRELOAD", "LOCAL_RANK", "LOCAL_WORLD_SIZE",
    "MALLOC_ARENA_MAX", "MASTER_ADDR", "MASTER_PORT", "NVIDIA_TF32_OVERRIDE", "PYTHONHASHSEED", "PYTHONPATH", "RANK",
    "SLURM_CPUS_PER_TASK", "SLURM_GPUS_ON_NODE", "SLURM_JOB_NODELIST", "SLURM_JOB_PARTITION", "SLURM_MEM_PER_NODE",
    "SLURM_NNODES", "SLURM_NTASKS", "VIRTUAL_ENV", "WANDB_MODE", "WORLD_SIZE",
)  # fmt: skip
PREFIXES = ("CUBLAS_", "CUDA_", "CUDNN_", "GLOO_", "GOMP_", "KMP_", "MKL_", "NCCL_", "OMP_", "OPENBLAS_", "PYTORCH_",
            "TORCH", "TRITON_", "UCX_")  # fmt: skip
SECRET = ("AUTH", "CREDENTIAL", "JWT", "KEY", "PASS", "SECRET", "TOKEN")  # a variable with such a name is left out


def manifest_entry(description: Mapping[str, Any], hosts: Sequence[str]) -> dict[str, Any]:
    """The entry of the start that this process makes.

    Args:
        description: settings, environment, data and model, as in `training_metrics.json`.
        hosts: names of the nodes.
    """
    known = description["environment"]
    commit = known["commit"]
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": known["command"],
        "folder": os.getcwd(),
        "commit": commit and commit.removesuffix("+"),
        "dirty": commit and commit.endswith("+"),
        "hosts": list(hosts),
        **job_of_this_process(),
        "world_size": known["world_size"],
        "threads": torch.get_num_threads(),
        "device": known["gpu"] or known["device"],
        "platform": known["platform"],
        "versions": {"python": known["python"], "torch": known["torch"], **gpu_software()},
        "packages": packages(),
        "environment": variables(os.environ),
        "data": {"name": description["data"], "sha256": description["data_summary"]["sha256"]},
        "settings": description["settings"],
    }


def gpu_software() -> dict[str, str | None]:
    """Versions of driver, CUDA, cuDNN and NCCL; None without a GPU."""
    if not torch.cuda.is_available():
        return dict.fromkeys(("driver", "cuda", "cudnn", "nccl"))
    cudnn, nccl = torch.backends.cudnn.version(), None
    with suppress(AttributeError, RuntimeError):  # a build without NCCL
        nccl = ".".join(map(str, torch.cuda.nccl.version()))
    return {"driver": _driver(), "cuda": torch.version.cuda, "cudnn": cudnn and str(cudnn), "nccl": nccl}


def _driver() -> str | None:
    with suppress(Exception):  # no module, or no library of the driver
        import pynvml

        pynvml.nvmlInit()
        try:
            version = pynvml.nvmlSystemGetDriverVersion()
        finally:
            pynvml.nvmlShutdown()
        return version.decode() if isinstance(version, bytes) else version
    return None


def packages() -> list[str]:
    """The installed packages as `name==version`, sorted, as `pip freeze` lists them."""
    found = ((each.metadata["Name"], each.version) for each in importlib.metadata.distributions())
    return sorted({f"{name}=={version}" for name, version in found if name}, key=lambda line: line.lower().split("=="))


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of `VARIABLES` and `PREFIXES` that are set, without those that may hold a secret."""
    chosen = (name for name in sorted(environment) if name in VARIABLES or name.startswith(PREFIXES))
    return {name: environment[name] for name in chosen if not _may_be_secret(name)}


def _may_be_secret(name: str) -> bool:
    return any(word in name for word in SECRET)


def add_start(path: Path, entry: Mapping[str, Any]) -> Path | None:
    """Add the entry of a start to the manifest at `path`; the file is replaced in one step.

    Returns:
        The new path of an older file that could not be read, if there was one.

    Raises:
        OSError: the folder cannot be written.
    """
    aside = None
    try:
        starts = _starts(read_json(path))
    except FileNotFoundError:
        starts = []
    except (OSError, ValueError):
        starts, aside = [], path.rename(path.with_name(path.name + time.strftime(SET_ASIDE)))
    atomic_write(path, strict_json({"starts": [*starts, entry]}, indent=1) + "\n")
    return aside


def _starts(manifest: Any) -> Iterable[Any]:
    """Raises ValueError if it is no manifest."""
    starts = manifest.get("starts") if isinstance(manifest, dict) else None
    if not isinstance(starts, list):
        raise ValueError("no list of starts")
    return starts
