"""Files of a data set in the format of EMNIST's."""

from __future__ import annotations

import numpy as np

from ddpm.data.idx import write_idx
from ddpm.data.sets import dataset
from ddpm.run.config import TrainConfig


def written(config: TrainConfig, per_class: int = 3) -> TrainConfig:
    """The settings, after files of random images, as many of each class, have been written for them."""
    source, random = dataset(config), np.random.default_rng(0)
    for split in ("train", "test"):
        images, labels = source.files(split)
        images.parent.mkdir(parents=True, exist_ok=True)
        values = np.arange(per_class * len(source.class_names)) % len(source.class_names) + source.first_label
        write_idx(images, random.integers(256, size=(len(values), 28, 28), dtype=np.uint8))
        write_idx(labels, values.astype(np.uint8))
    return config
