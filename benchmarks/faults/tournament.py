"""The same faults for train.py, for Accelerate and for Lightning: who finishes, and with which weights?

    pip install accelerate lightning
    python -m benchmarks.faults.tournament --data-root DIR --faults 60
    python -m benchmarks.faults.tournament --data-root DIR --seed 0 --only 17 --contestants ours      one fault again

Each contestant trains the same UNet on the same EMNIST images in two processes (Gloo, CPU), with a checkpoint every
four steps. One fault strikes each run: a process or both are killed (SIGKILL), both get SIGTERM or SIGUSR1, one is
stopped for good or both for a second (SIGSTOP), the disk fills up, the largest file of the newest checkpoint is torn as
by a power failure, or the clock is set back. Then the same command is given again, as a cluster does, up to `--starts`
times. peers.py says how Accelerate and Lightning are set up, and by which documentation; fault.py has the faults.

A run counts as identical if its weights are bit for bit those of the contestant's own uninterrupted run; for ours also
the averages and the optimizer's moments. Images trained again are those of steps that were done more than once, rows of
figures are counted by epoch. After an interruption, the same command with the same `--folder` continues. A fault
strikes at the same step for all and whenever it is replayed; what a process is doing some milliseconds later depends on
the machine, too. On a busy machine give more `--patience`: a process that is waited for longer counts as hanging.

Processes are forked from one that has torch loaded, as in kills.py.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import torch

import train
from benchmarks.common.rounds import RESULTS, Parser, machine
from benchmarks.faults.contest import (
    EVERY,
    KINDS,
    Contestant,
    Progress,
    Weights,
    beside,
    draw,
    own_disk,
    start,
    tear,
)
from benchmarks.faults.fault import FULL_DISK, TORN_FILE, Fault, tell_steps
from benchmarks.faults.peers import WithAccelerate, WithLightning
from benchmarks.faults.processes import start_server
from benchmarks.faults.runs import SETTINGS, outcome, some_of
from benchmarks.faults.tournament_page import in_words, is_flawless, median_load, page
from ddpm.run.config import TrainConfig, preset
from ddpm.run.errors import RequestError
from ddpm.run.files import atomic_write
from ddpm.run.format import duration
from ddpm.run.paths import RunPaths
from ddpm.run.program import run_program
from ddpm.training.machine import distributed
from metrics.files import read_status
from metrics.page import to_markdown

IMAGES, BATCH, EPOCHS = 384, 16, 3
PER_EPOCH = IMAGES // (2 * BATCH)  # optimizer steps
STEPS = PER_EPOCH * EPOCHS
PATIENCE = 10.0  # seconds
TINY = SETTINGS | dict(
    batch_size=BATCH, epochs=EPOCHS, samples_per_class=0, sample_every=0, log_every=EVERY, checkpoint_minutes=1e-9,
)  # fmt: skip


class Ours:
    """train.py, without its report: the others write none.

    Args:
        roll_call: seconds in which processes answer that were not lost with another.
    """

    packages = ("torch",)

    def __init__(self, roll_call: float = distributed.ROLL_CALL) -> None:
        self._roll_call = roll_call

    def train(self, config: TrainConfig, progress: Progress) -> int:
        distributed.ROLL_CALL = self._roll_call
        report = sys.modules["metrics.report"] = ModuleType("metrics.report")
        report.write_report = lambda paths: paths.report.write_text("", encoding="utf-8")
        tell_steps(progress.done)
        return train.main(config, train.StopRequest().install())

    def weights(self, config: TrainConfig) -> Weights | None:
        """Of the last checkpoint: live weights, all averages and the optimizer's moments."""
        status = read_status(RunPaths(config.output_root, config.run))
        return outcome(config)[0] if status and status["state"] == "finished" else None

    def epochs(self, config: TrainConfig) -> list[int]:
        table = RunPaths(config.output_root, config.run).csv
        return pd.read_csv(table)["epoch"].tolist() if table.exists() else []

    def newest(self, config: TrainConfig) -> Path | None:
        return max(RunPaths(config.output_root, config.run).checkpoints.glob("step_*"), default=None)


