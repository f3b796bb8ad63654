"""What a user of the cluster relies on, job by job. Each run must end with the weights of an uninterrupted one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ddpm.run.paths import RunPaths
from metrics.files import read_status
from tests.conftest import SMALL
from tests.slurm.conftest import Job, lost_to_slurm, scontrol, wait_until
from tests.support.submit_stand_ins import APPTAINER, executable

ONE_NODE = {"sbatch": ("--gres=gpu:1", "--nodelist=hcn1-vn1")}
TWO_NODES = {"sbatch": ("--gres=gpu:1", "--nodes=2"), "NPROC_PER_NODE": "1"}
EACH = {"one-node": ONE_NODE, "two-nodes": TWO_NODES}  # side by side, as most of the time is spent on waiting
RANK_KILLED = r"rank +: {rank} .*\n +exitcode +: -9 .*SIGKILL"  # as torchrun tells it
NODE_FAILED = "error: hcn1-vn2: task 1: Exited"  # as srun tells it


@pytest.fixture(scope="module", autouse=True)
def job_with_little_time(submit):
    """Started first, looked at last: it mostly waits. Slurm gives notice 60 to 90 s before the limit."""
    where = ("--time=3", "--signal=B:USR1@60", "--gres=gpu:1", "--nodelist=hcn1-vn2")
    return submit("little-time", sbatch=where, SECONDS_PER_STEP="4")


def test_a_cancelled_job_saves_and_is_not_queued_again(submit, assert_same_weights):
    jobs = [submit(f"cancelled-{run}", **where) for run, where in EACH.items()]
    for job in jobs:
        job.trains().cancel()
    for job in jobs:
        job.ends("CANCELLED")
        assert "queueing" not in job.output
    saved = [job.saved for job in jobs]
    assert all(saved)
    again = [submit(f"cancelled-{run}", **where | {"SECONDS_PER_STEP": "0"}) for run, where in EACH.items()]
    for job, checkpoint in zip(again, saved, strict=True):
        job.ends("COMPLETED")
        assert f"resumed from {checkpoint}" in job.output
        assert_same_weights(job)


def test_requeued_by_hand_it_saves_and_goes_on(submit, assert_same_weights):
    job = submit("by-hand", "--resume", "never").trains()
    scontrol("requeue", job.number)
    assert_same_weights(job.goes_on_and_completes())


def test_preempted_it_saves_and_goes_on(submit, assert_same_weights):
    """On one node Slurm signals the batch shell after the grace time, on two it signals the tasks before it."""
    jobs = [submit(f"preempted-{run}", **where, SECONDS_PER_STEP="1") for run, where in EACH.items()]
    for job in jobs:
        job.trains()
    all_of_it = ["--partition=gpu-high", "--nodelist=hcn1-vn1", "--gres=gpu:4", "--cpus-per-task=32"]
    subprocess.run(["sbatch", *all_of_it, "--output=/dev/null", "--wrap=sleep 1"], check=True)
    for job in jobs:
        assert_same_weights(job.goes_on_and_completes())


def test_what_is_killed_on_one_node_ends_its_job_and_no_other_and_the_job_goes_on(submit, assert_same_weights):
    """Two jobs at once, on the same two nodes."""
    victims = {"train.py": RANK_KILLED, "torch.distributed.run": NODE_FAILED}
    pace = {"SECONDS_PER_STEP": "0.6"}
    jobs = [submit(f"killed-{program}", "--checkpoint-every", "1", **TWO_NODES, **pace) for program in victims]
    for job in jobs:
        job.trains(6)
    assert [job.state for job in jobs] == ["RUNNING", "RUNNING"]
    for job, (program, named) in zip(jobs, victims.items(), strict=True):
        rank = job.kill(program, "hcn1-vn2")
        job.wait(lambda job: job.state != "RUNNING", "the end of the others", 60)
        assert re.search(named.format(rank=rank), job.output)
    for job in jobs:
        assert_same_weights(job.goes_on_and_completes())


def test_a_start_that_slurm_has_replaced_leaves_the_job_to_its_successor(submit, assert_same_weights):
    """Its node was lost, but lived on."""
    patience = {"SECONDS_PER_STEP": "2", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5"}
    job = submit("node-lost", "--checkpoint-every", "1", **ONE_NODE, **patience).trains(5)
    with lost_to_slurm("hcn1-vn1"):
        job.wait(lambda job: job.restarts == 1, "another start")
        scontrol("update", f"JobId={job.number}", "ReqNodeList=")  # it was asked for only to know which one it gets
        job.wait(lambda job: "replaced by restart 1" in job.output, "the end of the first start")
        assert_same_weights(job.ends("COMPLETED"))
    assert job.restarts == 1
    assert job.output.count("queueing job") == 0
    assert sorted(re.findall(r"^state +(\w+)", job.output, re.MULTILINE)) == ["finished", "replaced"]


def test_a_crash_before_the_first_checkpoint_is_a_failure(submit):
    job = submit("no-progress").trains()
    rank = job.kill("train.py")
    job.ends("FAILED", 60)
    assert job.restarts == 0
    assert "no new step" in job.output
    assert re.search(RANK_KILLED.format(rank=rank), job.output)


def test_told_to_stop_with_no_restart_left_it_has_not_completed(submit):
    job = submit("last-restart", MAX_REQUEUES="0").trains()
    job.signal("USR1")
    job.ends("FAILED")
    assert job.facts["ExitCode"] == "75:0"
    assert job.saved


def test_what_cannot_begin_fails_once_and_a_dry_run_completes(submit):
    wrong, missing = submit("wrong", "--lr", "zero"), submit("missing", "--data-root", "nowhere")
    without_gpu = submit("without-gpu", "--device", "auto", HIDE_GPUS="yes")
    dry, late = submit("dry", "--dry-run"), submit("late")
    late.wait(lambda job: "nproc_per_node" in job.output, "its start")
    late.signal("USR1")  # as at once, if the time limit is not longer than the notice
    assert late.ends("FAILED").saved == "step_00000000"
    assert "give a longer --time" in late.output
    assert wrong.ends("FAILED").facts["ExitCode"] == "2:0"
    missing.ends("FAILED")
    without_gpu.ends("FAILED")
    dry.ends("COMPLETED")
    assert "not queued again: the same command would fail again" in missing.output
    assert without_gpu.output.count("error: GPUs are granted (SLURM_") == 1
    assert [job.restarts for job in (wrong, missing, without_gpu, dry, late)] == [0] * 5


def test_tasks_of_another_number_and_a_container_make_no_difference(submit, project: Path, assert_same_weights):
    """srun would start a launcher a task; and what runs a container would hand a signal to torchrun."""
    executable(project / "bin" / "apptainer", APPTAINER)
    tasks = submit("tasks", sbatch=("--nodes=2", "--ntasks-per-node=2", "--gres=none", "--gpus-per-task=1"),
                   NPROC_PER_NODE="", SECONDS_PER_STEP="0")  # fmt: skip
    path = f"{project}/bin:{os.environ['PATH']}"
    contained = submit("container", **ONE_NODE, CONTAINER=".venv", VENV="", PATH=path, SECONDS_PER_STEP="0.5")
    contained.trains().signal("USR1")
    status = read_status(tasks.ends("COMPLETED").paths)
    assert (status["world_size"], status["nodes"]) == (4, 2)
    assert_same_weights(contained.goes_on_and_completes())


NO_HANDLER = "import signal, time; time.sleep(6); print(signal.getsignal(signal.SIGUSR1).name, 'survived')"


def test_where_it_is_submitted_and_what_is_active_there(project: Path, tmp_path: Path):
    """As an array, by `run`, from several places; a module puts a Python in front that cannot train."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "base"], check=True)
    (project / "sub" / "folder").mkdir(parents=True)
    prefix, script = project / ".venv", f"{project}/submit.sh"
    conda = {"CONDA_PREFIX": str(prefix), "CONDA_DEFAULT_ENV": "mine", "PATH": f"{prefix}/bin:{os.environ['PATH']}",
             "BASH_FUNC_module%%": f"() {{ PATH={tmp_path}/base/bin:$PATH; }}"}  # fmt: skip
    there = f"--chdir={project}"

    def submit(where: Path, *command: str, **variables: str) -> Job:
        few = ("--parsable", "--gres=none", "--cpus-per-task=1", "--mem=1G", f"--output={project}/logs/slurm-%A.out")
        number = subprocess.run(["sbatch", *few, *command], cwd=where, env=dict(os.environ) | variables, check=True,
                                capture_output=True, text=True).stdout.strip()  # fmt: skip
        return Job(number, RunPaths(project, "none"))

    show = ("run", "python", "-c", "import os, sys, torch; print(os.getcwd(), sys.prefix)")
    deaf = submit(project, "submit.sh", "run", "python", "-c", NO_HANDLER, VENV=".venv", FORCE_COLOR="1")
    jobs = [
        submit(project / "sub" / "folder", "--array=3", "../../submit.sh", *show, **conda),
        submit(tmp_path, script, *show, **conda),
        submit(tmp_path, there, str(shutil.copy(script, tmp_path / "mine.sh")), *show, **conda),
    ]
    lost = submit(tmp_path, str(tmp_path / "mine.sh"), *show)
    deaf.wait(lambda job: "VENV=.venv" in job.output, "its start").signal("USR1")
    for job in jobs:
        job.ends("COMPLETED")
        assert job.output.splitlines()[-1] == f"{project} {prefix}"
        assert f"active environment {prefix}: {prefix}/bin/python" in job.output
    assert jobs[0].output.startswith(f"submit.sh: job {jobs[0].number}_3 ")
    assert str(tmp_path) in lost.ends("FAILED").output
    deaf.ends("COMPLETED")
    assert "USR1 received" in deaf.output
    assert "SIG_DFL survived" in deaf.output


