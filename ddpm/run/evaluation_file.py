"""`evaluation.json`, as evaluate.py writes it: what has to be in it, and how it is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddpm.run import kinds
from ddpm.run.evaluation_figures import AUGMENTED, CAS, CAS_UNGUIDED, FIGURES, FRECHET, RCA, TOP1, WORTH, at
from ddpm.run.files import read_json, why
from ddpm.run.paths import RunPaths


def _or_null(kind: kinds.Kind) -> kinds.Kind:
    """The kind that also accepts null, which stands for a number that is not finite or not known."""
    return lambda value: 0 if value is None else kind(value)


def _proportion(value: Any) -> Any:
    return value if kinds.amount(value) is not None and value <= 1 else None


NUMBER, SHARE = _or_null(kinds.figure), _or_null(_proportion)
ESTIMATE = {"value": NUMBER, "low": NUMBER, "high": NUMBER, "count": kinds.count}
QUANTILES = dict.fromkeys(("p01", "p05", "p50", "p95"), kinds.figure)
RECOMMENDED = {"sampler": kinds.text, "steps": kinds.count, "why": kinds.text}
LENGTHS = [{"ema_length": _or_null(kinds.amount), RCA.key: ESTIMATE, FRECHET.key: ESTIMATE}]
GUIDANCE = {"guidance_interval": kinds.interval, "guide": kinds.text}  # where guidance has them
TEST_IMAGES = dict.fromkeys(("total", "validation", "evaluation"), kinds.count)
LEARNING = {
    **dict.fromkeys((CAS.key, CAS_UNGUIDED.key, WORTH.key, AUGMENTED.key, "accuracy", "real_accuracy"), ESTIMATE),
    "images": kinds.count, "seeds": kinds.count, "curve": [{"images": kinds.count, "accuracy": SHARE}],
    "per_class": [{"name": kinds.text, "accuracy": SHARE, "real_accuracy": SHARE, CAS.key: NUMBER}],
}  # fmt: skip
MEMORISATION = {
    "generated": QUANTILES, "heldout": QUANTILES, "train_images": kinds.count,
    "histogram": {"edges": [kinds.figure], "generated": [kinds.count], "heldout": [kinds.count]},
}  # fmt: skip
CLASS_BALANCE = {"shares": [NUMBER], "real_shares": [NUMBER], "count": kinds.count}
SHAPE = {  # the fields of evaluation.json that are read, besides the estimates; [kind] is a list of any length
    "generated": kinds.text, "run": kinds.text, "checkpoint": kinds.text, "step": _or_null(kinds.count),
    "data": kinds.data_set, "device": kinds.text, "command": kinds.text, "seed": kinds.count,
    "samples_per_class": kinds.count,
    "classifier": {"train_images": kinds.count, "test_images": kinds.count},
    "sampler": {"name": kinds.text, "steps": kinds.count, "guidance_scale": NUMBER, "seconds_per_image": NUMBER},
    "conditional": {
        "confusion": [[kinds.count]],
        "per_class": [{"name": kinds.text, TOP1.key: SHARE, "real_top1": SHARE, RCA.key: NUMBER, "count": kinds.count}],
    },
    "distances": {"reference_images": kinds.count},
    "guidance": [{"guidance_scale": kinds.amount, RCA.key: ESTIMATE, FRECHET.key: ESTIMATE, "frechet_real": ESTIMATE}],
    "samplers": [{"sampler": kinds.text, "steps": kinds.count, RCA.key: ESTIMATE, FRECHET.key: ESTIMATE,
                  "seconds_per_image": kinds.amount}],
}  # fmt: skip


def load_evaluation(paths: RunPaths) -> dict[str, Any] | None:
    """A run's `evaluation.json`, checked: every field of SHAPE and of the registry of figures is there and valid.

    None if there is no such file. In a file of an older version, `test_images`, `recommended`, `learning`, `unguided`,
    `ema_lengths`, `recommended_length` and optional figures may be None, and `real_count` of a class is filled in.
    After `--no-cas` `learning` is None, of a model that never drew without a label `class_balance`, and where it was
    compared with other images than those of the training `memorisation`.

    Raises:
        ValueError: it is damaged or cannot be read; says in a few words why.
    """
    return read_evaluation(paths.evaluation)


def read_evaluation(file: Path) -> dict[str, Any] | None:
    """As `load_evaluation`, of any file."""
    try:
        evaluation = read_json(file)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(why(error)) from error
    _check(evaluation, SHAPE, "")
    later = {
        "class_balance": CLASS_BALANCE, "memorisation": MEMORISATION, "trained_on": kinds.data_set,
        "test_images": TEST_IMAGES, "recommended": RECOMMENDED, "learning": LEARNING,
        "unguided": {},
        "ema_lengths": LENGTHS, "recommended_length": {"ema_length": kinds.amount, "why": kinds.text},
    }  # fmt: skip
    evaluation.setdefault("weights", "ema")  # older versions measured no others
    _check(evaluation["weights"], kinds.text, "weights")
    for name, shape in later.items():
        if evaluation.setdefault(name, None) is not None:
            _check(evaluation[name], shape, name)
    for figure in FIGURES.values():
        estimates = {place: at(evaluation, place) for place in (figure.place, figure.real) if place}
        if not figure.optional or any(estimates.values()):
            for place, estimate in estimates.items():
                _check(... if estimate is None else estimate, ESTIMATE, place)
    rows = (*evaluation["guidance"], *evaluation["samplers"], *(evaluation["ema_lengths"] or ()))
    for row in rows:
        if row.get(CAS.key) is not None:
            _check(row[CAS.key], ESTIMATE, f"a sweep's {CAS.key}")
    for settings in (evaluation["sampler"], *rows):
        for name, kind in GUIDANCE.items():
            if name in settings:
                _check(settings[name], kind, name)
    classes = evaluation["conditional"]["per_class"]
    for entry in classes:  # older versions compared with equally many of each class
        entry.setdefault("real_count", evaluation["classifier"]["test_images"] // len(classes))
        _check(entry["real_count"], kinds.count, "conditional.per_class.real_count")
    _check_lengths(evaluation)
    return evaluation


def real_images_words(images: dict[str, int]) -> str:
    """`the 16,800 test images (of 18,800) that validation does not use`, from the file's `test_images`."""
    total, shared = images["total"], images["validation"] + images["evaluation"] - images["total"]
    if shared > 0:
        return f"all {total:,} test images; validation uses {shared:,} of them too, as it leaves too few"
    return f"the {images['evaluation']:,} test images (of {total:,}) that validation does not use"


