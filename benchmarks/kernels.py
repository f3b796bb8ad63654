"""Where a training step's time goes on a GPU: its kernels, by kind and one by one.

    python -m benchmarks.kernels --preset large --data-root DIR

The loop of train.py trains under torch.profiler after a warm-up. A kernel's time is its own on the device; what is left
of the step's wall time is the device waiting.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

import torch
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from benchmarks.common.our_run import OurRun, our_run
from benchmarks.common.rounds import arguments, machine, publish, seconds, settings
from ddpm.run.config import TrainConfig
from ddpm.run.program import run_program
from ddpm.training.machine.distributed import connect

KINDS = {  # a kernel is of the first kind whose words its name holds
    "layout copies": r"nchwToNhwc|nhwcToNchw|nchw_to_nhwc|nhwc_to_nchw",
    "fused by the compiler": r"^triton_",
    "convolutions and products": r"cudnn|cutlass|xmma|gemm|conv|implicit|wgrad|dgrad|fprop|splitK|cublas|nvjet|"
    r"flash|fmha",
    "optimizer and average": r"multi_tensor|adam|lerp",
}
OTHERS = "others"
TOP = 20


def kind_of(kernel: str) -> str:
    return next((kind for kind, words in KINDS.items() if re.search(words, kernel, re.IGNORECASE)), OTHERS)


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__.splitlines()[0], rounds=1)
    parser.add_argument("--steps", type=int, default=5, help="that are profiled (default 5)")
    parser.add_argument("--warmup", type=int, default=5, help="steps before (default 5)")
    parser.add_argument("--top", type=int, default=TOP, help=f"kernels to list (default {TOP})")
    options, config = settings(parser, argv)
    with connect(config.device) as world:
        with our_run(config, world) as ours:
            found = measure(ours, world.device, options.warmup, options.steps)
        tell(config, found, world.device, options.out, options.top)


def tell(config: TrainConfig, found: dict, device: torch.device, out: Path | None, top: int) -> None:
    """Print and write what `measure` has found."""
    document = {"machine": machine(device), "preset": config.preset, "batch": config.images_per_step, **found}
    publish(f"kernels_{config.preset}", device, document, out, table(document, top))


def measure(ours: OurRun, device: torch.device, warmup: int, steps: int) -> dict:
    """Milliseconds of a step and of its kernels."""
    profiler, wall = profiled(ours, device, warmup, steps)
    return {"ms_per_step": 1000 * wall, **figures(profiler, steps, device)}


def profiled(ours: OurRun, device: torch.device, warmup: int, steps: int) -> tuple[profile, float]:
    """A profile of `steps` steps, and the seconds that each took."""
    ours.steps(warmup)
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity], acc_events=True) as profiler:
        taken = seconds(lambda: ours.steps(steps), device)
    return profiler, taken / steps


def figures(profiler: profile, steps: int, device: torch.device) -> dict:
    """Milliseconds and launches per step, by kind and by kernel, the longest first."""
    own = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    kernels = {}
    for event in profiler.key_averages():
        microseconds = getattr(event, own)
        if microseconds:
            kernels[event.key] = {"ms": microseconds / 1000 / steps, "launches": event.count / steps}
    kinds: dict[str, dict[str, float]] = defaultdict(lambda: {"ms": 0.0, "launches": 0.0})
    for name, each in kernels.items():
        for figure, value in each.items():
            kinds[kind_of(name)][figure] += value
    longest_first = dict(sorted(kernels.items(), key=lambda item: -item[1]["ms"]))
    return {"kinds": dict(kinds), "kernels": longest_first}


def table(document: dict, top: int) -> Table:
    wall = document["ms_per_step"]
    page = Table(title=f"kernels of a step: {document['preset']}, batch {document['batch']}, {wall:.1f} ms")
    for head in ("kernel", "ms", "of the step", "launches"):
        page.add_column(head, justify="left" if head == "kernel" else "right", overflow="fold")
    rows = [*document["kinds"].items(), *list(document["kernels"].items())[:top]]
    for number, (name, each) in enumerate(rows):
        if number == len(document["kinds"]):
            page.add_section()
        page.add_row(name[:90], f"{each['ms']:.2f}", f"{each['ms'] / wall:.1%}", f"{each['launches']:g}")
    return page


if __name__ == "__main__":
    sys.exit(run_program(main))
