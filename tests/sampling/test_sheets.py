"""Sample grids: what is drawn where, the same for any number of processes."""

import numpy as np
import pytest

from ddpm.run.config import TrainConfig
from ddpm.sampling.sheets import draw_samples, grid_labels, labelled_grid, sample_grid
from ddpm.training.diffusion import make_scheduler
from ddpm.training.machine.distributed import connect
from ddpm.training.model import build_unet
from tests.conftest import ONE, replace
from tests.support.processes import in_processes


def test_each_class_has_a_row_of_its_own_pictures():
    """5 classes of 3 pictures in 2 columns; picture number n is grey level 10 n."""
    grey = (10 * np.arange(15, dtype=np.uint8)).reshape(15, 1, 1) * np.ones((1, 40, 40), np.uint8)
    sheet = np.asarray(sample_grid(grey, "ABCDE", "title", "caption", columns=2).convert("L"))
    for row in range(3):
        across = sheet[68 + row * 44 + 20]  # through the middle of the row's pictures
        for label in (row, row + 3):
            for number in range(3 * label, min(3 * label + 3, 15)):
                assert (across == 10 * number).sum() >= 40


def test_a_long_title_widens_the_sheet():
    pixels = np.zeros((2, 28, 28), np.uint8)
    assert sample_grid(pixels, "AB", "x" * 200, "caption").width > 1500


def label_of(name: str) -> np.ndarray:
    """What stands to the left of the pictures, which are black, on a sheet of one class."""
    sheet = np.asarray(sample_grid(np.zeros((1, 28, 28), np.uint8), [name], "t", "c").convert("L"))
    return sheet[68:-20]


def test_the_column_of_labels_is_as_wide_as_its_names():
    pixels = np.full((2, 28, 28), 200, np.uint8)
    for names in (["A", "B"], ["Ankle boot", "Bag"], ["<script>" * 20, "い" * 200]):
        sheet = np.asarray(sample_grid(pixels, names, "t", "c", columns=1).convert("L"))[68:]
        columns = np.flatnonzero((sheet == 200).sum(0) >= 2 * 50)  # of the pictures
        assert len(columns) == 56 and columns[0] < 350
        written = np.flatnonzero((sheet[:, : columns[0]] > 100).any(0))  # the labels
        assert len(written) and written.min() >= 8 and written.max() < columns[0] - 4


def test_letters_that_the_font_lacks_are_no_empty_boxes():
    assert np.array_equal(label_of("い"), label_of("U+3044"))
    assert not np.array_equal(label_of("い"), label_of("う"))


def test_a_grid_of_many_classes_shows_some_and_says_so(small: TrainConfig):
    labels = grid_labels(1000, 2)
    assert len(labels) == 128 and labels.tolist()[-2:] == [999, 999]
    pixels, names = np.zeros((128, 28, 28), np.uint8), [f"class {number}" for number in range(1000)]
    captions = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ddpm.sampling.sheets.sample_grid", lambda *given: captions.append(given))
        labelled_grid(small, names, labels, pixels, 3)
    ((_, shown, _, caption),) = captions
    assert (shown[0], shown[-1], len(shown)) == ("class 0", "class 999", 64)
    assert caption.endswith(" · 64 of 1,000 classes")


def drawn(config: TrainConfig) -> np.ndarray:
    with connect() as world:
        model, scheduler = build_unet(config, 47), make_scheduler(config)
        return draw_samples(config, model, scheduler, grid_labels(47, 1), world).astype(int)


def test_the_processes_share_the_drawing_and_each_gets_the_whole(small: TrainConfig):
    alone = draw_samples(small, build_unet(small, 47), make_scheduler(small), grid_labels(47, 1), ONE)
    for part in in_processes(drawn, 3, replace(small, resolution=28)):
        assert np.abs(part - alone).max() <= 1


def test_drawing_ends_when_it_is_interrupted(small: TrainConfig):
    model, scheduler, labels = build_unet(small, 47), make_scheduler(small), grid_labels(47, 1)
    assert draw_samples(small, model, scheduler, labels, ONE, interrupted=lambda: True) is None
