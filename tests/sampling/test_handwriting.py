"""Handwriting: letters stand where a hand would put them; strips and animations show the steps they say."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image, ImageSequence

from ddpm.sampling.animation import COLOURS, denoising_strip, even_steps, gif, mp4
from ddpm.sampling.handwriting import CAPITAL, Page, Place, lay_out, repeated, wrap, write

SIDE = 28


def bar(left: int, right: int, top: int = 4, bottom: int = 24) -> np.ndarray:
    """A filled rectangle, as EMNIST scales its characters: as high as the picture but for a margin."""
    picture = np.zeros((SIDE, SIDE), np.uint8)
    picture[top:bottom, left:right] = 255
    return picture


def ink(page: Page, place: Place, picture: np.ndarray) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a character's ink on the page."""
    rows, columns = np.flatnonzero(picture.any(1)), np.flatnonzero(picture.any(0))
    scale = place.side / SIDE
    return (
        place.left + columns[0] * scale, place.top + rows[0] * scale,
        place.left + (columns[-1] + 1) * scale, place.top + (rows[-1] + 1) * scale,
    )  # fmt: skip


def inks(text: str, pictures: list[np.ndarray]) -> tuple[Page, list[tuple[float, float, float, float]]]:
    page = lay_out([text], np.stack(pictures))
    return page, [ink(page, *pair) for pair in zip(page.places, pictures, strict=True)]


def test_a_text_is_wrapped_between_words_and_where_it_says():
    assert wrap("the quick brown\nfox", 10) == ["the quick", "brown", "fox"]
    assert wrap("abcdefgh", 5) == ["abcde", "fgh"]
    assert wrap("a\n\nb", 5) == ["a", "", "b"]


def test_small_letters_are_low_and_some_hang_below_the_line():
    """All four pictures are alike, as EMNIST makes them: only the text says how large each is."""
    page, (capital, low, hanging, tall) = inks("Aepb", [bar(10, 16)] * 4)
    (baseline,) = page.baselines
    assert [round(each[3]) for each in (capital, low, tall)] == pytest.approx([baseline] * 3, abs=1)
    assert baseline - capital[1] == pytest.approx(CAPITAL, abs=2)
    assert baseline - low[1] < 0.75 * CAPITAL < baseline - tall[1]
    assert hanging[3] > baseline + 0.2 * CAPITAL
    assert hanging[1] == pytest.approx(low[1], abs=2)


def test_the_side_bearings_of_the_pictures_do_not_matter():
    _, wide = inks("111", [bar(2, 6), bar(12, 16), bar(22, 26)])
    gaps = [second[0] - first[2] for first, second in itertools.pairwise(wide)]
    assert gaps == pytest.approx([gaps[0]] * 2, abs=2)
    assert 0 < gaps[0] < 0.3 * CAPITAL


def test_letters_move_together_where_their_outlines_allow():
    """A low stroke after a T-shaped letter goes under its bar, but no further than a little."""
    tee = np.maximum(bar(4, 24, 4, 7), bar(12, 16))
    low = bar(8, 20, 14, 24)
    _, (_, tucked) = inks("Tn", [tee, low])
    _, (_, kept_off) = inks("In", [bar(4, 24), low])
    assert 0.1 * CAPITAL < kept_off[0] - tucked[0] < 0.45 * CAPITAL


def test_a_space_is_a_gap():
    _, close = inks("11", [bar(12, 16)] * 2)
    _, apart = inks("1 1", [bar(12, 16)] * 2)
    assert apart[1][0] - close[1][0] > 0.3 * CAPITAL


def test_a_speck_far_from_a_small_character_is_not_in_the_way():
    """As of an image folder whose characters do not fill their pictures, and of a picture with nearly nothing in it."""
    far, nothing = (np.zeros((96, 96), np.uint8) for _ in range(2))
    far[70:90, 40:60] = far[0:2, 90:92] = 255
    nothing[50, 50] = 255
    placed = lay_out(["11"], np.stack([far, nothing])).places
    assert all(0 < place.side <= 8 * CAPITAL for place in placed)
    assert placed[0].side == pytest.approx(96 / 20 * CAPITAL, rel=0.1)


