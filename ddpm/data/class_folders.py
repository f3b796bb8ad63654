"""A folder of images as a listing: which subfolders are classes, which of their files are pictures, what is ignored."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ddpm.data.idx import Split
from ddpm.data.pictures import ENDINGS, IN_WORDS, OTHERS, in_one_line
from ddpm.run.datasets import class_name
from ddpm.run.errors import RequestError
from ddpm.run.files import why_and_cure
from ddpm.run.format import plural

MOST_CLASSES = 1000
SPLITS: tuple[Split, Split] = ("train", "test")
SYSTEM = {  # in lower case: what systems and file managers leave in folders
    "thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "lost+found", "@eadir", "$recycle.bin",
    "system volume information",
}  # fmt: skip
UNSHOWABLE = ("Cc", "Cs", "Zl", "Zp")  # Unicode's categories of control characters, lone surrogates and line ends


class File(NamedTuple):
    """A picture file."""

    path: str  # below the root
    size: int  # bytes
    mtime_ns: int


@dataclass(frozen=True)
class Listing:
    """The pictures of a folder, by split and class."""

    class_names: tuple[str, ...]  # in the order of the labels
    splits: dict[Split, list[list[File]]]  # of each class, in the order of `class_names`; `train` alone: not split yet
    ignored: Counter[str] = field(compare=False)  # what was left out, in words (`links`) → how many

    def files(self) -> list[tuple[Split, int, File]]:
        """Every picture with its split and label."""
        return [
            (split, label, file)
            for split, classes in self.splits.items()
            for label, files in enumerate(classes)
            for file in files
        ]


class _Entries(NamedTuple):
    """What a folder holds."""

    folders: list[str]
    pictures: list[File]


def list_classes(root: Path) -> Listing:
    """The classes and pictures of a folder. Looks at names, sizes and times only.

    Classes are sorted by name: digits by the number that they form, everything else by Unicode code point.

    Raises:
        RequestError: it cannot be read, or is not laid out as docs/your-data.md says; one line with the class or folder
            and the fix.
    """
    ignored: Counter[str] = Counter()
    try:
        return _list(root, ignored)
    except (FileNotFoundError, NotADirectoryError) as error:
        if not os.path.isdir(root):
            raise _wrong(f"--data-root {root}: no such folder; give the one with a subfolder for each class") from None
        raise changed(root, error.filename) from None
    except OSError as error:
        raise _wrong(f"--data-root: {why_and_cure(error)}") from error


def natural(name: str) -> tuple[list[int | str], str]:
    """Sort key: runs of the digits 0-9 by value, other characters by code point, whatever the locale."""
    parts = re.split("([0-9]+)", name)  # text, digits, text, …
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def changed(root: Path, what: str) -> RequestError:
    """The error of a folder that other programs write to."""
    return _wrong(f"{root} changed while it was read ({what}): try again when nothing writes to it")


def _list(root: Path, ignored: Counter[str]) -> Listing:
    below = _entries(root, "", ignored)
    if set(SPLITS) <= set(below.folders):
        inside = {split: _entries(root, split, Counter()) for split in SPLITS}
        stray = [entries.pictures[0] for entries in inside.values() if entries.pictures]
        if all(entries.folders for entries in inside.values()) and stray:
            raise _wrong(
                f"{root / stray[0].path} lies beside the classes of its split: move it into one of them, or away"
            )
        if all(entries.folders and not entries.pictures for entries in inside.values()):
            ignored["folders beside train/ and test/"] += len(below.folders) - 2
            ignored["images outside the classes"] += len(below.pictures)
            return _of_two_splits(root, ignored)
    ignored["images outside the classes"] += len(below.pictures)
    classes = _classes(root, "", below.folders, ignored)
    for name, files in classes.items():
        if len(files) == 1:
            raise _wrong(
                f"class {name!r} has one image, {root / files[0].path}: give it 2 or more, one of them is for the test "
                "split"
            )
    return Listing(tuple(classes), {"train": list(classes.values())}, ignored)


def _of_two_splits(root: Path, ignored: Counter[str]) -> Listing:
    classes = {split: _classes(root, split, _entries(root, split, ignored).folders, ignored) for split in SPLITS}
    train, test = classes["train"], classes["test"]
    for split, other, only in (
        ("train", "test", train.keys() - test.keys()),
        ("test", "train", test.keys() - train.keys()),
    ):
        if only:
            which = few(sorted(only, key=natural))
            much = plural(len(only), "class")
            raise _wrong(f"{root / split} has {much} that {other}/ lacks ({which}): give both the same subfolders")
    return Listing(tuple(train), {split: list(of.values()) for split, of in classes.items()}, ignored)


def _classes(root: Path, split: str, folders: Sequence[str], ignored: Counter[str]) -> dict[str, list[File]]:
    """Class → its pictures, from the subfolders of `split` (of the root itself if that is empty)."""
    place, found = root / split, {}
    if not folders:
        beside = f" (ignored: {kinds})" if (kinds := in_words(ignored)) else ""
        raise _wrong(f"{place} has no subfolder: put the images of each class into one of the class's name{beside}")
    for folder in folders:
        name = class_name(folder)
        if not name or any(unicodedata.category(character) in UNSHOWABLE for character in folder):
            raise _wrong(f"the name of the folder {str(place / folder)!r} cannot be shown: rename it")
        if name in found:
            raise _wrong(f"{place} has two subfolders that both read {name!r}: rename one, or move its images")
        found[name] = folder
    names = sorted(found, key=natural)
    if len(names) == 1:
        raise _wrong(_one_class(place, found[names[0]]))
    if len(names) > MOST_CLASSES:
        raise _wrong(f"{place} has {len(names):,} subfolders: at most {MOST_CLASSES:,} classes can be told apart")
    return {name: _pictures(root, os.path.join(split, found[name]), name, ignored) for name in names}


def _one_class(place: Path, folder: str) -> str:
    inside = _entries(place, folder, Counter()).folders
    hint = f", or --data-root {place / folder} if its {len(inside)} subfolders are the classes" if inside[1:] else ""
    return f"{place} has one class only, {folder!r}: give it 2 or more subfolders{hint}"


def _pictures(root: Path, folder: str, name: str, ignored: Counter[str]) -> list[File]:
    """The pictures of the class `name`, in natural order; there is at least one."""
    here: Counter[str] = Counter()
    entries = _entries(root, folder, here)
    here["folders inside classes"] += len(entries.folders)
    ignored.update(here)
    if not entries.pictures:
        kinds = in_words(here)
        held = f"has no images, only what is ignored ({kinds})" if kinds else "is empty"
        splits = "; two splits are train/ and test/, each with a subfolder for each class" if entries.folders else ""
        cure = f"put its images ({IN_WORDS}) there, or remove the folder"
        raise _wrong(f"class {name!r}, {root / folder}, {held}: {cure}{splits}")
    return sorted(entries.pictures, key=lambda file: natural(file.path))


def _entries(root: Path, folder: str, ignored: Counter[str]) -> _Entries:
    """Subfolders and pictures of a folder below the root; others are counted in `ignored`.

    Raises:
        OSError: it cannot be read.
    """
    folders, pictures = [], []
    with os.scandir(root / folder) as entries:
        for entry in entries:
            ending = os.path.splitext(entry.name)[1].lower()
            if entry.name.startswith("."):
                ignored["hidden files"] += 1
            elif entry.name.lower() in SYSTEM:
                ignored["system files"] += 1
            elif entry.is_symlink():
                ignored["links"] += 1
            elif entry.is_dir():
                folders.append(entry.name)
            elif entry.is_file() and ending in ENDINGS:
                facts = entry.stat(follow_symlinks=False)
                pictures.append(File(os.path.join(folder, entry.name), facts.st_size, facts.st_mtime_ns))
            elif ending in OTHERS:
                ignored[f"{OTHERS[ending]} images"] += 1
            else:
                ignored["other files"] += 1
    return _Entries(sorted(folders), pictures)


def in_words(ignored: Mapping[str, int]) -> str:
    """`hidden files: 1, links: 3`; empty if nothing was ignored."""
    return ", ".join(f"{kind}: {number:,}" for kind, number in sorted(ignored.items()) if number)


def unread(ignored: Mapping[str, int]) -> dict[str, int]:
    """Those of the ignored that are pictures in a format that is not read: `HEIC images` → how many."""
    kinds = {f"{name} images" for name in OTHERS.values()}
    return {kind: number for kind, number in ignored.items() if kind in kinds and number}


def few(names: Iterable[str], most: int = 3) -> str:
    """At most `most` names, quoted, and how many more."""
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def _wrong(message: str) -> RequestError:
    return RequestError(in_one_line(message))
