"""Kill a run at random moments, give the same command again, and compare with the run that nobody killed.

    python -m benchmarks.faults --data-root DIR --rounds 200

Each round is a run of two processes on real EMNIST images. It is killed (SIGKILL) once or twice: both processes or
one of them, at a random moment of its life or while a checkpoint is being written. Then it runs to its end. A round is
lost unless the weights, their average and the optimizer's moments are those of the uninterrupted run bit for bit, with
the same figures in every row (times aside).

The moments are drawn from `--seed` and the number of the round; `--only` repeats a round. As they are times, what the
process is doing then differs a little from one machine to another. Faults of other kinds, at exact moments, in runs of
random settings: benchmarks/soak.py.
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
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch loads: the processes share the cores

import pandas as pd
import torch
from safetensors.torch import load_file

from benchmarks.forked import Processes, start_server
from benchmarks.replay import command
from ddpm.data import glyphs
from ddpm.data.emnist import CLASS_NAMES, emnist
from ddpm.data.idx import read_idx, write_idx
from ddpm.run.config import TrainConfig, preset
from ddpm.run.metrics import names
from ddpm.run.paths import RunPaths
from ddpm.run.program import run_program
from ddpm.training.checkpoint import STATE, WEIGHTS_NAME

SETTINGS = dict(
    block_out_channels=(8, 16), norm_num_groups=4, batch_size=16, epochs=2, precision="fp32", log_every=2,
    val_images=94, samples_per_class=1, sample_steps=2, sample_every=1, warmup_steps=0, checkpoint_minutes=0.002,
    keep_last=2, export=False,
)  # fmt: skip


def some_of(source: Path, target: Path, images: dict[str, int]) -> Path:
    """Write the first images of each split of EMNIST Balanced under `target`; returns it, for `--data-root`."""
    for split, count in images.items():
        for path, dimensions in zip(emnist(source).files(split), (3, 1), strict=True):
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            write_idx(copy, read_idx(path, dimensions)[:count])
    return target


def glyphs_as_emnist(target: Path, images: dict[str, int]) -> Path:
    """Write about as many characters drawn from fonts under `target`, in files as EMNIST has them; returns it."""
    drawn = glyphs.draw({split: count // len(CLASS_NAMES) for split, count in images.items()}, seed=0)
    for split, pixels in drawn.items():
        files = emnist(target).files(split)
        files[0].parent.mkdir(parents=True, exist_ok=True)
        labels = torch.arange(len(pixels)) % len(CLASS_NAMES)
        for path, content in zip(files, (pixels.transpose(0, 2, 1), labels.byte().numpy()), strict=True):
            write_idx(path, content)
    return target


# ---- what is compared ------------------------------------------------------------------------------------------------


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


def differences(config: TrainConfig, whole: TrainConfig, exactly: bool = True) -> list[str]:
    """What differs from the uninterrupted run: tensors, rows, status, report, files left over.

    Args:
        exactly: False for a run on another number of processes, whose sums are rounded otherwise: only its rows are
            compared, and they may differ a little.
    """
    (mine, rows), (expected, expected_rows) = outcome(config), outcome(whole)
    other = [name for name in expected if name not in mine or (exactly and not mine[name].equal(expected[name]))]
    wrong = [f"{len(other)} of {len(expected)} tensors, such as {other[0]}"] if other else []
    paths = RunPaths(config.output_root, config.run)
    left_over = [path.name for path in paths.checkpoints.glob(".*")] + [paths.lock.name] * paths.lock.exists()
    wrong += [] if same_rows(rows, expected_rows, exactly) else ["rows"]
    wrong += [] if json.loads(paths.status.read_text(encoding="utf-8"))["state"] == "finished" else ["status"]
    wrong += [] if paths.report.exists() else ["no report"]
    return wrong + [f"left over: {name}" for name in left_over]


def same_rows(rows: pd.DataFrame, expected: pd.DataFrame, exactly: bool = True) -> bool:
    """Are the figures of the epochs the same, times aside? If not `exactly`, up to the rounding of sums."""
    if exactly:
        return rows.equals(expected)
    try:
        pd.testing.assert_frame_equal(rows, expected, rtol=1e-2, check_dtype=False)
    except AssertionError:
        return False
    return True


# ---- rounds ----------------------------------------------------------------------------------------------------------


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
        processes = Processes(config)
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
    if not (processes := Processes(config)).wait():
        raise AssertionError(f"the run did not end well: see {processes.output}")


def run_rounds(
    rounds: int, seed: int, data_root: Path, folder: Path, only: int | None = None
) -> tuple[list[str], collections.Counter]:
    """Run all rounds, or `only` one. Returns a line for each round that was lost, and the number of kills by phase."""
    few = some_of(data_root, folder / "data", {"train": 384, "test": 94})
    whole = preset("tiny", **SETTINGS, data_root=few, output_root=folder, run_name="uninterrupted")
    start_server()
    began = time.monotonic()
    if not Processes(whole).wait():
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
            again = command("-m", "benchmarks.faults", data_root=data_root, seed=seed, only=number)
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
