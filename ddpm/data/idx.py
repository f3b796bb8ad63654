"""Data sets in IDX files, as MNIST and its successors are stored, and the checks of the files before they are used.

An IDX file is a big-endian header (magic number, then the length of each dimension) and the bytes.
"""

from __future__ import annotations

import math
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ddpm.run.errors import RequestError
from ddpm.run.files import atomic_write, open_regular, why_and_cure
from ddpm.run.format import plural

Split = Literal["train", "test"]

IMAGE_SIZE = 28
UNSIGNED_BYTES = 0x0800  # the magic number of an IDX file of bytes, to which the number of dimensions is added
SCRATCH, ABANDONED = ".download-", 86400.0  # folder of a download under way; seconds after which it counts as killed
FETCH_AGAIN = "delete it and fetch it again with --download, or use --data glyphs"


@dataclass(frozen=True)
class IdxSet:
    """A data set of images of 28 × 28 pixels: under `root` two files, images and labels, for each of its two splits."""

    title: str
    class_names: tuple[str, ...]  # in the order of the labels
    root: Path
    stem: str  # of the files below `root`, with {} for the split
    fetch: Callable[[Path], None]  # downloads the files to a root
    usual_images: int  # of the training split, as published
    usual_test_images: int
    splits: tuple[str, str] = ("train", "test")  # as the files call them
    transposed: bool = False  # an upright picture is `image.T`
    first_label: int = 0

    def files(self, split: Split) -> tuple[Path, Path]:
        """The images and the labels of a split."""
        called = self.splits[split == "test"]
        stem = self.root / self.stem.format(called)
        return stem.with_name(f"{stem.name}-images-idx3-ubyte"), stem.with_name(f"{stem.name}-labels-idx1-ubyte")

    def present(self) -> bool:
        """Are there files of the data set?

        Raises:
            RequestError: their folder cannot be read.
        """
        try:
            os.lstat(self.files("train")[1])
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise RequestError(f"--data-root: {why_and_cure(error)}") from error
        return True

    def prepare(self, download: bool) -> None:
        """Make sure that the files are there and valid; download them first if one is missing and it is asked for.

        Raises:
            RequestError: they are not; the message names the file and the fix.
            OSError: the folder cannot be written to.
        """
        if download and not all(path.exists() for split in ("train", "test") for path in self.files(split)):
            self.fetch(self.root)
        for split in ("train", "test"):
            self.check(split)

    def count(self, split: Split = "train") -> int:
        """The number of images of a split, without reading any; the usual number if the files are not there yet.

        Raises:
            RequestError: the files are damaged.
        """
        if not self.present():
            return self.usual_test_images if split == "test" else self.usual_images
        self.check(split)
        return len(read_idx(self.files(split)[1], 1))

    def read(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Upright pixels, uint8 [N, 28, 28], 0 is background; and labels from 0 on, int64 [N]."""
        images, labels = self.files(split)
        pixels = read_idx(images, 3)
        upright = np.array(pixels.transpose(0, 2, 1) if self.transposed else pixels, order="C")  # not the file itself
        return upright, read_idx(labels, 1).astype(np.int64) - self.first_label

    def remarks(self) -> list[str]:
        """None: the files hold nothing beside the images."""
        return []

    def check(self, split: Split) -> None:
        """Check that a split is complete, its images have the right size and its labels are valid. Reads headers and
        labels, not the pixels.

        Raises:
            RequestError: it is missing or damaged; one line that names the file and the fix.
        """
        images, labels = self.files(split)
        number, *size = _check_file(images, 3)
        if size != [IMAGE_SIZE, IMAGE_SIZE]:
            raise RequestError(
                f"{images} holds images of {size[0]}x{size[1]} pixels, not {IMAGE_SIZE}x{IMAGE_SIZE}: {FETCH_AGAIN}"
            )
        values = read_idx(labels, 1)
        if len(values) != number:
            raise RequestError(
                f"{labels} holds {plural(len(values), 'label')} for the {plural(number, 'image')} of {images.name}: "
                "delete both and fetch them again with --download, or use --data glyphs"
            )
        least, most = self.first_label, self.first_label + len(self.class_names) - 1
        wrong = np.flatnonzero((values < least) | (values > most))
        if len(wrong):
            raise RequestError(
                f"{labels} has label {values[wrong[0]]} at position {wrong[0]:,}, {self.title} has {least} to {most} "
                f"(is it of another split?): {FETCH_AGAIN}"
            )


def download(called: str, root: Path, **settings: str) -> None:
    """Let the class `called` of torchvision.datasets fetch its files to `root`.

    It works in a folder of its own, from which whole files are moved: other nodes and jobs may be fetching them too, or
    read those that are there. An archive that is there is unpacked, unless it is damaged. What a killed download left
    behind is removed after a day.

    Raises:
        RequestError: they could not be fetched or unpacked; says what to do.
        OSError: the folder cannot be written to.
    """
    import torchvision.datasets  # takes seconds to load

    raw = root / called / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for left in raw.glob(f"{SCRATCH}*"):
        with suppress(OSError):  # another download has just ended, and removed its own
            if time.time() - left.stat().st_mtime > ABANDONED:
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=raw) as scratch:  # raw may be a link to another disk
        fetched = Path(scratch) / called / "raw"
        fetched.mkdir(parents=True)
        for archive in (*raw.glob("*.zip"), *raw.glob("*.gz")):
            shutil.copy(archive, fetched)
        try:
            getattr(torchvision.datasets, called)(scratch, download=True, **settings)
        except Exception as error:  # urllib, gzip, zipfile and torchvision each raise their own
            raise RequestError(
                f"{raw} could not be filled ({error}): try again, or run --download where there is internet, such as a "
                "login node"
            ) from error
        for file in filter(Path.is_file, fetched.iterdir()):
            os.replace(file, raw / file.name)


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write an array of uint8 as an IDX file, whole or not at all."""
    if array.dtype != np.uint8:
        raise TypeError(f"IDX files hold uint8 here, not {array.dtype}")
    header = struct.pack(f">{1 + array.ndim}I", UNSIGNED_BYTES + array.ndim, *array.shape)
    atomic_write(path, header + array.tobytes())


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The array of a whole IDX file, memory-mapped, not copied.

    Raises:
        RequestError: the file is missing or damaged; says how to fix it.
    """
    shape = _check_file(path, dimensions)
    return np.memmap(path, np.uint8, "r", offset=_header_size(dimensions), shape=shape)


def _header_size(dimensions: int) -> int:
    return 4 * (1 + dimensions)


def _check_file(path: Path, dimensions: int) -> tuple[int, ...]:
    """The shape in the header of an IDX file.

    Raises:
        RequestError: the file is missing, is no IDX file with this number of dimensions, or has another length than
            its header says; the message says how to fix it.
    """
    header_size = _header_size(dimensions)
    try:
        with open_regular(path) as file:
            start, size = file.read(512), os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise RequestError(_missing(path)) from None
    except OSError as error:
        raise RequestError(
            f"{path} cannot be read ({error.strerror}): fix its permissions, or give another --data-root"
        ) from error
    if start.lstrip().startswith(b"<"):
        raise RequestError(f"{path} is an HTML page, as a failed download leaves it: {FETCH_AGAIN}")
    if start.startswith((b"\x1f\x8b", b"PK")):
        raise RequestError(f"{path} is still compressed: unpack it (gunzip or unzip), or {FETCH_AGAIN}")
    if size < header_size:
        raise RequestError(f"{path} is truncated: {size} bytes, its header alone takes {header_size}: {FETCH_AGAIN}")
    magic, *shape = struct.unpack(f">{1 + dimensions}I", start[:header_size])
    if magic != UNSIGNED_BYTES + dimensions:
        expected = f"{UNSIGNED_BYTES + dimensions:#010x}"
        raise RequestError(f"{path} has the wrong magic number {magic:#010x}, expected {expected}: {FETCH_AGAIN}")
    if not shape[0]:
        raise RequestError(f"{path} holds nothing but its header: {FETCH_AGAIN}")
    if size != (expected := header_size + math.prod(shape)):
        what = "is truncated" if size < expected else "is too long"
        raise RequestError(f"{path} {what}: expected {expected:,} bytes, found {size:,}: {FETCH_AGAIN}")
    return tuple(shape)


def _missing(path: Path) -> str:
    """The error message for a missing file: often it is there, but packed."""
    packed = path.with_name(f"{path.name}.gz")
    if os.path.isfile(packed):
        return f"{path} is missing, but {packed.name} is there: unpack it with `gunzip -k {packed}`"
    archive = path.with_name("gzip.zip")
    if os.path.isfile(archive):
        return f"{path} is missing, but {archive} is there: --download unpacks it (and fetches it again only if broken)"
    return (
        f"{path} is missing: --download fetches it (on a login node if this one has no network), --data-root names "
        f"the folder that holds {path.parent.parent.name}/raw/, --data folder reads images of one's own, and "
        "--data glyphs needs none"
    )
