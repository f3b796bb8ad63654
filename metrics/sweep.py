"""A few runs after a plan, one after the other or as a Slurm array, and then their comparison.

    python -m metrics.sweep plan.yaml [--dry-run] [--nproc-per-node N]
    python -m metrics.sweep plan.yaml --submit [--at-once N] [-- options of sbatch]

Run it again to go on: `train.py` skips what is finished and resumes the rest. How a plan looks: metrics/plan_runs.py.
Exit codes: 0 all runs are finished; 1 some failed; 2 the plan is wrong, nothing has begun; 75 stopped, to be run again.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from ddpm.errors import RequestError
from ddpm.paths import PROJECT_ROOT
from ddpm.program import run_program
from metrics.compare import check_folder, compare
from metrics.plan_runs import RunPlan, read_plan
from metrics.status import last_words, read_status

STOPPED = 75
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
COMPARING = ("--gres=none", "--nodes=1", "--cpus-per-task=1", "--mem=4G", "--time=00:30:00")  # needs no GPU


def launcher(nproc_per_node: int | None) -> list[str]:
    """How `train.py` is started: by this Python, or by torchrun in several processes."""
    if nproc_per_node is None:
        return [sys.executable, str(PROJECT_ROOT / "train.py")]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={nproc_per_node}"]
    return [sys.executable, *torchrun, str(PROJECT_ROOT / "train.py")]


# ---- one after the other ---------------------------------------------------------------------------------------------


class Crew:
    """Starts one training at a time, and sees to it that a request to stop reaches it and ends the sweep."""

    def __init__(self, terminate_only: bool) -> None:
        """`terminate_only`: the launcher (torchrun) knows no other signal than SIGTERM."""
        self.asked_to_stop = False
        self._terminate_only = terminate_only
        self._training: subprocess.Popen | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._hand_on) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        self.asked_to_stop = True
        if self._training and number != signal.SIGINT:  # Ctrl-C reaches the training by itself
            self._training.send_signal(signal.SIGTERM if self._terminate_only else number)

    def train(self, command: Sequence[str]) -> int:
        """Run the command to its end and return its exit code."""
        if self.asked_to_stop:
            return STOPPED
        self._training = subprocess.Popen(command)
        try:
            return self._training.wait()
        finally:
            self._training = None


def train_all(plan: RunPlan, nproc_per_node: int | None) -> int:
    """Train the runs of the plan, then compare them. Returns the exit code."""
    crew = Crew(terminate_only=nproc_per_node is not None)
    failed = []
    with crew.listening():
        for number, run in enumerate(plan.runs, 1):
            command = [*launcher(nproc_per_node), *run.arguments]
            print(f"[{number}/{len(plan.runs)}] {run.name}: {shlex.join(command)}", flush=True)
            code = crew.train(command)
            state = (read_status(run.paths) or {}).get("state")
            if crew.asked_to_stop or code in (STOPPED, 128 + signal.SIGINT) or (code == 0 and state != "finished"):
                print(
                    f"stopped in {run.name}, run {number} of {len(plan.runs)}: run the same command again to continue"
                )
                return STOPPED
            if code:
                failed.append(run.name)
                why = last_words(read_status(run.paths)) if code != 2 else "its request is wrong, see above"
                print(f"{run.name} failed with exit code {code}: {why}; the others go on", flush=True)
    return end(plan, failed)


def end(plan: RunPlan, failed: Sequence[str]) -> int:
    """Write the comparison of what there is. Returns the exit code."""
    compared = compare_all(plan)
    if failed:
        print(f"{len(failed)} of {len(plan.runs)} runs failed: {', '.join(failed)}; to try them again, run the same "
              "command again")  # fmt: skip
    return compared or (1 if failed else 0)


def compare_all(plan: RunPlan) -> int:
    """Write the comparison page of the plan's runs. Returns the exit code: 1 if there is none."""
    places = [run.paths for run in plan.runs]
    try:
        try:
            page = compare(places, plan.folder, plan.rank_by)
        except RequestError as error:
            if plan.rank_by is None:
                raise
            print(f"{error}; ranked by the loss instead")  # nobody's evening shall end without a page
            page = compare(places, plan.folder)
    except (RequestError, OSError) as error:
        print(f"no comparison: {error}", file=sys.stderr)
        return 1
    print(page)
    return 0


# ---- on a cluster ----------------------------------------------------------------------------------------------------


def array_command(plan: RunPlan, at_once: int | None, options: Sequence[str]) -> list[str]:
    """Submits the runs as an array; `%a` becomes the number of the run in submit.sh."""
    array = f"--array=0-{len(plan.runs) - 1}" + (f"%{at_once}" if at_once else "")
    return ["sbatch", "--parsable", f"--job-name={plan.name}", *options, array,
            "submit.sh", "--config", str(plan.settings_folder / "%a.json")]  # fmt: skip


