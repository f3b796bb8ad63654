"""Kill a run at random moments, give the same command again, and compare with the run that nobody killed.

    python -m benchmarks.faults --data-root DIR --rounds 200

Each round is a run of two processes on real EMNIST images. It is killed (SIGKILL) once or twice: both processes or
one of them, at a random moment of its life or while a checkpoint is being written. Then it runs to its end. A round is
lost unless the weights, their average and the optimizer's moments are those of the uninterrupted run bit for bit, with
the same figures in every row (times aside). The processes are forked from one that has torch loaded, which saves the
seconds of its import; they have nothing else in common.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import random
import socket
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch loads: the processes share the cores

import pandas as pd
import torch
from safetensors.torch import load_file

from ddpm.data.emnist import emnist
from ddpm.data.idx import read_idx, write_idx
from ddpm.run.config import TrainConfig, preset
from ddpm.run.metrics import names
from ddpm.run.paths import RunPaths
from ddpm.run.program import run_program
from ddpm.training.checkpoint import STATE, WEIGHTS_NAME

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["train"])
SETTINGS = dict(
    block_out_channels=(8, 16), norm_num_groups=4, batch_size=16, epochs=2, precision="fp32", log_every=2,
    val_images=94, samples_per_class=1, sample_steps=2, sample_every=1, warmup_steps=0, checkpoint_minutes=0.002,
    keep_last=2, export=False,
)  # fmt: skip
DEADLINE = 60.0  # seconds in which processes that are left have to end by themselves
PATIENCE = 300.0  # seconds that a run may take


def some_of(source: Path, target: Path, images: dict[str, int]) -> Path:
    """Write the first images of each split of EMNIST Balanced under `target`; returns it, for `--data-root`."""
    for split, count in images.items():
        for path, dimensions in zip(emnist(source).files(split), (3, 1), strict=True):
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            write_idx(copy, read_idx(path, dimensions)[:count])
    return target


def train_one(config: TrainConfig, rank: int, port: int, output: Path) -> None:
    """Run train.py as process `rank` of two; its output goes to `output`."""
    with open(output, "a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    import train

    sys.exit(train.main(config, train.StopRequest().install()))


class TwoProcesses:
    """The two processes of a run."""

    def __init__(self, config: TrainConfig) -> None:
        self.paths = RunPaths(config.output_root, config.run)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        output = config.output_root / f"{config.run}.out"
        self.processes = [CONTEXT.Process(target=train_one, args=(config, rank, port, output)) for rank in (0, 1)]
        for process in self.processes:
            process.start()

    def wait(self) -> bool:
        """Wait for the end; did it end well?"""
        until = time.monotonic() + PATIENCE
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
        return [process.exitcode for process in self.processes] == [0, 0]

    @property
    def alive(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    @property
    def saving(self) -> bool:
        """Is a checkpoint being written?"""
        return any(self.paths.checkpoints.glob(".step_*.tmp"))

    def phase(self) -> str:
        """The phase that the main process has published, if any."""
        with suppress(OSError, ValueError):
            status = json.loads(self.paths.status.read_text(encoding="utf-8"))
            if status["pid"] == self.processes[0].pid:
                return status["phase"] + (", saving" if self.saving else "")
        return "before anything is published"

    def kill(self, generator: random.Random) -> None:
        """Kill both or one. The other one has to end by itself.

        Raises:
            AssertionError: it did not end within `DEADLINE` seconds.
        """
        victims = generator.choices([(0, 1), (0,), (1,)], weights=[3, 1, 1])[0]
        if self.phase() in ("before anything is published", "starting"):
            victims = (0, 1)  # at the start, a process waits half an hour for the other
        for victim in victims:
            self.processes[victim].kill()
        until = time.monotonic() + DEADLINE
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
        if self.alive:
            raise AssertionError(f"a process went on for {DEADLINE} s after the other was killed: {self.paths.run}")


def outcome(config: TrainConfig) -> tuple[dict[str, torch.Tensor], pd.DataFrame]:
    """Every tensor of the last checkpoint by name, and the rows without their times."""
    paths = RunPaths(config.output_root, config.run)
    state = torch.load(paths.checkpoints / "latest" / STATE, weights_only=True)
    tensors = {f"model.{name}": value for name, value in state["model"].items()}
    for file in (paths.checkpoints / "latest").glob(f"unet*/{WEIGHTS_NAME}"):
        tensors |= {f"{file.parent.name}.{name}": value for name, value in load_file(file).items()}
    for index, moments in state["optimizer"]["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
    return tensors, pd.read_csv(paths.csv).drop(columns=list(names(timed=True)))


def differences(config: TrainConfig, whole: TrainConfig) -> list[str]:
    """What differs from the uninterrupted run: names of tensors, rows, status, report, files left over."""
    (mine, rows), (expected, expected_rows) = outcome(config), outcome(whole)
    wrong = [name for name in expected if name not in mine or not mine[name].equal(expected[name])]
    paths = RunPaths(config.output_root, config.run)
    left_over = [path.name for path in paths.checkpoints.glob(".*")] + [paths.lock.name] * paths.lock.exists()
    wrong += [] if rows.equals(expected_rows) else ["rows"]
    wrong += [] if json.loads(paths.status.read_text(encoding="utf-8"))["state"] == "finished" else ["status"]
    wrong += [] if paths.report.exists() else ["no report"]
    return wrong + [f"left over: {name}" for name in left_over]


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
        processes = TwoProcesses(config)
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
        killed_in[processes.phase()] += 1
        processes.kill(generator)
    if not TwoProcesses(config).wait():
        raise AssertionError(f"the run did not end well: see {config.output_root / config.run}.out")


def run_rounds(rounds: int, seed: int, data_root: Path, folder: Path) -> tuple[list[str], collections.Counter]:
    """Run all rounds. Returns a line for each round that was lost, and the number of kills by phase."""
    data_root = some_of(data_root, folder / "data", {"train": 384, "test": 94})
    whole = preset("tiny", **SETTINGS, data_root=data_root, output_root=folder, run_name="uninterrupted")
    TwoProcesses(
        replace(whole, max_steps=1, samples_per_class=0, run_name="first")
    ).wait()  # the fork server is up after it
    began = time.monotonic()
    if not TwoProcesses(whole).wait():
        raise AssertionError(f"the uninterrupted run failed: see {folder}/uninterrupted.out")
    seconds = time.monotonic() - began
    lost, killed_in = [], collections.Counter()
    for number in range(rounds):
        config = preset("tiny", **SETTINGS, data_root=data_root, output_root=folder, run_name=f"round_{number}")
        try:
            kill_and_finish(config, seconds, random.Random(f"{seed} {number}"), killed_in)
            wrong = differences(config, whole)
        except (AssertionError, OSError, ValueError, KeyError) as error:
            wrong = [repr(error)]
        if wrong:
            lost.append(f"round {number}: {', '.join(wrong[:5])}")
        print(f"round {number + 1} of {rounds}: {killed_in.total()} kills, {len(lost)} lost", flush=True)
    return lost, killed_in


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True, help="folder that holds EMNIST/raw/")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the runs are kept (default: a folder that is removed)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        lost, killed_in = run_rounds(options.rounds, options.seed, options.data_root, folder.resolve())
    print(f"{options.rounds} rounds in {(time.monotonic() - began) / 60:.1f} min, {killed_in.total()} kills:")
    for phase, count in killed_in.most_common():
        print(f"  {count:4} while {phase}")
    print("\n".join(lost) or "nothing was lost")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(run_program(main))
