"""The processes of a run: rank and device of this one, collectives, and the vote to stop."""

from __future__ import annotations

import datetime
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from ddpm.run.errors import OutOfMemory, ProcessesLost, RequestError, out_of_memory
from ddpm.run.launch import read_launch, restarted_by_torchrun
from ddpm.run.signals import StopRequest
from ddpm.training.machine.device import pick_device
from ddpm.training.machine.rendezvous import agreed_device, meet
from ddpm.training.machine.threads import most_threads

T = TypeVar("T")

STARTING = datetime.timedelta(minutes=30)  # timeout while compiling, downloading data, or writing the final report
ROLL_CALL = 15.0  # seconds in which every surviving process answers
LESS_MEMORY = (
    "half the --batch-size with twice the --grad-accum trains the same and continues the run; --dry-run estimates the "
    "memory"
)
NCCL_LATER = datetime.timedelta(minutes=2)  # more for NCCL, so that Gloo finds and names a hung process first


@dataclass(frozen=True)
class DistContext:
    """This process among the others. A single process has no process group; its collectives are the identity."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    device: torch.device
    store: dist.Store | None = None  # shared keys, usable also when collectives fail
    restarted: bool = False  # has torchrun restarted the processes?
    nodes: int = 1  # number of hosts
    why_device: str = ""  # reason for the device, in words

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def node(self) -> str:
        return socket.gethostname()

    def share(self, images: int) -> slice:
        """This process's part of a global batch, of which each process has `images`."""
        return slice(self.rank * images, (self.rank + 1) * images)

    def gather(self, value: object) -> list:
        """All-gather: the `value` of every process in rank order (small picklable objects, no tensors)."""
        if self.world_size == 1:
            return [value]
        values: list = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def mean_(self, tensor: torch.Tensor) -> torch.Tensor:
        """All-reduce `tensor` in place to its mean over the processes."""
        tensor = self.sum_(tensor)
        tensor /= self.world_size
        return tensor

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """All-reduce `tensor` in place to its sum over the processes."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast_result(self, task: Callable[[], T], here: bool) -> T:
        """Run `task` on the processes where `here` is true, while the others wait. All return the result of the first.

        Raises:
            RequestError: the task raised one on any process.
            RuntimeError: the task raised another error on another process (on that process, the error itself).
        """
        result, error = None, None
        if here:
            try:
                result = task()
            except Exception as caught:
                error = caught
        outcomes = self.gather((here, result, error and (isinstance(error, RequestError), str(error))))
        if error is not None:
            raise error
        for _, _, failure in outcomes:
            if failure is not None:
                is_request, message = failure
                raise RequestError(message) if is_request else RuntimeError(f"another process failed: {message}")
        return next(result for ran, result, _ in outcomes if ran)

    def expect_answers_within(self, limit: datetime.timedelta) -> None:
        """Set the timeout of collective operations: a process that keeps the others waiting for longer is given up.

        A timeout of Gloo is an error that `explain` can handle. NCCL's ends the process at once, so NCCL gets more
        time; its timeout only serves hosts that wait for their GPU.
        """
        if self.world_size > 1:
            for kind in dist.group.WORLD._device_types:
                later = NCCL_LATER if kind.type == "cuda" else datetime.timedelta(0)
                dist.group.WORLD._get_backend(kind)._set_default_timeout(limit + later)

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Context manager: raises `explain(error)` for an error. One that needs no explanation keeps its traceback."""
        try:
            yield
        except Exception as error:
            explained = self.explain(error)
            if explained is error:
                raise
            raise explained from None

    def explain(self, error: Exception) -> Exception:
        """The error to raise for an `error` in training: OutOfMemory if the memory of this GPU, or of the GPU of a lost
        process, is full; ProcessesLost if it comes from another lost process; else itself."""
        if full := out_of_memory(error, LESS_MEMORY):
            return self._leave_word(full)
        if self.world_size == 1 or not _of_a_collective(error):
            return error
        lost, word = [0], ""  # process 0 keeps the store: if the store does not answer, process 0 is lost
        found: list[tuple[list[int], str]] = []
        caller = threading.Thread(target=lambda: found.append(self._roll_call()), daemon=True)  # the store may hang
        caller.start()
        caller.join(ROLL_CALL + 2)
        if found:
            lost, word = found[0]
        if word:
            return OutOfMemory(word, reported_here=False)
        if not lost:
            return error
        which = ", ".join(map(str, lost))
        return ProcessesLost(
            f"process {which} of {self.world_size} no longer answers (killed, out of memory, hanging, or its node is "
            "down); run the same command again (with --resume auto) to continue from the last checkpoint",
            reported_here=self.rank == min(set(range(self.world_size)) - set(lost), default=0),
        )

    def _leave_word(self, full: OutOfMemory) -> OutOfMemory:
        """Leave word for the processes that will miss this one that its GPU's memory is full. Returns the error."""
        if self.world_size == 1:
            return full
        word = f"process {self.rank} of {self.world_size}, on {self.node}: {full}"
        with suppress(RuntimeError, dist.DistError):
            self.store.set(f"full/{self.rank}", word)
        return OutOfMemory(word)

    def _roll_call(self) -> tuple[list[int], str]:
        """Ranks that do not answer, and the word that one of them has left, if any. Every surviving rank sets a key in
        the store; those without one are lost."""
        try:
            self.store.set(f"here/{self.rank}", "")
            deadline = time.monotonic() + ROLL_CALL
            lost = list(range(self.world_size))
            while lost and time.monotonic() < deadline:
                time.sleep(0.1)
                lost = [rank for rank in lost if not self.store.check([f"here/{rank}"])]
                for rank in lost:
                    if self.store.check([f"full/{rank}"]):
                        return lost, self.store.get(f"full/{rank}").decode()
            return lost, ""
        except (RuntimeError, dist.DistError):
            return [0], ""


