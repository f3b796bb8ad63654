"""Scores of generated images from the classifier's predictions, each with a 95% interval."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import nn

from ddpm.evaluation.intervals import TAIL, proportion_interval, ratio_interval

ROUNDS = 200  # of the bootstrap
ALONE = {"sync_on_compute": False}  # otherwise torchmetrics waits for the other processes, which compute nothing


@dataclass(frozen=True)
class Estimate:
    """A figure, its 95% interval, and the number of images that it was measured on."""

    value: float
    low: float
    high: float
    count: int

    def to_dict(self) -> dict[str, float | int | None]:
        """The fields for JSON, where numbers that are not finite are None."""
        return {
            name: value if isinstance(value, int) or math.isfinite(value) else None
            for name, value in asdict(self).items()
        }

    def overlaps(self, other: Estimate) -> bool:
        """Do the two intervals have a value in common?"""
        return self.low <= other.high and other.low <= self.high


def bootstrap(
    statistic: Callable[..., float | torch.Tensor],
    *samples: torch.Tensor,
    seed: int = 0,
    rounds: int = ROUNDS,
    within: tuple[float, float] = (0.0, math.inf),
) -> Estimate:
    """`statistic(*samples)` with the interval that resampling gives it (Efron & Tibshirani 1993).

    Each sample [N, ...] is resampled on its own, with replacement. A resample has fewer different images, which makes
    distances larger, however many rounds there are. So the quantiles of the bootstrap are shifted by the difference
    between the estimate and the mean of the bootstrap. The count is that of the first sample. Of fewer than two images
    in a sample nothing is estimated: NaN.

    Args:
        rounds: number of resamples.
        within: the range of the statistic; the interval is cut to it.
    """
    if min(map(len, samples)) < 2:
        return Estimate(math.nan, math.nan, math.nan, len(samples[0]))
    source = torch.Generator().manual_seed(seed)

    def again(sample: torch.Tensor) -> torch.Tensor:
        return sample[torch.randint(len(sample), (len(sample),), generator=source).to(sample.device)]

    value = float(statistic(*samples))
    drawn = torch.tensor([float(statistic(*map(again, samples))) for _ in range(rounds)], dtype=torch.float64)
    ends = drawn.quantile(torch.tensor([TAIL, 1 - TAIL], dtype=torch.float64)) + value - drawn.mean()
    low, high = ends.clamp(*within).tolist()
    return Estimate(value, low, high, len(samples[0]))


def proportion(hits: torch.Tensor) -> Estimate:
    """The share of true values in a bool [N], with an interval for proportions."""
    return Estimate(share(hits), *proportion_interval(int(hits.sum()), len(hits)), len(hits))


def share(hits: torch.Tensor) -> float:
    """The share of true values in a bool [N]; NaN if N is 0."""
    return hits.float().mean().item()


def relative_accuracy(generated: torch.Tensor, real: torch.Tensor) -> float:
    """RCA: Top-1 on generated images relative to Top-1 on real ones, from bool [N] and bool [M]."""
    return share(generated) / share(real) if real.any() else math.nan


def rca(generated: torch.Tensor, real: torch.Tensor) -> Estimate:
    """`relative_accuracy` with the interval of a ratio of two proportions; the count is that of generated images."""
    ends = ratio_interval(int(generated.sum()), len(generated), int(real.sum()), len(real))
    return Estimate(relative_accuracy(generated, real), *ends, len(generated))


def hits(probabilities: torch.Tensor, labels: torch.Tensor, k: int) -> torch.Tensor:
    """Is the label [N] among the k likeliest classes of `probabilities` [N, K]? bool [N]."""
    return (probabilities.topk(min(k, probabilities.shape[1]), dim=1).indices == labels[:, None]).any(1)


def confusion(predicted: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """How often each of K classes (row) was taken for each (column), int64 [K, K], from two int64 [N]."""
    return torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)


def class_shares(predicted: torch.Tensor, classes: int) -> torch.Tensor:
    """The share of each of K classes among int64 [N], float64 [K]."""
    return torch.bincount(predicted, minlength=classes).double() / len(predicted)


def total_variation(shares: torch.Tensor) -> float:
    """Total variation distance of shares [K] from uniform, 0 to 1: the share of images in excess of equal shares."""
    return (shares - 1 / len(shares)).abs().sum().item() / 2


def frechet_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Fréchet distance (Heusel et al. 2017) of features [N, D] and [M, D], taken as two Gaussians.

    It is biased: fewer images give larger values. Compare only values of the same counts. NaN for fewer than two.
    """
    if min(len(a), len(b)) < 2:
        return math.nan
    from torchmetrics.image.fid import FrechetInceptionDistance  # takes seconds to load

    metric = FrechetInceptionDistance(feature=_Features(a.shape[1]), **ALONE).to(a.device)
    metric.update(a, real=True)
    metric.update(b, real=False)
    return max(metric.compute().item(), 0.0)  # rounding may make it negative


