"""From EMNIST's files to what the model sees, and in which order."""

from pathlib import Path

import pytest
import torch
from torchvision import transforms
from torchvision.datasets import EMNIST

from ddpm.data import emnist
from ddpm.run.config import PRESETS, preset
from ddpm.run.errors import RequestError
from ddpm.training import data
from ddpm.training.distributed import DistContext, connect
from tests.conftest import ONE, replace
from tests.processes import in_processes


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
    assert list(data.CLASS_NAMES) == reference.classes
    assert len(data.CLASS_NAMES) == 47


def test_the_order_of_an_epoch_is_a_permutation_that_follows_from_seed_and_epoch():
    order = data.epoch_order(1000, seed=1, epoch=5, device=torch.device("cpu"))
    assert order.sort().values.equal(torch.arange(1000))
    assert order.equal(data.epoch_order(1000, seed=1, epoch=5, device=torch.device("cpu")))
    for other in ((1, 6), (2, 5)):
        assert not order.equal(data.epoch_order(1000, *other, device=torch.device("cpu")))


def slices_of_an_epoch(images: int, batch_size: int) -> list[list[int]]:
    with connect() as world:
        order = data.epoch_order(images, seed=0, epoch=3, device=world.device)
        steps = images // (batch_size * world.world_size)
        return [data.global_slice(order, step, batch_size, world).tolist() for step in range(steps)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_the_processes_share_an_epoch_without_overlap(world_size: int):
    images, global_batch = 250, 24
    parts = in_processes(slices_of_an_epoch, world_size, images, global_batch // world_size)
    batches = [[index for part in step for index in part] for step in zip(*parts, strict=True)]
    seen = [index for batch in batches for index in batch]
    assert len(seen) == len(set(seen)) == images // global_batch * global_batch
    order = data.epoch_order(images, seed=0, epoch=3, device=torch.device("cpu")).tolist()
    assert seen == order[: len(seen)]  # the same images in the same step for any number of processes


def load_everywhere(root: Path, log: Path) -> str:
    with connect() as world:
        world = DistContext(world.rank, world.rank % 2, world.world_size, 2, world.device)  # as if on two nodes
        touched = data.prepare

        def prepare(config):
            with open(log, "a") as file:
                file.write(f"{world.rank} ")
            touched(config)

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
    assert data.count_images(small) == 6 * 47


def test_glyphs_are_drawn_on_first_use_and_read_by_the_same_loader(tmp_path: Path):
    config = preset("tiny", data="glyphs", data_root=tmp_path)
    assert data.count_images(config) == 18_800  # without drawing any
    assert not (tmp_path / "glyphs").exists()
    train, test = data.load(config, ONE)
    assert (len(train), len(test)) == (18_800, 3_760)
    assert emnist.split_files(tmp_path / "glyphs", "train")[0].exists()


def test_a_download_that_delivers_a_web_page_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = tmp_path / "gzip.zip"
    page.write_text("<!DOCTYPE html><html><body>Service unavailable</body></html>")
    monkeypatch.setattr(EMNIST, "url", page.as_uri())
    with pytest.raises(RequestError, match=r"gzip\.zip could not be fetched or unpacked"):
        data.load(preset("tiny", data_root=tmp_path / "data", download=True), ONE)


def test_unequal_classes_are_told(small_data: Path, small):
    from ddpm.training.describe import counts_in_words, describe_run
    from ddpm.training.hardware import choose
    from ddpm.training.schedule import TrainingSchedule
    from ddpm.training.threads import Threads

    train, test = data.load(small, ONE)
    cut = replace(train, pixels=train.pixels[:-1], labels=train.labels[:-1])
    schedule = TrainingSchedule(small, 1, len(cut))
    choices, threads = choose(small, ONE.device, 1e8), Threads(ONE.device)
    summary = describe_run(small, choices, ONE, schedule, 1e8, cut, test, threads, [])["data_summary"]
    words = counts_in_words("emnist", summary)
    assert "classes NOT equal" in words
    assert "t:5" in words
    assert "3 of each class" in words
