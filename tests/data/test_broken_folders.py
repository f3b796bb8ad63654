"""`--data folder`: what is said of a folder that cannot be used, and of what is ignored in one."""

from __future__ import annotations

import io
import os
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm.data import folder as folder_module
from ddpm.data.pictures import read_picture
from ddpm.data.sets import dataset
from ddpm.run.errors import RequestError
from ddpm.training import data
from tests.conftest import ONE, replace
from tests.support.damage import without_rights
from tests.support.folders import config_of, kept, letters, make_folder, png, prepared, stroke


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return letters(tmp_path)


def no_subfolder(root: Path):
    shutil.rmtree(root)
    root.mkdir()
    stroke(1).save(root / "1.png")


def one_class(root: Path):
    shutil.rmtree(root / "b")
    shutil.rmtree(root / "c")


def one_level_too_high(root: Path):
    shutil.move(root, root.parent / "inner")
    root.mkdir()
    shutil.move(root.parent / "inner", root / "inner")


def too_many_classes(root: Path):
    for number in range(1000):
        (root / f"class {number}").mkdir()


def empty_class(root: Path):
    (root / "empty").mkdir()


def class_of_links(root: Path):
    (root / "links").mkdir()
    for number in range(3):
        (root / "links" / f"{number}.png").symlink_to(root / "a" / f"{number}.png")


def only_train_has_classes(root: Path):
    one_level_too_high(root)
    (root / "inner").rename(root / "train")
    (root / "test").mkdir()
    stroke(1).save(root / "test" / "1.png")


def two_splits(root: Path, extra: str):
    for name in ("a", "b", "c"):
        shutil.move(root / name, root / "train" / name)
    make_folder(root / "test", {"a": 1, "b": 1, "c": 1}, start=60)
    make_folder(root / extra, {"x": 1, "y": 1}, start=80)


def unreadable_name(root: Path):
    os.rename(os.fsencode(root / "c"), os.fsencode(root) + b"/c\xff")


def links_to_classes(root: Path) -> None:
    root.rename(root.parent / "elsewhere")
    root.mkdir()
    for name in ("a", "b"):
        (root / name).symlink_to(root.parent / "elsewhere" / name)


def stray_image(root: Path) -> None:
    shutil.rmtree(root)
    make_folder(root / "train", {"a": 2, "b": 2})
    make_folder(root / "test", {"a": 2, "b": 2}, start=50)
    stroke(1).save(root / "train" / "cover.png")


def stray_images(root: Path) -> None:
    stray_image(root)
    stroke(2).save(root / "test" / "cover.png")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {  # what is wrong → how to make it so, what is said
    "no folder": (shutil.rmtree, r"--data-root .*letters: no such folder; give the one with a subfolder for each"),
    "a file": (lambda root: (shutil.rmtree(root), root.write_text("")), r"letters: no such folder"),
    "no subfolder": (no_subfolder, r"letters has no subfolder: put the images of each class into one of"),
    "links to classes": (links_to_classes, r"letters has no subfolder: .* \(ignored: links: 2\)$"),
    "one class": (one_class, r"letters has one class only, 'a': give it 2 or more subfolders$"),
    "one level too high": (one_level_too_high, r"one class only, 'inner': .* or --data-root .*letters/inner if"),
    "too many classes": (too_many_classes, r"letters has 1,003 subfolders: at most 1,000 classes"),
    "empty class": (empty_class, r"class 'empty', .*letters/empty, is empty: put its images \(PNG, .* there, or"),
    "class of links": (class_of_links, r"class 'links', .* has no images, only what is ignored \(links: 3\)"),
    "one image": (lambda root: (root / "c" / "17.png").unlink(), r"class 'c' has one image, .*18.png: give it 2"),
    "copies only": (lambda root: shutil.copy(root / "c" / "17.png", root / "c" / "18.png"),
                    r"class 'c' has copies of one image only, .*17.png: give it others too"),
    "classes of train": (lambda root: two_splits(root, "train"), r"train has 2 classes that test/ lacks \('x', 'y'\)"),
    "classes of test": (lambda root: two_splits(root, "test"), r"test has 2 classes that train/ lacks \('x', '"),
    "classes in train only": (only_train_has_classes, r"class 'train', .* two splits are train/ and test/, "),
    "an image beside the classes of both splits": (stray_images, r"cover\.png lies beside the classes of its split"),
    "an image beside the classes of a split": (stray_image, r"train/cover\.png lies beside the classes of its split"),
    "names that look alike": (lambda root: make_folder(root, {"\u00e9": 2, "e\u0301": 2}), r"that both read 'é'"),
    "a name of control characters": (lambda root: make_folder(root, {"a\nb\x1b[1m": 2}), r"cannot be shown: rename it"),
    "a name that is not UTF-8": (unreadable_name, r"cannot be shown: rename it"),
    "a pipe": (lambda root: (shutil.rmtree(root / "b"), (root / "b").mkdir(), os.mkfifo(root / "b" / "x.png")),
               r"class 'b', .* \(other files: 1\)"),
}  # fmt: skip


