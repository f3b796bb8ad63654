"""One job at a time writes a run: a claim file, which its owner keeps touching for as long as it lives.

It works across the nodes of a shared file system, where locks of the kernel often do not, and asks no clock: what is
watched is that the file's time changes, not which time it is. An owner that dies stops touching it, and the next one
takes over. Of the starts of one Slurm job the newest has the run: Slurm may have given up a node that lives on. An
owner that was only suspended or cut off finds that the claim is another's, and ends at once.
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
SILENCE = 15.0  # an owner on another machine that has not touched its claim for so long is dead


class Overtaken(OSError):
    """The run is another process's by now."""


class RunLock:
    """This process's claim on a run. As a context, it is given back at the end; `take` takes it.

    Args:
        path: the claim file.
        run: name of the run, for messages.
    """

    def __init__(self, path: Path, run: str) -> None:
        self.path, self.run = path, run
        self._mine = {**_whereabouts(), "id": uuid.uuid4().hex}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="claim", daemon=True)

    def take(self) -> str:
        """Claim the run. Returns the claim's name, as `holder` tells it.

        Raises:
            RequestError: another process holds the claim and is alive, or the file cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while not self._create():
                owner = _read(self.path)
                newer = self._newer(owner)
                if newer:
                    raise RequestError(f"{whose(owner)} has {self.run} now: this earlier start of the job ends")
                if newer is None and self._alive(owner):
                    owner = _read(self.path)  # it may have been half written before
                    raise RequestError(
                        f"{self.run} is being trained by {whose(owner)}: watch "
                        f"it with python pretty_logger.py {self.run}, or give another --run-name"
                    )
                self._clear_away(owner)
        except OSError as error:
            what = f"{error.filename or self.path}: {error.strerror}"
            raise RequestError(f"cannot write there: {what}; choose another folder with --output-root") from error
        self._thread.start()
        return self._mine["id"]

    def check(self) -> None:
        """Raises Overtaken if the run is another process's by now."""
        owner = _read(self.path)
        if owner and owner.get("id") != self._mine["id"]:
            raise Overtaken(f"{whose(owner)} has taken {self.run} over")

    def release(self) -> None:
        """Give the claim back, unless it is another's by now."""
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

    def _create(self) -> bool:
        """Make the file if there is none; whether it was made."""
        try:
            file = open(self.path, "x", encoding="utf-8")  # noqa: SIM115
        except FileExistsError:
            return False
        try:
            with file:
                json.dump(self._mine, file)
        except OSError:  # the disk is full
            self.path.unlink(missing_ok=True)
            raise
        return True

    def _keep(self) -> None:
        beat = time.monotonic()
        while not self._done.wait(BEAT):
            silent, beat = time.monotonic() - beat, time.monotonic()
            try:
                self.check()
                os.utime(self.path)
            except Overtaken as error:
                _end(str(error))
            except FileNotFoundError:
                if silent > SILENCE:  # taken for dead, perhaps, by one that has trained and ended since
                    _end(f"the claim on {self.run} is gone, and was not touched from here for {silent:.0f} s")
                with suppress(OSError):  # somebody cleaned up
                    self._create()
            except OSError:  # not this time, then
                pass

    def _alive(self, owner: dict[str, Any]) -> bool:
        """Is the owner of the claim alive? If nothing here can prove it, watch whether it still touches the file."""
        if owner.get("machine") == self._mine["machine"]:
            return owner.get("began") == _began(owner.get("pid"))
        seen, patience = _touched(self.path), time.monotonic() + SILENCE
        while time.monotonic() < patience:
            time.sleep(0.2)
            if _touched(self.path) != seen:
                return self.path.exists()
        return False

    def _newer(self, owner: dict[str, Any]) -> bool | None:
        """Of two starts of one Slurm job: is the owner's the newer one? None if they are no two such starts."""
        mine, its = slurm_start(self._mine), slurm_start(owner)
        return its[1] > mine[1] if mine and its and mine[0] == its[0] and mine[1] != its[1] else None

    def _clear_away(self, owner: dict[str, Any]) -> None:
        """Remove a dead owner's claim; if it is a living one's by now, as two take over at once, put it back."""
        aside = self.path.with_name(f"{self.path.name}.{self._mine['id']}")
        with suppress(FileNotFoundError):
            os.rename(self.path, aside)
            if _read(aside).get("id") != owner.get("id") and not self.path.exists():
                os.rename(aside, self.path)
            aside.unlink(missing_ok=True)


def _end(why: str) -> None:
    """End the process: not a file more from here, as they are another's."""
    print(f"error: {why}; this process ends at once", file=sys.stderr, flush=True)
    os._exit(1)


def owner_of(path: Path) -> dict[str, Any]:
    """What the claim on a run says of its owner; nothing if nobody has claimed it, or it cannot be read."""
    return _read(path)


def holder(path: Path) -> str | None:
    """The name of the claim on a run, None if nobody has claimed it."""
    return _read(path).get("id")


def slurm_start(record: Mapping[str, Any]) -> tuple[str, int] | None:
    """The Slurm job, and the restart of it, that has written a claim or a status; None if it was none."""
    job, restart = record.get("slurm_job_id"), record.get("slurm_restart")
    with suppress(TypeError, ValueError, OverflowError):
        return (str(job), int(restart or 0)) if job else None
    return None


def whose(record: Mapping[str, Any]) -> str:
    """Who has written a claim or a status, such as `process 4321 on node7, restart 2 of Slurm job 55`."""
    job, restart = slurm_start(record) or (None, 0)
    words = f", restart {restart} of Slurm job {job}" if restart else f", Slurm job {job}" if job else ""
    return f"process {record.get('pid')} on {record.get('host')}{words}"


def _whereabouts() -> dict[str, Any]:
    """Who and where this process is."""
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
    """What is the same for two processes only if each can see in /proc whether the other lives."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return uuid.uuid4().hex  # no two are the same


def _began(pid: int | None) -> str | None:
    """When the process began, in ticks since boot, so that a reused number is not taken for it; None if it is gone."""
    with suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    return None


def _read(path: Path) -> dict[str, Any]:
    """The claim's content; nothing if there is none, or if it is not whole (yet)."""
    with suppress(OSError, ValueError):
        owner = read_json(path)
        return owner if isinstance(owner, dict) else {}
    return {}


def _touched(path: Path) -> tuple[int, int] | None:
    """The file's time and number. It is opened, as a network file system asks its server only then."""
    with suppress(OSError), open(path, encoding="utf-8") as file:
        stat = os.fstat(file.fileno())
        return stat.st_mtime_ns, stat.st_ino
    return None
