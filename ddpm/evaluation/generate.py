"""Draws the images that are evaluated, and measures how long one takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, TimeRemainingColumn

from ddpm.run.format import duration, plural
from ddpm.run.guidance import EVERYWHERE, guidance_fields, guidance_of
from ddpm.sampling.load import networks_of
from ddpm.sampling.pipeline import CharacterPipeline, guided_steps, resolution
from ddpm.sampling.sheets import images_at_once
from ddpm.training.compilation import compile_in_place
from ddpm.training.machine.compiler import lacking
from ddpm.training.machine.hardware import DTYPES, synchronize

COMPILE_FROM = 150.0  # seconds of drawing: half of them saved, against about a minute for each of two batch sizes


def can_compile(device: torch.device) -> bool:
    """Does compilation work here, and usually pay?"""
    return device.type == "cuda" and lacking(device) is None


@dataclass(frozen=True)
class SamplerSettings:
    """Sampler, number of steps and guidance."""

    sampler: str
    steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float] = EVERYWHERE
    guide: str | None = None  # name of the model that guides; None: classifier-free guidance

    def __str__(self) -> str:
        return f"{self.sampler}, {plural(self.steps, 'step')}, guidance {guidance_of(self.guidance)}"

    @property
    def guidance(self) -> dict[str, Any]:
        """Scale, interval and guide as fields of evaluation.json."""
        return guidance_fields(self.guidance_scale, self.guidance_interval, self.guide)

    @property
    def evaluations(self) -> int:
        """Evaluations of a network, the model's or the guide's, for one image."""
        twice = 0 if self.guidance_scale in (0, 1) else sum(guided_steps(self.steps, self.guidance_interval))
        return self.steps + twice


@dataclass(frozen=True)
class Drawn:
    """Generated images, uint8 [N, R, R], and the mean time for one."""

    pixels: np.ndarray
    seconds_per_image: float


class ImageGenerator:
    """Draws images with a model, on its device. They depend only on labels, settings and seed."""

    def __init__(
        self,
        pipeline: CharacterPipeline,
        precision: str,
        batch_size: int | None,
        compile: bool | None,
        console: Console,
        log: Callable[[str], None],
    ) -> None:
        """
        Args:
            precision: bf16, fp16 or fp32, for autocast.
            batch_size: images drawn at once; None: chosen for the resolution and the device.
            compile: whether to compile the model. None: on a GPU, before what would take longer than COMPILE_FROM.
            console: shows a progress bar if it is a terminal.
            log: called with each line to print.
        """
        self.pipeline, self.device, self.dtype = pipeline, pipeline.device, DTYPES[precision]
        self.resolution = resolution(pipeline.unet)
        self.batch_size = batch_size or images_at_once(self.resolution, self.device)
        self._console, self._log = console, log
        self._may_compile = compile is None and can_compile(self.device)
        if compile:
            self._compile()

    def draw(self, labels: torch.Tensor, settings: SamplerSettings, seed: int, what: str) -> Drawn:
        """Draw an image for each label, int64 [N]; the one after the last class means any. First logs `what` and how
        long it will take.

        The measured time is that of all steps, after a warm-up and until the device has finished.
        """
        expected = self._expected(labels, settings, seed)
        if expected > COMPILE_FROM and self._may_compile:
            self._log(
                f"{what} would take {duration(expected)}: the model is compiled first (--no-compile leaves it out)"
            )
            self._compile()
            self._may_compile, expected = False, self._expected(labels, settings, seed)
        self._log(f"{what}: {plural(len(labels), 'image')}, {settings}; about {duration(expected)}")
        off = not self._console.is_terminal
        columns = (*Progress.get_default_columns()[:-1], TimeRemainingColumn())
        with Progress(*columns, console=self._console, transient=True, disable=off) as progress:
            task = progress.add_task(what, total=settings.steps)
            pixels, seconds = self._timed(labels, settings, seed, lambda step, _: progress.update(task, completed=step))
        return Drawn(pixels, seconds / len(labels))

    def _expected(self, labels: torch.Tensor, settings: SamplerSettings, seed: int) -> float:
        """How long it will take to draw the labels, in seconds, from the time of a step after a warm-up."""
        batch, rest = labels[: self.batch_size], labels[: len(labels) % self.batch_size]
        guided = replace(settings, sampler="ddim", steps=1, guidance_interval=EVERYWHERE)
        for part in (batch, rest) if len(rest) else (batch,):  # both sizes, as each may be compiled
            self._timed(part, guided, seed)
            if settings.evaluations < settings.steps * guided.evaluations:
                self._timed(part, replace(guided, guidance_scale=1.0), seed)  # as the steps outside the interval
        _, step = self._timed(batch, guided, seed)
        return step / guided.evaluations / len(batch) * len(labels) * settings.evaluations

    def _compile(self) -> None:
        for network in networks_of(self.pipeline):
            compile_in_place(network)

    def _timed(
        self,
        labels: torch.Tensor,
        settings: SamplerSettings,
        seed: int,
        on_step: Callable[[int, torch.Tensor], None] | None = None,
    ) -> tuple[np.ndarray, float]:
        """The images, uint8 [N, R, R], and the seconds that they took."""
        synchronize(self.device)
        start = time.perf_counter()
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            pixels = self.pipeline(
                labels,
                sampler=settings.sampler,
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance_scale,
                guidance_interval=settings.guidance_interval,
                use_guide=settings.guide is not None,
                generator=torch.Generator().manual_seed(seed),  # on the CPU: the same on every device
                batch_size=self.batch_size,
                output_type="np",
                on_step=on_step,
            ).images
        return pixels, time.perf_counter() - start
