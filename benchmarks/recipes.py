"""What does each setting of the `tiny` recipe contribute? Runs of equal time, judged by what they draw.

    python -m benchmarks.recipes --data-root DIR --minutes 5                     every recipe, a table at the end
    python -m benchmarks.recipes --data-root DIR --minutes 10 --recipes tiny --seeds 0 1 2

`tiny` is the preset; each other recipe changes some of its flags. First, the number of steps that fit into the time is
measured in rounds, for every kind of step that the recipes have, as the learning rate has to reach zero at the last
step. Nothing else should run during that. Then `train.py` trains for that number of steps, and what its final weights
draw is judged as in benchmarks/common/trained.py. These trainings may share the machine (`--at-once`): their steps are
fixed, not their time. After an interruption, the same command continues: what is in the file of results is neither
measured nor trained again, nor are finished runs in `--folder`. Characters are drawn and judged while others train:
with OMP_NUM_THREADS=1, each of them has one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.common.rounds import machine
from benchmarks.common.trained import STEPS, Judge, train
from ddpm.run.config import preset
from ddpm.run.errors import RequestError
from ddpm.run.files import atomic_write
from ddpm.run.paths import PROJECT_ROOT, RunPaths
from ddpm.run.program import run_program

TINY = ("--preset", "tiny", "--compile")  # as it is compiled in runs of its length
RECIPES = {
    "tiny": "",
    "AdamW": "--optimizer adamw --weight-decay 0.01",
    "weight decay 0.01": "--weight-decay 0.01",
    "lr 2e-3": "--lr 2e-3",
    "lr 5e-3": "--lr 5e-3",
    "constant lr": "--lr-schedule constant",
    "EMA 0.98": "--ema-decay 0.98",
    "even timesteps": "--timestep-power 1",
    "timestep power 0.6": "--timestep-power 0.6",
    "timesteps not stratified": "--timestep-sampling uniform",
    "epsilon": "--prediction-type epsilon",
    "embedding added": "--resnet-time-scale-shift default",
    "label dropout 0.05": "--cfg-dropout-prob 0.05",
    "batch 64": "--batch-size 64",
    "channels 48 96": "--block-out-channels 48 96",
    "channels 64 128": "--block-out-channels 64 128",
    "whole pixels": "--patch-size 1 --block-out-channels 16 32 64",
    "attention": "--mid-attention",
    "reference recipe": "--recipe reference",
}
CHANGES_THE_STEP = (
    "--recipe", "--optimizer", "--patch-size", "--batch-size", "--block-out-channels", "--layers-per-block",
    "--mid-attention", "--resnet-time-scale-shift", "--precision",
)  # fmt: skip
FIGURES = {"rca": "RCA", "cas": "CAS", "frechet": "Fréchet"}
MEASURED_STEPS, ROUNDS = 100, 3


def table(results: list[dict[str, Any]]) -> str:
    """The results as Markdown, the best first."""
    scales = [figure["guidance_scale"] for figure in results[0]["figures"]]
    heads = ["recipe", "seed", "steps", "ms per step", "val. loss (EMA)"]
    heads += [f"{figure} at guidance {scale:g}" for scale in scales for figure in FIGURES.values()]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for result in sorted(results, key=lambda each: -max(figure["rca"]["value"] for figure in each["figures"])):
        cells = [result["recipe"], result["seed"], result["steps"], f"{result['ms_per_step']:.0f}"]
        cells += [f"{result['val_loss_ema']:.4f}"]
        for figure in result["figures"]:
            for name in ("rca", "cas"):
                cells.append("{value:.3f} [{low:.3f}, {high:.3f}]".format(**figure[name]))
            cells.append(f"{figure['frechet']['value']:.2f}")
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def means(results: list[dict[str, Any]]) -> str:
    """A line for each guidance and recipe: means over its seeds, with the least and the greatest; best CAS first."""
    measured = [
        {
            **{name: result[name] for name in ("recipe", "steps", "ms_per_step")},
            "guidance": figures["guidance_scale"], **{name: figures[name]["value"] for name in FIGURES},
        }
        for result in results for figures in result["figures"]
    ]  # fmt: skip
    groups = [(*key, group) for key, group in pd.DataFrame(measured).groupby(["guidance", "recipe"])]
    heads = ["recipe", "guidance", "seeds", "steps", "ms per step"]
    heads += [f"{figure}, mean (range)" for figure in FIGURES.values()]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for guidance, recipe, group in sorted(groups, key=lambda each: (each[0], -each[2]["cas"].mean())):
        steps, ms_per_step = group[["steps", "ms_per_step"]].iloc[0]
        cells = [recipe, f"{guidance:g}", len(group), f"{steps:,.0f}", f"{ms_per_step:.0f}"]
        cells += [f"{of.mean():.3f} ({of.min():.3f}–{of.max():.3f})" for of in (group[name] for name in FIGURES)]
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def step_flags(recipe: str) -> str:
    """The flags of `recipe` that change the time of a step."""
    parts = RECIPES[recipe].replace(" --", "\n--").splitlines()
    settings = {part.split()[0]: part for part in parts if part.startswith(CHANGES_THE_STEP)}  # the last one counts
    return " ".join(settings.values())


def measure_steps(recipes: list[str], known: dict[str, list[float]], data_root: Path, root: Path) -> None:
    """Measure the milliseconds of a step in `ROUNDS` interleaved rounds, and add them to `known`, by `step_flags`."""
    unknown = {step_flags(recipe) for recipe in recipes} - set(known)
    for _ in range(ROUNDS):
        for flags in sorted(unknown):
            row = train([*TINY, *flags.split(), "--resume", "never"], 0, MEASURED_STEPS, data_root, root, "measure")
            seconds = row["images_seen"] / row["samples_per_sec"]
            known.setdefault(flags, []).append(1000 * seconds / MEASURED_STEPS)
    for flags, measured in known.items():
        print(f"{flags or 'tiny'}: {' '.join(f'{each:.0f}' for each in measured)} ms per step", flush=True)


def trained(options: argparse.Namespace, document: dict[str, Any], root: Path) -> Iterator[tuple[dict[str, Any], Path]]:
    """Train every recipe with every seed for the steps that fit into the time; yields each as it ends."""
    place = (options.data_root.resolve(), root)
    measure_steps(options.recipes, document["ms_per_step"], *place)
    atomic_write(options.out, json.dumps(document, indent=2))

    def run(recipe: str, seed: int) -> tuple[dict[str, Any], Path]:
        ms_per_step = statistics.median(document["ms_per_step"][step_flags(recipe)])
        steps = int(60_000 * options.minutes / ms_per_step)
        name = f"{recipe}_{seed}".replace(" ", "_").replace("'", "")
        threads = max(1, (os.cpu_count() or 1) // options.at_once)
        row = train([*TINY, *RECIPES[recipe].split()], seed, steps, *place, name, threads)
        result = {
            "recipe": recipe, "flags": RECIPES[recipe], "seed": seed, "steps": steps, "ms_per_step": ms_per_step,
            "seconds_taken": row["train_time_sec"], "images_seen": int(row["images_seen"]),
            "val_loss_ema": row["val_loss_ema"],
        }  # fmt: skip
        return result, RunPaths(root, name).checkpoints / "latest"

    done = {(result["recipe"], result["seed"]) for result in document["results"]}
    asked = [(recipe, seed) for recipe in options.recipes for seed in options.seeds if (recipe, seed) not in done]
    with ThreadPoolExecutor(options.at_once) as pool:
        yield from (job.result() for job in as_completed([pool.submit(run, *each) for each in asked]))


def begun(options: argparse.Namespace, judge: Judge) -> dict[str, Any]:
    """The document in `--out`, if there is one; else a new one.

    Raises:
        RequestError: that one is of other minutes, or judges in another way.
    """
    facts = {"minutes": options.minutes, **judge.facts}
    if not options.out.exists():
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return {"generated": now, **machine(judge.device), **facts, "ms_per_step": {}, "results": []}
    document = json.loads(options.out.read_text(encoding="utf-8"))
    for name in ("minutes", "images_judged", "sample_steps", "data_sha256"):
        if document.get(name) != facts[name]:
            raise RequestError(f"{options.out} has {name} {document.get(name)}, not {facts[name]}: give another --out")
    return document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True, help="folder that holds EMNIST/raw/")
    parser.add_argument("--minutes", type=float, default=5.0, help="training time of each run, on an idle machine")
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--guidance", nargs="+", type=float, default=[1.0])
    parser.add_argument("--per-class", type=int, default=100, help="characters of each class that are judged")
    parser.add_argument("--sample-steps", type=int, default=STEPS, help="steps in which each is drawn")
    parser.add_argument("--at-once", type=int, default=1, help="trainings that share the machine's cores")
    parser.add_argument("--out", type=Path, default=PROJECT_ROOT / "benchmarks" / "results" / "recipes.json")
    parser.add_argument("--folder", type=Path, help="where the runs are kept (default: a folder that is removed)")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        root = (options.folder or Path(scratch)).resolve()
        judge = Judge(preset("tiny", data_root=options.data_root), root, options.per_class, options.sample_steps)
        document = begun(options, judge)
        for result, checkpoint in trained(options, document, root):
            figures = [{"guidance_scale": scale, **judge.figures(checkpoint, scale)} for scale in options.guidance]
            document["results"].append({**result, "figures": figures})
            atomic_write(options.out, json.dumps(document, indent=2))
            print(table(document["results"][-1:]).splitlines()[-1], flush=True)
    print(f"{table(document['results'])}\n\n{means(document['results'])}")


if __name__ == "__main__":
    sys.exit(run_program(main))
