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
from ddpm.training.device import pick_device

MEETING = datetime.timedelta(minutes=10)  # for all to come, as with torchrun: slow disks load torch for minutes
TELL_AFTER = 30.0  # seconds of waiting for others, after which it is said
HANDSHAKE = 60.0  # seconds in which what listens at the port answers as a store does
LEAVING = datetime.timedelta(seconds=30)  # for all to read why the run is refused
STORE = datetime.timedelta(minutes=30)  # later, for whatever NCCL and Gloo ask of the store


class Patience:
    """Time for other processes to come: tells once that it takes long, and ends after `MEETING`."""

    def __init__(self, launch: Launch) -> None:
        self._launch, self._began, self._told = launch, time.monotonic(), False

    def spend(self, missing: str, seconds: float = 0.02) -> None:
        """Sleep for some seconds in which `missing` may come.

        Raises:
            NotMetError: it was waited for long enough.
        """
        waited = time.monotonic() - self._began
        if waited > MEETING.total_seconds():
            raise NotMetError(
                f"process {self._launch.rank} waited {waited / 60:.2g} min for {missing}: see whether all "
                f"{self._launch.world_size} were started, with the same MASTER_ADDR and MASTER_PORT, and what they say"
            )
        if waited > TELL_AFTER and not self._told:
            print(f"process {self._launch.rank} waits for {missing}", file=sys.stderr, flush=True)
            self._told = True
        time.sleep(seconds)


def meet(launch: Launch) -> tuple[dist.Store, bool]:
    """Wait for all processes. Returns a store of theirs alone, and whether torchrun has restarted them.

    Raises:
        RequestError: they do not all come, process 0 is not at its address, or its port is taken.
    """
    patience = Patience(launch)
    serves = launch.rank == 0 and environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # else torchrun does
    if serves:
        _check_free(launch.port)
    else:
        _reach(launch, patience)
    return _private(_open("127.0.0.1" if serves else launch.address, launch, serves), launch, patience)


def _open(host: str, launch: Launch, serves: bool) -> dist.Store:
    """The store that process 0, or torchrun, keeps for all. In a thread: to a port that never answers, torch listens
    for ever."""
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
    """See that the port can be listened at. (The store itself would say so in several lines.)"""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise RequestError(
                f"process 0 cannot listen at MASTER_PORT {port} of {socket.gethostname()} ({error.strerror}): another "
                "run may have it; give all processes another MASTER_PORT"
            ) from error


def _reach(launch: Launch, patience: Patience) -> None:
    """Wait until something listens at the address of process 0."""
    place = f"process 0 at {launch.address}:{launch.port}"
    while True:
        try:
            socket.create_connection((launch.address, launch.port), timeout=5).close()
            return
        except (OSError, UnicodeError) as error:  # UnicodeError: not even the form of a host's name
            why = getattr(error, "strerror", None) or str(error)
            if isinstance(error, (socket.gaierror, UnicodeError)) and error.args[0] != socket.EAI_AGAIN:
                raise NotMetError(
                    f"MASTER_ADDR={launch.address} is no host that {socket.gethostname()} knows ({why}): give the name "
                    "or address of the host of process 0"
                ) from error
        patience.spend(f"{place} ({why})", 0.5)


def _private(shared: dist.Store, launch: Launch, patience: Patience) -> tuple[dist.Store, bool]:
    """A store of these processes alone, and whether they are a restart.

    torchrun keeps its store over restarts, with the words of dead processes in it. So each rank says hello under a name
    that was never used, and rank 0, which answers every hello it finds, tells it the name of the new session.
    """
    if launch.rank > 0:
        me = uuid.uuid4().hex
        shared.set(f"hello/{launch.rank}", me)
        while not shared.check([f"welcome/{me}"]):
            patience.spend(f"process 0 of {launch.world_size}")
        session = shared.get(f"welcome/{me}").decode()
        shared.set(f"thanks/{session}/{launch.rank}", "")
    else:
        session = f"{shared.add('sessions', 1)}/{uuid.uuid4().hex}"
        waiting = set(range(1, launch.world_size))
        while waiting:
            for other in waiting:
                if shared.check([f"hello/{other}"]):
                    shared.set(f"welcome/{shared.get(f'hello/{other}').decode()}", session)
            patience.spend(f"{_processes(waiting)} of {launch.world_size}")
            waiting = {other for other in waiting if not shared.check([f"thanks/{session}/{other}"])}
    return dist.PrefixStore(session, shared), not session.startswith("1/")


def agreed_device(name: str, launch: Launch, store: dist.Store) -> tuple[torch.device, str]:
    """This process's device, and why, once every process has one, all of the same kind.

    Args:
        name: what `--device` says.

    Raises:
        RequestError: one of them has none. All raise the same, which names the host.
    """
    device, why, refusal = None, "", ""
    try:
        device, why = pick_device(name, launch.local_rank, launch.local_world_size, launch.by_srun)
    except RequestError as error:
        refusal = str(error)
    mine = {"host": socket.gethostname(), "kind": device and device.type, "refusal": refusal}
    answers = exchange("device", mine, launch, store)
    if verdict := _verdict(answers):
        store.set(f"read/{launch.rank}", "")
        if launch.rank == 0:  # it may keep the store: not before all have read what is in it
            with suppress(RuntimeError):
                store.wait([f"read/{rank}" for rank in range(launch.world_size)], LEAVING)
        raise RequestError(verdict)
    return device, why


def exchange(what: str, mine: Any, launch: Launch, store: dist.Store) -> list[Any]:
    """What every process has to say about `what` (as JSON holds it), in rank order.

    Raises:
        RequestError: one of them is silent.
    """
    store.set(f"{what}/{launch.rank}", json.dumps(mine))
    keys, patience = [f"{what}/{rank}" for rank in range(launch.world_size)], Patience(launch)
    while not store.check(keys):
        missing = [rank for rank, key in enumerate(keys) if not store.check([key])]
        patience.spend(f"the {what} of {_processes(missing)} of {launch.world_size}")
    return [json.loads(answer) for answer in store.multi_get(keys)]


def _verdict(answers: Sequence[Mapping[str, Any]]) -> str:
    """Why the processes cannot train on what they have (host, kind and refusal of each); empty if they can."""
    for answer in answers:
        if answer["refusal"]:
            alike = [rank for rank, other in enumerate(answers) if other == answer]
            return f"{answer['refusal']} ({_processes(alike)} of {len(answers)}, on {answer['host']})"
    without = sorted({answer["host"] for answer in answers if answer["kind"] == "cpu"})
    if without and len({answer["kind"] for answer in answers}) > 1:
        return (
            f"{', '.join(without)} has no GPU, but other hosts of this run have: give all processes GPUs, or "
            "--device cpu if the CPU is meant"
        )
    return ""


def _processes(ranks: Iterable[int]) -> str:
    return f"process {', '.join(map(str, sorted(ranks)))}"