CONTESTANTS: dict[str, Contestant] = {"ours": Ours(), "accelerate": WithAccelerate(), "lightning": WithLightning()}


def repeated(steps: Iterable[tuple[int, int]], total: int, world_size: int = 2) -> tuple[int, int]:
    """Of (rank, optimizer step) in any order: how many were done again, and how many of 1 … `total` never."""
    done = Counter(steps)
    return sum(done.values()) - len(done), world_size * total - len(done)


def lost_and_doubled(rows: Iterable[int], epochs: int) -> tuple[int, int]:
    """Of the epochs of all rows: how many of 1 … `epochs` have no row, and how many rows are too many."""
    found = Counter(rows)
    return len(set(range(1, epochs + 1)) - found.keys()), sum(found.values()) - len(found)


def same(weights: Weights, expected: Weights) -> bool:
    return weights.keys() == expected.keys() and all(weights[name].equal(expected[name]) for name in expected)


def make_data(source: Path, folder: Path) -> None:
    """Write the first images of EMNIST in `source` to `folder`, unless they are there."""
    if not (folder / "data").exists():
        some_of(source, folder / "data", {"train": IMAGES, "test": 94})


def settings(folder: Path, output: Path, patience: float) -> TrainConfig:
    """Of a run in `output`, with the data in `folder`.

    Args:
        patience: seconds after which a collective operation gives up. The launcher's times are multiples of it.
    """
    places = dict(data_root=folder / "data", output_root=output, run_name="run")
    return preset("tiny", **TINY, **places, hang_minutes=patience / 60)


def uninterrupted(name: str, *configs: TrainConfig) -> Weights:
    """The final weights of runs that nothing happens to, and that have to agree. Finished ones are not run again.

    Raises:
        RequestError: the contestant does not finish, or not always with the same weights.
    """
    contestant, found = CONTESTANTS[name], []
    for config in configs:
        if contestant.weights(config) is None:
            config.output_root.mkdir(parents=True, exist_ok=True)
            start(contestant, config)
        found.append(contestant.weights(config))
        if found[-1] is None:
            raise RequestError(f"{name} does not finish its run without a fault: see {beside(config, 'out')}")
        if not same(found[-1], found[0]):
            raise RequestError(f"{name} does not train the same weights twice, so that nothing can be compared")
    return found[0]


def play(name: str, fault: Fault, config: TrainConfig, expected: Weights, starts: int) -> dict[str, Any]:
    """Let one fault strike a run of a contestant, give the command again up to `starts` times, and tell the outcome."""
    contestant = CONTESTANTS[name]
    with own_disk(config.output_root) if fault.kind == FULL_DISK else nullcontext():
        config.output_root.mkdir(parents=True, exist_ok=True)
        played = [start(contestant, config, fault)]
        if fault.kind == TORN_FILE:
            tear(contestant.newest(config))
        (config.output_root / "filler").unlink(missing_ok=True)
        while (weights := contestant.weights(config)) is None and len(played) <= starts:
            played.append(start(contestant, config, clock=fault.hours))
        rows = contestant.epochs(config)
    again, missing = repeated((step for each in played for step in each.steps), PER_EPOCH * config.epochs)
    lost, doubled = lost_and_doubled(rows, config.epochs)
    return {
        "finished": weights is not None,
        "identical": weights is not None and same(weights, expected),
        "struck": played[0].struck,
        "starts": len(played),
        "images_again": again * BATCH,
        "images_missing": missing * BATCH,
        "rows_lost": lost,
        "rows_doubled": doubled,
        "exit_codes": [each.codes for each in played],
        "seconds": round(sum(each.seconds for each in played), 1),
        "load": round(os.getloadavg()[0], 1),
        "last_words": "" if weights is not None else last_words(config),
    }


def last_words(config: TrainConfig) -> str:
    """The last line of a run's output that names an error, else the last one; its folder is called RUN."""
    output = beside(config, "out").read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in output.replace(str(config.output_root), "RUN").splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.partition(" ")[0].lower()]
    return (errors or lines or [""])[-1][:120]


