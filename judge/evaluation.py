"""The parts of `evaluation.json` (metrics/README.md): from what was drawn, and how the classifier judges it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from ddpm.config import NUM_CLASSES
from ddpm.data import CLASS_NAMES, Images, to_model_input
from ddpm.histogram import span
from ddpm.pipeline import to_bytes
from judge.classifier import Judge, Verdicts, to_input
from judge.neighbours import nearest
from judge.scores import (
    Estimate,
    bootstrap,
    class_shares,
    confusion,
    frechet_distance,
    hits,
    kernel_distance,
    precision_recall,
    relative_accuracy,
    share,
    total_variation,
)

KERNEL_IMAGES = 2000  # the kernel distance does not depend on the count, and its time is the square of it
FRECHET_ROUNDS, KERNEL_ROUNDS = 100, 50  # of the bootstrap: some 20 and 100 ms each on a CPU
BINS = 60


def as_drawn(pixels: torch.Tensor, resolution: int) -> torch.Tensor:
    """Stored images, uint8 [N, 28, 28], as the model would draw them: uint8 [N, R, R] on the CPU."""
    return torch.cat([to_bytes(to_model_input(part, resolution)).cpu() for part in pixels.split(1024)])


def as_stored(pixels: torch.Tensor) -> torch.Tensor:
    """Images as drawn, uint8 [N, R, R], as they are stored: uint8 [N, 28, 28]."""
    return torch.cat([to_bytes(to_input(part)) for part in pixels.split(1024)])


@dataclass(frozen=True, eq=False)  # compared, and hashed for the cache, by identity
class Reference:
    """The real test images as the classifier sees them, which generated ones are measured by.

    For the distances they are cut in two halves, class by class: one that everything is compared with, and one that
    shows what distance real images have from it.
    """

    labels: torch.Tensor
    verdicts: Verdicts
    half: torch.Tensor
    other_half: torch.Tensor

    @classmethod
    def of(cls, judge: Judge, test: Images, resolution: int) -> Reference:
        """Judge the test split, resized to the model's resolution and back as generated images are."""
        verdicts, labels = judge(as_drawn(test.pixels, resolution)), test.labels.cpu()
        order = round_robin(labels, torch.Generator().manual_seed(0))
        turn = torch.arange(len(order)) // NUM_CLASSES % 2  # a round of all classes for each half in turn
        return cls(labels, verdicts, *(verdicts.features[order[turn == number]] for number in (0, 1)))

    @property
    def hits(self) -> torch.Tensor:
        """Top-1 on the real images, bool [N]."""
        return hits(self.verdicts.probabilities, self.labels, 1)

    def distances(self, features: torch.Tensor) -> dict[str, Estimate]:
        """Fréchet distance of generated `features` [N, 128], and of real ones at the same count.

        As the distance depends on the count, the first of `features` are taken if there are fewer real ones.
        """
        count = min(len(features), len(self.other_half))
        return {
            "frechet": bootstrap(frechet_distance, features[:count], self.half, rounds=FRECHET_ROUNDS),
            "frechet_real": self.frechet_real(count),
        }

    @cache  # noqa: B019 - there is one reference
    def frechet_real(self, count: int) -> Estimate:
        """Fréchet distance of the first `count` of the other half."""
        return bootstrap(frechet_distance, self.other_half[:count], self.half, rounds=FRECHET_ROUNDS)


def round_robin(labels: torch.Tensor, source: torch.Generator) -> torch.Tensor:
    """A random order of images in which every class comes once a round: int64 [N]."""
    order = torch.randperm(len(labels), generator=source)
    rank = torch.empty(len(labels), dtype=torch.long)
    for label in labels.unique():
        places = order[labels[order] == label]
        rank[places] = torch.arange(len(places))
    return order[torch.argsort(rank[order], stable=True)]


def classifier_part(judge: Judge, test: Images) -> dict[str, Any]:
    """The classifier on the real test images as they are stored: the check that the data are read rightly."""
    verdicts, labels = judge(test.pixels), test.labels.cpu()
    first = hits(verdicts.probabilities, labels, 1)
    known = ("train_images", "test_images", "epochs", "seconds", "data_sha256")
    return {
        "top1": bootstrap(share, first),
        "top5": bootstrap(share, hits(verdicts.probabilities, labels, 5)),
        **{name: judge.meta[name] for name in known},
        "per_class_top1": _per_class(first, labels),
    }


