"""EMNIST (Cohen et al. 2017) and its splits: classes and files. Images are stored transposed."""

from __future__ import annotations

import string
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ddpm.data.idx import IdxSet, download
from ddpm.run.datasets import TITLES, SplitName, published_name

CLASS_NAMES = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"  # of EMNIST Balanced, in its order
MERGED = "CIJKLMOPSUVWXYZ"  # classes that hold both cases of their letter


class SplitFacts(NamedTuple):
    """What distinguishes a split."""

    class_names: str
    both_cases: str  # classes that hold both cases of their letter
    train_images: int
    test_images: int
    first_label: int = 0


SPLITS: dict[SplitName, SplitFacts] = {
    "balanced": SplitFacts(CLASS_NAMES, MERGED, 112_800, 18_800),
    "letters": SplitFacts(string.ascii_uppercase, string.ascii_uppercase, 124_800, 20_800, first_label=1),
    "digits": SplitFacts(string.digits, "", 240_000, 40_000),
    "mnist": SplitFacts(string.digits, "", 60_000, 10_000),
    "bymerge": SplitFacts(CLASS_NAMES, MERGED, 697_932, 116_323),
    "byclass": SplitFacts(string.digits + string.ascii_uppercase + string.ascii_lowercase, "", 697_932, 116_323),
}


def emnist(root: Path, split: SplitName = "balanced") -> IdxSet:
    """A split of EMNIST in the files that `torchvision.datasets.EMNIST(root, split)` reads."""
    facts = SPLITS[split]
    return IdxSet(
        title=TITLES[published_name("emnist", split)],
        class_names=tuple(facts.class_names),
        root=Path(root),
        stem=f"EMNIST/raw/emnist-{split}-{{}}",
        fetch=partial(download, "EMNIST", split=split),
        usual_images=facts.train_images,
        usual_test_images=facts.test_images,
        transposed=True,
        first_label=facts.first_label,
    )
