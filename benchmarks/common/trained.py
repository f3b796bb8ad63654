"""Trains models for the benchmarks of what is learned, and judges what they draw."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console

from ddpm.data.emnist import CLASS_NAMES
from ddpm.evaluation.generate import ImageGenerator, SamplerSettings
from ddpm.evaluation.learning import School
from ddpm.evaluation.measures import Reference
from ddpm.evaluation.reference_classifier import load_or_train
from ddpm.evaluation.scores import hits, rca
from ddpm.run.config import TrainConfig
from ddpm.run.paths import PROJECT_ROOT, RunPaths
from ddpm.sampling.load import load_model
from ddpm.training import data
from ddpm.training.machine import hardware
from ddpm.training.machine.distributed import connect

SAMPLER, STEPS = "ddpm", 50  # ancestral sampling: in as many steps, DDIM leaves more errors of a young model


def train(
    flags: list[str], seed: int, steps: int, data_root: Path, root: Path, name: str, threads: int | None = None
) -> dict[str, Any]:
    """Train with `flags` for `steps` steps, without validation or samples, in a process of its own.

    Returns:
        The last row of figures, with `train_time_sec` of all rows: the seconds from the first step to the last.
    """
    command = [
        sys.executable, "train.py", *flags, "--data-root", str(data_root), "--output-root", str(root),
        "--run-name", name, "--seed", str(seed), "--max-steps", str(steps), "--epochs", "1000",
        "--samples-per-class", "0", "--val-every", "1000", "--checkpoint-every", "1000", "--eval-every", "0",
        "--no-export",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads or os.cpu_count())}
    subprocess.run(command, cwd=PROJECT_ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)
    rows = pd.read_csv(RunPaths(root, name).csv)
    return {**rows.iloc[-1].to_dict(), "train_time_sec": rows["train_time_sec"].sum()}


class Judge:
    """Judges the characters that trained models draw: always the same labels, noise, test images and classifiers."""

    def __init__(self, config: TrainConfig, root: Path, per_class: int, sample_steps: int = STEPS) -> None:
        """
        Args:
            config: of the data, the resolution and the validation images, which are not judged with.
            root: where the reference classifier is kept.
            per_class: characters of each class that are drawn, and learned from.
            sample_steps: in which they are drawn.
        """
        with connect() as world:
            train_set, test_set = data.load(config, world)
            self.device = world.device
        self._classifier = load_or_train(train_set, test_set, RunPaths(root, "").classifiers, say)
        _, unseen = data.split_test(test_set, config.val_images)
        self._reference = Reference.of(self._classifier, unseen, config.resolution)
        self._school = School(train_set, unseen, config.resolution, per_class, say)
        self._real = self._school.teach_real()
        self.labels = torch.arange(len(CLASS_NAMES)).repeat(per_class)
        self.facts = {
            "data_sha256": self._classifier.meta["data_sha256"], "classifier_top1": self._classifier.meta["top1"],
            "real_accuracy": self._real.estimate().to_dict(),
            "images_judged": len(self.labels), "test_images": len(unseen), "sampler": SAMPLER,
            "sample_steps": sample_steps,
        }  # fmt: skip

    def figures(self, checkpoint: Path, guidance_scale: float) -> dict[str, Any]:
        """RCA, CAS and Fréchet distance of what a checkpoint's EMA weights draw."""
        precision = hardware.pick_precision("auto", self.device)[0]
        trained = load_model(str(checkpoint), self.device)
        generator = ImageGenerator(trained.pipeline, precision, None, None, Console(quiet=True), lambda said: None)
        settings = SamplerSettings(SAMPLER, self.facts["sample_steps"], guidance_scale)
        pixels = generator.draw(self.labels, settings, 0, "drawing").pixels
        predictions = self._classifier(pixels)
        taught = self._school.teach(self._school.generated(torch.from_numpy(pixels), self.labels))
        return {
            "rca": rca(hits(predictions.probabilities, self.labels, 1), self._reference.hits).to_dict(),
            "cas": taught.over(self._real).to_dict(),
            "frechet": self._reference.distances(predictions.features)["frechet"].to_dict(),
        }


def say(line: str) -> None:
    print(line, flush=True)
