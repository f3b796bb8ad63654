"""One evaluation of a trained model: draws images, measures them, and writes `evaluation.json` and its pictures."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ddpm.data.classes import affordable_per_class, thing
from ddpm.evaluation import measures as parts
from ddpm.evaluation.classifier import ReferenceClassifier
from ddpm.evaluation.config import EvaluateConfig
from ddpm.evaluation.example_sheets import write_closest, write_worst
from ddpm.evaluation.generate import Drawn, ImageGenerator, SamplerSettings
from ddpm.evaluation.learning import School
from ddpm.evaluation.real_data import load_real_data
from ddpm.evaluation.reference_classifier import load_or_train
from ddpm.evaluation.scores import Estimate
from ddpm.evaluation.sweeps import (
    LENGTHS,
    averager,
    guidance_settings,
    length_settings,
    recommend,
    recommend_length,
    sampler_settings,
    sweep,
)
from ddpm.run.datasets import data_words
from ddpm.run.errors import RequestError
from ddpm.run.evaluation_figures import TOP1, TOP5
from ddpm.run.evaluation_file import mixture_words, real_images_words
from ddpm.run.files import atomic_write, parse_json, read_file, read_json, real
from ddpm.run.format import duration
from ddpm.run.paths import RunPaths
from ddpm.sampling.ema_length import EmaLength, made_well
from ddpm.sampling.load import load_model
from ddpm.sampling.options import check_guided
from ddpm.sampling.sheets import npz
from ddpm.training.machine import compiler, hardware
from ddpm.training.machine.device import pick_device
from ddpm.training.machine.threads import settle

USUAL_SAMPLES = 100  # of each class


class Evaluator:
    """Loads model and data, measures, and keeps the files up to date after every part."""

    def __init__(self, config: EvaluateConfig, command: str, console: Console) -> None:
        """Load model and data.

        Raises:
            RequestError: one of them is not there, or the settings do not suit the model.
        """
        self.config, self.console, self.started = config, console, time.monotonic()
        self.saved = False  # has this evaluation written its evaluation.json?
        device, _ = pick_device(config.device)
        if config.compile:
            compiler.prepare(device)
        hardware.set_up(device, deterministic=False)
        if fewer := settle(device):
            self.say(fewer)
        self.model = load_model(
            config.model, device, config.output_root, config.weights, config.ema_length, guide=config.guide
        )
        if self.model.rebuilt:
            self.say(str(self.model.rebuilt))
        self.most_steps = self.model.pipeline.scheduler.config.num_train_timesteps
        self.settings = self._sampler_settings()
        paths, out = self.model.paths, config.out and real(config.out)
        if not (paths or out):
            raise RequestError(
                f"{self.model.folder} is in the checkpoints/ of no run: give a folder for the files, --out"
            )
        self.folder, self.json = (out, out / "evaluation.json") if out else (paths.evaluation_files, paths.evaluation)
        compared = load_real_data(config, self.model, device, self.say)
        self.data, self.train, self.test = compared.name, compared.train, compared.test
        self.of_training = compared.of_training
        self.num_classes = len(self.train.class_names)
        self.per_class = config.samples_per_class or affordable_per_class(USUAL_SAMPLES, self.num_classes)
        self.things = f"{thing(self.data)}s"
        self.real, test_images = parts.real_images(self.test, self.model.meta["settings"].get("val_images"))
        self._check_writable()
        precision, _ = hardware.pick_precision(config.precision, device)
        self.image_generator = ImageGenerator(
            self.model.pipeline, precision, config.batch_size, config.compile, console, self.log
        )
        self.document: dict[str, Any] = {
            "generated": "", "run": self.model.run, "checkpoint": self.model.folder.name,
            "weights": self.model.weights,
            "step": self.model.meta["progress"]["step"], "data": self.data, "trained_on": self.model.data,
            "device": hardware.device_name(device), "precision": precision, "torch": torch.__version__,
            "command": command, "seed": config.seed, "samples_per_class": self.per_class,
            "test_images": test_images,
        }  # fmt: skip

    @cached_property
    def classifier(self) -> ReferenceClassifier:
        paths = self.model.paths or RunPaths(real(self.config.output_root), self.model.run)
        return load_or_train(self.train, self.test, paths.classifiers, self.log)

    @cached_property
    def reference(self) -> parts.Reference:
        return parts.Reference.of(self.classifier, self.real, self.image_generator.resolution)

    # ---- measurements ------------------------------------------------------------------------------------------------

    def check_classifier(self) -> None:
        """Classify the real images. If the classifier is bad on them, no other figure can be trusted."""
        self.log(f"model: {self.model.folder}, {self.model.progress}, trained on {self.model.source}")
        self.log(f"device: {self.document['device']}, precision {self.document['precision']}")
        real_images = f"{real_images_words(self.document['test_images'])}.{mixture_words(self.real.counts())}"
        self.log(f"real images ({data_words(self.data)}): {real_images}")
        part = self.document["classifier"] = parts.classifier_part(self.classifier, self.real)
        top1, top5 = (figure.words(figure.of(part).to_dict()) for figure in (TOP1, TOP5))
        self.log(f"classifier on these {part['test_images']:,} real test images: Top-1 {top1}, Top-5 {top5}")
        if self.data == "emnist":
            self.log("  EMNIST Balanced is near 88-91% Top-1 with all 112,800 training images, less with fewer; "
                     "far less means that the data are not read correctly")  # fmt: skip

    def measure(self) -> None:
        """Measure all but the sweeps, and write the files. An earlier evaluation.json is kept as a copy."""
        self.check_classifier()
        labels = self._labels(self.per_class)
        what = f"{self.per_class} {self.things} of each class"
        drawn = self.image_generator.draw(labels, self.settings, self.config.seed, what)
        unguided = SamplerSettings(self.settings.sampler, self.settings.steps, 1.0)
        plain = drawn  # at guidance 1
        if self.settings.guidance_scale != 1:
            plain = self.image_generator.draw(labels, unguided, self.config.seed, "the same at guidance 1")
        self.log("measuring")
        predictions = self.classifier(drawn.pixels)
        resolution = self.image_generator.resolution
        closest = memorisation = None
        if self.of_training:
            closest = parts.neighbours(torch.from_numpy(drawn.pixels), self.train, resolution)
            heldout = parts.neighbours(parts.as_drawn(self.real.pixels, resolution), self.train, resolution)
            memorisation = parts.memorisation_part(closest, heldout, len(self.train))
        self.document |= {
            "sampler": {
                "name": self.settings.sampler, "steps": self.settings.steps,
                **self.settings.guidance, "seconds_per_image": drawn.seconds_per_image,
            },
            "conditional": parts.conditional_part(predictions, labels, self.reference),
            "unguided": parts.unguided_part(self.classifier(plain.pixels), labels, self.reference),
            "class_balance": self._class_balance(unguided, min(len(labels), len(self.real))),
            "distances": parts.distances_part(predictions.features, self.reference),
            "memorisation": memorisation,
            "learning": None, "guidance": [], "samplers": [], "recommended": None,
            "ema_lengths": [], "recommended_length": None,
        }  # fmt: skip
        atomic_write(self.folder / "generated.npz", npz(x=drawn.pixels, y=labels.numpy()))
        caption = f"{self.model.run}, {self.model.folder.name} · {self.settings} · trained on {self.model.source}"
        write_worst(self.folder, drawn.pixels, labels, predictions, self.train.class_names, caption)
        write_closest(self.folder, drawn.pixels, labels, closest, memorisation, self.train, caption)
        self._keep_previous()
        self.save()
        if self.config.cas:
            self._measure_learning(drawn, plain, labels)

    def _class_balance(self, settings: SamplerSettings, count: int) -> dict[str, Any] | None:
        """What the model draws when no class is asked for; None if it has not learned that."""
        if not self.model.draws_without_label:
            return None
        labels = torch.full((count,), self.num_classes)
        drawn = self.image_generator.draw(labels, settings, self.config.seed, f"{self.things} of no given class")
        return parts.balance_part(self.classifier(drawn.pixels), self.reference)

    def _measure_learning(self, drawn: Drawn, plain: Drawn, labels: torch.Tensor) -> None:
        """Measure what classifiers learn from the images, those at guidance 1 too, and add it to the files."""
        school = self._school(self.per_class)
        sets = [school.generated(torch.from_numpy(each.pixels), labels) for each in (drawn, plain)]
        expected = school.expected_seconds(len(sets) + school.other_sets)
        self.log(f"what a classifier learns from {len(sets[0]):,} {self.things}: about {duration(expected)}; --no-cas "
                 "leaves it out")  # fmt: skip
        self.document["learning"] = school.report(sets[0], None if plain is drawn else sets[1])
        self.save()

    def _school(self, per_class: int) -> School:
        return School(self.train, self.real, self.image_generator.resolution, per_class, self.log)

    @cached_property
    def sweeps(self) -> list[str]:
        """What there is to compare, if it is asked for: `guidance`, `ema_lengths`, `samplers`; the longest last."""
        if not self.config.sweeps:
            return []
        there = {"guidance": self.model.can_be_guided, "ema_lengths": bool(self.lengths), "samplers": True}
        return [name for name, is_there in there.items() if is_there]

    @cached_property
    def lengths(self) -> list[EmaLength]:
        """Averages of the weights to compare with the EMA, which is what was measured; none if it was not."""
        return made_well(self.model.folder, self.model.meta, LENGTHS) if self.model.weights == "ema" else []

    def sweep(self, name: str) -> None:
        """Compare what `name`, one of `sweeps`, says; each row is added to the files at once."""
        gpu = self.image_generator.device.type == "cuda"
        usual = affordable_per_class(50 if gpu else 10, self.num_classes)
        labels = self._labels(self.config.sweep_samples_per_class or usual)
        candidates, prepare = sampler_settings(self.settings, self.most_steps), None
        if name == "guidance":
            candidates = guidance_settings(self.settings, self.model.draws_without_label)
        elif name == "ema_lengths":
            candidates = length_settings(self.settings, len(self.lengths) + 1)
            prepare = averager(self.model.pipeline.unet, self.lengths, self.log)
        school = self._school(len(labels) // self.num_classes) if self.config.cas else None
        per_evaluation = self.document["sampler"]["seconds_per_image"] / self.settings.evaluations
        expected = per_evaluation * len(labels) * sum(settings.evaluations for settings in candidates)
        if school:
            expected += school.expected_seconds(sets=1 + len(candidates))
        self.log(f"{name.replace('_', ' ')}: {len(candidates)} × {len(labels):,} images, about {duration(expected)} in "
                 "all; Ctrl-C ends it and keeps what has been measured")  # fmt: skip
        rows = self.document[name]
        made_by = (self.image_generator, self.classifier, self.reference)
        for row in sweep(candidates, labels, self.config.seed, *made_by, school, prepare):
            rows.append(row)
            if name == "samplers":
                self.document["recommended"] = recommend(rows)
            elif name == "ema_lengths":
                self.document["recommended_length"] = recommend_length(rows)
            self.save()
        if prepare:
            prepare(0)

    # ---- files and log -----------------------------------------------------------------------------------------------

    @property
    def evaluation(self) -> dict[str, Any]:
        """The measurements so far, as in evaluation.json: estimates are objects, numbers that are not finite None."""
        return parse_json(json.dumps(self.document, default=Estimate.to_dict))

    def save(self) -> None:
        self.document["generated"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        atomic_write(self.json, json.dumps(self.evaluation, ensure_ascii=False, indent=1, allow_nan=False))
        self.saved = True

    def _keep_previous(self) -> None:
        """Copy an earlier evaluation.json, as its sweeps may have taken an hour; one without sweeps, such as one that
        was interrupted, does not take the place of one with sweeps."""
        copy = self.json.with_suffix(".previous.json")
        with suppress(FileNotFoundError):
            if _swept(self.json) or not _swept(copy):
                atomic_write(copy, read_file(self.json))

    def log(self, line: str) -> None:
        """Print a line with the time since the start, as minutes:seconds."""
        passed = time.monotonic() - self.started
        self.say(f"{passed // 60:3.0f}:{passed % 60:02.0f}  {line}")

    def say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    # ---- checks of the command line ----------------------------------------------------------------------------------

    def _sampler_settings(self) -> SamplerSettings:
        """The settings of the command line; steps and guidance default to those of the run's sample grids or export.

        Raises:
            RequestError: more steps than the model has noise levels, or guidance that nothing would use.
        """
        config, default = self.config, self.model.pipeline.config
        steps = config.steps or default.num_inference_steps
        scale = default.guidance_scale if config.guidance_scale is None else config.guidance_scale
        interval = tuple(config.guidance_interval or default.guidance_interval)
        if not (config.sweeps and self.model.can_be_guided):  # they guide in any case
            check_guided(scale, config.guidance_interval, config.guide, self.model.can_be_guided)
        guide = self.model.guide and self.model.guide.name
        settings = SamplerSettings(config.sampler, steps, scale, interval, guide)
        if settings.steps > self.most_steps:
            raise RequestError(f"--steps {settings.steps}: this model takes at most {self.most_steps}")
        return settings

    def _labels(self, per_class: int) -> torch.Tensor:
        """Labels of all classes in turn, so that any first part has them evenly: int64 [K * per_class]."""
        return torch.arange(self.num_classes).repeat(per_class)

    def _check_writable(self) -> None:
        """Make the folder for the files; better now than after minutes of drawing.

        Raises:
            RequestError: it cannot be written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / ".writable").touch()
            (self.folder / ".writable").unlink()
        except OSError as error:
            raise RequestError(f"cannot write to {error.filename} ({error.strerror}): choose another --out") from error


def _swept(path: Path) -> bool:
    """Does the evaluation.json at `path` have rows of a sweep?"""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and any(found.get(name) for name in ("guidance", "ema_lengths", "samplers"))
