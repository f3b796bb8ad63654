"""What a classifier learns from generated characters, CAS: right labels count, and wrong ones show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ddpm.data.emnist import CLASS_NAMES
from ddpm.evaluation.classifier import Recipe
from ddpm.evaluation.learning import SEEDS, Lesson, School, _first_of_each_class, worth
from ddpm.evaluation.scores import Estimate
from ddpm.run.config import preset
from ddpm.training import data
from ddpm.training.data import Images
from tests.conftest import ONE

PER_CLASS = 16


def lesson(*rows: list[int]) -> Lesson:
    return Lesson(torch.tensor(rows).bool())


def test_the_ratio_is_that_of_the_mean_accuracies():
    some, other = lesson([1, 1, 0, 0], [1, 0, 0, 0]), lesson([1, 1, 1, 0], [1, 1, 1, 0])
    found = some.over(other)
    assert found.value == pytest.approx((3 / 8) / (6 / 8))
    assert 0 < found.low < found.value < found.high
    assert found.count == 4


def test_the_same_lessons_are_worth_the_same_whatever_the_test_images():
    """Which images are hard is the same for both sides, so that it is no uncertainty of their ratio."""
    hits = torch.rand(1, 500, generator=torch.Generator().manual_seed(0)) < 0.7
    both = Lesson(hits.repeat(3, 1))
    ratio = both.over(both)
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((1, 1, 1))
    assert both.estimate().low < both.accuracy - 0.03


def test_the_interval_covers_the_spread_of_three_seeds():
    """By Student's distribution: the mean of three, plus or minus 4.3 of its standard errors, and more."""
    rows = torch.zeros(3, 10_000, dtype=torch.bool)
    for row, share in zip(rows, (0.80, 0.82, 0.84), strict=True):
        row[: int(share * 10_000)] = True
    found = Lesson(rows).estimate()
    reach = 4.302653 * 0.02 / 3**0.5
    assert found.value == pytest.approx(0.82)
    assert found.value - found.low > reach
    assert found.value - found.low == pytest.approx(reach, rel=0.05)


def test_nothing_right_is_a_ratio_of_zero_and_nothing_to_compare_with_is_none():
    none, some = lesson([0, 0], [0, 0]), lesson([1, 0], [1, 1])
    assert none.over(some).value == 0
    assert some.over(none).value != some.over(none).value


def test_worth_is_read_off_the_curve_between_logarithms():
    curve = [(100, 0.5), (400, 0.7), (1600, 0.8)]
    found = worth(Estimate(0.6, 0.4, 0.9, 10), curve, 4700)
    assert found == Estimate(pytest.approx(200), 100.0, 1600.0, 4700)
    assert worth(Estimate(0.6, 0.5, 0.7, 10), curve[:1], 47).value != 0


def test_the_first_of_each_class_are_taken():
    labels = torch.tensor([3, 1, 3, 3, 1, 0])
    assert sorted(_first_of_each_class(labels, 2).tolist()) == [0, 1, 2, 4, 5]


@pytest.fixture(scope="module")
def school(emnist: Path) -> School:
    """With classifiers that learn for four epochs only, in small batches."""
    config = preset("tiny", data_root=emnist)
    train, test = data.load(config, ONE)
    found = School(train, test, config.resolution, PER_CLASS, lambda line: None)
    found._recipe = replace(found._recipe, images=1, batch=16)
    return found


@pytest.fixture(scope="module")
def held_back(school: School) -> Images:
    """Real images that stand for perfect generated ones."""
    return school.real(PER_CLASS, seed=17)


def test_real_images_teach_what_real_images_teach(school: School, held_back: Images):
    part = school.report(held_back, None)
    assert part["cas"].low < 1 < part["cas"].high
    assert part["cas_unguided"] == part["cas"]
    both = part["augmented"]  # twice as many images; in so few steps, they teach no more
    assert 0.85 < both.value < 1.1 and both.low < 1 < both.high
    assert part["images"] == 47 * PER_CLASS
    assert [each["images"] for each in part["curve"]] == [47 * 4, 47 * 8, 47 * 16]
    accuracies = [each["accuracy"] for each in part["curve"]]
    assert accuracies == sorted(accuracies)
    assert len(part["per_class"]) == 47


