"""The classifier that judges characters: a small CNN, and how it is trained. `reference_classifier.py` keeps one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ddpm.training.data import Images

FEATURES = 128
BATCH = 1024  # images in one forward pass


@dataclass(frozen=True)
class Recipe:
    """How the classifier is trained. It is saved with the classifier: if it changes, a new one is trained."""

    version: int = 1  # of the network and the augmentation
    images: int = 450_000  # seen in training, rounded to whole epochs, 4 to 16 of them
    batch: int = 128  # at most
    batches: int = 16  # of an epoch, at least: a small data set is learned in smaller batches
    lr: float = 4e-3
    weight_decay: float = 0.02
    label_smoothing: float = 0.1
    dropout: float = 0.2
    rotation: float = 10.0  # degrees, either way
    scale: float = 0.1  # of width and height, either way
    shear: float = 0.15  # either way
    shift: float = 2.0  # pixels, either way
    seed: int = 0

    def epochs(self, images: int) -> int:
        """Passes over a training split of `images` images."""
        return min(16, max(4, round(self.images / images)))

    def batch_of(self, images: int) -> int:
        """Images in a batch of a training split of `images` images."""
        return min(self.batch, max(8, images // self.batches), images)

    def steps(self, images: int) -> int:
        """Optimizer steps on a training split of `images` images; the rest of an epoch that fills no batch is left."""
        return self.epochs(images) * (images // self.batch_of(images))


class CharacterCNN(nn.Module):
    """Four blocks of convolution, BatchNorm and ReLU (28 → 14 → 7 → 4 pixels), then 128 features, then the classes."""

    def __init__(self, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _block(1, 24, size=5, stride=2),
            _block(24, 48),
            nn.MaxPool2d(2),
            _block(48, 96),
            _block(96, FEATURES, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(FEATURES, num_classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Input of the last layer, float32 [N, 128], for images float32 [N, 1, 28, 28] in [-1, 1]."""
        return self.body(images)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits, float32 [N, K], for images float32 [N, 1, 28, 28] in [-1, 1]."""
        return self.head(self.dropout(self.features(images)))


def _block(channels: int, width: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, size, stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


@dataclass(frozen=True)
class Predictions:
    """Of N images: `probabilities` float32 [N, K] of K classes and `features` float32 [N, 128], on the CPU."""

    probabilities: torch.Tensor
    features: torch.Tensor

    def __len__(self) -> int:
        return len(self.features)

    @property
    def predicted(self) -> torch.Tensor:
        """The likeliest class of each image, int64 [N]."""
        return self.probabilities.argmax(1)


class ReferenceClassifier:
    """A trained classifier on its device, and how it was trained."""

    def __init__(self, network: CharacterCNN, meta: dict[str, Any]) -> None:
        """
        Args:
            meta: data_sha256, train_images, test_images, epochs, seconds, recipe, and top1 and top5 on the test split.
        """
        network.to(memory_format=torch.channels_last)  # as in training: one that is loaded rounds as it did then
        self.network, self.meta = network.eval().requires_grad_(False), meta

    @torch.no_grad()
    def __call__(self, pixels: torch.Tensor | np.ndarray) -> Predictions:
        """Classify images of any size, uint8 [N, H, W], resized to 28 × 28 (bilinear, antialiased), in fp32."""
        device = next(self.network.parameters()).device
        probabilities = [torch.empty(0, self.network.head.out_features)]
        features = [torch.empty(0, FEATURES)]
        with torch.autocast(device.type, enabled=False):
            for part in torch.as_tensor(pixels).split(BATCH):
                seen = self.network.features(to_input(part.to(device)))
                features.append(seen.cpu())
                probabilities.append(self.network.head(seen).softmax(1).cpu())
        return Predictions(torch.cat(probabilities), torch.cat(features))


def to_input(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels uint8 [N, H, W] as the classifier takes them: float32 [N, 1, 28, 28] in [-1, 1]."""
    images = pixels.unsqueeze(1).float()
    if images.shape[-2:] != (28, 28):
        images = F.interpolate(images, size=(28, 28), mode="bilinear", antialias=True)
    return images / 127.5 - 1


def fit(
    train: Images,
    recipe: Recipe,
    tell: Callable[[int, float], None] = lambda epoch, loss: None,
    interrupted: Callable[[], bool] = lambda: False,
    steps: int | None = None,
) -> CharacterCNN | None:
    """A network trained on `train`, on its device; None if interrupted. Global random state is left as it was.

    Args:
        tell: called after each epoch with its number and mean loss.
        steps: how many in all. Left out: the recipe's epochs.
    """
    device = train.pixels.device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        torch.manual_seed(recipe.seed)  # for initial weights and dropout
        network = CharacterCNN(train.num_classes, recipe.dropout).to(device, memory_format=torch.channels_last)
        losses = _epochs(network, train, recipe, recipe.steps(len(train)) if steps is None else steps, interrupted)
        for epoch, loss in enumerate(losses, 1):
            if loss is None:
                return None
            tell(epoch, loss)
    return network


def _epochs(
    network: CharacterCNN, train: Images, recipe: Recipe, steps: int, interrupted: Callable[[], bool]
) -> Iterator[float | None]:
    """Train for `steps` steps; yields the mean loss of each epoch, or None if interrupted (then stop iterating)."""
    batch = recipe.batch_of(len(train))
    optimizer = torch.optim.AdamW(network.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=steps, pct_start=0.2)
    source, device = torch.Generator().manual_seed(recipe.seed), train.pixels.device
    network.train()
    while steps:
        order, total = torch.randperm(len(train), generator=source).to(device), torch.zeros((), device=device)
        some = min(steps, len(train) // batch)
        for chosen in order[: some * batch].split(batch):
            if interrupted():
                yield None
            images = augmented(to_input(train.pixels[chosen]), recipe, source)
            loss = F.cross_entropy(network(images), train.labels[chosen], label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        steps -= some
        yield total.item() / some


def augmented(images: torch.Tensor, recipe: Recipe, source: torch.Generator) -> torch.Tensor:
    """The images [N, 1, 28, 28], each slightly rotated, sheared, scaled and shifted at random."""
    turn, shear, wide, high, right, down = (torch.rand(6, len(images), generator=source) * 2 - 1).unbind()
    angle, shear = turn * math.radians(recipe.rotation), shear * recipe.shear
    wide, high = 1 + wide * recipe.scale, 1 + high * recipe.scale
    pixel = 2 * recipe.shift / images.shape[-1]  # grids run from -1 to 1
    top = torch.stack([wide * angle.cos(), shear - angle.sin(), right * pixel], 1)
    bottom = torch.stack([angle.sin(), high * angle.cos(), down * pixel], 1)
    maps = torch.stack([top, bottom], 1).to(images.device, non_blocking=True)  # far fewer numbers than their grids
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images + 1, grid, align_corners=False) - 1  # pixels from outside are 0, so -1: background
