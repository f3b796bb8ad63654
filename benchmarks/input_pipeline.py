"""Images delivered to the model: ours, resized on the device, against torchvision's DataLoader with PIL transforms.

    python -m benchmarks.input_pipeline --data-root DIR                     every preset, at its resolution and batch
    python -m benchmarks.input_pipeline --presets tiny --data-root DIR --share-of-step

Ours is what ddpm/training/trainer.py does: the order drawn once per epoch, a batch picked from the images on the
device, resized and scaled there. The loader's batches count once they are on the device. A side's turn begins with as
many untimed batches as the loader holds ready, so that it is measured at the pace of its workers and not at that of its
queue; it ends with a pause in which they fill it again, so that they do not work while the other side is measured.
Starting the workers is not counted. On a CPU batches are cut to 256 images. `--share-of-step` also times train.py's own
step, on a CPU only where it takes at most 3 TFLOP. That time includes the delivery of the batch.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import torch
from rich.table import Table

from benchmarks.common.other_loops import endless, pil_loader
from benchmarks.common.our_run import our_run
from benchmarks.common.rounds import arguments, in_turn, machine, publish, ratio, seconds, settings, spread, words
from ddpm.run.arguments import parse_args
from ddpm.run.config import PRESETS, TrainConfig
from ddpm.run.program import run_program
from ddpm.training import data
from ddpm.training.machine.distributed import DistContext, connect
from ddpm.training.model import flops_per_image
from ddpm.training.schedule import TrainingSchedule

CPU_BATCH = 256  # images; larger batches take a CPU long and are no faster per image
CPU_STEP = 3e12  # FLOP: a longer step is not timed on a CPU

Advance = Callable[[int], None]  # delivers that many batches, or trains on them


def our_batches(
    config: TrainConfig, images: data.Images, world: DistContext
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Images and labels as train.py and ddpm/training/trainer.py bring them to the model, epoch after epoch."""
    schedule = TrainingSchedule(config, world.world_size, len(images))
    for epoch in itertools.count():
        order = data.epoch_order(images, config, epoch)
        for batch in range(schedule.steps_per_epoch):
            chosen = data.global_slice(order, batch, config.batch_size, world)
            pixels = images.pixels.index_select(0, chosen)
            yield data.to_model_input(pixels, config.resolution), images.labels[chosen]


def loaded_batches(
    config: TrainConfig, workers: int, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The same from the loader; with a GPU, from pinned memory and without waiting for the copy."""
    for images, labels in endless(pil_loader(config, workers, pinned=device.type == "cuda")):
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def delivered(batches: Iterator) -> Advance:
    """A function that takes batches from the iterator."""

    def advance(count: int) -> None:
        for _ in range(count):
            next(batches)

    return advance


def pace(advance: Advance, at_once: int, at_least: float, device: torch.device) -> float:
    """Seconds per batch, over at least `at_least` seconds, in calls of `at_once` batches."""
    spent, done = 0.0, 0
    while spent < at_least:
        spent += seconds(lambda: advance(at_once), device)
        done += at_once
    return spent / done


def measure(
    config: TrainConfig, world: DistContext, workers: int, rounds: int, at_least: float, with_step: bool
) -> dict:
    """Seconds per batch of each side, by round."""
    device, images = world.device, data.load(config, world)[0]
    queue = max(1, 2 * workers)  # batches that the loader holds ready: prefetch_factor is 2
    ours = delivered(our_batches(config, images, world))
    loader = delivered(loaded_batches(config, workers, device))

    def our_turn() -> float:
        ours(queue)
        return pace(ours, queue, at_least, device)

    def loader_turn() -> float:
        loader(queue)
        taken = pace(loader, queue, at_least, device)
        time.sleep(2 * queue * taken)  # twice what its workers need to fill their queue
        return taken

    sides = {"ours": our_turn, "loader": loader_turn}
    for turn in sides.values():
        turn()  # to start workers and fill caches
    with ExitStack() as stack:
        if with_step:
            train = stack.enter_context(our_run(config, world)).steps
            at_once = 1 if device.type == "cpu" else 20
            train(at_once)
            sides["step"] = lambda: pace(train, at_once, at_least, device)
        return in_turn(sides, rounds)


def figures(config: TrainConfig, taken: dict[str, list[float]]) -> dict:
    """The figures of a preset, from its rounds."""
    rates = {side: spread([config.batch_size / each for each in taken[side]]) for side in ("ours", "loader")}
    return {
        "resolution": config.resolution, "batch": config.batch_size, "seconds_per_batch": taken,
        "images_per_sec": rates, "ours_is_faster": ratio(taken["loader"], taken["ours"]),
        "share_of_step": ratio(taken["ours"], taken["step"]) if "step" in taken else None,
    }  # fmt: skip


def affordable(config: TrainConfig, device: torch.device) -> bool:
    """Can a step be timed here within reasonable time?"""
    return device.type != "cpu" or config.batch_size * flops_per_image(config) <= CPU_STEP


def table(results: dict[str, dict], workers: int, device: torch.device) -> Table:
    cut = f" Batches cut to {CPU_BATCH} on a CPU." if device.type == "cpu" else ""
    page = Table(title="images/s delivered to the model", caption=f"The DataLoader has {workers} workers.{cut}")
    heads = ("ours", f"DataLoader, {workers} workers", "ours is faster", "ours, of a step")
    for head in ("preset", "px", "batch", *heads):
        page.add_column(head, justify="left" if head == "preset" else "right")
    for name, each in results.items():
        share = each["share_of_step"]
        page.add_row(
            name, str(each["resolution"]), str(each["batch"]), words(each["images_per_sec"]["ours"], 0),
            words(each["images_per_sec"]["loader"], 0), words(each["ours_is_faster"], 1, "×"),
            words({key: 100 * value for key, value in share.items()}, 3, "%") if share else "–",
        )  # fmt: skip
    return page


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__.splitlines()[0], rounds=5)
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS), help="default: all of them")
    parser.add_argument("--workers", type=int, help="of the DataLoader (default 2, with a GPU 8)")
    parser.add_argument("--seconds", type=float, default=2.0, help="least time of each side in a round (default 2)")
    parser.add_argument("--share-of-step", action="store_true", help="also time training steps")
    options, asked = settings(parser, argv)
    flags = parser.parse_known_args(argv)[1]
    if (options.workers or 0) < 0 or options.seconds <= 0:
        parser.error("--workers: at least 0; --seconds: above 0")
    with connect(asked.device) as world:
        device, about, results = world.device, machine(world.device), {}
        workers = (2 if device.type == "cpu" else 8) if options.workers is None else options.workers
        for name in options.presets:
            config = parse_args([*flags, "--preset", name])
            if device.type == "cpu":
                config = replace(config, batch_size=min(config.batch_size, CPU_BATCH))
            config = replace(config, grad_accum=1)
            with_step = options.share_of_step and affordable(config, device)
            taken = measure(config, world, workers, options.rounds, options.seconds, with_step)
            results[name] = figures(config, taken)
        document = {"machine": about, "workers": workers, "seconds": options.seconds, "presets": results}
        publish("input_pipeline", device, document, options.out, table(results, workers, device))


if __name__ == "__main__":
    sys.exit(run_program(main))
