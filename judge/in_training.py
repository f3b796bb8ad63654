"""How good are the characters so far? A small evaluation every few epochs, always from the same noise."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from diffusers import DDPMScheduler

from ddpm.config import NUM_CLASSES, TrainConfig
from ddpm.data import Images
from ddpm.distributed import STARTING, World
from ddpm.pictures import draw_samples
from judge.classifier import Judge, load_or_train
from judge.evaluation import Reference
from judge.scores import frechet_distance, hits, relative_accuracy, share

PER_CLASS = 10
NOISE_SERIES = 1  # not the noise of the sample grids


class Evaluation:
    """Draws ten characters of each class and has them judged. The processes share the drawing; the first one judges."""

    def __init__(self, config: TrainConfig, train: Images, test: Images, world: World) -> None:
        self._config, self._train, self._test, self._world = config, train, test, world
        self._judge: Judge | None = None
        self._ready = False

    def prepare(self, folder: Path, log: Callable[[str], None], interrupted: Callable[[], bool]) -> bool:
        """Let the main process find its judge, while the others wait (every process calls it; the second time it is
        done already). False if it was interrupted."""
        if not self._ready:
            find = partial(self._find_judge, folder, log, interrupted)
            self._world.expect_answers_within(STARTING)
            self._ready = self._world.together(find, here=self._world.is_main)
            self._world.expect_answers_within(timedelta(minutes=self._config.hang_minutes))
        return self._ready

    def _find_judge(self, folder: Path, log: Callable[[str], None], interrupted: Callable[[], bool]) -> bool:
        """Train the reference classifier on the real images, or take it from `folder` if it was before, and see what it
        makes of real ones."""
        self._judge = load_or_train(self._train, self._test, folder, log, interrupted=interrupted)
        if self._judge:
            self._reference = Reference.of(self._judge, self._test, self._config.resolution)
        return self._judge is not None

    def __call__(
        self, model: torch.nn.Module, scheduler: DDPMScheduler, interrupted: Callable[[], bool]
    ) -> dict[str, float] | None:
        """The columns `rca`, `top1`, `top5`, `fid_features` (none of them on other processes than the main one).

        Every process calls it. None if asked to stop meanwhile.
        """
        drawn = draw_samples(self._config, model, scheduler, PER_CLASS, self._world, interrupted, NOISE_SERIES)
        if drawn is None:
            return None
        if not self._judge:
            return {}
        verdicts, labels = self._judge(drawn), torch.arange(NUM_CLASSES).repeat_interleave(PER_CLASS)
        first, fifth = (hits(verdicts.probabilities, labels, k) for k in (1, 5))
        return {
            "rca": relative_accuracy(first, self._reference.hits),
            "top1": share(first),
            "top5": share(fifth),
            "fid_features": frechet_distance(verdicts.features, self._reference.half),
        }
