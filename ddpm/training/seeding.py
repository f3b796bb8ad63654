"""Random numbers that are functions of (seed, position): resuming a run needs no saved state of generators."""

from __future__ import annotations

import enum

import numpy as np
import torch


class Stream(enum.IntEnum):
    """Independent uses of randomness; each has its own numbers at every position."""

    INIT = 0  # initial weights
    ORDER = 1  # data order, position = epoch
    STEP = 2  # timesteps, noise and label dropout, position = images seen
    VALIDATION = 3  # position = index of the chunk of test images
    SAMPLING = 4  # initial noise of sample grids


def derive(seed: int, stream: Stream, position: int = 0) -> int:
    """A 32-bit seed (all that PyTorch's CPU generator takes), well mixed by NumPy's SeedSequence."""
    return int(np.random.SeedSequence([seed, stream, position]).generate_state(1)[0])


def generator(device: torch.device, seed: int, stream: Stream, position: int = 0) -> torch.Generator:
    """A generator on `device`. Its numbers are the same on all CPUs, and on all GPUs of one model."""
    return torch.Generator(device).manual_seed(derive(seed, stream, position))
