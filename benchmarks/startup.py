"""From the command to the end of the first optimizer step, and where that time goes.

    python -m benchmarks.startup --preset tiny --data-root DIR
    python -m benchmarks.startup --preset large --data-root DIR --warm-cache     with compilation too

Each start is a process of its own that calls train.py's `main`, and ends when the device has done the first step. All
time from the start of the process on belongs to exactly one phase, so the phases add up to the total. Packages may come
from the system's file cache: the first start after booting takes longer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the processes that are measured load no more than train.py does
    from rich.table import Table

PHASES = (
    "interpreter", "arguments", "import torch", "other imports", "device", "data", "FLOPs counted",
    "model and optimizer", "log and figures", "anything else", "first step",
)  # fmt: skip
EAGER, COLD, WARM = "not compiled", "compiled, empty cache", "compiled, filled cache"
TARGETS = {"cpu": {EAGER: 8.0}, "cuda": {EAGER: 15.0, WARM: 30.0}}  # seconds; cpu: two cores


class FirstStepDone(BaseException):
    """Ends a run. Not an Exception, so that train.py does not take it for a crash."""


class PhaseClock:
    """Seconds by phase since `began`, on the monotonic clock, which all processes of a machine share."""

    def __init__(self, began: float) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._began = self._since = began
        self._phase = PHASES[0]

    def enter(self, phase: str) -> str:
        """Time from now on belongs to `phase`. Returns the previous phase."""
        now, before = time.monotonic(), self._phase
        self.seconds[before] += now - self._since
        self._phase, self._since = phase, now
        return before

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Context manager: adds the elapsed time to `phase`."""
        before = self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def watch(self, owner: Any, name: str, phase: str) -> None:
        """Add the time of every call of `owner.name` to `phase`."""
        function = getattr(owner, name)

        @wraps(function)
        def timed(*args: Any, **options: Any) -> Any:
            with self.during(phase):
                return function(*args, **options)

        setattr(owner, name, timed)

    def totals(self) -> dict[str, float]:
        """Seconds of each phase until now, and their total."""
        self.enter(self._phase)
        return {**self.seconds, "total": self._since - self._began}


def child(file: str, began: str, _: str, *flags: str) -> int:
    """Run train.py with `flags` until the first step is done; write the seconds of each phase to `file`."""
    clock = PhaseClock(float(began))
    clock.enter("arguments")
    from ddpm.run.arguments import parse_args
    from ddpm.run.signals import StopRequest

    stop = StopRequest().install()
    config = parse_args(flags)
    clock.enter("import torch")
    import torch  # noqa: F401

    clock.enter("other imports")
    import train

    clock.enter("anything else")
    watch_train(train, clock)
    try:
        return train.main(config, stop) or 1
    except FirstStepDone:
        Path(file).write_text(json.dumps(clock.totals()), encoding="utf-8")
        return 0


def watch_train(train: Any, clock: PhaseClock) -> None:
    """Time the functions that the module `train` and its lifecycle call, and end its run after the first step."""
    from metrics import lifecycle

    for owner, name, phase in (
        (train.hardware, "choose", "device"), (train.data, "load", "data"), (train.data, "agreed_sha256", "data"),
        (lifecycle, "flops_per_image", "FLOPs counted"), (lifecycle.Trainer, "__init__", "model and optimizer"),
        (train.RunLogger, "__init__", "log and figures"), (train.RunLogger, "__enter__", "log and figures"),
        (train.Run, "open_files", "log and figures"),
        (lifecycle.Trainer, "step", "first step"), (lifecycle.Progress, "count_step", "first step"),
    ):  # fmt: skip
        clock.watch(owner, name, phase)
    connect, count_step = train.connect, lifecycle.Progress.count_step

    @contextmanager
    def connected(device: str) -> Iterator[Any]:
        with ExitStack() as stack:
            with clock.during("device"):
                world = stack.enter_context(connect(device))
            yield world

    def count_one(progress: Any) -> None:
        count_step(progress)  # waits for the device
        raise FirstStepDone

    train.connect, lifecycle.Progress.count_step = connected, count_one