def _of_a_collective(error: Exception) -> bool:
    """Did the error come from Gloo or NCCL, as when a peer is gone? They share no type of error."""
    words = ("gloo", "NCCL", "pair closure", "Connection closed", "Connection reset", "Timed out", "Broken pipe")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


class StopVote:
    """Lets all processes stop at the same step when any of them was asked to stop.

    Each step starts a one-byte all-reduce between the hosts (Gloo, no device involved) and reads the result of the one
    before, so no process waits, and all read the same result at the same step.
    """

    def __init__(self, stop: StopRequest, world: DistContext) -> None:
        self._stop, self._world = stop, world
        self._pending: tuple[dist.Work, torch.Tensor] | None = None

    def passed(self) -> bool:
        """Has any process been asked to stop? Every process calls it once per step; the answer is a step late."""
        if self._world.world_size == 1:
            return self._stop.requested
        agreed = self.close()
        vote = torch.tensor([self._stop.requested], dtype=torch.uint8)
        self._pending = dist.all_reduce(vote, op=dist.ReduceOp.MAX, async_op=True), vote
        return agreed

    @property
    def requested(self) -> bool:
        """Has this process been asked to stop? The others may not know of it yet."""
        return self._stop.requested

    @property
    def reason(self) -> str:
        return f"stopped by {self._stop.signal.name}" if self._stop.signal else "another process was asked to stop"

    def close(self) -> bool:
        """Finish the pending vote, if any, and return its result."""
        if self._pending is None:
            return False
        work, vote = self._pending
        self._pending = None
        work.wait()
        return bool(vote.item())


def leave_traces(prefix: Path) -> None:
    """Set where NCCL's watchdog leaves the latest collectives of a process when one times out: `prefix` + rank. To be
    called before the process group is made."""
    _set("TORCH_FR_DUMP_TEMP_FILE", str(prefix), "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")


def _record_collectives() -> None:
    """Let NCCL keep its latest collectives (Flight Recorder), which torch 2.9 does not do by default."""
    _set("TORCH_FR_BUFFER_SIZE", "2000", "TORCH_NCCL_TRACE_BUFFER_SIZE")
    _set("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")


def _set(variable: str, value: str, older: str = "") -> None:
    """Set a variable unless the user has, by this name or the `older` one. (torch 2.9 and newer know both, and warn if
    they find the older one.)"""
    if older not in os.environ:
        os.environ.setdefault(variable, value)


@contextmanager
def connect(device: str = "auto") -> Iterator[DistContext]:
    """Join the other processes that torchrun or srun started, if any, and take a device.

    Args:
        device: value of `--device`.

    Raises:
        RequestError: the launcher's variables are incomplete; not all processes arrive; or one of them, on any host,
            cannot use its GPU (all raise the same error then).
        ProcessesLost: process 0 was lost while the processes joined.
    """
    launch = read_launch()
    torch.set_num_threads(most_threads(torch.get_num_threads(), launch.local_world_size))
    store, restarted = None, restarted_by_torchrun(os.environ)
    if launch.world_size == 1:
        taken, why = pick_device(device)
    else:
        try:
            store, restarted = meet(launch)
            taken, why = agreed_device(device, launch, store)
        except dist.DistError as error:
            raise ProcessesLost(
                "process 0 was lost while the processes met; see its output", launch.rank == 1
            ) from error
        if taken.type == "cuda":
            _record_collectives()
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if taken.type == "cuda" else "gloo",
            store=dist.PrefixStore("group", store),
            rank=launch.rank,
            world_size=launch.world_size,
            timeout=STARTING,
            device_id=taken if taken.type == "cuda" else None,
        )
    numbers = launch.rank, launch.local_rank, launch.world_size, launch.local_world_size
    world = DistContext(*numbers, taken, store, restarted, why_device=why)
    world = replace(world, nodes=len(set(world.gather(world.node))))  # a launcher may run twice on a host
    yield world
    if launch.world_size > 1:  # not after an error: the others may be waiting inside a collective
        world.expect_answers_within(STARTING)  # a process may still be saving
        with suppress(RuntimeError):  # a process killed this late is not needed any more
            world.gather("leaving")  # leave together: a process that is still connecting must find its peers
        dist.destroy_process_group()
