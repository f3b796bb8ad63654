"""`training_metrics.json` as everything reads it that is made from it. Without torch and matplotlib, so in no time."""

from __future__ import annotations

import json
import math
from typing import Any

import pandas as pd

from ddpm.errors import RequestError
from ddpm.paths import RunPaths
from metrics.text import number
from metrics.tracker import COLUMNS

NEEDED = {"data": str, "state": str, "epochs": list, "summary": dict}
PARTS = {
    "settings": dict, "hyperparameters": dict, "environment": dict, "data_summary": dict, "model": dict, "starts": list,
}  # fmt: skip
FIGURES = tuple(name for name in COLUMNS if name not in ("epoch", "data"))


def load_document(paths: RunPaths) -> dict[str, Any]:
    """What `training_metrics.json` holds; parts that are missing or of another kind are there and empty.

    The run is called as its folder is: that is the name one types.

    Raises:
        RequestError: there is no such file, or it is not one.
    """
    try:
        document = json.loads(paths.json.read_text(encoding="utf-8"))
        for name, kind in NEEDED.items():
            if not isinstance(document[name], kind):
                raise TypeError(f"{name!r} is not a {kind.__name__}")
    except FileNotFoundError:
        raise RequestError(f"{paths.json} is not there: has the run {paths.run!r} begun to train?") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        mend = "restore it from a backup, or let the run write it again at the end of its next epoch"
        raise RequestError(f"{paths.json} cannot be read as metrics ({error!r}); {mend}") from error
    parts = {name: document[name] if isinstance(document.get(name), kind) else kind() for name, kind in PARTS.items()}
    parts["starts"] = [start for start in parts["starts"] if isinstance(start, dict)]
    return {**document, **parts, "run": paths.run}


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
