"""Which checkpoints of a run are kept, and which of them is `best`."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ddpm.run.config import TrainConfig
from ddpm.run.config.rules import USUAL_VAL_IMAGES
from ddpm.run.files import real, replace_link
from ddpm.run.metrics import METRICS, VAL_LOSS_EMA, altered_of, chosen_by
from ddpm.training.checkpoint import Checkpoint, read_meta, sound_metas

# what figures depend on
MEASURED_BY = {name for metric in METRICS.values() for name in (*metric.same, *metric.within)}


def update_best(root: Path, config: TrainConfig) -> Path | None:
    """Point `best` at the best sound checkpoint by `--best-by`; of equal ones, the oldest. One that was measured with
    other settings than the newest, such as another guidance, only counts while there is no other.

    Returns its folder; None, and removes `best`, if no checkpoint can be judged by it.

    Raises:
        OSError: a checkpoint cannot be read now: `best` stays as it is.
    """
    metas = sound_metas(root)
    costs = {folder: selection_cost(meta.get("metrics", {}), config) for folder, meta in metas.items()}
    costs = {folder: cost for folder, cost in costs.items() if cost is not None}
    if not costs:
        (root / "best").unlink(missing_ok=True)
        return None
    if metric := chosen_by(config.best_by):
        found, names = {folder: measured_with(meta) for folder, meta in metas.items()}, (*metric.same, *metric.within)
        newest = found[max(found)]
        costs = {folder: costs[folder] for folder in costs if not differing(names, found[folder], newest)} or costs
    best = min(costs, key=costs.get)
    if real(root / "best") != real(best):
        replace_link(root / "best", best.name)
    return best


def selection_cost(row: Mapping[str, Any], config: TrainConfig) -> tuple[float, ...] | None:
    """Sorts checkpoints by `--best-by`, the best first, by the row of their epoch; None if they cannot be judged by it.

    For `criteria`: those that meet most come first; of these the one with the smallest validation loss.
    """
    metric = chosen_by(config.best_by)
    if metric is None:
        loss, met = VAL_LOSS_EMA.of(row), [criterion.met_by_weights(row) for criterion in config.parsed_criteria]
        return (-sum(met), math.inf if loss is None else loss) if row else None
    value = metric.of(row)
    return None if value is None else (-value if metric.larger_is_better else value,)


def measured_with(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What the figures of a checkpoint depend on, by its `meta`: the settings, and what was chosen for the device."""
    settings, used, device = meta.get("settings") or {}, meta.get("used"), meta.get("progress", {}).get("device")
    found = {"val_images": USUAL_VAL_IMAGES} | {name: value for name, value in settings.items() if value is not None}
    if used and device:  # noise is not the same on a CPU as on a GPU
        found["validation"] = used["val_images"], device.startswith("CPU")
    return found


def altered_settings(
    start: Checkpoint | None, config: TrainConfig, used: Mapping[str, Any], device: str
) -> dict[str, int]:
    """What figures depend on and has changed during the run → the number of rows before the latest change. Those rows'
    figures cannot be compared with later ones (`Metric.comparable_from`).

    Args:
        used: what was chosen for the device (`Choices.values`).
        device: its name.
    """
    if start is None:
        return {}
    rows = len(start.meta["history"])
    now = measured_with({"settings": config.to_dict(), "used": used, "progress": {"device": device}})
    others = differing(MEASURED_BY, measured_with(start.meta), now)
    return {**altered_of(start.meta["progress"]), **dict.fromkeys(others, rows)} if rows else {}


def differing(names: Iterable[str], before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Which of `names` have another value now; those that an older version lacked count as equal."""
    return sorted(name for name in names if name in before and name in now and before[name] != now[name])


def prune(root: Path, keep_last: int, keep_every: int) -> list[str]:
    """Remove old checkpoints, except the newest `keep_last` sound ones, every `keep_every`-th epoch's, `best` and
    `latest`. An unsound one is only kept while it is the newest of all.

    Returns a message for each one that could not be removed, which is no reason to stop training.

    Raises:
        OSError: a checkpoint cannot be read now, which may be one to keep: none is removed.
    """
    folders, sound = sorted(root.glob("step_*")), sound_metas(root)
    newest = list(sound)[-keep_last:]
    kept = {*newest, *folders[-1:], *(root / real(root / name).name for name in ("best", "latest"))}
    kept |= {folder for folder, meta in sound.items() if keep_every and _completed_epoch(meta) % keep_every == 0}
    problems = []
    for folder in folders:
        old = bool(newest) and folder < newest[0]
        if folder in kept or not (old or read_meta(folder).get("unsound")):
            continue
        try:
            _remove(folder)
        except OSError as error:
            problems.append(f"old checkpoint {folder} could not be removed: {error.strerror or error}")
    return problems


def _completed_epoch(meta: Mapping[str, Any]) -> float:
    """The epoch that ended at a checkpoint; for one within an epoch NaN, which no `%` test accepts."""
    progress = meta.get("progress", {})
    return progress["epoch"] if progress.get("batch") == 0 else float("nan")


def _remove(folder: Path) -> None:
    """Delete a checkpoint. It is renamed first, so that a half-deleted one is never taken for a checkpoint."""
    hidden = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    folder.rename(hidden)
    shutil.rmtree(hidden)
