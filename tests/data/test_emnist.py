"""The files of EMNIST: written as torchvision reads them, and refused with a mend when they are broken."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import EMNIST

from ddpm.data import emnist, idx
from ddpm.run.errors import RequestError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A sound training split of 94 images."""
    images, labels = emnist.emnist(tmp_path).files("train")
    images.parent.mkdir(parents=True)
    idx.write_idx(images, np.random.default_rng(0).integers(256, size=(94, 28, 28), dtype=np.uint8))
    idx.write_idx(labels, (np.arange(94) % 47).astype(np.uint8))
    return tmp_path


def refusal(root: Path) -> str:
    with pytest.raises(RequestError) as raised:
        emnist.emnist(root).check("train")
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_what_is_written_is_what_torchvision_reads(root: Path) -> None:
    emnist.emnist(root).check("train")
    images, labels = emnist.emnist(root).files("train")
    read = EMNIST(str(root), split="balanced", train=True)
    np.testing.assert_array_equal(read.data.numpy(), idx.read_idx(images, 3))
    np.testing.assert_array_equal(read.targets.numpy(), idx.read_idx(labels, 1))


def test_the_classes_are_those_of_emnist() -> None:
    assert list(emnist.CLASS_NAMES) == EMNIST.classes_split_dict["balanced"]
    assert set(emnist.MERGED.lower()) == EMNIST._merged_classes


def test_a_transposed_view_is_written_as_it_looks(tmp_path: Path) -> None:
    picture = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4).transpose(0, 2, 1)
    idx.write_idx(tmp_path / "file", picture)
    np.testing.assert_array_equal(idx.read_idx(tmp_path / "file", 3), picture)


def test_only_bytes_are_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="int64"):
        idx.write_idx(tmp_path / "file", np.zeros(3, np.int64))
    assert not list(tmp_path.iterdir())


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


def empty(file: Path) -> None:
    file.write_bytes(b"")


def only_header(file: Path) -> None:
    content = file.read_bytes()
    dimensions = content[3]
    file.write_bytes(content[:4] + bytes(4) + content[8 : 4 + 4 * dimensions])


def html(file: Path) -> None:
    file.write_text("\n<!DOCTYPE html><html><body>503 Service Unavailable</body></html>")


def wrong_magic(file: Path) -> None:
    file.write_bytes(struct.pack(">I", 1234) + file.read_bytes()[4:])


def still_packed(file: Path) -> None:
    file.write_bytes(gzip.compress(file.read_bytes()))


@pytest.mark.parametrize("which", [0, 1], ids=["images", "labels"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (Path.unlink, ["missing", "--data-root", "login node", "--data glyphs"]),
        (cut, ["truncated"]),
        (lengthen, ["too long"]),
        (empty, ["truncated: 0 bytes"]),
        (only_header, ["nothing but its header"]),
        (html, ["HTML page"]),
        (wrong_magic, ["wrong magic number 0x000004d2"]),
        (still_packed, ["still compressed", "gunzip"]),
    ],
)
def test_a_damaged_file_is_named_with_its_mend(
    root: Path, which: int, damage: Callable[[Path], None], said: list[str]
) -> None:
    file = emnist.emnist(root).files("train")[which]
    damage(file)
    message = refusal(root)
    for part in [str(file), "--download", *said]:
        assert part in message


def test_a_wrong_length_is_said_in_bytes(root: Path) -> None:
    images, _ = emnist.emnist(root).files("train")
    cut(images)
    assert f"expected {16 + 94 * 784:,} bytes, found {15 + 94 * 784:,}" in refusal(root)


def test_images_of_another_size(root: Path) -> None:
    images, _ = emnist.emnist(root).files("train")
    idx.write_idx(images, np.zeros((94, 32, 20), np.uint8))
    message = refusal(root)
    assert str(images) in message and "32x20" in message and "--download" in message


def test_as_many_labels_as_images(root: Path) -> None:
    _, labels = emnist.emnist(root).files("train")
    idx.write_idx(labels, np.zeros(93, np.uint8))
    message = refusal(root)
    assert str(labels) in message and "93 labels" in message and "94 images" in message and "--download" in message


def test_labels_beyond_the_last_class(root: Path) -> None:
    _, labels = emnist.emnist(root).files("train")
    values = (np.arange(94) % 47).astype(np.uint8)
    values[7] = 47
    idx.write_idx(labels, values)
    message = refusal(root)
    assert str(labels) in message and "label 47 at position 7" in message and "--download" in message


def test_a_packed_file_is_to_be_unpacked(root: Path) -> None:
    images, _ = emnist.emnist(root).files("train")
    packed = images.with_name(f"{images.name}.gz")
    packed.write_bytes(gzip.compress(images.read_bytes()))
    images.unlink()
    message = refusal(root)
    assert str(images) in message and f"gunzip -k {packed}" in message


def test_the_whole_archive_is_to_be_unpacked(root: Path) -> None:
    images, _ = emnist.emnist(root).files("train")
    images.unlink()
    images.with_name("gzip.zip").write_bytes(b"PK\3\4")
    message = refusal(root)
    assert str(images) in message and "gzip.zip is there" in message and "--download" in message


def test_each_split_is_checked_alone(root: Path) -> None:
    with pytest.raises(RequestError, match="emnist-balanced-test-images"):
        emnist.emnist(root).check("test")
