"""The images, held on the device as uint8; the order in which a run sees them; from stored bytes to model input."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from ddpm.data import sets
from ddpm.data.idx import Split
from ddpm.data.sets import DataSet, dataset
from ddpm.run.config import TrainConfig
from ddpm.run.config.rules import USUAL_VAL_IMAGES
from ddpm.run.errors import RequestError
from ddpm.training.machine.distributed import DistContext
from ddpm.training.seeding import Stream, generator

FEWEST = 18_800  # images that an epoch of a folder draws, about


@dataclass(frozen=True)
class Images:
    """A split on the device: `pixels` uint8 [N, S, S], upright, 0 is background; `labels` int64 [N]; the class of each
    label in `class_names`."""

    pixels: torch.Tensor
    labels: torch.Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen: torch.Tensor) -> Images:
        """Those at the indices `chosen`, int64 [M]."""
        return Images(self.pixels[chosen], self.labels[chosen], self.class_names)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def counts(self) -> list[int]:
        """Images of each class."""
        return torch.bincount(self.labels, minlength=self.num_classes).tolist()


def split_test(test: Images, val_images: int | None) -> tuple[Images, Images]:
    """The test split in two: images for validation, which choose the best checkpoint, and others for evaluation.

    Validation has the first `val_images` of a fixed random order, evaluation the rest. Where that would leave fewer
    than two images of a class (evaluation compares two halves of real images), evaluation has the whole split, and the
    two share images: `len(validation) + len(evaluation) - len(test)`.

    Args:
        val_images: number of images for validation, at most. None, where `--val-images` was left out: the number that
            a GPU would use, as the number on a CPU may be smaller.
    """
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0)).to(test.labels.device)
    first = USUAL_VAL_IMAGES if val_images is None else val_images
    rest = test[order[first:].sort().values]
    return test[order[:first]], rest if min(rest.counts()) >= 2 else test


def load(config: TrainConfig, world: DistContext) -> tuple[Images, Images]:
    """The training and the test split, on the device of this process.

    Only local rank 0 of each node downloads, draws and checks; the others wait for it.

    Raises:
        RequestError: data are missing or damaged; the message names the file and the fix.
    """
    source = dataset(config)
    world.broadcast_result(partial(prepare, source, config), here=world.local_rank == 0)
    train, test = _read_everywhere(source, world)
    if config.balanced and 0 in (counts := train.counts()):
        name = train.class_names[counts.index(0)]
        raise RequestError(f"class {name!r} has no training images: --balance classes has none to draw")
    return train, test


def prepare(source: DataSet, config: TrainConfig) -> None:
    """Make sure that the files of the data set are there and valid: draw or download them if needed.

    Raises:
        RequestError: they are not; the message names the file and the fix.
    """
    try:
        source.prepare(config.download)
    except OSError as error:
        what = error.strerror or error
        root = config.data_root
        raise RequestError(f"{root}: {what}; give a folder that can be written to with --data-root") from error


def sha256(images: Images) -> str:
    """The SHA-256 of all pixels and labels, as 64 hexadecimal digits."""
    return sets.sha256(images.pixels.cpu().numpy(), images.labels.cpu().numpy())


def agreed_sha256(train: Images, test: Images, world: DistContext) -> tuple[str, str]:
    """The SHA-256 of the training images and of the test images, once it is sure that all nodes hold the same images.

    Raises:
        RequestError: the nodes hold different images of either split, or call the classes differently.
    """
    here = world.local_rank == 0  # one process of each node is enough
    mine = (sha256(train), sha256(test), train.class_names) if here else None
    found = {node: theirs for theirs, node in world.gather((mine, world.node)) if theirs}
    if len(set(found.values())) > 1:
        nodes = ", ".join(sorted(found))
        raise RequestError(f"--data-root holds different images on different nodes ({nodes}): copy it from one of them")
    return next((of_train, of_test) for of_train, of_test, _ in found.values())


def passes_per_epoch(config: TrainConfig, images: int) -> int:
    """How often an epoch draws each image of a training split of `images` images.

    The presets' numbers of epochs are meant for data sets of 18,800 images (glyphs) and more. A folder may hold some
    hundreds, from which so few epochs of one pass would learn nothing.
    """
    if config.passes_per_epoch is not None:
        return config.passes_per_epoch
    return max(1, round(FEWEST / images)) if config.data == "folder" else 1


def images_per_epoch(config: TrainConfig, images: int, classes: int) -> int:
    """The number of images that an epoch draws from a training split of `images` images."""
    drawn = images * passes_per_epoch(config, images)
    return drawn // classes * classes if config.balanced else drawn


def epoch_order(images: Images, config: TrainConfig, epoch: int) -> torch.Tensor:
    """The indices of the images of `epoch` (from 0) in order, int64 [images_per_epoch]; the same on every process.

    A permutation of all images for each pass; with `--balance classes` as many of every class, so that those of small
    classes come several times and of large ones others in every epoch.
    """
    source = generator(torch.device("cpu"), config.seed, Stream.ORDER, epoch)  # so that it is the same on a GPU
    passes = range(passes_per_epoch(config, len(images)))
    if not config.balanced:
        return torch.cat([torch.randperm(len(images), generator=source) for _ in passes]).to(images.labels.device)
    order, labels = torch.randperm(len(images), generator=source), images.labels.cpu()
    by_class = order[labels[order].argsort(stable=True)]
    counts = torch.bincount(labels, minlength=images.num_classes).unsqueeze(1)
    turns = torch.arange(len(passes) * len(images) // images.num_classes)
    chosen = by_class[(counts.cumsum(0) - counts + turns % counts).flatten()]
    return chosen[torch.randperm(len(chosen), generator=source)].to(images.labels.device)


def global_slice(order: torch.Tensor, batch: int, images: int, world: DistContext) -> torch.Tensor:
    """The indices of this process's `images` images in global batch number `batch` of an epoch: int64 [images]."""
    return order[batch * world.world_size * images :][world.share(images)]


def to_model_input(pixels: torch.Tensor, resolution: int) -> torch.Tensor:
    """Stored pixels, uint8 [B, S, S], as the model takes them: float32 [B, 1, resolution, resolution] in [-1, 1]."""
    images = pixels.unsqueeze(1).float()
    stored = pixels.shape[-1]
    if resolution != stored:
        size = (resolution, resolution)
        images = F.interpolate(images, size=size, mode="bilinear", antialias=resolution < stored)
    return images / 127.5 - 1


def _read_everywhere(source: DataSet, world: DistContext) -> tuple[Images, Images]:
    """Both splits. Where a process cannot read them, all raise its error, which process 0 prints."""
    failure = None
    try:
        train, test = (_read(source, split, world.device) for split in ("train", "test"))
    except RequestError as error:
        failure = error
    for told in world.gather(failure and str(failure)):
        if told:
            raise failure or RequestError(told)
    return train, test


def _read(source: DataSet, split: Split, device: torch.device) -> Images:
    pixels, labels = map(torch.from_numpy, source.read(split))
    return Images(pixels.to(device), labels.to(device), source.class_names)