def tiff_of_unknown_colours() -> bytes:
    content = io.BytesIO()
    stroke(1).save(content, "TIFF")
    known, unknown = (struct.pack("<HHIHH", 262, 3, 1, meaning, 0) for meaning in (1, 999))  # of its numbers
    assert known in content.getvalue()
    return content.getvalue().replace(known, unknown)


BROKEN_IMAGES: dict[str, tuple[bytes, str]] = {  # what is wrong → content of a file, what is said
    "zero bytes": (b"", r"is empty \(0 bytes\): replace or remove it"),
    "text": (b"not an image\n", r"is no PNG, JPEG, TIFF, BMP, GIF or WebP picture, or its first bytes are damaged"),
    "truncated": (png(stroke(1))[:-60], r"is truncated or damaged \(.*\): replace or remove it"),
    "garbage": (png(stroke(1))[:60] + bytes(60) + png(stroke(1))[120:], r"is truncated or damaged \(.*\): replace"),
    "a TIFF of unknown colours": (tiff_of_unknown_colours(), r"is a TIFF picture whose kind of pixels Pillow does not"),
    "16 bit": (png(Image.fromarray(np.zeros((9, 9), np.uint16))), r"has more than 8 bits per channel: save it with 8"),
    "100 megapixels": (png(Image.new("1", (10_000, 10_000))), r"has more than 64 million pixels: make it smaller"),
    "400 megapixels": (png(Image.new("1", (20_000, 20_000))), r"has more than 64 million pixels: make it smaller"),
}  # fmt: skip


def refused(root: Path, expected: str) -> str:
    """Assert that training refuses the folder in one line, and that nothing is kept of it."""
    with pytest.raises(RequestError, match=expected) as error:
        data.load(config_of(root), ONE)
    assert "\n" not in str(error.value)
    assert str(error.value).isprintable()
    assert kept(root) == []
    return str(error.value)


@pytest.mark.parametrize("kind", BROKEN)
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(kind: str, root: Path):
    break_it, expected = BROKEN[kind]
    break_it(root)
    refused(root, expected)


@pytest.mark.parametrize("kind", BROKEN_IMAGES)
def test_an_image_that_cannot_be_used_is_named(kind: str, root: Path):
    content, expected = BROKEN_IMAGES[kind]
    (root / "b" / "bad one.png").write_bytes(content)
    refused(root, r"letters/b/bad one\.png " + expected)


def test_the_first_of_several_bad_images_is_named_with_their_number(root: Path):
    for number in (14, 15, 16):
        (root / "b" / f"{number}.png").write_bytes(b"")
    refused(root, r"b/14\.png is empty .* \(2 more images cannot be used either\)$")


def test_large_files_are_read_in_threads_with_the_same_result(root: Path, monkeypatch: pytest.MonkeyPatch):
    one_by_one = prepared(root).read("train")
    shutil.rmtree(root.parent / "out")
    monkeypatch.setattr(folder_module, "LARGE", 0)
    monkeypatch.setattr(folder_module, "AHEAD", 3)
    for ours, theirs in zip(one_by_one, prepared(root).read("train"), strict=True):
        assert np.array_equal(ours, theirs)
    (root / "b" / "bad.png").write_bytes(b"")
    shutil.rmtree(root.parent / "out")
    refused(root, r"b/bad\.png is empty")


