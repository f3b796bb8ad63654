"""Sample grids: what is drawn where, the same for any number of processes."""

import numpy as np

from ddpm.run.config import TrainConfig
from ddpm.sampling.sheets import draw_samples, sample_grid
from ddpm.training.diffusion import make_scheduler
from ddpm.training.distributed import connect
from ddpm.training.model import build_unet
from tests.conftest import ONE, replace
from tests.processes import in_processes


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


def drawn(config: TrainConfig) -> np.ndarray:
    with connect() as world:
        return draw_samples(config, build_unet(config, 47), make_scheduler(config), 1, world).astype(int)


def test_the_processes_share_the_drawing_and_each_gets_the_whole(small: TrainConfig):
    alone = draw_samples(small, build_unet(small, 47), make_scheduler(small), 1, ONE)
    for part in in_processes(drawn, 3, replace(small, resolution=28)):
        assert np.abs(part - alone).max() <= 1


def test_drawing_ends_when_it_is_interrupted(small: TrainConfig):
    assert draw_samples(small, build_unet(small, 47), make_scheduler(small), 1, ONE, interrupted=lambda: True) is None