def start(flags: Sequence[str], environment: dict[str, str]) -> dict[str, float]:
    """Start train.py with `flags` once: seconds of each phase, and in total. Exits with its exit code if it fails
    before the end of its first step."""
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "output", "w+", encoding="utf-8") as output:
        phases = Path(folder) / "phases.json"
        command = [sys.executable, "-m", "benchmarks.startup", "--child", str(phases), repr(time.monotonic()), "--"]
        ended = subprocess.run(
            [*command, *flags, "--output-root", folder, "--run-name", "startup"], cwd=Path(__file__).parents[1],
            env=os.environ | environment, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if ended.returncode:
            output.seek(0)
            print((output.read().strip().splitlines() or ["error: the start failed"])[-1], file=sys.stderr)
            sys.exit(ended.returncode)
        return json.loads(phases.read_text(encoding="utf-8"))


def measure(flags: Sequence[str], rounds: int, compiled: bool) -> dict[str, dict[str, list[float]]]:
    """The seconds of `start` by side, phase and round. Each round has its own cache for compilation, empty at first.

    Each start is told at once: a measurement that is cut short leaves what it has.
    """
    seconds = {side: defaultdict(list) for side in ((COLD, WARM, EAGER) if compiled else (EAGER,))}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            folders = {"TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor", "TRITON_CACHE_DIR": f"{cache}/triton"}
            for side, phases in seconds.items():
                took = start([*flags, "--no-compile" if side == EAGER else "--compile"], folders)
                print(f"{side}: {took['total']:.1f} s, the first step {took['first step']:.1f} s of it", flush=True)
                for phase, value in took.items():
                    phases[phase].append(value)
    return seconds


def table(preset: str, results: dict[str, dict], targets: dict[str, dict]) -> Table:
    from rich.table import Table

    from benchmarks.common.rounds import words

    aims = [f"{side}: {'met' if aim['met'] else 'missed'}, {aim['seconds']:g} s" for side, aim in targets.items()]
    page = Table("phase", title=f"from the command to the end of the first step: {preset}")
    page.caption = "target, " + "; ".join(aims)
    for side in results:
        page.add_column(f"{side}, s", justify="right")
    for phase in (*PHASES, "total"):
        shares = [each[phase]["median"] / each["total"]["median"] for each in results.values()]
        cells = [f"{words(each[phase], 2)} {share:5.0%}" for each, share in zip(results.values(), shares, strict=True)]
        page.add_row(phase, *cells, end_section=phase == PHASES[-1])
    return page


def main(argv: list[str] | None = None) -> None:
    from benchmarks.common.rounds import arguments, machine, publish, settings, spread
    from ddpm.training.machine.device import pick_device

    parser = arguments(__doc__.splitlines()[0], rounds=5)
    parser.add_argument("--warm-cache", action="store_true", help="also with compilation, its cache empty and filled")
    options, config = settings(parser, argv)
    if config.compile is not None or config.dry_run:
        parser.error("leave out --compile and --dry-run; --warm-cache measures compiled starts too")
    flags, device = parser.parse_known_args(argv)[1], pick_device(config.device)[0]
    about = machine(device)
    seconds = measure(flags, options.rounds, options.warm_cache)
    results = {side: {phase: spread(values) for phase, values in each.items()} for side, each in seconds.items()}
    totals = {side: each["total"]["median"] for side, each in results.items()}
    targets = {side: {"seconds": most, "met": totals[side] <= most}
               for side, most in TARGETS[device.type].items() if side in totals}  # fmt: skip
    document = {"machine": about, "preset": config.preset, "seconds": seconds, "figures": results,
                "targets": targets}  # fmt: skip
    publish(f"startup_{config.preset}", device, document, options.out, table(config.preset, results, targets))


if __name__ == "__main__":
    from ddpm.run.program import run_program

    sys.exit(run_program(partial(child, *sys.argv[2:]) if sys.argv[1:2] == ["--child"] else main))
