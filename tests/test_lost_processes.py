"""Processes that die or hang: the others end, name them, and the run goes on from its last checkpoint."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import train
from ddpm.config import TrainConfig
from ddpm.paths import RunPaths
from ddpm.signals import StopRequest
from tests.conftest import replace
from tests.processes import in_processes
from tests.runs import TORCHRUN, assert_same_run, start, status, wait_for_line


@contextmanager
def crew(config: TrainConfig) -> Iterator[list[subprocess.Popen]]:
    """Two processes of a run, as torchrun starts them, but with nobody to look after them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [start(config, RANK=rank, LOCAL_RANK=rank, **shared) for rank in ("0", "1")]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()


@pytest.fixture
def endless(small: TrainConfig) -> TrainConfig:
    return replace(small, batch_size=16, epochs=300, val_every=0, checkpoint_every=300, checkpoint_minutes=0.01)


@pytest.mark.parametrize("victim", [0, 1])
def test_who_is_left_ends_within_a_minute_and_names_the_dead(endless: TrainConfig, victim: int):
    with crew(endless) as processes:
        wait_for_line(processes[0], r"step \d\d/")
        processes[victim].kill()
        killed = time.monotonic()
        output, _ = processes[1 - victim].communicate(timeout=60)
        assert time.monotonic() - killed < 60
    assert processes[1 - victim].returncode == 1, output
    assert f"process {victim} of 2 no longer answers" in output
    assert "Traceback" not in output
    told = status(endless)
    assert (told["state"], told["exit_code"], told["retry"]) == ("failed", 1, True)
    assert f"process {victim} of 2" in told["message"]
    assert told["step"] > 0


def test_a_process_that_hangs_is_found_by_the_others(endless: TrainConfig):
    config = replace(endless, hang_minutes=0.1)
    with crew(config) as processes:
        wait_for_line(processes[0], r"step \d\d/")
        processes[1].send_signal(signal.SIGSTOP)
        output, _ = processes[0].communicate(timeout=60)
    assert processes[0].returncode == 1
    assert "process 1 of 2 no longer answers" in output, output


def train_with_a_bug_in_the_second(config: TrainConfig) -> str:
    if os.environ["RANK"] == "1":
        train.Trainer.step = lambda *_: 1 / 0
    try:
        return f"exit code {train.main(config, StopRequest())}"
    except ZeroDivisionError as error:
        return str(error)


def test_an_error_of_one_s_own_is_not_blamed_on_others(endless: TrainConfig):
    assert in_processes(train_with_a_bug_in_the_second, 2, endless) == ["exit code 1", "division by zero"]
    assert "process 1 of 2 no longer answers" in status(endless)["message"]


def test_torchrun_brings_the_run_back_from_its_last_checkpoint(small: TrainConfig):
    whole = replace(small, batch_size=16, epochs=12, val_every=0, checkpoint_every=4, run_name="whole")
    process = start(whole, *TORCHRUN)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    again = replace(whole, run_name="again")
    process = start(again, *TORCHRUN, "--max-restarts=1")
    try:
        wait_for_line(process, "checkpoint: .*step_00000032")
        workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        os.kill(int(workers[-1]), signal.SIGKILL)
        output, _ = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert_same_run(whole, again)
    starts = json.loads(RunPaths(again.output_root, "again").json.read_text())["starts"]
    assert len(starts) == 2
    assert starts[1]["step"] >= 32
