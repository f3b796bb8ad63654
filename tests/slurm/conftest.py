"""Jobs of the real submit.sh on the Slurm that tests/slurm/cluster.sh has started (`make test-slurm`)."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from ddpm.run.config import preset
from ddpm.run.paths import PROJECT_ROOT, RunPaths
from metrics.files import read_status
from tests.conftest import SMALL, as_arguments

CLUSTER = "SLURM_CLUSTER" in os.environ
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL")

# What is changed in the copy of the project that the jobs run. The steps of a job's first start last, so that it can be
# interrupted however fast the machine is; and there is no report, which takes longer than all the rest.
CHANGES = {
    "ddpm/training/progress.py": """
import os as _os
_count_step = Progress.count_step
_pause = 0 if "SLURM_RESTART_COUNT" in _os.environ else float(_os.environ.get("SECONDS_PER_STEP", 0))
def _slowly(self):
    time.sleep(_pause)
    return _count_step(self)
Progress.count_step = _slowly
""",
    "metrics/report.py": """
def write_report(paths):
    pass
""",
}


HIDE = '[ -z "$HIDE_GPUS" ] || export CUDA_VISIBLE_DEVICES='  # of a host that has some


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not CLUSTER and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="needs a Slurm: make test-slurm"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Where there is a cluster, a test that skips has failed."""
    report = yield
    if CLUSTER and report.skipped:
        report.outcome = "failed"
    return report


def scontrol(*arguments: str) -> str:
    return subprocess.run(["scontrol", *arguments], check=True, capture_output=True, text=True).stdout


