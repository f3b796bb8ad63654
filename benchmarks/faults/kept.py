"""Which checkpoints a run has to have, and when a start has to refuse because of them: the model of soak.py."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.faults.consistency import Row
from ddpm.run.config import TrainConfig
from ddpm.run.errors import RequestError
from ddpm.run.files import real
from ddpm.run.paths import RunPaths
from ddpm.training.checkpoint import inspect, read_meta, sound_folders
from ddpm.training.keeping import selection_cost
from metrics.files import read_csv

UNWRITTEN = re.compile(r"the checkpoint of step (\d+) could not be written")


def newest_sound(root: Path) -> int:
    """The step of the newest checkpoint that is whole and sound; 0 without one."""
    for folder in reversed(sound_folders(root)):
        with suppress(RequestError, OSError):
            return inspect(folder).step
    return 0


def has_to_refuse(paths: RunPaths) -> bool:
    """Has the next start to refuse, as all checkpoints are damaged?

    If there is only one, and no epoch is over, the run begins anew: there is less than an epoch to save.
    """
    folders = list(paths.checkpoints.glob("step_*"))
    if newest_sound(paths.checkpoints) or not folders:
        return False
    return len(folders) > 1 or any(read_csv(paths))  # rows, or why they cannot be read


def wrong_latest(root: Path, torn: Path | None) -> Iterator[str]:
    """Is `latest`, if it is there, whole and sound?

    Args:
        root: the folder with the checkpoints.
        torn: the folder of one that was damaged since a start last looked at them; `latest` may still be that.
    """
    latest = root / "latest"
    if not os.path.lexists(latest) or (torn and real(latest) == real(torn)):
        return
    try:
        if unsound := inspect(real(latest)).unsound:
            yield f"`latest` is unsound: {unsound}"
    except (RequestError, OSError) as error:
        yield f"`latest` is not whole: {error}"


def wrong_checkpoints(
    root: Path, config: TrainConfig, steps_per_epoch: int, rows: Sequence[Row], damaged: int, output: str
) -> Iterator[str]:
    """Are those kept that are to be kept, no others, and is `best` the best of them?

    Args:
        root: the folder with the checkpoints of a run that has finished.
        rows: those of the run without faults.
        damaged: the last step whose checkpoint was damaged; 0 if none was.
        output: what the run printed. A checkpoint that it said it could not write need not be there: training went on,
            and the state is gone.
    """
    sound = sound_folders(root)
    costs = {folder: selection_cost(read_meta(folder)["metrics"], config) for folder in sound}
    judged = {folder: cost for folder, cost in costs.items() if cost is not None}
    best = min(judged, key=lambda folder: (judged[folder], folder.name)).name if judged else "best"
    if real(root / "best").name != best:
        yield f"`best` is {real(root / 'best').name}, should be {best}"
    each = config.keep_every * steps_per_epoch
    kept = {folder for folder in sound if each and int(folder.name[5:]) % each == 0}
    if more := sorted(folder.name for folder in set(sound) - kept - {*sound[-config.keep_last :], root / best}):
        yield f"checkpoints that nothing asks for are left: {', '.join(more)}"
    due = [int(row["step"]) for row in rows if each and row["step"] % each == 0]
    there = {int(folder.name[5:]) for folder in kept} | {int(step) for step in UNWRITTEN.findall(output)}
    if gone := [step for step in due if step > damaged and step not in there]:
        yield f"the checkpoints of steps {gone} are not kept (--keep-every {config.keep_every})"
