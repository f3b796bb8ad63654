"""`--data folder`: what is made of a folder of images, and what is said of one that cannot be used."""

from __future__ import annotations

import io
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from rich.console import Console

from ddpm.data import folder as folder_module
from ddpm.data.contact_sheet import draw_sheet
from ddpm.data.folder import FolderSet
from ddpm.data.pictures import read_picture
from ddpm.data.sets import dataset
from ddpm.evaluation.config import EvaluateConfig
from ddpm.evaluation.evaluator import Evaluator
from ddpm.run.arguments import parse_args
from ddpm.run.config import TrainConfig, preset
from ddpm.run.datasets import data_words, is_published_name, published_name
from ddpm.run.errors import RequestError
from ddpm.run.files import read_json
from ddpm.run.paths import RunPaths
from ddpm.training import data
from ddpm.training.distributed import connect
from metrics.health.checker import main as health
from tests.conftest import ONE, SMALL, replace
from tests.damage import without_rights
from tests.processes import in_processes
from tests.runs import assert_same_run, paths_of, rows, run, start

SIDE = 28
FORMATS = {
    "png": {}, "jpg": {"quality": 100}, "tiff": {}, "bmp": {}, "gif": {}, "webp": {"lossless": True},
}  # fmt: skip


def stroke(number: int, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    """A white stroke on black, different for each number."""
    image = Image.new("L", size)
    middle = number % 7 + 8
    ImageDraw.Draw(image).line(
        [(8, middle), (19, 22 - number % 5), (12 + number % 3, 9)], fill=255 - number % 40, width=3
    )
    return image


def make_folder(root: Path, classes: dict[str, int], start: int = 0) -> Path:
    """A folder with PNG files: class → number of images, all of them different."""
    number = start
    for name, count in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for _ in range(count):
            image = stroke(number)
            image.putpixel((number % 5 + 5, number // 5 % 15 + 5), number % 200 + 50)
            image.save(root / name / f"{number}.png")
            number += 1
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "letters", {"a": 12, "b": 5, "c": 2})


def config_of(root: Path, **changes) -> TrainConfig:
    """Settings of a run of seconds on the folder `root`."""
    return preset("tiny", **SMALL, data="folder", data_root=root, output_root=root.parent / "out", **changes)


def folder_set(root: Path, **changes) -> FolderSet:
    return dataset(config_of(root, **changes))


def prepared(root: Path, **changes) -> FolderSet:
    """The folder's images, after a first start has read them."""
    folder_set(root, **changes).prepare(download=False)
    return folder_set(root, **changes)


def kept(root: Path) -> list[str]:
    """The names of the files beside the outputs."""
    return sorted(str(path.relative_to(root.parent / "out")) for path in (root.parent / "out").rglob("*"))


# ---- what is made of it ----------------------------------------------------------------------------------------------


def test_classes_and_images_are_those_of_the_subfolders(root: Path):
    source = prepared(root)
    assert source.class_names == ("a", "b", "c")
    (train, train_labels), (test, test_labels) = source.read("train"), source.read("test")
    assert (train.dtype, train.shape[1:], train_labels.dtype) == (np.uint8, (SIDE, SIDE), np.int64)
    assert (np.bincount(train_labels) + np.bincount(test_labels)).tolist() == [12, 5, 2]
    assert np.bincount(test_labels).tolist() == [2, 1, 1], "every tenth, and one at least"
    expected = {np.asarray(Image.open(file)).tobytes(): file.parent.name for file in root.rglob("*.png")}
    assert len(expected) == 19
    for pixels, labels in ((train, train_labels), (test, test_labels)):
        assert [expected.pop(image.tobytes()) for image in pixels] == [source.class_names[label] for label in labels]
    assert expected == {}


def test_the_test_split_follows_from_the_contents_alone(root: Path, tmp_path: Path):
    renamed = tmp_path / "renamed"
    for number, file in enumerate(sorted(root.rglob("*.png"), reverse=True)):
        target = renamed / file.parent.name / f"other name {number}.PNG"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
        os.utime(target, (1e9 + number, 1e9 + number))
    ours, theirs = ({image.tobytes() for image in prepared(place).read("test")[0]} for place in (root, renamed))
    assert ours == theirs


def test_copies_of_an_image_are_in_one_split(root: Path):
    for number in range(9):
        shutil.copy(root / "c" / "17.png", root / "c" / f"copy {number}.png")
    source = prepared(root)
    train, test = ({image.tobytes() for image in source.read(split)[0]} for split in ("train", "test"))
    assert not train & test
    assert not any(remark.startswith("warning") for remark in source.remarks())


def test_two_splits_are_taken_as_they_are_given(tmp_path: Path):
    root = tmp_path / "given"
    make_folder(root / "train", {"a": 3, "b": 4})
    make_folder(root / "test", {"a": 2, "b": 1}, start=50)
    make_folder(root / "valid", {"a": 1}, start=70)
    shutil.copy(root / "train" / "a" / "0.png", root / "test" / "b")
    source = prepared(root)
    assert [np.bincount(source.read(split)[1]).tolist() for split in ("train", "test")] == [[3, 4], [2, 2]]
    remarks = "\n".join(source.remarks())
    assert "test split: train/ and test/" in remarks
    assert "folders beside train/ and test/: 1" in remarks
    assert "warning: 1 test image can be found among the training images too" in remarks


def test_classes_called_train_and_test_are_classes(tmp_path: Path):
    root = make_folder(tmp_path / "vehicles", {"train": 2, "test": 3, "bus": 2})
    assert folder_set(root).class_names == ("bus", "test", "train")


def test_classes_are_in_natural_order_whatever_the_locale(tmp_path: Path):
    names = ["10", "9", "01", "1", "b2", "b10", "b", "B", "a", "é", "Z", "漢", "b 3"]
    root = make_folder(tmp_path / "many", dict.fromkeys(names, 2))
    expected = ("01", "1", "9", "10", "B", "Z", "a", "b", "b2", "b10", "b 3", "é", "漢")
    assert folder_set(root).class_names == expected


def test_names_of_any_kind_are_accepted(tmp_path: Path):
    names = [
        "<script>alert(1)<",
        "a|b",
        "`c`",
        "d.e",
        ".. f",
        "A",
        "a",
        "ñ",
        "  g  h ",
        "$(i)",
        "%s",
        "{j}",
        "*",
        "[k]",
    ]
    root = make_folder(tmp_path / "odd", {name: 2 for name in names if not name.startswith(".")})
    found = prepared(root).class_names
    assert set(found) == {" ".join(name.split()) for name in names if not name.startswith(".")}


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_gives_the_same_picture(ending: str, tmp_path: Path):
    path = tmp_path / f"picture.{ending}"
    stroke(3).save(path, **FORMATS[ending])
    difference = read_picture(path, SIDE, "auto").pixels.astype(int) - np.asarray(stroke(3))
    assert np.abs(difference).max() <= (3 if ending == "jpg" else 0)


def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path):
    path = tmp_path / "moving.gif"
    stroke(3).save(path, save_all=True, append_images=[stroke(5), stroke(6)])
    assert np.array_equal(read_picture(path, SIDE, "auto").pixels, np.asarray(stroke(3)))


def test_the_orientation_that_a_camera_noted_is_applied(tmp_path: Path):
    picture = stroke(3)
    for value, undone in (
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (4, Image.Transpose.FLIP_TOP_BOTTOM),
        (5, Image.Transpose.TRANSPOSE),
        (6, Image.Transpose.ROTATE_90),
        (7, Image.Transpose.TRANSVERSE),
        (8, Image.Transpose.ROTATE_270),
    ):
        noted = Image.Exif()
        noted[0x0112] = value
        for ending in ("png", "tiff", "webp"):
            path = tmp_path / f"{value}.{ending}"
            picture.transpose(undone).save(path, exif=noted, **FORMATS[ending])
            assert np.array_equal(read_picture(path, SIDE, "auto").pixels, np.asarray(picture)), (value, ending)


def test_a_picture_is_padded_to_a_square_with_its_background_not_stretched(tmp_path: Path):
    image = Image.new("L", (40, 20), 30)
    ImageDraw.Draw(image).rectangle((10, 5, 29, 14), fill=230)
    image.save(tmp_path / "wide.png")
    pixels = read_picture(tmp_path / "wide.png", 40, "no").pixels
    assert np.array_equal(pixels[10:30], np.asarray(image))
    assert (pixels[:10] == 30).all()
    assert (pixels[30:] == 30).all()


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (1, 1)])
def test_extreme_shapes_take_little_memory(size: tuple[int, int], tmp_path: Path):
    Image.new("L", size, 200).save(tmp_path / "long.png")
    assert read_picture(tmp_path / "long.png", SIDE, "auto").pixels.shape == (SIDE, SIDE)


