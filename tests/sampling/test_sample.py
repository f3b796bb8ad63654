"""sample.py: what it draws is what the model draws, and what it is not given it asks for in one line."""

import itertools
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sample
from ddpm.data.emnist import CLASS_NAMES
from ddpm.data.others import CLOTHES
from ddpm.run.config import preset
from ddpm.run.errors import RequestError
from ddpm.run.paths import PROJECT_ROOT
from ddpm.sampling.config import expand
from ddpm.sampling.load import load_model
from ddpm.training import checkpoint
from ddpm.training.checkpoint import Contents
from ddpm.training.diffusion import make_scheduler
from ddpm.training.model import build_unet
from tests.conftest import SMALL


def leave_run(
    root: Path, name: str, data: str = "emnist", step: int = 8, class_names: Sequence[str] = CLASS_NAMES
) -> Path:
    """A run with a checkpoint of an untrained model that samples in two steps; returns the latest checkpoint."""
    config = preset("tiny", **SMALL, output_root=root, run_name=name, data=data)
    unet, row = build_unet(config, len(class_names)), {"epoch": 1, "step": step, "val_loss_ema": 0.5}
    torch.nn.init.normal_(unet.conv_out.weight, std=0.05, generator=torch.Generator().manual_seed(step))
    place = {"step": step, "images_seen": 256, "epoch": 1, "batch": 0, "global_batch": 32, "world_size": 1}
    meta = {"run": name, "data": data, "identity": {}, "settings": config.to_dict(), "progress": place,
            "class_names": list(class_names), "metrics": row, "history": [row]}  # fmt: skip
    contents = Contents({"progress": {}}, {"unet": unet.state_dict()}, unet, make_scheduler(config), meta)
    checkpoint.write(root / "checkpoints" / name, contents)
    return (root / "checkpoints" / name / "latest").resolve()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    leave_run(root, "small")
    return root


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def draw(root: Path, *arguments: str) -> int:
    return sample.main([*arguments, "--output-root", str(root), "--device", "cpu", "--precision", "fp32"])


def raw(path: str | Path) -> np.ndarray:
    return np.load(path)["x"].astype(int)


# ---- what is drawn ---------------------------------------------------------------------------------------------------


def test_the_raw_images_are_the_pipelines(root: Path):
    assert draw(root, "small", "--text", "Hi yo", "--seed", "7", "--npz", "--out", "hi.png") == 0
    pipeline = load_model("small", torch.device("cpu"), root).pipeline
    expected = pipeline("Hi yo", generator=torch.Generator().manual_seed(7), output_type="np").images
    written = np.load("hi.npz")
    assert written["x"].dtype == np.uint8
    assert np.abs(written["x"].astype(int) - expected).max() <= 1
    assert [CLASS_NAMES[label] for label in written["y"]] == list("HIYO")


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
def test_the_seed_alone_decides(root: Path, sampler: str):
    """Not the batch size, nor how the pictures are put together."""
    how = ("small", "--text", "abcde", "--sampler", sampler, "--steps", "3", "--npz")
    draw(root, *how, "--out", "one.png", "--batch-size", "2")
    draw(root, *how, "--out", "two.png")
    draw(root, *how, "--out", "film.gif")
    draw(root, *how, "--out", "other.png", "--seed", "1")
    assert np.abs(raw("one.npz") - raw("two.npz")).max() <= 1
    assert np.abs(raw("film.npz") - raw("two.npz")).max() <= 1
    assert np.abs(raw("other.npz") - raw("two.npz")).mean() > 10


def test_a_sheet_has_all_classes_and_each_as_often_as_asked(root: Path):
    draw(root, "small", "--per-class", "2", "--steps", "1", "--npz", "--out", "all.png")
    assert np.load("all.npz")["y"].tolist() == [label for label in range(47) for _ in range(2)]


