"""A lock on a run, so that one job at a time writes it: a claim file that its owner touches every few seconds.

It works across the nodes of a shared file system, where kernel locks often do not. Only changes of the file's time are
used, so the clocks of different hosts need not agree. When an owner dies, it stops touching the file, and the next
process takes over. Of several starts of one Slurm job the newest gets the run: Slurm may have given up a node that is
still alive. An owner that was only suspended or cut off sees that the claim belongs to another process, and ends.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from ddpm.run.errors import RequestError
from ddpm.run.files import read_json

BEAT = 3.0  # seconds between touches
SILENCE = 15.0  # seconds without a touch after which an owner on another machine counts as dead


class Overtaken(OSError):
    """Another process has taken the run over."""


class RunLock:
    """This process's claim on a run. `take` acquires it; as a context manager it is released at the end.

    Args:
        path: the claim file.
        run: name of the run, for messages.
    """

    def __init__(self, path: Path, run: str) -> None:
        self.path, self.run = path, run
        self._mine = {**_this_process(), "id": uuid.uuid4().hex}
        self._done = threading.Event()
        self._stays_until = 0.0  # by the monotonic clock: the claim is not given back before
        self._thread = threading.Thread(target=self._keep, name="claim", daemon=True)

    def take(self) -> str:
        """Claim the run. Returns the id of the claim, as `holder` does.

        Raises:
            RequestError: another process holds the claim and is alive, or the file cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while not self._create(self.path):
                owner = _read(self.path)
                newer = self._newer(owner)
                if newer:
                    raise RequestError(f"{whose(owner)} has {self.run} now: this earlier start of the job ends")
                if newer is None and self._alive(owner):
                    owner = _read(self.path)  # the first time it may have been half written
                    raise RequestError(
                        f"{self.run} is being trained by {whose(owner)}: watch "
                        f"it with python pretty_logger.py {self.run}, or give another --run-name"
                    )
                if self._replace(owner):
                    self._stays_until = time.monotonic() + 2 * BEAT if newer is False else 0.0
                    break
        except OSError as error:
            what = f"{error.filename or self.path}: {error.strerror}"
            raise RequestError(f"cannot write there: {what}; choose another folder with --output-root") from error
        self._thread.start()
        return self._mine["id"]

    def check(self) -> None:
        """Raises Overtaken if another process has taken the run over."""
        owner = _read(self.path)
        if owner and owner.get("id") != self._mine["id"]:
            raise Overtaken(f"{whose(owner)} has taken {self.run} over")

    def release(self) -> None:
        """Remove the claim file, unless another process owns it by now.

        If it was an earlier start's of this job, wait first until that one, which may be alive, has seen who took it:
        finding no claim, it would think that somebody cleaned up, claim the run again, and train on.
        """
        time.sleep(max(0.0, self._stays_until - time.monotonic()))
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()
        if _read(self.path).get("id") == self._mine["id"]:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self.release()

    def _create(self, path: Path) -> bool:
        """Create a claim if there is none. Returns whether it was created."""
        try:
            file = open(path, "x", encoding="utf-8")  # noqa: SIM115
        except FileExistsError:
            return False
        try:
            with file:
                json.dump(self._mine, file)
        except OSError:  # the disk is full
            path.unlink(missing_ok=True)
            raise
        return True

    def _keep(self) -> None:
        """Touch the file until the claim is released. Ends the process if another one has taken the run over."""
        beat = time.monotonic()
        while not self._done.wait(BEAT):
            silent, beat = time.monotonic() - beat, time.monotonic()
            try:
                self.check()
                os.utime(self.path)
            except Overtaken as error:
                _end(str(error))
            except FileNotFoundError:
                if silent > SILENCE:  # another process may have taken this one for dead, trained and ended since
                    _end(f"the claim on {self.run} is gone, and was not touched from here for {silent:.0f} s")
                with suppress(OSError):  # somebody deleted it
                    self._create(self.path)
            except OSError:  # try again at the next beat
                pass

    def _alive(self, owner: dict[str, Any]) -> bool:
        """Is the owner of the claim alive? On another machine: does it still touch the file?"""
        if owner.get("machine") == self._mine["machine"]:
            return owner.get("began") == _began(owner.get("pid"))
        seen, deadline = _touched(self.path), time.monotonic() + SILENCE
        while time.monotonic() < deadline:
            time.sleep(0.2)
            if _touched(self.path) != seen:
                return self.path.exists()
        return False

    def _newer(self, owner: dict[str, Any]) -> bool | None:
        """Is the owner a newer start of this process's Slurm job (else an older one)? None if it is neither."""
        mine, its = slurm_start(self._mine), slurm_start(owner)
        return its[1] > mine[1] if mine and its and mine[0] == its[0] and mine[1] != its[1] else None

    def _replace(self, owner: dict[str, Any]) -> bool:
        """Put this claim in the place of a dead owner's. Returns False if that has changed meanwhile.

        One process at a time, the one that has made the file beside the claim. The claim is never missing meanwhile: a
        third process would make its own.
        """
        turn, aside = (self.path.with_name(f"{self.path.name}.{what}") for what in ("turn", self._mine["id"]))
        if not self._create(turn):
            _wait_for_end_of(turn)
            return False
        try:
            if not self.path.exists() or _read(self.path).get("id") != owner.get("id"):
                return False
            self._create(aside)
            os.replace(aside, self.path)
            return True
        finally:
            aside.unlink(missing_ok=True)
            turn.unlink(missing_ok=True)