def test_a_speck_does_not_change_the_size_of_a_letter():
    speckled = bar(10, 16)
    speckled[1, 26] = 255
    clean, dirty = (lay_out(["1"], picture[None]).places[0].side for picture in (bar(10, 16), speckled))
    assert clean == dirty


def test_an_empty_picture_takes_a_place_too():
    page = lay_out(["a b"], np.zeros((2, SIDE, SIDE), np.uint8))
    assert len(page.places) == 2
    assert page.places[0].left < page.places[1].left


@pytest.mark.parametrize(("style", "darker"), [("paper", True), ("night", False)])
def test_ink_is_where_the_letters_are(style: str, darker: bool):
    picture = bar(10, 16)
    page = lay_out(["1"], picture[None])
    left, top, right, bottom = (round(each) for each in ink(page, page.places[0], picture))
    sheet = np.asarray(write(page, picture[None], style).convert("L")).astype(int)
    inside, outside = sheet[top + 9 : bottom - 9, left + 9 : right - 9], sheet[top:bottom, right + 15 : right + 60]
    assert (inside.max() < outside.min()) if darker else (inside.min() > outside.max())


def test_a_page_is_repeated_line_by_line():
    """Three times the same: each as far below the one before."""
    page = repeated(lay_out(["ab"], np.stack([bar(10, 16)] * 2)), 3)
    tops = [place.top for place in page.places]
    assert tops[2] - tops[0] == tops[4] - tops[2] == page.baselines[1] - page.baselines[0]


@pytest.mark.parametrize(("steps", "most"), [(20, 9), (50, 9), (600, 40), (47, 9), (3, 9), (1, 6)])
def test_steps_are_even_and_have_both_ends(steps: int, most: int):
    chosen = even_steps(steps, most)
    assert chosen[0] == 0
    assert chosen[-1] == steps
    assert len(chosen) <= most
    assert np.diff(chosen).max() - np.diff(chosen).min() <= 1
    assert np.diff(chosen).min() > 0


def test_a_strip_has_a_row_for_each_character_and_a_column_for_each_step():
    pictures = {step: np.stack([np.full((SIDE, SIDE), 90 + 10 * row + step, np.uint8) for row in range(3)])
                for step in (0, 5, 9)}  # fmt: skip
    sheet = np.asarray(denoising_strip(pictures, "ABC", "title", "caption").convert("L"))
    for row in range(3):
        found = [np.argwhere(sheet == 90 + 10 * row + step) for step in (0, 5, 9)]
        assert [len(each) >= SIDE * SIDE for each in found] == [True] * 3
        places = [np.median(each[:, 1]) for each in found]
        assert places == sorted(places)


def frames() -> list[Image.Image]:
    """Six frames of noise that fades to a dark square; odd sizes, which H.264 does not have."""
    noise = np.random.default_rng(0).integers(0, 256, (61, 81)).astype(float)
    end = np.full((61, 81), 240.0)
    end[20:40, 30:50] = 10
    return [Image.fromarray((noise * (1 - t) + end * t).astype(np.uint8)).convert("RGB") for t in np.linspace(0, 1, 6)]


def test_a_gif_holds_its_last_frame_and_repeats():
    film = Image.open(io.BytesIO(gif(frames())))
    times = [frame.info["duration"] for frame in ImageSequence.Iterator(film)]
    assert len(times) == 6
    assert times[-1] > 5 * times[0]
    assert film.info["loop"] == 0
    shown = np.asarray(film.convert("RGB")).astype(int)
    assert np.abs(shown - np.asarray(frames()[-1]).astype(int)).mean() < 256 / COLOURS


def test_an_mp4_plays_to_the_end(tmp_path):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    (tmp_path / "film.mp4").write_bytes(mp4(frames()))
    film = imageio_ffmpeg.read_frames(tmp_path / "film.mp4")
    about = next(film)
    *_, last = film
    shown = np.frombuffer(last, np.uint8).reshape(60, 80, 3).astype(int)
    assert about["size"] == (80, 60)
    assert 2 < about["duration"] < 4
    assert np.abs(shown - np.asarray(frames()[-1])[:60, :80].astype(int)).mean() < 12