def test_both_cases_of_a_letter_and_repeated_ones_are_one_row(root: Path):
    draw(root, "small", "--text", "Cc Aa", "--grid", "--per-class", "1", "--npz", "--out", "sheet.png")
    assert [CLASS_NAMES[label] for label in np.load("sheet.npz")["y"]] == ["C", "A", "a"]


@pytest.mark.parametrize(
    "arguments",
    [("--text", "a b", "--strip"), ("--chars", "ab", "--strip", "2", "0"), ("--text", "a\\nb", "--style", "night")],
)
def test_pictures_of_every_kind_are_whole(root: Path, arguments: tuple[str, ...]):
    assert draw(root, "small", *arguments, "--out", "new/picture.png") == 0
    assert np.asarray(Image.open("new/picture.png").convert("L")).std() > 5


def test_an_animation_begins_with_noise_and_has_every_step(root: Path):
    draw(root, "small", "--chars", "ab", "--animate", "--steps", "4", "--out", "film.gif")
    assert Image.open("film.gif").n_frames == 5


@pytest.mark.parametrize("kind", [("--chars", "ab"), ("--chars", "ab", "--strip"), ("--chars", "ab", "--animate")])
def test_a_picture_names_the_weights_that_drew_it(tmp_path: Path, capsys: pytest.CaptureFixture, kind: tuple[str, ...]):
    """The captions of equal EMA and SWA weights are all that differs; a sheet of SWA weights said "EMA weights"."""
    folder = leave_run(tmp_path, "averaged")
    shutil.copytree(folder / "unet", folder / "unet_swa")
    meta = json.loads((folder / "meta.json").read_text())
    of_swa = {name.replace("unet/", "unet_swa/"): digest for name, digest in meta["files"].items()}
    (folder / "meta.json").write_text(json.dumps({**meta, "files": of_swa | meta["files"]}))
    pictures = {}
    for weights in ("ema", "swa"):
        out = tmp_path / f"{weights}{'.gif' if '--animate' in kind else '.png'}"
        assert draw(tmp_path, "averaged", *kind, "--weights", weights, "--npz", "--out", str(out)) == 0
        assert f"{weights.upper()} weights" in capsys.readouterr().out
        pictures[weights] = np.asarray(Image.open(out).convert("L")).astype(int)
    assert np.array_equal(raw(tmp_path / "ema.npz"), raw(tmp_path / "swa.npz"))
    width = min(picture.shape[1] for picture in pictures.values())  # the captions may differ in length
    rows = np.flatnonzero((pictures["ema"][:, :width] != pictures["swa"][:, :width]).any(1))
    assert len(rows) and rows.min() >= 36 and rows.max() <= 60  # the caption stands there


def test_guidance_in_an_interval_and_by_an_earlier_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """It is what the pipeline draws with them, and said; without the one or the other it is another picture."""
    leave_run(tmp_path, "run", step=4)
    leave_run(tmp_path, "run")
    how = ["--text", "Hi yo", "--steps", "4", "--npz", "--guidance-scale", "3"]
    interval, guide = ["--guidance-interval", "0.3", "0.8"], ["--guide", "run/step_00000004"]
    said = {}
    for name, flags in {"both": [*interval, *guide], "interval": interval, "guide": guide, "plain": []}.items():
        assert draw(tmp_path, "run", *how, *flags, "--out", f"{name}.png") == 0
        said[name] = capsys.readouterr().out
    words = {"both": "guidance 3 by step_00000004 in 0.3–0.8 ·", "interval": "guidance 3 in 0.3–0.8 ·",
             "guide": "guidance 3 by step_00000004 ·", "plain": "guidance 3 ·"}  # fmt: skip
    assert all(words[name] in said[name] for name in words)
    drawn = [raw(f"{name}.npz") for name in words]
    assert all(np.abs(one - other).max() > 20 for one, other in itertools.combinations(drawn, 2))
    pipeline = load_model("run", torch.device("cpu"), tmp_path, guide="run/step_00000004").pipeline
    expected = pipeline(
        "Hi yo", num_inference_steps=4, guidance_scale=3.0, guidance_interval=(0.3, 0.8),
        generator=torch.Generator().manual_seed(0), output_type="np",
    ).images  # fmt: skip
    assert np.abs(drawn[0] - expected).max() <= 1


