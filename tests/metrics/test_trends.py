"""What is found in a curve: against curves whose bests, slopes and phases are known."""

import itertools
import math

import numpy as np
import pytest

from ddpm.run.metrics import LOSS_MEAN, METRICS, RCA, Metric
from metrics import trends
from metrics.phases import find_phases
from metrics.trends import Curve, Point


def curve(values, metric: Metric = LOSS_MEAN) -> Curve:
    """A figure that was measured in these epochs, from the first on; None where it was not."""
    known = ((epoch, value) for epoch, value in enumerate(values, 1) if value is not None)
    return Curve.of([{"epoch": epoch, metric.name: float(value)} for epoch, value in known], metric)


def exponential(*parts: tuple[int, float], start: float = 0.3, noise: float = 0.0) -> Curve:
    """A loss that changes by so much per epoch for so many epochs, part after part."""
    changes = np.concatenate([np.full(count, math.log1p(rate)) for count, rate in parts])
    wiggles = np.random.default_rng(0).normal(scale=noise, size=len(changes)) if noise else 0.0
    return curve(start * np.exp(np.cumsum(changes) + wiggles))


def kinds(values: Curve) -> list[str]:
    return [phase.kind for phase in find_phases(values)]


def test_best_is_the_first_of_equals_and_of_the_right_direction():
    assert trends.best(curve([3.0, 1.0, None, 1.0])) == Point(2, 1.0)
    assert trends.best(curve([0.2, 0.9, 0.5], RCA)) == Point(2, 0.9)
    assert trends.best(curve([None, None])) is None


def test_smoothed_best_is_not_fooled_by_one_lucky_epoch():
    lucky = curve([9, 9, 1, 9, 9, 4, 4, 4, 4, 4])
    assert trends.best(lucky) == Point(3, 1)
    assert trends.best_smoothed(lucky) == trends.Smoothed(4.0, 6, 10)
    assert trends.best_smoothed(lucky[:4]) is None, "five values make a mean"


def test_smoothing_counts_measured_values_where_some_epochs_have_none():
    found = trends.best_smoothed(curve([5, None, 4, None, 3, None, 2, None, 1]))
    assert found == trends.Smoothed(3.0, 1, 9)


def pairs(found: Curve) -> tuple[list, list]:
    return found.epochs.tolist(), found.values.tolist()


def test_new_bests_are_better_than_all_before():
    falling, rising = curve([3, 4, 2, 2, None, 1]), curve([0.1, 0.1, 0.5, 0.4], RCA)
    assert dict(zip(*pairs(trends.new_bests(falling)), strict=True)) == {1: 3, 3: 2, 6: 1}
    assert dict(zip(*pairs(trends.new_bests(rising)), strict=True)) == {1: 0.1, 3: 0.5}


@pytest.mark.parametrize("count", [2, 9, 1000])
def test_thinned_keeps_first_and_last_and_no_more_than_asked(count):
    bests = curve(1 / np.arange(1, count + 1))
    shown = trends.thinned(bests, 8)
    assert min(count, 6) <= len(shown) <= 8
    assert shown.epochs[0] == 1 and shown.epochs[-1] == count
    assert (np.diff(shown.values) < 0).all()


def test_slope_and_its_error_are_those_of_least_squares():
    values = curve(np.random.default_rng(1).normal(size=30))
    found = trends.slope(values[-12:])
    (expected, _), covariance = np.polyfit(values.epochs[-12:], values.values[-12:], 1, cov=True)
    assert found.value == pytest.approx(expected)
    assert found.error == pytest.approx(math.sqrt(covariance[0, 0]))
    assert (found.first, found.last, found.count) == (19, 30, 12)
    assert trends.slope(values[:2]) is None


def test_the_present_slope_does_not_know_the_steep_beginning():
    values = curve([*np.linspace(1.0, 0.2, 10), *[0.2] * 10])
    assert trends.present_slope(values).value == pytest.approx(0, abs=1e-12)


