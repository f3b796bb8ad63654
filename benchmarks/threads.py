"""Images per second on a CPU, alone and beside busy processes: with the threads that a run chooses, with all, with one.

    python -m benchmarks.threads --preset tiny --data-root DIR

Each measurement is a process of its own, in which train.py's loop trains, as OpenMP reads only when it is loaded how
its threads wait for each other. The busy processes are loops in Python. Beside k of them, a fair share is what one
thread gets on an idle machine times cores / (k + 1), at most all of it. "All" is torch's default.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm.run.errors import RequestError
from ddpm.run.program import run_program
from ddpm.training.machine.threads import limit_spinning, usable_cores

if TYPE_CHECKING:
    from rich.table import Table

CHOSEN, ALL_THREADS, ONE_THREAD = "chosen by the run", "all threads", "one thread"
IDLE, BUSY, LATER = "idle", "busy", "busy later"
MEASURED = [(case, side) for case in (IDLE, BUSY) for side in (CHOSEN, ALL_THREADS, ONE_THREAD)] + [(LATER, CHOSEN)]
WARM_UP = 3  # steps
LOOP = "import os, sys\nwhile os.getppid() == int(sys.argv[1]):\n  for _ in range(10**6): pass\n"


class Busy:
    """Processes that only use processor time; `let` runs and stops them."""

    def __init__(self, count: int) -> None:
        command = [sys.executable, "-S", "-c", LOOP, str(os.getpid())]
        self.processes = [subprocess.Popen(command) for _ in range(count)]

    def let(self, run: bool) -> None:
        for each in self.processes:
            each.send_signal(signal.SIGCONT if run else signal.SIGSTOP)

    def end(self) -> None:
        for each in self.processes:
            each.kill()
        for each in self.processes:
            each.wait()


@contextmanager
def busy(count: int) -> Iterator[Busy]:
    """Context manager: `count` busy processes, stopped at first, and ended afterwards."""
    crowd = Busy(count)
    try:
        crowd.let(False)
        yield crowd
    finally:
        crowd.end()


def child(side: str, flags: Sequence[str]) -> None:
    """Train as `side` of the comparison. Prints "warm" after the warm-up, reads the seconds to settle and to measure
    from stdin, and prints images/s and threads as JSON."""
    if side == CHOSEN:
        limit_spinning()
    from ddpm.run.arguments import parse_args

    config = parse_args(flags)
    from benchmarks.common.our_run import our_run
    from ddpm.training.machine.distributed import connect

    with connect(config.device) as world, our_run(config, world) as ours:
        ours.steps(WARM_UP)
        print("warm", file=sys.__stdout__, flush=True)
        settle, seconds = map(float, sys.stdin.readline().split())
        until = time.monotonic() + settle
        while time.monotonic() < until:
            ours.steps(1)
        steps, began = 0, time.monotonic()
        while not steps or time.monotonic() < began + seconds:
            ours.steps(1)
            steps += 1
        rate = steps * ours.run.schedule.global_batch / (time.monotonic() - began)
        results = {"images_per_sec": rate, "threads": ours.run.threads.number}
        print(json.dumps(results), file=sys.__stdout__, flush=True)


def measure(
    crowd: Busy, case: str, side: str, flags: Sequence[str], settle: float, seconds: float, threads: dict
) -> float:
    """Images per second of one process.

    Args:
        settle: seconds that a run has to notice the busy processes, where they begin later.
        threads: gets the number that the process had at its end.

    Raises:
        RequestError: the process failed.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    if side != CHOSEN:
        environment["OMP_NUM_THREADS"] = str(1 if side == ONE_THREAD else len(usable_cores()))
    command = [sys.executable, "-m", "benchmarks.threads", "--child", side, *flags]
    crowd.let(case == BUSY and side == CHOSEN)  # only this side looks at them as it starts
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[1], env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            ready = process.stdout.readline()
            crowd.let(case != IDLE)
            said, why = process.communicate(f"{settle if case == LATER else 0} {seconds}\n" if ready else None)
        finally:
            process.kill()
            crowd.let(False)
    if process.returncode or not ready:
        raise RequestError((why.strip().splitlines() or ["a measurement failed"])[-1].removeprefix("error: "))
    results = json.loads(said.splitlines()[-1])
    threads.setdefault(f"{case}: {side}", []).append(results["threads"])
    return results["images_per_sec"]


