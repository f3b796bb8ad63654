"""The measurements of an evaluation, of images and features that are made for the test."""

from dataclasses import replace

import pytest
import torch

from ddpm.evaluation import measures
from ddpm.evaluation.classifier import CharacterCNN, ReferenceClassifier
from ddpm.evaluation.learning import School
from tests.conftest import random_images


def test_two_classes_one_of_them_without_test_images():
    """Top-5 of two classes is certain; what is not known of a class is null, not 0."""
    train, test = (replace(random_images(count), labels=torch.zeros(count).long(), class_names=("a", "b"))
                   for count in (8, 3))  # fmt: skip
    classifier = ReferenceClassifier(
        CharacterCNN(2), dict.fromkeys(("train_images", "epochs", "seconds", "data_sha256", "weights_sha256"))
    )
    reference = measures.Reference.of(classifier, test, 28)
    labels = torch.tensor([0, 1, 0, 1])
    predictions = classifier(random_images(4, seed=1).pixels)
    part = measures.conditional_part(predictions, labels, reference)
    assert part["top5"].value == 1
    assert part["per_class"][1]["real_top1"] is None and part["per_class"][1]["rca"] is None
    assert measures.classifier_part(classifier, test)["per_class_top1"][1] is None
    measures.distances_part(predictions.features, reference)
    measures.balance_part(predictions, reference)
    school = School(train, test, 28, 2, lambda line: None)
    generated = school.generated(random_images(4, seed=1).pixels, labels)
    learned = school.report(generated, None)
    assert learned["per_class"][1] == {"name": "b", "accuracy": None, "real_accuracy": None, "cas": None}


def test_coverage_is_that_of_as_many_real_images():
    """Of the same distribution 40 images cover far fewer than 400; beside them stood the share of 400."""
    features = torch.randn(840, 8, generator=torch.Generator().manual_seed(0))
    nobody = measures.Predictions(torch.empty(0, 2), torch.empty(0, 8))
    reference = measures.Reference(torch.empty(0), ("a", "b"), nobody, features[:400], features[400:800])
    part = measures.distances_part(features[800:], reference)
    assert part["coverage"].value == pytest.approx(part["coverage_real"].value, abs=0.2)
    assert part["coverage_real"].value < 0.7


def test_densities_that_are_all_alike_have_an_interval_with_a_width():
    for value in (0, 1.2):
        found = measures.mean_density(torch.full((30,), value))
        assert found.value == pytest.approx(value) and found.low <= value < found.high
    assert 1.0 < found.low < 1.2 < found.high < 1.4
