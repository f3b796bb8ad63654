"""`evaluation.json` as evaluate.py writes it: what has to be in it, and how it is read."""

from __future__ import annotations

from typing import Any

from ddpm.run.files import read_json, why
from ddpm.run.paths import RunPaths

Estimate = dict[str, Any]  # "value", "low", "high": the 95% interval; "count": of what it was measured on

FINITE = (int, float)
NUMBER = (*FINITE, type(None))  # null stands for what is not finite
ESTIMATE = {"value": NUMBER, "low": NUMBER, "high": NUMBER, "count": int}
QUANTILES = dict.fromkeys(("p01", "p05", "p50", "p95"), FINITE)
SHAPE = {  # of what is read from evaluation.json; a list stands for one of any length
    "generated": str, "run": str, "checkpoint": str, "step": NUMBER, "data": str, "device": str, "command": str,
    "seed": int, "samples_per_class": int,
    "classifier": {"top1": ESTIMATE, "top5": ESTIMATE, "train_images": int, "test_images": int},
    "sampler": {"name": str, "steps": int, "guidance_scale": NUMBER, "seconds_per_image": NUMBER},
    "conditional": {
        "top1": ESTIMATE, "top5": ESTIMATE, "rca": ESTIMATE, "confusion": [[int]],
        "per_class": [{"name": str, "top1": NUMBER, "real_top1": NUMBER, "rca": NUMBER, "count": int}],
    },
    "class_balance": {
        "shares": [NUMBER], "real_shares": [NUMBER], "total_variation": ESTIMATE, "real_total_variation": ESTIMATE,
        "count": int,
    },
    "distances": {
        **dict.fromkeys(("frechet", "frechet_real", "kernel", "kernel_real", "precision", "recall"), ESTIMATE),
        "reference_images": int,
    },
    "memorisation": {
        "generated": QUANTILES, "heldout": QUANTILES, "closer_than_heldout_p01": ESTIMATE, "train_images": int,
        "histogram": {"edges": [FINITE], "generated": [FINITE], "heldout": [FINITE]},
    },
    "guidance": [{"guidance_scale": FINITE, "rca": ESTIMATE, "frechet": ESTIMATE, "frechet_real": ESTIMATE}],
    "samplers": [{"sampler": str, "steps": int, "rca": ESTIMATE, "frechet": ESTIMATE, "seconds_per_image": FINITE}],
}  # fmt: skip


def load_evaluation(paths: RunPaths) -> dict[str, Any] | None:
    """What `evaluation.json` holds, everything that is read from it there; None if there is no such file.

    Raises:
        ValueError: it is damaged; says in a few words how.
    """
    try:
        evaluation = read_json(paths.evaluation)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(why(error)) from error
    _check(evaluation, SHAPE, "")
    classes = len(evaluation["conditional"]["per_class"])
    balance, histogram = evaluation["class_balance"], evaluation["memorisation"]["histogram"]
    confused = evaluation["conditional"]["confusion"]
    sizes = {len(confused), *map(len, confused), len(balance["shares"]), len(balance["real_shares"])}
    bins = {len(histogram["edges"]) - 1, len(histogram["generated"]), len(histogram["heldout"])}
    if not classes or sizes != {classes} or len(bins) != 1 or bins == {0}:
        raise ValueError("lists that belong together differ in length")
    take = evaluation.setdefault("recommended", None)
    if take is not None:
        _check(take, {"sampler": str, "steps": int, "why": str}, "recommended")
    return evaluation


def _check(value: Any, shape: Any, where: str) -> None:
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
    elif not isinstance(value, shape) or isinstance(value, bool) or (shape is int and value < 0):
        raise ValueError(f"{where} is missing" if value is ... else f"{where} is {value!r:.30}")
