"""Requests to stop, at any moment: the run saves, says so, and goes on with the same command."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import train
from ddpm.run.config import TrainConfig
from ddpm.run.paths import PROJECT_ROOT
from ddpm.run.signals import StopRequest
from metrics import sections
from metrics.run_logger import RunLogger
from metrics.run_reader import read_run
from tests.conftest import replace
from tests.support.runs import (
    TORCHRUN,
    assert_same_run,
    causes,
    latest_step,
    paths_of,
    rows,
    run,
    start,
    start_anew,
    status,
    wait_for_line,
    workers_of,
)

pytestmark = pytest.mark.usefixtures("quick_reports")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_within_an_epoch_saves_and_the_same_command_continues(small: TrainConfig, name: str):
    whole = replace(small, batch_size=8, epochs=5, val_every=0, checkpoint_every=5, run_name="whole")
    parts = replace(whole, run_name="parts")
    process = start(parts)
    wait_for_line(process, r"step 12/175")
    process.send_signal(getattr(signal, name))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert f"stopped by {name}" in status(parts)["message"]
    assert (status(parts)["state"], status(parts)["exit_code"]) == ("stopped", 75)
    stopped_at = json.loads((paths_of(parts).checkpoints / "latest" / "meta.json").read_text())["progress"]["step"]
    assert 12 <= stopped_at < 175
    assert not list(parts.output_root.rglob("*.tmp"))
    if name == "SIGUSR1":
        assert run(parts) == run(whole) == 0
        assert_same_run(whole, parts)


def test_a_signal_before_training_began_is_not_lost(small: TrainConfig):
    config = replace(small, epochs=30)
    process = start_anew(config)
    time.sleep(1.0)  # while torch is loading
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert json.loads((paths_of(config).checkpoints / "latest" / "meta.json").read_text())["progress"]["step"] == 0


def test_under_torchrun_one_signalled_worker_stops_all_and_the_job_ends_with_0(small: TrainConfig):
    config = replace(small, batch_size=16, epochs=200, val_every=0, checkpoint_every=200)
    process = start(config, *TORCHRUN)
    try:
        wait_for_line(process, r"step 11/")
        os.kill(workers_of(process)[-1], signal.SIGUSR1)
        output, _ = process.communicate(timeout=90)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert status(config)["state"] == "stopped"
    assert (paths_of(config).checkpoints / "latest" / "meta.json").exists()


def test_ctrl_c_on_torchrun_saves_before_it_gives_up(small: TrainConfig):
    """As a terminal does it: SIGINT to torchrun and all workers, which torchrun then passes on once more."""
    config = replace(small, batch_size=16, epochs=200, val_every=0, checkpoint_every=200)
    process = start(config, *TORCHRUN, session=True)
    try:
        wait_for_line(process, r"step 11/")
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=90)
    finally:
        process.kill()
    assert status(config)["state"] == "stopped", output
    assert (paths_of(config).checkpoints / "latest" / "meta.json").exists()
    assert not list(config.output_root.rglob("*.tmp"))


class StopIn(StopRequest):
    """Is asked to stop as soon as the run has come to a phase."""

    def __init__(self, phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        progress = RunLogger.progress

        def told(logger: RunLogger, now: str, *args: object, **figures: object) -> None:
            progress(logger, now, *args, **figures)
            if now == phase:
                self._handle(signal.SIGTERM, None)

        monkeypatch.setattr(RunLogger, "progress", told)


@pytest.mark.parametrize("phase", ["training", "validating", "sampling", "saving"])
def test_a_signal_in_any_phase_costs_nothing(small: TrainConfig, phase: str, monkeypatch: pytest.MonkeyPatch):
    whole = replace(small, sample_every=1, run_name="whole")
    assert run(whole) == 0
    config = replace(small, sample_every=1)
    codes = []
    for _ in range(9):
        with monkeypatch.context() as patch:
            stop = StopIn(phase, patch) if len(codes) < 2 else StopRequest()
            codes.append(train.main(config, stop))
        now = read_run(paths_of(config))
        assert now.status["epoch"] == max(1, math.ceil(now.status["step"] / 8)) and not now.findings
        if codes[-1] == 0:
            break
    assert codes == ([0] if phase == "saving" else [75, 75, 0])  # that phase comes with a stop only
    assert_same_run(whole, config)
    for name in ("emnist_epoch_0001.png", "emnist_epoch_0002.png"):
        drawn = Image.open(paths_of(config).samples / name), Image.open(paths_of(whole).samples / name)
        assert np.array_equal(*(np.asarray(picture)[68:] for picture in drawn))  # below the run's name
    assert causes(config)[1:] == ["stopped by SIGTERM"] * (len(codes) - 1)


def test_a_row_that_came_after_the_checkpoint_of_its_step_is_not_made_again(small: TrainConfig, monkeypatch):
    """It was, without the figures that only the last epoch has, when the run was made longer later."""
    config = replace(small, val_every=2)
    with monkeypatch.context() as patch:
        assert train.main(config, StopIn("validating", patch)) == 75
    assert run(config) == 0
    before = rows(config)
    assert before["val_loss_ema"].notna().tolist() == [False, True]
    assert run(replace(config, epochs=3)) == 0
    pd.testing.assert_frame_equal(rows(config)[:2], before)
    assert rows(config)["total_time_sec"].is_monotonic_increasing


def test_the_learning_rate_of_a_row_is_that_of_its_steps(small: TrainConfig, monkeypatch):
    """Stopped before the row was made, then continued with another one."""
    config = replace(small, epochs=1, lr_schedule="constant", warmup_steps=0)
    with monkeypatch.context() as patch:
        assert train.main(config, StopIn("validating", patch)) == 75
    assert run(replace(config, lr=config.lr / 10)) == 0
    assert rows(config)["lr"].tolist() == [pytest.approx(config.lr)]


def test_averages_that_have_not_begun_are_not_said_to_begin_anew(small: TrainConfig, monkeypatch):
    with monkeypatch.context() as patch:
        assert train.main(replace(small, power_ema=True), StopIn("training", patch)) == 75
    assert latest_step(small) < 8
    assert run(replace(small, power_ema=True)) == 0
    assert "begin anew" not in paths_of(small).log.read_text()


def test_a_start_that_is_refused_changes_no_figure_of_a_run_that_was_stopped(small: TrainConfig, monkeypatch):
    """It had trained nothing, so pages said "0 images seen", and that all images were trained again."""
    with monkeypatch.context() as patch:
        assert train.main(small, StopIn("validating", patch)) == 75
    before = sections.progress(read_run(paths_of(small)))
    assert before.startswith("epoch 0 of 2, step 8, ") and "0 images seen" not in before.split(", ")
    refused = start(replace(small, prediction_type="epsilon"))
    output, _ = refused.communicate(timeout=60)
    assert refused.returncode == 2, output
    after = read_run(paths_of(small))
    assert after.state == "failed" and "is of another run" in after.condition.note
    assert sections.progress(after) == before
    assert "trained again" not in str(sections.starts(after))


def test_a_signal_while_the_report_is_made_lets_the_run_finish(small: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    stop = StopRequest()
    monkeypatch.setattr("metrics.report.write_report", lambda _: stop._handle(signal.SIGTERM, None))
    assert train.main(replace(small, epochs=1), stop) == 0
    assert status(small)["state"] == "finished"


WAITS_IN_C = """
from ddpm.run.signals import StopRequest
StopRequest().install()
import datetime, torch.distributed as dist
store = dist.TCPStore("127.0.0.1", 0, is_master=True)
print("waiting", flush=True)
store.wait(["never"], datetime.timedelta(minutes=2))
"""


def test_a_second_ctrl_c_ends_even_a_process_that_waits_for_another():
    process = subprocess.Popen([sys.executable, "-c", WAITS_IN_C], cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "waiting\n"
    for pause in (1.5, 0):
        process.send_signal(signal.SIGINT)
        time.sleep(pause)
    assert process.wait(timeout=30) == 1


def test_a_second_ctrl_c_ends_at_once(small: TrainConfig):
    """While a step takes long: the first Ctrl-C waits for its end, the second does not."""
    config = replace(small, batch_size=282, grad_accum=1, resolution=96, layers_per_block=4, log_every=1)
    process = start(config)
    wait_for_line(process, "begins at step")
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    time.sleep(1.5)
    assert process.poll() is None, "the step is shorter than this test needs"
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, output
    assert "interrupted twice" in output
    assert time.monotonic() - began < 30
