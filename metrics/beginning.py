"""Where a run begins: from nothing, or from one of its checkpoints. Files in the way are set aside."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from ddpm.run.config import TrainConfig
from ddpm.run.errors import RequestError
from ddpm.run.files import real, why_and_cure
from ddpm.run.paths import RunPaths
from ddpm.training import checkpoint
from ddpm.training.checkpoint import Checkpoint
from ddpm.training.keeping import update_best
from ddpm.training.resume import abandoned_line, choose_start, damaged_checkpoints
from metrics.files import last_words, read_csv, read_status, says_finished
from metrics.starts import began_in_this_job


class Beginning(NamedTuple):
    """`start`: the checkpoint to continue from, if any; `was_finished`: had the run reached its end there? `cause`: how
    the start before this one ended; `notes`: messages for the log."""

    start: Checkpoint | None
    was_finished: bool
    cause: str
    notes: list[str]


def prepare_beginning(paths: RunPaths, config: TrainConfig, identity: dict[str, Any], restarted: bool) -> Beginning:
    """Choose where the run begins, and make a place for its files (main process only).

    Args:
        identity: as `identity_of` in `ddpm/training/identity.py` returns it.
        restarted: has torchrun started this process anew, within the same command?

    Raises:
        RequestError: its checkpoints are damaged or of another run, or its files cannot be used.
    """
    try:
        return _prepare(paths, config, identity, restarted)
    except OSError as error:
        raise RequestError(f"the run's files cannot be used: {why_and_cure(error)}") from error


def _prepare(paths: RunPaths, config: TrainConfig, identity: dict[str, Any], restarted: bool) -> Beginning:
    status, root = read_status(paths), paths.checkpoints
    own = any(root.glob("step_*"))
    # a request that an earlier start of this job has carried out; from another run's checkpoint it begins again
    # until it has one of its own
    began = began_in_this_job(paths, os.environ, restarted)
    resume = "auto" if began and (own or config.resume == "never") else config.resume
    begun = any(read_csv(paths))  # rows, or why they cannot be read
    start, damaged = choose_start(root, resume, identity, begun)
    was_finished = start is not None and says_finished(paths, status, start.meta["history"])
    notes = []
    if start is None and resume == "auto" and own:
        why = "; ".join(damaged.values()) or "no checkpoint of the earlier start is sound"
        notes.append(f"{why}: the run begins anew")
    others = start is not None and not began and not real(start.folder).is_relative_to(real(root))  # another run's
    notes += [f"earlier files of this name are now in {old}" for old in paths.prepare(afresh=start is None or others)]
    if start:
        notes += damaged_checkpoints(root, start, damaged)
        notes += abandoned_line(paths, start)
        if notes or not was_finished:  # else metrics/jobs/finished.py decides
            update_best(root, config)
    checkpoint.point_latest(root)
    checkpoint.sweep(root)
    return Beginning(start, was_finished, "started" if others else last_words(status), notes)
