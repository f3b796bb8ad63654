"""How train.py scales over the processes of one node: images/s of whole jobs under torchrun, against one process.

    python -m benchmarks.scaling --preset large --data-root DIR                          a box of 4 GPUs
    python -m benchmarks.scaling --preset tiny --processes 1 2 --data-root DIR           two CPU cores

Weak scaling keeps the batch of each process, strong scaling that of all together. Every job takes the same number of
steps, and its figure is its own: `samples_per_sec` of training_metrics.csv, which leaves out the first step. Jobs take
turns in each round. On a CPU each process has one thread, so that more processes are more cores; where there are more
processes than cores they share them, and the table says so.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from rich.table import Table

from benchmarks.common.rounds import arguments, in_turn, machine, publish, ratio, settings, spread, words
from ddpm.data.sets import dataset
from ddpm.run.config import TrainConfig
from ddpm.run.errors import RequestError
from ddpm.run.format import plural
from ddpm.run.paths import PROJECT_ROOT, RunPaths
from ddpm.run.program import run_program
from ddpm.training.machine.device import pick_device
from ddpm.training.schedule import TrainingSchedule

# train, and do nothing else that takes long; the last of equal flags counts
TRAIN_ONLY = (
    "--epochs", "100000", "--val-every", "0", "--eval-every", "0", "--samples-per-class", "0",
    "--checkpoint-every", "100000", "--checkpoint-minutes", "0", "--no-export",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A job of `processes` processes with `batch` images each; `scaling`: weak, strong or one process."""

    scaling: str
    processes: int
    batch: int


def jobs(processes: Sequence[int], batch: int) -> list[Job]:
    """One process, which both kinds of scaling are measured against, and the others of each kind.

    Raises:
        RequestError: the batch cannot be divided among so many processes.
    """
    many = sorted({each for each in processes if each > 1})
    for each in many:
        if batch % each:
            raise RequestError(
                f"--batch-size {batch} cannot be divided among {each} processes: take a multiple of {each}"
            )
    weak, strong = [Job("weak", each, batch) for each in many], [Job("strong", each, batch // each) for each in many]
    return [Job("one process", 1, batch), *weak, *strong]


def images_per_sec(job: Job, flags: Sequence[str], steps: int, threads: int | None, folder: Path) -> float:
    """Train in `folder`. Returns the job's own `samples_per_sec`, over all its epochs.

    Raises:
        RequestError: the job has failed.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={job.processes}"]
    command = [
        sys.executable, *(launcher if job.processes > 1 else []), "train.py", *flags, *TRAIN_ONLY,
        "--batch-size", str(job.batch), "--max-steps", str(steps),
        "--output-root", str(folder), "--run-name", "scaling", "--resume", "never",
    ]  # fmt: skip
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    ended = subprocess.run(
        command, cwd=PROJECT_ROOT, env=environment, capture_output=True, encoding="utf-8", errors="replace"
    )
    if ended.returncode:
        said = ended.stderr.strip().splitlines() or ["it said nothing"]
        why = next((line for line in said if line.startswith("error: ")), said[-1]).removeprefix("error: ")
        raise RequestError(
            f"{plural(job.processes, 'process')} of batch {job.batch}: exit code {ended.returncode}: {why}"
        )
    rows = pd.read_csv(RunPaths(folder, "scaling").csv)
    return float(rows["train_images"].sum() / rows["train_time_sec"].sum())


def figures(measured: dict[Job, list[float]], grad_accum: int) -> list[dict]:
    """The figures of each job. Efficiency: its images/s over those of as many single processes, round by round."""
    alone = next(rates for job, rates in measured.items() if job.processes == 1)
    return [
        {
            "scaling": job.scaling, "processes": job.processes, "batch_per_process": job.batch,
            "global_batch": job.batch * job.processes * grad_accum, "rounds": rates, "images_per_sec": spread(rates),
            "speed_up": ratio(rates, alone), "efficiency": ratio([rate / job.processes for rate in rates], alone),
        }
        for job, rates in measured.items()
    ]  # fmt: skip


def table(config: TrainConfig, results: list[dict], steps: int, cores: int | None) -> Table:
    """`cores`: of the CPU that it was measured on, None for GPUs."""
    page = Table(title=f"scaling of train.py: {config.preset}, {config.resolution} px, {steps} steps")
    page.add_column("scaling")
    for head in ("processes", "batch of each", "of all", "images/s", "speed-up", "efficiency"):
        page.add_column(head, justify="right")
    for each in results:
        crowded = cores and each["processes"] > cores
        efficiency = {key: 100 * value for key, value in each["efficiency"].items()}
        page.add_row(
            each["scaling"], f"{each['processes']} on {cores} cores" if crowded else str(each["processes"]),
            str(each["batch_per_process"]), str(each["global_batch"]), words(each["images_per_sec"]),
            words(each["speed_up"], 2, "×"), words(efficiency, 0, "%"),
        )  # fmt: skip
    return page


def check(config: TrainConfig, processes: Sequence[int], steps: int, device: torch.device) -> None:
    """Check that everything can be measured here, before anything is measured.

    Raises:
        RequestError: there are too few processes, steps, GPUs or images.
    """
    if min(processes) < 1:
        raise RequestError(f"--processes {min(processes)}: must be 1 or more")
    if steps < 2:
        raise RequestError(f"--steps {steps}: must be 2 or more, as the first one is left out")
    if device.type == "cuda" and max(processes) > torch.cuda.device_count():
        raise RequestError(f"--processes {max(processes)}: only {plural(torch.cuda.device_count(), 'GPU')} here")
    TrainingSchedule(config, max(processes), dataset(config).count())  # raises if the largest global batch is too large


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__.splitlines()[0], rounds=3)
    parser.add_argument(
        "--processes", nargs="+", type=int, default=[1, 2, 4], help="default 1 2 4; 1 is always measured"
    )
    parser.add_argument("--steps", type=int, default=20, help="of each job (default 20)")
    options, config = settings(parser, argv)
    flags, device = parser.parse_known_args(argv)[1], pick_device(config.device)[0]
    check(config, options.processes, options.steps, device)
    cores = len(os.sched_getaffinity(0)) if device.type == "cpu" else None
    about, threads = machine(device), 1 if device.type == "cpu" else None

    def side(job: Job) -> float:
        with tempfile.TemporaryDirectory() as folder:
            return images_per_sec(job, flags, options.steps, threads, Path(folder))

    sides = {job: partial(side, job) for job in jobs(options.processes, config.batch_size)}
    measured = in_turn(sides, options.rounds)
    results = figures(measured, config.grad_accum)
    document = {"machine": about, "preset": config.preset, "resolution": config.resolution, "steps": options.steps,
                "threads_per_process": threads, "usable_cores": cores, "jobs": results}  # fmt: skip
    page = table(config, results, options.steps, cores)
    publish(f"scaling_{config.preset}", device, document, options.out, page)


if __name__ == "__main__":
    sys.exit(run_program(main))
