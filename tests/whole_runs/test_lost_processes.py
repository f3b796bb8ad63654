"""Processes that die or hang: the others end, name them, and the run goes on from its last checkpoint."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

import train
from ddpm.run.config import TrainConfig
from ddpm.run.paths import RunPaths
from ddpm.run.signals import StopRequest
from ddpm.training import trainer
from ddpm.training.machine import distributed
from tests.conftest import replace
from tests.support.processes import in_processes
from tests.support.runs import (
    TORCHRUN,
    assert_same_run,
    crew,
    start,
    status,
    train_as_one_of_several,
    wait_for_line,
    workers_of,
)

pytestmark = pytest.mark.usefixtures("quick_reports")
ROLL_CALL = 3.0  # seconds; both processes are on this machine
PATCHES = {"ddpm.training.machine.distributed.ROLL_CALL": ROLL_CALL}


@pytest.fixture
def endless(small: TrainConfig) -> TrainConfig:
    return replace(small, batch_size=16, epochs=300, val_every=0, checkpoint_every=300, checkpoint_minutes=0.01)


@pytest.mark.parametrize("victim", [0, 1])
def test_who_is_left_ends_within_a_minute_and_names_the_dead(endless: TrainConfig, victim: int):
    with crew(endless, PATCHES) as processes:
        wait_for_line(processes[0], r"step \d\d/")
        while status(endless)["step"] == 0:  # published once a second
            time.sleep(0.1)
        processes[victim].kill()
        killed = time.monotonic()
        output, _ = processes[1 - victim].communicate(timeout=60)
        assert time.monotonic() - killed < 60 - (distributed.ROLL_CALL - ROLL_CALL)
    assert processes[1 - victim].returncode == 1, output
    assert f"process {victim} of 2 no longer answers" in output
    assert "Traceback" not in output
    told = status(endless)
    assert (told["state"], told["exit_code"], told["retry"]) == ("failed", 1, True)
    assert f"process {victim} of 2" in told["message"]
    assert told["step"] > 0


def test_a_process_that_hangs_is_found_by_the_others(endless: TrainConfig):
    """Even the one that keeps the store in which they leave each other word."""
    with crew(replace(endless, hang_minutes=0.1), PATCHES) as processes:
        wait_for_line(processes[0], r"step \d\d/")
        processes[0].send_signal(signal.SIGSTOP)
        output, _ = processes[1].communicate(timeout=60)
    assert processes[1].returncode == 1
    assert "process 0 of 2 no longer answers" in output, output


def train_with_a_bug(config: TrainConfig, culprit: str) -> str:
    if os.environ["RANK"] == culprit:
        trainer.Trainer.step = lambda *_: 1 / 0
    try:
        return f"exit code {train.main(config, StopRequest())}"
    except ZeroDivisionError as error:
        return str(error)


@pytest.mark.parametrize("culprit", [0, 1])
def test_an_error_of_one_s_own_is_not_blamed_on_others(endless: TrainConfig, culprit: int):
    ends = in_processes(train_with_a_bug, 2, endless, str(culprit))
    assert (ends[culprit], ends[1 - culprit]) == ("division by zero", "exit code 1")
    told = "ZeroDivisionError: division by zero" if culprit == 0 else "process 1 of 2 no longer answers"
    assert told in status(endless)["message"]


LATE = """
import os, runpy, time
runpy.run_path(os.environ["QUICK_REPORTS"] + "/sitecustomize.py")
if (os.environ.get("TORCHELASTIC_RESTART_COUNT"), os.environ.get("RANK")) == ("1", "1"):
    time.sleep(3)
"""


def test_torchrun_brings_the_run_back_from_its_last_checkpoint(small: TrainConfig, tmp_path: Path):
    """Though its store still holds the addresses of the dead, one process is late, and it began with --resume never."""
    (tmp_path / "sitecustomize.py").write_text(LATE)
    whole = replace(small, batch_size=4, val_every=0, run_name="whole")
    assert in_processes(train_as_one_of_several, 2, whole) == [0, 0]
    again = replace(whole, run_name="again", resume="never")
    process = start(again, *TORCHRUN, "--max-restarts=1", PYTHONPATH=str(tmp_path))
    try:
        wait_for_line(process, "checkpoint: .*step_00000035")
        os.kill(workers_of(process)[-1], signal.SIGKILL)
        output, _ = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert_same_run(whole, again)
    starts = json.loads(RunPaths(again.output_root, "again").json.read_text())["starts"]
    assert len(starts) == 2
    assert starts[1]["step"] >= 35
