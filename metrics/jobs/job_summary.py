"""Summary of a start of a Slurm job, a few lines for the job's output, which metrics/jobs/requeue.py prints.

Everything is read from the run's files: status.json, the `start` events of events.jsonl, gpus/*.json. A start lasts
from its beginning to its last heartbeat, so a killed one counts too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ddpm.run.format import clean, count, duration, plural
from ddpm.run.lock import slurm_start
from ddpm.run.paths import RunPaths
from metrics.files import energy_wh, mean_utilization, read_gpus, read_status, starts_of
from metrics.starts import Start, published_starts

NAME_WIDTH = 16


def utilization(paths: RunPaths, slurm: tuple[str, int] | None = None) -> float | None:
    """Mean utilisation of the GPUs in percent, over all nodes, of all starts or of one; None if it was not measured."""
    return mean_utilization(_sampled(paths, slurm))[0]


def energy(paths: RunPaths, slurm: tuple[str, int] | None = None) -> float | None:
    """Energy of the GPUs in kWh, over all nodes, of all starts or of one; None if no power was measured."""
    watt_hours = energy_wh(_sampled(paths, slurm))
    return None if watt_hours is None else watt_hours / 1000


def _sampled(paths: RunPaths, slurm: tuple[str, int] | None) -> list[dict[str, Any]]:
    """What the nodes measured in all starts, or in one."""
    starts = (start for record in read_gpus(paths) for start in starts_of(record))
    return [start for start in starts if slurm in (None, slurm_start(start))]


def _times(starts: Sequence[Start]) -> tuple[float, float]:
    """Seconds and GPU-seconds of these starts together."""
    return sum(start.seconds for start in starts), sum(start.gpu_seconds for start in starts)


def summary(paths: RunPaths, slurm: tuple[str, int], title: str, state: str, following: str) -> Iterator[str]:
    """The lines of the summary.

    Args:
        slurm: job and restart of the start that has ended.
        title: name of the job.
        state: how the start ended.
        following: what happens next.
    """
    status = read_status(paths) or {}
    starts = [start for start in published_starts(paths, status) if start.began_at is not None]
    these = [start for start in starts if start.slurm == slurm]  # several, if torchrun started it again
    yield f"---- {title}: {paths.run} " + "-" * 20
    yield _line("state", state)
    yield _line("next", following)
    if these:
        last, trained = these[-1].last, sum(start.images for start in these)
        images, step, steps = (count(last.get(name)) for name in ("images_seen", "step", "total_steps"))
        (lived, gpu_seconds), (lived_in_all, gpu_seconds_in_all) = map(_times, (these, starts))
        yield _line("images trained", f"{trained:,} in this start, {images} in all (step {step} of {steps})")
        yield _line(
            "wall time",
            f"{duration(lived)} in this start, {duration(lived_in_all)} in all ({plural(len(starts), 'start')})",
        )
        hours = f"{gpu_seconds / 3600:,.2f} in this start, {gpu_seconds_in_all / 3600:,.2f} in all"
        gpus, device = last.get("gpus"), last.get("device")
        yield _line("GPU-hours", f"{hours} ({gpus} x {device})" if gpu_seconds_in_all else f"none: on {device}")
        mine, mean = utilization(paths, slurm), utilization(paths)
        both = f"{_percent(mine)} in this start, {_percent(mean)} in all"
        yield _line("mean GPU use", "not measured" if mean is None else both)
        used, total = energy(paths, slurm), energy(paths)
        both = f"{_kwh(used)} in this start, {_kwh(total)} in all"
        yield _line("GPU energy" if gpu_seconds_in_all else "CPU energy", "not measured" if total is None else both)
    for name, path in {"report": paths.report_html, "log": paths.log}.items():
        if path.is_file() and (name == "log" or status.get("state") == "finished"):
            yield _line(name, str(path))
    yield "-" * 60


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.0f}%"


def _kwh(value: float | None) -> str:
    return "not measured" if value is None else f"{value:,.2f} kWh"


def _line(name: str, text: str) -> str:
    return f"{name:<{NAME_WIDTH}}{' '.join(clean(text))}"
