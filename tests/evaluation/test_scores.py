"""Scores against answers that are known, and the intervals that go with them."""

import math

import pytest
import torch

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
    relative_accuracy,
    share,
    total_variation,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_label_among_the_k_likeliest_is_a_hit():
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    labels = torch.tensor([1, 2])
    assert hits(probabilities, labels, 1).tolist() == [False, True]
    assert hits(probabilities, labels, 2).tolist() == [True, True]


def test_rows_of_the_confusion_are_what_was_wanted():
    table = confusion(predicted=torch.tensor([1, 1, 46]), labels=torch.tensor([18, 18, 0]), classes=47)
    assert table[18, 1] == 2 and table[0, 46] == 1 and table.sum() == 3


def test_relative_accuracy_is_that_of_generated_to_that_of_real():
    generated, real = torch.tensor([True, False]), torch.tensor([True, True, True, False])
    assert relative_accuracy(generated, real) == pytest.approx(0.5 / 0.75)
    assert math.isnan(relative_accuracy(generated, torch.tensor([False])))


def test_total_variation_is_the_part_that_is_in_the_wrong_class():
    assert total_variation(class_shares(torch.arange(47), 47)) == pytest.approx(0)
    assert total_variation(class_shares(torch.zeros(10, dtype=torch.long), 47)) == pytest.approx(46 / 47)


def test_frechet_distance_of_a_shifted_set_is_the_square_of_the_shift():
    features, shift = normal(500, 8), torch.linspace(0, 1, 8)
    assert frechet_distance(features, features + shift) == pytest.approx(shift.square().sum().item(), rel=1e-3)


def test_frechet_distance_of_a_set_twice_as_wide_is_its_variance():
    features = normal(500, 8)
    features -= features.mean(0)
    assert frechet_distance(features, 2 * features) == pytest.approx(features.var(0).sum().item(), rel=1e-3)


def test_kernel_distance_is_near_zero_for_one_distribution_and_not_for_two():
    same, other = (
        kernel_distance(normal(400, 8), normal(300, 8, seed=1)),
        kernel_distance(normal(400, 8), 2 + normal(400, 8)),
    )
    assert abs(same) < 0.05 < 1 < other


def test_distances_leave_the_global_random_state_alone():
    before = torch.get_rng_state()
    kernel_distance(normal(50, 8), normal(50, 8, seed=1))
    frechet_distance(normal(50, 8), normal(50, 8, seed=1))
    bootstrap(share, torch.tensor([True, False]))
    assert torch.get_rng_state().equal(before)


def test_a_set_lies_within_its_own_manifold_and_not_within_one_far_away():
    features = normal(200, 8)
    assert all(each.all() for each in precision_recall(features, features))
    assert not any(each.any() for each in precision_recall(features, features + 100))


def test_drawing_half_of_what_there_is_costs_recall_and_not_precision():
    left, right = normal(100, 8), normal(100, 8, seed=1) + 100
    precise, recalled = precision_recall(torch.cat([left, right]), left)
    assert share(precise) == 1 and share(recalled) == 0.5


def test_the_interval_holds_the_truth_as_often_as_it_says():
    truth, source, inside = 0.7, torch.Generator().manual_seed(0), 0
    for trial in range(200):
        estimate = bootstrap(share, torch.rand(150, generator=source) < truth, seed=trial)
        inside += estimate.low <= truth <= estimate.high
    assert 0.89 < inside / 200 < 0.99


def test_the_interval_of_a_distance_is_not_pushed_upwards_by_resampling():
    def unevenness(drawn: torch.Tensor) -> float:
        return total_variation(class_shares(drawn, 47))

    drawn = torch.randint(47, (470,), generator=torch.Generator().manual_seed(0))
    source = torch.Generator().manual_seed(1)
    again = drawn[torch.randint(470, (470,), generator=source)]
    estimate = bootstrap(unevenness, drawn)
    assert estimate.low < estimate.value < estimate.high < unevenness(again)