def test_phases_are_those_that_the_curve_was_made_of():
    found = find_phases(exponential((10, -0.12), (30, -0.01), (40, 0.0), noise=0.002))
    assert [phase.kind for phase in found] == ["fast descent", "slow descent", "plateau"]
    assert [phase.rate.last for phase in found[:2]] == pytest.approx([10, 40], abs=3)
    assert found[0].rate.value == pytest.approx(-0.12, abs=0.005)
    assert found[1].rate.value == pytest.approx(-0.01, abs=0.001)
    plateau = exponential((10, -0.12), (30, -0.01), (40, 0.0), noise=0.002).values[found[2].rate.first - 1 :]
    assert (found[2].mean, found[2].deviation) == pytest.approx((plateau.mean(), plateau.std(ddof=1)))


def test_a_loss_that_grows_again_is_rising():
    assert kinds(exponential((20, -0.08), (20, 0.03), noise=0.002)) == ["fast descent", "rising"]


def test_noise_alone_makes_no_phases():
    assert kinds(exponential((60, 0.0), noise=0.01)) == ["plateau"]
    assert kinds(exponential((6, 0.0), noise=0.3)) == ["no clear direction"]


def test_a_long_and_slow_descent_is_no_plateau():
    assert kinds(exponential((1000, -0.0005))) == ["slow descent"]


def test_a_loss_that_comes_to_a_stand_ends_in_a_plateau():
    found = find_phases(curve([0.02 + 0.2 / epoch**3 for epoch in range(1, 41)]))
    assert [phase.kind for phase in found][-2:] == ["slow descent", "plateau"]
    assert found[-1].rate.first <= 30 and found[-1].rate.last == 40


def test_phases_follow_each_other_without_a_gap():
    found = find_phases(exponential((5, -0.3), (300, -0.004), (695, 0.0), noise=0.003))
    assert found[0].rate.first == 1 and found[-1].rate.last == 1000
    for one, two in itertools.pairwise(found):
        assert two.rate.first == one.rate.last + 1


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 0.5], [None] * 5, [0.0, -1.0, 0.0, -2.0]])
def test_too_few_values_have_no_phases(values):
    assert find_phases(curve(values)) == []


def test_a_target_is_reached_at_the_first_epoch_that_is_as_good():
    assert trends.forecast(curve([3, 2, 1, 2]), 2.0).epoch == 2
    assert trends.forecast(curve([0.5, 0.95, 0.9], RCA), 0.9).epoch == 2


def test_a_target_that_is_ahead_is_met_where_the_line_gets_there():
    way = trends.forecast(curve(np.linspace(1.0, 0.5, 21)), 0.25)  # 0.025 less per epoch, so ten more epochs
    assert way.epoch is None
    assert way.expected == pytest.approx(31)
    rca = trends.forecast(curve(np.linspace(0.5, 0.7, 21), RCA), 0.8)
    assert rca.expected == pytest.approx(31)


def test_the_uncertainty_of_the_slope_is_that_of_the_arrival():
    values = curve(np.linspace(1.0, 0.5, 21) + np.random.default_rng(2).normal(scale=0.01, size=21))
    way = trends.forecast(values, 0.1)
    line, left = way.slope, 0.1 - values.last.value
    assert way.earliest < way.expected < way.latest
    assert way.latest == pytest.approx(21 + left / (line.value + 2 * line.error))


@pytest.mark.parametrize("values", [[1.0] * 20, list(np.linspace(0.5, 1.0, 20)), [1.0, 0.9]])
def test_a_curve_that_does_not_go_there_does_not_arrive(values):
    way = trends.forecast(curve(values), 0.1)
    assert (way.epoch, way.expected, way.earliest, way.latest) == (None, None, None, None)


def test_the_gap_is_that_of_medians_since_the_best_validation():
    train, valid = curve([5, 4, 3, 2, 1, 1]), curve([5, 3, 3, 3, 9, 9])
    gap = trends.gap(train, valid)
    assert (gap.best, gap.last) == (Point(3, 3.0), Point(6, 9.0))
    assert gap.rise == pytest.approx(2.0) and gap.fall == pytest.approx(1 - 1 / 4)
    assert trends.gap(train, curve([None] * 6)) is None


