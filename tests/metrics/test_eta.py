"""How long a run will still take: right at a constant speed, calm at a noisy one."""

from __future__ import annotations

import itertools
import random

import pytest

from ddpm.run.metrics import (
    CHECKPOINT_TIME_SEC,
    EPOCH_TIME_SEC,
    EVAL_TIME_SEC,
    SAMPLE_TIME_SEC,
    TRAIN_TIME_SEC,
    VAL_TIME_SEC,
)
from metrics.live.eta import RemainingTime

TOTAL, BATCH, EVERY = 100_000, 64, 50  # steps, images a step, steps between two lines of progress


def progress(remaining: RemainingTime, speeds: list[float], start: int = 0) -> list[float]:
    """The seconds left after each of several intervals with these speeds in images/s."""
    left = []
    for place, speed in enumerate(speeds, 1):
        step = start + place * EVERY
        fields = {"step": step, "total_steps": TOTAL, "images_seen": step * BATCH, "start_images": start * BATCH}
        left.append(remaining.update({**fields, "samples_per_sec": speed}))
    return left


def row(training: float, *others: float) -> dict:
    """An epoch that took this long."""
    parts = (VAL_TIME_SEC, EVAL_TIME_SEC, SAMPLE_TIME_SEC, CHECKPOINT_TIME_SEC)
    known = {metric.name: value for metric, value in zip(parts, others, strict=True)}
    return {TRAIN_TIME_SEC.name: training, EPOCH_TIME_SEC.name: training + sum(others), **known}


@pytest.mark.parametrize("start", [0, 40_000])
def test_it_is_right_at_a_constant_speed(start):
    left = progress(RemainingTime(), [800.0] * 1000, start)
    expected = [(TOTAL - start - place * EVERY) * BATCH / 800 for place in range(1, 1001)]
    assert left == pytest.approx(expected)


def test_what_epochs_have_besides_training_is_included_in_proportion():
    remaining = RemainingTime([row(80.0, 4.0, 0.0, 6.0, 2.0)])
    remaining.add_epoch(row(80.0, 4.0, 20.0, 0.0, 4.0))  # 40 s besides 160 s of training
    remaining.add_epoch({})  # an epoch without times
    assert progress(remaining, [800.0])[0] == pytest.approx((TOTAL - EVERY) * BATCH / 800 * 1.25)


def test_it_does_not_jump_where_speeds_do():
    """Intervals of 4 s as a rule; each sixth one five times slower, as on a machine that others use, too."""
    noise = random.Random(0)
    speeds = [800 * noise.uniform(0.7, 1.3) / (5 if noise.random() < 1 / 6 else 1) for _ in range(600)]
    left = progress(RemainingTime(), speeds)[20:]
    jumps = [abs(after / before - 1) for before, after in itertools.pairwise(left)]
    assert max(jumps[100:]) < 0.04 and max(jumps) < 0.2
    of_last_interval = [(TOTAL - place * EVERY) * BATCH / speed for place, speed in enumerate(speeds, 1)][20:]
    assert max(after / before for before, after in itertools.pairwise(of_last_interval)) > 5  # as it was


def test_a_pause_is_not_taken_for_the_speed():
    """An hour by Ctrl-Z and fg: the clock ran on, the steps did not."""
    speeds = [800.0] * 300
    speeds[200] = EVERY * BATCH / 3600
    left = progress(RemainingTime(), speeds)
    assert left[200:] == pytest.approx([(TOTAL - place * EVERY) * BATCH / 800 for place in range(201, 301)], rel=0.12)


def test_it_follows_a_speed_that_has_changed_for_good():
    left = progress(RemainingTime(), [800.0] * 500 + [200.0] * 150)  # 40 minutes, and at a quarter of the speed as long
    assert left[-1] == pytest.approx((TOTAL - 650 * EVERY) * BATCH / 200, rel=0.1)


@pytest.mark.parametrize(
    "status", [{}, {"step": 0, "total_steps": 9, "images_seen": 0}, {"step": 5, "total_steps": 9, "images_seen": 50}]
)
def test_it_is_not_known_before_there_is_a_speed(status):
    for speed in (None, float("nan"), float("inf"), 0.0, "?"):
        assert RemainingTime().update({**status, "samples_per_sec": speed}) is None
