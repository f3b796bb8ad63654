"""What does each ingredient of the `tiny` recipe give? Runs at equal time, judged by the reference classifier.

    python -m benchmarks.recipes --data-root DIR --minutes 5                     every recipe, a table at the end
    python -m benchmarks.recipes --data-root DIR --minutes 10 --recipes tiny --seeds 0 1 2

Each recipe is the `tiny` preset with some flags changed. How many steps fit into the time is measured first, with the
recipe's own step, as the learning rate has to reach zero at the last one. Then `train.py` runs, and its final weights
draw characters with the preset's sampler (DDIM, 20 steps) at several guidance scales. Nothing else should run then.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console

from ddpm import data, hardware
from ddpm.config import NUM_CLASSES, preset
from ddpm.distributed import connect
from ddpm.files import atomic_write
from ddpm.paths import PROJECT_ROOT, RunPaths
from ddpm.trained import load
from judge.artist import Artist, Manner
from judge.classifier import Judge, load_or_train
from judge.evaluation import Reference
from judge.scores import bootstrap, frechet_distance, hits, relative_accuracy

RECIPES: dict[str, str] = {
    "tiny": "",
    "DESIGN's recipe": "--prediction-type epsilon --timestep-sampling uniform --timestep-power 1 --lr 1e-4 "
    "--lr-schedule constant --warmup-steps 0 --ema-decay 0.999",
    "epsilon": "--prediction-type epsilon",
    "uniform timesteps": "--timestep-sampling uniform",
    "timestep power 1": "--timestep-power 1",
    "timestep power 0.8": "--timestep-power 0.8",
    "timestep power 0.6": "--timestep-power 0.6",
    "timestep power 0.45": "--timestep-power 0.45",
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
MEASURED_STEPS = 80
GUIDANCE = (1.0, 1.5, 2.0)


def train(flags: str, seed: int, steps: int, data_root: Path, root: Path, name: str) -> dict[str, Any]:
    """Train `tiny` with `flags` for so many steps; returns the last row of its figures, with the time of all."""
    command = [
        sys.executable, "train.py", "--preset", "tiny", "--data-root", str(data_root), "--output-root", str(root),
        "--run-name", name, "--resume", "never", "--seed", str(seed), "--max-steps", str(steps), "--epochs", "1000",
        "--samples-per-class", "0", "--val-every", "1000", "--checkpoint-every", "1000", "--eval-every", "0",
        "--no-export",
        *flags.split(),
    ]  # fmt: skip
    subprocess.run(command, cwd=PROJECT_ROOT, stdout=subprocess.DEVNULL, check=True)
    rows = pd.read_csv(RunPaths(root, name).csv)
    return {**rows.iloc[-1].to_dict(), "train_time_sec": rows["train_time_sec"].sum()}


class Jury:
    """Judges trained models, always with the same labels and noise."""

    def __init__(self, data_root: Path, root: Path, per_class: int) -> None:
        config = preset("tiny", data_root=data_root)
        with connect() as world:
            train_set, test_set = data.load(config, world)
            self.device = world.device
        folder = RunPaths(root, "").classifiers
        self.judge: Judge = load_or_train(train_set, test_set, folder, lambda said: print(said, flush=True))
        self.reference = Reference.of(self.judge, test_set, config.resolution)
        self.labels = torch.arange(NUM_CLASSES).repeat(per_class)

    def judged(self, checkpoint: Path) -> list[dict[str, Any]]:
        """RCA and Fréchet distance at each guidance scale."""
        console, precision = Console(quiet=True), hardware.pick_precision("auto", self.device)[0]
        artist = Artist(load(str(checkpoint), self.device).pipeline, precision, None, console, lambda said: None)
        figures = []
        for guidance_scale in GUIDANCE:
            drawn = artist.draw(self.labels, Manner("ddim", 20, guidance_scale), 0, "drawing")
            verdicts = self.judge(drawn.pixels)
            rca = bootstrap(relative_accuracy, hits(verdicts.probabilities, self.labels, 1), self.reference.hits)
            figures.append(
                {
                    "guidance_scale": guidance_scale,
                    "rca": rca.to_dict(),
                    "frechet": frechet_distance(verdicts.features, self.reference.half),
                }
            )
        return figures


def table(results: list[dict[str, Any]]) -> str:
    """The results as Markdown, the best first."""
    rows = [
        "| recipe | seed | steps | seconds | val. loss (EMA) | "
        + " | ".join(f"RCA g={scale:g}" for scale in GUIDANCE)
        + " | "
        + " | ".join(f"FD g={scale:g}" for scale in GUIDANCE)
        + " |",
        "|---" * (5 + 2 * len(GUIDANCE)) + "|",
    ]
    for result in sorted(results, key=lambda each: -max(figure["rca"]["value"] for figure in each["figures"])):
        cells = [
            result["recipe"],
            result["seed"],
            result["steps"],
            f"{result['seconds']:.0f}",
            f"{result['val_loss_ema']:.4f}",
        ]
        cells += [f"{figure['rca']['value']:.3f}" for figure in result["figures"]]
        cells += [f"{figure['frechet']:.1f}" for figure in result["figures"]]
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True, help="folder that holds EMNIST/raw/")
    parser.add_argument("--minutes", type=float, default=5.0, help="training time of each run")
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--per-class", type=int, default=20, help="characters of each class that are judged")
    parser.add_argument("--out", type=Path, default=PROJECT_ROOT / "benchmarks" / "results" / "recipes.json")
    parser.add_argument("--folder", type=Path, help="where the runs are kept (default: a folder that is removed)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = (options.folder or Path(scratch)).resolve()
        jury, results = Jury(options.data_root, root, options.per_class), []
        for recipe in options.recipes:
            for seed in options.seeds:
                place = (options.data_root.resolve(), root)
                tried = train(RECIPES[recipe], seed, MEASURED_STEPS, *place, "measure")
                steps = int(60 * options.minutes * tried["samples_per_sec"] * MEASURED_STEPS / tried["images_seen"])
                name = f"{recipe}_{seed}".replace(" ", "_").replace("'", "")
                row = train(RECIPES[recipe], seed, steps, *place, name)
                result = {"recipe": recipe, "flags": RECIPES[recipe], "seed": seed, "steps": steps,
                          "seconds": row["train_time_sec"], "images_seen": int(row["images_seen"]),
                          "val_loss_ema": row["val_loss_ema"],
                          "figures": jury.judged(RunPaths(root, name).checkpoints / "latest")}  # fmt: skip
                results.append(result)
                print(table([result]).splitlines()[-1], flush=True)
                document = {
                    "generated": datetime.now(UTC).isoformat(timespec="seconds"), "minutes": options.minutes,
                    "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
                    "torch": torch.__version__, "classifier_top1": jury.judge.meta["top1"],
                    "images_judged": len(jury.labels), "results": results,
                }  # fmt: skip
                options.out.parent.mkdir(parents=True, exist_ok=True)
                atomic_write(options.out, json.dumps(document, indent=2))
    print(table(results))


if __name__ == "__main__":
    main()
