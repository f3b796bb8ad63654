"""`python train.py --find-batch-size`: which batch sizes fit this device, and how fast each is. Changes no run."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from ddpm.run.config import TrainConfig
from ddpm.run.errors import RequestError, out_of_memory
from ddpm.training import data, hardware
from ddpm.training.distributed import DistContext
from ddpm.training.hardware import Choices
from ddpm.training.model import activation_bytes, flops_per_image
from ddpm.training.schedule import TrainingSchedule
from ddpm.training.threads import settle
from ddpm.training.trainer import Trainer

WARM_UP, MEASURED = 3, 8  # steps: in the first ones cuDNN times its algorithms, and memory is asked for
LONGEST = 10.0  # seconds of a step on a CPU; larger sizes are not tried
BISECTIONS = 3  # between the largest size that fits and the smallest that does not
ROOM = 0.9  # of a GPU's memory that a run may take: sampling and other libraries need some too
RAM = 0.5  # of a host's free memory that activations may take
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
    if config.compile is None:  # each size would be compiled anew, minutes for the large presets
        choices = replace(choices, compile=False)
    compiled = "compiled" if choices.compile else "not compiled, which --compile changes"
    print(f"{hardware.device_name(device)}, {choices.precision}, {compiled}; {MEASURED} steps of each size", flush=True)

    def attempt(size: int) -> Probe | None:
        found = probe(replace(config, batch_size=size, grad_accum=1), images, choices, world)
        said = "does not fit" if found is None else f"{found.images_per_sec:,.1f} images/s"
        print(f"batch size {size}: {said}", flush=True)
        return found

    probes = search(attempt, config.batch_size, len(images), to_the_limit=device.type == "cuda")
    if not probes:
        raise RequestError("not even one image fits: take a smaller --preset or --resolution")
    memory_mb = torch.cuda.get_device_properties(device).total_memory / 2**20 if device.type == "cuda" else None
    print("\n".join(["", *table(probes, len(images)), "", *advice(probes, config, len(images), memory_mb)]))


def search(attempt: Callable[[int], Probe | None], first: int, most: int, to_the_limit: bool) -> list[Probe]:
    """Probe a batch size, its doubles and its halves.

    Args:
        attempt: probes a size; None if it does not fit.
        first: the size to begin with.
        most: the largest size that makes sense.
        to_the_limit: double it until it no longer fits, instead of until that no longer gains speed; then try sizes in
            between.

    Returns:
        The probes of the sizes that fit, by size.
    """
    probes: dict[int, Probe] = {}
    too_large, size, gains = None, min(first, most), [True, True]
    while size <= most and (to_the_limit or any(gains[-2:])):
        if (found := attempt(size)) is None:
            too_large = size
            break
        before = probes.get(size // 2)
        gains.append(before is None or found.images_per_sec >= GAIN * before.images_per_sec)
        probes[size], size = found, 2 * size
    size = min(first, most) // 2
    while size and (not probes or probes[min(probes)].images_per_sec >= FAST * _fastest(probes.values())):
        if (found := attempt(size)) is None:
            too_large = size
        else:
            probes[size] = found
        size //= 2
    for _ in range(BISECTIONS if too_large and probes else 0):
        middle = (max(probes) + too_large) // 2
        if middle in (max(probes), too_large):
            break
        if (found := attempt(middle)) is None:
            too_large = middle
        else:
            probes[middle] = found
    return [probes[size] for size in sorted(probes)]


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
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return device.type == "cuda" or activation_bytes(config, config.batch_size) < RAM * free


def _fastest(probes: Iterator[Probe]) -> float:
    return max(each.images_per_sec for each in probes)


# ---- words -----------------------------------------------------------------------------------------------------------


def table(probes: list[Probe], images: int) -> Iterator[str]:
    """A line for each size, below a head."""
    yield f"{'batch size':>10}  {'images/s':>10}  {'ms/step':>9}  {'memory MB':>10}  {'steps/epoch':>11}"
    for each in probes:
        memory = f"{each.memory_mb:,.0f}" if each.memory_mb == each.memory_mb else "–"
        yield (
            f"{each.batch_size:>10,}  {each.images_per_sec:>10,.1f}  {1000 * each.seconds:>9,.1f}  {memory:>10}  "
            f"{images // each.batch_size:>11,}"
        )


def advice(probes: list[Probe], config: TrainConfig, images: int, memory_mb: float | None) -> Iterator[str]:
    """What the sizes are good for, with the flags to copy.

    Args:
        images: of the training split.
        memory_mb: of the GPU, 2^20 bytes; None on a CPU.
    """
    small = next(each for each in probes if each.images_per_sec >= FAST * _fastest(probes))
    yield f"smallest within {1 - FAST:.0%} of the fastest: {_flags(small, config, images)}"
    roomy = [each for each in probes if memory_mb and each.memory_mb <= ROOM * memory_mb]
    if roomy:
        large = roomy[-1]
        share = f"{large.memory_mb / memory_mb:.0%} of {memory_mb:,.0f} MB"
        yield f"largest that leaves room ({share}): {_flags(large, config, images)}"
    yield "A larger batch makes fewer steps of an epoch, so it may learn less in the same time."
    yield (
        "The learning rate is that of the square-root rule, usual for AdamW (Malladi et al. 2022); the linear rule "
        "(Goyal et al. 2017) is in brackets. Neither is sure: compare."
    )


def _flags(found: Probe, config: TrainConfig, images: int) -> str:
    """The flags of a size, with a learning rate by either rule."""
    rates = []
    for rule in ("sqrt", "linear"):
        scaled = replace(config, batch_size=found.batch_size, grad_accum=1, scale_lr=rule, warmup_steps=0, epochs=1000)
        rates.append(TrainingSchedule(scaled, 1, max(images, found.batch_size)).peak_lr)
    return f"--batch-size {found.batch_size} --lr {rates[0]:.3g} (linear: {rates[1]:.3g})"
