"""`training_metrics.json` as everything reads it that is made from it. Without torch and matplotlib, so in no time."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from ddpm.run import kinds
from ddpm.run.errors import RequestError
from ddpm.run.files import read_json, why
from ddpm.run.format import number
from ddpm.run.metrics import METRICS
from ddpm.run.paths import RunPaths
from metrics.live.status import ENDED
from metrics.tracker import human_time, summarise

NEEDED = {"data": str, "state": str, "epochs": list, "summary": dict}
PARTS = {
    "settings": kinds.settings,
    "hyperparameters": lambda part: {**part, **HYPERPARAMETERS(part)} if isinstance(part, dict) else {},
    "environment": kinds.record(
        **dict.fromkeys(("host", "platform", "python", "torch", "diffusers", "device", "gpu"), kinds.text),
        **dict.fromkeys(("precision", "command", "commit"), kinds.text),
        **dict.fromkeys(("world_size", "nodes"), kinds.count), compile=kinds.flag, choices=kinds.mapping(kinds.text),
    ),
    "data_summary": kinds.record(
        class_names=kinds.every(kinds.text), **dict.fromkeys(("train_counts", "test_counts"), kinds.every(kinds.count)),
        **dict.fromkeys(("train_images", "test_images"), kinds.count),
    ),
    "model": kinds.record(parameters=kinds.count, flops_per_image=kinds.amount, peak_flops=kinds.amount),
    "starts": kinds.some(kinds.record(time=kinds.text, step=kinds.count, epoch=kinds.count, cause=kinds.text)),
    "artifacts": kinds.mapping(kinds.text),
    "generated": kinds.text,
}  # fmt: skip
HYPERPARAMETERS = kinds.record(
    **dict.fromkeys(("total_steps", "steps_per_epoch", "global_batch_size", "val_images"), kinds.count)
)
EMPTY = {"starts": [], "generated": None}  # parts that are not there; of the others {}
FIGURES = tuple(name for name in METRICS if name not in ("epoch", "data"))


def load_document(paths: RunPaths) -> dict[str, Any]:
    """What `training_metrics.json` holds; parts and figures that are missing or of another kind are there and empty.

    The run is called as its folder is: that is the name one types. `damaged` says in words what was left out of
    `epochs`, None if nothing was; the summary is of all epochs, made anew from them where none is missing.

    Raises:
        RequestError: there is no such file, or it is not one.
    """
    try:
        document = read_json(paths.json)
        for name, kind in NEEDED.items():
            if not isinstance(document[name], kind):
                raise TypeError(f"{name!r} is not a {kind.__name__}")
        if document["data"] not in kinds.DATA or document["state"] not in ("running", *ENDED):
            raise ValueError(f"data {document['data']!r:.30}, state {document['state']!r:.30}")
    except FileNotFoundError:
        raise RequestError(f"{paths.json} is not there: has the run {paths.run!r} begun to train?") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        mend = "restore it from a backup, or let the run write it again at the end of its next epoch"
        words = why(error) if isinstance(error, OSError) else repr(error)
        raise RequestError(f"{paths.json} cannot be read as metrics ({words}); {mend}") from error
    parts = {name: kind(document.get(name)) or EMPTY.get(name, {}) for name, kind in PARTS.items()}
    _agree(parts["data_summary"])
    parts["epochs"], lost = kinds.rows(document["epochs"])
    summary = {name: kinds.amount(value) for name, value in document["summary"].items()}
    summary |= {} if lost else summarise(parts["epochs"], parts["starts"])
    if "total_time_human" in summary:  # a text, so made anew
        total = summary.get("total_time_sec")
        summary["total_time_human"] = None if total is None else human_time(total)
    damaged = f"{' and '.join(lost)} of {paths.json.name} cannot be read and are left out" if lost else None
    return {**document, **parts, "summary": summary, "run": paths.run, "damaged": damaged}


def _agree(summary: dict[str, Any]) -> None:
    """Empty the counts of classes if they are not of the classes that are named."""
    names = summary.get("class_names")
    for name in ("train_counts", "test_counts"):
        if names is not None and len(summary.get(name) or names) != len(names):
            summary[name] = []


def planned_epochs(document: dict[str, Any]) -> int | None:
    """How many epochs the run is to have, `--max-steps` included."""
    known = document["hyperparameters"]
    total, each = number(known.get("total_steps")), number(known.get("steps_per_epoch"))
    if total and each:
        return math.ceil(total / each)
    epochs = number(document["settings"].get("epochs"))
    return int(epochs) if epochs else None


def epochs_frame(document: dict[str, Any]) -> pd.DataFrame:
    """The rows by epoch, every column of figures there, as floats; what is missing or no finite number is NaN."""
    rows = [row for row in document["epochs"] if isinstance(row, dict)]
    frame = pd.DataFrame(rows, columns=["epoch", *FIGURES], dtype=object).apply(pd.to_numeric, errors="coerce")
    frame = frame.astype(float).replace([math.inf, -math.inf], math.nan).dropna(subset="epoch")
    frame = frame.astype({"epoch": int}).drop_duplicates("epoch", keep="last").set_index("epoch").sort_index()
    frame["loss_change"] = frame["loss_mean"].diff() / frame.index.to_series().diff()
    return frame
