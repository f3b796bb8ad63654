"""The reference classifier: trained once on the real training images, and kept under the hash of the data."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_weights
from safetensors.torch import save as dump_weights

from ddpm.evaluation.classifier import CharacterCNN, Recipe, ReferenceClassifier, fit
from ddpm.run import kinds
from ddpm.run.files import atomic_write, read_file, read_json, sha256_file
from ddpm.run.format import plural
from ddpm.training.data import Images

UNUSABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError)


def load_or_train(
    train: Images,
    test: Images,
    folder: Path,
    log: Callable[[str], None],
    recipe: Recipe | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> ReferenceClassifier | None:
    """The classifier for these data, on the device of `train`: loaded from under `folder`, or trained and saved there.

    Two calls on the same data give the same classifier, but on a GPU only nearly so: distances in their features may
    differ by some percent. So if another process has saved one meanwhile, that one is taken. Global random state is
    left as it was. A saved one that is damaged, or of another recipe, is trained anew; a folder that cannot be written
    to is only a warning. `test` takes no part in training: it is classified once, at the end.

    Args:
        folder: holds all classifiers, each in a folder named by the SHA-256 of its data.
        log: called with each line of progress.
        interrupted: called before every step of training; once it returns true, the result is None.
    """
    recipe, digest = recipe or Recipe(), _sha256(train, test)
    place = folder / digest[:16]

    def saved() -> ReferenceClassifier:
        return _load(place, recipe, digest, train.pixels.device, (len(train), len(test)), train.num_classes)

    if os.path.lexists(place):
        try:
            return saved()
        except FileNotFoundError:  # saving it was interrupted
            pass
        except UNUSABLE as error:
            log(f"classifier: the one in {place} cannot be used ({error}); training a new one")
    classifier = _train(train, test, recipe, digest, log, interrupted)
    if classifier is None:
        return None
    try:
        kept = _save(classifier, place, saved)
        how = "saved in" if kept is classifier else "another process has saved one meanwhile: it is taken from"
        log(f"classifier: {how} {place}")
    except OSError as error:
        log(f"classifier: not saved, {error.filename}: {error.strerror}; the next evaluation has to train it again")
        return classifier
    return kept


def _sha256(train: Images, test: Images) -> str:
    """The SHA-256 of all pixels and labels of both splits."""
    digest = hashlib.sha256()
    for part in (train.pixels, train.labels, test.pixels, test.labels):
        digest.update(part.cpu().contiguous().numpy())
    return digest.hexdigest()


def _load(
    place: Path, recipe: Recipe, digest: str, device: torch.device, images: tuple[int, int], num_classes: int
) -> ReferenceClassifier:
    meta = read_json(place / "meta.json")
    if meta["recipe"] != asdict(recipe):
        raise ValueError("it was trained by another recipe")
    if meta["data_sha256"] != digest or meta["weights_sha256"] != sha256_file(place / "classifier.safetensors"):
        raise ValueError("its files are damaged")
    known = (kinds.count(meta["epochs"]), kinds.amount(meta["seconds"]))
    if None in known or (meta["train_images"], meta["test_images"]) != images:
        raise ValueError("its meta.json is damaged")
    network = CharacterCNN(num_classes)
    network.load_state_dict(load_weights(read_file(place / "classifier.safetensors")))
    return ReferenceClassifier(network.to(device), meta)


def _save(
    classifier: ReferenceClassifier, place: Path, saved: Callable[[], ReferenceClassifier]
) -> ReferenceClassifier:
    """Write the weights, and `meta.json` with their hash, as one folder. Returns the classifier that is there then:
    `saved()` if another process has been faster, and its one can be used."""
    new = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    old = new.with_name(f"{new.name}.old")
    new.mkdir(parents=True)
    try:
        atomic_write(new / "classifier.safetensors", _weights(classifier.network))
        atomic_write(new / "meta.json", json.dumps(classifier.meta, indent=2))
        try:
            new.rename(place)
        except OSError:
            if not os.path.lexists(place):
                raise
            with suppress(*UNUSABLE):
                return saved()
            place.rename(old)
            new.rename(place)
        return classifier
    finally:
        for rest in (new, old):
            shutil.rmtree(rest, ignore_errors=True)


def _weights(network: CharacterCNN) -> bytes:
    return dump_weights({name: value.cpu().contiguous() for name, value in network.state_dict().items()})


def _train(
    train: Images,
    test: Images,
    recipe: Recipe,
    digest: str,
    log: Callable[[str], None],
    interrupted: Callable[[], bool],
) -> ReferenceClassifier | None:
    start, epochs = time.perf_counter(), recipe.epochs(len(train))
    log(f"classifier: training on {plural(len(train), 'image')}, {plural(epochs, 'epoch')}; once for these data")

    def tell(epoch: int, loss: float) -> None:
        log(f"classifier: epoch {epoch} of {epochs}, loss {loss:.3f}, {time.perf_counter() - start:.0f} s")

    network = fit(train, recipe, tell, interrupted)
    if network is None:
        return None
    meta = {"data_sha256": digest, "train_images": len(train), "test_images": len(test), "epochs": epochs}
    meta |= {"seconds": round(time.perf_counter() - start, 1), "recipe": asdict(recipe)}
    meta["weights_sha256"] = hashlib.sha256(_weights(network)).hexdigest()
    classifier = ReferenceClassifier(network, meta)
    correct = classifier(test.pixels).probabilities.argsort(1, descending=True)[:, :5] == test.labels.cpu()[:, None]
    meta |= {"top1": correct[:, 0].float().mean().item(), "top5": correct.any(1).float().mean().item()}
    return classifier
