"""Summary of a start of a Slurm job, a few lines for the job's output, which metrics/jobs/requeue.py prints.

Everything is read from the run's files: status.json, the `start` events of events.jsonl, gpus/*.json. A start lasts
from its first to its last sign of life, so a killed one counts too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ddpm.run.files import parse_json, read_file
from ddpm.run.format import clean, duration, number
from ddpm.run.lock import slurm_start
from ddpm.run.paths import RunPaths
from metrics.live.gpus import mean_utilization, read_gpus, starts_of
from metrics.live.status import read_status

NAME_WIDTH = 16


@dataclass(frozen=True)
class Start:
    """The record that a start of a run left.

    Attributes:
        slurm: Slurm job and restart, None outside Slurm.
        seconds: time from its first to its last sign of life.
        gpu_seconds: the same, times the number of its GPUs.
        began_at: step at which it began to train, None if it never did.
        images: images that it trained on, also those lost because it was killed before the next checkpoint.
        last: its last record, with the fields of `status.json`; fewer if another start has begun since.
    """

    slurm: tuple[str, int] | None
    seconds: float
    gpu_seconds: float
    began_at: int | None
    images: int
    last: Mapping[str, Any] = field(default_factory=dict)


def read_starts(paths: RunPaths) -> list[Start]:
    """All starts recorded in the run's files, the oldest first."""
    grouped: dict[Any, list[Mapping[str, Any]]] = {}
    for record in _records(paths):  # two records of one start, if another process wrote how it ended
        grouped.setdefault(slurm_start(record) or _finite(record.get("started")), []).append(record)
    return [_start(records) for records in grouped.values()]


def utilization(paths: RunPaths, slurm: tuple[str, int] | None = None) -> float | None:
    """Mean utilisation of the GPUs in percent, over all nodes, of all starts or of one; None if it was not measured."""
    starts = (start for record in read_gpus(paths) for start in starts_of(record))
    return mean_utilization(start for start in starts if slurm in (None, slurm_start(start)))[0]


def summary(paths: RunPaths, slurm: tuple[str, int], title: str, state: str, following: str) -> Iterator[str]:
    """The lines of the summary.

    Args:
        slurm: job and restart of the start that has ended.
        title: name of the job.
        state: how the start ended.
        following: what happens next.
    """
    status, starts = read_status(paths) or {}, [start for start in read_starts(paths) if start.began_at is not None]
    this = next((start for start in starts if start.slurm == slurm), None)
    yield f"---- {title}: {paths.run} " + "-" * 20
    yield _line("state", state)
    yield _line("next", following)
    if this:
        images, step, steps = (_count(this.last.get(name)) for name in ("images_seen", "step", "total_steps"))
        wall, gpu_seconds = (sum(getattr(start, name) for start in starts) for name in ("seconds", "gpu_seconds"))
        count = f"{len(starts)} start" + "s" * (len(starts) > 1)
        yield _line("images trained", f"{this.images:,} in this start, {images} in all (step {step} of {steps})")
        yield _line("wall time", f"{duration(this.seconds)} in this start, {duration(wall)} in all ({count})")
        hours = f"{this.gpu_seconds / 3600:,.2f} in this start, {gpu_seconds / 3600:,.2f} in all"
        gpus, device = this.last.get("gpus"), this.last.get("device")
        yield _line("GPU-hours", f"{hours} ({gpus} x {device})" if gpu_seconds else f"none: on {device}")
        mine, mean = utilization(paths, slurm), utilization(paths)
        both = f"{_percent(mine)} in this start, {_percent(mean)} in all"
        yield _line("mean GPU use", "not measured" if mean is None else both)
    for name, path in {"report": paths.report_html, "log": paths.log}.items():
        if path.is_file() and (name == "log" or status.get("state") == "finished"):
            yield _line(name, str(path))
    yield "-" * 60


def _records(paths: RunPaths) -> Iterator[Mapping[str, Any]]:
    with suppress(OSError):
        for line in read_file(paths.events).splitlines():
            if b'"kind": "start"' in line:
                try:
                    event = parse_json(line)
                except ValueError:  # a torn line
                    continue
                if isinstance(event, dict) and event.get("kind") == "start":
                    yield event
    if status := read_status(paths):
        yield status


def _start(records: list[Mapping[str, Any]]) -> Start:
    seconds = gpu_seconds = 0.0
    for record in records:
        began, last, gpus = (_finite(record.get(name)) for name in ("started", "heartbeat", "gpus"))
        lived = max(0.0, last - began) if None not in (began, last) else 0.0
        seconds, gpu_seconds = seconds + lived, gpu_seconds + lived * (gpus or 0)
    began_at = [_finite(record.get("start_step")) for record in records]
    seen = [[_finite(record.get(name)) or 0 for name in ("images_seen", "start_images")] for record in records]
    return Start(
        slurm=slurm_start(records[0]),
        seconds=seconds,
        gpu_seconds=gpu_seconds,
        began_at=next((int(step) for step in began_at if step is not None), None),
        images=max(0, *(int(last - first) for last, first in seen)),
        last=records[-1],
    )


def _finite(value: Any) -> float | None:
    value = number(value)
    return value if value is not None and math.isfinite(value) else None


def _count(value: Any) -> str:
    value = _finite(value)
    return "?" if value is None else f"{value:,.0f}"


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.0f}%"


def _line(name: str, text: str) -> str:
    return f"{name:<{NAME_WIDTH}}{' '.join(clean(text))}"