def test_a_guide_of_another_run_is_called_by_both_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    leave_run(tmp_path, "run")
    leave_run(tmp_path, "other", step=16)
    assert draw(tmp_path, "run", "--text", "a", "--guide", "other", "--out", "a.png") == 0
    assert "by other/step_00000016" in capsys.readouterr().out


# ---- classes that are not EMNIST's -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clothes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clothes")
    leave_run(root, "clothes", "fashion", class_names=[*CLOTHES, "a, b", "い"])
    return root


@pytest.mark.parametrize(
    ("classes", "labels"),
    [("Bag,Ankle boot", [8, 9]), (' Bag , "a, b" ', [8, 10]), ("11, 0, い", [11, 0]), ("T-shirt/top", [0])],
)
def test_classes_are_chosen_by_name_or_number(clothes: Path, classes: str, labels: list[int]):
    assert draw(clothes, "clothes", "--classes", classes, "--per-class", "1", "--npz", "--out", "a.png") == 0
    assert np.load("a.npz")["y"].tolist() == labels


def test_all_classes_have_a_sheet_a_strip_and_an_animation(clothes: Path):
    for kind in ([], ["--strip"], ["--animate"]):
        assert draw(clothes, "clothes", *kind, "--per-class", "1", "--npz") == 0
    names = sorted(path.name for path in (clothes / "samples").iterdir())
    assert names == ["clothes-classes-2.gif", "clothes-classes-2.npz", "clothes-classes-strip.npz",
                     "clothes-classes-strip.png", "clothes-classes.npz", "clothes-classes.png"]  # fmt: skip
    assert np.load(clothes / "samples" / "clothes-classes.npz")["y"].tolist() == list(range(12))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "Hi"], "--text: the classes of this model are not characters; choose some with --classes: T-shirt"),
        (["--chars", "0-9"], "--chars: the classes of this model are not characters"),
        (["--classes", "Hat"], "there is no class 'Hat'; give names of these: T-shirt/top, Trouser"),
        (["--classes", "12"], 'Bag, "Ankle boot", '),
        (["--classes", "12"], "or numbers from 0 to 11\n"),
        (["--classes", "Bag\nCoat"], "there is no class 'Bag Coat'"),
        (["--classes", " , "], "--classes is empty"),
        (["--classes", "Bag", "--text", "a"], "--classes: leave out --chars and --text"),
    ],
)
def test_classes_that_are_not_there_are_told_in_a_line(clothes: Path, here: Path, capsys, arguments, message: str):
    assert sample.main(["clothes", "--output-root", str(clothes), *arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and message in said
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("names", [("9", "10"), ("Bag", "3")])
def test_a_number_is_a_name_where_classes_are_called_by_numbers(names: tuple[str, str], tmp_path: Path, capsys):
    """Of the classes 9 and 10, `--classes 0` drew the nine."""
    leave_run(tmp_path, "numbers", "fashion", class_names=names)
    assert draw(tmp_path, "numbers", "--classes", names[1], "--per-class", "1", "--npz", "--out", "one.png") == 0
    assert np.load("one.npz")["y"].tolist() == [1]
    assert "  1 image: " in capsys.readouterr().out
    for number in ("0", "1"):
        assert draw(tmp_path, "numbers", "--classes", number) == 2
        said = capsys.readouterr().err
        assert f"there is no class '{number}'; give names of these: {', '.join(names)}\n" in said


def test_a_class_is_found_however_its_name_is_composed_and_spaced(tmp_path: Path):
    """A Mac's file names, and what is pasted from them, have the accent as a letter of its own."""
    leave_run(tmp_path, "accents", "fashion", class_names=["caf\u00e9 noir", "th\u00e9"])
    assert draw(tmp_path, "accents", "--classes", "the\u0301, cafe\u0301  noir", "--npz", "--out", "a.png") == 0
    assert np.unique(np.load("a.npz")["y"]).tolist() == [0, 1]


def test_of_many_classes_a_sheet_shows_some_and_any_can_be_asked_for(tmp_path: Path, capsys):
    leave_run(tmp_path, "many", "fashion", class_names=[f"class {number}" for number in range(300)])
    assert draw(tmp_path, "many", "--per-class", "1", "--steps", "1", "--npz", "--out", "some.png") == 0
    assert len(np.load("some.npz")["y"]) == 64
    assert draw(tmp_path, "many", "--classes", "class 298", "--per-class", "1", "--npz", "--out", "one.png") == 0
    assert np.load("one.npz")["y"].tolist() == [298]


def test_a_text_in_other_letters_is_written_by_a_model_of_these(tmp_path: Path):
    leave_run(tmp_path, "kana", "fashion", class_names="あいう")
    assert draw(tmp_path, "kana", "--text", "いう あ", "--npz", "--out", "kana.png") == 0
    assert np.load("kana.npz")["y"].tolist() == [1, 2, 0]
    assert draw(tmp_path, "kana", "--chars", "いう", "--per-class", "1") == 0
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["kana-some.png"]


def test_a_checkpoint_whose_classes_are_not_the_models_is_refused(tmp_path: Path, capsys):
    folder = leave_run(tmp_path, "clothes", "fashion", class_names=CLOTHES)
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "class_names": CLOTHES[:3]}))
    assert draw(tmp_path, "clothes") == 2
    assert "names 3 classes and draws 10" in capsys.readouterr().err