def test_what_is_no_image_of_a_class_is_ignored_and_counted(root: Path):
    before = prepared(root).read("train")[0]
    for name in (".DS_Store", "a/.hidden.png", "a/Thumbs.db", "b/desktop.ini", "b/notes.txt", "readme.md"):
        (root / name).write_text("x")
    for name in (".git", "__MACOSX", "a/more"):
        (root / name).mkdir()
    (root / "loop").symlink_to(root)
    (root / "a" / "loop.png").symlink_to("loop.png")
    (root / "a" / "nowhere.png").symlink_to("nowhere")
    stroke(1).save(root / "cover.png")
    source = prepared(root)
    assert np.array_equal(source.read("train")[0], before)
    found = "folders inside classes: 1, hidden files: 3, images outside the classes: 1, links: 3, other files: 2, "
    assert f"ignored: {found}system files: 3" in source.remarks()


def test_pictures_in_formats_that_are_not_read_are_a_warning_with_their_number(root: Path):
    """Among readable pictures they were "other files", without a word on what to do."""
    for name in ("a/IMG_1.HEIC", "b/IMG_2.heic", "b/3.avif", "a/notes.txt"):
        (root / name).write_bytes(b"\0\0\0\x18ftypheic")
    remarks = prepared(root).remarks()
    assert "ignored: AVIF images: 1, HEIC images: 2, other files: 1" in remarks
    expected = "warning: 3 pictures in formats that are not read (AVIF images: 1, HEIC images: 2): convert to PNG, JPEG"
    assert any(remark.startswith(expected) for remark in remarks)
    shutil.rmtree(root.parent / "out")
    (root / "photos").mkdir()
    (root / "photos" / "1.heif").write_bytes(b"x")
    refused(root, r"class 'photos', .* has no images, only what is ignored \(HEIF images: 1\): put its images \(PNG, ")


@pytest.mark.parametrize("place", [".", "b", "b/13.png"])
def test_a_place_that_may_not_be_read_is_named(place: str, request: pytest.FixtureRequest):
    above = Path(tempfile.mkdtemp(prefix="folder_"))  # pytest's own folders are closed to other users
    request.addfinalizer(lambda: shutil.rmtree(above))
    root = make_folder(above / "letters", {"a": 12, "b": 5})
    with without_rights(above):
        (root / place).chmod(0)
        refused(root, rf"{root / place}: Permission denied; ask its owner")
        (root / place).chmod(0o755)


def test_a_folder_that_changes_while_it_is_read_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch):
    def removes(path: Path, *rest):
        if path.name == "13.png":
            path.unlink()
        return read_picture(path, *rest)

    def adds(path: Path, *rest):
        shutil.copy(path, root / "c" / "later.png")
        return read_picture(path, *rest)

    for interference, named in ((adds, "c/later.png"), (removes, "b/13.png")):
        monkeypatch.setattr(folder_module, "read_picture", interference)
        refused(root, rf"letters changed while it was read \({named}\): try again when nothing writes to it")


def test_outputs_that_cannot_be_written_are_named(root: Path):
    (root.parent / "out").write_text("a file")
    with pytest.raises(RequestError, match=r"out.*; or choose another folder with --output-root"):
        data.load(config_of(root), ONE)


@pytest.mark.parametrize("inside", ["letters", "letters/out", "."])
def test_outputs_in_the_folder_are_refused_before_they_become_classes(inside: str, root: Path):
    config = replace(config_of(root), output_root=root.parent / inside)
    images = root if "letters" in inside else make_folder(root.parent / "data", {"a": 3, "b": 3})
    with pytest.raises(RequestError, match="move its classes into a folder of their own"):
        dataset(replace(config, data_root=images)).prepare(download=False)
    assert sorted(file.name for file in images.iterdir()) == ["a", "b", "c"][: 3 if images == root else 2]
