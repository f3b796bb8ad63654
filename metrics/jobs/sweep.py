"""Trains the runs of a plan, one after the other or as a Slurm job array, and compares them.

    python -m metrics.sweep plan.yaml [--dry-run] [--nproc-per-node N]
    python -m metrics.sweep plan.yaml --submit [--at-once N] [-- options of sbatch]

The same command again continues: finished runs are skipped, the others resumed. The format of a plan is described in
metrics/jobs/sweep_plan.py. Exit codes: 0 all runs are finished; 1 some failed; 2 the plan is wrong, and nothing was
started; 75 stopped, to be run again.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated

from tyro.conf import Positional, arg

from ddpm.run import cli
from ddpm.run.errors import EXIT_STOPPED, RequestError
from ddpm.run.files import atomic_write
from ddpm.run.paths import PROJECT_ROOT
from metrics.files import last_words, read_status
from metrics.jobs.sweep_plan import RunPlan, read_plan

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
OUTPUT = "logs/slurm-%A_%a.out"  # output of each run; %A is the array, %a the run
COMPARING = ("--gres=none", "--nodes=1", "--cpus-per-task=1", "--mem=4G", "--time=00:30:00")  # needs no GPU


def launcher(nproc_per_node: int | None) -> list[str]:
    """The command that starts train.py: this Python, or torchrun with several processes."""
    if nproc_per_node is None:
        return [sys.executable, str(PROJECT_ROOT / "train.py")]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={nproc_per_node}"]
    return [sys.executable, *torchrun, str(PROJECT_ROOT / "train.py")]


# ---- one after the other ---------------------------------------------------------------------------------------------


class ProcessRunner:
    """Runs one training at a time. A request to stop is passed on to it, and ends the sweep."""

    def __init__(self, terminate_only: bool) -> None:
        """
        Args:
            terminate_only: pass every signal on as SIGTERM, the only one that torchrun handles.
        """
        self.asked_to_stop = False
        self._terminate_only = terminate_only
        self._training: subprocess.Popen | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._pass_on) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.asked_to_stop = True
        if self._training and number != signal.SIGINT:  # Ctrl-C reaches the training by itself
            self._training.send_signal(signal.SIGTERM if self._terminate_only else number)

    def train(self, command: Sequence[str]) -> int:
        """Run the command to its end and return its exit code."""
        if self.asked_to_stop:
            return EXIT_STOPPED
        self._training = subprocess.Popen(command)
        try:
            return self._training.wait()
        finally:
            self._training = None


def train_all(plan: RunPlan, nproc_per_node: int | None) -> int:
    """Train the runs of the plan, then compare them. Returns the exit code."""
    runner = ProcessRunner(terminate_only=nproc_per_node is not None)
    failed = []
    with runner.listening():
        for number, run in enumerate(plan.runs, 1):
            command = [*launcher(nproc_per_node), *run.arguments]
            print(f"[{number}/{len(plan.runs)}] {run.name}: {shlex.join(command)}", flush=True)
            code = runner.train(command)
            state = (read_status(run.paths) or {}).get("state")
            stopped = code in (EXIT_STOPPED, 128 + signal.SIGINT) or (code == 0 and state != "finished")
            if stopped or runner.asked_to_stop:
                place = f"run {number} of {len(plan.runs)}"
                print(f"stopped in {run.name}, {place}: run the same command again to continue")
                return EXIT_STOPPED
            if code:
                failed.append(run.name)
                why = last_words(read_status(run.paths)) if code != 2 else "its request is wrong, see above"
                print(f"{run.name} failed with exit code {code}: {why}; the others go on", flush=True)
    return end(plan, failed)


def end(plan: RunPlan, failed: Sequence[str]) -> int:
    """Compare the runs. Returns the exit code of the sweep."""
    compared = compare_all(plan)
    if failed:
        print(f"{len(failed)} of {len(plan.runs)} runs failed: {', '.join(failed)}; to try them again, run the same "
              "command again")  # fmt: skip
    return compared or (1 if failed else 0)


def compare_all(plan: RunPlan) -> int:
    """Write the comparison page of the plan's runs. Returns the exit code: 1 if it could not be written."""
    from metrics.compare.comparison import compare

    places = [run.paths for run in plan.runs]
    try:
        try:
            page = compare(places, plan.folder, plan.rank_by)
        except RequestError as error:
            if plan.rank_by is None:
                raise
            print(f"{error}; ranked by the loss instead")  # a wrong column must not cost the page of a whole sweep
            page = compare(places, plan.folder)
    except (RequestError, OSError) as error:
        print(f"no comparison: {error}", file=sys.stderr)
        return 1
    print(page)
    return 0


# ---- on a cluster ----------------------------------------------------------------------------------------------------


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


def queued_elements(plan: RunPlan) -> dict[int, str]:
    """Runs that are still queued or running from earlier submissions of the same plan: number → job array."""
    found = {}
    for array in read_submissions(plan):
        command = ["squeue", "--noheader", "--array", f"--jobs={array}", "--format=%K"]
        # an unknown array has ended: squeue then prints nothing
        asked = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8")
        found |= {int(word): array for word in asked.stdout.split() if word.isdigit()}
    return found


