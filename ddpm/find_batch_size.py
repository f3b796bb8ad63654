"""`python train.py --find-batch-size`: which batch sizes fit this device, and how fast each is. Changes no run."""

from __future__ import annotations

import gc
import itertools
import math
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ddpm.run.config import TrainConfig, preset
from ddpm.run.errors import RequestError, out_of_memory
from ddpm.run.format import shown
from ddpm.training import data
from ddpm.training.machine import hardware
from ddpm.training.machine.control_groups import memory_left
from ddpm.training.machine.distributed import DistContext
from ddpm.training.machine.hardware import Choices
from ddpm.training.machine.threads import settle
from ddpm.training.model import activation_bytes, flops_per_image
from ddpm.training.trainer import Trainer

WARM_UP, MEASURED = 3, 8  # steps: in the first ones cuDNN times its algorithms, and memory is asked for
LONGEST = 10.0  # seconds of a step on a CPU, after which no larger batch is tried
BISECTIONS = 3  # between the largest size that fits and the smallest that does not
ROOM = 0.9  # of a GPU's memory that a run may take: sampling and other libraries need some too
RAM = 0.5  # of a host's available memory that activations may take
FAST = 0.95  # of the most images/s
GAIN = 1.02  # twice the images for less than this factor in images/s are no gain


@dataclass(frozen=True)
class Probe:
    """What training with a batch size takes."""

    batch_size: int
    seconds: float  # of a step, median
    memory_mb: float  # the most in use, 2^20 bytes; NaN on a CPU

    @property
    def images_per_sec(self) -> float:
        return self.batch_size / self.seconds


def find_batch_size(config: TrainConfig, world: DistContext) -> None:
    """Try batch sizes on this device with some steps of training each, and print a table and the flags to copy.

    Raises:
        RequestError: there are several processes, the data are missing, or not even one image fits.
    """
    if world.world_size > 1:
        raise RequestError("--find-batch-size tries sizes on one device: start it as python train.py, without torchrun")
    device = world.device
    if fewer := settle(device):
        print(fewer)
    images, _ = data.load(config, world)
    choices = hardware.choose(config, images.num_classes, device, flops_per_image(config))
    compiled = "compiled" if choices.compile else "not compiled"
    if choices.compile and config.compile is None:  # each size would be compiled anew, minutes for the large presets
        choices = replace(choices, compile=False)
        compiled = "not compiled, though a run here is: --compile measures that, minutes for each size"
    print(f"{hardware.device_name(device)}, {choices.precision}, {compiled}; {MEASURED} steps of each size", flush=True)

    def attempt(size: int) -> Probe | None:
        found = probe(replace(config, batch_size=size, grad_accum=1), images, choices, world)
        said = "does not fit" if found is None else f"{found.images_per_sec:,.1f} images/s"
        print(f"batch size {size}: {said}", flush=True)
        return found

    drawn = data.images_per_epoch(config, len(images), images.num_classes)
    probes = search(attempt, config.batch_size, drawn, to_the_limit=device.type == "cuda")
    if not probes:
        raise RequestError("not even one image fits: take a smaller --preset or --resolution")
    memory_mb = torch.cuda.get_device_properties(device).total_memory / 2**20 if device.type == "cuda" else None
    print("\n".join(["", *table(probes, drawn), "", *advice(probes, config, memory_mb)]))


def search(attempt: Callable[[int], Probe | None], first: int, most: int, to_the_limit: bool) -> list[Probe]:
    """Probe a batch size, its doubles and its halves.

    Args:
        attempt: probes a size; None if it does not fit.
        first: the size to begin with.
        most: the largest size that makes sense.
        to_the_limit: double it until it no longer fits, then try sizes in between; otherwise until that no longer gains
            speed, or a step takes too long.

    Returns:
        The probes of the sizes that fit, by size.
    """
    probes: dict[int, Probe] = {}
    too_large: list[int] = []

    def fits(size: int) -> bool:
        found = attempt(size)
        if found is None:
            too_large.append(size)
        else:
            probes[size] = found
        return found is not None

    size = min(first, most)
    while size <= most and fits(size) and (to_the_limit or _worth_doubling(probes, size)):
        size *= 2
    size = min(first, most) // 2
    while size and (not probes or probes[min(probes)].images_per_sec >= FAST * _fastest(probes.values())):
        fits(size)
        size //= 2
    for _ in range(BISECTIONS if to_the_limit and probes and too_large else 0):
        middle = (max(probes) + min(too_large)) // 2
        if middle == max(probes):
            break
        fits(middle)
    return [probes[size] for size in sorted(probes)]


