"""Data sets with the images and the files of MNIST: Kuzushiji-MNIST (Clanuwat et al. 2018), Fashion-MNIST (Xiao et al.
2017)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ddpm.data.idx import IdxSet
from ddpm.run.datasets import TITLES
from ddpm.run.errors import RequestError

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
        fetch=partial(_download, called),
        usual_images=60_000,
        splits=("train", "t10k"),
    )


def _download(called: str, root: Path) -> None:
    import torchvision.datasets  # takes seconds to load

    try:
        getattr(torchvision.datasets, called)(str(root), download=True)
    except Exception as error:  # urllib, gzip and torchvision each raise their own
        raise RequestError(
            f"{root / called / 'raw'} could not be filled ({error}): try again, or run --download where there is "
            "internet, such as a login node"
        ) from error