# ---- from what, and to where -----------------------------------------------------------------------------------------


def test_a_run_its_checkpoint_and_a_folder_elsewhere_are_the_same_model(root: Path, here: Path):
    folder = (root / "checkpoints" / "small" / "latest").resolve()
    shutil.copytree(folder, here / "copy")
    for number, model in enumerate([["small"], [str(folder)], ["copy"], []]):  # the last: the only run there is
        assert draw(root, *model, "--text", "a", "--npz", "--out", f"{number}.png") == 0
    assert len({Path(f"{number}.npz").read_bytes() for number in range(4)}) == 1


def test_without_a_name_nothing_is_overwritten_and_pictures_have_a_folder_of_their_own(root: Path, here: Path):
    for _ in range(2):
        assert draw(root, "small", "--text", "Hi you") == 0
    assert sorted(path.name for path in (root / "samples").iterdir()) == ["small-Hi-you-2.png", "small-Hi-you.png"]
    assert list(here.iterdir()) == []


def test_two_that_draw_the_same_at_once_keep_both_pictures(root: Path, monkeypatch):
    """Both had chosen their name before they drew; the second took the place of the first."""
    config = sample.SampleConfig(model="small", output_root=root, npz=True)
    (root / "samples").mkdir(exist_ok=True)
    names = iter([sample.free_name("small", config)] * 2 + ["later"])
    free_name = sample.free_name
    monkeypatch.setattr(
        sample, "free_name", lambda *given: named if (named := next(names)) != "later" else free_name(*given)
    )
    written = [sample.write_files("small", config, content, b"raw") for content in (b"first", b"second")]
    assert [[path.read_bytes() for path in files] for files in written] == [[b"first", b"raw"], [b"second", b"raw"]]


def test_git_does_not_see_the_folder_of_the_pictures():
    ignored = subprocess.run(["git", "check-ignore", "samples/small-Hi-you.png"], cwd=PROJECT_ROOT)
    if ignored.returncode == 128:
        pytest.skip("not a git repository")
    assert ignored.returncode == 0


