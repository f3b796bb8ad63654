"""A training step: ours against a plain loop, an Accelerate loop, and the bare model.

    python -m benchmarks.train_step --preset tiny --data-root DIR
    python -m benchmarks.train_step --preset large --data-root DIR --steps 20

Ours is the loop of train.py itself. All sides train the same UNet on the same data in the same batch and take turns in
each round, after a warm-up. The loaders' workers fill their queues while other sides run, so that the loops that have
workers are shown at their best. Peak memory is each side's own: what it allocates, and what its steps add to that.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any

import torch
from rich.table import Table

from benchmarks.other_loops import AccelerateLoop, BareModel, PlainLoop
from benchmarks.our_run import our_run
from benchmarks.rounds import arguments, in_turn, machine, publish, ratio, seconds, settings, spread, words
from ddpm.config import TrainConfig
from ddpm.distributed import World, connect
from ddpm.hardware import DTYPES, peak_flops

SIDES = ("ours", "plain loop", "accelerate loop", "bare model")


def own_memory(make: Callable[[], Any], device: torch.device) -> tuple[Any, Callable[[], float]]:
    """What `make` makes, and how many GB (2^30 bytes) it needs at its peak: call that after `steps`; NaN on a CPU."""
    if device.type != "cuda":
        return make(), lambda: float("nan")
    before = torch.cuda.memory_allocated(device)
    made = make()
    made.steps(1)  # gradients come and go, but the optimizer's moments stay
    held = torch.cuda.memory_allocated(device) - before

    def peak() -> float:
        torch.cuda.reset_peak_memory_stats(device)
        resting = torch.cuda.memory_allocated(device)
        made.steps(2)
        return (held + torch.cuda.max_memory_allocated(device) - resting) / 2**30

    return made, peak


def matmul_ceiling(dtype: torch.dtype, device: torch.device) -> float:
    """The FLOP/s that a large matrix product reaches here: the best of ten."""
    size = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: a @ b, device) for _ in range(11))


def measure(config: TrainConfig, world: World, names: list[str], rounds: int, steps: int, warmup: int) -> dict:
    """Seconds per step of each side by round, and what else there is to know of each."""
    device = world.device
    with ExitStack() as stack:
        ours = stack.enter_context(our_run(config, world))
        choices = ours.run.choices
        makers: dict[str, Callable[[], Any]] = {
            "ours": lambda: ours,
            "plain loop": lambda: PlainLoop(config, device),
            "accelerate loop": lambda: AccelerateLoop(config, device),
            "bare model": lambda: BareModel(config, choices, device),
        }
        sides, peaks = {}, {}
        for name in names:
            sides[name], peaks[name] = own_memory(makers[name], device)
            sides[name].steps(warmup)

        def turn(name: str) -> float:
            sides[name].steps(1)  # the queues and caches are its own again
            return seconds(lambda: sides[name].steps(steps), device) / steps

        taken = in_turn({name: lambda name=name: turn(name) for name in names}, rounds)
        return {
            "choices": choices.in_words(),
            "flops_per_image": ours.run.flops_per_image,
            "matmul_flops": matmul_ceiling(DTYPES[choices.precision], device),
            "peak_flops": peak_flops(device),
            "seconds_per_step": taken,
            "peak_memory_gb": {name: peak() for name, peak in peaks.items()},
        }


def figures(measured: dict, batch: int) -> dict[str, dict]:
    """What is told of each side, from its rounds."""
    told = {}
    for name, taken in measured["seconds_per_step"].items():
        rates = [batch / each for each in taken]
        tflops = spread(rates)["median"] * measured["flops_per_image"] / 1e12
        told[name] = {
            "ms_per_step": spread([1000 * each for each in taken]),
            "images_per_sec": spread(rates),
            "tflops": tflops,
            "share_of_matmul": 1e12 * tflops / measured["matmul_flops"],
            "mfu": 1e12 * tflops / measured["peak_flops"] if measured["peak_flops"] else None,
            "peak_memory_gb": measured["peak_memory_gb"][name],
            "ours_is_faster": ratio(taken, measured["seconds_per_step"]["ours"]),
        }
    return told


def table(config: TrainConfig, told: dict[str, dict]) -> Table:
    page = Table(title=f"a training step: {config.preset}, batch {config.images_per_step}, {config.resolution} px")
    heads = ("images/s", "ms per step", "TFLOP/s", "of matmul", "of data sheet", "peak GB", "ours is faster")
    for head in ("side", *heads):
        page.add_column(head, justify="left" if head == "side" else "right")
    for name, each in told.items():
        page.add_row(
            name, words(each["images_per_sec"]), words(each["ms_per_step"]), f"{each['tflops']:.3g}",
            f"{each['share_of_matmul']:.1%}", f"{each['mfu']:.1%}" if each["mfu"] else "–",
            f"{each['peak_memory_gb']:.2f}" if each["peak_memory_gb"] > 0 else "–",
            words(each["ours_is_faster"], 2, "×"),
        )  # fmt: skip
    return page


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__.splitlines()[0], rounds=5)
    parser.add_argument("--steps", type=int, default=20, help="of each side in a round (default 20)")
    parser.add_argument("--warmup", type=int, default=5, help="steps of each side before the rounds (default 5)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="ours is always among them")
    options, config = settings(parser, argv)
    names = [name for name in SIDES if name in {"ours", *options.sides}]
    if "accelerate loop" in names and not find_spec("accelerate"):
        print("the Accelerate loop is left out: it needs `pip install accelerate`", file=sys.stderr)
        names.remove("accelerate loop")
    with connect() as world:
        about = machine(world.device)
        measured = measure(config, world, names, options.rounds, options.steps, options.warmup)
        told = figures(measured, config.images_per_step)
        document = {"machine": about, "preset": config.preset, "resolution": config.resolution,
                    "batch": config.images_per_step, "steps": options.steps, **measured, "figures": told}  # fmt: skip
        publish(f"train_step_{config.preset}", world.device, document, options.out, table(config, told))


if __name__ == "__main__":
    main()
