"""The data sets beside EMNIST Balanced: read as torchvision reads them, with the right names, and trained on."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets

from ddpm.data.idx import write_idx
from ddpm.data.sets import dataset
from ddpm.run.config import preset
from ddpm.run.errors import RequestError
from tests.support.disks import small_disk
from tests.support.idx_files import written

SPLITS = ["balanced", "letters", "digits", "mnist", "bymerge", "byclass"]
OTHERS = {"kmnist": torchvision.datasets.KMNIST, "fashion": torchvision.datasets.FashionMNIST}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("train", [True, False])
def test_every_split_of_emnist_is_read_as_torchvision_reads_it_upright(split: str, train: bool, tmp_path: Path):
    source = dataset(written(preset("tiny", split=split, data_root=tmp_path)))
    source.prepare(download=False)
    theirs = torchvision.datasets.EMNIST(str(tmp_path), split=split, train=train)
    pixels, labels = source.read("train" if train else "test")
    np.testing.assert_array_equal(pixels, theirs.data.numpy().transpose(0, 2, 1))
    names = [theirs.classes[label] for label in theirs.targets]
    assert [source.class_names[label] for label in labels] == [n.upper() if split == "letters" else n for n in names]


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("train", [True, False])
def test_the_sets_like_mnist_are_read_as_torchvision_reads_them(name: str, train: bool, tmp_path: Path):
    source = dataset(written(preset("tiny", data=name, data_root=tmp_path)))
    source.prepare(download=False)
    theirs = OTHERS[name](str(tmp_path), train=train)
    pixels, labels = source.read("train" if train else "test")
    np.testing.assert_array_equal(pixels, theirs.data.numpy())
    np.testing.assert_array_equal(labels, theirs.targets.numpy())
    assert pixels.flags.writeable, "torch warns of arrays that are the file itself"
    assert list(source.class_names) == theirs.classes


@pytest.mark.parametrize("wanted", [{"split": "letters"}, {"data": "kmnist"}, {"data": "fashion"}])
def test_missing_files_are_named_with_the_way_to_get_them(wanted: dict[str, str], tmp_path: Path):
    config = preset("tiny", **wanted, data_root=tmp_path)
    assert not dataset(config).present()
    assert dataset(config).count() in (124_800, 60_000)
    assert dataset(config).count("test") in (20_800, 10_000)
    with pytest.raises(RequestError, match="is missing: --download fetches it") as raised:
        dataset(config).prepare(download=False)
    assert str(dataset(config).files("train")[0]) in str(raised.value)


@pytest.mark.parametrize("wanted", [{"split": "digits"}, {"data": "kmnist"}])
def test_a_download_that_fails_says_where_to_try_it(wanted: dict[str, str], tmp_path: Path, monkeypatch):
    def fails(*given, **options):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fails)
    with pytest.raises(RequestError, match=r"no network.*such as a login node"):
        dataset(preset("tiny", **wanted, data_root=tmp_path)).prepare(download=True)


def test_labels_of_another_split_are_refused(tmp_path: Path):
    config = written(preset("tiny", split="letters", data_root=tmp_path))
    write_idx(dataset(config).files("train")[1], np.zeros(78, np.uint8))
    with pytest.raises(RequestError, match=r"has label 0 at position 0, EMNIST Letters has 1 to 26"):
        dataset(config).prepare(download=False)


def test_a_download_puts_whole_files_in_place_and_fetches_none_that_are_there(tmp_path: Path, monkeypatch):
    """Nodes and jobs may fetch into one folder: each works in one of its own, and moves what is whole."""
    source = dataset(written(preset("tiny", split="digits", data_root=tmp_path / "source")))
    config = preset("tiny", split="digits", data_root=tmp_path / "data", download=True)
    wanted, calls = dataset(config), []
    raw = wanted.files("train")[0].parent
    raw.mkdir(parents=True)
    (raw / "gzip.zip").write_bytes(b"an archive")

    def fetch(root: str, **settings) -> None:
        calls.append(Path(root))
        there = Path(root) / "EMNIST" / "raw"
        assert Path(root) != tmp_path / "data" and (there / "gzip.zip").read_bytes() == b"an archive"
        (there / "gzip").mkdir()
        for split in ("train", "test"):
            for file in source.files(split):
                shutil.copy(file, there)

    monkeypatch.setattr("torchvision.datasets.EMNIST", fetch)
    wanted.prepare(download=True)
    wanted.prepare(download=True)
    assert len(calls) == 1 and not list(raw.glob(".download-*"))
    assert wanted.read("train")[0].shape == source.read("train")[0].shape and not (raw / "gzip").exists()
    wanted.files("test")[1].unlink()
    wanted.prepare(download=True)
    assert len(calls) == 2, "a file is missing"


def test_files_are_fetched_to_where_raw_leads(tmp_path: Path, monkeypatch):
    """A link to another disk, as in a home with a small quota: nothing can be moved there from its own folder."""
    source = written(preset("tiny", split="digits", data_root=tmp_path / "source"))

    def fetch(root: str, **settings) -> None:
        shutil.copytree(source.data_root / "EMNIST" / "raw", Path(root) / "EMNIST" / "raw", dirs_exist_ok=True)

    monkeypatch.setattr("torchvision.datasets.EMNIST", fetch)
    (tmp_path / "data" / "EMNIST").mkdir(parents=True)
    with small_disk(tmp_path / "scratch", "64m") as scratch:
        (tmp_path / "data" / "EMNIST" / "raw").symlink_to(scratch)
        wanted = dataset(preset("tiny", split="digits", data_root=tmp_path / "data", download=True))
        wanted.prepare(download=True)
        assert wanted.read("train")[0].shape == dataset(source).read("train")[0].shape


def test_what_a_killed_download_left_is_removed_after_a_day(tmp_path: Path, monkeypatch):
    """It may be half a gigabyte, in a hidden folder. One that is a minute old may be another node's, still at work."""
    source = written(preset("tiny", split="digits", data_root=tmp_path / "source"))
    folder = tmp_path / "data" / "EMNIST" / "raw"
    killed, at_work = folder / ".download-killed", folder / ".download-at_work"
    for left, age in ((killed, 2 * 86400), (at_work, 60)):
        (left / "EMNIST" / "raw").mkdir(parents=True)
        os.utime(left, (time.time() - age,) * 2)

    def fetch(root: str, **settings) -> None:
        shutil.copytree(source.data_root / "EMNIST" / "raw", Path(root) / "EMNIST" / "raw", dirs_exist_ok=True)

    monkeypatch.setattr("torchvision.datasets.EMNIST", fetch)
    dataset(preset("tiny", split="digits", data_root=tmp_path / "data", download=True)).prepare(download=True)
    assert list(folder.glob(".download-*")) == [at_work]
