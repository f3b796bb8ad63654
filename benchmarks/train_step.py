"""A training step: ours against a plain loop, an Accelerate loop, and the bare model.

    python -m benchmarks.train_step --preset tiny --data-root DIR
    python -m benchmarks.train_step --presets large small --data-root DIR --sides ours "plain loop" "ours under DDP"

Ours is the loop of train.py itself. All sides train the same UNet on the same data in the same batch and take turns in
each round, after a warm-up. Each is a process of its own, which is stopped, with its workers, in the others' turns. On
a CPU, the memory layout of a process can change its speed by some percent: `--sittings` starts all of them again.
Other sides are ours without one of its changes, with another optimizer, or under DDP (benchmarks/common/variants.py).
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import torch
from rich.table import Table

from benchmarks import kernels
from benchmarks.common import variants
from benchmarks.common.apart import Loop, SideProcess
from benchmarks.common.other_loops import AccelerateLoop, BareModel, PlainLoop
from benchmarks.common.our_run import our_run
from benchmarks.common.rounds import arguments, in_turn, machine, publish, ratio, seconds, settings, spread, words
from ddpm.data.emnist import CLASS_NAMES
from ddpm.run.arguments import parse_args
from ddpm.run.config import PRESETS, TrainConfig
from ddpm.run.errors import RequestError
from ddpm.run.program import run_program
from ddpm.training.machine.compiler import limit_workers
from ddpm.training.machine.distributed import DistContext, connect
from ddpm.training.machine.hardware import DTYPES, choose, peak_flops, set_up
from ddpm.training.model import flops_per_image

SIDES = ("ours", "plain loop", "accelerate loop", "bare model")
ALL_SIDES = (*SIDES, *variants.NAMES)
COMPILED = ("ours", *variants.NAMES)
COMPILED_AT_ONCE = 5  # sides on a GPU: while its backward pass compiles, each holds what a step needs, 10 to 13 GB
PROFILE = partial(kernels.measure, warmup=1, steps=4)


@contextmanager
def side(name: str, config: TrainConfig, world: DistContext) -> Iterator[tuple[Loop, dict[str, str]]]:
    """The loop of that name, and what it chose for the device."""
    flops = flops_per_image(config)
    choices = choose(config, len(CLASS_NAMES), world.device, flops)
    if name == "ours" or name in variants.NAMES:
        config = replace(config, **variants.SETTINGS.get(name, {}))
        with variants.variant(name, world.device), our_run(config, world) as ours:
            threads = ours.run.threads
            counted = {"threads": f"{threads.number} ({threads.reason})"} if world.device.type == "cpu" else {}
            yield ours, choices.in_words() | counted
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


def measure(
    configs: Mapping[str, TrainConfig], sides: Sequence[tuple[str, str]], options: Namespace
) -> Iterator[tuple[str, dict]]:
    """Each preset as soon as it is measured, with: seconds per step of each side by round, over all sittings; seconds
    until a side had done its first steps; the choices of ours; the peak memory of each side.

    Args:
        sides: (preset, side).

    Raises:
        RequestError: a side has failed. The others have been measured, unless it is ours.
    """
    limit_workers(COMPILED_AT_ONCE)  # of each side, which inherits it: with 16 workers each, none gets done
    measured = {
        preset: {"choices": {}, "seconds_to_begin": {}, "seconds_per_step": defaultdict(list), "peak_memory_gb": {}}
        for preset in configs
    }
    failed: dict[tuple[str, str], RequestError] = {}
    for sitting in range(options.sittings):
        with ExitStack() as stack:
            processes = {
                (preset, name): stack.enter_context(
                    closing(SideProcess(name, partial(side, name, configs[preset]), configs[preset].device))
                )
                for preset, name in sides
                if (preset, name) not in failed
            }
            failed |= begin(processes, measured, options.warmup)
            for preset, found in measured.items():
                if (preset, "ours") in failed:
                    continue
                turns = {
                    name: partial(turn, process, options.steps, found["peak_memory_gb"])
                    for (of, name), process in processes.items()
                    if of == preset and (of, name) not in failed
                }
                for name, taken in in_turn(turns, options.rounds, options.passes).items():
                    found["seconds_per_step"][name] += taken
                if sitting == options.sittings - 1:
                    if options.kernels:
                        found["kernels"] = processes[preset, "ours"].call(PROFILE)
                    yield preset, found
    for error in failed.values():
        raise error


def begin(
    processes: Mapping[tuple[str, str], SideProcess], measured: dict[str, dict], warmup: int
) -> dict[tuple[str, str], RequestError]:
    """Build every side and let it warm up. On a GPU, where that is mostly compilation on the CPU, several at once, a
    bare model after ours, which has compiled for it. Meanwhile the other loops, which need more memory, begin singly.

    Returns:
        What has failed.
    """

    def one(key: tuple[str, str]) -> None:
        preset, name = key
        began = time.monotonic()
        choices = processes[key].build()
        processes[key].turn(warmup)
        measured[preset]["seconds_to_begin"][name] = time.monotonic() - began
        if name == "ours":
            measured[preset]["choices"] = choices

    def one_or_two(key: tuple[str, str]) -> None:
        for each in (key, (key[0], "bare model")) if key[1] == "ours" else (key,):
            if each in processes:
                try:
                    one(each)
                except RequestError as error:
                    failed[each] = error

    failed: dict[tuple[str, str], RequestError] = {}
    at_once = COMPILED_AT_ONCE if torch.cuda.is_available() else 1
    with ThreadPoolExecutor(at_once) as compiling, ThreadPoolExecutor(1) as others:
        begun = [
            (compiling if key[1] in COMPILED or at_once == 1 else others).submit(one_or_two, key)
            for key in processes
            if key[1] != "bare model"
        ]
    for each in begun:
        each.result()
    return failed


def turn(process: SideProcess, steps: int, peaks: dict[str, float | None]) -> float:
    """Let a side train; notes the memory that it needed. Returns the seconds per step."""
    taken = process.turn(steps)
    peaks[process.name] = taken.peak_memory_gb
    return taken.seconds_per_step


def limits(config: TrainConfig, device: torch.device) -> dict:
    """FLOP per image of the model, and FLOP/s of the device: in a matrix product, and by its data sheet."""
    flops = flops_per_image(config)
    return {
        "flops_per_image": flops,
        "matmul_flops": matmul_ceiling(DTYPES[choose(config, len(CLASS_NAMES), device, flops).precision], device),
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


def asked_sides(asked: Sequence[str], presets: Sequence[str]) -> list[tuple[str, str]]:
    """(preset, side) of each: `SIDE` is measured for every preset, `PRESET:SIDE` for that one; ours always is.

    Raises:
        RequestError: there is no such side or preset here.
    """
    wanted = {(preset, "ours") for preset in presets}
    for each in asked:
        preset, _, name = each.rpartition(":")
        if name not in ALL_SIDES or preset not in ("", *presets):
            raise RequestError(f"--sides: '{each}' is none of {', '.join(ALL_SIDES)}, or one of these after a preset:")
        wanted |= {(of, name) for of in ([preset] if preset else presets)}
    if any(name == "accelerate loop" for _, name in wanted) and not find_spec("accelerate"):
        print("the Accelerate loop is left out: it needs `pip install accelerate`", file=sys.stderr)
        wanted = {(preset, name) for preset, name in wanted if name != "accelerate loop"}
    return sorted(wanted, key=lambda key: (presets.index(key[0]), ALL_SIDES.index(key[1])))


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__.splitlines()[0], rounds=5)
    parser.add_argument("--passes", type=int, default=3, help="turns of each side in a round (default 3)")
    parser.add_argument("--sittings", type=int, default=1, help="starts of all sides, with --rounds each (default 1)")
    parser.add_argument("--steps", type=int, default=20, help="of a side in a turn (default 20)")
    parser.add_argument("--warmup", type=int, default=5, help="steps of each side before the rounds (default 5)")
    parser.add_argument("--sides", nargs="+", default=list(SIDES),
                        help=f"default: {', '.join(SIDES)}. Others: {', '.join(variants.NAMES)}. PRESET:SIDE for one "
                        "of several presets")  # fmt: skip
    parser.add_argument("--presets", nargs="+", choices=PRESETS, help="several, whose sides start together")
    parser.add_argument("--kernels", action="store_true", help="also profile ours, as benchmarks.kernels does")
    options, config = settings(parser, argv)
    presets, flags = options.presets or [config.preset], parser.parse_known_args(argv)[1]
    configs = {preset: parse_args([*flags, "--preset", preset]) for preset in presets}
    with connect(config.device) as world:
        try:
            sides = asked_sides(options.sides, presets)
            for preset, measured in measure(configs, sides, options):
                tell(configs[preset], measured, world.device, options)
        except RequestError as error:
            parser.error(str(error))


def tell(config: TrainConfig, measured: dict, device: torch.device, options: Namespace) -> None:
    """Print and write what was measured for one preset."""
    found = measured.pop("kernels", None)
    measured |= limits(config, device)
    results = figures(measured, config.images_per_step)
    document = {"machine": machine(device), "preset": config.preset, "resolution": config.resolution,
                "batch": config.images_per_step, "sittings": options.sittings, "passes": options.passes,
                "steps": options.steps, **measured, "figures": results}  # fmt: skip
    name = f"train_step_{config.preset}" + ("" if config.precision == "auto" else f"_{config.precision}")
    several = options.out and len(options.presets or ()) > 1
    out = options.out.with_stem(f"{options.out.stem}_{config.preset}") if several else options.out
    publish(name, device, document, out, table(config, results))
    if found:
        out = out and out.with_stem(f"kernels_{out.stem}")
        kernels.tell(config, found, device, out, kernels.TOP)


if __name__ == "__main__":
    sys.exit(run_program(main))
