"""Intervals of proportions and of their ratios: known values, and how often they hold the truth."""

import math

import numpy as np
import pytest

from ddpm.evaluation.intervals import proportion_interval, ratio_interval


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [
        (0, 188, 0, 0.019431),  # exact (Clopper & Pearson)
        (10, 10, 0.691503, 1),
        (1, 188, 0.000940, 0.029510),  # Wilson
        (9, 10, 0.595850, 0.982124),
        (186, 188, 0.962045, 0.997077),  # was 97.4% to 100.1% by the bootstrap
    ],
)
def test_known_values(hits: int, count: int, low: float, high: float):
    assert proportion_interval(hits, count) == pytest.approx((low, high), abs=1e-5)


def test_of_nothing_nothing_is_known():
    assert all(map(math.isnan, (*proportion_interval(0, 0), *ratio_interval(0, 0, 5, 9), *ratio_interval(3, 9, 0, 9))))


@pytest.mark.parametrize("truth", [0.01, 0.2, 0.7, 0.97])
@pytest.mark.parametrize("count", [47, 188, 940])
def test_a_proportions_interval_holds_the_truth_as_often_as_it_says(truth: float, count: int):
    """On average over the counts of hits that can come up, as far as a discrete count allows."""
    drawn = np.random.default_rng(0).binomial(count, truth, 4000)
    ends = np.array([proportion_interval(int(hits), count) for hits in range(count + 1)])
    assert (ends[:, 0] >= 0).all() and (ends[:, 1] <= 1).all() and (np.diff(ends, axis=1) > 0).all()
    assert ((ends[drawn, 0] <= truth) & (truth <= ends[drawn, 1])).mean() > 0.9


@pytest.mark.parametrize(("one", "other"), [(0.02, 0.9), (0.5, 0.88), (0.88, 0.88), (0.99, 0.98), (0.05, 0.24)])
@pytest.mark.parametrize(("count", "other_count"), [(47, 94), (470, 3260)])
def test_a_ratios_interval_holds_the_truth_as_often_as_it_says(one: float, other: float, count: int, other_count: int):
    source = np.random.default_rng(0)
    drawn = zip(source.binomial(count, one, 2000), source.binomial(other_count, other, 2000), strict=True)
    ends = np.array([ratio_interval(int(hits), count, int(others), other_count) for hits, others in drawn])
    assert (ends[:, 0] >= 0).all() and (np.diff(ends, axis=1) > 0).all()
    assert ((ends[:, 0] <= one / other) & (one / other <= ends[:, 1])).mean() > 0.93
