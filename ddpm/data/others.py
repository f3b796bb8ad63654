"""Data sets with the images and the files of MNIST: Kuzushiji-MNIST (Clanuwat et al. 2018), Fashion-MNIST (Xiao et al.
2017)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ddpm.data.idx import IdxSet, download
from ddpm.run.datasets import TITLES

KUZUSHIJI = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def kmnist(root: Path) -> IdxSet:
    """Kuzushiji-MNIST in the files that `torchvision.datasets.KMNIST(root)` reads."""
    return _like_mnist(Path(root), "kmnist", "KMNIST", KUZUSHIJI)


def fashion(root: Path) -> IdxSet:
    """Fashion-MNIST in the files that `torchvision.datasets.FashionMNIST(root)` reads."""
    return _like_mnist(Path(root), "fashion", "FashionMNIST", CLOTHES)


def _like_mnist(root: Path, name: str, called: str, class_names: tuple[str, ...]) -> IdxSet:
    """`called`: the name of torchvision's class, and of the folder."""
    return IdxSet(
        title=TITLES[name],
        class_names=class_names,
        root=root,
        stem=f"{called}/raw/{{}}",
        fetch=partial(download, called),
        usual_images=60_000,
        usual_test_images=10_000,
        splits=("train", "t10k"),
    )