@pytest.mark.parametrize("count", [100, 1_300, 2_400])  # of the 47 classes each
def test_real_and_generated_images_are_shown_as_long_as_real_ones_alone(count: int, monkeypatch):
    """They were shown up to twice as long, which alone may teach more."""
    pixels, labels = torch.zeros(47 * count, 1, 1, dtype=torch.uint8), torch.arange(47).repeat(count)
    images = Images(pixels, labels, CLASS_NAMES)
    school = School(images, images[:47], 28, count, lambda line: None)
    monkeypatch.setattr(school, "real", lambda per_class, seed: images)
    monkeypatch.setattr(school, "_parts", list)
    monkeypatch.setattr("ddpm.evaluation.learning.ReferenceClassifier", lambda network, meta: lambda tests: AsRead)
    shown = {}

    def fit(images: Images, recipe: Recipe, steps: int | None) -> None:
        shown[len(images)] = recipe.steps(len(images)) if steps is None else steps, recipe.batch_of(len(images))

    monkeypatch.setattr("ddpm.evaluation.learning.fit", fit)
    school.report(images, None)
    assert shown[47 * count] == shown[2 * 47 * count], "as many images in as many steps"


class AsRead:
    predicted = torch.arange(47)


def test_wrong_labels_teach_nothing(school: School, held_back: Images):
    shuffled = torch.randperm(len(held_back), generator=torch.Generator().manual_seed(0))
    wrong = Images(held_back.pixels, held_back.labels[shuffled], held_back.class_names)
    assert school.teach(wrong).accuracy < 0.1


def test_one_picture_for_each_class_is_clear_and_teaches_little(school: School, held_back: Images):
    """What RCA takes for perfect: every character typical, and all alike."""
    first = _first_of_each_class(held_back.labels, 1)
    alike = held_back[first.repeat(PER_CLASS)]
    assert school.teach(alike).over(school.teach(held_back)).high < 0.9


@pytest.mark.parametrize("seconds_per_image", [0.001, 0.5])
def test_how_long_it_will_take_is_known_before(school: School, monkeypatch, seconds_per_image: float):
    """From some steps, however fast the machine is."""
    now = 0.0

    def fit(images: Images, recipe: Recipe) -> None:
        nonlocal now
        now += seconds_per_image * recipe.steps(len(images)) * recipe.batch_of(len(images))

    monkeypatch.setattr("ddpm.evaluation.learning.fit", fit)
    monkeypatch.setattr("ddpm.evaluation.learning.time.perf_counter", lambda: now)
    images_of_a_set, epochs = 47 * PER_CLASS, 4
    for sets in (3, 30):
        expected = seconds_per_image * SEEDS * sets * epochs * images_of_a_set
        assert school.expected_seconds(sets) == pytest.approx(expected)


def test_an_interval_is_as_wide_as_the_count_makes_it_where_every_image_is_read():
    everything = Lesson(torch.ones(3, 300, dtype=torch.bool))
    for estimate in (everything.estimate(), everything.over(everything)):
        assert estimate.value == 1
        assert 0.97 < estimate.low < 0.995
    assert everything.estimate().high == 1
    assert 1.005 < everything.over(everything).high < 1.03
    assert everything.over(everything).count == 300


def test_an_interval_has_a_width_where_both_read_the_same_images():
    """Such as all but one, which looks like another class to everyone."""
    hits = torch.ones(3, 180, dtype=torch.bool)
    hits[:, 7] = False
    found = Lesson(hits).over(Lesson(hits.clone()))
    assert found.value == 1 and 0.9 < found.low < 0.99 and 1.01 < found.high < 1.1


def test_images_that_as_many_seeds_read_do_not_count_as_all_read():
    """One seed reads all, two read none: every image is read by one of three."""
    hits = torch.zeros(3, 300, dtype=torch.bool)
    hits[0] = True
    estimate = Lesson(hits).estimate()
    assert estimate.value == pytest.approx(1 / 3)
    assert (estimate.low, estimate.high) == (0, 1)