def comparison_command(plan: RunPlan, array: str, options: Sequence[str]) -> list[str]:
    """Submits the comparison, which waits for the end of all runs of the job `array`."""
    then = [f"--dependency=afterany:{array}", f"--job-name={plan.name}-comparison"]
    return ["sbatch", "--parsable", *options, *COMPARING, *then, "submit.sh", "run", *compare_command(plan)]


def compare_command(plan: RunPlan) -> list[str]:
    return ["python", "-m", "metrics.sweep", str(plan.settings_folder / "plan.json"), "--compare"]


def submit(plan: RunPlan, at_once: int | None, nproc_per_node: int | None, options: Sequence[str]) -> int:
    """Queue the runs and their comparison. Returns the exit code."""
    plan.write_settings()
    processes = {} if nproc_per_node is None else {"NPROC_PER_NODE": str(nproc_per_node)}

    def queue(command: Sequence[str]) -> str:
        print(shlex.join(command), flush=True)
        environment = {**os.environ, **processes}
        return subprocess.run(
            command, cwd=PROJECT_ROOT, env=environment, check=True, stdout=subprocess.PIPE, encoding="utf-8"
        ).stdout.strip().split(";")[0]  # fmt: skip

    job = None
    try:
        job = queue(array_command(plan, at_once, options))
        then = queue(comparison_command(plan, job, options))
    except FileNotFoundError:
        raise RequestError("--submit: there is no sbatch here; leave it out to train one run after the other") from None
    except subprocess.CalledProcessError as error:
        if job is None:
            raise RequestError("--submit: sbatch refused the runs, see above; nothing was queued") from error
        print(f"error: sbatch refused the comparison; the runs are queued as job {job}", file=sys.stderr)
        print(f"once they have ended: {shlex.join(compare_command(plan))}", file=sys.stderr)
        return 1
    print(f"{len(plan.runs)} runs are queued as job {job}, their comparison as job {then}: it will be in {plan.folder}")
    return 0


# ---- the command -----------------------------------------------------------------------------------------------------


def dry_run(plan: RunPlan, options: argparse.Namespace) -> None:
    """Print what would be started."""
    if options.submit:
        print(shlex.join(array_command(plan, options.at_once, options.sbatch)))
        print(shlex.join(comparison_command(plan, "JOB", options.sbatch)))
    for number, run in enumerate(plan.runs):
        command = run.arguments if options.submit else [*launcher(options.nproc_per_node), *run.arguments]
        print(f"{number}: {shlex.join(command)}" if options.submit else shlex.join(command))
    print(f"dry run: {len(plan.runs)} runs, then their comparison in {plan.folder}; nothing was started or written")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    ours, sbatch = list(arguments), []
    if "--" in ours:
        place = ours.index("--")
        ours, sbatch = ours[:place], ours[place + 1 :]
    parser = argparse.ArgumentParser(
        prog="python -m metrics.sweep", description="Train the runs of a plan, and compare them.",
        epilog="What stands behind -- goes to sbatch: --submit -- --time=02:00:00 --gres=gpu:1",
    )  # fmt: skip
    parser.add_argument("plan", type=Path, help="a YAML file, see plans/example.yaml")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, start nothing")
    parser.add_argument("--nproc-per-node", type=int, metavar="N", help="processes of each run, by torchrun")
    parser.add_argument("--output-root", type=Path, help="where all runs write to, whatever the plan says")
    parser.add_argument("--submit", action="store_true", help="queue the runs as a Slurm array, by submit.sh")
    parser.add_argument("--at-once", type=int, metavar="N", help="with --submit: at most so many at the same time")
    parser.add_argument("--compare", action="store_true", help="only write the comparison of what there is")
    options = parser.parse_args(ours)
    options.sbatch = sbatch
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        if (options.sbatch or options.at_once) and not options.submit:
            raise RequestError("--at-once and options of sbatch behind -- need --submit")
        for name in ("at_once", "nproc_per_node"):
            if (value := getattr(options, name)) is not None and value < 1:
                raise RequestError(f"--{name.replace('_', '-')} {value}: must be 1 or more")
        plan = read_plan(options.plan, options.output_root)
        check_folder(plan.folder)
        if options.compare:
            return compare_all(plan)
        if options.dry_run:
            dry_run(plan, options)
            return 0
        if options.submit:
            return submit(plan, options.at_once, options.nproc_per_node, options.sbatch)
        return train_all(plan, options.nproc_per_node)
    except RequestError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: cannot write the plan's files: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(run_program(main))
