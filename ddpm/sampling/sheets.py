"""Sheets of generated images, with a title and a caption, and how pictures are encoded."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import DDPMScheduler
from PIL import Image, ImageDraw, ImageFont

from ddpm.data.classes import shown_labels, shown_words
from ddpm.run.config import TrainConfig
from ddpm.run.datasets import data_words
from ddpm.run.fonts import as_label, drawable, font_file
from ddpm.run.format import plural
from ddpm.run.guidance import guidance_fields, guidance_of
from ddpm.sampling.options import weights_words
from ddpm.sampling.pipeline import sample, to_bytes
from ddpm.training.machine.distributed import DistContext
from ddpm.training.seeding import Stream, generator

BACKGROUND, INK, FAINT = (13, 17, 23), (230, 237, 243), (139, 148, 158)
MARGIN, LABEL_WIDTH = 16, 30  # pixels; a column of labels is wider if the names are longer than a character

PIXELS_AT_ONCE = {"cpu": 50_000, "cuda": 400_000}  # drawn together: about 64 or 500 images at 28 px


def draw_samples(
    config: TrainConfig,
    model: torch.nn.Module,
    scheduler: DDPMScheduler,
    labels: torch.Tensor,
    world: DistContext,
    interrupted: Callable[[], bool] = lambda: False,
    series: int = 0,
    guidance_scale: float | None = None,
) -> np.ndarray | None:
    """A generated image for each label, from the same noise in every run: uint8 [N, R, R].

    Every process calls it; they share the work, and each gets all images.

    Args:
        labels: int64 [N], on any device.
        interrupted: called by all processes before each draws a chunk; once it returns true, the result is None.
        series: each number has noise of its own.
        guidance_scale: instead of the run's.
    """
    labels = labels.to(world.device)
    shape = (len(labels), 1, config.resolution, config.resolution)
    noise = torch.randn(shape, device=world.device, generator=generator(world.device, 0, Stream.SAMPLING, series))
    chunk = images_at_once(config.resolution, world.device)
    scale = config.guidance_scale if guidance_scale is None else guidance_scale
    parts = {}
    for first in range(0, len(labels), world.world_size * chunk):
        if interrupted():
            return None
        start = first + world.rank * chunk
        part = slice(start, start + chunk)
        if start < len(labels):
            images = sample(
                model, scheduler, labels[part], noise[part], steps=config.sample_steps, guidance_scale=scale
            )
            parts[start] = to_bytes(images).cpu().numpy()
    everyone = {start: pixels for parts in world.gather(parts) for start, pixels in parts.items()}
    return np.concatenate([everyone[start] for start in sorted(everyone)])


def images_at_once(resolution: int, device: torch.device) -> int:
    """Batch size of sampling: images drawn at once."""
    return max(1, PIXELS_AT_ONCE["cuda" if device.type == "cuda" else "cpu"] // resolution**2)


def grid_labels(classes: int, per_class: int) -> torch.Tensor:
    """The labels of a sample grid, class by class, int64 [N]: `per_class` of each class that is shown."""
    return torch.tensor(shown_labels(classes)).repeat_interleave(per_class)


def labelled_grid(
    config: TrainConfig, class_names: Sequence[str], labels: torch.Tensor, pixels: np.ndarray, epoch: int
) -> Image.Image:
    """A run's sample grid after `epoch`: the images `pixels` of `labels`, as `grid_labels` gives them, with the run's
    name and a caption."""
    rows = [class_names[index] for index in labels.unique()]
    settings = settings_words("ddim", config.sample_steps, guidance_of(guidance_fields(config.guidance_scale)))
    caption = sample_caption(
        config.data_name, f"epoch {epoch}", "ema", settings, shown_words(len(rows), len(class_names))
    )
    return sample_grid(pixels, rows, config.run, caption)


def settings_words(sampler: str, steps: int, guidance: str) -> str:
    """Sampler settings as captions show them: `DDIM, 20 steps · guidance 2`.

    Args:
        guidance: as `guidance_of` gives it.
    """
    return f"{sampler.upper()}, {plural(steps, 'step')} · guidance {guidance}"


def sample_caption(data: str, progress: str, weights: str, settings: str, classes: str = "") -> str:
    """The line below the title of every sheet of generated images.

    Args:
        data: the name of the data set in files.
        progress: how long the model was trained, such as `epoch 6`.
        weights: those that drew the images, as `weights_of` names them.
        settings: as `settings_words` gives them.
        classes: which part of them is shown, as `shown_words` says it.
    """
    parts = [f"trained on {data_words(data)}", progress, weights_words(weights), settings, classes]
    return " · ".join(filter(None, parts))


class LabelColumn:
    """The names of classes beside their rows of pictures."""

    def __init__(self, names: Sequence[str]) -> None:
        self._texts = list(map(as_label, names))
        characters = max(map(len, self._texts)) == 1
        self._font = font(20 if characters else 14, bold=True)
        widest = max(map(self._font.getlength, self._texts))
        self.width = LABEL_WIDTH if characters else max(LABEL_WIDTH, math.ceil(widest) + 14)  # pixels

    def write(self, draw: ImageDraw.ImageDraw, index: int, left: int, middle: int) -> None:
        """Write name number `index` into the column that begins at `left`, centred on the height `middle`."""
        place = left + (self.width - 8) // 2, middle
        draw.text(place, self._texts[index], font=self._font, fill=FAINT, anchor="mm")


def sample_grid(pixels: np.ndarray, names: Sequence[str], title: str, caption: str, columns: int = 3) -> Image.Image:
    """A sheet with a labelled row of pictures for each class.

    Args:
        pixels: uint8 [len(names) * per_class, H, W], class by class. Up to 32 pixels they are enlarged to double size.
        names: of the classes.
        columns: rows of classes are set in this many columns, at most.
    """
    per_class, labels, columns = len(pixels) // len(names), LabelColumn(names), min(columns, len(names))
    scale = 2 if pixels.shape[-1] <= 32 else 1
    cell = scale * pixels.shape[-1]
    rows = -(-len(names) // columns)
    width, height, head = labels.width + per_class * cell + MARGIN, cell + 4, 68
    sheet, draw = headed_sheet(columns * width, head + rows * height + MARGIN, title, caption)
    for index in range(len(names)):
        left, top = MARGIN + index // rows * width, head + index % rows * height
        labels.write(draw, index, left, top + cell // 2)
        row = Image.fromarray(np.concatenate(pixels[index * per_class : (index + 1) * per_class], axis=1))
        sheet.paste(row.resize((per_class * cell, cell), Image.Resampling.NEAREST), (left + labels.width, top))
    return sheet


def headed_sheet(width: int, height: int, title: str, caption: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A sheet with a title and a caption, empty below them, and its drawing context.

    Args:
        width: pixels of the content, without the left margin; a long title or caption widens the sheet.
        height: pixels of the whole sheet.
    """
    large, small, title, caption = font(20, bold=True), font(13), drawable(title), drawable(caption)
    text = int(max(large.getlength(title), small.getlength(caption))) + MARGIN
    sheet = Image.new("RGB", (MARGIN + max(width, text), height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, 12), title, font=large, fill=INK)
    draw.text((MARGIN, 40), caption, font=small, fill=FAINT)
    return sheet, draw


def png(picture: Image.Image) -> bytes:
    """A picture as the content of a PNG file."""
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return content.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    """Arrays as the content of a compressed .npz file."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The typeface of all labels: DejaVu Sans, which matplotlib ships."""
    return ImageFont.truetype(font_file("DejaVuSans-Bold" if bold else "DejaVuSans"), size)
