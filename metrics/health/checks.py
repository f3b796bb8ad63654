"""Checks of a run's progress and GPUs, from its published state: functions from a `RunData` to findings.

They read no files, and need neither torch nor pandas: the dashboard asks them every second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ddpm.run.format import DASH, count, duration, number, plural, shown, timestamp
from metrics.health.thresholds import Thresholds
from metrics.page import MARKS, Finding, Section, Status, Table, worst
from metrics.run_data import RunData
from metrics.run_reader import CLOCK_SKEW
from metrics.starts import stamp_of, why_started

THROTTLING = ("hw_slowdown", "hw_thermal", "hw_power_brake", "sw_thermal")  # the reasons that are not normal


@dataclass(frozen=True)
class Component:
    """A part of the run that is examined: findings, and the tables that they are made from."""

    name: str
    findings: list[Finding]
    tables: list[Table] = field(default_factory=list)

    @property
    def status(self) -> Status:
        return worst(finding.status for finding in self.findings)

    @property
    def note(self) -> str:
        """The first of the worst findings, and how many more are as bad."""
        alike = [finding.note for finding in self.findings if finding.status == self.status]
        more = f" (and {len(alike) - 1} more)" if self.status in ("warning", "unhealthy") and alike[1:] else ""
        return alike[0] + more if alike else ""

    @property
    def row(self) -> tuple[str, str, str]:
        """Name, status and note, for the overview."""
        return self.name, f"{MARKS[self.status]} {self.status}", self.note

    @property
    def section(self) -> Section:
        """The component as a section of a page."""
        return Section(f"{self.name[0].upper()}{self.name[1:]}", [*self.findings, *self.tables])


def healthy(note: str) -> Finding:
    return Finding("healthy", note)


def warning(note: str) -> Finding:
    return Finding("warning", note)


def unhealthy(note: str) -> Finding:
    return Finding("unhealthy", note)


def fact(note: str) -> Finding:
    """A figure that is reported but not judged."""
    return Finding("–", note)


def progress(run: RunData, limits: Thresholds) -> Component:
    """How far the run is, whether it is alive, how often it was started, and what is wrong with its files."""
    findings = [run.condition]
    if run.status:
        findings.append(fact(_position(run)))
    starts = run.document.get("starts") or []
    if starts:
        again = len(starts) - 1
        reason = f", the last after: {starts[-1].get('cause') or 'cause not known'}" if again else ""
        status = "warning" if again > limits.restarts else "healthy"
        findings.append(Finding(status, f"{plural(again, 'restart')}{reason}"))
    since = number(run.status.get("started")) or 0.0
    if errors := [error for error in run.errors if error["time"] >= since]:
        last = f"{timestamp(errors[-1]['time'])}: {errors[-1]['message']}"
        findings.append(warning(f"{plural(len(errors), 'error')} in the log since this start, the last at {last}"))
    rows = [
        [timestamp(stamp_of(start.get("time"))), start.get("step", DASH), start.get("epoch", DASH),
         why_started(start.get("cause"))]
        for start in starts
    ]  # fmt: skip
    tables = [Table("Starts", ["Start", "Step", "Epoch", "Cause"], rows)] if len(rows) > 1 else []
    return Component("progress", [*findings, *run.findings], tables)


def _position(run: RunData) -> str:
    words = f"{run.place('epoch', 'batch', 'step')}; {plural(len(run.rows), 'epoch')} with figures, "
    words += f"{count(run.status.get('images_seen'))} images seen"
    eta = f"; time left, by the run's own estimate: {duration(run.status.get('eta_sec'))}"
    return words + eta if run.lives else words


def gpus(run: RunData, limits: Thresholds) -> Component:
    """Each GPU of each node as NVML last showed it; figures that it does not give are not judged."""
    findings, rows = [], []
    training = run.lives and run.phase == "training"
    for node in run.nodes:
        age = run.job_now - (number(node.get("time")) or 0.0)
        if run.lives and node.get("gpus") and age > max(limits.gpu_silent_sec, CLOCK_SKEW):
            findings.append(warning(f"node {node['node']} has not written its GPUs' state for {duration(age)}"))
        for gpu in node.get("gpus") or []:
            name = f"{node['node']} GPU {gpu.get('index')}"
            findings += [Finding(status, f"{name}: {note}") for status, note in _gpu(gpu, training, limits)]
            rows.append((name, gpu.get("name"), *_gpu_cells(gpu)))
    if not rows:
        return Component("GPUs", [fact("none: the run uses no NVIDIA GPU, or none has published anything yet")])
    when = "now" if run.lives else "when they were last read"
    if worst(finding.status for finding in findings) == "–":
        findings.insert(0, healthy(f"{plural(len(rows), 'GPU')} within all limits, as they were {when}"))
    heads = ["GPU", "Name", "Use", "Memory", "Temperature", "Power", "Throttled by", "ECC errors"]
    return Component("GPUs", findings, [Table(f"GPUs, {when}", heads, rows)])


def _gpu(gpu: dict[str, Any], training: bool, limits: Thresholds) -> list[tuple[Status, str]]:
    """Status and note of each finding about one GPU."""
    use, heat = number(gpu.get("utilization")), number(gpu.get("temperature_c"))
    used, total = number(gpu.get("memory_used_mb")), number(gpu.get("memory_total_mb"))
    said = _heat(heat, limits)
    if training and use is not None and use < limits.utilization:
        said.append(("warning", f"in use {use:.0f}% of the time at the last reading (limit {limits.utilization:g}%)"))
    if used and total and used / total > limits.gpu_memory:
        said.append(("warning", f"memory {used / total:.0%} full (limit {limits.gpu_memory:.0%})"))
    if training and used is not None and total and used / total < limits.little_gpu_memory:
        hint = "`python train.py --find-batch-size` tells whether a larger batch is faster"
        said.append(("warning", f"memory {used / total:.0%} full (least {limits.little_gpu_memory:.0%}): {hint}"))
    said += _throttling(gpu.get("throttle") or []) + _memory_errors(gpu)
    return said or ([("–", "NVML gives no figures for it")] if {use, heat, used} == {None} else [])


def _heat(heat: float | None, limits: Thresholds) -> list[tuple[Status, str]]:
    if heat is None or heat < limits.temperature_warning_c:
        return []
    hot = heat >= limits.temperature_unhealthy_c
    limit = limits.temperature_unhealthy_c if hot else limits.temperature_warning_c
    return [("unhealthy" if hot else "warning", f"{heat:.0f} °C (limit {limit:g})")]


def _throttling(reasons: Sequence[str]) -> list[tuple[Status, str]]:
    if slowed := [reason for reason in reasons if reason in THROTTLING]:
        return [("warning", f"slowed down: {', '.join(slowed)}: check its cooling and its power supply")]
    if "sw_power_cap" in reasons:
        return [("–", "its clock is held back by the power limit, as is usual under full load")]
    return []


def _memory_errors(gpu: dict[str, Any]) -> list[tuple[Status, str]]:
    since, said = "since the driver was loaded", []
    if errors := gpu.get("ecc_uncorrected"):
        said.append(("unhealthy", f"{plural(errors, 'uncorrected memory error')} {since}"))
    if errors := gpu.get("ecc_corrected"):
        said.append(("–", f"{plural(errors, 'corrected memory error')} {since}: harmless"))
    return said


def _gpu_cells(gpu: dict[str, Any]) -> list[str]:
    used, total = number(gpu.get("memory_used_mb")), number(gpu.get("memory_total_mb"))
    share = f" ({used / total:.0%})" if used is not None and total else ""
    errors = [f"{gpu[f'ecc_{kind}']} {kind}" for kind in ("corrected", "uncorrected") if f"ecc_{kind}" in gpu]
    reasons = gpu.get("throttle")
    return [
        shown(gpu.get("utilization"), ".0f", "%"),
        f"{count(used)} of {count(total)} MB{share}",
        shown(gpu.get("temperature_c"), ".0f", " °C"),
        f"{count(gpu.get('power_w'))} of {count(gpu.get('power_limit_w'))} W",
        DASH if reasons is None else ", ".join(reasons) or "nothing",
        ", ".join(errors) or DASH,
    ]
