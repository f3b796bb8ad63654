"""Kill a run at random moments, give the same command again, and compare with the run that nobody killed.

    python -m benchmarks.faults.kills --data-root DIR --rounds 200

Each round is a run of two processes on real EMNIST images. It is killed (SIGKILL) one to four times, if it is not over
by then: both processes or one of them, at a random moment of its life or while a checkpoint is being written. Then it
runs to its end. A round is lost unless the weights, their average and the optimizer's moments are those of the
uninterrupted run bit for bit, with the same figures in every row (times aside).

The moments are drawn from `--seed` and the number of the round; `--only` repeats a round. As they are times, what the
process is doing then differs a little from one machine to another. The same command goes on where it was interrupted:
rounds in the file of results are not repeated. Faults of other kinds, at exact moments, in runs of random settings:
soak.py.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch loads: the processes share the cores

import torch

from benchmarks.common.rounds import RESULTS, Parser, machine
from benchmarks.faults.processes import Training, start_server
from benchmarks.faults.replay import command
from benchmarks.faults.runs import SETTINGS, differences, some_of
from ddpm.run.config import TrainConfig, preset
from ddpm.run.errors import RequestError
from ddpm.run.files import atomic_write
from ddpm.run.program import run_program
from ddpm.training.describe import commit

MOST_KILLS = 4  # of a round
STARTING = ("before anything is published", "starting")  # then a process waits half an hour for another that is killed


def kill_and_finish(config: TrainConfig, seconds: float, generator: random.Random, killed_in: list[str]) -> None:
    """One round: kill the run, give the same command again, and let it finish.

    Args:
        seconds: about how long an uninterrupted run takes.
        killed_in: the phase of each kill is added to it.

    Raises:
        AssertionError: the run did not end well.
    """
    for _ in range(generator.randint(1, MOST_KILLS)):
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
        killed_in.append(phase)
        processes.kill(*(() if phase in STARTING else victims))
    if not (processes := Training(config)).wait():
        raise AssertionError(f"the run did not end well: see {processes.output}")


def run_rounds(numbers: Sequence[int], options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Run the rounds of these numbers. Yields of each its number, the phase of every kill, and what was wrong in the
    end: nothing, or the round is lost."""
    few = some_of(options.data_root, folder / "data", {"train": 384, "test": 94})
    whole = preset("tiny", **SETTINGS, data_root=few, output_root=folder, run_name="uninterrupted")
    start_server("benchmarks.common.rounds", "benchmarks.faults.runs")  # not this one: Python warns of a second load
    began = time.monotonic()
    beside = [replace(whole, run_name=f"beside_{number}") for number in range(1, options.at_once)]
    if not all(processes.wait() for processes in [Training(config) for config in (whole, *beside)]):
        raise AssertionError(f"an uninterrupted run failed: see {folder}/*.out")
    seconds = time.monotonic() - began

    def run_round(number: int) -> dict[str, Any]:
        config, killed_in = replace(whole, run_name=f"round_{number}"), []
        try:
            kill_and_finish(config, seconds, random.Random(f"{options.seed} {number}"), killed_in)
            wrong = differences(config, whole)
        except (AssertionError, OSError, ValueError, KeyError) as error:
            wrong = [repr(error)]
        return {"number": number, "killed_in": killed_in, "wrong": wrong}

    with ThreadPoolExecutor(options.at_once) as pool:
        yield from pool.map(run_round, numbers)


def begun(options: argparse.Namespace) -> dict[str, Any]:
    """The document in `--out`, if there is one; else a new one.

    Raises:
        RequestError: that one has rounds of another seed.
    """
    if not options.out.exists():
        return {"benchmark": "kills", "seed": options.seed, "machine": machine(torch.device("cpu")), "rounds": []}
    document = json.loads(options.out.read_text(encoding="utf-8"))
    if document["seed"] != options.seed:
        raise RequestError(f"{options.out} has rounds of seed {document['seed']}: give that --seed, or another --out")
    return document


def summary(rounds: Sequence[dict[str, Any]], seed: int) -> str:
    """Kills by phase, and each lost round with the command that repeats it."""
    killed_in = collections.Counter(phase for each in rounds for phase in each["killed_in"])
    lost = []
    for number, wrong in ((each["number"], each["wrong"]) for each in rounds if each["wrong"]):
        again = command("-m", "benchmarks.faults.kills", data_root="DIR", seed=seed, only=number)
        lost.append(f"round {number} was lost: {', '.join(wrong[:5])}; again: {again}")
    phases = [f"  {count:4} while {phase}" for phase, count in killed_in.most_common()]
    head = f"{len(rounds)} rounds, {killed_in.total()} kills:"
    return "\n".join([head, *phases, *(lost or ["nothing was lost"])])


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True, help="folder that holds EMNIST/raw/")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=1, help="rounds at a time; what they wait for overlaps")
    parser.add_argument("--only", type=int, help="the number of the one round to run; the file of results stays")
    parser.add_argument("--out", type=Path, default=RESULTS / "kills.json", help="the file of results")
    parser.add_argument("--folder", type=Path, help="where the runs are kept (default: a folder that is removed)")
    options = parser.parse_args(argv)
    document = {"rounds": []} if options.only is not None else begun(options)
    rounds, at = document["rounds"], commit()
    asked = range(len(rounds), options.rounds) if options.only is None else [options.only]
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.folder or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for each in run_rounds(asked, options, folder) if asked else ():
            rounds.append({**each, "commit": at})
            if options.only is None:
                atomic_write(options.out, json.dumps(document, indent=1) + "\n")
            said = "; ".join(each["wrong"]) or "nothing lost"
            print(f"round {each['number']}: {len(each['killed_in'])} kills, {said}", flush=True)
    print(summary(rounds, options.seed))
    return 1 if any(each["wrong"] for each in rounds) else 0


if __name__ == "__main__":
    sys.exit(run_program(main))