def again(options: argparse.Namespace, *flags: str) -> str:
    """The command that was given, with other flags at its end."""
    kinds = [] if options.kinds == list(KINDS) else ["--kinds", *options.kinds]
    patience = [] if options.patience == PATIENCE else ["--patience", f"{options.patience:g}"]
    words = ["python", "-m", "benchmarks.faults.tournament", "--data-root", "DIR", "--seed", str(options.seed)]
    return shlex.join([*words, *kinds, *patience, *flags])


def tournament(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Let every fault strike every contestant. Returns the results, those of an interrupted call included."""
    file = folder / "results.json"
    results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    make_data(options.data_root, folder)
    start_server("benchmarks.faults.peers")
    expected = {
        name: uninterrupted(
            name, *(settings(folder, folder / name / twin, options.patience) for twin in ("first", "second"))
        )
        for name in options.contestants
    }
    for number in options.only or range(options.faults):
        fault = draw(options.seed, number, STEPS, tuple(options.kinds))
        print(f"fault {number}: {fault}; to replay it: {again(options, '--only', str(number))}", flush=True)
        for name in options.contestants:
            key = {"seed": options.seed, "number": number, "kinds": options.kinds, "contestant": name}
            if any(key.items() <= result.items() for result in results):
                continue
            config = settings(folder, folder / name / f"{options.seed}_{number}", options.patience)
            shutil.rmtree(config.output_root, ignore_errors=True)  # of an interrupted call
            result = play(name, fault, config, expected[name], options.starts)
            results.append({**key, "fault": asdict(fault), **result})
            atomic_write(file, json.dumps(results, indent=1))
            if is_flawless(result):
                shutil.rmtree(config.output_root)
            print(f"  {name}: {in_words(result)}", flush=True)
    asked = {"seed": options.seed, "kinds": options.kinds}
    numbers = set(options.only or range(options.faults))
    return [
        result
        for result in results
        if asked.items() <= result.items() and result["number"] in numbers
        and result["contestant"] in options.contestants
    ]  # fmt: skip


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True, help="folder that holds EMNIST/raw/")
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of faults, instead of all")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--contestants", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument("--starts", type=int, default=3, help="times that the command is given again, at most")
    parser.add_argument("--patience", type=float, default=PATIENCE, help="seconds until a process counts as hanging")
    parser.add_argument("--out", type=Path, default=RESULTS / "tournament.json", help="the .md is written beside it")
    parser.add_argument("--folder", type=Path, help="where the runs are kept (default: a folder that is removed)")
    return parser.parse_args(argv)


def main() -> int:
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # unmounts the disk on the way
    try:
        packages = {name: version(name) for each in options.contestants for name in CONTESTANTS[each].packages}
    except PackageNotFoundError as error:
        raise RequestError(
            f"{error.name} is not installed: pip install accelerate lightning, or give --contestants ours"
        ) from error
    of_machine = machine(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.folder or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        results = tournament(options, folder)
    facts = {
        "measured": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "versions": ", ".join(f"{name} {number}" for name, number in packages.items()),
        "machine": f"{of_machine['cpu']}, {of_machine['cores']} cores",
        "training": f"{STEPS} steps of {2 * BATCH} images in {EPOCHS} epochs, a checkpoint every {EVERY} steps",
        "the command is given again": f"up to {options.starts} times",
        "a process hangs": f"after {duration(options.patience)}",
        "load average, median": median_load(results),
        "all runs together took": duration(sum(result["seconds"] for result in results)),
    }
    flags = ["--only", *map(str, options.only)] if options.only else ["--faults", str(options.faults)]
    command = again(options, *flags)
    document = {
        "benchmark": "tournament", **facts, "machine": of_machine, "versions": packages, "command": command,
        "results": results,
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    text = to_markdown(page(results, facts, command), options.out.parent)
    atomic_write(options.out, json.dumps(document, indent=1) + "\n")
    atomic_write(options.out.with_suffix(".md"), text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