def wait_until(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    """Wait until `condition()`; fail after `seconds`, saying that `what` has not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.2)


@dataclass(frozen=True)
class Job:
    """A job that was submitted, and the run that it trains."""

    number: str
    paths: RunPaths

    @property
    def facts(self) -> dict[str, str]:
        """What Slurm knows of it."""
        return dict(re.findall(r"(\w+)=(\S*)", scontrol("show", "job", "--oneliner", self.number)))

    @property
    def state(self) -> str:
        return self.facts["JobState"]

    @property
    def restarts(self) -> int:
        return int(self.facts["Restarts"])

    @property
    def step(self) -> int:
        """How far it has trained, as it says of itself."""
        status = read_status(self.paths) or {}
        return status["step"] if status.get("slurm_job_id") == self.number else 0

    @property
    def output(self) -> str:
        path = self.paths.root / "logs" / f"slurm-{self.number}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def saved(self) -> str:
        """The latest checkpoint's name; empty if there is none."""
        latest = self.paths.checkpoints / "latest"
        return latest.resolve().name if latest.exists() else ""

    def wait(self, condition: Callable[[Job], object], what: str, seconds: float = 120) -> Job:
        """Wait until `condition(job)`; if it does not come true, fail with the job's output."""
        try:
            wait_until(lambda: condition(self), what, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.facts}\n{self.output}") from None
        return self

    def trains(self, step: int = 3) -> Job:
        """Wait until it has made `step` steps."""
        self.wait(lambda job: job.step >= step, f"step {step} of {self.paths.run}")
        return self

    def ends(self, state: str, seconds: float = 240) -> Job:
        """Wait until Slurm says that it has ended, which must be as `state`."""
        self.wait(lambda job: job.state in ENDED, f"the end of {self.paths.run}", seconds)
        assert self.state == state, f"{self.facts}\n{self.output}"
        return self

    def goes_on_and_completes(self) -> Job:
        """Wait for its end, which must be a good one after it has resumed in another start."""
        self.wait(lambda job: job.restarts >= 1, "another start", 240)
        self.ends("COMPLETED")
        assert re.search(r"resumed from step_0*[1-9]", self.output), self.output
        return self

    def signal(self, name: str) -> None:
        """Signal its batch shell, as Slurm does at the time limit."""
        subprocess.run(["scancel", "--batch", f"--signal={name}", self.number], check=True)

    def cancel(self) -> None:
        subprocess.run(["scancel", self.number], check=True)

    def kill(self, program: str, host: str | None = None) -> str:
        """Kill -9 a Python of its current start, on `host` if given. Returns its rank, if any.

        `program` is its script or, behind -m, its module.
        """
        wanted = {"SLURM_JOB_ID": self.number, **({"SLURMD_NODENAME": host} if host else {})}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                python, script, module, *_ = (folder / "cmdline").read_text().replace("\0-u\0", "\0").split("\0")
                environment = dict(re.findall(r"(\w+)=([^\0]*)", (folder / "environ").read_text()))
            except (OSError, ValueError):  # it has just ended, or is a command without arguments
                continue
            runs = module if script == "-m" else Path(script).name
            if "python" in python and runs == program and wanted.items() <= environment.items():
                os.kill(int(folder.name), signal.SIGKILL)
                return environment.get("RANK", "")
        raise AssertionError(f"job {self.number} does not run {program}\n{self.output}")


@contextmanager
def lost_to_slurm(node: str) -> Iterator[None]:
    """Slurm gives the node up and queues its jobs again, while what they have started lives on there."""
    found = subprocess.run(["pgrep", "-f", f"^slurmd -D -N {node}$"], check=True, capture_output=True, text=True)
    slurmd = int(found.stdout)
    os.kill(slurmd, signal.SIGSTOP)
    scontrol("update", f"NodeName={node}", "State=DOWN", "Reason=lost")
    try:
        yield
    finally:
        os.kill(slurmd, signal.SIGCONT)
        scontrol("update", f"NodeName={node}", "State=RESUME")


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with `CHANGES` and an environment; submit.sh and train.py are as they are."""
    folder = tmp_path_factory.mktemp("project")
    for file in (*PROJECT_ROOT.glob("*.py"), PROJECT_ROOT / "submit.sh"):
        shutil.copy(file, folder)
    shutil.copy(PROJECT_ROOT / "requirements.txt", folder)
    for package in ("ddpm", "metrics", "slurm"):
        shutil.copytree(PROJECT_ROOT / package, folder / package, ignore=shutil.ignore_patterns("output"))
    for file, lines in CHANGES.items():
        with (folder / file).open("a") as module:
            module.write(lines)
    (folder / "logs").mkdir()
    # An environment that has all that this one has.
    environment = folder / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    [packages] = environment.glob("lib/python*/site-packages")
    (packages / "tests.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    with (environment / "bin" / "activate").open("a") as activate:
        activate.write(f"{HIDE}\n")
    return folder


@pytest.fixture(scope="session")
def flags(small_data: Path) -> list[str]:
    """A run of 40 steps on two processes, which saves only when it is stopped and at its end."""
    few = {"epochs": 10, "val_every": 0, "samples_per_class": 0, "log_every": 1, "checkpoint_every": 1000}
    few |= {"device": "cpu"}  # the GPUs of this cluster are pretended
    return as_arguments(preset("tiny", **(SMALL | few), data_root=small_data))


@pytest.fixture(scope="session")
def submit(project: Path, flags: list[str]) -> Iterator[Callable[..., Job]]:
    """`submit(run, *flags of train.py, sbatch=(...), **variables)` queues a job; one that is left over is cancelled."""
    jobs = []

    def queue(run: str, *more: str, sbatch: tuple[str, ...] = (), **variables: str) -> Job:
        # One CPU a process makes one thread of each, as in the run that it is compared with.
        small = ("--cpus-per-task=1", "--mem=1G", "--parsable", *sbatch)
        environment = {"NPROC_PER_NODE": "2", "SECONDS_PER_STEP": "0.3", "VENV": ".venv"} | variables
        number = subprocess.run(
            ["sbatch", *small, "submit.sh", *flags, "--run-name", run, *more],
            cwd=project, env=dict(os.environ) | environment, check=True, capture_output=True, text=True,
        ).stdout.strip()  # fmt: skip
        jobs.append(Job(number, RunPaths(project, run)))
        return jobs[-1]

    yield queue
    for job in jobs:
        if job.state not in ENDED:
            job.cancel()


@pytest.fixture(scope="session")
def uninterrupted(project: Path, flags: list[str]) -> RunPaths:
    """The same run, trained in one go and without Slurm."""
    torchrun = Path(sys.executable).parent / "torchrun"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    subprocess.run(
        [torchrun, "--standalone", "--nproc_per_node=2", "train.py", *flags, "--run-name", "uninterrupted"],
        cwd=project, env=clean | {"OMP_NUM_THREADS": "1"}, check=True,
    )  # fmt: skip
    return RunPaths(project, "uninterrupted")


@pytest.fixture
def assert_same_weights(uninterrupted: RunPaths) -> Callable[[Job], None]:
    """Checks that a job's run ended with the very weights, live and averaged, of the uninterrupted run."""

    def compare(job: Job) -> None:
        latest, expected = (paths.checkpoints / "latest" for paths in (job.paths, uninterrupted))
        assert latest.resolve().name == expected.resolve().name == "step_00000040"
        live, live_expected = (torch.load(folder / "train_state.pt")["model"] for folder in (latest, expected))
        assert live.keys() == live_expected.keys()
        assert all(torch.equal(live[name], live_expected[name]) for name in live), "the live weights differ"
        averaged = "unet/diffusion_pytorch_model.safetensors"
        assert (latest / averaged).read_bytes() == (expected / averaged).read_bytes(), "the averaged weights differ"

    return compare
