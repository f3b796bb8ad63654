"""The parts of `evaluation.json` (metrics/README.md), from generated images and what the classifier reads in them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from ddpm.data.idx import IMAGE_SIZE
from ddpm.evaluation.classifier import Predictions, ReferenceClassifier, to_input
from ddpm.evaluation.scores import (
    Estimate,
    bootstrap,
    class_shares,
    confusion,
    density_coverage,
    frechet_distance,
    hits,
    kernel_distance,
    precision_recall,
    proportion,
    rca,
    total_variation,
)
from ddpm.run.evaluation_figures import COVERAGE, DENSITY, FRECHET, IMBALANCE, KERNEL, RCA, TOP1, TOP5
from ddpm.run.histogram import span
from ddpm.sampling.pipeline import to_bytes
from ddpm.training.data import Images, split_test, to_model_input

KERNEL_IMAGES = 2000  # the kernel distance does not depend on the count, and its time grows with its square
FRECHET_ROUNDS, KERNEL_ROUNDS = 100, 50  # of the bootstrap: some 20 and 100 ms each on a CPU
BINS = 60

CHUNK = 512  # queries at once: at 112,800 references a product of 230 MB


def real_images(test: Images, val_images: int | None) -> tuple[Images, dict[str, int]]:
    """The test images that generated ones are compared with, and how many the parts of the split hold.

    Args:
        val_images: the run's setting; None where it was left out.
    """
    validation, evaluation = split_test(test, val_images)
    return evaluation, {"total": len(test), "validation": len(validation), "evaluation": len(evaluation)}


def as_drawn(pixels: torch.Tensor, resolution: int) -> torch.Tensor:
    """Stored images, uint8 [N, S, S], as the model would draw them: uint8 [N, R, R] on the CPU."""
    return torch.cat([to_bytes(to_model_input(part, resolution)).cpu() for part in pixels.split(1024)])


def as_judged(pixels: torch.Tensor) -> torch.Tensor:
    """Images as drawn, uint8 [N, R, R], as the classifier sees them: uint8 [N, 28, 28]."""
    return torch.cat([to_bytes(to_input(part)) for part in pixels.split(1024)])


@dataclass(frozen=True, eq=False)  # compared, and hashed for the cache, by identity
class Reference:
    """The classifier's predictions of N real images, which generated images are compared with.

    For the distances they are cut in two halves, class by class: every set is compared with `half`, generated images as
    well as `other_half`, which shows how far real images are from each other.
    """

    labels: torch.Tensor  # int64 [N]
    class_names: tuple[str, ...]
    predictions: Predictions
    half: torch.Tensor  # features, float32 [about N / 2, 128]
    other_half: torch.Tensor

    @classmethod
    def of(cls, classifier: ReferenceClassifier, test: Images, resolution: int) -> Reference:
        """Classify `test`, resized to the model's resolution and back as generated images are."""
        predictions, labels = classifier(as_drawn(test.pixels, resolution)), test.labels.cpu()
        order, turns = round_robin(labels, torch.Generator().manual_seed(0))
        halves = (predictions.features[order[turns % 2 == half]] for half in (0, 1))
        return cls(labels, test.class_names, predictions, *halves)

    @property
    def hits(self) -> torch.Tensor:
        """Top-1 on the real images, bool [N]."""
        return hits(self.predictions.probabilities, self.labels, 1)

    def distances(self, features: torch.Tensor) -> dict[str, Estimate]:
        """Fréchet distance to `half` of generated `features` [M, 128], and of as many real ones.

        The distance depends on the count, so if there are more than in `other_half`, only the first ones are used.
        """
        count = min(len(features), len(self.other_half))
        return {"frechet": self._frechet(features[:count]), "frechet_real": self.frechet_real(count)}

    @cache  # noqa: B019 - there is one reference
    def frechet_real(self, count: int) -> Estimate:
        """Fréchet distance to `half` of the first `count` of `other_half`."""
        return self._frechet(self.other_half[:count])

    def _frechet(self, features: torch.Tensor) -> Estimate:
        within = FRECHET.range
        return bootstrap(frechet_distance, features, self.half, rounds=FRECHET_ROUNDS, within=within)