def test_an_interval_depends_on_the_seed_alone_and_counts_the_first_sample():
    samples = normal(40, 1), normal(90, 1, seed=1)

    def gap(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a.mean() - b.mean()

    first, again, other = (bootstrap(gap, *samples, seed=seed, within=(-9, 9)) for seed in (3, 3, 4))
    assert first == again != other
    assert first.count == 40


def test_an_interval_of_the_bootstrap_is_cut_to_the_range_of_its_figure():
    def square(values: torch.Tensor) -> torch.Tensor:
        return values.mean().square()

    wide = bootstrap(square, normal(40, 1), within=(-9, 9))
    assert wide.low < 0 < 0.01 < wide.high  # resamples have larger squares, and the interval is shifted by that
    cut = bootstrap(square, normal(40, 1), within=(0, 0.01))
    assert (cut.value, cut.low, cut.high) == (wide.value, 0, pytest.approx(0.01))


def test_proportions_and_their_ratio_have_an_interval_also_where_none_or_all_are_hits():
    none, all_of_them, some = torch.zeros(188) > 0, torch.ones(188) > 0, torch.arange(188) % 10 > 0
    assert proportion(none) == Estimate(0, 0, pytest.approx(1 - 0.025 ** (1 / 188)), 188)
    assert proportion(all_of_them).high == 1 > proportion(all_of_them).low > 0.98
    assert 0 < rca(none, some).high < 0.03 and rca(none, some).low == 0
    assert rca(all_of_them, all_of_them).low < 1 < rca(all_of_them, all_of_them).high
    assert math.isnan(rca(some, none).low) and math.isnan(rca(some, none).value)


def test_json_has_no_word_for_what_is_not_a_number():
    assert Estimate(math.nan, 0.0, 1.0, 5).to_dict() == {"value": None, "low": 0.0, "high": 1.0, "count": 5}


def test_density_and_coverage_of_real_images_are_near_one_and_of_copies_of_one_are_not():
    source = torch.Generator().manual_seed(0)
    real, other = torch.randn(2, 400, 8, generator=source)
    density, coverage = density_coverage(real, other)
    assert density.mean() == pytest.approx(1, abs=0.15)
    assert coverage.double().mean() > 0.9
    density, coverage = density_coverage(real, real[:1].repeat(400, 1))
    assert coverage.sum() < 30
    assert density.unique().numel() == 1


def test_density_and_coverage_by_hand():
    """Real at 0, 1, 3 on a line, k = 1: their neighbourhoods reach 1, 1 and 2."""
    real, generated = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.5], [4.5], [9.0]])
    density, coverage = density_coverage(real, generated, k=1)
    assert density.tolist() == [2, 1, 0]
    assert coverage.tolist() == [True, True, True]


def test_two_intervals_overlap_if_they_have_a_value_in_common():
    low, high, wide = Estimate(1, 0, 2, 9), Estimate(4, 3, 5, 9), Estimate(3, 2, 3, 9)
    assert not low.overlaps(high) and not high.overlaps(low)
    assert low.overlaps(wide) and wide.overlaps(low), "their ends are shared"
    assert wide.overlaps(high) and high.overlaps(wide)
    assert wide.overlaps(Estimate(2.5, 2.4, 2.6, 9)) and Estimate(2.5, 2.4, 2.6, 9).overlaps(wide)


def test_of_one_image_nothing_is_estimated_and_of_two_something_is():
    two = torch.tensor([True, False])
    for samples in ((two[:1],), (two, two[:1]), (two[:1], two)):
        nothing = bootstrap(lambda *values: share(values[0]), *samples)
        assert all(map(math.isnan, (nothing.value, nothing.low, nothing.high)))
        assert nothing.count == len(samples[0])
    assert bootstrap(share, two) == bootstrap(share, two, seed=0, rounds=200, within=(0, math.inf))
    assert bootstrap(share, two).value == 0.5