def conditional_part(verdicts: Verdicts, labels: torch.Tensor, reference: Reference) -> dict[str, Any]:
    """Are the characters what they were asked to be? `labels` int64 [N]."""
    first = hits(verdicts.probabilities, labels, 1)
    generated, real = _per_class(first, labels), _per_class(reference.hits, reference.labels)
    counts = torch.bincount(labels, minlength=NUM_CLASSES).tolist()
    return {
        "top1": bootstrap(share, first),
        "top5": bootstrap(share, hits(verdicts.probabilities, labels, 5)),
        "rca": bootstrap(relative_accuracy, first, reference.hits),
        "real_top1": bootstrap(share, reference.hits),
        "per_class": [
            {"name": name, "top1": ours, "real_top1": theirs, "rca": ours / theirs if theirs else None, "count": count}
            for name, ours, theirs, count in zip(CLASS_NAMES, generated, real, counts, strict=True)
        ],
        "confusion": confusion(verdicts.predicted, labels).tolist(),
    }


def balance_part(verdicts: Verdicts, reference: Reference) -> dict[str, Any]:
    """Which classes does the model draw when it is asked for none? Beside it as many real test images."""
    ours, real = verdicts.predicted, reference.verdicts.predicted
    real = real[torch.randperm(len(real), generator=torch.Generator().manual_seed(0))[: len(ours)]]

    def unevenness(predicted: torch.Tensor) -> float:
        return total_variation(class_shares(predicted))

    return {
        "shares": class_shares(ours).tolist(),
        "real_shares": class_shares(real).tolist(),
        "total_variation": bootstrap(unevenness, ours),
        "real_total_variation": bootstrap(unevenness, real),
        "count": len(ours),
    }


def distances_part(features: torch.Tensor, reference: Reference) -> dict[str, Any]:
    """How far is the whole of the generated images from that of the real ones? `features` [N, 128], mixed in class."""
    half, other = reference.half, reference.other_half
    count = min(len(features), len(other), KERNEL_IMAGES)
    measure = partial(bootstrap, kernel_distance, rounds=KERNEL_ROUNDS, least=-math.inf)
    precise, recalled = precision_recall(half, features[: len(half)])
    return {
        **reference.distances(features),
        "kernel": measure(features[:count], half[:count]),
        "kernel_real": measure(other[:count], half[:count]),
        "precision": bootstrap(share, precise),
        "recall": bootstrap(share, recalled),
        "feature_size": features.shape[1],
        "reference_images": len(half),
    }


@dataclass(frozen=True)
class Neighbours:
    """Nearest training images, at 28 × 28: `distances` float32 [N], `indices` int64 [N]."""

    distances: torch.Tensor
    indices: torch.Tensor


def neighbours(pixels: torch.Tensor, train: Images, resolution: int) -> Neighbours:
    """Of images as drawn, uint8 [N, R, R]; the training images are resized as they are."""
    known = train.pixels if resolution == train.pixels.shape[-1] else as_stored(as_drawn(train.pixels, resolution))
    return Neighbours(*nearest(as_stored(pixels), known, train.pixels.device))


def memorisation_part(generated: Neighbours, heldout: Neighbours, train_images: int) -> dict[str, Any]:
    """Are generated images nearer to training images than other real ones (the test split) are?"""

    def closer(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        return (ours < theirs.quantile(0.01)).float().mean()

    sets = {"generated": generated.distances, "heldout": heldout.distances}
    together = torch.cat(list(sets.values())).double().numpy()
    edges = np.linspace(*span(together, BINS), BINS + 1)
    return {
        **{name: _quantiles(distances) for name, distances in sets.items()},
        "closer_than_heldout_p01": bootstrap(closer, generated.distances, heldout.distances),
        "histogram": {
            "edges": edges.tolist(),
            **{name: np.histogram(distances.numpy(), edges)[0].tolist() for name, distances in sets.items()},
        },
        "heldout_images": len(heldout.distances),
        "train_images": train_images,
    }


def _per_class(first: torch.Tensor, labels: torch.Tensor) -> list[float]:
    counts = torch.bincount(labels, minlength=NUM_CLASSES).clamp(min=1)
    return (torch.bincount(labels[first], minlength=NUM_CLASSES).double() / counts).tolist()


def _quantiles(distances: torch.Tensor) -> dict[str, float]:
    values = distances.quantile(torch.tensor([0.01, 0.05, 0.5, 0.95])).tolist()
    return dict(zip(("p01", "p05", "p50", "p95"), values, strict=True))