@pytest.mark.parametrize("ink", [0, 255])
def test_ink_on_a_transparent_ground_stays_visible(ink: int, tmp_path: Path):
    image = Image.new("RGBA", (SIDE, SIDE), (128, 128, 128, 0))
    image.paste((ink, ink, ink, 255), mask=stroke(3).point(lambda level: 255 * (level > 100)))
    image.save(tmp_path / "clear.png")
    make = make_folder(tmp_path / "clear", {"a": 2, "b": 2})
    shutil.move(tmp_path / "clear.png", make / "a" / "clear.png")
    source = prepared(make)
    pixels = np.concatenate([source.read(split)[0] for split in ("train", "test")])
    expected = np.where(np.asarray(stroke(3)) > 100, 255, 0)
    assert any(np.array_equal(image, expected) for image in pixels)


def on_paper(root: Path, level: int, ink: int) -> None:
    """Draw every image of the folder again, with `ink` on a ground of `level`."""
    for file in root.rglob("*.png"):
        strength = np.asarray(Image.open(file)) / 255
        Image.fromarray((level + (ink - level) * strength).round().astype(np.uint8)).save(file)


@pytest.mark.parametrize(("level", "ink"), [(255, 0), (200, 20), (40, 230), (0, 255)])
def test_light_backgrounds_are_turned_black(level: int, ink: int, root: Path):
    on_paper(root, level, ink)
    pixels = prepared(root).read("train")[0]
    assert (pixels[:, :4] == 0).all(), "the ground"
    assert pixels.max(axis=(1, 2)).min() > 150, "the ink"
    light = 19 if level > 127 else 0
    assert f"dark in {19 - light}, light in {light}, none found in 0; {light} images inverted" in "\n".join(
        folder_set(root).remarks()
    )


