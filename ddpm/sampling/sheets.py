"""Sheets of generated characters, with a title and a caption, and how pictures are encoded."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import DDPMScheduler
from PIL import Image, ImageDraw, ImageFont

from ddpm.run.config import TrainConfig
from ddpm.run.datasets import data_words
from ddpm.run.fonts import font_file
from ddpm.run.guidance import guidance_fields, guidance_of
from ddpm.sampling.options import weights_words
from ddpm.sampling.pipeline import sample, to_bytes
from ddpm.training.distributed import DistContext
from ddpm.training.seeding import Stream, generator

BACKGROUND, INK, FAINT = (13, 17, 23), (230, 237, 243), (139, 148, 158)
MARGIN, LABEL_WIDTH = 16, 30  # pixels

PIXELS_AT_ONCE = {"cpu": 50_000, "cuda": 400_000}  # in one forward pass: about 64 or 500 images at 28 px


def draw_samples(
    config: TrainConfig,
    model: torch.nn.Module,
    scheduler: DDPMScheduler,
    per_class: int,
    world: DistContext,
    interrupted: Callable[[], bool] = lambda: False,
    series: int = 0,
    guidance_scale: float | None = None,
) -> np.ndarray | None:
    """Generated characters, class by class, from the same noise in every run: uint8 [K * per_class, R, R].

    Every process calls it; they share the work, and each gets all images.

    Args:
        interrupted: called by all processes before each draws a chunk; once it returns true, the result is None.
        series: each number has noise of its own.
        guidance_scale: instead of the run's.
    """
    labels = torch.arange(model.config.num_class_embeds - 1, device=world.device).repeat_interleave(per_class)
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
    """Batch size of sampling: images in one forward pass."""
    return max(1, PIXELS_AT_ONCE["cuda" if device.type == "cuda" else "cpu"] // resolution**2)


def labelled_grid(config: TrainConfig, class_names: Sequence[str], pixels: np.ndarray, epoch: int) -> Image.Image:
    """A run's sample grid after `epoch`: the images of `draw_samples` with the run's name and a caption."""
    settings = settings_words("ddim", config.sample_steps, guidance_of(guidance_fields(config.guidance_scale)))
    caption = sample_caption(config.data_name, f"epoch {epoch}", "ema", settings)
    return sample_grid(pixels, class_names, config.run, caption)


def settings_words(sampler: str, steps: int, guidance: str) -> str:
    """Sampler settings as captions show them: `DDIM, 20 steps · guidance 2`.

    Args:
        guidance: as `guidance_of` gives it.
    """
    return f"{sampler.upper()}, {steps} step{'s' * (steps != 1)} · guidance {guidance}"


def sample_caption(data: str, progress: str, weights: str, settings: str) -> str:
    """The line below the title of every sheet of generated characters.

    Args:
        data: the name of the data set in files.
        progress: how long the model was trained, such as `epoch 6`.
        weights: those that drew the characters, as `weights_of` names them.
        settings: as `settings_words` gives them.
    """
    return f"trained on {data_words(data)} · {progress} · {weights_words(weights)} · {settings}"


def sample_grid(pixels: np.ndarray, names: Sequence[str], title: str, caption: str, columns: int = 3) -> Image.Image:
    """A sheet with a labelled row of pictures for each class.

    Args:
        pixels: uint8 [len(names) * per_class, H, W], class by class. Up to 32 pixels they are enlarged to double size.
        names: the label of each class.
        columns: rows of classes are set in this many columns.
    """
    per_class = len(pixels) // len(names)
    scale = 2 if pixels.shape[-1] <= 32 else 1
    cell = scale * pixels.shape[-1]
    rows = -(-len(names) // columns)
    width, height, head = LABEL_WIDTH + per_class * cell + MARGIN, cell + 4, 68
    sheet, draw = headed_sheet(columns * width, head + rows * height + MARGIN, title, caption)
    for index, name in enumerate(names):
        left, top = MARGIN + index // rows * width, head + index % rows * height
        middle = left + (LABEL_WIDTH - 8) // 2, top + cell // 2
        draw.text(middle, name, font=font(20, bold=True), fill=FAINT, anchor="mm")
        row = Image.fromarray(np.concatenate(pixels[index * per_class : (index + 1) * per_class], axis=1))
        sheet.paste(row.resize((per_class * cell, cell), Image.Resampling.NEAREST), (left + LABEL_WIDTH, top))
    return sheet


def headed_sheet(width: int, height: int, title: str, caption: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A sheet with a title and a caption, empty below them, and its drawing context.

    Args:
        width: pixels of the content, without the left margin; a long title or caption widens the sheet.
        height: pixels of the whole sheet.
    """
    large, small = font(20, bold=True), font(13)
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
