"""Denoising in pictures: strips of denoising steps side by side, and animations."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ddpm.sampling.sheets import FAINT, MARGIN, LabelColumn, font, headed_sheet

HEAD, GAP = 88, 2  # pixels: height of a strip's head, and distance between its pictures
COLOURS = 24  # of a GIF: noise hardly compresses, so a small palette keeps the file small
FRAME, HOLD = 0.08, 2.4  # seconds: each frame, and the last one
MOST_FRAMES = 40


def even_steps(steps: int, most: int) -> list[int]:
    """At most `most` of the steps 0 (noise) to `steps` (finished), both ends included.

    Evenly spaced where a divisor of `steps` allows at least half of `most`; otherwise rounded.
    """
    exact = [parts for parts in range(most // 2, most) if steps % parts == 0]
    parts = max(exact, default=min(most - 1, steps))
    return np.unique(np.linspace(0, steps, parts + 1).round().astype(int)).tolist()


def columns_for(rows: int, row_width: int, row_height: int) -> int:
    """The number of columns for `rows` rows that brings a sheet closest to the format 4:3."""

    def shape(columns: int) -> float:
        return columns * row_width / (-(-rows // columns) * row_height)

    return min(range(1, rows + 1), key=lambda columns: abs(np.log(shape(columns) * 3 / 4)))


def step_name(step: int) -> str:
    return str(step) if step else "noise"


def denoising_strip(pictures: Mapping[int, np.ndarray], names: Sequence[str], title: str, caption: str) -> Image.Image:
    """A row for each image, from noise on the left to the finished picture on the right.

    Args:
        pictures: step → uint8 [len(names), R, R], steps ascending.
        names: the label of each row.
    """
    shown = np.stack(list(pictures.values()), axis=1)
    count, steps, side, _ = shown.shape
    scale = max(1, min(4, 1200 // (steps * side), 2400 // (count * side))) if count <= 12 else max(1, 56 // side)
    cell = scale * side + GAP
    labels = LabelColumn(names)
    width = labels.width + steps * cell + MARGIN
    columns = columns_for(count, width, cell) if count > 12 else 1
    rows = -(-count // columns)
    sheet, draw = headed_sheet(columns * width, HEAD + rows * cell + MARGIN, title, caption)
    for column in range(columns):
        for number, step in enumerate(pictures):
            middle = MARGIN + column * width + labels.width + number * cell + cell // 2
            draw.text((middle, HEAD - 6), step_name(step), font=font(13), fill=FAINT, anchor="ms")
    for index, row in enumerate(shown):
        left, top = MARGIN + index // rows * width, HEAD + index % rows * cell
        labels.write(draw, index, left, top + cell // 2)
        for number, picture in enumerate(row):
            large = Image.fromarray(picture).resize((cell - GAP, cell - GAP), Image.Resampling.NEAREST)
            sheet.paste(large, (left + labels.width + number * cell, top))
    return sheet


def gif(frames: Sequence[Image.Image]) -> bytes:
    """The content of a GIF file that holds its last frame and repeats."""
    both_ends = Image.fromarray(np.concatenate([np.asarray(frames[0]), np.asarray(frames[-1])]))
    palette = both_ends.quantize(COLOURS, Image.Quantize.MAXCOVERAGE)
    reduced = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    times = [round(1000 * FRAME)] * (len(frames) - 1) + [round(1000 * HOLD)]
    content = io.BytesIO()
    reduced[0].save(content, "GIF", save_all=True, append_images=reduced[1:], duration=times, loop=0, optimize=True)
    return content.getvalue()


def mp4(frames: Sequence[Image.Image]) -> bytes:
    """The content of an MP4 file (H.264, by ffmpeg) that holds its last frame."""
    import imageio_ffmpeg  # only this function needs it

    rate = round(1 / FRAME)
    held = [*frames, *[frames[-1]] * round(HOLD * rate)]
    width, height = (side // 2 * 2 for side in frames[0].size)  # even: H.264 halves colours
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "animation.mp4"
        writer = imageio_ffmpeg.write_frames(
            file, (width, height), fps=rate, quality=7, macro_block_size=2, ffmpeg_log_level="error",
            output_params=["-movflags", "+faststart"],
        )  # fmt: skip
        writer.send(None)
        for frame in held:
            writer.send(frame.crop((0, 0, width, height)).tobytes())
        writer.close()
        return file.read_bytes()
