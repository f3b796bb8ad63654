"""`--data folder`: what is made of a folder of images, and what is kept of it."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ddpm.data import folder as folder_module
from ddpm.data.contact_sheet import draw_sheet, part_words
from ddpm.data.pictures import read_picture
from ddpm.run.arguments import parse_args
from ddpm.run.config import preset
from ddpm.run.datasets import data_words, is_published_name, published_name
from ddpm.run.errors import RequestError
from tests.conftest import replace
from tests.support.folders import FORMATS, SIDE, folder_set, kept, letters, make_folder, prepared, stroke


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return letters(tmp_path)


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
    difference = read_picture(path, SIDE).pixels.astype(int) - np.asarray(stroke(3))
    assert np.abs(difference).max() <= (3 if ending == "jpg" else 0)


def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path):
    path = tmp_path / "moving.gif"
    stroke(3).save(path, save_all=True, append_images=[stroke(5), stroke(6)])
    assert np.array_equal(read_picture(path, SIDE).pixels, np.asarray(stroke(3)))


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
            assert np.array_equal(read_picture(path, SIDE).pixels, np.asarray(picture)), (value, ending)
            picture.crop((0, 0, SIDE, 20)).transpose(undone).save(path, exif=noted, **FORMATS[ending])
            assert read_picture(path, SIDE).size == (SIDE, 20), "as a person sees it"


@pytest.mark.parametrize("ending", ["jpg", "tiff"])
def test_sizes_are_those_before_the_picture_was_reduced(ending: str, tmp_path: Path):
    noted = Image.Exif()
    noted[0x0112] = 6
    Image.new("L", (600, 400)).save(tmp_path / f"a.{ending}", exif=noted)
    assert read_picture(tmp_path / f"a.{ending}", SIDE).size == (400, 600)


def test_every_kind_of_pixels_that_a_file_may_hold_is_read(tmp_path: Path):
    """TIFF files in LAB were called damaged, and so was gray that is multiplied with its alpha."""
    gray = stroke(3).point(lambda level: 255 * (level > 100))
    zero = Image.new("L", gray.size)
    pictures = {mode: gray.convert(mode) for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK")}
    pictures |= {"YCbCr": gray.convert("RGB").convert("YCbCr"), "LAB": Image.merge("LAB", (gray, zero, zero))}
    pictures["La"] = pictures["LA"]
    for mode, picture in pictures.items():
        path = tmp_path / f"{mode}.tiff"
        picture.save(path)
        if mode == "La":  # which Pillow reads, but does not write: tag 338, ExtraSamples, is 1 instead of 2
            of_kind = [struct.pack("<HHIHH", 338, 3, 1, kind, 0) for kind in (2, 1)]
            path.write_bytes(path.read_bytes().replace(*of_kind))
        with Image.open(path) as stored:
            assert stored.mode == mode, "the file is of the kind that is tested"
        difference = read_picture(path, SIDE).pixels - np.asarray(gray).astype(int)
        assert np.abs(difference).max() <= 2, mode


def test_a_picture_is_padded_to_a_square_with_its_background_not_stretched(tmp_path: Path):
    image = Image.new("L", (40, 20), 30)
    ImageDraw.Draw(image).rectangle((10, 5, 29, 14), fill=230)
    image.save(tmp_path / "wide.png")
    pixels = read_picture(tmp_path / "wide.png", 40).pixels
    assert np.array_equal(pixels[10:30], np.asarray(image))
    assert (pixels[:10] == 30).all()
    assert (pixels[30:] == 30).all()


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (1, 1)])
def test_extreme_shapes_take_little_memory(size: tuple[int, int], tmp_path: Path):
    Image.new("L", size, 200).save(tmp_path / "long.png")
    assert read_picture(tmp_path / "long.png", SIDE).pixels.shape == (SIDE, SIDE)


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


@pytest.mark.parametrize("ink", [0, 255])
@pytest.mark.parametrize("invert", ["auto", "yes", "no"])
def test_ink_on_transparent_ground_is_seen_whatever_is_inverted(invert: str, ink: int, root: Path):
    """Black ink on nothing was black on black with `--invert no`, white ink white on white with `yes`."""
    for number, path in enumerate(sorted(root.glob("*/*"))):
        picture = Image.new("LA", (SIDE, SIDE), (ink, 0))
        picture.paste((ink, 255), (8, 8, 20, 9 + number % 12))
        path.unlink()
        picture.save(path.with_suffix(".png"))
    pixels = prepared(root, invert=invert).read("train")[0]
    assert all({int(image.min()), int(image.max())} == {0, 255} for image in pixels)


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


@pytest.mark.parametrize("names", [("日", "本"), ("a road sign of the kind 1", "a road sign of the kind 2")])
def test_names_can_be_told_apart_in_the_contact_sheet(names: tuple[str, str]):
    sheet = np.asarray(draw_sheet(names, np.zeros((2, SIDE, SIDE), np.uint8), np.arange(2)))
    first, second = sheet[4:60], sheet[64:120]
    assert not np.array_equal(first, second), "letters that the typeface lacks, or the same first letters"


def test_a_contact_sheet_of_many_classes_shows_some_of_all_and_says_so():
    """It showed the first hundred, as if there were no others."""
    names = [f"{number}" for number in range(250)]
    pixels = np.arange(250, dtype=np.uint8)[:, None, None].repeat(SIDE, 1).repeat(SIDE, 2)
    sheet = np.asarray(draw_sheet(names, pixels, np.arange(250)))
    shown = [label for label in range(250) if (sheet[:, -12 * 60 : -11 * 60 - 4] == label).all(axis=1).sum() >= 56]
    assert len(set(shown) - {40}) >= 99 and {0, 249} <= set(shown), "40 is the paper"
    assert (sheet[:28] > 150).any(), "a line of text at the top"
    assert not (np.asarray(draw_sheet(names[:100], pixels[:100], np.arange(100)))[:4] > 150).any()
    assert (part_words(250), part_words(100)) == ("100 of 250 classes", "")


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
