"""The embedded data set: the same from a seed, balanced, whole or not there, and like EMNIST."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import EMNIST

from ddpm.data import emnist, glyph_drawing, glyphs, idx
from ddpm.run.errors import RequestError
from ddpm.run.paths import PROJECT_ROOT

REAL = PROJECT_ROOT.parent / "shared" / "emnist"
FEW = {"train_per_class": 6, "test_per_class": 3}


def note_of(root: Path) -> Path:
    return root / "EMNIST" / "raw" / "glyphs.json"


def contents(root: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (root / "EMNIST" / "raw").iterdir()}


def ages(root: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in (root / "EMNIST" / "raw").iterdir()}


@pytest.fixture(scope="module", autouse=True)
def glyphs_prepared_once() -> Iterator[None]:
    """Most of the time of a small set goes into the glyphs, which are the same for all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glyph_drawing, "masters", cache(glyph_drawing.masters))
        yield


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set, drawn once; not to be changed."""
    root = tmp_path_factory.mktemp("drawn")
    glyphs.ensure_glyphs(root, seed=0, **FEW)
    return root


@pytest.fixture(scope="module")
def many() -> np.ndarray:
    """40 upright pictures a class, as fractions of full ink."""
    return glyphs.draw({"train": 40}, seed=0)["train"] / 255


def test_a_seed_gives_the_same_bytes_and_another_gives_others(drawn: Path, tmp_path: Path) -> None:
    glyphs.ensure_glyphs(tmp_path, seed=0, **FEW)
    assert contents(tmp_path) == contents(drawn)
    glyphs.ensure_glyphs(tmp_path, seed=1, **FEW)
    for split in ("train", "test"):
        images, labels = (file.name for file in emnist.emnist(drawn).files(split))
        assert contents(tmp_path)[images] != contents(drawn)[images]
        assert contents(tmp_path)[labels] == contents(drawn)[labels]


def test_a_larger_test_split_leaves_the_training_split_as_it_is(drawn: Path) -> None:
    stored = idx.read_idx(emnist.emnist(drawn).files("train")[0], 3).transpose(0, 2, 1)
    np.testing.assert_array_equal(glyphs.draw({"train": 6, "test": 5}, seed=0)["train"], stored)


@pytest.mark.parametrize(("split", "count"), [("train", 6), ("test", 3)])
def test_every_class_is_there_as_often(drawn: Path, split: str, count: int) -> None:
    images, labels = emnist.emnist(drawn).files(split)
    assert idx.read_idx(images, 3).shape == (47 * count, 28, 28)
    assert np.bincount(idx.read_idx(labels, 1), minlength=47).tolist() == [count] * 47
    assert sorted(idx.read_idx(labels, 1)[:47]) == list(range(47)), "any prefix is balanced"


def test_no_picture_stands_twice(drawn: Path) -> None:
    pictures = [
        picture.tobytes()
        for split in ("train", "test")
        for picture in idx.read_idx(emnist.emnist(drawn).files(split)[0], 3)
    ]
    assert len(set(pictures)) == len(pictures) == 47 * 9


def test_torchvision_reads_it_and_its_pictures_stand_upright_when_transposed(drawn: Path) -> None:
    read = EMNIST(str(drawn), split="balanced", train=True)
    upright = read.data.transpose(1, 2).numpy()
    np.testing.assert_array_equal(upright, glyphs.draw({"train": 6}, seed=0)["train"])
    bars = upright[(read.targets == read.classes.index("T")).numpy()].mean(0)
    assert bars[:10].sum(1).max() > 1.5 * bars[16:].sum(1).max(), "the bar of a T is on top"
    assert bars[16:, 10:18].sum() > 3 * bars[16:, :6].sum(), "its stem is in the middle"


def test_both_cases_of_merged_classes_are_drawn() -> None:
    upper_and_lower, alone = glyph_drawing.masters("M"), glyph_drawing.masters("A")
    assert len(upper_and_lower.sizes) > len(glyph_drawing.FONTS) >= len(alone.sizes)
    assert upper_and_lower.sizes.min() < 0.75 * upper_and_lower.sizes.max()


@pytest.mark.parametrize("character", "ij")
def test_thinning_keeps_the_dots(character: str) -> None:
    for font, without in glyph_drawing.FONTS.items():
        if character not in without:
            rows = glyph_drawing.thin(glyph_drawing.render_glyph(font, character)[0][None])[0].any(1)
            gaps = np.diff(np.flatnonzero(rows))
            assert gaps.max() > 3, f"{font}: {character} lost its dot"


def test_thinning_leaves_lines_one_pixel_wide() -> None:
    ink = np.zeros((1, 24, 40), bool)
    ink[0, 8:15, 4:36] = True
    line = glyph_drawing.thin(ink)[0]
    assert line[:, 10:30].sum(0).tolist() == [1] * 20
    assert np.flatnonzero(line.any(1)).mean() == pytest.approx(11, abs=1)


def test_distances_are_exact() -> None:
    ink = np.zeros((1, 64, 64), bool)
    ink[0, [10, 40], [20, 33]] = True
    y, x = np.mgrid[:64, :64]
    true = np.minimum(np.hypot(y - 10, x - 20), np.hypot(y - 40, x - 33))
    near = true <= (glyph_drawing.FIELD - glyph_drawing.GLYPH) / 2
    np.testing.assert_allclose(glyph_drawing.distances(ink)[0][near], true[near], rtol=1e-6)


def test_it_has_the_statistics_of_emnist(many: np.ndarray) -> None:
    """EMNIST Balanced: mean 0.1752, standard deviation 0.333, ink centred with an empty rim."""
    assert many.mean() == pytest.approx(0.1752, abs=0.008)
    assert many.std() == pytest.approx(0.3333, abs=0.008)
    assert (many.max((1, 2)) == 1).all()
    assert (many[:, [0, 27]].mean(), many[:, :, [0, 27]].mean()) == pytest.approx((0, 0), abs=0.002)
    ink = many > 0.5
    rows, columns = ink.any(2), ink.any(1)
    sides = np.maximum(*(28 - line.argmax(1) - line[:, ::-1].argmax(1) for line in (rows, columns)))
    assert sides.mean() == pytest.approx(22.2, abs=0.6)
    for line in (rows, columns):
        assert (line.argmax(1) - line[:, ::-1].argmax(1)).mean() == pytest.approx(0, abs=0.2), "centred"


@pytest.mark.skipif(not REAL.is_dir(), reason="needs real EMNIST in ../shared/emnist")
def test_it_looks_like_emnist(many: np.ndarray) -> None:
    images, labels = (
        idx.read_idx(file, size) for file, size in zip(emnist.emnist(REAL).files("test"), (3, 1), strict=True)
    )
    real = images.transpose(0, 2, 1) / 255
    assert np.corrcoef(real.mean(0).ravel(), many.mean(0).ravel())[0, 1] > 0.95, "where the ink is"
    grey = [((pictures > 0.1) & (pictures < 0.9)).mean() for pictures in (real, many)]
    assert grey[1] == pytest.approx(grey[0], rel=0.15), "how soft its edges are"
    shapes = many.reshape(-1, 47, 28, 28)
    real_classes = np.stack([real[labels == label].mean(0) for label in range(47)]).reshape(47, -1)
    similar = np.corrcoef(real_classes - real_classes.mean(0), shapes.mean(0).reshape(47, -1) - many.mean(0).ravel())
    assert (similar[:47, 47:].argmax(1) == np.arange(47)).mean() > 0.6, "the mean of most classes is nearest to its own"
    spread = [np.mean([real[labels == label].std(0).mean() for label in range(47)]), shapes.std(0).mean()]
    assert spread[1] == pytest.approx(spread[0], rel=0.1), "how much hands differ"


def test_a_whole_set_is_not_drawn_again(drawn: Path) -> None:
    before = ages(drawn)
    glyphs.ensure_glyphs(drawn, seed=0, **FEW)
    assert ages(drawn) == before


@pytest.mark.parametrize("key", ["version", "seed", "train_per_class", "test_per_class"])
def test_other_parameters_are_drawn_anew(drawn: Path, key: str) -> None:
    glyphs.ensure_glyphs(drawn, seed=0, **FEW)
    wanted = json.loads(note_of(drawn).read_text())
    assert glyphs.is_whole(drawn, note_of(drawn), wanted)
    assert not glyphs.is_whole(drawn, note_of(drawn), wanted | {key: wanted[key] + 1})


def test_a_set_whose_drawing_was_killed_is_drawn_again(drawn: Path, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-m", "ddpm.data.glyphs", "--root", tmp_path], cwd=PROJECT_ROOT)
    try:
        deadline = time.monotonic() + 30
        while not note_of(tmp_path).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert json.loads(note_of(tmp_path).read_text())["whole"] is False
    glyphs.ensure_glyphs(tmp_path, seed=0, **FEW)
    assert contents(tmp_path) == contents(drawn)


def test_a_set_that_stopped_between_two_files_is_drawn_again(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    glyphs.ensure_glyphs(tmp_path, seed=1, **FEW)  # an older set, of which files remain

    def write_then_fail(path: Path, array: np.ndarray) -> None:
        idx.write_idx(path, array)
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(glyphs, "write_idx", write_then_fail)
        with pytest.raises(OSError, match="No space"):
            glyphs.ensure_glyphs(tmp_path, seed=0, **FEW)
    for seed in (1, 0):
        wanted = json.loads(note_of(drawn).read_text()) | {"seed": seed}
        assert not glyphs.is_whole(tmp_path, note_of(tmp_path), wanted)
    glyphs.ensure_glyphs(tmp_path, seed=0, **FEW)
    assert contents(tmp_path) == contents(drawn)


def test_damaged_files_are_drawn_again(drawn: Path, tmp_path: Path) -> None:
    glyphs.ensure_glyphs(tmp_path, seed=0, **FEW)
    images, _ = emnist.emnist(tmp_path).files("test")
    os.truncate(images, 1000)
    glyphs.ensure_glyphs(tmp_path, seed=0, **FEW)
    assert contents(tmp_path) == contents(drawn)


def test_emnist_itself_is_never_overwritten(tmp_path: Path) -> None:
    images, _ = emnist.emnist(tmp_path).files("train")
    images.parent.mkdir(parents=True)
    images.write_bytes(b"someone's data")
    with pytest.raises(RequestError, match=f"{images} was not drawn .* folder of their own"):
        glyphs.ensure_glyphs(tmp_path, **FEW)
    assert contents(tmp_path) == {images.name: b"someone's data"}


@pytest.mark.slow
def test_the_command_draws_the_default_set_in_time_and_a_contact_sheet(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    begin = time.monotonic()
    command = [
        sys.executable,
        "-m",
        "ddpm.data.glyphs",
        "--root",
        tmp_path / "data",
        "--seed",
        "0",
        "--sheet",
        sheet,
    ]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    assert time.monotonic() - begin < 20
    assert str(sheet) in done.stdout
    assert Image.open(sheet).size == (47 * 28, 16 * 28)
    shapes = [idx.read_idx(emnist.emnist(tmp_path / "data").files(split)[0], 3).shape[0] for split in ("train", "test")]
    assert shapes == [18_800, 3_760]


def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "ddpm.data.glyphs", "--root", tmp_path / "file"]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
