"""`--data folder`: a folder of images, one subfolder per class; the images as prepared are kept for later starts."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import sys
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from ddpm.data.class_folders import SPLITS, File, Listing, changed, few, in_words, list_classes, unread
from ddpm.data.classes import MOST_SHOWN
from ddpm.data.contact_sheet import draw_sheet
from ddpm.data.idx import Split
from ddpm.data.pictures import IN_WORDS, Picture, in_one_line, read_picture, turn_black
from ddpm.run.datasets import Invert, data_words, published_name
from ddpm.run.errors import RequestError
from ddpm.run.files import atomic_write, real, strict_json, why_and_cure
from ddpm.run.format import plural

VERSION = 4  # of the prepared arrays: raise it when other pixels, labels or facts come of the same files
EVERY = 10  # one image in ten of a class is in the test split, if there is no test/
LARGE = 100_000  # bytes: files above this mean size are decoded in threads, which only slow small ones down
MOST_THREADS = 8  # each may take the memory of one large picture
AHEAD = 256  # files that are handed to the threads together: an interrupt waits for these
MANY = 2000  # images, or more, are announced before they are read, as that takes a while


@dataclass(frozen=True)
class Prepared:
    """The images of a folder as training takes them, and what was found on the way."""

    pixels: dict[Split, np.ndarray]  # uint8 [N, S, S], 0 is background
    labels: dict[Split, np.ndarray]  # int64 [N]
    facts: dict[str, Any]  # as `FolderSet.remarks` words them


@dataclass(frozen=True)
class FolderSet:
    """The images in the subfolders of `root`, square, gray and of one size."""

    root: Path
    resolution: int  # height and width, S
    invert: Invert
    kept: Path  # folder for the prepared arrays

    @property
    def title(self) -> str:
        return data_words(self.name)

    @property
    def name(self) -> str:
        return published_name("folder", "", self.root)

    @cached_property
    def listing(self) -> Listing:
        """What the folder holds.

        Raises:
            RequestError: it is not laid out as it should be, or the outputs would be read as its classes.
        """
        if real(self.kept).is_relative_to(real(self.root)):
            raise RequestError(
                in_one_line(
                    f"--data-root {self.root} would hold outputs too, in {self.kept}, which would be read as classes: "
                    "move its classes into a folder of their own, or choose another folder with --output-root"
                )
            )
        return list_classes(self.root)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Raises: RequestError: the folder is not laid out as it should be."""
        return self.listing.class_names

    @cached_property
    def prepared(self) -> Prepared:
        """The images, as `prepare` has kept them: every process has the same, even if the folder has changed since.

        Raises:
            RequestError: they are not there, or not those of the folder as it is now.
        """
        if kept := self._load():
            return kept
        raise RequestError(
            f"the images of {self.root} are not prepared at {self.resolution} pixels, or have changed since: train.py "
            "prepares them"
        )

    def prepare(self, download: bool) -> None:
        """Read every image, and keep the prepared arrays for other processes and later starts.

        Raises:
            RequestError: the folder or one of its images cannot be used, or `kept` cannot be written to.
        """
        if self._load():
            return
        if len(files := self.listing.files()) >= MANY:
            print(f"reading {len(files):,} images, once: they are then kept in {self.file}", file=sys.stderr)
        prepared, content = self._read_all(), io.BytesIO()
        arrays = {f"{split}_pixels": pixels for split, pixels in prepared.pixels.items()}
        arrays |= {f"{split}_labels": labels for split, labels in prepared.labels.items()}
        np.savez(content, facts=np.array(strict_json(prepared.facts)), **arrays)
        self._write(self.file, content)

    def present(self) -> bool:
        return os.path.isdir(self.root)

    def check(self, split: Split) -> None:
        """Check the layout of the folder.

        Raises:
            RequestError: it is not as it should be.
        """
        _ = self.listing

    def count(self, split: Split = "train") -> int:
        """The number of images of a split; an estimate if they are not prepared yet."""
        if kept := self._load():
            return len(kept.labels[split])
        splits = self.listing.splits
        share = 1 if "test" in splits else 1 / EVERY if split == "test" else 1 - 1 / EVERY
        return round(share * sum(map(len, splits.get(split, splits["train"]))))

    def read(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Pixels, uint8 [N, S, S], and labels, int64 [N]."""
        return self.prepared.pixels[split], self.prepared.labels[split]

    @property
    def file(self) -> Path:
        """Where the prepared arrays are kept. The name holds a hash of the names, sizes and times of all files, and of
        what is done to them: a folder that has changed is read again."""
        key = [VERSION, self.resolution, self.invert, self.listing.class_names, self.listing.files()]
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
        return self.kept / f"{self.name}-{digest[:16]}.npz"

    def remarks(self) -> list[str]:
        """What was found in the folder, a line each."""
        return list(_remarks(self.listing, self.prepared.facts))

    def contact_sheet(self) -> Path:
        """Write a picture of the first training images of each class; returns its path."""
        sheet, content = draw_sheet(self.class_names, *self.read("train")), io.BytesIO()
        sheet.save(content, "PNG")
        path = self.file.with_suffix(".png")
        self._write(path, content)
        return path

    def _write(self, path: Path, content: io.BytesIO) -> None:
        try:
            self.kept.mkdir(parents=True, exist_ok=True)
            atomic_write(path, content.getbuffer())
        except OSError as error:
            raise RequestError(f"{why_and_cure(error)}; or choose another folder with --output-root") from error

    # ---- reading -----------------------------------------------------------------------------------------------------

    def _load(self) -> Prepared | None:
        """The arrays that are kept; None if there are none, or they are damaged."""
        file = self.file
        try:
            with np.load(file) as kept:
                pixels, labels = ({split: kept[f"{split}_{part}"] for split in SPLITS} for part in ("pixels", "labels"))
                return Prepared(pixels, labels, json.loads(str(kept["facts"])))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def _read_all(self) -> Prepared:
        """Read every image.

        Raises:
            RequestError: one cannot be used, or the folder changes meanwhile.
        """
        files = self.listing.files()
        pixels = np.empty((len(files), self.resolution, self.resolution), np.uint8)
        sizes, backgrounds, digests, failed = Counter(), [], [], []
        with warnings.catch_warnings():  # Pillow warns of damage for which it then raises an error
            warnings.simplefilter("ignore")
            for index, picture in enumerate(self._pictures([file for _, _, file in files])):
                if isinstance(picture, RequestError):
                    failed.append(picture)
                    continue
                pixels[index] = picture.pixels
                sizes[picture.size] += 1
                backgrounds.append(picture.background)
                digests.append(picture.digest)
        if differing := set(self.listing.files()) ^ set(list_classes(self.root).files()):
            raise changed(self.root, min(file.path for _, _, file in differing))
        if failed:
            more = f" ({plural(len(failed) - 1, 'more image')} cannot be used either)" if len(failed) > 1 else ""
            raise RequestError(f"{failed[0]}{more}")
        found = turn_black(pixels, backgrounds, self.invert)
        labels = np.array([label for _, label, _ in files], np.int64)
        in_test = self._in_test(labels, digests)
        shared = {digest for digest, test in zip(digests, in_test, strict=True) if not test}
        facts = {
            "sizes": [[*size, count] for size, count in sorted(sizes.items())],
            "backgrounds": found,
            "shared": sum(test and digest in shared for digest, test in zip(digests, in_test, strict=True)),
        }
        chosen = {"train": ~in_test, "test": in_test}
        return Prepared(
            {split: pixels[mask] for split, mask in chosen.items()},
            {split: labels[mask] for split, mask in chosen.items()},
            facts,
        )

    def _pictures(self, files: list[File]) -> Iterator[Picture | RequestError]:
        """The picture, or what is wrong with it, of each file in turn."""
        if sum(file.size for file in files) < LARGE * len(files):
            yield from map(self._picture, files)
            return
        with ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_THREADS)) as threads:
            for start in range(0, len(files), AHEAD):
                yield from threads.map(self._picture, files[start : start + AHEAD])

    def _picture(self, file: File) -> Picture | RequestError:
        try:
            return read_picture(self.root / file.path, self.resolution)
        except FileNotFoundError:
            return changed(self.root, file.path)
        except RequestError as error:
            return error

    def _in_test(self, labels: np.ndarray, digests: list[bytes]) -> np.ndarray:
        """Which images are of the test split: bool [N].

        Without test/, every tenth image of a class in the order of the hashes of the files, from the first on. Copies
        of an image count as one, so that they are in one split.

        Raises:
            RequestError: a class has copies of one image only.
        """
        if "test" in self.listing.splits:
            return np.array([split == "test" for split, _, _ in self.listing.files()])
        chosen: set[tuple[int, bytes]] = set()
        images = list(zip(labels.tolist(), digests, strict=True))
        for label, of_class in itertools.groupby(sorted(set(images)), key=itemgetter(0)):
            distinct = list(of_class)
            if len(distinct) == 1:
                name, file = self.class_names[label], self.root / self.listing.splits["train"][label][0].path
                raise RequestError(
                    in_one_line(f"class {name!r} has copies of one image only, {file}: give it others too")
                )
            chosen.update(distinct[::EVERY])
        return np.array([image in chosen for image in images])


def _remarks(listing: Listing, facts: dict[str, Any]) -> Iterator[str]:
    yield f"{plural(len(listing.class_names), 'class')}: {few(listing.class_names, MOST_SHOWN)}"
    sizes = sorted(facts["sizes"], key=lambda size: (size[0] * size[1], size))
    (width, height, _), (widest, highest, _), usual = sizes[0], sizes[-1], max(sizes, key=itemgetter(2))
    if len(sizes) == 1:
        yield f"images: all {width}x{height} pixels"
    else:
        yield f"images: {width}x{height} to {widest}x{highest} pixels, most often {usual[0]}x{usual[1]}"
    found = facts["backgrounds"]
    words = "dark in {dark:,}, light in {light:,}, none found in {none:,}"
    yield f"background: {words.format(**found)}; {plural(found['inverted'], 'image')} inverted"
    given = (
        "train/ and test/" if "test" in listing.splits else "every tenth image of a class, by the hash of its content"
    )
    yield f"test split: {given}"
    if ignored := in_words(listing.ignored):
        yield f"ignored: {ignored}"
    if others := unread(listing.ignored):
        number = plural(sum(others.values()), "picture")
        yield f"warning: {number} in formats that are not read ({in_words(others)}): convert to {IN_WORDS}, or remove"
    if shared := facts["shared"]:
        yield (
            f"warning: {plural(shared, 'test image')} can be found among the training images too; figures on the test "
            "split are too good by that"
        )
