"""Real processes, forked from a server that has torch loaded: functions joined by Gloo, and commands."""

import atexit
import importlib
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from tests.support.warm_python import end

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.support.preload"])  # torch is loaded once, not by each process


def in_processes(function: Callable, world_size: int, *arguments: Any) -> list:
    """What `function(*arguments)` returns in each of `world_size` processes, in rank order.

    The processes see the variables that torchrun would set. An error in one of them is raised here, with its traceback.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = CONTEXT.Queue()
    crew = [
        CONTEXT.Process(target=_work, args=(results, rank, world_size, port, function, arguments), daemon=True)
        for rank in range(world_size)
    ]
    for process in crew:
        process.start()
    try:
        outcomes = dict(_checked(*results.get(timeout=180)) for _ in crew)
    finally:
        for process in crew:
            process.join(timeout=5)
            process.kill()
    return [outcomes[rank] for rank in range(world_size)]


def _work(results: Any, rank: int, world_size: int, port: int, function: Callable, arguments: tuple) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        results.put((rank, function(*arguments), None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))


def _checked(rank: int, value: Any, error: str | None) -> tuple[int, Any]:
    if error:
        raise AssertionError(f"process {rank} failed:\n{error}")
    return rank, value


class Command:
    """`python ARGUMENTS…`, used as a `subprocess.Popen` whose output and errors are one pipe of text.

    Args:
        variables: the whole environment.
        session: lead a session of its own, so that a signal can be sent to it and all that it starts.
        patches: module.name → another value for it, in this process only.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        variables: Mapping[str, str],
        session: bool = False,
        patches: Mapping[str, Any] | None = None,
    ) -> None:
        ours, theirs = CONTEXT.Pipe(duplex=False)
        self._process = CONTEXT.Process(
            target=_run, args=(theirs, list(arguments), dict(variables), session, dict(patches or {}))
        )
        self._process.start()
        theirs.close()
        self.stdout = os.fdopen(os.dup(ours.fileno()), encoding="utf-8")
        ours.close()
        atexit.register(self._process.kill)  # or a test that failed before it did so would be waited for

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Wait for its end. Returns the output that has not been read.

        Raises:
            subprocess.TimeoutExpired: it has not ended after `timeout` seconds.
        """
        output: list[str] = []
        reader = threading.Thread(target=lambda: output.append(self.stdout.read()), daemon=True)
        reader.start()
        reader.join(timeout)
        if reader.is_alive():
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        self._process.join()
        return output[0], None


def _run(
    output: Connection, arguments: list[str], variables: dict[str, str], session: bool, patches: dict[str, Any]
) -> None:
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", 1, closefd=False)  # noqa: SIM115
    if session:
        os.setsid()
    os.environ.clear()
    os.environ.update(variables)
    for name, value in patches.items():
        module, _, attribute = name.rpartition(".")
        setattr(importlib.import_module(module), attribute, value)
    sys.argv = arguments
    end()