@pytest.mark.parametrize(("invert", "ground"), [("auto", 0), ("yes", 0), ("no", 255)])
def test_invert_decides_where_it_is_given(invert: str, ground: int, root: Path):
    on_paper(root, 255, 0)
    assert (prepared(root, invert=invert).read("train")[0][:, 0] == ground).all()


def test_photographs_without_a_background_are_all_kept_as_they_are(tmp_path: Path):
    root, random = make_folder(tmp_path / "photos", {"a": 2, "b": 2}), np.random.default_rng(0)
    for number in range(12):
        noise = random.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
        Image.fromarray(noise).save(root / "a" / f"noise {number}.png")
    on_white = Image.new("L", (SIDE, SIDE), 255)
    on_white.paste(0, (8, 8, 20, 20))
    for number in range(6):
        on_white.putpixel((10, 10), number)
        on_white.save(root / "b" / f"white {number}.png")
    assert "none found in 12; 6 images inverted" in "\n".join(prepared(root).remarks())


# ---- what is kept ----------------------------------------------------------------------------------------------------


def test_the_images_are_read_once(root: Path, monkeypatch: pytest.MonkeyPatch):
    before = prepared(root).read("train")[0]
    assert [Path(name).suffix for name in kept(root) if "." in name] == [".npz"]
    monkeypatch.setattr(folder_module, "read_picture", None)  # would fail
    assert np.array_equal(prepared(root).read("train")[0], before)