def test_an_interval_takes_the_rounds_it_is_asked_for_and_is_never_negative_unless_it_may_be():
    calls = []

    def square(values: torch.Tensor) -> torch.Tensor:
        calls.append(len(values))
        return values.mean().square()

    assert bootstrap(square, normal(40, 1), rounds=30).low == 0
    assert calls == [40] * 31, "once for the value, and once a round"


def test_the_bootstrap_of_a_mean_has_the_width_of_the_normal_distribution():
    values = normal(400, 1)
    found = bootstrap(lambda drawn: drawn.mean(), values, rounds=2000, within=(-9, 9))
    reach = 1.96 * values.std(correction=0).item() / 20
    assert (found.low - found.value, found.high - found.value) == pytest.approx((-reach, reach), rel=0.1)


def test_any_label_is_among_as_many_classes_as_there_are():
    probabilities, labels = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]), torch.tensor([2, 0])
    assert hits(probabilities, labels, 2).tolist() == [False, False]
    assert hits(probabilities, labels, 5).tolist() == [True, True]


def test_the_distances_of_a_set_from_itself_are_zero_and_no_distance_is_negative():
    features = normal(6, 8)  # so few that rounding makes the distance negative
    assert 0 <= frechet_distance(features, features) < 1e-3
    assert kernel_distance(features, features) == pytest.approx(kernel_distance(features, features.flip(0)), abs=1e-5)


def test_the_kernel_distance_compares_as_many_images_of_either_set():
    few, many = normal(30, 4), normal(50, 4, seed=1)
    assert kernel_distance(few, many) == pytest.approx(kernel_distance(few, many[:30]), abs=1e-6)
    assert kernel_distance(many, few) == pytest.approx(kernel_distance(many[:30], few), abs=1e-6)


def on_a_line(*places: float) -> torch.Tensor:
    return torch.tensor(places, dtype=torch.float32)[:, None]


def test_precision_and_recall_reach_to_the_third_neighbour():
    """Of points at 0, 1, … 9, the first has a ball of radius 3."""
    real = on_a_line(*range(10))
    precise, recalled = precision_recall(real, on_a_line(-3, -3.1, 4.5, 100, 12))
    assert precise.tolist() == [True, False, True, False, True]
    assert recalled.tolist() == [True] * 10, "the generated lie so far apart that their balls hold all"
    assert precision_recall(real, on_a_line(-2, -2.1), k=2)[0].tolist() == [True, False]
    assert precision_recall(real, on_a_line(20, 20.5, 21, 21.5, 22))[1].tolist() == [False] * 10


def test_density_and_coverage_reach_to_the_fifth_neighbour():
    real = on_a_line(*range(10))
    density, coverage = density_coverage(real, on_a_line(-5, -5.1, -4.5))
    assert density.tolist() == pytest.approx([1 / 5, 0, 1 / 5])
    assert coverage.tolist() == [True] + [False] * 9


def test_in_a_set_of_fewer_images_the_farthest_is_the_neighbour():
    pair = on_a_line(0, 1)
    assert precision_recall(pair, on_a_line(2, 2.5))[0].tolist() == [True, False]
    assert density_coverage(pair, on_a_line(2, 2.5))[0].tolist() == [0.2, 0]


def test_sets_that_are_compared_in_parts_are_compared_whole():
    line = on_a_line(*range(1100))  # a part has 1024
    assert all(each.all() and len(each) == 1100 for each in precision_recall(line, line))
    density, coverage = density_coverage(line, line)
    assert density[[0, 5, 550, 1099]].tolist() == pytest.approx([4 / 5, 9 / 5, 7 / 5, 4 / 5]) and coverage.all()


def test_one_image_has_no_distance():
    """As of a run with --val-images 1, which ended with an error of torchmetrics before it had saved the epoch."""
    assert math.isnan(frechet_distance(torch.rand(1, 4), torch.rand(9, 4)))
