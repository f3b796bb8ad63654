"""What a run has cost so far: energy, GPU-hours and mean utilisation, over all its nodes and starts.

Killed starts count up to their last sign of life: everything is read from the files that they left.
"""

from __future__ import annotations

from ddpm.run.metrics import ENERGY_WH, GPU_HOURS, GPU_UTILIZATION, Metric
from ddpm.run.paths import RunPaths
from metrics.files import energy_wh, mean_utilization, read_gpus, starts_of
from metrics.starts import published_starts


def cost_so_far(paths: RunPaths) -> dict[Metric, float | None]:
    """The figures of cost of a run; None where they were not measured, and GPU-hours None on a CPU."""
    measured = [start for node in read_gpus(paths) for start in starts_of(node)]
    percent, _ = mean_utilization(measured)
    gpu_seconds = sum(start.gpu_seconds for start in published_starts(paths))
    return {
        ENERGY_WH: energy_wh(measured),
        GPU_HOURS: gpu_seconds / 3600 or None,
        GPU_UTILIZATION: None if percent is None else percent / 100,
    }


def cost_words(cost: dict[Metric, float | None]) -> str:
    """`energy 1,234.5 Wh, 3.200 GPU-hours, GPUs in use 85.0% of the time`."""
    energy, hours, use = (cost[metric] for metric in (ENERGY_WH, GPU_HOURS, GPU_UTILIZATION))
    words = ["energy not measured" if energy is None else f"energy {ENERGY_WH.text(energy)} Wh"]
    words += [] if hours is None else [f"{GPU_HOURS.text(hours)} GPU-hours"]
    words += [] if use is None else [f"GPUs in use {GPU_UTILIZATION.text(use)} of the time"]
    return ", ".join(words)