@pytest.mark.parametrize("change", ["touched", "added", "renamed", "resolution", "invert"])
def test_a_change_is_noticed(change: str, root: Path):
    file, asked = prepared(root).file, {}
    match change:
        case "touched":
            os.utime(root / "a" / "0.png", (1, 1))
        case "added":
            shutil.copy(root / "a" / "0.png", root / "b")
        case "renamed":
            (root / "b").rename(root / "d")
        case "resolution":
            asked = {"resolution": 32}
        case "invert":
            asked = {"invert": "no"}
    with pytest.raises(RequestError, match=r"not prepared at .* or have changed since: train\.py prepares them"):
        folder_set(root, **asked).read("train")
    assert prepared(root, **asked).file != file


@pytest.mark.parametrize("damage", [b"", b"text", b"PK\x03\x04 torn"])
def test_a_damaged_file_of_prepared_images_is_made_again(damage: bytes, root: Path):
    source = prepared(root)
    pixels, whole = source.read("train")[0], source.file.read_bytes()
    for content in (damage, whole[: len(whole) // 2], whole[:300] + b"\0\0\0" + whole[303:]):
        source.file.write_bytes(content)
        assert np.array_equal(prepared(root).read("train")[0], pixels)


# ---- folders that cannot be used -------------------------------------------------------------------------------------


def png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


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
    "an image beside the classes of a split": (stray_image, r"train/cover\.png lies beside the classes of its split"),
    "names that look alike": (lambda root: make_folder(root, {"\u00e9": 2, "e\u0301": 2}), r"that both read 'é'"),
    "a name of control characters": (lambda root: make_folder(root, {"a\nb\x1b[1m": 2}), r"cannot be shown: rename it"),
    "a name that is not UTF-8": (unreadable_name, r"cannot be shown: rename it"),
    "a pipe": (lambda root: (shutil.rmtree(root / "b"), (root / "b").mkdir(), os.mkfifo(root / "b" / "x.png")),
               r"class 'b', .* \(other files: 1\)"),
}  # fmt: skip

BROKEN_IMAGES: dict[str, tuple[bytes, str]] = {  # what is wrong → content of a file, what is said
    "zero bytes": (b"", r"is empty \(0 bytes\): replace or remove it"),
    "text": (b"not an image\n", r"is no PNG, JPEG, TIFF, BMP, GIF or WebP picture, or its first bytes are damaged"),
    "truncated": (png(stroke(1))[:-60], r"is truncated or damaged \(.*\): replace or remove it"),
    "garbage": (png(stroke(1))[:60] + bytes(60) + png(stroke(1))[120:], r"is truncated or damaged \(.*\): replace"),
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


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("digits", "folder-digits"), ("my letters (2)", "folder-my-letters-2"), ("Größe.v2", "folder-Größe.v2"),
        ("../..", "folder-images"), ("<b>|`x`", "folder-b-x"), ("漢字", "folder-漢字"), ("☃", "folder-images"),
        ("a\udcff\nb", "folder-a-b"), ("x" * 250, "folder-" + "x" * 80), ("字" * 80, "folder-" + "字" * 26),
    ],
)  # fmt: skip
def test_a_folder_is_called_by_a_name_that_is_safe_in_file_names(folder: str, name: str):
    found = published_name("folder", "", Path("/") / folder)
    assert found == name
    assert is_published_name(found)
    config = preset("tiny", data="folder", data_root=Path("/") / folder)
    replace(config, run_name=config.run)  # raises if no run may be called so
    assert data_words(found) == f"images of {found.removeprefix('folder-')}/"
    assert len(f".{config.run}.before-20200101-000000".encode()) < 255


def test_every_data_set_has_a_name_that_readers_of_runs_accept():
    for flags in ("", "--split letters", "--data kmnist", "--data folder --data-root /x/my images/"):
        words = flags.split(" ", 3)
        assert is_published_name(parse_args(words if flags else []).data_name)
    assert not any(map(is_published_name, ("", "folder-", "folder-../x", "mnist", "folder-a b")))


