"""How fast is a given quality reached? The record of `tiny`, against the recipe that this project grew from.

    python -m benchmarks.speedrun --data-root DIR --steps 11000                 the recipes `fast` and `reference`
    python -m benchmarks.speedrun --data-root DIR --steps 11000 --flags "--optimizer adamw" --recipes fast

The rules, which stand before any record:

- The images are the 18,800 and 3,760 of EMNIST Balanced whose digest is in the result, the machine has two CPU cores,
  and nothing else runs on it.
- The time is that of training, the column `train_time_sec`: all optimizer steps but the first, which compiles, without
  start-up. Nothing is validated or drawn meanwhile.
- Quality is that of 4,700 characters, 100 of each class, drawn by the EMA weights at guidance 1 with DDPM in 50
  steps: RCA at least 0.90 by the reference classifier, CAS at least 0.95 (three classifiers that learn from
  these characters alone, over three that learn from as many real ones). No image is picked, and no test image is used
  in training.
- A record holds if the means over the seeds are above both thresholds with p < 0.01, by a one-sided t-test over the
  seeds, five or more (as in modded-nanogpt). The slowest seed counts as its time.
- Recipes that are compared take the same number of seeds, in turn. A command that is given again with the same
  `--folder` goes on where it was interrupted: a finished training is not repeated.

results/speedrun.md has one line for each record.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import statistics
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.rounds import Parser, machine
from benchmarks.common.trained import Judge, say, train
from ddpm.run.config import RECIPES, preset
from ddpm.run.files import atomic_write
from ddpm.run.paths import PROJECT_ROOT, RunPaths
from ddpm.run.program import run_program
from ddpm.training.describe import commit

THRESHOLDS = {"rca": 0.90, "cas": 0.95}
P = 0.01


def p_value(values: list[float], threshold: float) -> float:
    """The probability of a mean this far above the threshold, or farther, if the true mean were the threshold
    (Student's t-test, one-sided); NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan
    spread = statistics.stdev(values) / len(values) ** 0.5
    if not spread:
        return 0.0 if statistics.fmean(values) > threshold else 1.0
    t, freedom = (statistics.fmean(values) - threshold) / spread, len(values) - 1
    angles = np.linspace(-np.pi / 2, math.atan(t / freedom**0.5), 20_001)  # the density of t in terms of the angle
    density = np.cos(angles) ** (freedom - 1)
    whole = math.pi**0.5 * math.gamma(freedom / 2) / math.gamma((freedom + 1) / 2)
    return max(0.0, 1 - float(np.trapezoid(density, angles)) / whole)


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Times and figures of one recipe's runs, and whether they make a record."""
    values = {name: [run[name]["value"] for run in runs] for name in THRESHOLDS}
    tests = {name: p_value(values[name], threshold) for name, threshold in THRESHOLDS.items()}
    return {
        "seeds": len(runs),
        "steps": runs[0]["steps"],
        "seconds": max(run["seconds"] for run in runs),
        "seconds_median": statistics.median(run["seconds"] for run in runs),
        **{name: statistics.fmean(each) for name, each in values.items()},
        **{f"{name}_min": min(each) for name, each in values.items()},
        "frechet": statistics.fmean(run["frechet"]["value"] for run in runs),
        "p": tests,
        "record": len(runs) >= 5 and all(p < P for p in tests.values()),
    }


def table(summaries: dict[str, dict[str, Any]]) -> str:
    """A line for each recipe, in Markdown."""
    rows = [
        "| recipe | seeds | steps | slowest | RCA, mean (least) | CAS, mean (least) | Fréchet | p | record |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, each in summaries.items():
        figures = (f"{each[figure]:.3f} ({each[f'{figure}_min']:.3f})" for figure in THRESHOLDS)
        tests = ", ".join(f"{p:.2g}" for p in each["p"].values())
        rows.append(
            f"| {name} | {each['seeds']} | {each['steps']:,} | {each['seconds']:.0f} s | {' | '.join(figures)} | "
            f"{each['frechet']:.2f} | {tests} | {'yes' if each['record'] else 'no'} |"
        )
    return "\n".join(rows)


def measure(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Train and judge every seed of every recipe."""
    config = preset(options.preset, data_root=options.data_root.resolve())
    runs: dict[str, list[dict[str, Any]]] = {recipe: [] for recipe in options.recipes}
    checkpoints = {}
    for seed in options.seeds:
        for recipe in options.recipes:
            name = f"{recipe}_{seed}"
            flags = ["--preset", options.preset, "--recipe", recipe, *shlex.split(options.flags)]
            row = train(flags, seed, options.steps, config.data_root, root, name)
            runs[recipe].append({"seed": seed, "steps": options.steps, "seconds": row["train_time_sec"]})
            checkpoints[recipe, seed] = RunPaths(root, name).checkpoints / "latest"
            say(f"{name}: {options.steps:,} steps in {row['train_time_sec']:.0f} s")
    judge = Judge(config, root, options.per_class)
    for recipe, those in runs.items():
        for run in those:
            run |= judge.figures(checkpoints[recipe, run["seed"]], 1.0)
            say(f"{recipe}_{run['seed']}: RCA {run['rca']['value']:.3f}, CAS {run['cas']['value']:.3f}")
    return {
        "generated": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit(),
        **machine(judge.device), "preset": options.preset,
        "flags": options.flags, **judge.facts, "thresholds": THRESHOLDS, "runs": runs,
        "summary": {recipe: summary(those) for recipe, those in runs.items()},
    }  # fmt: skip


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True, help="folder that holds EMNIST/raw/")
    parser.add_argument("--steps", type=int, required=True, help="optimizer steps of each training")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=["fast", "reference"])
    parser.add_argument("--flags", default="", help="further flags of train.py, for every recipe")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--per-class", type=int, default=100, help="characters of each class that are judged")
    parser.add_argument("--folder", type=Path, help="where the runs are kept (default: a folder that is removed)")
    parser.add_argument("--out", type=Path, default=PROJECT_ROOT / "benchmarks" / "results" / "speedrun.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        document = measure(options, (options.folder or Path(scratch)).resolve())
    options.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(options.out, json.dumps(document, indent=2))
    print(table(document["summary"]))


if __name__ == "__main__":
    sys.exit(run_program(main))
