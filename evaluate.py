"""How good are the characters that a model draws? Measured by a classifier that was trained on the real ones.

    python evaluate.py RUN                       the best checkpoint of a run; also a checkpoint's or an export's folder
    python evaluate.py RUN --no-sweeps           without comparing guidance scales and samplers, which takes longest

Leaves evaluation.json, pictures and the generated images, and adds a section to the run's report.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from tyro.conf import Positional

from ddpm.evaluation import measures as parts
from ddpm.evaluation.classifier import ReferenceClassifier, load_or_train
from ddpm.evaluation.galleries import closest_sheet, worst_sheet
from ddpm.evaluation.generate import ImageGenerator, SamplerSettings
from ddpm.evaluation.result import figures_table, in_words, sweep_table
from ddpm.evaluation.scores import Estimate
from ddpm.evaluation.sweeps import guidance_settings, recommend, sampler_settings, sweep
from ddpm.run import cli
from ddpm.run.config import NULL_CLASS, NUM_CLASSES, TrainConfig, data_words
from ddpm.run.errors import RequestError
from ddpm.run.files import atomic_write, read_file, real
from ddpm.run.format import rough_duration
from ddpm.run.paths import PROJECT_ROOT
from ddpm.run.program import run_program
from ddpm.sampling.load import load_model
from ddpm.sampling.sheets import npz, png
from ddpm.training import data, hardware
from ddpm.training.device import pick_device
from ddpm.training.distributed import DistContext
from ddpm.training.threads import settle
from metrics.evaluation_section import write_evaluation_plots
from metrics.report import write_report
from metrics.tracker import jsonable

INTERRUPTED = 130


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure how good the characters of a trained model are; see README for what the figures mean."""

    model: Positional[str]
    """A run (its best checkpoint), or the folder of a checkpoint or an export."""
    weights: Literal["ema", "swa"] = "ema"
    """The moving average of the weights, or the average over epochs, if --swa-start-epoch made one."""
    samples_per_class: int = 100
    """Characters of each class that are drawn and judged."""
    data: Literal["emnist", "glyphs"] | None = None
    """The real images to measure by; left out, what the model was trained on."""
    data_root: Path | None = None
    """Folder that holds EMNIST/raw/ (emnist) or glyphs/; left out, the one that the model was trained from."""
    download: bool = False
    """Fetch EMNIST into --data-root if it is not there."""
    sampler: Literal["ddpm", "ddim", "dpm++"] = "ddim"
    """How images are drawn."""
    steps: int | None = None
    """Steps of the sampler; left out, those of the run's sample grids."""
    guidance_scale: float | None = None
    """Classifier-free guidance: 1 is none, 0 ignores the class; left out, that of the run's sample grids."""
    seed: int = 0
    """All that is random follows from it."""
    batch_size: int | None = None
    """Images in one forward pass; left out, as many as suit the device. What is drawn does not depend on it."""
    device: str = "auto"
    """auto takes a GPU if one is granted or there; else cpu, cuda, cuda:1. A GPU that cannot be used is refused."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Autocast type of the model; auto takes bf16 where the device has it. The classifier is always fp32."""
    compile: bool = False
    """torch.compile the model: pays on a GPU with the big presets and many samples."""
    sweeps: bool = True
    """Also compare guidance scales and samplers, to say which sampler to take. On a CPU this takes long."""
    sweep_samples_per_class: int | None = None
    """Characters of each class for each of them; left out, 50 on a GPU and 10 on a CPU."""
    output_root: Path = PROJECT_ROOT
    """Folder with checkpoints/ and metrics/output/ of the runs."""
    out: Path | None = None
    """Folder for all files; left out, metrics/output/<run>/, and the run's report is brought up to date."""

    def __post_init__(self) -> None:
        for name in ("samples_per_class", "sweep_samples_per_class", "steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RequestError(f"--{name.replace('_', '-')} {value}: must be 1 or more")
        if self.guidance_scale is not None and not 0 <= self.guidance_scale < float("inf"):
            raise RequestError(f"--guidance-scale {self.guidance_scale}: must be 0 or more")
        if self.seed < 0:
            raise RequestError(f"--seed {self.seed}: must be 0 or more")


class Evaluator:
    """One evaluation: what is measured, by what, and what is known so far."""

    def __init__(self, config: EvaluateConfig, command: str, console: Console) -> None:
        """Load model and data.

        Raises:
            RequestError: one of them is not there, or the settings do not suit the model.
        """
        self.config, self.console, self.started = config, console, time.monotonic()
        device, _ = pick_device(config.device)
        self.model = load_model(config.model, device, config.output_root, config.weights)
        settings = self.model.meta["settings"]
        self.sampler_settings = SamplerSettings(
            config.sampler,
            config.steps or settings["sample_steps"],
            settings["guidance_scale"] if config.guidance_scale is None else config.guidance_scale,
        )
        self.most_steps = self.model.pipeline.scheduler.config.num_train_timesteps
        if self.sampler_settings.steps > self.most_steps:
            raise RequestError(f"--steps {self.sampler_settings.steps}: this model takes at most {self.most_steps}")
        paths, out = self.model.paths, config.out and real(config.out)
        self.folder, self.json = (out, out / "evaluation.json") if out else (paths.evaluation_files, paths.evaluation)
        where = TrainConfig(
            data=config.data or self.model.data,
            data_root=Path(config.data_root or settings["data_root"]),
            download=config.download,
        )
        self.precision, _ = hardware.pick_precision(config.precision, device)
        self.data = where.data
        self.train, self.test = data.load(where, DistContext(0, 0, 1, 1, device))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / ".writable").touch()
            (self.folder / ".writable").unlink()
        except OSError as error:
            raise RequestError(f"cannot write to {error.filename} ({error.strerror}): choose another --out") from error
        if config.compile:
            self.model.pipeline.unet.compile()
        self.generator = ImageGenerator(self.model.pipeline, self.precision, config.batch_size, console, self.log)
        self.document: dict[str, Any] = {
            "generated": "", "run": self.model.run, "checkpoint": self.model.folder.name,
            "weights": config.weights,
            "step": self.model.meta["progress"]["step"], "data": self.data, "trained_on": self.model.data,
            "device": hardware.device_name(device), "precision": self.precision, "torch": torch.__version__,
            "command": command, "seed": config.seed, "samples_per_class": config.samples_per_class,
        }  # fmt: skip

    def main(self) -> None:
        """Measure all; the files are whole after every part."""
        self.log(f"model: {self.model.folder}, {self.model.progress}, trained on {self.model.source}")
        self.log(f"device: {self.document['device']}, precision {self.precision}")
        self.check_classifier()
        self.measure()
        with suppress(FileNotFoundError):  # its sweeps may have taken an hour
            atomic_write(self.json.with_suffix(".previous.json"), read_file(self.json))
        self.save()
        self.console.print(figures_table(self.document))
        if self.config.sweeps:
            self.sweep("guidance", guidance_settings(self.sampler_settings))
            self.sweep("samplers", sampler_settings(self.sampler_settings, self.most_steps))

    # ---- what is measured --------------------------------------------------------------------------------------------

    def check_classifier(self) -> None:
        """First of all: is the classifier as good on real images as it should be? If not, no figure below is."""
        part = parts.classifier_part(self.classifier, self.test)
        self.document["classifier"] = part
        self.log(
            f"classifier on {part['top1'].count:,} real test images ({self.real}): "
            f"Top-1 {in_words(part['top1'])}, Top-5 {in_words(part['top5'])}"
        )
        if self.data == "emnist":
            self.log("  EMNIST Balanced is near 88-91% Top-1 with all 112,800 training images, less with fewer; "
                     "far less means that the data are not read rightly")  # fmt: skip

    @cached_property
    def classifier(self) -> ReferenceClassifier:
        return load_or_train(self.train, self.test, self.model.paths.classifiers, self.log)

    @cached_property
    def reference(self) -> parts.Reference:
        return parts.Reference.of(self.classifier, self.test, self.generator.resolution)

    def measure(self) -> None:
        """Draw characters of every class, and of none, and judge them; the pictures are written too."""
        labels, count = self.labels(self.config.samples_per_class), NUM_CLASSES * self.config.samples_per_class
        drawn = self.generator.draw(labels, self.sampler_settings, self.config.seed, "characters of each class")
        any_class = torch.full((min(count, len(self.test)),), NULL_CLASS)
        plain = SamplerSettings(self.sampler_settings.sampler, self.sampler_settings.steps, 1.0)
        undirected = self.generator.draw(any_class, plain, self.config.seed, "no class asked for")
        self.log("judging")
        predictions = self.classifier(drawn.pixels)
        pixels = torch.from_numpy(drawn.pixels)
        resolution = self.generator.resolution
        ours = parts.neighbours(pixels, self.train, resolution)
        heldout = parts.neighbours(parts.as_drawn(self.test.pixels, resolution), self.train, resolution)
        self.document |= {
            "sampler": {
                "name": self.sampler_settings.sampler, "steps": self.sampler_settings.steps,
                "guidance_scale": self.sampler_settings.guidance_scale,
                "seconds_per_image": drawn.seconds_per_image,
            },
            "conditional": parts.conditional_part(predictions, labels, self.reference),
            "class_balance": parts.balance_part(self.classifier(undirected.pixels), self.reference),
            "distances": parts.distances_part(predictions.features, self.reference),
            "memorisation": parts.memorisation_part(ours, heldout, len(self.train)),
            "guidance": [], "samplers": [], "recommended": None,
        }  # fmt: skip
        atomic_write(self.folder / "generated.npz", npz(x=drawn.pixels, y=labels.numpy()))
        caption = (
            f"{self.model.run}, {self.model.folder.name} · {self.sampler_settings} · trained on {self.model.source}"
        )
        worst = worst_sheet(
            drawn.pixels,
            labels,
            predictions,
            "Wanted → seen: what the classifier is most sure is something else",
            caption,
        )
        nearest = ours.indices.to(self.train.pixels.device)
        originals, seen = self.train.pixels[nearest].cpu(), self.train.labels[nearest].cpu()
        usual = self.document["memorisation"]["heldout"]["p01"]
        closest = closest_sheet(
            drawn.pixels, labels, originals, seen, ours.distances,
            "Nearest to the training images: generated | nearest, classes and distance",
            f"{caption} · nearest of {len(labels):,}, two of a class · 1% of held-out real images are nearer than "
            f"{usual:.2f}",
        )  # fmt: skip
        for name, sheet in {"worst.png": worst, "closest_pairs.png": closest}.items():
            atomic_write(self.folder / name, png(sheet))

    def sweep(self, name: str, candidates: list[SamplerSettings]) -> None:
        """Try `candidates`, and add what each gives to the files."""
        gpu = self.generator.device.type == "cuda"
        per_class = self.config.sweep_samples_per_class or (50 if gpu else 10)
        labels = self.labels(per_class)
        per_step = self.document["sampler"]["seconds_per_image"] / self.sampler_settings.evaluations
        expected = per_step * len(labels) * sum(sampler_settings.evaluations for sampler_settings in candidates)
        self.log(f"{name}: {len(candidates)} × {len(labels):,} images, about {rough_duration(expected)} in all; Ctrl-C "
                 "ends it, and what is measured by then stands")  # fmt: skip
        rows = self.document[name]
        for row in sweep(candidates, labels, self.config.seed, self.generator, self.classifier, self.reference):
            rows.append(row)
            if name == "samplers":
                self.document["recommended"] = recommend(rows)
            self.save()
        self.console.print(sweep_table(name, rows))

    # ---- what is left ------------------------------------------------------------------------------------------------

    def save(self) -> None:
        self.document["generated"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        content = json.dumps(
            jsonable(self.document), default=Estimate.to_dict, ensure_ascii=False, indent=1, allow_nan=False
        )
        atomic_write(self.json, content)

    def publish(self) -> None:
        """Say what is recommended and where everything is; bring the run's report up to date."""
        if best := self.document.get("recommended"):
            self.say(f"take --sampler {best['sampler']} --steps {best['steps']}: {best['why']}")
        paths = self.model.paths
        if not self.config.out:
            self.log("drawing the plots")
            if os.path.lexists(paths.json):
                self.say(f"report: {write_report(paths)}")
            else:  # the checkpoint has come without its run's figures
                write_evaluation_plots(paths)
        for path in (self.json, *sorted(self.folder.glob("*.*"))):
            self.say(f"{path.stem.replace('_', ' ')}: {path}")

    # ---- small things ------------------------------------------------------------------------------------------------

    @property
    def real(self) -> str:
        return data_words(self.data)

    def labels(self, per_class: int) -> torch.Tensor:
        """All classes in turn, so that any first part holds them evenly: int64 [47 * per_class]."""
        return torch.arange(NUM_CLASSES).repeat(per_class)

    def log(self, line: str) -> None:
        passed = time.monotonic() - self.started
        self.say(f"{passed // 60:3.0f}:{passed % 60:02.0f}  {line}")

    def say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


@cli.in_one_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate as the command line asks. Returns 0, 2 for a wrong request, 130 for Ctrl-C, 1 for anything else."""
    console, evaluation = Console(), None
    typed = sys.argv[1:] if arguments is None else list(arguments)
    try:
        config = cli.parse(EvaluateConfig, arguments, "evaluate.py")
        device, _ = pick_device(config.device)
        hardware.set_up(device, deterministic=False)
        if fewer := settle(device):
            console.print(fewer, markup=False, highlight=False)
        evaluation = Evaluator(config, shlex.join(["python", "evaluate.py", *typed]), console)
        evaluation.main()
        evaluation.publish()
    except KeyboardInterrupt:
        stands = "nothing was measured yet"
        if evaluation and "conditional" in evaluation.document and os.path.exists(evaluation.json):
            stands = f"what was measured by then is in {evaluation.json}"
        print(f"interrupted; {stands}", file=sys.stderr)
        return INTERRUPTED
    except torch.OutOfMemoryError as error:
        print(f"error: out of memory, give a smaller --batch-size ({error})", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