def kernel_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Kernel distance (squared MMD of the cubic kernel, Bińkowski et al. 2018) of features [N, D] and [M, D].

    It is unbiased, so it may be below zero. Of samples that differ in size, the larger is cut to the smaller.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(len(a), len(b))
    with warnings.catch_warnings():  # the warning that features are kept in memory: they are there anyway
        warnings.simplefilter("ignore", UserWarning)
        metric = KernelInceptionDistance(feature=_Features(a.shape[1]), subsets=1, subset_size=size, **ALONE)
    metric = metric.to(a.device)
    metric.update(a[:size], real=True)
    metric.update(b[:size], real=False)
    with torch.random.fork_rng(devices=[]):  # its subset is drawn at random, though it is the whole set
        return metric.compute()[0].item()


def precision_recall(real: torch.Tensor, generated: torch.Tensor, k: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Improved precision and recall (Kynkäänniemi et al. 2019) of features [N, D] and [M, D], image by image.

    Returns:
        Whether each generated image lies within the manifold of the real ones, bool [M], and each real one within that
        of the generated, bool [N]. Their means are precision and recall. The manifold of a set is the union of balls
        around its members, each reaching to the member's k-th nearest neighbour in the set.
    """
    return _within(real, generated, k), _within(generated, real, k)


def density_coverage(real: torch.Tensor, generated: torch.Tensor, k: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Density and coverage (Naeem et al. 2020) of features [N, D] and [M, D], image by image.

    Returns:
        The number of neighbourhoods of real images in which each generated one lies, over k: float64 [M], whose mean is
        the density; and whether a generated image lies in each real one's neighbourhood: bool [N], whose mean is the
        coverage. A neighbourhood is a ball that reaches to the real image's k-th nearest neighbour among the real ones.
    """
    radii = _radii(real, k)
    inside = [_distances(part, real) <= radii for part in generated.split(1024)]
    counts = torch.cat([part.sum(1) for part in inside]).double() / k
    return counts, torch.stack([part.any(0) for part in inside]).any(0)


def _distances(some: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    return torch.cdist(some, others, compute_mode="donot_use_mm_for_euclid_dist")  # a copy is at exactly 0


def _radii(members: torch.Tensor, k: int) -> torch.Tensor:
    """The distance of each of `members` [N, D] to its k-th nearest neighbour among them: [N]."""
    nth = min(k + 1, len(members))  # the first is the member itself
    return torch.cat([_distances(part, members).kthvalue(nth, dim=1).values for part in members.split(1024)])


def _within(manifold: torch.Tensor, points: torch.Tensor, k: int) -> torch.Tensor:
    """Whether each of `points` [M, D] lies within the manifold of the set `manifold` [N, D]: bool [M]."""
    radii = _radii(manifold, k)
    return torch.cat([(_distances(part, manifold) <= radii).any(1) for part in points.split(1024)])


class _Features(nn.Identity):
    """Takes the place of torchmetrics' network, so that features can be given instead of images."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
