"""What the published state of a run says about its progress and its GPUs: functions from what was read to findings.

They read no files, and need neither torch nor pandas: the dashboard asks them every second.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ddpm.run.format import clock, duration, number, rough_duration
from metrics.health.thresholds import Thresholds
from metrics.run_state import CLOCK_SKEW, RunState

Status = Literal["healthy", "warning", "unhealthy", "–"]  # the last: nothing to judge
ORDER: tuple[Status, ...] = ("–", "healthy", "warning", "unhealthy")
DASH = "–"
THROTTLING = ("hw_slowdown", "hw_thermal", "hw_power_brake", "sw_thermal")  # reasons that are not all in a day's work
STAMP = "%Y-%m-%d %H:%M:%S"


@dataclass(frozen=True)
class Finding:
    """A sentence about a part of the run, with its figures, and what it means for the run's health."""

    status: Status
    note: str


@dataclass(frozen=True)
class Table:
    """Rows of cells as they are shown; a `folded` one is long, and stands in health.md alone."""

    title: str
    heads: Sequence[str]
    rows: list[Sequence[Any]]
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the run that is looked at: findings, worst first in the overview, and the tables they are made from."""

    component: str
    findings: list[Finding]
    tables: list[Table] = field(default_factory=list)

    @property
    def status(self) -> Status:
        return worst(finding.status for finding in self.findings)


def healthy(note: str) -> Finding:
    return Finding("healthy", note)


def warning(note: str) -> Finding:
    return Finding("warning", note)


def unhealthy(note: str) -> Finding:
    return Finding("unhealthy", note)


def fact(note: str) -> Finding:
    """A figure that is told and not judged."""
    return Finding("–", note)


def worst(statuses: Iterable[Status]) -> Status:
    return max(statuses, key=ORDER.index, default="–")


def shown(value: Any, form: str = ".4g", unit: str = "") -> str:
    """A figure in a format; a dash where it was not measured."""
    value = number(value)
    return DASH if value is None or not np.isfinite(value) else f"{value:{form}}{unit}"


def column(rows: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    """A column of the rows as float64 [rows], NaN where there is no number."""
    values = [number(row.get(name)) for row in rows]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def progress(state: RunState, starts: Sequence[dict[str, Any]] | None, limits: Thresholds) -> Section:
    """Where the run is, whether it lives, how often it was started. `starts`: of training_metrics.json."""
    status, findings = state.status, []
    if status is None:
        missing = "status.json is not there or cannot be read: the run has not begun, or its folder is not whole"
        findings.append(warning(state.trouble or missing))
    else:
        findings += [_alive(state, status, limits), fact(_place(state, status, limits))]
    if starts:
        again = len(starts) - 1
        reason = f", the last after: {starts[-1].get('cause') or 'not known'}" if again else ""
        findings.append(Finding("warning" if again > limits.restarts else "healthy", f"{again} restart(s){reason}"))
    since = number((status or {}).get("started")) or 0.0
    errors = [
        event for event in state.logs if event.get("severity") == "error" and (number(event.get("time")) or 0) >= since
    ]
    if errors:
        last = f"{clock(errors[-1].get('time'), STAMP)}: {' '.join(str(errors[-1].get('message')).split())}"
        findings.append(warning(f"{len(errors)} error(s) in the log since this start, the last at {last}"))
    heads = ["Start", "Step", "Epoch", "Why"]
    rows = [(start.get("time"), start.get("step"), start.get("epoch"), start.get("cause")) for start in starts or []]
    return Section("progress", findings, [Table("Starts", heads, rows)] if len(rows) > 1 else [])


def _alive(state: RunState, status: dict[str, Any], limits: Thresholds) -> Finding:
    name, message = status.get("state"), status.get("message")
    beat = clock(status.get("heartbeat"), STAMP)
    said = f": {message}" if message else ""
    if state.ended:
        code = f" (exit code {status['exit_code']})" if status.get("exit_code") is not None else ""
        kinds: dict[Any, Status] = {"finished": "healthy", "stopped": "warning", "failed": "unhealthy"}
        again = "; the same command goes on with it" if name == "stopped" else ""
        return Finding(kinds[name], f"{name}{code} at {beat}{said}{again}")
    who = f"node {status.get('host')}, pid {status.get('pid')}"
    who += f", Slurm job {status['slurm_job_id']}" if status.get("slurm_job_id") else ""
    if state.heartbeat_age > limits.heartbeat_sec:
        return unhealthy(
            f"no heartbeat for {rough_duration(state.heartbeat_age)}, since {beat}: the job "
            f"({who}) has probably died; the same command goes on from its last checkpoint"
        )
    phase = str(status.get("phase"))
    training = phase == "training"
    since = number(status.get("progress_time" if training else "phase_time")) or state.now
    since = max(since, number(status.get("phase_time")) or 0.0)
    heart = f"the heartbeat is {rough_duration(state.heartbeat_age)} old"
    if state.now - since > (limits.step_sec if training else limits.phase_sec):
        return unhealthy(
            f"the job ({who}) lives ({heart}) but has stalled: no step since "
            f"{clock(since, STAMP)}, for {rough_duration(state.now - since)}, in phase {phase!r}"
        )
    return healthy(f"running, phase {phase!r} ({who}); {heart}")


def _lives(state: RunState, limits: Thresholds) -> bool:
    """Has it neither ended nor been silent for too long?"""
    return state.status is not None and not state.ended and state.heartbeat_age <= limits.heartbeat_sec


def place(state: RunState, *parts: str) -> str:
    """How far the run is: `epoch 7 of 12`, and likewise in `batch` and `step` if these are among `parts`."""
    status, totals = state.status or {}, {"epoch": "epochs", "batch": "batches", "step": "total_steps"}
    known = {part: [status.get(part), status.get(totals[part]) or None] for part in parts}
    return ", ".join(f"{part} {' of '.join(shown(value, ',.0f') for value in pair)}" for part, pair in known.items())


def _place(state: RunState, status: dict[str, Any], limits: Thresholds) -> str:
    words = place(state, "epoch", "batch", "step") + "; "
    words += f"{len(state.epochs)} epoch(s) with figures, {shown(status.get('images_seen'), ',.0f')} images seen"
    left = f"; time left, by the run's own estimate: {duration(status.get('eta_sec'))}".replace(": -", f": {DASH}")
    return words + left if _lives(state, limits) else words


def gpus(state: RunState, limits: Thresholds) -> Section:
    """Each GPU of each node as NVML last showed it; figures that it does not give are not judged."""
    findings, rows = [], []
    running = _lives(state, limits)
    training = running and (state.status or {}).get("phase") == "training"
    for node in state.nodes:
        age = state.now - (number(node.get("time")) or 0.0)
        if running and node.get("gpus") and age > max(limits.gpu_silent_sec, CLOCK_SKEW):
            note = f"node {node.get('node')} has not written its GPUs' state for {rough_duration(age)}"
            findings.append(warning(note))
        for gpu in node.get("gpus") or []:
            name = f"{node.get('node')} GPU {gpu.get('index')}"
            findings += [Finding(kind, f"{name}: {note}") for kind, note in _gpu(gpu, training, limits)]
            rows.append((name, gpu.get("name"), *_gpu_cells(gpu)))
    if not rows:
        return Section("GPUs", [fact("none: the run uses no NVIDIA GPU, or none has published anything yet")])
    when = "now" if running else "when they were last read"
    if worst(finding.status for finding in findings) == "–":
        findings.insert(0, healthy(f"{len(rows)} GPU(s) within all limits, as they were {when}"))
    heads = ["GPU", "Name", "Use", "Memory", "Temperature", "Power", "Throttled by", "ECC errors"]
    return Section("GPUs", findings, [Table(f"GPUs, {when}", heads, rows)])


def _gpu(gpu: dict[str, Any], training: bool, limits: Thresholds) -> list[tuple[Status, str]]:
    """What is to be said of one GPU."""
    said: list[tuple[Status, str]] = []
    heat, use = number(gpu.get("temperature_c")), number(gpu.get("utilization"))
    used, total = number(gpu.get("memory_used_mb")), number(gpu.get("memory_total_mb"))
    if heat is not None and heat >= limits.temperature_warning_c:
        hot = heat >= limits.temperature_unhealthy_c
        limit = limits.temperature_unhealthy_c if hot else limits.temperature_warning_c
        said.append(("unhealthy" if hot else "warning", f"{heat:.0f} °C (limit {limit:g})"))
    if training and use is not None and use < limits.utilization:
        said.append(("warning", f"in use {use:.0f}% of the last moment of training (limit {limits.utilization:g}%)"))
    if used and total and used / total > limits.gpu_memory:
        said.append(("warning", f"memory {used / total:.0%} full (limit {limits.gpu_memory:.0%})"))
    reasons = [str(reason) for reason in gpu.get("throttle") or []]
    if slowed := [reason for reason in reasons if reason in THROTTLING]:
        said.append(("warning", f"slowed down: {', '.join(slowed)}: look at its cooling and its power supply"))
    elif "sw_power_cap" in reasons:
        said.append(("–", "its clock is held back by the power limit, as is usual under full load"))
    if number(gpu.get("ecc_uncorrected")):
        said.append(("unhealthy", f"{gpu['ecc_uncorrected']} uncorrected memory error(s) since the driver was loaded"))
    if number(gpu.get("ecc_corrected")):
        said.append(("–", f"{gpu['ecc_corrected']} corrected memory error(s) since the driver was loaded: harmless"))
    if use is None and heat is None and used is None:
        said.append(("–", "NVML gives no figures of it"))
    return said


def _gpu_cells(gpu: dict[str, Any]) -> list[str]:
    used, total = number(gpu.get("memory_used_mb")), number(gpu.get("memory_total_mb"))
    share = f" ({used / total:.0%})" if used is not None and total else ""
    reasons, ecc = gpu.get("throttle"), (gpu.get("ecc_corrected"), gpu.get("ecc_uncorrected"))
    known = [
        f"{value} {kind}" for value, kind in zip(ecc, ("corrected", "uncorrected"), strict=True) if value is not None
    ]
    return [
        shown(gpu.get("utilization"), ".0f", "%"),
        f"{shown(used, ',.0f')} of {shown(total, ',.0f')} MB{share}",
        shown(gpu.get("temperature_c"), ".0f", " °C"),
        f"{shown(gpu.get('power_w'), '.0f')} of {shown(gpu.get('power_limit_w'), '.0f')} W",
        DASH if reasons is None else ", ".join(map(str, reasons)) or "nothing",
        ", ".join(known) or DASH,
    ]