def figures(rates: dict[str, list[float]], cores: int, others: int) -> dict[str, dict[str, Any]]:
    """Images per second of each case and side, and the ratios to the fair share and to all threads, round by round."""
    from benchmarks.common.rounds import ratio, spread

    alone = rates[f"{IDLE}: {ONE_THREAD}"]
    results = {}
    for name, each in rates.items():
        case, _, side = name.partition(": ")
        results[name] = {"images_per_sec": spread(each)}
        if case != IDLE:
            results[name]["of_fair_share"] = ratio(each, [rate * min(1, cores / (others + 1)) for rate in alone])
        if side != ALL_THREADS:
            results[name]["of_all_threads"] = ratio(each, rates[f"{IDLE if case == IDLE else BUSY}: {ALL_THREADS}"])
    return results


def table(preset: str, results: dict[str, dict[str, Any]], threads: dict[str, list[int]], others: int) -> Table:
    from rich.table import Table

    from benchmarks.common.rounds import words

    page = Table(title=f"threads on a CPU: {preset}, idle and beside {others} busy processes")
    page.add_column("machine")
    page.add_column("threads")
    for head in ("number", "images/s", "of the fair share", "of all threads there"):
        page.add_column(head, justify="right")
    for name, each in results.items():
        case, _, side = name.partition(": ")
        numbers = ", ".join(map(str, sorted(set(threads[name]))))
        ratios = [words(each[key], 2) if key in each else "–" for key in ("of_fair_share", "of_all_threads")]
        last = (case, side) in ((IDLE, ONE_THREAD), (BUSY, ONE_THREAD))
        page.add_row(case, side, numbers, words(each["images_per_sec"]), *ratios, end_section=last)
    return page


def main(argv: list[str] | None = None) -> None:
    from benchmarks.common.rounds import arguments, in_turn, machine, publish, settings
    from ddpm.training.machine.device import pick_device

    parser = arguments(__doc__.splitlines()[0], rounds=3)
    cores = len(usable_cores())
    parser.add_argument("--busy", type=int, default=2 * cores, help=f"busy processes (default {2 * cores}, 2 a core)")
    parser.add_argument("--seconds", type=float, default=4, help="of training in a measurement (default 4)")
    parser.add_argument("--settle", type=float, default=12, help="seconds before, where they begin later (default 12)")
    options, config = settings(parser, argv)
    flags, device = parser.parse_known_args(argv)[1], pick_device(config.device)[0]
    if device.type != "cpu":
        parser.error("this is about CPUs: give --device cpu")
    if options.busy < 1 or options.seconds <= 0:
        parser.error("--busy and --seconds: above 0")
    about, threads = machine(device), {}
    with busy(options.busy) as crowd:
        sides = {
            f"{case}: {side}": partial(measure, crowd, case, side, flags, options.settle, options.seconds, threads)
            for case, side in MEASURED
        }
        try:
            rates = in_turn(sides, options.rounds)
        except RequestError as error:
            parser.error(str(error))
    results = figures(rates, cores, options.busy)
    document = {"machine": about, "preset": config.preset, "batch": config.images_per_step, "usable_cores": cores,
                "busy": options.busy, "rounds": rates, "threads": threads, "figures": results}  # fmt: skip
    publish(
        f"threads_{config.preset}", device, document, options.out, table(config.preset, results, threads, options.busy)
    )


if __name__ == "__main__":
    measured = sys.argv[1:2] == ["--child"]
    sys.exit(run_program(lambda: child(sys.argv[2], sys.argv[3:])) if measured else run_program(main))