def test_a_sweep_is_an_array_of_runs_that_ends_with_their_comparison(project: Path, small_data: Path):
    base = SMALL | {"preset": "tiny", "device": "cpu", "samples_per_class": 0, "max_steps": 8}
    base |= {"data_root": str(small_data)}
    plan = {"name": "rates", "base": base, "grid": {"lr": [0.001, 0.002]}}
    (project / "plan.yaml").write_text(json.dumps(plan))
    command = [sys.executable, "-m", "metrics.sweep", "plan.yaml", "--submit", "--nproc-per-node", "1"]
    few = ["--cpus-per-task=1", "--mem=1G", "--gres=gpu:1"]

    def submit_it() -> str:
        environment = dict(os.environ) | {"VENV": ".venv"}
        return subprocess.run([*command, "--", *few], cwd=project, env=environment, check=True, stdout=subprocess.PIPE,
                              text=True).stdout  # fmt: skip

    output = re.search(r"rates-lr=0.002: (\d+)_1, output in (.*)\n", submit_it())
    assert "nothing is queued" in submit_it(), "the jobs that train it are known"
    page = project / "metrics" / "comparisons" / "rates" / "comparison.md"
    wait_until(page.exists, "the comparison", 240)
    text = page.read_text()
    assert "# Comparison of 2 runs" in text
    assert text.count("| finished |") == 2, "it waited for both"
    assert f"job {output[1]}_1" in (project / output[2]).read_text()
    os.utime(page, (0, 0))
    assert "nothing is queued" in submit_it()
    assert page.stat().st_mtime > 0, "all are finished: only the comparison is made"


def test_before_its_time_is_over_it_saves_and_goes_on(job_with_little_time, assert_same_weights):
    job = job_with_little_time.goes_on_and_completes()
    assert "USR1 received" in job.output
    assert_same_weights(job)