def test_a_folder_needs_its_place():
    with pytest.raises(RequestError, match="--data folder needs --data-root: the folder that has a subfolder"):
        parse_args(["--data", "folder"])


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path) -> TrainConfig:
    """A run on a folder of three classes."""
    root = make_folder(tmp_path / "my <b>images", {"a|b": 30, "<i>": 14, "`c`": 20})
    return config_of(root, passes_per_epoch=2, lr_schedule="constant")


def test_a_run_on_a_folder_goes_on_where_it_was_stopped(images: TrainConfig, quick_reports, tmp_path: Path):
    whole = replace(images, run_name="whole")
    assert run(whole) == 0
    assert paths_of(whole).sample_grid(whole.data_name, 2).is_file()
    assert rows(whole)["images_seen"].tolist() == [96, 192], "57 training images, twice, in whole batches of 32"
    assert rows(whole)["data"].unique().tolist() == ["folder-my-b-images"]
    used = read_json(paths_of(whole).checkpoints / "latest" / "meta.json")["used"]
    assert used["val_images"] == 7, "all test images: fewer than --val-images, 120"
    halved = replace(images, run_name="halved", max_steps=4)
    assert run(halved) == 0
    assert run(replace(halved, max_steps=None)) == 0
    assert_same_run(whole, replace(halved, max_steps=None))


@pytest.mark.parametrize(
    ("change", "expected"),
    [(lambda root: None, r"invert\s+auto\s+no"), (lambda root: (root / "a|b").rename(root / "a"), r"class names")],
)
def test_a_run_does_not_go_on_with_other_names_or_levels(change, expected, images: TrainConfig, quick_reports, capfd):
    first = replace(images, max_steps=1)
    assert run(first) == 0
    change(images.data_root)
    assert run(replace(first, max_steps=2, invert="no" if "invert" in expected else "auto")) == 2
    message = capfd.readouterr().err
    assert "is of another run" in message
    assert re.search(expected, message)


def test_a_dry_run_shows_what_is_in_the_folder(images: TrainConfig, capsys: pytest.CaptureFixture):
    assert run(replace(images, dry_run=True)) == 0
    output = capsys.readouterr().out
    assert "<i>:12, `c`:18, a|b:27" in output
    assert "images: all 28x28 pixels" in output
    assert "dark in 64, light in 0" in output
    sheet = Path(
        next(line for line in output.splitlines() if line.startswith("contact sheet:")).split(":", 1)[1].strip()
    )
    with Image.open(sheet) as picture:
        assert picture.width > 12 * 56
    assert not (images.output_root / "checkpoints").exists()


@pytest.mark.parametrize("inside", ["letters", "letters/out", "."])
def test_outputs_in_the_folder_are_refused_before_they_become_classes(inside: str, root: Path):
    config = replace(config_of(root), output_root=root.parent / inside)
    images = root if "letters" in inside else make_folder(root.parent / "data", {"a": 3, "b": 3})
    with pytest.raises(RequestError, match="move its classes into a folder of their own"):
        dataset(replace(config, data_root=images)).prepare(download=False)
    assert sorted(file.name for file in images.iterdir()) == ["a", "b", "c"][: 3 if images == root else 2]


@pytest.mark.parametrize("names", [("日", "本"), ("a road sign of the kind 1", "a road sign of the kind 2")])
def test_names_can_be_told_apart_in_the_contact_sheet(names: tuple[str, str]):
    sheet = np.asarray(draw_sheet(names, np.zeros((2, SIDE, SIDE), np.uint8), np.arange(2)))
    first, second = sheet[4:60], sheet[64:120]
    assert not np.array_equal(first, second), "letters that the typeface lacks, or the same first letters"


def test_a_wrong_folder_ends_with_code_2_and_one_line(images: TrainConfig):
    (images.data_root / "a|b" / "bad.png").write_bytes(b"")
    process = start(images)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 2
    assert [line for line in output.splitlines() if "bad.png" in line] == output.splitlines()[-1:]


