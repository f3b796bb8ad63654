"""What the parts of a training step that are not learning cost, measured by switching each off.

    python -m benchmarks.overhead --preset tiny --data-root DIR

A run of train.py trains on a pseudo-terminal that shows its dashboard. In each round every part is switched off in
turn, and all of them at once; the time that a step then saves is the cost of the part. Validation and checkpoints come
once an epoch: their seconds are measured directly, and divided by the steps of an epoch. On a CPU each part is also
timed in place, which is less sensitive to a noisy machine.
"""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial, wraps
from typing import Any, TextIO
from unittest.mock import patch

import torch
from rich.table import Table

import train
from benchmarks.common.our_run import OurRun, our_run
from benchmarks.common.rounds import ALL, arguments, in_turn, machine, publish, seconds, settings, spread, words
from ddpm.run.config import TrainConfig
from ddpm.run.program import run_program
from ddpm.training.machine.distributed import DistContext, connect
from metrics.live.status import StatusPublisher
from metrics.live.terminal import TerminalView

ROWS, COLUMNS = 40, 120
IN_PLACE = 3  # steps that are timed in place, as a multiple of the steps of a turn


def extra_parts(run: train.Run) -> dict[str, tuple[Any, str, Callable]]:
    """The parts of a step that are not learning, by name: owner and name of the function, and a stub in its place."""
    trainer = run.trainer
    norm = torch.ones((), device=run.world.device)
    return {
        "EMA": (trainer.ema, "update", lambda apply: None),
        "gradient norm, clipping": (trainer, "grad_norm", lambda: norm),
        "losses and norms, progress": (trainer.record, "add", lambda loss, norm: None),
        "status and heartbeat": (StatusPublisher, "_write", lambda self: True),
        "dashboard": (TerminalView, "draw", lambda self: None),
    }


def switches(run: train.Run) -> dict[str, Callable[[], AbstractContextManager]]:
    """By name of a part, a function that makes a context in which the part is switched off; `ALL`: all of them."""
    off = {name: partial(patch.object, *part) for name, part in extra_parts(run).items()}

    @contextmanager
    def nothing_on() -> Iterator[None]:
        with ExitStack() as stack:
            for switch in off.values():
                stack.enter_context(switch())
            yield

    return {**off, ALL: nothing_on}


def in_place(ours: OurRun, steps: int) -> dict[str, float]:
    """The share of the time of `steps` steps that each part takes, in processor time of the thread that calls it.

    Only for a CPU, where a call returns when its work is done. The work of other threads is not counted.
    """
    spent = dict.fromkeys(extra_parts(ours.run), 0.0)

    def timed(name: str, function: Callable) -> Callable:
        @wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                spent[name] += time.thread_time() - began

        return call

    with ExitStack() as stack:
        for name, (owner, function, _) in extra_parts(ours.run).items():
            stack.enter_context(patch.object(owner, function, timed(name, getattr(owner, function))))
        whole = seconds(lambda: ours.steps(steps), ours.run.world.device)
    shares = {name: taken / whole for name, taken in spent.items()}
    return {**shares, ALL: sum(shares.values())}


@contextmanager
def terminal() -> Iterator[TextIO]:
    """A pseudo-terminal whose output is discarded."""
    inside, outside = pty.openpty()
    fcntl.ioctl(outside, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))

    def read_away() -> None:
        with suppress(OSError):
            while os.read(inside, 65536):
                pass

    reader = threading.Thread(target=read_away, daemon=True)
    reader.start()
    with patch.dict(os.environ, {"TERM": "xterm-256color"}), os.fdopen(outside, "w", encoding="utf-8") as stream:
        yield stream
    reader.join()
    os.close(inside)


def per_step(ours: OurRun, rounds: int, passes: int, steps: int) -> dict[str, list[float]]:
    """Seconds per step of each round, with everything on ("everything") and with each part off."""

    def turn(switch: Callable[[], AbstractContextManager]) -> float:
        with switch():
            ours.steps(1)
            return seconds(lambda: ours.steps(steps), ours.run.world.device) / steps

    sides = {"everything": nullcontext, **switches(ours.run)}
    return in_turn({name: lambda switch=switch: turn(switch) for name, switch in sides.items()}, rounds, passes)


