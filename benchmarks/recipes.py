"""What does each setting of the `tiny` recipe contribute? Runs of equal time, scored by the reference classifier.

    python -m benchmarks.recipes --data-root DIR --minutes 5                     every recipe, a table at the end
    python -m benchmarks.recipes --data-root DIR --minutes 10 --recipes tiny --seeds 0 1 2

`tiny` is the preset; each other recipe is the starting point of the search for it, with some flags changed. First, the
number of steps that fit into the time is measured in rounds, for every kind of step that the recipes have, as the
learning rate has to reach zero at the last step. Nothing else should run during that. Then `train.py` trains for that
number of steps, and its final weights draw characters with the preset's sampler (DDIM, 20 steps). These trainings may
share the machine (`--at-once`): their steps are fixed, not their time. After an interruption, the same command
continues: what is in the file of results is neither measured nor trained again, nor are finished runs in `--folder`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console

from ddpm.evaluation.classifier import ReferenceClassifier, load_or_train
from ddpm.evaluation.generate import ImageGenerator, SamplerSettings
from ddpm.evaluation.measures import Reference
from ddpm.evaluation.scores import bootstrap, frechet_distance, hits, relative_accuracy
from ddpm.run.config import NUM_CLASSES, preset
from ddpm.run.files import atomic_write
from ddpm.run.paths import PROJECT_ROOT, RunPaths
from ddpm.run.program import run_program
from ddpm.sampling.load import load_model
from ddpm.training import data, hardware
from ddpm.training.distributed import connect

BASE = "--batch-size 64 --timestep-power 1"  # the starting point of the search; each line below changes it
CHANGES = {
    "base": "",
    "reference recipe": "--prediction-type epsilon --timestep-sampling uniform --lr 1e-4 --lr-schedule constant "
    "--warmup-steps 0 --ema-decay 0.999",
    "epsilon": "--prediction-type epsilon",
    "uniform timesteps": "--timestep-sampling uniform",
    "timestep power 0.8": "--timestep-power 0.8",
    "timestep power 0.6": "--timestep-power 0.6",
    "timestep power 0.45": "--timestep-power 0.45",
    "timestep power 0.6 and batch 32": "--timestep-power 0.6 --batch-size 32",
    "min-SNR": "--loss-weighting min_snr",
    "lr 1e-3": "--lr 1e-3",
    "lr 2e-3": "--lr 2e-3",
    "lr 5e-3": "--lr 5e-3",
    "constant lr": "--lr-schedule constant",
    "no warm-up": "--warmup-steps 0",
    "EMA 0.98": "--ema-decay 0.98",
    "EMA 0.999": "--ema-decay 0.999",
    "batch 32": "--batch-size 32",
    "batch 128": "--batch-size 128",
    "label dropout 0.05": "--cfg-dropout-prob 0.05",
    "label dropout 0.2": "--cfg-dropout-prob 0.2",
    "attention": "--mid-attention",
    "channels 24 48 96": "--block-out-channels 24 48 96",
    "channels 16 48 96": "--block-out-channels 16 48 96",
    "channels 32 64 64": "--block-out-channels 32 64 64",
    "two layers": "--layers-per-block 2",
    "weight decay 0": "--weight-decay 0",
    "fp32": "--precision fp32",
}
RECIPES = {"tiny": "", **{name: f"{BASE} {change}".strip() for name, change in CHANGES.items()}}
CHANGES_THE_STEP = ("--batch-size", "--block-out-channels", "--layers-per-block", "--mid-attention", "--precision")
MEASURED_STEPS, ROUNDS = 30, 3


def train(
    flags: str, seed: int, steps: int, data_root: Path, root: Path, name: str, threads: int | None = None
) -> dict[str, Any]:
    """Train `tiny` with `flags` for `steps` steps. Returns the last row, with the training time of all."""
    command = [
        sys.executable, "train.py", "--preset", "tiny", "--data-root", str(data_root), "--output-root", str(root),
        "--run-name", name, "--seed", str(seed), "--max-steps", str(steps), "--epochs", "1000",
        "--samples-per-class", "0", "--val-every", "1000", "--checkpoint-every", "1000", "--eval-every", "0",
        "--no-export",
        *flags.split(),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads or os.cpu_count())}
    subprocess.run(command, cwd=PROJECT_ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)
    rows = pd.read_csv(RunPaths(root, name).csv)
    return {**rows.iloc[-1].to_dict(), "train_time_sec": rows["train_time_sec"].sum()}


class CheckpointScorer:
    """Scores trained models, always with the same labels and noise."""

    def __init__(self, data_root: Path, root: Path, per_class: int) -> None:
        config = preset("tiny", data_root=data_root)
        with connect() as world:
            train_set, test_set = data.load(config, world)
            self.device = world.device
        folder = RunPaths(root, "").classifiers
        self.classifier: ReferenceClassifier = load_or_train(
            train_set, test_set, folder, lambda said: print(said, flush=True)
        )
        _, unseen = data.split_test(test_set, config.val_images)  # validation has the others
        self.reference = Reference.of(self.classifier, unseen, config.resolution)
        self.labels = torch.arange(NUM_CLASSES).repeat(per_class)

    def score(self, checkpoint: Path, guidance: list[float]) -> list[dict[str, Any]]:
        """RCA and Fréchet distance at each guidance scale."""
        console, precision = Console(quiet=True), hardware.pick_precision("auto", self.device)[0]
        generator = ImageGenerator(
            load_model(str(checkpoint), self.device).pipeline, precision, None, console, lambda said: None
        )
        figures = []
        for guidance_scale in guidance:
            drawn = generator.draw(self.labels, SamplerSettings("ddim", 20, guidance_scale), 0, "drawing")
            predictions = self.classifier(drawn.pixels)
            rca = bootstrap(relative_accuracy, hits(predictions.probabilities, self.labels, 1), self.reference.hits)
            figures.append(
                {
                    "guidance_scale": guidance_scale,
                    "rca": rca.to_dict(),
                    "frechet": frechet_distance(predictions.features, self.reference.half),
                }
            )
        return figures


def table(results: list[dict[str, Any]]) -> str:
    """The results as Markdown, the best first."""
    scales = [figure["guidance_scale"] for figure in results[0]["figures"]]
    heads = ["recipe", "seed", "steps", "ms per step", "val. loss (EMA)"]
    heads += [f"RCA at guidance {scale:g}" for scale in scales] + [f"Fréchet at {scale:g}" for scale in scales]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for result in sorted(results, key=lambda each: -max(figure["rca"]["value"] for figure in each["figures"])):
        cells = [result["recipe"], result["seed"], result["steps"], f"{result['ms_per_step']:.0f}"]
        cells += [f"{result['val_loss_ema']:.4f}"]
        for figure in result["figures"]:
            low, high = figure["rca"]["low"], figure["rca"]["high"]
            cells.append(f"{figure['rca']['value']:.3f} [{low:.3f}, {high:.3f}]")
        cells += [f"{figure['frechet']:.2f}" for figure in result["figures"]]
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
            row = train(f"{flags} --resume never", 0, MEASURED_STEPS, data_root, root, "measure")
            seconds = row["images_seen"] / row["samples_per_sec"]
            known.setdefault(flags, []).append(1000 * seconds / MEASURED_STEPS)
    for flags, measured in known.items():
        print(f"{flags or 'tiny'}: {' '.join(f'{each:.0f}' for each in measured)} ms per step", flush=True)


def trained(options: argparse.Namespace, document: dict[str, Any], root: Path) -> Iterator[tuple[dict[str, Any], Path]]:
    """Train every recipe with every seed for the steps that fit into the time; yields each as it ends."""
    place = (options.data_root.resolve(), root)
    measure_steps(options.recipes, document["ms_per_step"], *place)

    def run(recipe: str, seed: int) -> tuple[dict[str, Any], Path]:
        ms_per_step = statistics.median(document["ms_per_step"][step_flags(recipe)])
        steps = int(60_000 * options.minutes / ms_per_step)
        name = f"{recipe}_{seed}".replace(" ", "_").replace("'", "")
        threads = max(1, (os.cpu_count() or 1) // options.at_once)
        row = train(RECIPES[recipe], seed, steps, *place, name, threads)
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


def begun(options: argparse.Namespace, scorer: CheckpointScorer) -> dict[str, Any]:
    """The document in `--out`, if there is one; else a new one. Exits if minutes or images differ."""
    if options.out.exists():
        document = json.loads(options.out.read_text(encoding="utf-8"))
        if document["minutes"] == options.minutes and document["images_judged"] == len(scorer.labels):
            return document
        sys.exit(f"error: {options.out} is of {document['minutes']:g} minutes and {document['images_judged']} images "
                 "judged: give another --out")  # fmt: skip
    return {
        "generated": datetime.now(UTC).isoformat(timespec="seconds"), "minutes": options.minutes,
        "machine": f"{hardware.device_name(scorer.device)}, {os.cpu_count()} threads", "torch": torch.__version__,
        "classifier_top1": scorer.classifier.meta["top1"], "images_judged": len(scorer.labels),
        "ms_per_step": {}, "results": [],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True, help="folder that holds EMNIST/raw/")
    parser.add_argument("--minutes", type=float, default=5.0, help="training time of each run, on an idle machine")
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--guidance", nargs="+", type=float, default=[1.0, 2.0])
    parser.add_argument("--per-class", type=int, default=10, help="characters of each class that are judged")
    parser.add_argument("--at-once", type=int, default=1, help="trainings that share the machine's cores")
    parser.add_argument("--out", type=Path, default=PROJECT_ROOT / "benchmarks" / "results" / "recipes.json")
    parser.add_argument("--folder", type=Path, help="where the runs are kept (default: a folder that is removed)")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        root = (options.folder or Path(scratch)).resolve()
        scorer = CheckpointScorer(options.data_root, root, options.per_class)
        document = begun(options, scorer)
        for result, checkpoint in trained(options, document, root):
            document["results"].append({**result, "figures": scorer.score(checkpoint, options.guidance)})
            atomic_write(options.out, json.dumps(document, indent=2))
            print(table(document["results"][-1:]).splitlines()[-1], flush=True)
    print(table(document["results"]))


if __name__ == "__main__":
    sys.exit(run_program(main))
