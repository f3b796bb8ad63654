"""Folders that are broken at random: each is read as it is, or refused in one line that names what is wrong."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from benchmarks.faults.replay import random_examples
from ddpm.data.folder import FolderSet
from ddpm.run.errors import RequestError

FORMATS = ("png", "jpg", "tiff", "bmp", "gif", "webp")
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F")
DAMAGE = ("nothing", "cut", "flip", "empty", "text", "zeros", "repeat")
STRANGE = ("nothing", "link", "loop", "pipe", "folder", "hidden", "dangling", "other ending")
NAMES = st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=12) | st.sampled_from(
    ("a", "A", "train", "test", "..a", ".a", " ", "é", "e\u0301", "\udcff", "Thumbs.db", "<b>", "`|`", "\u202e")
)
IMAGES = st.builds(
    lambda *of: WrittenImage(*of), st.sampled_from(FORMATS), st.sampled_from(MODES), st.integers(1, 40),
    st.integers(1, 40), st.integers(0, 9), st.sampled_from(DAMAGE), st.integers(0, 2000), st.sampled_from(STRANGE),
)  # fmt: skip
CLASSES = st.dictionaries(NAMES, st.lists(IMAGES, max_size=4), max_size=4)


@dataclass(frozen=True)
class WrittenImage:
    """A file of random pixels, `damage` to it at `place`, and something `strange` in its stead."""

    ending: str
    mode: str
    width: int
    height: int
    seed: int
    damage: str
    place: int
    strange: str

    def write(self, folder: Path, number: int) -> None:
        path = folder / f"{number}.{self.ending}"
        try:
            self._image().save(path)
        except (OSError, ValueError, KeyError):  # no such format has this mode
            self._image().convert("L").save(path)
        content = bytearray(path.read_bytes())
        at = self.place % len(content)
        match self.damage:
            case "cut":
                del content[at:]
            case "flip":
                content[at] ^= 1 << self.seed % 8
            case "empty":
                content.clear()
            case "text":
                content[:] = b"no picture\n"
            case "zeros":
                content[at : at + 40] = bytes(len(content[at : at + 40]))
            case "repeat":
                content[at:at] = content[:at]
        path.write_bytes(content)
        match self.strange:
            case "link":
                (folder / f"link{number}.png").symlink_to(path.name)
            case "loop":
                (folder / f"loop{number}.png").symlink_to(f"loop{number}.png")
            case "dangling":
                (folder / f"gone{number}.png").symlink_to("nowhere")
            case "pipe":
                os.mkfifo(folder / f"pipe{number}.png")
            case "folder":
                (folder / f"folder{number}.png").mkdir()
            case "hidden":
                path.rename(folder / f".{path.name}")
            case "other ending":
                path.rename(path.with_suffix(".dat"))

    def _image(self) -> Image.Image:
        random = np.random.default_rng(self.seed)
        shape = (self.height, self.width)
        if self.mode == "I;16":
            return Image.fromarray(random.integers(0, 65536, shape, dtype=np.uint16))
        colours = random.integers(0, 256, (*shape, 3), dtype=np.uint8)
        return Image.fromarray(colours).convert(self.mode)


def write(root: Path, splits: dict[str, dict[str, list[WrittenImage]]]) -> None:
    """Write the folder as far as the file system takes its names."""
    for split, classes in splits.items():
        for name, images in classes.items():
            folder = root / split / name
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except (OSError, UnicodeEncodeError):
                continue
            for number, image in enumerate(images):
                image.write(folder, number)


def sound(*seeds: int) -> list[WrittenImage]:
    return [WrittenImage("png", "L", 9, 9, seed, "nothing", 0, "nothing") for seed in seeds]


@random_examples(60)
@example({"": {"a": sound(1, 2), "b": sound(3, 4)}}, 28)
@example({"": {"a": sound(1, 1), "b": sound(3, 4)}}, 28)
@example({"train": {"a": sound(1), "b": sound(3)}, "test": {"a": sound(1), "b": sound(4)}}, 8)
@example({"train": {"a": sound(1), "b": sound(3)}, "test": {"a": sound(1), "c": sound(4)}}, 8)
@given(
    st.fixed_dictionaries({"": CLASSES}) | st.fixed_dictionaries({"train": CLASSES, "test": CLASSES}),
    st.sampled_from((1, 8, 28)),
)
def test_a_folder_is_read_whole_or_refused_in_one_line(splits: dict, side: int):
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("error")
        root, kept = Path(place) / "images", Path(place) / "out" / "kept"
        root.mkdir()
        write(root, splits)
        source = FolderSet(root, side, "auto", kept)
        try:
            source.prepare(download=False)
        except RequestError as error:
            message = str(error)
            assert message.isprintable(), message
            assert str(root) in message
            assert not kept.exists() or not any(kept.iterdir())
            with pytest.raises(RequestError):  # the same folder, the same answer
                FolderSet(root, side, "auto", kept).prepare(download=False)
            return
        again = FolderSet(root, side, "auto", kept)
        names, labelled = again.class_names, [again.read(split) for split in ("train", "test")]
        assert len(names) == len(set(names)) >= 2
        for pixels, labels in labelled:
            assert pixels.shape == (len(labels), side, side)
            assert sorted(set(labels.tolist())) == list(range(len(names))), "every class is in both splits"
        assert sum(len(labels) for _, labels in labelled) == len(again.listing.files())
        assert "\n".join(again.remarks()).replace("\n", " ").isprintable()
        assert again.contact_sheet().is_file()
        assert [path.suffix for path in sorted(kept.iterdir())] == [".npz", ".png"]
        shutil.rmtree(kept)
        FolderSet(root, side, "auto", kept).prepare(download=False)
        for (pixels, labels), split in zip(labelled, ("train", "test"), strict=True):
            ours = FolderSet(root, side, "auto", kept).read(split)
            assert np.array_equal(pixels, ours[0])
            assert np.array_equal(labels, ours[1])
