"""This process among those of its job, from the variables of its launcher (torchrun, srun). Needs no torch."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from ddpm.run.errors import NotMetError, RequestError

OF_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
OF_SRUN = ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID")


@dataclass(frozen=True)
class Launch:
    """This process among those of its job. The default is a single process."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    address: str = ""  # host of process 0, for the rendezvous
    port: int = 0
    by_srun: bool = False  # without torchrun: Slurm may then show each process its own GPU only


def read_launch(environment: Mapping[str, str] | None = None) -> Launch:
    """Read the variables that torchrun, srun or a user has set. Empty ones count as not set.

    Args:
        environment: the variables; those of this process if left out.

    Raises:
        RequestError: they are incomplete, contradict each other, or are not numbers.
    """
    variables = os.environ if environment is None else environment
    env = {name: value.strip() for name, value in variables.items() if value.strip()}
    if "RANK" in env:
        return _by_torchrun(env)
    if "SLURM_STEP_NUM_TASKS" in env:  # set by srun only: a batch script's own shell is not a task
        launch = _by_srun(env)
    else:
        launch = Launch()
        if env.get("SLURM_PROCID", "0") != "0":
            _require(env, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    # A job script may have set some of torchrun's variables too. They must agree.
    for name in ("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        if name in env and _number(env, name) != getattr(launch, name.lower()):
            _require(env, name, "RANK")
    return launch


def _by_torchrun(env: Mapping[str, str]) -> Launch:
    _number(env, "RANK")
    _require(env, "RANK", "WORLD_SIZE")
    world_size = _number(env, "WORLD_SIZE", 1)
    if world_size > 1:
        _require(env, "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    local_world_size = _number(env, "LOCAL_WORLD_SIZE", 1, world_size) if "LOCAL_WORLD_SIZE" in env else world_size
    return Launch(
        _number(env, "RANK", 0, world_size - 1),
        _number(env, "LOCAL_RANK", 0, local_world_size - 1) if "LOCAL_RANK" in env else 0,
        world_size,
        local_world_size,
        env.get("MASTER_ADDR", ""),
        _number(env, "MASTER_PORT", 1, 65535) if world_size > 1 else 0,
    )


def _by_srun(env: Mapping[str, str]) -> Launch:
    tasks = _number(env, "SLURM_STEP_NUM_TASKS", 1)
    if tasks == 1:
        return Launch()
    _require(env, "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE", "SLURM_JOB_ID")
    if "MASTER_ADDR" not in env:
        _require(env, "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST")
    on_each = _tasks_of_nodes(env["SLURM_STEP_TASKS_PER_NODE"])
    here = on_each[_number(env, "SLURM_NODEID", 0, len(on_each) - 1) if "SLURM_NODEID" in env else 0]
    return Launch(
        _number(env, "SLURM_PROCID", 0, tasks - 1),
        _number(env, "SLURM_LOCALID", 0, here - 1),
        tasks,
        here,
        env.get("MASTER_ADDR") or first_host(env["SLURM_STEP_NODELIST"]),
        _number(env, "MASTER_PORT", 1, 65535) if "MASTER_PORT" in env else 20000 + _number(env, "SLURM_JOB_ID") % 20000,
        by_srun=True,
    )


def is_first(of_node: bool = False) -> bool:
    """Is this process rank 0, or that of its node, by the variables of torchrun or srun? True if they are invalid."""
    try:
        return (read_launch().local_rank if of_node else read_launch().rank) == 0
    except RequestError:
        return True


def refuse(error: RequestError, met: bool = False) -> int:
    """Print the error in one line. Returns the exit code.

    Rank 0 prints for all. Before they have `met`, one of each node does: a file may be missing on one node only. A
    NotMetError is printed by every process.
    """
    if is_first(of_node=not met) or isinstance(error, NotMetError):
        print(f"error: {error}", file=sys.stderr, flush=True)
    return 2


def torchrun_of(environment: Mapping[str, str]) -> str | None:
    """The command torchrun that has started this process, in words that stay the same when it starts its processes
    again (`--max-restarts`). None without torchrun.

    Its id alone is not enough: it is `none`, unless --standalone or --rdzv-id is given.
    """
    known = environment.get("TORCHELASTIC_RUN_ID")
    return f"{known}, process {os.getppid()} on {socket.gethostname()}" if known else None


def restarted_by_torchrun(environment: Mapping[str, str]) -> bool:
    """Has torchrun started the processes again after a failure?"""
    return environment.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def first_host(node_list: str) -> str:
    """The first host of a Slurm node list: `vn[3-5,8],other` → `vn3`, `rack[1-2]n[01-04]-ib` → `rack1n01-ib`.

    Raises:
        RequestError: it is not a node list.
    """
    first = re.match(r"(?:[^,\[\]\s]|\[[\w,-]+\])+", node_list)
    if not first or node_list[first.end() : first.end() + 1] not in ("", ","):
        raise RequestError(f"SLURM_STEP_NODELIST={node_list} is not a list of hosts: set MASTER_ADDR to the first one")
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0])


def _tasks_of_nodes(text: str) -> list[int]:
    """Number of tasks of each node: `2(x3),1` → [2, 2, 2, 1]."""
    parts = [re.fullmatch(r"([1-9]\d{0,5})(?:\(x([1-9]\d{0,5})\))?", part) for part in text.split(",")]
    if not all(parts):
        raise RequestError(f"SLURM_STEP_TASKS_PER_NODE={text}: give numbers such as 4(x2),1")
    return [int(part[1]) for part in parts for _ in range(int(part[2] or 1))]


def _require(env: Mapping[str, str], given: str, *names: str) -> None:
    """Raise a RequestError if a variable of `names` is not set, which the variable `given` makes necessary."""
    missing = [name for name in names if name not in env]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise RequestError(f"{given} is {env[given]} but {' and '.join(missing)} {verb} not set: {_fix(given)}")


def _number(env: Mapping[str, str], name: str, least: int = 0, most: int = 10**10) -> int:
    """The variable `name` as a number; a RequestError if it is no whole number from `least` to `most`."""
    value = env[name]
    if not re.fullmatch(r"[0-9]{1,10}", value) or not least <= int(value) <= most:
        limits = f"from {least} to {most}" if most < 10**10 else f"{least} or more"
        raise RequestError(f"{name}={value}: must be a whole number, {limits}; {_fix(name)}")
    return int(value)


def _fix(name: str) -> str:
    launcher, names = ("torchrun", OF_TORCHRUN[:4]) if name in OF_TORCHRUN else ("srun", OF_SRUN)
    return f"start the processes with {launcher}; to train with one, unset {', '.join(names)}"