def _worth_doubling(probes: dict[int, Probe], size: int) -> bool:
    """Has one of the last two doublings gained speed (or were there fewer), and does a step not take too long yet?"""
    last = [probes.get(size // part) for part in (4, 2, 1)]
    gains = [
        not before or after.images_per_sec >= GAIN * before.images_per_sec
        for before, after in itertools.pairwise(last)
        if after
    ]
    return any(gains) and probes[size].seconds <= LONGEST


def probe(config: TrainConfig, images: data.Images, choices: Choices, world: DistContext) -> Probe | None:
    """Train some steps with `config.batch_size`; None if it does not fit."""
    if not _affordable(config, world.device):
        return None
    try:
        return _measured(config, images, choices, world)
    except Exception as error:
        if out_of_memory(error, "") is None:
            raise
        return None
    finally:
        gc.collect()
        if world.device.type == "cuda":
            torch.cuda.empty_cache()  # all that it took is free for the next size


def _measured(config: TrainConfig, images: data.Images, choices: Choices, world: DistContext) -> Probe:
    """What steps of training take: forward, backward, optimizer, averages, and the choice of the images."""
    device, steps = world.device, WARM_UP + MEASURED
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    if choices.compile:  # the compiler gives up after a few sizes of one function
        torch.compiler.reset()
    trainer = Trainer(replace(config, log_every=steps), images.class_names, choices, world)
    chosen = torch.arange(config.batch_size, device=device) % len(images)
    seconds = []
    for step in range(steps):
        began = time.perf_counter()
        trainer.step(images, chosen, step * config.batch_size, config.lr)
        hardware.synchronize(device)
        seconds.append(time.perf_counter() - began)
        if device.type == "cpu" and seconds[-1] > LONGEST:
            break
    return Probe(config.batch_size, statistics.median(seconds[WARM_UP:] or seconds), hardware.memory_mb(device)[2])


def _affordable(config: TrainConfig, device: torch.device) -> bool:
    """Has a host the memory for a batch? A GPU says so itself; a host's system would end the process."""
    meminfo = Path("/proc/meminfo")  # of Linux
    if device.type == "cuda" or not meminfo.exists():
        return True
    available = 1024 * int(re.search(r"MemAvailable: +(\d+) kB", meminfo.read_text("ascii"))[1])
    of_job = memory_left()
    most = available if of_job is None else min(available, of_job)
    return activation_bytes(config, config.batch_size) < RAM * most


def _fastest(probes: Iterable[Probe]) -> float:
    return max(each.images_per_sec for each in probes)


# ---- words -----------------------------------------------------------------------------------------------------------


def table(probes: list[Probe], drawn: int) -> Iterator[str]:
    """A line for each size, below a head; an epoch draws `drawn` images."""
    yield f"{'batch size':>10}  {'images/s':>10}  {'ms/step':>9}  {'memory MB':>10}  {'steps/epoch':>11}"
    for each in probes:
        yield (
            f"{each.batch_size:>10,}  {each.images_per_sec:>10,.1f}  {1000 * each.seconds:>9,.1f}  "
            f"{shown(each.memory_mb, ',.0f'):>10}  {drawn // each.batch_size:>11,}"
        )


def advice(probes: list[Probe], config: TrainConfig, memory_mb: float | None) -> Iterator[str]:
    """What the sizes are good for, with the flags to copy; `memory_mb` of the GPU, 2^20 bytes, None on a CPU."""
    small = next(each for each in probes if each.images_per_sec >= FAST * _fastest(probes))
    yield f"smallest within {1 - FAST:.0%} of the fastest: {_flags(small, config)}"
    roomy = [each for each in probes if memory_mb and each.memory_mb <= ROOM * memory_mb]
    if roomy:
        large = roomy[-1]
        share = f"{large.memory_mb / memory_mb:.0%} of {memory_mb:,.0f} MB"
        yield f"largest that leaves room ({share}): {_flags(large, config)}"
    yield "A larger batch makes fewer steps of an epoch, so it may learn less in the same time."
    muon = ", least of all with Muon" if config.optimizer == "muon" else ""
    rate, batch = rate_of(config)
    yield (
        f"The learning rates follow from {rate:g} at {batch:,} images a step by the square-root rule, usual for AdamW "
        f"(Malladi et al. 2022); by the linear rule (Goyal et al. 2017) in brackets. Neither is sure{muon}: compare."
    )


def rate_of(config: TrainConfig) -> tuple[float, int]:
    """`--lr`, and the images a step for which it is meant: the preset's batch, unless the rate was chosen for this."""
    chosen = config.scale_lr == "none" and config.lr != preset(config.preset, recipe=config.recipe).lr
    return config.lr, config.images_per_step if chosen else config.usual_batch


def _flags(found: Probe, config: TrainConfig) -> str:
    """The flags of a size, with a learning rate by either rule, that replace those of the same names."""
    rate, batch = rate_of(config)
    larger = found.batch_size / batch
    scaled = " --scale-lr none" if config.scale_lr != "none" else ""  # else --lr would be scaled again
    accumulated = " --grad-accum 1" if config.grad_accum > 1 else ""
    rates = f"--lr {rate * math.sqrt(larger):.3g} (linear: {rate * larger:.3g})"
    return f"--batch-size {found.batch_size}{accumulated}{scaled} {rates}"
