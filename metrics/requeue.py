"""Asked by submit.sh: what is saved before a start of training, and what shall become of the job after it.

    python -m metrics.requeue before FLAGS...             prints a token that names the newest checkpoint
    python -m metrics.requeue after CODE TOKEN FLAGS...   says in one line whether Slurm shall queue the job again

FLAGS are those of train.py, CODE is the exit code of torchrun or srun. Their code alone does not tell how a run ended:
torchrun's workers exit with 0 when they stopped on request. The exit code of `after` is one of the three below.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from ddpm.config import parse_args
from ddpm.errors import RequestError
from ddpm.paths import RunPaths
from ddpm.program import run_program
from metrics.status import read_status

STANDS = 0  # CODE is the whole truth
AGAIN = 10  # more can be had from the same command
UNFINISHED = 75  # the run is not finished, whatever CODE says


def newest_checkpoint(paths: RunPaths) -> str:
    """A token that differs once another checkpoint has become the latest; empty where there is none."""
    try:
        meta = (paths.checkpoints / "latest").resolve() / "meta.json"
        return f"{meta.parent.name}@{meta.stat().st_mtime_ns}"
    except OSError:
        return ""


def decide(status: Mapping[str, Any] | None, code: int, saved: bool, environment: Mapping[str, str]) -> tuple[int, str]:
    """The verdict on a start that has ended, and why.

    Args:
        status: what `status.json` says, which may be of an earlier start or another job.
        code: the exit code of the launcher.
        saved: whether a checkpoint was written in this start. Only that is progress: what a crash lost is not.
        environment: Slurm's variables and MAX_REQUEUES.
    """
    state = status and status["state"]
    if state == "finished" and code == 0:
        return STANDS, "the run is finished"
    if status is None or status.get("slurm_job_id") != environment["SLURM_JOB_ID"]:
        return UNFINISHED, "not queued again: it ended before the training began"
    if state == "finished":
        return STANDS, f"not queued again: the run is finished, though what ran it ended with {code}"
    if not status.get("retry"):
        return UNFINISHED, "not queued again: the same command would fail again"
    how = "stopped" if state == "stopped" else "did not end well"
    if not saved:
        return UNFINISHED, f"not queued again: the run {how}, and since this start no checkpoint was saved"
    restarts, limit = int(environment.get("SLURM_RESTART_COUNT", 0)), int(environment["MAX_REQUEUES"])
    if restarts >= limit:
        return UNFINISHED, f"not queued again: the run {how}; restarts: {restarts}, and MAX_REQUEUES is {limit}"
    return AGAIN, f"the run {how} and can go on; restarts: {restarts}, at most {limit}"


def main(arguments: list[str]) -> int:
    """Answer submit.sh. Returns the exit code."""
    when, *rest = arguments
    told, flags = ([], rest) if when == "before" else (rest[:2], rest[2:])
    try:
        config = parse_args(flags)
    except RequestError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    paths = RunPaths(config.output_root.resolve(), config.run)
    if not told:
        print(newest_checkpoint(paths))
        return 0
    code, before = told
    if config.dry_run:
        return STANDS
    verdict, why = decide(read_status(paths), int(code), newest_checkpoint(paths) != before, os.environ)
    print(why)
    return verdict


if __name__ == "__main__":
    sys.exit(run_program(lambda: main(sys.argv[1:])))
