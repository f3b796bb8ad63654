"""Runs on a folder of images."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from ddpm.data.folder import FolderSet
from ddpm.evaluation.config import EvaluateConfig
from ddpm.evaluation.evaluator import Evaluator
from ddpm.run.config import TrainConfig
from ddpm.run.errors import RequestError
from ddpm.run.files import read_json
from ddpm.run.paths import RunPaths
from ddpm.training import data
from ddpm.training.machine.distributed import connect
from metrics.health.checker import main as health
from tests.conftest import ONE, replace
from tests.support.folders import config_of, letters, make_folder, png, prepared, stroke
from tests.support.processes import in_processes
from tests.support.runs import assert_same_run, paths_of, rows, run, start


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return letters(tmp_path)


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
    assert "3 classes: '<i>', '`c`', 'a|b'\n" in output
    assert "images: all 28x28 pixels" in output
    assert "dark in 64, light in 0" in output
    assert re.search(r"val_images: +7 \(all test images\)", output), "not the 120 of the settings"
    sheet = Path(
        next(line for line in output.splitlines() if line.startswith("contact sheet:")).split(":", 1)[1].strip()
    )
    with Image.open(sheet) as picture:
        assert picture.width > 12 * 56
    assert not (images.output_root / "checkpoints").exists()


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
            data.agreed_sha256(*data.load(mine, world), world)
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


def read_by_two(config: TrainConfig) -> str:
    """What a process says when the second of two cannot read the images."""

    def fail(*_: object) -> None:
        raise RequestError("letters/a.png cannot be read")

    with connect("cpu") as world:
        if world.rank == 1:
            FolderSet.read = fail
        try:
            return str(data.load(replace(config, output_root=config.output_root / str(world.rank)), world))
        except RequestError as error:
            return str(error)


def test_all_processes_know_why_one_cannot_read_the_images(root: Path):
    """Process 0 prints it."""
    assert in_processes(read_by_two, 2, config_of(root)) == ["letters/a.png cannot be read"] * 2


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


def test_an_evaluation_by_other_images_is_made_on_request_only(images: TrainConfig, quick_reports, capsys):
    assert run(images) == 0
    make_folder(images.data_root, {"a|b": 1}, start=500)
    assert run(images) == 2
    assert "is of another run; the images, or their order, have changed since: give" in capsys.readouterr().err
    asked = EvaluateConfig(images.run, output_root=images.output_root, device="cpu")
    with pytest.raises(RequestError, match="holds other images than those that the model was trained on: give"):
        Evaluator(asked, "", Console(quiet=True))
    Evaluator(replace(asked, data_root=images.data_root), "", Console())
    assert "whether it copies those is not measured" in " ".join(capsys.readouterr().out.split())


def test_a_folder_that_was_renamed_still_holds_the_images_of_the_training(images: TrainConfig, quick_reports):
    assert run(images) == 0
    renamed = images.data_root.rename(images.data_root.with_name("alphabet"))
    asked = EvaluateConfig(images.run, output_root=images.output_root, data_root=renamed, device="cpu")
    evaluator = Evaluator(asked, "", Console(quiet=True))
    assert evaluator.of_training and evaluator.data == "folder-alphabet"


def test_other_data_are_not_looked_for_in_the_folder_of_the_training_nor_put_there(
    images: TrainConfig, quick_reports, tmp_path: Path, monkeypatch
):
    """Glyphs were drawn into it, and then it was another data set: the run could not go on."""
    assert run(images) == 0
    before = sorted(images.data_root.rglob("*"))
    monkeypatch.setattr(TrainConfig, "data_root", tmp_path / "usual")
    asked = EvaluateConfig(images.run, output_root=images.output_root, device="cpu")
    for other, words in ("glyphs", "compare with the data that it was trained on"), ("kmnist", f"{tmp_path}/usual/"):
        with pytest.raises(RequestError, match=words):
            Evaluator(replace(asked, data=other), "", Console(quiet=True))
    assert sorted(images.data_root.rglob("*")) == before


def test_an_export_does_not_know_where_its_images_are(images: TrainConfig, quick_reports):
    """Its meta.json says `data`, of which nobody has heard."""
    assert run(replace(images, export=True)) == 0
    export = str(paths_of(images).checkpoints / "export")
    asked = EvaluateConfig(export, output_root=images.output_root, device="cpu")
    with pytest.raises(RequestError, match=r"does not tell where its images are: give .* --data-root"):
        Evaluator(asked, "", Console(quiet=True))
    assert Evaluator(replace(asked, data_root=images.data_root), "", Console(quiet=True)).of_training


def test_an_evaluation_compares_with_the_folder_at_the_resolution_of_the_model(images: TrainConfig, quick_reports):
    config = replace(images, resolution=32, invert="no")
    assert run(config) == 0
    asked = EvaluateConfig(config.run, output_root=config.output_root, device="cpu")
    evaluator = Evaluator(asked, "", Console(quiet=True))
    assert evaluator.data == config.data_name
    assert evaluator.train.pixels.shape[1:] == (32, 32)
    assert evaluator.train.class_names == ("<i>", "`c`", "a|b")
    assert len(list((config.output_root / "data" / "prepared").iterdir())) == 1, "those of the training"
