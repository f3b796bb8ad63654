"""Evaluation during training: a small one every few epochs, always from the same noise."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from diffusers import DDPMScheduler

from ddpm.data.classes import affordable_per_class
from ddpm.evaluation.classifier import ReferenceClassifier
from ddpm.evaluation.learning import School
from ddpm.evaluation.measures import Reference
from ddpm.evaluation.reference_classifier import load_or_train
from ddpm.evaluation.scores import frechet_distance, hits, relative_accuracy, share
from ddpm.run.config import TrainConfig
from ddpm.run.evaluation_file import mixture_words
from ddpm.run.metrics import CAS, FID_FEATURES, RCA, RCA_UNGUIDED, TOP1, TOP5, Metric
from ddpm.sampling.sheets import draw_samples
from ddpm.training.data import Images, split_test
from ddpm.training.machine.distributed import STARTING, DistContext

PER_CLASS = 10  # images; fewer of many classes
NOISE_SERIES = 1  # sample grids use the noise of series 0


class InTrainingEvaluation:
    """Draws some images of each class, at the run's guidance and at 1, shared by the processes. The main process
    classifies them, and trains classifiers on them."""

    def __init__(self, config: TrainConfig, train: Images, test: Images, world: DistContext) -> None:
        self._config, self._train, self._test, self._world = config, train, test, world
        self._per_class = affordable_per_class(PER_CLASS, train.num_classes)
        self._labels = torch.arange(train.num_classes).repeat_interleave(self._per_class)
        self._classifier: ReferenceClassifier | None = None
        self._ready = False

    def prepare(self, folder: Path, log: Callable[[str], None], interrupted: Callable[[], bool]) -> bool:
        """Load or train the main process's classifier, while the others wait. Every process calls it; once it has
        succeeded, further calls do nothing. False if it was interrupted."""
        if not self._ready:
            load = partial(self._load_classifier, folder, log, interrupted)
            self._world.expect_answers_within(STARTING)
            self._ready = self._world.broadcast_result(load, here=self._world.is_main)
            self._world.expect_answers_within(timedelta(minutes=self._config.hang_minutes))
        return self._ready

    def _load_classifier(self, folder: Path, log: Callable[[str], None], interrupted: Callable[[], bool]) -> bool:
        """Load or train the reference classifier, and apply it to the real images that generated ones are compared
        with: those set aside for validation, as these figures too may choose the best checkpoint (`--best-by cas`), and
        evaluate.py judges it by other images. False if it was interrupted."""
        self._classifier = load_or_train(self._train, self._test, folder, log, interrupted=interrupted)
        if self._classifier:
            real, _ = split_test(self._test, self._config.val_images)
            drawn = f"{len(self._labels):,} generated images, {self._per_class} of each class,"
            mixture = mixture_words(real.counts())
            log(f"evaluation: {drawn} are compared with the {len(real):,} test images for validation.{mixture}")
            self._reference = Reference.of(self._classifier, real, self._config.resolution)
            self._school = School(self._train, real, self._config.resolution, self._per_class, log)
            self._taught_by_real = self._school.teach_real()
        return self._classifier is not None

    def __call__(
        self, model: torch.nn.Module, scheduler: DDPMScheduler, interrupted: Callable[[], bool]
    ) -> dict[Metric, float] | None:
        """The columns of the group `quality`, on the main process; nothing on the others.

        Every process calls it. None if it was interrupted.
        """
        drawn, scale = {}, self._config.guidance_scale
        for guidance in dict.fromkeys((scale, 1.0)):
            drawn[guidance] = draw_samples(
                self._config, model, scheduler, self._labels, self._world, interrupted, NOISE_SERIES, guidance
            )
            if drawn[guidance] is None:
                return None
        if not self._classifier:
            return {}
        labels = self._labels
        predictions, plain = self._classifier(drawn[scale]), self._classifier(drawn[1.0])
        first, fifth = (hits(predictions.probabilities, labels, k) for k in (1, 5))
        taught = self._school.teach(self._school.generated(torch.from_numpy(drawn[scale]), labels))
        return {
            RCA: relative_accuracy(first, self._reference.hits),
            RCA_UNGUIDED: relative_accuracy(hits(plain.probabilities, labels, 1), self._reference.hits),
            CAS: taught.over(self._taught_by_real).value,
            TOP1: share(first),
            TOP5: share(fifth),
            FID_FEATURES: frechet_distance(predictions.features, self._reference.predictions.features),
        }