def test_epochs_become_one_figure_of_the_run_as_the_registry_has_it():
    rows = [
        {"epoch": 1, "train_images": 100, "train_time_sec": 1.0, "samples_per_sec": 100.0, "nonfinite_steps": 2},
        {"epoch": 2, "train_images": 100, "train_time_sec": 4.0, "samples_per_sec": 25.0, "nonfinite_steps": 1},
    ]
    assert trends.over_epochs(rows, METRICS["samples_per_sec"]) == 40.0, (
        "all images over all seconds, not a mean of rates"
    )
    assert trends.over_epochs(rows, METRICS["nonfinite_steps"]) == 3
    assert trends.over_epochs(rows, METRICS["train_time_sec"]) == 5.0
    assert trends.over_epochs(rows, RCA) is None


@pytest.mark.parametrize(("count", "fitted"), [(2, None), (3, 3), (5, 3), (8, 4), (19, 9), (20, 10), (30, 10)])
def test_the_present_slope_is_that_of_the_latest_half_of_three_to_ten_values(count, fitted):
    found = trends.present_slope(curve(range(count)))
    assert (found and found.count) == fitted
    if found:
        assert (found.first, found.last, found.value) == (count - fitted + 1, count, pytest.approx(1))


@pytest.mark.parametrize(("value", "significant"), [(2.1, True), (2.0, False), (-1.9, False), (-2.1, True)])
def test_a_slope_is_significant_beyond_two_standard_errors(value, significant):
    assert trends.Slope(value, 1.0, 1, 9, 9).significant is significant
    assert trends.Slope(value / 4, 0.25, 1, 9, 9).significant is significant


def test_a_curve_holds_what_was_measured():
    rows = [{"epoch": epoch, "rca": value} for epoch, value in ((1, 0.5), (2, None), (3, math.nan), (5, 0.7))]
    found = Curve.of(rows, RCA)
    assert (pairs(found), len(found), found.last) == (([1, 5], [0.5, 0.7]), 2, Point(5, 0.7))
    assert found.costs.tolist() == [-0.5, -0.7], "the better, the smaller"
    assert pairs(found[1:]) == ([5], [0.7])
    nothing = Curve.of([], RCA)
    assert (len(nothing), nothing.last) == (0, None)
    assert found != Curve.of(rows, RCA), "compared as objects: arrays have no truth value"


def test_a_value_as_good_as_the_target_is_one_that_equals_it():
    assert trends.first_as_good(curve([3, 2, 1]), 2.0) == Point(2, 2.0)
    assert trends.first_as_good(curve([0.5, 0.9, 0.95], RCA), 0.9) == Point(2, 0.9)
    assert trends.first_as_good(curve([3, 2, 1]), 0.5) is None
    assert trends.first_as_good(curve([0.5, 0.9], RCA), 0.95) is None


def test_the_main_loss_is_the_most_telling_one_that_was_measured_often_enough():
    ema, live, training = METRICS["val_loss_ema"], METRICS["val_loss"], LOSS_MEAN
    run = [{"epoch": epoch, "loss_mean": 1.0, "val_loss": 1.0} for epoch in (1, 2)]
    run[1]["val_loss_ema"] = 1.0
    assert trends.main_loss([run]) == ema
    assert trends.main_loss([run], least=2) == live
    assert trends.main_loss([run], least=3) == training
    assert trends.main_loss([[], run[:1]]) == live, "one of the runs is enough"
    assert trends.main_loss(iter([run[:1], []])) == live, "an iterator will do"
    assert trends.main_loss([]) == training


def test_a_rate_of_the_run_counts_the_epochs_that_were_timed():
    rate, rows = METRICS["samples_per_sec"], [{"epoch": 1, "train_images": 100, "train_time_sec": 2.0}]
    assert trends.over_epochs([*rows, {"epoch": 2, "train_images": 900}], rate) == 50.0
    assert trends.over_epochs([], rate) is None
    assert trends.over_epochs([{"epoch": 1, "train_images": 100, "train_time_sec": 0.0}], rate) is None


