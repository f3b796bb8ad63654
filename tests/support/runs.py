"""Whole runs of the training script, in this process or others, and what they left."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file

import train
from ddpm.run.config import TrainConfig
from ddpm.run.metrics import names
from ddpm.run.paths import PROJECT_ROOT, RunPaths
from ddpm.run.signals import StopRequest
from ddpm.training import model
from ddpm.training.checkpoint import WEIGHTS_NAME
from metrics import lifecycle
from tests.conftest import as_arguments
from tests.support.processes import Command

TIMES = list(names(timed=True))
MEMORY = list(names(group="memory"))  # of a GPU; what was freed and taken before is not part of a run's state


def flops_per_image(config: TrainConfig) -> float:
    """As `ddpm.training.model` counts them, each network once: that takes half a second."""
    key = (config.resolution, config.block_out_channels, config.layers_per_block, config.norm_num_groups,
           config.mid_attention)  # fmt: skip
    if key not in COUNTED:
        COUNTED[key] = model.flops_per_image(config)
    return COUNTED[key]


COUNTED: dict[tuple, float] = {}
lifecycle.flops_per_image = flops_per_image


def run(config: TrainConfig) -> int:
    """Train in this process."""
    return train.main(config, StopRequest())


def paths_of(config: TrainConfig) -> RunPaths:
    return RunPaths(config.output_root, config.run)


def log_of(config: TrainConfig) -> str:
    return paths_of(config).log.read_text()


def checkpoints_of(config: TrainConfig) -> list[Path]:
    return sorted(paths_of(config).checkpoints.glob("step_*"))


def rows(config: TrainConfig) -> pd.DataFrame:
    return pd.read_csv(paths_of(config).csv)


def status(config: TrainConfig) -> dict:
    return json.loads(paths_of(config).status.read_text())


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def start(
    config: TrainConfig,
    *launcher: str,
    session: bool = False,
    patches: Mapping[str, Any] | None = None,
    **variables: str,
) -> Command:
    """Train in a process of its own, or those of `launcher`; `session` and `patches` as for `Command`.

    Torch is loaded already. The processes that a launcher starts load it, as those of `start_anew` do.
    """
    return Command([*launcher, "train.py", *as_arguments(config)], environment(**variables), session, patches)


def start_anew(config: TrainConfig, **variables: str) -> subprocess.Popen:
    """Train in a process of its own, as one types it."""
    command = [sys.executable, "train.py", *as_arguments(config)]
    return subprocess.Popen(
        command, cwd=PROJECT_ROOT, env=environment(**variables), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


@contextmanager
def crew(
    config: TrainConfig,
    patches: Mapping[str, Any] | None = None,
    second: Mapping[str, str] | None = None,
    **variables: str,
) -> Iterator[list[Command]]:
    """Two processes of a run, as torchrun starts them, but with nobody to look after them.

    Args:
        second: variables of the second besides those of both.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        start(config, patches=patches, RANK=rank, LOCAL_RANK=rank, **shared, **variables, **more)
        for rank, more in (("0", {}), ("1", second or {}))
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()


def environment(**variables: str) -> dict[str, str]:
    quick = {"PYTHONPATH": os.environ["QUICK_REPORTS"]} if "QUICK_REPORTS" in os.environ else {}
    return {**os.environ, **quick, **variables}


def wait_for_line(process: subprocess.Popen | Command, pattern: str) -> str:
    """Read the process's output up to a line that `pattern` is found in; returns all of it."""
    seen = ""
    for line in process.stdout:
        seen += line
        if re.search(pattern, line):
            return seen
    raise AssertionError(f"{pattern!r} was never said:\n{seen}")


def workers_of(torchrun: Command) -> list[int]:
    """The process numbers of the workers that torchrun has started."""
    found = subprocess.run(["pgrep", "-P", str(torchrun.pid)], capture_output=True, text=True, check=True)
    return [int(number) for number in found.stdout.split()]


def final_state(config: TrainConfig) -> dict[str, torch.Tensor]:
    """Live weights, all averaged weights and the optimizer's moments of the latest checkpoint, by name."""
    latest = paths_of(config).checkpoints / "latest"
    saved = torch.load(latest / "train_state.pt", weights_only=True)
    moments = {
        f"optimizer.{index}.{name}": value
        for index, state in saved["optimizer"]["state"].items()
        for name, value in state.items()
    }
    files = latest.glob(f"unet*/{WEIGHTS_NAME}")
    averaged = {f"{file.parent.name}.{name}": value for file in files for name, value in load_file(file).items()}
    return {**saved["model"], **averaged, **moments}


def assert_same_run(first: TrainConfig, second: TrainConfig) -> None:
    """Bit-identical weights, averages and moments; the same rows, times and memory aside."""
    one, two = final_state(first), final_state(second)
    assert one.keys() == two.keys()
    assert [name for name in one if not one[name].equal(two[name])] == []
    one, two = (rows(each).drop(columns=[*TIMES, *MEMORY]) for each in (first, second))
    pd.testing.assert_frame_equal(one, two)


def latest_step(config: TrainConfig) -> int:
    return json.loads((paths_of(config).checkpoints / "latest" / "meta.json").read_text())["progress"]["step"]


def causes(config: TrainConfig) -> list[str]:
    """Why each start of the run was made, as its figures tell."""
    return [start["cause"] for start in json.loads(paths_of(config).json.read_text())["starts"]]


def train_as_one_of_several(config: TrainConfig) -> int:
    """For `in_processes`; the report is empty."""
    import tests.support.quick_reports.sitecustomize  # noqa: F401

    return run(config)
