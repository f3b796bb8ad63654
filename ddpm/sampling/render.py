"""Fulfils a request for a picture: draws the images that it takes, and puts them together."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image
from rich.progress import Progress

from ddpm.run.errors import RequestError
from ddpm.sampling import animation
from ddpm.sampling.config import SampleConfig, expand
from ddpm.sampling.handwriting import lay_out, repeated, wrap, write
from ddpm.sampling.load import TrainedModel
from ddpm.sampling.pipeline import make_sampler, to_bytes
from ddpm.sampling.sheets import LABEL_WIDTH, MARGIN, images_at_once, png, sample_grid
from ddpm.training.data import CLASS_NAMES

SHEET, FILM, STRIP = 8, 3, 1  # pictures of each character, if the request does not say


class Renderer:
    """A request, and the model that fulfils it.

    Raises:
        RequestError: the model does not have such a character, or cannot take so many steps.
    """

    def __init__(self, config: SampleConfig, trained: TrainedModel) -> None:
        self.config, self.trained, usual = config, trained, trained.pipeline.config
        self.sampler = config.sampler or usual.sampler
        self.steps = config.steps or usual.num_inference_steps
        self.guidance = usual.guidance_scale if config.guidance_scale is None else config.guidance_scale
        self.lines = wrap((config.text or "").replace("\\n", "\n"), config.width)
        try:
            make_sampler(self.sampler, trained.pipeline.scheduler, self.steps)
            self.labels = self._labels()
        except ValueError as error:
            raise RequestError(str(error)) from error
        if config.strip and not 0 <= min(config.strip) <= max(config.strip) <= self.steps:
            raise RequestError(f"--strip: its steps are 0 (noise) to {self.steps} (finished)")

    @property
    def manner(self) -> str:
        """How it draws, in words."""
        return f"{self.sampler.upper()}, {self.steps} steps · guidance {self.guidance:g} · seed {self.config.seed}"

    @property
    def shown(self) -> list[int]:
        """The steps that the picture shows, rising; 0 is noise."""
        if self.config.moving:
            return animation.even_steps(self.steps, animation.MOST_FRAMES)
        if self.config.strip is not None:
            most = 6 if self.config.handwriting else 9
            return sorted(set(self.config.strip)) or animation.even_steps(self.steps, most)
        return [self.steps]

    def draw(self, device: torch.device, dtype: torch.dtype) -> dict[int, np.ndarray]:
        """The images, uint8 [N, R, R], after each of the steps `shown` and the last, by the number of the step.

        All that is random is from a generator on the CPU, so that devices draw the same up to rounding.
        """
        pipeline, wanted, stages = self.trained.pipeline, {*self.shown, self.steps}, {}
        side, source = pipeline.unet.config.sample_size, torch.Generator().manual_seed(self.config.seed)
        off = not sys.stdout.isatty()
        with Progress(transient=True, disable=off) as bar, torch.autocast(device.type, dtype, dtype != torch.float32):
            task = bar.add_task("drawing", total=self.steps)

            def keep(step: int, images: torch.Tensor) -> None:
                bar.update(task, completed=step)
                if step in wanted:
                    stages[step] = to_bytes(images).cpu().numpy()

            pipeline(
                self.labels, sampler=self.sampler, num_inference_steps=self.steps, guidance_scale=self.guidance,
                generator=source, batch_size=self.config.batch_size or images_at_once(side, device),
                output_type="pt", on_step=keep,
            )  # fmt: skip
        return stages

    def picture(self, drawn: dict[int, np.ndarray]) -> bytes:
        """What was asked for, as the content of its file."""
        config, shown = self.config, {step: drawn[step] for step in self.shown}
        if config.strip is not None:
            return png(self._strip(shown, drawn[self.steps]))
        frame = self._page(drawn[self.steps]) if config.handwriting else self._sheet()
        if not config.moving:
            return png(frame(drawn[self.steps]))
        frames = [frame(pixels) for pixels in shown.values()]
        return animation.gif(frames) if config.suffix == ".gif" else animation.mp4(frames)

    @property
    def _origin(self) -> str:
        return f"trained on {self.trained.source} · {self.trained.progress} · EMA weights"

    def _labels(self) -> list[int]:
        """The class of each image, in the order in which they are drawn."""
        config = self.config
        if config.text is None:
            wanted = CLASS_NAMES if config.chars is None else expand(config.chars)
        else:
            wanted = "".join(self.lines)
        labels = [self.trained.pipeline.label_of(each) for each in wanted if not each.isspace()]
        if config.handwriting:
            return labels
        each = config.per_class or (FILM if config.moving else STRIP if config.strip is not None else SHEET)
        return [label for label in dict.fromkeys(labels) for _ in range(each)]

    @property
    def _signature(self) -> str:
        return f"drawn by a diffusion model trained on {self.trained.source}"

    def _page(self, finished: np.ndarray) -> Callable[[np.ndarray], Image.Image]:
        """Writes images as handwriting, laid out as the finished ones ask for."""
        return partial(write, lay_out(self.lines, finished), style=self.config.style, caption=self._signature)

    def _strip(self, shown: dict[int, np.ndarray], finished: np.ndarray) -> Image.Image:
        """The steps side by side, or one below the other if they are handwriting, which runs across."""
        if self.config.handwriting:
            page, notes = repeated(lay_out(self.lines, finished), len(shown)), list(map(animation.step_name, shown))
            return write(page, np.concatenate(list(shown.values())), self.config.style, self._signature, notes)
        names = [CLASS_NAMES[label] for label in self.labels]
        return animation.strip(shown, names, self.trained.run, f"{self._origin} · {self.manner}")

    def _sheet(self) -> Callable[[np.ndarray], Image.Image]:
        """Sets images as a labelled sheet."""
        names = [CLASS_NAMES[label] for label in dict.fromkeys(self.labels)]
        side = self.trained.pipeline.unet.config.sample_size
        cell = max(side, 56)
        width = LABEL_WIDTH + len(self.labels) // len(names) * cell + MARGIN
        columns = animation.columns_for(len(names), width, cell + 4)
        caption = f"{self._origin} · {self.manner}"
        return partial(sample_grid, names=names, title=self.trained.run, caption=caption, columns=columns)