def read_submissions(plan: RunPlan) -> list[str]:
    """The job arrays submitted for the plan, the oldest first."""
    with suppress(OSError, UnicodeDecodeError):
        return re.findall(r"^\d+$", plan.submissions.read_text(encoding="utf-8"), re.MULTILINE)
    return []


def submit(plan: RunPlan, at_once: int | None, nproc_per_node: int | None, options: Sequence[str]) -> int:
    """Queue the runs that are not finished or queued, and the comparison of all. Returns the exit code."""
    finished = {number for number, run in enumerate(plan.runs) if run.is_finished}
    if len(finished) == len(plan.runs):
        print(f"all {len(plan.runs)} runs are finished: nothing is queued")
        return compare_all(plan)
    plan.write_settings()
    try:
        queued = queued_elements(plan)
        elements = [number for number in range(len(plan.runs)) if number not in finished | queued.keys()]
        job = _queue(array_command(plan, elements, at_once, options), nproc_per_node) if elements else None
    except FileNotFoundError:
        raise RequestError("--submit: there is no sbatch here; leave it out to train one run after the other") from None
    except subprocess.CalledProcessError as error:
        raise RequestError("--submit: sbatch refused the runs, see above; nothing was queued") from error
    if job:
        atomic_write(plan.submissions, "\n".join([*read_submissions(plan), job]) + "\n")
    named = any(option.split("=")[0] in ("-o", "--output") for option in options)  # then OUTPUT does not hold
    for number, run in enumerate(plan.runs):
        array = queued.get(number, job)
        output = "" if named else f", output in {OUTPUT.replace('%A', array or '').replace('%a', str(number))}"
        state = f"{array}_{number}{' already' if number in queued else ''}{output}"
        print(f"{run.name}: {'finished' if number in finished else state}")
    if job is None:
        print("nothing is queued: these jobs will be compared once they have ended")
        return 0
    try:
        then = _queue(comparison_command(plan, sorted({job, *queued.values()}), options), nproc_per_node)
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


# ---- the command -----------------------------------------------------------------------------------------------------


def dry_run(plan: RunPlan, config: SweepConfig, sbatch: Sequence[str]) -> None:
    """Print the commands that would be started."""
    elements = [number for number, run in enumerate(plan.runs) if not (config.submit and run.is_finished)]
    if config.submit and elements:
        print(shlex.join(array_command(plan, elements, config.at_once, sbatch)))
        print(shlex.join(comparison_command(plan, ["JOB"], sbatch)))
    for number in elements:
        arguments = plan.runs[number].arguments
        command = [*launcher(config.nproc_per_node), *arguments]
        print(f"{number}: {shlex.join(arguments)}" if config.submit else shlex.join(command))
    print(f"dry run: {len(elements)} runs, then their comparison in {plan.folder}; nothing was started or written")


@dataclass(frozen=True)
class SweepConfig:
    """Train the runs of a plan, and compare them. Options of sbatch go after --: --submit -- --time=02:00:00"""

    plan: Annotated[Positional[Path], arg(metavar="PLAN.yaml")]
    """A YAML file; plans/example.yaml is one."""
    dry_run: bool = False
    """Print the commands, start nothing."""
    nproc_per_node: int | None = None
    """Processes of each run, started by torchrun. Left out: one process, without torchrun."""
    output_root: Path | None = None
    """Folder that all runs write to. Left out: the plan's output_root."""
    submit: bool = False
    """Queue the runs as a Slurm job array, by submit.sh."""
    at_once: int | None = None
    """With --submit: the largest number of runs at the same time."""
    compare: bool = False
    """Only write the comparison of the runs that have figures."""

    def __post_init__(self) -> None:
        for name in ("at_once", "nproc_per_node"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise RequestError(f"{cli.flag(name)} {value}: must be 1 or more")


def split_arguments(arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """The arguments before `--`, and those after it, which are for sbatch."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:end], arguments[end + 1 :]


@cli.in_one_line
def main(arguments: Sequence[str] | None = None) -> int:
    ours, sbatch = split_arguments(sys.argv[1:] if arguments is None else arguments)
    config = cli.parse(SweepConfig, ours, "python -m metrics.sweep")
    if (sbatch or config.at_once) and not config.submit:
        raise RequestError("--at-once and options of sbatch after -- need --submit")
    from metrics.compare.comparison import check_folder  # here, as it loads pandas and matplotlib

    plan = read_plan(config.plan, config.output_root)
    check_folder(plan.folder)
    if config.compare:
        return compare_all(plan)
    if config.dry_run:
        dry_run(plan, config, sbatch)
        return 0
    if config.submit:
        return submit(plan, config.at_once, config.nproc_per_node, sbatch)
    return train_all(plan, config.nproc_per_node)
