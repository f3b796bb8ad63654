"""The runs of a plan as a Slurm job array, and one more job that compares them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ddpm.run.errors import RequestError
from ddpm.run.files import atomic_write
from ddpm.run.paths import PROJECT_ROOT
from metrics.files import read_json
from metrics.jobs.sweep_plan import RunPlan
from metrics.jobs.sweep_results import compare_all

OUTPUT = "logs/slurm-%A_%a.out"  # output of each run; %A is the array, %a the run
SUBMITTED = "submitted.txt"  # in a folder of settings: the numbers of its job arrays, one a line
COMPARING = ("--gres=none", "--nodes=1", "--cpus-per-task=1", "--mem=4G", "--time=00:30:00")  # needs no GPU


def array_command(plan: RunPlan, elements: Sequence[int], at_once: int | None, options: Sequence[str]) -> list[str]:
    """The command that submits the runs `elements` as a job array; submit.sh replaces `%a` by the number of the run."""
    array = f"--array={as_ranges(elements)}" + (f"%{at_once}" if at_once else "")
    return ["sbatch", "--parsable", f"--job-name={plan.name}", f"--output={OUTPUT}", *options, array,
            "submit.sh", "--config", str(plan.settings_folder / "%a.json")]  # fmt: skip


def comparison_command(plan: RunPlan, arrays: Sequence[str], options: Sequence[str]) -> list[str]:
    """The command that submits the comparison, which waits until all runs of the jobs `arrays` have ended."""
    then = [f"--dependency=afterany:{':'.join(arrays)}", f"--job-name={plan.name}-comparison"]
    return ["sbatch", "--parsable", *options, *COMPARING, *then, "submit.sh", "run", *compare_command(plan)]


def compare_command(plan: RunPlan) -> list[str]:
    return ["python", "-m", "metrics.sweep", str(plan.settings_folder / "plan.json"), "--compare"]


def as_ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers in Slurm's notation: `0-2,5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


@dataclass(frozen=True)
class Element:
    """An element of a job array, which trains a run."""

    array: str
    number: int | str

    def __str__(self) -> str:
        return f"{self.array}_{self.number}"

    @property
    def output(self) -> str:
        return OUTPUT.replace("%A", self.array).replace("%a", str(self.number))


def queued_elements(plan: RunPlan) -> dict[str, Element]:
    """Runs of the plan that are still queued or running from earlier submissions, also of other versions of the plan,
    in which they may have had other numbers: name → element."""
    found = {}
    for folder in plan.all_settings_folders:
        for array in read_submissions(folder):
            command = ["squeue", "--noheader", "--array", f"--jobs={array}", "--format=%K"]
            # an unknown array has ended: squeue then prints nothing
            asked = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8")
            for number in filter(str.isdigit, asked.stdout.split()):
                name = (read_json(folder / f"{number}.json") or {}).get("run_name")
                found[name] = Element(array, number)
    return {run.name: found[run.name] for run in plan.runs if run.name in found}


def read_submissions(folder: Path) -> list[str]:
    """The job arrays submitted for a version of a plan, the oldest first; `folder` holds its settings."""
    with suppress(OSError, UnicodeDecodeError):
        return re.findall(r"^\d+$", (folder / SUBMITTED).read_text(encoding="utf-8"), re.MULTILINE)
    return []


def submit(plan: RunPlan, at_once: int | None, nproc_per_node: int | None, options: Sequence[str]) -> int:
    """Queue the runs that are not finished or queued, and the comparison of all. Returns the exit code."""
    finished = {run.name for run in plan.runs if run.is_finished}
    if len(finished) == len(plan.runs):
        print(f"all {len(plan.runs)} runs are finished: nothing is queued")
        for run in plan.runs:
            if run.otherwise:
                print(f"{run.name}: {run.otherwise}")
        return compare_all(plan)
    plan.write_settings()
    try:
        queued = queued_elements(plan)
        elements = [number for number, run in enumerate(plan.runs) if run.name not in finished | queued.keys()]
        job = _queue(array_command(plan, elements, at_once, options), nproc_per_node) if elements else None
    except FileNotFoundError:
        raise RequestError("--submit: there is no sbatch here; leave it out to train one run after the other") from None
    except subprocess.CalledProcessError as error:
        raise RequestError("--submit: sbatch refused the runs, see above; nothing was queued") from error
    if job:
        submitted = [*read_submissions(plan.settings_folder), job]
        atomic_write(plan.settings_folder / SUBMITTED, "\n".join(submitted) + "\n")
    named = any(option.split("=")[0] in ("-o", "--output") for option in options)  # then OUTPUT does not hold
    for number, run in enumerate(plan.runs):
        if run.name in finished:
            print(f"{run.name}: finished" + (f"; {run.otherwise}" if run.otherwise else ""))
            continue
        element = queued.get(run.name) or Element(job, number)
        output = "" if named else f", output in {element.output}"
        print(f"{run.name}: {element}{' already' if run.name in queued else ''}{output}")
    if job is None:
        print("nothing is queued: these jobs will be compared once they have ended")
        return 0
    try:
        then = _queue(
            comparison_command(plan, sorted({job, *(element.array for element in queued.values())}), options),
            nproc_per_node,
        )
    except subprocess.CalledProcessError:
        print(f"error: sbatch refused the comparison; the runs are queued as job {job}", file=sys.stderr)
        print(f"once they have ended: {shlex.join(compare_command(plan))}", file=sys.stderr)
        return 1
    print(f"{len(elements)} runs are queued as job {job}, the comparison of all as job {then}: see {plan.folder} then")
    return 0


def _queue(command: Sequence[str], nproc_per_node: int | None) -> str:
    """Submit a job, printing the command. Returns its number."""
    print(shlex.join(command), flush=True)
    processes = {} if nproc_per_node is None else {"NPROC_PER_NODE": str(nproc_per_node)}
    answer = subprocess.run(
        command, cwd=PROJECT_ROOT, env={**os.environ, **processes}, check=True, stdout=subprocess.PIPE, encoding="utf-8"
    ).stdout  # fmt: skip
    return answer.strip().split(";")[0]
