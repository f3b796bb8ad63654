"""What a classifier learns from generated images alone: the classification accuracy score, CAS.

Ravuri & Vinyals 2019. A classifier that has only seen generated images is tested on real ones. It pays for right
labels, clear shapes and variety at once: guidance, which trades variety for clarity, does not flatter it. Copies of
training images do, so it belongs beside the check for memorisation.

Beside it, classifiers trained on as many real images, on fewer of them, and on both together, for as long as on the
real ones.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ddpm.evaluation.classifier import Recipe, ReferenceClassifier, fit
from ddpm.evaluation.intervals import Z
from ddpm.evaluation.measures import as_drawn, as_judged
from ddpm.evaluation.scores import Estimate, proportion, rca
from ddpm.run.evaluation_figures import CAS
from ddpm.training.data import Images

SEEDS = 3  # classifiers for each set: initial weights, order and augmentation, and which real images
T = 4.302653  # of Student's distribution at the tail of Z, for the spread of three
PARTS = (2, 4, 8)  # the real images are also cut to these parts, to see how many the generated ones are worth
FEWEST = 4  # real images of a class in such a part


@dataclass(frozen=True)
class Lesson:
    """What classifiers have learned that were trained alike: which of N real test images each reads correctly."""

    hits: torch.Tensor  # bool [SEEDS, N]

    @property
    def accuracy(self) -> float:
        return self.hits.double().mean().item()

    def _seed_variance(self) -> float:
        """Of the mean over the seeds."""
        return self.hits.double().mean(1).var().item() / len(self.hits)

    def estimate(self) -> Estimate:
        """The accuracy. The interval covers both the choice of seeds and that of test images."""
        by_image = self.hits.double().mean(0)
        if self.accuracy in (0, 1):  # the deviation is 0, but other images might be read otherwise
            return proportion(self.hits[0])
        reach = math.hypot(T * self._seed_variance() ** 0.5, Z * (by_image.var().item() / len(by_image)) ** 0.5)
        return Estimate(self.accuracy, max(0.0, self.accuracy - reach), min(1.0, self.accuracy + reach), len(by_image))

    def over(self, other: Lesson) -> Estimate:
        """The ratio of the two accuracies on the same test images, its interval by the delta method on its logarithm;
        the count is that of test images."""
        ours, theirs = self.accuracy, other.accuracy
        if not (ours and theirs):
            return Estimate(math.nan if not theirs else 0.0, math.nan, math.nan, self.hits.shape[1])
        seeds = self._seed_variance() / ours**2 + other._seed_variance() / theirs**2
        difference = self.hits.double().mean(0) / ours - other.hits.double().mean(0) / theirs
        reach = math.hypot(T * seeds**0.5, Z * (difference.var().item() / len(difference)) ** 0.5)
        if reach == 0:  # both read the same images, as in `estimate`
            return rca(self.hits[0], other.hits[0])
        ratio = ours / theirs
        return Estimate(ratio, ratio * math.exp(-reach), ratio * math.exp(reach), len(difference))


class School:
    """Trains classifiers on sets of images, and tests them on the same real ones."""

    def __init__(
        self, train: Images, test: Images, resolution: int, per_class: int, log: Callable[[str], None]
    ) -> None:
        """
        Args:
            train: real images to learn from.
            test: real images to be tested on, none of them in `train`.
            resolution: of the model. All images are resized to it and back, as generated ones are.
            per_class: images of each class in a set; fewer if the smallest class has fewer.
        """
        smallest, self._class_names = min(train.counts()), train.class_names
        self.per_class = max(1, min(per_class, smallest))
        self._train, self._resolution, self._log = train, resolution, log
        self._tests, self._labels = as_drawn(test.pixels, resolution), test.labels.cpu()
        self._recipe = Recipe()

    @property
    def other_sets(self) -> float:
        """Sets that `report` teaches beside the generated ones, by images shown: real, both together, fewer real."""
        return 1 + 1 + sum(1 / part for part in self._parts())

    def expected_seconds(self, sets: float) -> float:
        """How long it takes to teach as many images as are in `sets` sets, from the time of some steps of training."""
        some, images = replace(self._recipe, images=0), self.real(min(self.per_class, 8), seed=0)
        began = time.perf_counter()
        fit(images, some)
        batch = some.batch_of(len(images))
        seen = some.epochs(len(images)) * (len(images) // batch * batch)
        seconds_per_image = (time.perf_counter() - began) / seen
        count = len(self._class_names) * self.per_class
        return SEEDS * sets * count * self._recipe.epochs(count) * seconds_per_image

    def generated(self, pixels: torch.Tensor, labels: torch.Tensor) -> Images:
        """Generated images, uint8 [N, R, R] and int64 [N], as a set: the first `per_class` of each class."""
        chosen = _first_of_each_class(labels, self.per_class)
        device = self._train.pixels.device
        return Images(as_judged(pixels[chosen]).to(device), labels[chosen].to(device), self._class_names)

    def real(self, per_class: int, seed: int) -> Images:
        """So many real images of each class, drawn at random."""
        order = torch.randperm(len(self._train.labels), generator=torch.Generator().manual_seed(seed))
        labels = self._train.labels.cpu()[order]
        chosen = order[_first_of_each_class(labels, per_class)].to(self._train.labels.device)
        some = self._train[chosen]
        return Images(
            as_judged(as_drawn(some.pixels, self._resolution)).to(some.pixels.device), some.labels, some.class_names
        )

    def teach(
        self, images: Images | Callable[[int], Images], recipe: Recipe | None = None, steps: int | None = None
    ) -> Lesson:
        """Train SEEDS classifiers on a set or on `images(seed)`, for `steps` or the recipe's, and test them."""
        hits = []
        for seed in range(SEEDS):
            some = images if isinstance(images, Images) else images(seed)
            network = fit(some, replace(recipe or self._recipe, seed=seed), steps=steps)
            hits.append(ReferenceClassifier(network, {})(self._tests).predicted == self._labels)
        return Lesson(torch.stack(hits))

    def teach_real(self, part: int = 1) -> Lesson:
        """The same on real images, as many of each class as in a set, divided by `part`."""
        return self.teach(lambda seed: self.real(self.per_class // part, seed))

    def report(self, generated: Images, unguided: Images | None) -> dict[str, Any]:
        """The part `learning` of evaluation.json.

        Args:
            generated: at the run's guidance.
            unguided: at guidance 1; None if that is the run's guidance.
        """
        count = len(generated)
        ours = self._told(f"{count:,} generated images", self.teach(generated))
        plain = ours
        if unguided is not None:
            plain = self._told(f"{len(unguided):,} drawn at guidance 1", self.teach(unguided))
        real = self._told(f"{count:,} real ones", self.teach_real())
        own = self._recipe  # twice as many images are learned in as many steps, of batches of the same size
        same_batch = replace(own, batch=own.batch_of(count))
        both = self.teach(lambda seed: joined(self.real(self.per_class, seed), generated), same_batch, own.steps(count))
        self._told(f"{count:,} real and {count:,} generated ones", both)
        fewer = {}
        for part in self._parts():
            images = len(self._class_names) * (self.per_class // part)
            fewer[images] = self._told(f"{images:,} real ones", self.teach_real(part))
        curve = sorted([*((images, each.accuracy) for images, each in fewer.items()), (count, real.accuracy)])
        return {
            "images": count,
            "seeds": SEEDS,
            "accuracy": ours.estimate(),
            "real_accuracy": real.estimate(),
            "cas": ours.over(real),
            "cas_unguided": plain.over(real),
            "augmented": both.over(real),
            "worth": worth(ours.estimate(), curve, count),
            "curve": [{"images": images, "accuracy": accuracy} for images, accuracy in curve],
            "per_class": [
                {"name": name, "accuracy": one, "real_accuracy": other, CAS.key: one / other if other else None}
                for name, one, other in zip(self._class_names, self._by_class(ours), self._by_class(real), strict=True)
            ],
        }

    def _told(self, what: str, lesson: Lesson) -> Lesson:
        """The lesson, after a line about it."""
        self._log(f"a classifier that has learned from {what} reads {lesson.accuracy:.1%} of the test images")
        return lesson

    def _parts(self) -> list[int]:
        return [part for part in PARTS if self.per_class // part >= FEWEST]

    def _by_class(self, lesson: Lesson) -> list[float | None]:
        """The accuracy on the test images of each class; None for a class without any."""
        counts = torch.bincount(self._labels, minlength=len(self._class_names))
        right = torch.bincount(self._labels, weights=lesson.hits.double().mean(0), minlength=len(counts))
        return [hits / count if count else None for hits, count in zip(right.tolist(), counts.tolist(), strict=True)]


def joined(one: Images, other: Images) -> Images:
    """The images of both sets."""
    return Images(torch.cat([one.pixels, other.pixels]), torch.cat([one.labels, other.labels]), one.class_names)


def worth(accuracy: Estimate, curve: list[tuple[int, float]], count: int) -> Estimate:
    """The number of real images from which a classifier learns as much as from `count` generated ones.

    Read off the accuracies by number of real images, `curve`, between whose logarithms it is interpolated; at most as
    many as the curve has, and at least as few. NaN if it has one point only.
    """
    if len(curve) < 2:
        return Estimate(math.nan, math.nan, math.nan, count)
    return Estimate(*(_images_for(each, curve) for each in (accuracy.value, accuracy.low, accuracy.high)), count)


def _images_for(accuracy: float, curve: list[tuple[int, float]]) -> float:
    """How many real images give this accuracy."""
    for (few, lower), (many, higher) in itertools.pairwise(curve):
        if accuracy < higher:
            between = min(1.0, max(0.0, (accuracy - lower) / (higher - lower))) if higher > lower else 0.0
            return few * (many / few) ** between
    return float(curve[-1][0])


def _first_of_each_class(labels: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the first `count` images of each class, int64."""
    order = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    place = torch.arange(len(labels)) - starts[labels[order]]
    return order[place < count]