def test_epochs_become_the_best_the_last_the_largest_or_the_median():
    values = [{"epoch": epoch, name: value} for epoch, value in enumerate([3.0, 1.0, 5.0, 2.0, 4.0], 1)
              for name in ("val_loss", "rca", "lr", "grad_norm_max", "batches_per_sec")]  # fmt: skip
    found = {name: trends.over_epochs(values, METRICS[name])
             for name in ("val_loss", "rca", "lr", "grad_norm_max", "batches_per_sec")}  # fmt: skip
    assert found == {"val_loss": 1.0, "rca": 5.0, "lr": 4.0, "grad_norm_max": 5.0, "batches_per_sec": 3.0}


def test_a_difference_is_told_as_the_figure_is_if_that_is_a_percentage_else_with_three_digits():
    assert trends.gap_words(METRICS["mfu"], 0.1234) == "12.3%"
    assert trends.gap_words(METRICS["mfu"], 0.00012) == "0.012%"
    assert trends.gap_words(LOSS_MEAN, 0.123456) == "0.123"
    assert trends.gap_words(METRICS["samples_per_sec"], 99_876.6) == "99,877"
    assert trends.gap_words(METRICS["samples_per_sec"], 999.7) == "999.7"
    assert trends.gap_words(METRICS["mfu"], math.nan) == "–"


def test_thinned_takes_more_of_the_early_values_where_curves_fall_fastest():
    shown = trends.thinned(curve(range(1000)), 10).epochs
    assert (shown[:3] < 6).all() and (np.diff(shown, 2)[1:] > 0).all()
    assert len(shown) == 10 and shown[-2] == 464, "1000^(8/9)"
    eight = curve(range(8))
    assert trends.thinned(eight, 8) is eight
    assert trends.thinned(eight, 2).epochs.tolist() == [1, 8]
    late = Curve.of([{"epoch": epoch, "loss_mean": 1.0} for epoch in (0, 40, 50, 60, 99)], LOSS_MEAN)
    assert trends.thinned(late, 3).epochs.tolist() == [0, 40, 99]


def test_the_last_value_over_the_best():
    assert trends.over_best(curve([3, 2, 3])) == 1.5
    assert trends.over_best(curve([])) == trends.over_best(curve([0.0, 1.0])) == 1.0
    assert trends.over_best(curve([0.5, 0.75])) == 1.5


def test_an_arrival_is_no_earlier_than_with_two_standard_errors_more():
    values = curve(np.linspace(1.0, 0.5, 21) + np.random.default_rng(2).normal(scale=0.01, size=21))
    way = trends.forecast(values, 0.1)
    assert way.earliest == pytest.approx(21 + (0.1 - values.last.value) / (way.slope.value - 2 * way.slope.error))
    rising = trends.forecast(curve(1 - values.values, RCA), 0.9)
    assert (rising.earliest, rising.expected, rising.latest) == pytest.approx((way.earliest, way.expected, way.latest))
    assert trends.forecast(curve([1.0, 0.9]), 0.1).slope is None
    assert trends.forecast(curve([0.5, 0.45, 0.4], RCA), 0.9).slope.value == pytest.approx(-0.05), "told all the same"


def test_the_gap_is_of_the_epochs_that_have_both_losses():
    train, valid = curve([None, 8, 6, 5, 5, 4]), curve([9, 5, None, 4, 2, 7])
    gap = trends.gap(train, valid)  # epochs 2, 4, 5, 6: medians 8, 8, 5, 5 and 5, 5, 4, 4
    assert (gap.best, gap.last) == (Point(5, 4.0), Point(6, 4.0))
    assert (gap.train_at_best, gap.train_at_last) == (5.0, 5.0)


def test_the_error_of_a_slope_of_three_values():
    """Values 0, 3, 0 lie 1, 2 and 1 off their flat line: squares of 6, one degree of freedom, epochs' squares of 2."""
    found = trends.slope(curve([0, 3, 0]))
    assert (found.value, found.error, found.count) == (pytest.approx(0), pytest.approx(math.sqrt(6 / 1 / 2)), 3)
