"""The test split in two: images that choose a checkpoint are not those that evaluate it."""

import pytest
import torch

from ddpm.run.config.rules import USUAL_VAL_IMAGES
from ddpm.training.data import Images, split_test
from tests.conftest import CLASSES


def numbered(count: int) -> Images:
    """Images whose first pixels are their number; the classes take turns."""
    numbers = torch.arange(count)
    pixels = torch.zeros(count, 28, 28, dtype=torch.uint8)
    pixels[:, 0, 0], pixels[:, 0, 1] = numbers % 256, numbers // 256
    return Images(pixels, numbers % 47, CLASSES)


def numbers_of(images: Images) -> list[int]:
    return (images.pixels[:, 0, 0].int() + 256 * images.pixels[:, 0, 1].int()).tolist()


def test_no_image_is_in_both_parts_and_none_is_lost():
    validation, evaluation = split_test(numbered(1000), 300)
    first, second = numbers_of(validation), numbers_of(evaluation)
    assert len(first) == 300 and sorted(first + second) == list(range(1000)) and second == sorted(second)
    assert evaluation.labels.tolist() == [number % 47 for number in second]


def test_validation_has_the_images_and_the_order_that_it_always_had():
    expected = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:300].tolist()
    assert numbers_of(split_test(numbered(1000), 300)[0]) == expected


def test_more_images_for_validation_never_hand_any_to_evaluation():
    small, large = (set(numbers_of(split_test(numbered(1000), size)[1])) for size in (100, 300))
    assert large < small


def test_where_the_setting_is_left_open_no_image_that_validation_may_use_is_evaluated_with():
    test = numbered(USUAL_VAL_IMAGES + 1000)
    validation, evaluation = split_test(test, None)
    assert (len(validation), len(evaluation)) == (USUAL_VAL_IMAGES, 1000)


@pytest.mark.parametrize("size", [900, 1000, 5000])
def test_where_too_few_would_be_left_evaluation_has_all(size: int):
    validation, evaluation = split_test(numbered(1000), size)
    assert len(validation) == min(size, 1000) and len(evaluation) == 1000
