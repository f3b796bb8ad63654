"""From EMNIST's files to what the model sees, and in which order."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import transforms
from torchvision.datasets import EMNIST

from ddpm.data import emnist, idx
from ddpm.data.sets import dataset
from ddpm.run.config import PRESETS, TrainConfig, preset
from ddpm.run.errors import RequestError
from ddpm.training import data
from ddpm.training.machine.distributed import DistContext, connect
from tests.conftest import ONE, random_images, replace
from tests.support.processes import in_processes


@pytest.mark.parametrize("name", PRESETS)
def test_model_input_is_what_torchvision_makes_of_real_images(name: str, emnist: Path):
    resolution = preset(name).resolution
    theirs = transforms.Compose(
        [
            transforms.Resize((resolution, resolution)),
            transforms.ToTensor(),
            transforms.Lambda(lambda image: image.transpose(1, 2)),
            transforms.Lambda(lambda image: 2 * image - 1),
        ]
    )
    reference = EMNIST(str(emnist), split="balanced", train=False, transform=theirs)
    chosen = range(0, len(reference), len(reference) // 40)
    train, test = data.load(preset(name, data_root=emnist), ONE)
    ours = data.to_model_input(test.pixels[list(chosen)], resolution)
    expected = torch.stack([reference[index][0] for index in chosen])
    assert ours.shape == (len(chosen), 1, resolution, resolution)
    assert (ours - expected).abs().max() <= 1 / 127.5 + 1e-6  # one grey level: PIL rounds twice; 1e-6: float32
    assert test.labels[list(chosen)].tolist() == [reference[index][1] for index in chosen]
    assert train.pixels.dtype == torch.uint8


def test_classes_are_emnists_own(emnist: Path):
    reference = EMNIST(str(emnist), split="balanced", train=False)
    train, _ = data.load(preset("tiny", data_root=emnist), ONE)
    assert list(train.class_names) == reference.classes


def order_of(images: int, seed: int, epoch: int) -> torch.Tensor:
    return data.epoch_order(random_images(images), preset("tiny", seed=seed), epoch)


def test_the_order_of_an_epoch_is_a_permutation_that_follows_from_seed_and_epoch():
    order = order_of(1000, seed=1, epoch=5)
    assert order.sort().values.equal(torch.arange(1000))
    assert order.equal(order_of(1000, seed=1, epoch=5))
    for seed, epoch in ((1, 6), (2, 5)):
        assert not order.equal(order_of(1000, seed, epoch))


UNEQUAL = [1, 2, 7, 90]  # images of each class


def unequal_images() -> data.Images:
    labels = torch.arange(4).repeat_interleave(torch.tensor(UNEQUAL))
    return data.Images(torch.zeros(len(labels), 28, 28, dtype=torch.uint8), labels, tuple("abcd"))


def test_balanced_classes_are_drawn_equally_often():
    images, config = unequal_images(), preset("tiny", balance="classes")
    orders = [data.epoch_order(images, config, epoch) for epoch in range(5)]
    assert all(len(order) == data.images_per_epoch(config, len(images), 4) == 100 for order in orders)
    assert all(images[order].counts() == [25] * 4 for order in orders)
    assert orders[0].equal(data.epoch_order(images, config, 0))
    assert not orders[0].equal(orders[1])
    for order in orders:  # no image again before all of its class had their turn
        seen = torch.bincount(order, minlength=100).split(UNEQUAL)
        assert [(each.max() - each.min()).item() <= 1 for each in seen] == [True] * 4
    assert torch.cat(orders).unique().numel() > 60, "other images of the large class in other epochs"


def test_a_class_without_images_cannot_be_balanced(small_data: Path, tmp_path: Path):
    shutil.copytree(small_data / "EMNIST", tmp_path / "EMNIST")
    _, labels = emnist.emnist(tmp_path).files("train")
    idx.write_idx(labels, np.minimum(idx.read_idx(labels, 1), 45))
    assert data.load(preset("tiny", data_root=tmp_path), ONE)[0].counts()[46] == 0
    with pytest.raises(RequestError, match="class 't' has no training images"):
        data.load(preset("tiny", data_root=tmp_path, balance="classes"), ONE)


def test_the_unequal_splits_are_balanced_unless_asked_otherwise():
    assert preset("tiny", split="byclass").balanced
    assert not preset("tiny", split="byclass", balance="none").balanced
    assert not preset("tiny").balanced


def turning_images(count: int) -> data.Images:
    """Images whose classes take turns."""
    return replace(random_images(count), labels=torch.arange(count) % 47)


def slices_of_an_epoch(images: int, batch_size: int, config: TrainConfig) -> list[list[int]]:
    with connect() as world:
        order = data.epoch_order(turning_images(images), config, 3)
        steps = len(order) // (batch_size * world.world_size)
        return [data.global_slice(order, step, batch_size, world).tolist() for step in range(steps)]


@pytest.mark.parametrize("balance", ["none", "classes"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_the_processes_share_an_epoch_without_overlap(world_size: int, balance: str):
    images, global_batch, config = 250, 24, preset("tiny", balance=balance)
    parts = in_processes(slices_of_an_epoch, world_size, images, global_batch // world_size, config)
    batches = [[index for part in step for index in part] for step in zip(*parts, strict=True)]
    seen = [index for batch in batches for index in batch]
    order = data.epoch_order(turning_images(images), config, 3).tolist()
    assert seen == order[: len(seen)]  # the same images in the same step for any number of processes
    assert len(seen) == len(order) // global_batch * global_batch
    assert balance == "classes" or len(seen) == len(set(seen))


def load_everywhere(root: Path, log: Path) -> str:
    with connect() as world:
        world = DistContext(world.rank, world.rank % 2, world.world_size, 2, world.device)  # as if on two nodes
        touched = data.prepare

        def prepare(source, config):
            with open(log, "a") as file:
                file.write(f"{world.rank} ")
            touched(source, config)

        data.prepare = prepare
        try:
            data.load(preset("tiny", data_root=root), world)
        except RequestError as error:
            return str(error)
        return "loaded"


def test_one_process_per_node_prepares_the_data_and_an_error_reaches_all(small_data: Path, tmp_path: Path):
    assert in_processes(load_everywhere, 4, small_data, tmp_path / "log") == ["loaded"] * 4
    assert sorted((tmp_path / "log").read_text().split()) == ["0", "2"]
    told = in_processes(load_everywhere, 4, tmp_path / "nothing", tmp_path / "log")
    assert all("--download" in message and str(tmp_path / "nothing") in message for message in told)


def test_counts_are_of_each_class(small_data: Path, small):
    train, test = data.load(small, ONE)
    assert train.counts() == [6] * 47
    assert test.counts() == [3] * 47
    assert dataset(small).count() == 6 * 47
    assert dataset(small).count("test") == 3 * 47


def test_glyphs_are_drawn_on_first_use_and_read_by_the_same_loader(tmp_path: Path):
    config = preset("tiny", data="glyphs", data_root=tmp_path)
    assert (dataset(config).count(), dataset(config).count("test")) == (18_800, 3_760)  # without drawing any
    assert not (tmp_path / "glyphs").exists()
    train, test = data.load(config, ONE)
    assert (len(train), len(test)) == (18_800, 3_760)
    assert emnist.emnist(tmp_path / "glyphs").files("train")[0].exists()


def test_a_download_that_delivers_a_web_page_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = tmp_path / "gzip.zip"
    page.write_text("<!DOCTYPE html><html><body>Service unavailable</body></html>")
    monkeypatch.setattr(EMNIST, "url", page.as_uri())
    with pytest.raises(RequestError, match=r"EMNIST/raw could not be filled .*try again"):
        data.load(preset("tiny", data_root=tmp_path / "data", download=True), ONE)


def test_unequal_classes_are_told(small_data: Path, small):
    from ddpm.training.describe import counts_in_words, describe_run
    from ddpm.training.machine.hardware import choose
    from ddpm.training.machine.threads import Threads
    from ddpm.training.schedule import TrainingSchedule

    train, test = data.load(small, ONE)
    cut = replace(train, pixels=train.pixels[:-1], labels=train.labels[:-1])
    schedule = TrainingSchedule(small, 1, len(cut))
    choices, threads = choose(small, 47, ONE.device, 1e8), Threads(ONE.device)
    summary = describe_run(small, choices, ONE, schedule, 1e8, cut, test, "", threads, [])["data_summary"]
    words = counts_in_words("emnist", summary)
    assert "classes NOT equal" in words
    assert "t:5" in words
    assert "3 of each class" in words
