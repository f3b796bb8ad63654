"""Draws the images that sample.py is asked for, and composes them into a picture."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image
from rich.progress import Progress

from ddpm.data.classes import shown_labels, shown_words
from ddpm.run.errors import RequestError
from ddpm.run.fonts import as_label
from ddpm.run.guidance import guidance_fields, guidance_of
from ddpm.sampling.animation import MOST_FRAMES, columns_for, denoising_strip, even_steps, gif, mp4, step_name
from ddpm.sampling.config import SampleConfig, chosen_labels, expand
from ddpm.sampling.handwriting import lay_out, repeated, wrap, write
from ddpm.sampling.load import TrainedModel
from ddpm.sampling.options import check_guided
from ddpm.sampling.pipeline import listed, make_sampler, resolution, to_bytes
from ddpm.sampling.sheets import MARGIN, LabelColumn, images_at_once, png, sample_caption, sample_grid, settings_words

LONGEST_SOURCE = 48  # letters: the page may be narrow
USUAL_WIDTH = 24  # characters in a line of handwriting
PER_CLASS = {"sheet": 8, "animation": 3, "strip": 1}  # pictures of each class, where --per-class is left out


class Renderer:
    """Draws the images of a request and composes them into a sheet, a strip, handwriting or an animation.

    Raises:
        RequestError: the model does not have a class, or has fewer noise levels than steps are asked for; or
            an interval or a guide is given, but no guidance.
    """

    def __init__(self, config: SampleConfig, trained: TrainedModel) -> None:
        self.config, self.trained, default = config, trained, trained.pipeline.config
        self.class_names = list(default.class_names)
        self.sampler = config.sampler or default.sampler
        self.steps = config.steps or default.num_inference_steps
        self.guidance_scale = default.guidance_scale if config.guidance_scale is None else config.guidance_scale
        self.guidance_interval = config.guidance_interval or default.guidance_interval
        check_guided(self.guidance_scale, config.guidance_interval, config.guide, trained.can_be_guided)
        self.lines = wrap((config.text or "").replace("\\n", "\n"), config.width or USUAL_WIDTH)
        try:
            make_sampler(self.sampler, trained.pipeline.scheduler, self.steps)
            self.labels = self._labels()
        except ValueError as error:
            raise RequestError(str(error)) from error
        if config.strip and not 0 <= min(config.strip) <= max(config.strip) <= self.steps:
            raise RequestError(f"--strip: its steps are 0 (noise) to {self.steps} (finished)")

    @property
    def settings(self) -> str:
        """The sampler settings and the seed in words."""
        guide = self.trained.guide and self.trained.guide.name
        guidance = guidance_of(guidance_fields(self.guidance_scale, self.guidance_interval, guide))
        return f"{settings_words(self.sampler, self.steps, guidance)} · seed {self.config.seed}"

    @property
    def caption(self) -> str:
        """The caption of sheets and strips: training, weights and sampler settings."""
        trained, config = self.trained, self.config
        chosen = (config.chars, config.classes, config.text) != (None, None, None)
        part = "" if chosen else shown_words(len(set(self.labels)), len(self.class_names))
        return sample_caption(trained.data, trained.progress, trained.weights, self.settings, part)

    @property
    def shown_steps(self) -> list[int]:
        """The denoising steps in the picture, ascending; 0 is noise."""
        if self.config.moving:
            return even_steps(self.steps, MOST_FRAMES)
        if self.config.strip is not None:
            return sorted(set(self.config.strip)) or even_steps(self.steps, 6 if self.config.handwriting else 9)
        return [self.steps]

    def draw(self, device: torch.device, dtype: torch.dtype) -> dict[int, np.ndarray]:
        """Sample the images.

        The random generator is on the CPU, so that all devices draw the same images up to rounding.

        Returns:
            The images after each of `shown_steps` and the last step: step → uint8 [N, R, R].
        """
        pipeline, wanted, drawn = self.trained.pipeline, {*self.shown_steps, self.steps}, {}
        size, generator = resolution(pipeline.unet), torch.Generator().manual_seed(self.config.seed)
        hidden, autocast = not sys.stdout.isatty(), torch.autocast(device.type, dtype, dtype != torch.float32)
        with Progress(transient=True, disable=hidden) as bar, autocast:
            task = bar.add_task("drawing", total=self.steps)

            def keep(step: int, images: torch.Tensor) -> None:
                bar.update(task, completed=step)
                if step in wanted:
                    drawn[step] = to_bytes(images).cpu().numpy()

            pipeline(
                self.labels, sampler=self.sampler, num_inference_steps=self.steps, guidance_scale=self.guidance_scale,
                guidance_interval=self.guidance_interval, generator=generator,
                batch_size=self.config.batch_size or images_at_once(size, device),
                output_type="pt", on_step=keep,
            )  # fmt: skip
        return drawn

    def compose(self, drawn: dict[int, np.ndarray]) -> bytes:
        """The content of the picture's file, from the images that `draw` returns."""
        config, finished = self.config, drawn[self.steps]
        shown = {step: drawn[step] for step in self.shown_steps}
        if config.strip is not None:
            return png(self._strip(shown, finished))
        frame = self._handwriting(finished) if config.handwriting else self._sheet()
        if not config.moving:
            return png(frame(finished))
        frames = [frame(pixels) for pixels in shown.values()]
        return gif(frames) if config.suffix == ".gif" else mp4(frames)

    def _labels(self) -> list[int]:
        """The class of each image, in drawing order."""
        config = self.config
        text = expand(config.chars) if config.chars is not None else "".join(self.lines)
        if config.classes is not None:
            labels = chosen_labels(config.classes, self.class_names)
        elif text:
            labels = self._labels_of(text)
        else:
            labels = shown_labels(len(self.class_names))
        if config.handwriting:
            return labels
        kind = "animation" if config.moving else "strip" if config.strip is not None else "sheet"
        return [label for label in dict.fromkeys(labels) for _ in range(config.per_class or PER_CLASS[kind])]

    def _labels_of(self, text: str) -> list[int]:
        """The labels of a text's characters, without blanks.

        Raises:
            RequestError: the model's classes are not characters.
            ValueError: it does not have one of these.
        """
        if not self.trained.pipeline.draws_text:
            flag = "--text" if self.config.chars is None else "--chars"
            names = listed(self.class_names)
            raise RequestError(
                f"{flag}: the classes of this model are not characters; choose some with --classes: {names}"
            )
        return [self.trained.pipeline.label_of(each) for each in text if not each.isspace()]

    @property
    def _style(self) -> str:
        return self.config.style or "paper"

    @property
    def _signature(self) -> str:
        return f"drawn by a diffusion model trained on {as_label(self.trained.source, LONGEST_SOURCE)}"

    def _handwriting(self, finished: np.ndarray) -> Callable[[np.ndarray], Image.Image]:
        """Images → a page of handwriting, in the layout of the finished ones."""
        return partial(write, lay_out(self.lines, finished), style=self._style, caption=self._signature)

    def _strip(self, shown: dict[int, np.ndarray], finished: np.ndarray) -> Image.Image:
        """The denoising steps side by side; for handwriting, whose lines are long, one below the other."""
        if self.config.handwriting:
            page, notes = repeated(lay_out(self.lines, finished), len(shown)), list(map(step_name, shown))
            return write(page, np.concatenate(list(shown.values())), self._style, self._signature, notes)
        names = [self.class_names[label] for label in self.labels]
        return denoising_strip(shown, names, self.trained.run, self.caption)

    def _sheet(self) -> Callable[[np.ndarray], Image.Image]:
        """Images → a labelled sheet."""
        names = [self.class_names[label] for label in dict.fromkeys(self.labels)]
        cell = max(resolution(self.trained.pipeline.unet), 56)
        width = LabelColumn(names).width + len(self.labels) // len(names) * cell + MARGIN
        columns = columns_for(len(names), width, cell + 4)
        return partial(sample_grid, names=names, title=self.trained.run, caption=self.caption, columns=columns)