def per_epoch(ours: OurRun, rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds that a validation and a checkpoint cost. A checkpoint is written while training goes on, so `steps` are
    timed with and without one."""
    run = ours.run
    device = run.world.device

    def train_on() -> None:
        ours.steps(steps)

    def train_and_save() -> None:
        run.save()
        ours.steps(steps)
        run.checkpoints.wait()

    ours.validate()
    taken = in_turn(
        {
            "validation": lambda: seconds(ours.validate, device),
            "with": lambda: seconds(train_and_save, device),
            "without": lambda: seconds(train_on, device),
        },
        rounds,
    )
    checkpoint = [a - b for a, b in zip(taken["with"], taken["without"], strict=True)]
    return {"validation": taken["validation"], "checkpoint": checkpoint}


def measure(config: TrainConfig, world: DistContext, rounds: int, passes: int, steps: int, warmup: int) -> dict:
    with terminal() as screen, our_run(config, world, screen) as ours:
        ours.steps(warmup)
        per_round = [in_place(ours, IN_PLACE * steps) for _ in range(rounds)] if world.device.type == "cpu" else []
        return {
            "choices": ours.run.choices.in_words(),
            "steps_per_epoch": ours.run.schedule.steps_per_epoch,
            "val_images": ours.run.choices.val_images,
            "in_place": {name: [each[name] for each in per_round] for name in per_round[0]} if per_round else {},
            "seconds_per_step": per_step(ours, rounds, passes, steps),
            "seconds_per_epoch": per_epoch(ours, rounds, steps),
        }


def shares(measured: dict) -> dict[str, dict[str, float]]:
    """The share of a step's time (everything on) that each part takes: the spread over the rounds."""
    taken = measured["seconds_per_step"]
    whole, epoch = taken["everything"], measured["steps_per_epoch"]
    results = {
        name: spread([1 - without / each for without, each in zip(taken[name], whole, strict=True)])
        for name in taken
        if name != "everything"
    }
    for name, cost in measured["seconds_per_epoch"].items():
        results[name] = spread([each / epoch / step for each, step in zip(cost, whole, strict=True)])
    return results


def percent(share: dict[str, float]) -> str:
    return words({kind: 100 * value for kind, value in share.items()}, 2, "%")


def table(config: TrainConfig, measured: dict, results: dict[str, dict[str, float]]) -> Table:
    step = words(spread([1000 * each for each in measured["seconds_per_step"]["everything"]]))
    page = Table(title=f"{config.preset}, batch {config.images_per_step}: {step} ms per step with everything on")
    page.add_column("what")
    page.add_column("share of a step", justify="right")
    if measured["in_place"]:
        page.add_column("timed in place", justify="right")
    page.add_column("when")
    for name, share in results.items():
        each = measured["seconds_per_epoch"].get(name)
        when = f"once an epoch of {measured['steps_per_epoch']} steps: {words(spread(each), 2)} s" if each else "a step"
        cells = [percent(share)]
        if measured["in_place"]:
            cells.append(percent(spread(measured["in_place"][name])) if name in measured["in_place"] else "–")
        page.add_row(name, *cells, when, end_section=name == ALL)
    return page


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__.splitlines()[0], rounds=7)
    parser.add_argument("--passes", type=int, default=3, help="turns of each in a round (default 3)")
    parser.add_argument("--steps", type=int, default=20, help="in a turn (default 20)")
    parser.add_argument("--warmup", type=int, default=5, help="steps before the rounds (default 5)")
    options, config = settings(parser, argv)
    with connect(config.device) as world:
        if world.world_size > 1:
            sys.exit("error: one process is measured; start it without torchrun")
        about = machine(world.device)
        measured = measure(config, world, options.rounds, options.passes, options.steps, options.warmup)
        results = shares(measured)
        document = {"machine": about, "preset": config.preset, "batch": config.images_per_step,
                    "passes": options.passes, "steps": options.steps, **measured, "shares": results}  # fmt: skip
        publish(f"overhead_{config.preset}", world.device, document, options.out, table(config, measured, results))


if __name__ == "__main__":
    sys.exit(run_program(main))