def test_it_says_what_it_made_and_from_what(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    leave_run(tmp_path, "drawn", data="glyphs")
    assert draw(tmp_path, "drawn", "--text", "a", "--out", "a.png") == 0
    said = capsys.readouterr().out
    for part in ("a.png", "step_00000008", "embedded glyphs, not EMNIST", "DDIM, 2 steps", "per image"):
        assert part in said


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["small", "--text", "Hi!"], "'!' is not among the characters"),
        (["small", "--text", " "], "--text is empty"),
        (["small", "--text", "\\n \\n"], "--text is empty"),
        (["small", "--grid"], "--grid makes a sheet of --text"),
        (["small", "--width", "9"], "--width and --style are for handwriting"),
        (["small", "--text", "a", "--grid", "--style", "night"], "--width and --style are for handwriting"),
        (["small", "--chars", ""], "--chars is empty"),
        (["small", "--chars", "a", "--text", "b"], "--chars and --text"),
        (["small", "--out", "a.jpg"], "a.jpg: the name must end in .png"),
        (["small", "--animate", "--out", "a.png"], "a .png cannot hold an animation"),
        (["small", "--strip", "--out", "a.gif"], "a strip is one picture"),
        (["small", "--strip", "--animate"], "give one of them"),
        (["small", "--strip", "3"], "steps are 0 (noise) to 2 (finished)"),
        (["small", "--steps", "101"], "takes 1 to 100"),
        (["small", "--per-class", "0"], "--per-class 0"),
        (["small", "--guide", "nobody"], "--guide: no checkpoint of 'nobody'"),
        (["small", "--guide", "small"], "--guide small: it is the model itself"),
        (["small", "--guidance-interval", "0.8", "0.3"], "--guidance-interval 0.8 0.3: give two levels from 0 to 1"),
        (["small", "--guidance-interval", "0", "2"], "--guidance-interval 0 2: give two levels from 0 to 1"),
        (["small", "--guidance-interval", "0", "0.5", "--guidance-scale", "1"], "change nothing at guidance scale 1"),
        (["small", "--device", "abacus"], "--device abacus"),
        (["other"], "the runs there are: small"),
    ],
)
def test_a_wrong_request_gets_one_line_and_leaves_nothing(
    root: Path, here: Path, capsys: pytest.CaptureFixture, arguments: list[str], message: str
):
    assert sample.main(["--output-root", str(root), *arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert message in said
    assert list(here.iterdir()) == []


def test_a_picture_that_cannot_be_written_is_refused_before_it_is_drawn(root: Path, here: Path, capsys):
    (here / "file").write_text("mine")
    assert draw(root, "small", "--out", "file/a.png") == 2
    assert "file" in capsys.readouterr().err
    assert (here / "file").read_text() == "mine"


def test_of_several_runs_one_has_to_be_named(tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / "checkpoints" / name / "latest").mkdir(parents=True)
    with pytest.raises(RequestError, match="one, two"):
        sample.only_run(tmp_path)


@pytest.mark.parametrize(
    ("chars", "expected"), [("0-3xY", "0123xY"), ("a-c X-Z", "abcXYZ"), ("A", "A"), ("-a", "-a"), ("5-5", "5")]
)
def test_ranges_are_written_out(chars: str, expected: str):
    assert expand(chars) == expected


@pytest.mark.parametrize("chars", ["9-0", "A-z", "0-9a-Z", "  "])
def test_what_is_no_range_is_refused(chars: str):
    with pytest.raises(RequestError):
        expand(chars)


def test_what_was_drawn_is_written_before_anything_is_said_of_it(root, monkeypatch):
    def refuse(*words: str, **_: object) -> None:
        if "images: DDIM" in words[0]:
            raise BrokenPipeError

    monkeypatch.setattr("builtins.print", refuse)
    with pytest.raises(BrokenPipeError):
        draw(root, "small", "--chars", "A", "--out", "sheet.png", "--npz")
    assert Image.open("sheet.png").width and raw("sheet.npz").shape[0] > 0
