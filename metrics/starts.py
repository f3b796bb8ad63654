"""The starts of a run: when each began, its last heartbeat, what it computed, and what was trained twice.

A start counts from when it began to publish up to its last heartbeat, so the work of a killed one counts too. Read
from status.json, the `start` events of events.jsonl, and `starts` of training_metrics.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from ddpm.run.files import parse_json, read_file
from ddpm.run.format import DASH, finite
from ddpm.run.launch import torchrun_of
from ddpm.run.lock import slurm_start
from ddpm.run.paths import RunPaths
from metrics.files import read_status


@dataclass(frozen=True)
class Start:
    """One start of a run, as its files describe it.

    Attributes:
        slurm: Slurm job and restart, None outside Slurm.
        began: when, in seconds since 1970; None if it is not known.
        seconds: from its beginning to its last heartbeat; None if no file says.
        gpu_seconds: the same, times the GPUs that it trained on.
        began_at: the step at which it began to train, None if it never trained.
        images: images trained, with those that were lost because it was killed before it saved.
        cause: why it was needed, that is, how the start before it ended.
        epoch: epochs that were done when it began.
        last: its last status, with the fields of `status.json`.
    """

    slurm: tuple[str, int] | None = None
    began: float | None = None
    seconds: float | None = None
    gpu_seconds: float = 0.0
    began_at: int | None = None
    images: int | None = None
    cause: str | None = None
    epoch: int | None = None
    last: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Computed:
    """All starts of a run together. `repeated` images were trained again, because a start was killed before it saved or
    the run went back. A figure that a start lacks is None."""

    seconds: float | None
    gpu_seconds: float
    images: int | None
    repeated: int | None


def published_starts(paths: RunPaths, status: Mapping[str, Any] | None = None) -> list[Start]:
    """All starts that published a status, also those that never trained, the oldest first.

    Args:
        status: content of status.json, if it has been read already.
    """
    latest = {}
    for record in _records(paths, status):  # two of one start, if another process wrote how it ended: the second counts
        latest[slurm_start(record), finite(record.get("started"))] = record
    return [_start(record) for record in latest.values()]


def began_in_this_job(paths: RunPaths, environment: Mapping[str, str], restarted: bool) -> bool:
    """Has an earlier start of the Slurm job, or of the torchrun, that this process belongs to begun to train the run?

    Args:
        restarted: has torchrun started the processes again?
    """
    begun = [start for start in published_starts(paths) if start.began_at is not None]
    if restarted and torchrun_of(environment) in [start.last.get("torchrun") for start in begun]:
        return True
    names = {"slurm_job_id": "SLURM_JOB_ID", "slurm_restart": "SLURM_RESTART_COUNT"}
    if (ours := slurm_start({field: environment.get(name) for field, name in names.items()})) is None:
        return False
    return any(job == ours[0] and restart < ours[1] for job, restart in (each.slurm for each in begun if each.slurm))


def training_starts(paths: RunPaths, told: Sequence[Mapping[str, Any]], status: Mapping[str, Any]) -> list[Start]:
    """The starts that trained, the oldest first.

    Args:
        told: `starts` of training_metrics.json: why each was needed.
        status: content of status.json.
    """
    known, starts = published_starts(paths, status), []
    for entry in told:
        time, step = stamp_of(entry.get("time")), entry.get("step")
        mine = next((start for start in known if _contains(start, time)), Start(began=time))
        known = [start for start in known if start is not mine]
        began_at = step if mine.began_at is None else mine.began_at
        starts.append(replace(mine, began_at=began_at, cause=entry.get("cause"), epoch=entry.get("epoch")))
    starts += [start for start in known if start.began_at is not None]
    return sorted(starts, key=lambda start: start.began or 0.0)


def computed(starts: Sequence[Start], images_seen: int | None) -> Computed:
    """What the starts computed; `images_seen` is where the run stands now."""
    seconds = [start.seconds for start in starts]
    images = [start.images for start in starts]
    total = None if None in images or not images else sum(images)
    repeated = None if total is None or images_seen is None else max(0, total - images_seen)
    time = None if None in seconds or not seconds else sum(seconds)
    return Computed(time, sum(start.gpu_seconds for start in starts), total, repeated)


def why_started(cause: str | None) -> str:
    """Why a start was needed: `started` for the first one, otherwise how the one before it ended."""
    if cause in (None, "started"):
        return cause or DASH
    return f"the start before: {cause}"


def stamp_of(text: Any) -> float | None:
    """A time in ISO 8601 as seconds since 1970."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


def _contains(start: Start, time: float | None) -> bool:
    """Was `time` (in whole seconds) within the start?"""
    last = finite(start.last.get("heartbeat"))
    return None not in (start.began, time, last) and start.began - 1 <= time <= last + 1


def _records(paths: RunPaths, status: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    with suppress(OSError):
        for line in read_file(paths.events).splitlines():
            if b'"kind": "start"' in line:
                with suppress(ValueError):  # torn
                    event = parse_json(line)
                    if isinstance(event, dict) and event.get("kind") == "start":
                        yield event
    if status := read_status(paths) if status is None else status:
        yield status


def _start(record: Mapping[str, Any]) -> Start:
    began, last, gpus, began_at = (finite(record.get(name)) for name in ("started", "heartbeat", "gpus", "start_step"))
    lived = max(0.0, last - began) if None not in (began, last) else 0.0
    seen, seen_before = (finite(record.get(name)) or 0 for name in ("images_seen", "start_images"))
    return Start(
        slurm=slurm_start(record),
        began=began,
        seconds=lived,
        gpu_seconds=lived * (gpus or 0),
        began_at=None if began_at is None else int(began_at),
        images=0 if began_at is None else max(0, int(seen - seen_before)),  # else the status tells of an earlier start
        last=record,
    )