def _wait_for_end_of(turn: Path) -> None:
    """Wait until another process has had its turn, which takes milliseconds; one that died in it is not waited for."""
    seen, deadline = _touched(turn), time.monotonic() + SILENCE
    while seen and _touched(turn) == seen:
        if time.monotonic() > deadline:
            turn.unlink(missing_ok=True)
        time.sleep(0.02)


def _end(why: str) -> None:
    """End the process without writing any file, as the run's files belong to another process."""
    print(f"error: {why}; this process ends at once", file=sys.stderr, flush=True)
    os._exit(1)


def owner_of(path: Path) -> dict[str, Any]:
    """The content of the claim on a run; empty if there is none, or it cannot be read."""
    return _read(path)


def holder(path: Path) -> str | None:
    """The id of the claim on a run, None if there is none."""
    return _read(path).get("id")


def slurm_start(record: Mapping[str, Any]) -> tuple[str, int] | None:
    """Slurm job and restart that wrote a claim or a status; None outside Slurm."""
    job, restart = record.get("slurm_job_id"), record.get("slurm_restart")
    with suppress(TypeError, ValueError, OverflowError):
        return (str(job), int(restart or 0)) if job else None
    return None


def whose(record: Mapping[str, Any]) -> str:
    """Description of the process that wrote a claim or a status: `process 4321 on node7, restart 2 of Slurm job 55`."""
    job, restart = slurm_start(record) or (None, 0)
    words = f", restart {restart} of Slurm job {job}" if restart else f", Slurm job {job}" if job else ""
    return f"process {record.get('pid')} on {record.get('host')}{words}"


def _this_process() -> dict[str, Any]:
    """The content of this process's claim, except its id."""
    env = os.environ
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "began": _began(os.getpid()),
        "machine": _machine(),
        "slurm_job_id": env.get("SLURM_JOB_ID"),
        "slurm_restart": env.get("SLURM_RESTART_COUNT", "0"),
    }


def _machine() -> str:
    """Boot and PID namespace: equal only for processes that can see each other in /proc."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return uuid.uuid4().hex  # unique


def _began(pid: int | None) -> str | None:
    """Start of the process in ticks since boot, which a reused PID does not share; None if the process is gone."""
    with suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    return None


def _read(path: Path) -> dict[str, Any]:
    """The claim's content; empty if there is none, or it is not complete (yet)."""
    with suppress(OSError, ValueError):
        owner = read_json(path)
        return owner if isinstance(owner, dict) else {}
    return {}


def _touched(path: Path) -> tuple[int, int] | None:
    """The file's mtime and inode. It is opened because a network file system asks its server only then."""
    with suppress(OSError), open(path, encoding="utf-8") as file:
        stat = os.fstat(file.fileno())
        return stat.st_mtime_ns, stat.st_ino
    return None
