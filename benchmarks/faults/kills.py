"""Kill a run at random moments, give the same command again, and compare with the run that nobody killed.

    python -m benchmarks.faults.kills --data-root DIR --rounds 200

Each round is a run of two processes on real EMNIST images. It is killed (SIGKILL) once or twice: both processes or
one of them, at a random moment of its life or while a checkpoint is being written. Then it runs to its end. A round is
lost unless the weights, their average and the optimizer's moments are those of the uninterrupted run bit for bit, with
the same figures in every row (times aside).

The moments are drawn from `--seed` and the number of the round; `--only` repeats a round. As they are times, what the
process is doing then differs a little from one machine to another. Faults of other kinds, at exact moments, in runs of
random settings: soak.py.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch loads: the processes share the cores

from benchmarks.faults.processes import Training, start_server
from benchmarks.faults.replay import command
from benchmarks.faults.runs import SETTINGS, differences, some_of
from ddpm.run.config import TrainConfig, preset
from ddpm.run.program import run_program


def kill_and_finish(
    config: TrainConfig, seconds: float, generator: random.Random, killed_in: collections.Counter
) -> None:
    """One round: kill the run once or twice, and let it finish.

    Args:
        seconds: about how long an uninterrupted run takes.
        killed_in: counts the kills by phase.

    Raises:
        AssertionError: the run did not end well.
    """
    for _ in range(generator.randint(1, 2)):
        processes = Training(config)
        if generator.random() < 0.4:
            nth = generator.randint(1, 6)
            for _ in range(nth):  # the nth checkpoint of this start
                while processes.alive and processes.saving:
                    time.sleep(0.001)
                while processes.alive and not processes.saving:
                    time.sleep(0.001)
            time.sleep(generator.uniform(0, 0.03))
        else:
            until = time.monotonic() + generator.uniform(0, seconds)
            while processes.alive and time.monotonic() < until:
                time.sleep(0.005)
        if not processes.alive:
            break
        phase, victims = processes.phase(), generator.choices([(0, 1), (0,), (1,)], weights=[3, 1, 1])[0]
        killed_in[phase] += 1
        starting = phase in ("before anything is published", "starting")  # a process waits half an hour for the other
        processes.kill(*(() if starting else victims))
    if not (processes := Training(config)).wait():
        raise AssertionError(f"the run did not end well: see {processes.output}")


def run_rounds(
    rounds: int, seed: int, data_root: Path, folder: Path, only: int | None = None
) -> tuple[list[str], collections.Counter]:
    """Run all rounds, or `only` one. Returns a line for each round that was lost, and the number of kills by phase."""
    few = some_of(data_root, folder / "data", {"train": 384, "test": 94})
    whole = preset("tiny", **SETTINGS, data_root=few, output_root=folder, run_name="uninterrupted")
    start_server("benchmarks.faults.runs")  # not this module: Python warns of a main module loaded twice
    began = time.monotonic()
    if not Training(whole).wait():
        raise AssertionError(f"the uninterrupted run failed: see {folder}/uninterrupted.out")
    seconds = time.monotonic() - began
    lost, killed_in = [], collections.Counter()
    for number in range(rounds) if only is None else [only]:
        config = replace(whole, run_name=f"round_{number}")
        try:
            kill_and_finish(config, seconds, random.Random(f"{seed} {number}"), killed_in)
            wrong = differences(config, whole)
        except (AssertionError, OSError, ValueError, KeyError) as error:
            wrong = [repr(error)]
        if wrong:
            again = command("-m", "benchmarks.faults.kills", data_root=data_root, seed=seed, only=number)
            lost.append(f"round {number}: {', '.join(wrong[:5])}; again: {again}")
        print(f"round {number + 1} of {rounds}: {killed_in.total()} kills, {len(lost)} lost", flush=True)
    return lost, killed_in


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True, help="folder that holds EMNIST/raw/")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of the one round to run")
    parser.add_argument("--folder", type=Path, help="where the runs are kept (default: a folder that is removed)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        lost, killed_in = run_rounds(
            options.rounds, options.seed, options.data_root, folder.resolve(), options.only
        )  # fmt: skip
    print(f"{options.rounds} rounds in {(time.monotonic() - began) / 60:.1f} min, {killed_in.total()} kills:")
    for phase, count in killed_in.most_common():
        print(f"  {count:4} while {phase}")
    print("\n".join(lost) or "nothing was lost")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(run_program(main))
