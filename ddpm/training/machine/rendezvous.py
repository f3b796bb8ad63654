"""How the processes of a run find each other, and agree on their devices, before there is a process group."""

from __future__ import annotations

import datetime
import json
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from os import environ
from typing import Any

import torch
import torch.distributed as dist

from ddpm.run.errors import NotMetError, RequestError
from ddpm.run.launch import Launch
from ddpm.training.machine.device import pick_device
from ddpm.training.machine.hardware import device_name

# timeouts:
MEETING = datetime.timedelta(minutes=10)  # until all have come, as with torchrun: slow disks load torch for minutes
TELL_AFTER = 30.0  # seconds of waiting for others until a message says so
HANDSHAKE = 60.0  # seconds until the program that listens at the port answers as a store
LEAVING = datetime.timedelta(seconds=30)  # until all have read why the run is refused
STORE = datetime.timedelta(minutes=30)  # of the requests that NCCL and Gloo send to the store later


class Waiting:
    """Waits for other processes: prints a message once if it takes long, and fails after `MEETING`."""

    def __init__(self, launch: Launch) -> None:
        self._launch, self._began, self._told = launch, time.monotonic(), False

    def sleep(self, missing: str, seconds: float = 0.02) -> None:
        """Wait a moment for `missing`, which messages name.

        Raises:
            NotMetError: `MEETING` has passed.
        """
        waited = time.monotonic() - self._began
        if waited > MEETING.total_seconds():
            raise NotMetError(
                f"process {self._launch.rank} waited {waited / 60:.2g} min for {missing}: check that all "
                f"{self._launch.world_size} were started, with the same MASTER_ADDR and MASTER_PORT; see their output"
            )
        if waited > TELL_AFTER and not self._told:
            print(f"process {self._launch.rank} waits for {missing}", file=sys.stderr, flush=True)
            self._told = True
        time.sleep(seconds)


def meet(launch: Launch) -> tuple[dist.Store, bool]:
    """Wait for all processes. Returns a store that only they use, and whether torchrun has restarted them.

    Raises:
        RequestError: they do not all come, process 0 is not at its address, or its port is taken.
    """
    waiting = Waiting(launch)
    serves = launch.rank == 0 and environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # else torchrun does
    if serves:
        _check_free(launch.port)
    else:
        _reach(launch, waiting)
    return _private(_open("127.0.0.1" if serves else launch.address, launch, serves), launch, waiting)


def _open(host: str, launch: Launch, serves: bool) -> dist.Store:
    """The store that process 0, or torchrun, keeps for all processes. It is opened in a thread, as torch waits for ever
    at a port that never answers.

    Raises:
        NotMetError: no store answers.
    """
    opened: list[dist.Store] = []

    def connect() -> None:
        with suppress(dist.DistError):
            opened.append(
                dist.TCPStore(
                    host, launch.port, launch.world_size, serves, STORE, wait_for_workers=False, multi_tenant=True
                )
            )

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(HANDSHAKE)
    if not opened:
        raise NotMetError(
            f"{launch.address}:{launch.port} does not answer as process 0 of a run does: if MASTER_PORT is another "
            "program's, give all processes another one"
        )
    return opened[0]


def _check_free(port: int) -> None:
    """Raise a RequestError if the port is taken. (The store's own error has several lines.)"""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise RequestError(
                f"process 0 cannot listen at MASTER_PORT {port} of {socket.gethostname()} ({error.strerror}): another "
                "run may have it; give all processes another MASTER_PORT"
            ) from error


def _reach(launch: Launch, waiting: Waiting) -> None:
    """Wait until something listens at the address of process 0."""
    place = f"process 0 at {launch.address}:{launch.port}"
    while True:
        try:
            socket.create_connection((launch.address, launch.port), timeout=5).close()
            return
        except (OSError, UnicodeError) as error:  # UnicodeError: the address cannot be the name of a host
            why = getattr(error, "strerror", None) or str(error)
            if isinstance(error, (socket.gaierror, UnicodeError)) and error.args[0] != socket.EAI_AGAIN:
                raise NotMetError(
                    f"MASTER_ADDR={launch.address} is no host that {socket.gethostname()} knows ({why}): give the name "
                    "or address of the host of process 0"
                ) from error
        waiting.sleep(f"{place} ({why})", 0.5)


