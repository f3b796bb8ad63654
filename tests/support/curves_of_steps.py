"""The losses of fifty steps, and when two such curves are the same."""

import numpy as np
import torch

from ddpm.run.config import TrainConfig
from ddpm.training.data import Images
from ddpm.training.machine.distributed import DistContext
from ddpm.training.machine.hardware import choose
from ddpm.training.trainer import Trainer
from tests.conftest import CLASSES, ONE, random_images, replace

STEPS = 50


def loss_curve(config: TrainConfig, world: DistContext = ONE) -> np.ndarray:
    """The losses of 50 steps from fresh weights: float64 [50]. Images and draws follow from the seed alone."""
    config = replace(config, log_every=STEPS, lr=3e-3)
    trained = Trainer(config, CLASSES, choose(config, 47, world.device, 1e8), world)
    images = random_images(256)
    images = Images(images.pixels.to(world.device) // 4, images.labels.to(world.device), images.class_names)
    for step in range(STEPS):
        chosen = torch.arange(step * config.batch_size, (step + 1) * config.batch_size, device=world.device) % 256
        trained.step(images, chosen, step * config.batch_size, config.lr)
    return trained.record.take()[0]


def assert_same_curve(fast: np.ndarray, exact: np.ndarray) -> None:
    """No step's loss is 5% off, and the mean of the last ten, which all rounding has gone into, not 1%."""
    np.testing.assert_allclose(fast, exact, rtol=0.05)
    np.testing.assert_allclose(fast[-10:].mean(), exact[-10:].mean(), rtol=0.01)