def mixture_words(counts: Sequence[int]) -> str:
    """A caution, ` Their classes have …`, where classes have very different numbers of real images, but of generated
    ones equally many; empty where they are about equal."""
    if max(counts) <= 2 * max(min(counts), 1):
        return ""
    sizes = f"{min(counts):,} to {max(counts):,} images"
    return (
        f" Their classes have {sizes}, those of generated ones equally many: RCA and distances also show the "
        "difference between these two mixtures."
    )


def _check_lengths(evaluation: dict[str, Any]) -> None:
    """Raise a ValueError if lists that belong together differ in length."""
    classes = len(evaluation["conditional"]["per_class"])
    balance, memorised = evaluation["class_balance"], evaluation["memorisation"]
    confused = evaluation["conditional"]["confusion"]
    shares = [balance["shares"], balance["real_shares"]] if balance else []
    sizes = {len(confused), *map(len, confused), *map(len, shares)}
    bins = {1}
    if memorised:
        histogram = memorised["histogram"]
        bins = {len(histogram["edges"]) - 1, len(histogram["generated"]), len(histogram["heldout"])}
    if evaluation["learning"] and not evaluation["learning"]["curve"]:
        raise ValueError("learning.curve is empty")
    if not classes or sizes != {classes} or len(bins) != 1 or bins == {0}:
        raise ValueError("lists that belong together differ in length")


def _check(value: Any, shape: Any, where: str) -> None:
    """Check that `value`, found at the place `where`, has the shape: a dict of shapes, a list [shape], or a kind.

    Raises:
        ValueError: it has another shape, or is `...`, which stands for a missing value; names the place.
    """
    if value is ...:
        raise ValueError(f"{where} is missing")
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            raise ValueError(f"{where or 'the file'} is not an object")
        for name, inner in shape.items():
            _check(value.get(name, ...), inner, f"{where}.{name}".lstrip("."))
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise ValueError(f"{where} is not a list")
        for item in value:
            _check(item, shape[0], where)
    elif shape(value) is None:
        raise ValueError(f"{where} is {value!r:.30}")