def round_robin(labels: torch.Tensor, source: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A random order of images, in rounds: each round has one image of every class that has images left.

    Returns:
        Indices in this order, int64 [N], and the number of the round of each, int64 [N].
    """
    order = torch.randperm(len(labels), generator=source)
    rank = torch.empty(len(labels), dtype=torch.long)
    for label in labels.unique():
        places = order[labels[order] == label]
        rank[places] = torch.arange(len(places))
    order = order[torch.argsort(rank[order], stable=True)]
    return order, rank[order]


OF_CLASSIFIER = ("train_images", "epochs", "seconds", "data_sha256", "weights_sha256")


def classifier_part(classifier: ReferenceClassifier, test: Images) -> dict[str, Any]:
    """The classifier on real images as they are stored: the check that the data are read correctly."""
    predictions, labels = classifier(test.pixels), test.labels.cpu()
    first = hits(predictions.probabilities, labels, 1)
    return {
        TOP1.key: proportion(first),
        TOP5.key: proportion(hits(predictions.probabilities, labels, 5)),
        **{name: classifier.meta[name] for name in OF_CLASSIFIER},
        "test_images": len(test),
        "per_class_top1": _per_class(first, labels, test.num_classes),
    }


def conditional_part(predictions: Predictions, labels: torch.Tensor, reference: Reference) -> dict[str, Any]:
    """Is each image read as the class that was asked for? `labels` int64 [N]."""
    first = hits(predictions.probabilities, labels, 1)
    classes = len(reference.class_names)
    generated, real = _per_class(first, labels, classes), _per_class(reference.hits, reference.labels, classes)
    counts, real_counts = (torch.bincount(each, minlength=classes).tolist() for each in (labels, reference.labels))
    return {
        TOP1.key: proportion(first),
        TOP5.key: proportion(hits(predictions.probabilities, labels, 5)),
        RCA.key: rca(first, reference.hits),
        "real_top1": proportion(reference.hits),
        "per_class": [
            {
                "name": name,
                TOP1.key: ours,
                "real_top1": theirs,
                RCA.key: ours / theirs if theirs and ours is not None else None,
                "count": count,
                "real_count": real_count,
            }
            for name, ours, theirs, count, real_count in zip(
                reference.class_names, generated, real, counts, real_counts, strict=True
            )
        ],
        "confusion": confusion(predictions.predicted, labels, classes).tolist(),
    }


def unguided_part(predictions: Predictions, labels: torch.Tensor, reference: Reference) -> dict[str, Any]:
    """Figures of images drawn at guidance 1."""
    first = hits(predictions.probabilities, labels, 1)
    return {
        TOP1.key: proportion(first),
        RCA.key: rca(first, reference.hits),
        **reference.distances(predictions.features),
    }


def balance_part(predictions: Predictions, reference: Reference) -> dict[str, Any]:
    """Which classes does the model draw when it is asked for none? Compared with as many real test images."""
    ours, real, classes = predictions.predicted, reference.predictions.predicted, len(reference.class_names)
    real = real[torch.randperm(len(real), generator=torch.Generator().manual_seed(0))[: len(ours)]]
    return {
        "shares": class_shares(ours, classes).tolist(),
        "real_shares": class_shares(real, classes).tolist(),
        "total_variation": class_imbalance(ours, classes),
        "real_total_variation": class_imbalance(real, classes),
        "count": len(ours),
    }


def class_imbalance(predicted: torch.Tensor, classes: int) -> Estimate:
    """Total variation distance from uniform of the shares of the K classes `predicted`, int64 [N]."""
    within = IMBALANCE.range
    estimate = bootstrap(lambda some: total_variation(class_shares(some, classes)), predicted, within=within)
    # The distance is the share of images in too frequent classes, minus the share of these classes in a uniform
    # distribution. If only few classes were drawn, no resample has another class and the bootstrap's interval is too
    # narrow; the interval of that proportion is not.
    frequent = class_shares(predicted, classes) > 1 / classes
    low = proportion(frequent[predicted]).low - int(frequent.sum()) / classes
    return replace(estimate, low=max(0.0, min(estimate.low, low)))


def distances_part(features: torch.Tensor, reference: Reference) -> dict[str, Any]:
    """How far is the set of generated images from that of real ones? `features` [N, 128], mixed in class."""
    half, other = reference.half, reference.other_half
    count = min(len(features), len(other), KERNEL_IMAGES)
    as_many = min(len(features), len(other) or len(half))  # more images cover more
    measure = partial(bootstrap, kernel_distance, rounds=KERNEL_ROUNDS, within=KERNEL.range)
    precise, recalled = precision_recall(half, features[: len(half)])
    neighbours = {}
    for name, some in (("", features[:as_many]), ("_real", other[:as_many])):
        density, coverage = density_coverage(half, some)
        neighbours |= {
            f"{DENSITY.key}{name}": mean_density(density),
            f"{COVERAGE.key}{name}": proportion(coverage if len(some) else coverage[:0]),  # of none, nothing
        }
    return {
        **reference.distances(features),
        "kernel": measure(features[:count], half[:count]),
        "kernel_real": measure(other[:count], half[:count]),
        "precision": proportion(precise),
        "recall": proportion(recalled),
        **neighbours,
        "feature_size": features.shape[1],
        "reference_images": len(half),
    }


def mean_density(counts: torch.Tensor) -> Estimate:
    """The mean of `counts` [M] of `density_coverage`.

    Where all counts are equal, all resamples are too, but a share of other images might still differ. The interval
    reaches as far as if that share had counts of 0, or twice the count; where all counts are 0, of 1, as real images
    have on average.
    """
    if len(counts) > 1 and not counts.any():
        return proportion(counts > 0)
    if len(counts) > 1 and counts.min() == counts.max():
        value, alike = counts[0].item(), proportion(counts > 0).low
        return Estimate(value, value * alike, value * (2 - alike), len(counts))
    return bootstrap(torch.mean, counts, within=DENSITY.range)


@dataclass(frozen=True)
class Neighbours:
    """The closest training image of each of N images, at 28 × 28: `distances` float32 [N], `indices` int64 [N]."""

    distances: torch.Tensor
    indices: torch.Tensor


def neighbours(pixels: torch.Tensor, train: Images, resolution: int) -> Neighbours:
    """The closest training images of `pixels`, uint8 [N, R, R] as drawn. For a fair comparison, training images are
    resized to R × R and back too."""
    known = (
        train.pixels
        if resolution == train.pixels.shape[-1] == IMAGE_SIZE
        else as_judged(as_drawn(train.pixels, resolution))
    )
    return Neighbours(*nearest(as_judged(pixels), known, train.pixels.device))


def memorisation_part(generated: Neighbours, heldout: Neighbours, train_images: int) -> dict[str, Any]:
    """Are generated images closer to training images than other real ones (`heldout`, test images) are?"""
    sets = {"generated": generated.distances, "heldout": heldout.distances}
    together = torch.cat(list(sets.values())).double().numpy()
    edges = np.linspace(*span(together, BINS), BINS + 1)
    return {
        **{name: _quantiles(distances) for name, distances in sets.items()},
        "closer_than_heldout_p01": proportion(generated.distances < heldout.distances.quantile(0.01)),
        "histogram": {
            "edges": edges.tolist(),
            **{name: np.histogram(distances.numpy(), edges)[0].tolist() for name, distances in sets.items()},
        },
        "heldout_images": len(heldout.distances),
        "train_images": train_images,
    }


def _per_class(first: torch.Tensor, labels: torch.Tensor, classes: int) -> list[float | None]:
    """The share of hits among the images of each class, from bool [N] and int64 [N]; None for one without images."""
    counts, right = (torch.bincount(some, minlength=classes).tolist() for some in (labels, labels[first]))
    return [hits / count if count else None for hits, count in zip(right, counts, strict=True)]


def _quantiles(distances: torch.Tensor) -> dict[str, float]:
    values = distances.quantile(torch.tensor([0.01, 0.05, 0.5, 0.95])).tolist()
    return dict(zip(("p01", "p05", "p50", "p95"), values, strict=True))


@torch.no_grad()
def nearest(queries: torch.Tensor, references: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The closest of `references`, uint8 [M, 28, 28], to each of `queries`, uint8 [N, 28, 28].

    A matrix product per chunk on `device` finds it. Its distance is then computed from the difference, so that the
    distance of a copy is exactly zero.

    Returns:
        Distances, float32 [N]: the L2 norm of the difference of the images with pixels from 0 to 1, so between 0 and
        28. Indices into `references`, int64 [N]. Both on the CPU.
    """
    known = references.to(device).flatten(1).float() / 255
    squares = known.square().sum(1)
    distances, indices = [torch.empty(0)], [torch.empty(0, dtype=torch.long)]
    for part in queries.split(CHUNK):
        wanted = part.to(device).flatten(1).float() / 255
        found = (squares - 2 * wanted @ known.T).argmin(1)  # without the query's square, equal for all
        distances.append((wanted - known[found]).norm(dim=1).cpu())
        indices.append(found.cpu())
    return torch.cat(distances), torch.cat(indices)
