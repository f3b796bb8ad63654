"""A training step: ours against a plain loop, an Accelerate loop, and the bare model.

    python -m benchmarks.train_step --preset tiny --data-root DIR
    python -m benchmarks.train_step --preset large --data-root DIR --steps 20

Ours is the loop of train.py itself. All sides train the same UNet on the same data in the same batch and take turns in
each round, after a warm-up. Each is a process of its own, which is stopped, with its workers, in the others' turns. On
a CPU, the memory layout of a process can change its speed by some percent: `--sittings` starts all of them again.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from importlib.util import find_spec

import torch
from rich.table import Table

from benchmarks import variants
from benchmarks.apart import Loop, SideProcess
from benchmarks.other_loops import AccelerateLoop, BareModel, PlainLoop
from benchmarks.our_run import our_run
from benchmarks.rounds import arguments, in_turn, machine, publish, ratio, seconds, settings, spread, words
from ddpm.run.config import TrainConfig
from ddpm.run.errors import RequestError
from ddpm.run.program import run_program
from ddpm.training.distributed import DistContext, connect
from ddpm.training.hardware import DTYPES, choose, peak_flops, set_up
from ddpm.training.model import flops_per_image

SIDES = ("ours", "plain loop", "accelerate loop", "bare model")
COMPILED_AT_ONCE = 4  # sides that compile at the same time, on a GPU


@contextmanager
def side(name: str, config: TrainConfig, world: DistContext) -> Iterator[tuple[Loop, dict[str, str]]]:
    """The loop of that name, and what it chose for the device."""
    flops = flops_per_image(config)
    choices = choose(config, world.device, flops)
    if name == "ours" or name in variants.NAMES:
        with variants.variant(name, world.device), our_run(config, world) as ours:
            yield ours, choices.in_words()
    elif name == "bare model":
        set_up(world.device, config.deterministic)
        yield BareModel(config, choices, world.device), choices.in_words()
    else:
        yield {"plain loop": PlainLoop, "accelerate loop": AccelerateLoop}[name](config, world.device), {}


def matmul_ceiling(dtype: torch.dtype, device: torch.device) -> float:
    """The FLOP/s that a large matrix product reaches here: the best of ten."""
    size = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: a @ b, device) for _ in range(11))


def measure(config: TrainConfig, names: Sequence[str], options: Namespace) -> dict:
    """Seconds per step of each side by round, over all sittings; the choices of ours; the peak memory of each side.

    Raises:
        RequestError: a side has failed.
    """
    taken: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(options.sittings):
        rounds, chosen, peaks = sitting(config, names, options)
        for name, seconds_per_step in rounds.items():
            taken[name] += seconds_per_step
    return {"choices": chosen["ours"], "seconds_per_step": taken, "peak_memory_gb": peaks}


def sitting(config: TrainConfig, names: Sequence[str], options: Namespace) -> tuple[dict, dict, dict]:
    """All rounds of one start of the sides: seconds per step by round, what they chose, the memory they needed."""
    with ExitStack() as stack:
        sides = [
            stack.enter_context(closing(SideProcess(name, partial(side, name, config), config.device)))
            for name in names
        ]
        peaks: dict[str, float | None] = {}

        def begin(side: SideProcess) -> dict[str, str]:
            choices = side.build()
            side.turn(options.warmup)
            return choices

        with ThreadPoolExecutor(
            1 if config.device == "cpu" or not torch.cuda.is_available() else COMPILED_AT_ONCE
        ) as pool:
            chosen = dict(zip(names, pool.map(begin, sides), strict=True))

        def turn(side: SideProcess) -> float:
            taken = side.turn(options.steps)
            peaks[side.name] = taken.peak_memory_gb
            return taken.seconds_per_step

        turns = {each.name: partial(turn, each) for each in sides}
        return in_turn(turns, options.rounds, options.passes), chosen, peaks


def limits(config: TrainConfig, device: torch.device) -> dict:
    """FLOP per image of the model, and FLOP/s of the device: in a matrix product, and by its data sheet."""
    flops = flops_per_image(config)
    return {
        "flops_per_image": flops,
        "matmul_flops": matmul_ceiling(DTYPES[choose(config, device, flops).precision], device),
        "peak_flops": peak_flops(device),
    }


def figures(measured: dict, batch: int) -> dict[str, dict]:
    """The figures of each side, from its rounds."""
    results = {}
    for name, taken in measured["seconds_per_step"].items():
        rates = [batch / each for each in taken]
        tflops = spread(rates)["median"] * measured["flops_per_image"] / 1e12
        results[name] = {
            "ms_per_step": spread([1000 * each for each in taken]),
            "images_per_sec": spread(rates),
            "tflops": tflops,
            "share_of_matmul": 1e12 * tflops / measured["matmul_flops"],
            "mfu": 1e12 * tflops / measured["peak_flops"] if measured["peak_flops"] else None,
            "peak_memory_gb": measured["peak_memory_gb"][name],
            "ours_is_faster": ratio(taken, measured["seconds_per_step"]["ours"]),
        }
    return results


def table(config: TrainConfig, results: dict[str, dict]) -> Table:
    page = Table(title=f"a training step: {config.preset}, batch {config.images_per_step}, {config.resolution} px")
    columns = {
        "images/s": lambda each: words(each["images_per_sec"]),
        "ms per step": lambda each: words(each["ms_per_step"]),
        "TFLOP/s": lambda each: f"{each['tflops']:.3g}",
        "of matmul": lambda each: f"{each['share_of_matmul']:.1%}",
        "ours is faster": lambda each: words(each["ours_is_faster"], 2, "×"),
    }
    if all(each["mfu"] for each in results.values()):
        columns["of data sheet"] = lambda each: f"{each['mfu']:.1%}"
    if all(each["peak_memory_gb"] for each in results.values()):  # a CPU's is not known
        columns["peak GB"] = lambda each: f"{each['peak_memory_gb']:.2f}"
    page.add_column("side")
    for head in columns:
        page.add_column(head, justify="right")
    for name, each in results.items():
        page.add_row(name, *(cell_of(each) for cell_of in columns.values()))
    return page


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__.splitlines()[0], rounds=5)
    parser.add_argument("--passes", type=int, default=3, help="turns of each side in a round (default 3)")
    parser.add_argument("--sittings", type=int, default=1, help="starts of all sides, with --rounds each (default 1)")
    parser.add_argument("--steps", type=int, default=20, help="of a side in a turn (default 20)")
    parser.add_argument("--warmup", type=int, default=5, help="steps of each side before the rounds (default 5)")
    parser.add_argument(
        "--sides",
        nargs="+",
        choices=(*SIDES, *variants.NAMES),
        default=list(SIDES),
        help="default: the first four; ours is always among them",
    )
    options, config = settings(parser, argv)
    names = [name for name in (*SIDES, *variants.NAMES) if name in {"ours", *options.sides}]
    if "accelerate loop" in names and not find_spec("accelerate"):
        print("the Accelerate loop is left out: it needs `pip install accelerate`", file=sys.stderr)
        names.remove("accelerate loop")
    with connect(config.device) as world:
        document = {"machine": machine(world.device), "preset": config.preset, "resolution": config.resolution,
                    "batch": config.images_per_step, "sittings": options.sittings, "passes": options.passes,
                    "steps": options.steps}  # fmt: skip
        try:
            measured = measure(config, names, options)
        except RequestError as error:
            parser.error(str(error))
        measured |= limits(config, world.device)
        results = figures(measured, config.images_per_step)
        document |= {**measured, "figures": results}
        name = f"train_step_{config.preset}" + ("" if config.precision == "auto" else f"_{config.precision}")
        publish(name, world.device, document, options.out, table(config, results))


if __name__ == "__main__":
    sys.exit(run_program(main))