def _private(shared: dist.Store, launch: Launch, waiting: Waiting) -> tuple[dist.Store, bool]:
    """A store that only these processes use, and whether they are a restart.

    torchrun keeps its store over restarts, with the keys of dead processes in it. So each rank writes a new random name
    under `hello/<rank>`, and rank 0, which answers every hello it finds, sends the name of the new session to it.
    """
    if launch.rank > 0:
        me = uuid.uuid4().hex
        shared.set(f"hello/{launch.rank}", me)
        while not shared.check([f"welcome/{me}"]):
            waiting.sleep(f"process 0 of {launch.world_size}")
        session = shared.get(f"welcome/{me}").decode()
        shared.set(f"thanks/{session}/{launch.rank}", "")
    else:
        session = f"{shared.add('sessions', 1)}/{uuid.uuid4().hex}"
        missing = set(range(1, launch.world_size))
        while missing:
            for other in missing:
                if shared.check([f"hello/{other}"]):
                    shared.set(f"welcome/{shared.get(f'hello/{other}').decode()}", session)
            waiting.sleep(f"{_processes(missing)} of {launch.world_size}")
            missing = {other for other in missing if not shared.check([f"thanks/{session}/{other}"])}
    return dist.PrefixStore(session, shared), not session.startswith("1/")


def agreed_device(name: str, launch: Launch, store: dist.Store) -> tuple[torch.device, str]:
    """This process's device and the reason for it, once all processes have equal devices.

    GPUs of different names are refused, too: each step would wait for the slowest, the smallest memory would limit all,
    and precision and compilation, which are chosen for the device, could differ between the processes.

    Args:
        name: value of `--device`.

    Raises:
        RequestError: a process has no device, or the devices differ. All raise the same error, which names the hosts.
    """
    device, why, refusal = None, "", ""
    try:
        device, why = pick_device(name, launch.local_rank, launch.local_world_size, launch.by_srun)
    except RequestError as error:
        refusal = str(error)
    mine = {"host": socket.gethostname(), "device": device and device_name(device), "refusal": refusal}
    answers = exchange("device", mine, launch, store)
    if verdict := _verdict(answers):
        store.set(f"read/{launch.rank}", "")
        if launch.rank == 0:  # it may serve the store, so it ends only after all have read the answers
            with suppress(RuntimeError):
                store.wait([f"read/{rank}" for rank in range(launch.world_size)], LEAVING)
        raise RequestError(verdict)
    return device, why


def exchange(what: str, mine: Any, launch: Launch, store: dist.Store) -> list[Any]:
    """All-gather through the store: the value (of JSON types) of every process, in rank order.

    Args:
        what: name of the value, for the keys and for messages.
        mine: the value of this process.

    Raises:
        NotMetError: a process does not send its value.
    """
    store.set(f"{what}/{launch.rank}", json.dumps(mine))
    keys, waiting = [f"{what}/{rank}" for rank in range(launch.world_size)], Waiting(launch)
    while not store.check(keys):
        missing = [rank for rank, key in enumerate(keys) if not store.check([key])]
        waiting.sleep(f"the {what} of {_processes(missing)} of {launch.world_size}")
    return [json.loads(answer) for answer in store.multi_get(keys)]


def _verdict(answers: Sequence[Mapping[str, Any]]) -> str:
    """Why the processes cannot train together on their devices; empty if they can.

    Args:
        answers: host, name of the device and refusal of each process.
    """
    for answer in answers:
        if answer["refusal"]:
            alike = [rank for rank, other in enumerate(answers) if other == answer]
            return f"{answer['refusal']} ({_processes(alike)} of {len(answers)}, on {answer['host']})"
    if len({answer["device"] for answer in answers}) == 1:
        return ""
    ranks: dict[tuple[str, str], list[int]] = {}
    for rank, answer in enumerate(answers):
        ranks.setdefault((answer["device"], answer["host"]), []).append(rank)
    found = "; ".join(f"{_processes(those)} on {host}: {name}" for (name, host), those in ranks.items())
    return (
        f"the processes have different devices, so each step would wait for the slowest ({found}): ask Slurm for one "
        "kind of GPU, such as --gres=gpu:l40s:4, name equal ones in CUDA_VISIBLE_DEVICES, or give --device cpu"
    )


def _processes(ranks: Iterable[int]) -> str:
    return f"process {', '.join(map(str, sorted(ranks)))}"
