"""Run a function in several real processes that are joined by Gloo."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.preload"])  # torch is loaded once, not by each process


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