def digest_on_two_nodes(config: TrainConfig, roots: list[Path]) -> str:
    """The error of a process whose node has its own copy of the folder; "" if there is none."""
    with connect("cpu") as world:
        world = replace(world, local_rank=0)
        type(world).node = property(lambda self: f"node{self.rank}")
        mine = replace(config, data_root=roots[world.rank], output_root=config.output_root / str(world.rank))
        try:
            data.agreed_sha256(data.load(mine, world)[0], world)
        except RequestError as error:
            return str(error)
        return ""


def test_nodes_with_different_folders_are_told(root: Path, tmp_path: Path):
    same, renamed, other = (tmp_path / name / "letters" for name in ("same", "renamed", "other"))
    for copy in (same, renamed, other):
        shutil.copytree(root, copy)
    (renamed / "b").rename(renamed / "bb")
    stroke(40).save(other / "b" / "one more.png")
    config = config_of(root)
    assert in_processes(digest_on_two_nodes, 2, config, [root, same]) == ["", ""]
    for copy in (renamed, other):
        for message in in_processes(digest_on_two_nodes, 2, config, [root, copy]):
            assert "--data-root holds different images on different nodes (node0, node1)" in message


def test_an_epoch_of_a_small_folder_passes_over_it_several_times(root: Path):
    train, _ = data.load(config_of(root), ONE)
    assert data.images_per_epoch(config_of(root), len(train), 3) == pytest.approx(18_800, rel=0.01)
    config = config_of(root, passes_per_epoch=3)
    order = data.epoch_order(train, config, 1)
    assert order.bincount().tolist() == [3] * len(train)
    assert [part.sort().values.tolist() for part in order.split(len(train))] == [list(range(len(train)))] * 3
    balanced = data.epoch_order(train, replace(config, balance="classes"), 1)
    assert len(balanced) == data.images_per_epoch(replace(config, balance="classes"), len(train), 3)
    assert len(set(train[balanced].counts())) == 1


@pytest.mark.slow
def test_ten_thousand_small_images_are_read_in_well_under_a_minute(tmp_path: Path):
    content = [png(stroke(number)) for number in range(100)]
    for label in range(10):
        (tmp_path / "many" / str(label)).mkdir(parents=True)
        for number in range(1000):
            (tmp_path / "many" / str(label) / f"{number}.png").write_bytes(content[number % 100])
    began = time.perf_counter()
    prepared(tmp_path / "many")
    assert time.perf_counter() - began < 30


def test_health_knows_whether_the_folder_is_still_the_one_of_the_run(images: TrainConfig, quick_reports):
    assert run(images) == 0
    moved = RunPaths(images.output_root.rename(images.output_root.with_name("moved")), images.run)

    def page() -> str:
        health([images.run, "--output-root", str(moved.root)])
        return moved.health.read_text().replace("\\", "")

    assert "the files are those that were trained on" in page()
    assert "labels run from 0 to 2, one for each of 3 classes" in page()
    os.utime(images.data_root / "a|b" / "0.png", (1, 1))
    assert re.search(r"could not be read from here.*are not prepared at 28 pixels, or have changed since", page())
    shutil.rmtree(images.data_root)
    assert re.search(r"could not be read from here.*no such folder", page())


def test_an_evaluation_compares_with_the_folder_at_the_resolution_of_the_model(images: TrainConfig, quick_reports):
    config = replace(images, resolution=32, invert="no")
    assert run(config) == 0
    asked = EvaluateConfig(config.run, output_root=config.output_root, device="cpu")
    evaluator = Evaluator(asked, "", Console(quiet=True))
    assert evaluator.data == config.data_name
    assert evaluator.train.pixels.shape[1:] == (32, 32)
    assert evaluator.train.class_names == ("<i>", "`c`", "a|b")
    assert len(list((config.output_root / "data" / "prepared").iterdir())) == 1, "those of the training"
