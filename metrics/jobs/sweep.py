"""Trains the runs of a plan, one after the other or as a Slurm job array, and compares them.

    python -m metrics.sweep plan.yaml [--dry-run] [--nproc-per-node N]
    python -m metrics.sweep plan.yaml --submit [--at-once N] [-- options of sbatch]

The same command again continues: finished runs are skipped, the others resumed. The format of a plan is described in
metrics/jobs/sweep_plan.py. Exit codes: 0 all runs are finished and meet all criteria of the plan; 1 some failed, or
their comparison could not be written; 2 the plan is wrong, and nothing was started; 3 none failed, but not every
criterion is met; 75 stopped, to be run again. With --compare the same, of the runs as they are now.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated

from tyro.conf import Positional, arg

from ddpm.run import cli
from ddpm.run.errors import EXIT_STOPPED, RequestError
from ddpm.run.paths import PROJECT_ROOT
from metrics.files import last_words, read_status
from metrics.jobs.sweep_plan import RunPlan, read_plan
from metrics.jobs.sweep_results import compare_all
from metrics.jobs.sweep_slurm import array_command, comparison_command, queued_elements, submit

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def launcher(nproc_per_node: int | None) -> list[str]:
    """The command that starts train.py: this Python, or torchrun with several processes."""
    if nproc_per_node is None:
        return [sys.executable, str(PROJECT_ROOT / "train.py")]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={nproc_per_node}"]
    return [sys.executable, *torchrun, str(PROJECT_ROOT / "train.py")]


def environment(nproc_per_node: int | None) -> dict[str, str]:
    """The variables for train.py. torchrun would give each process one thread, and leave most cores of a CPU idle."""
    threads = (
        {} if nproc_per_node is None else {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // nproc_per_node))}
    )
    return {**threads, **os.environ}


# ---- one after the other ---------------------------------------------------------------------------------------------


class ProcessRunner:
    """Runs one training at a time. A request to stop is passed on to it, and ends the sweep."""

    def __init__(self, nproc_per_node: int | None) -> None:
        """
        Args:
            nproc_per_node: processes of each training, started by torchrun; None: one, without it.
        """
        self.asked_to_stop = False
        self._environment = environment(nproc_per_node)
        self._terminate_only = nproc_per_node is not None  # SIGTERM is the only signal that torchrun handles
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
        self._training = subprocess.Popen(command, env=self._environment)
        try:
            return self._training.wait()
        finally:
            self._training = None


def train_all(plan: RunPlan, nproc_per_node: int | None) -> int:
    """Train the runs of the plan, then compare them. Returns the exit code."""
    runner = ProcessRunner(nproc_per_node)
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
    return compare_all(plan, failed)


# ---- the command -----------------------------------------------------------------------------------------------------


def dry_run(plan: RunPlan, config: SweepConfig, sbatch: Sequence[str]) -> None:
    """Print the commands that would be started."""
    left_out = {}
    if config.submit:
        try:
            left_out = {name: f"{element} already" for name, element in queued_elements(plan).items()}
        except FileNotFoundError:
            print("there is no squeue here: runs that are queued already are listed too")
        left_out |= {run.name: "finished" for run in plan.runs if run.is_finished}
    elements = [number for number, run in enumerate(plan.runs) if run.name not in left_out]
    if config.submit and elements:
        print(shlex.join(array_command(plan, elements, config.at_once, sbatch)))
        print(shlex.join(comparison_command(plan, ["JOB"], sbatch)))
    for number in elements:
        arguments = plan.runs[number].arguments
        command = [*launcher(config.nproc_per_node), *arguments]
        print(f"{number}: {shlex.join(arguments)}" if config.submit else shlex.join(command))
    for name, why in left_out.items():
        print(f"{name}: {why}")
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
    """Only compare and judge the runs as they are now. Ends with 1 if one has failed, 3 if a criterion is not met."""

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
    if config.compare and (config.dry_run or config.submit):
        raise RequestError("--compare starts nothing: leave out --dry-run and --submit")
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
