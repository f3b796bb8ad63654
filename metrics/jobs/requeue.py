"""Decisions for submit.sh: can the job train, and is it queued again after a start has ended?

    python -m metrics.jobs.requeue before FLAGS...               refuses wrong flags
    python -m metrics.jobs.requeue after CODE SIGNAL FLAGS...    prints how the start ended, and what happens next

FLAGS are those of train.py, CODE is the exit code of torchrun or srun, SIGNAL the last signal from Slurm (USR1, TERM,
or empty). CODE alone is not enough: torchrun's workers exit with 0 when they stopped on request. The exit code of
`after` is one of the three below. The variable SCONTROL_SHOW_JOB holds the output of `scontrol show job`, or nothing.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ddpm.run import cli
from ddpm.run.arguments import parse_args
from ddpm.run.command import same_command
from ddpm.run.errors import EXIT_STOPPED, RequestError
from ddpm.run.files import real
from ddpm.run.format import number
from ddpm.run.lock import owner_of, slurm_start, whose
from ddpm.run.paths import RunPaths
from ddpm.run.program import run_program
from metrics.files import read_json, read_status
from metrics.jobs.job_summary import summary
from metrics.starts import Start, published_starts

STANDS = 0  # exit with CODE
AGAIN = 10  # queue the job again: the same command continues the run
UNFINISHED = EXIT_STOPPED  # do not queue it again, though the run is not finished
SHORT = 240  # seconds: a time limit hardly longer than the notice that submit.sh asks for


@dataclass(frozen=True)
class Ended:
    """A start of a Slurm job that has ended.

    Attributes:
        slurm: job and restart.
        code: exit code of the launcher.
        signal: the last signal that Slurm sent to the job.
        status: content of `status.json`, which may be of another start; empty if it cannot be read.
        owner: holder of the claim on the run; empty if there is none.
        said: the record that this start left, None if there is none.
        saved: step of the latest checkpoint, None if there is none.
        facts: Slurm's fields of the job.
        max_requeues: number of restarts after which the job is not queued again.
        resume: the command's `--resume`.
    """

    slurm: tuple[str, int]
    code: int
    signal: str = ""
    status: Mapping[str, Any] = field(default_factory=dict)
    owner: Mapping[str, Any] = field(default_factory=dict)
    said: Start | None = None
    saved: int | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    max_requeues: int = 30
    resume: str = "auto"

    @property
    def way_on(self) -> str:
        return f"to continue, {same_command(self.resume, 'submit')}"


def decide(ended: Ended) -> tuple[int, str, str]:
    """Verdict (one of the exit codes above), how the start ended, and what happens next."""
    status, (job, restart) = ended.status, ended.slurm
    message = str(status.get("message") or "").strip()
    state = f"{status.get('state')}" + (f": {message}" if message else "")
    if status.get("state") == "running":
        state = f"killed without a message at step {status.get('step')} or later"
    if status.get("state") == "finished" and ended.code == 0:
        return STANDS, state, "nothing: the run is finished"
    others = [start for start in map(slurm_start, (status, ended.owner)) if start and start[0] == job]
    counts = [int(count) for count in re.findall(r"^\d+$", ended.facts.get("Restarts", ""))]
    newest = max([restart, *counts, *(start[1] for start in others)])
    if newest > restart:  # queueing would kill the newer start; a node that Slurm has given up may be alive
        taken = any(start[1] > restart for start in others)
        following = (
            f"not queued again from here: Slurm has done so since (restart {newest}, this was restart {restart})"
        )
        return UNFINISHED, f"replaced by restart {newest}" if taken or not ended.said else state, following
    if ended.said is None:
        state = "ended before the training began, see above" if status else "status.json is missing or damaged"
        return UNFINISHED, f"{state} (exit code {ended.code})", f"not queued again; {ended.way_on}"
    for other in (ended.owner, status):
        if other and slurm_start(other) != ended.slurm:
            return UNFINISHED, f"overtaken: {whose(other)} has taken the run over", "not queued again"
    if status.get("state") == "finished":
        return STANDS, state, f"not queued again: the run is finished, though its launcher ended with {ended.code}"
    if status.get("retry") is not True:
        return UNFINISHED, state, "not queued again: the same command would fail again"
    return _decide_resumable(ended, state)


def _decide_resumable(ended: Ended, state: str) -> tuple[int, str, str]:
    """As `decide`, for a run that the same command can continue."""
    restart, began_at = ended.slurm[1], ended.said.began_at
    if began_at is None or ended.saved is None or ended.saved <= began_at:
        following = "not queued again: this start has saved no new step"
        if ended.signal != "USR1":
            return UNFINISHED, state, f"{following}; {ended.way_on}"
        limit = ended.facts.get("TimeLimit", "now")
        longer = f"give a longer --time than {limit}, or a later notice, such as --signal=B:USR1@60"
        return UNFINISHED, state, f"{following} before Slurm gave notice of the time limit: {longer}"
    restarts = f"restarts: {restart}, MAX_REQUEUES is {ended.max_requeues}"
    if restart >= ended.max_requeues:
        return UNFINISHED, state, f"not queued again ({restarts}); {ended.way_on}"
    if ended.signal == "TERM":
        after = "after a preemption Slurm queues it again, after scancel it stays cancelled"
        return UNFINISHED, state, f"not queued again from here, as the signal was TERM: {after}"
    return AGAIN, state, f"queued again, to go on from step {ended.saved} ({restarts})"


def saved_step(paths: RunPaths) -> int | None:
    """Step of the latest checkpoint, None if there is none."""
    progress = (read_json(paths.checkpoints / "latest" / "meta.json") or {}).get("progress")
    step = number(progress.get("step")) if isinstance(progress, dict) else None
    return None if step is None or not math.isfinite(step) else int(step)


def time_limit(facts: Mapping[str, str]) -> int | None:
    """The job's time limit in seconds, from Slurm's field TimeLimit (`1-02:03:04`); None if there is none."""
    parts = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", facts.get("TimeLimit", ""))
    if parts is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def before(environment: Mapping[str, str]) -> None:
    """Warn if the time limit leaves hardly any time to train. Slurm does not tell what --signal asked for."""
    limit = time_limit(facts_of(environment))
    if limit is not None and limit <= SHORT:
        notice = f"the time limit is {limit // 60} min, and Slurm gives notice 3 to 4 min before it"
        print(f"note: {notice}, unless --signal says otherwise; without a new step until then the job ends")


def facts_of(environment: Mapping[str, str]) -> dict[str, str]:
    """The fields of `scontrol show job --oneliner`."""
    return dict(re.findall(r"(\w+)=(\S*)", environment.get("SCONTROL_SHOW_JOB", "")))


def after(paths: RunPaths, code: int, signal: str, resume: str, environment: Mapping[str, str]) -> int:
    """Print how the start ended and what happens next. Returns the verdict."""
    job = environment.get("SLURM_JOB_ID")
    slurm = slurm_start({"slurm_job_id": job, "slurm_restart": environment.get("SLURM_RESTART_COUNT")})
    if slurm is None:
        raise RequestError("this is for submit.sh: SLURM_JOB_ID is not set")
    mine = [start for start in published_starts(paths) if start.slurm == slurm]  # several, if torchrun started it again
    ended = Ended(
        slurm, code, signal,
        status=read_status(paths) or {},
        owner=owner_of(paths.lock),
        said=next((start for start in mine if start.began_at is not None), mine[0] if mine else None),
        saved=saved_step(paths),
        facts=facts_of(environment),
        max_requeues=int(environment.get("MAX_REQUEUES", Ended.max_requeues)),
        resume=resume,
    )  # fmt: skip
    verdict, state, following = decide(ended)
    array, element = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    title = f"job {array}_{element} ({job})" if array else f"job {job}"
    print("\n".join(summary(paths, slurm, f"{title}, restart {slurm[1]}", state, following)))
    return verdict


@cli.in_one_line
def main(arguments: Sequence[str]) -> int:
    """Answer submit.sh. Returns the exit code."""
    if set(arguments[:1]) & {"-h", "--help"}:
        print(__doc__)
        return 0
    if not arguments or arguments[0] not in ("before", "after"):
        raise RequestError("this is for submit.sh: give before FLAGS, or after CODE SIGNAL FLAGS")
    when, *rest = arguments
    ended, flags = ([], rest) if when == "before" else (rest[:2], rest[2:])
    config = parse_args(flags)
    if not ended:
        before(os.environ)
        return 0
    if config.only_asks:
        return STANDS
    code, signal = ended
    return after(RunPaths(real(config.output_root), config.run), int(code), signal, config.resume, os.environ)


if __name__ == "__main__":
    sys.exit(run_program(lambda: main(sys.argv[1:])))
