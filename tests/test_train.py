"""The training script from end to end: real processes, real files, real signals."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image
from safetensors.torch import load_file

import train
from ddpm.config import TrainConfig, preset
from ddpm.hardware import choose
from ddpm.paths import PROJECT_ROOT, RunPaths
from ddpm.signals import StopRequest
from metrics.plots import PLOTS
from tests.conftest import as_arguments, replace
from tests.processes import in_processes

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
TIMES = ["samples_per_sec", "batches_per_sec", "epoch_time_sec", "total_time_sec", "train_time_sec", "train_images"]


def run(config: TrainConfig) -> int:
    """Train in this process."""
    return train.main(config, StopRequest())


def paths_of(config: TrainConfig) -> RunPaths:
    return RunPaths(config.output_root, config.run)


def rows(config: TrainConfig) -> pd.DataFrame:
    return pd.read_csv(paths_of(config).csv)


def status(config: TrainConfig) -> dict:
    return json.loads(paths_of(config).status.read_text())


def start(config: TrainConfig, *launcher: str, **variables: str) -> subprocess.Popen:
    """Train in a process of its own, or those of `launcher`."""
    command = [*(launcher or [sys.executable]), "train.py", *as_arguments(config)]
    environment = {**os.environ, **variables}
    return subprocess.Popen(
        command, cwd=PROJECT_ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def wait_for_line(process: subprocess.Popen, pattern: str) -> str:
    """Read the process's output up to a line that `pattern` is found in; returns all of it."""
    seen = ""
    for line in process.stdout:
        seen += line
        if re.search(pattern, line):
            return seen
    raise AssertionError(f"{pattern!r} was never said:\n{seen}")


def final_state(config: TrainConfig) -> dict[str, torch.Tensor]:
    """Live weights, averaged weights and the optimizer's moments of the latest checkpoint, by name."""
    latest = paths_of(config).checkpoints / "latest"
    saved = torch.load(latest / "train_state.pt", weights_only=True)
    moments = {
        f"optimizer.{index}.{name}": value
        for index, state in saved["optimizer"]["state"].items()
        for name, value in state.items()
    }
    averaged = {f"ema.{name}": value for name, value in load_file(latest / WEIGHTS).items()}
    return {**saved["model"], **averaged, **moments}


def assert_same_run(first: TrainConfig, second: TrainConfig) -> None:
    """Bit-identical weights, averages and moments; the same rows, times aside."""
    one, two = final_state(first), final_state(second)
    assert one.keys() == two.keys()
    assert [name for name in one if not one[name].equal(two[name])] == []
    pd.testing.assert_frame_equal(rows(first).drop(columns=TIMES), rows(second).drop(columns=TIMES))


def test_a_run_leaves_everything_the_design_promises(small: TrainConfig, tmp_path: Path):
    config = replace(small, sample_every=1)
    assert run(config) == 0
    paths = paths_of(config)
    assert {plot.stem for plot in paths.plots.iterdir()} == set(PLOTS)
    assert [picture.name for picture in sorted(paths.samples.iterdir())] == [
        "emnist_epoch_0001.png",
        "emnist_epoch_0002.png",
    ]
    assert Image.open(paths.samples / "emnist_epoch_0002.png").width > 200
    assert list(paths.tensorboard.glob("events.out.tfevents.*"))
    assert (status(config)["state"], status(config)["exit_code"]) == ("finished", 0)
    assert (status(config)["step"], status(config)["images_seen"]) == (16, 512)
    events = [json.loads(line) for line in paths.events.read_text().splitlines()]
    assert [event["row"]["epoch"] for event in events if event["kind"] == "epoch"] == [1, 2]
    assert "\x1b" not in paths.log.read_text()
    assert f"# Training Report: {config.run}" in paths.report.read_text()

    frame, document = rows(config), json.loads(paths.json.read_text())
    assert frame["epoch"].tolist() == [1, 2]
    assert frame["images_seen"].tolist() == [256, 512]
    assert frame["loss_mean"].is_monotonic_decreasing
    assert np.allclose(frame["samples_per_sec"], frame["train_images"] / frame["train_time_sec"])
    assert frame["train_images"].tolist() == [256 - 32, 256]  # all but the first step's
    assert frame["epoch_time_sec"].sum() == pytest.approx(frame["total_time_sec"].iloc[-1])
    assert (frame["train_time_sec"] <= frame["epoch_time_sec"]).all()
    assert frame[["mfu", "gpu_mem_peak_mb"]].isna().all(axis=None) or torch.cuda.is_available()
    assert document["settings"] == config.to_dict()
    assert document["hyperparameters"]["null_class_index"] == 47

    checkpoint = paths.checkpoints / "latest"
    assert checkpoint.resolve().name == "step_00000016"
    assert UNet2DModel.from_pretrained(checkpoint, subfolder="unet").config.num_class_embeds == 48
    leftovers = [path for path in tmp_path.rglob("*") if ".tmp" in path.name or ".old" in path.name]
    assert leftovers == []


def test_a_glyphs_run_says_so_everywhere(small: TrainConfig, small_data: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(
        "ddpm.data.glyphs.ensure_glyphs", lambda root: shutil.copytree(small_data, root, dirs_exist_ok=True)
    )
    config = replace(small, data="glyphs", data_root=tmp_path / "data", epochs=1)
    assert run(config) == 0
    paths = paths_of(config)
    for file in (paths.csv, paths.json, paths.report, paths.status, paths.events, paths.log):
        assert "glyphs" in file.read_text(), file
    assert "glyphs" in (paths.checkpoints / "latest" / "meta.json").read_text()
    assert all(picture.name.startswith("glyphs") for picture in paths.samples.iterdir())


@pytest.mark.parametrize("variables", [{}, {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}])
def test_it_starts_as_typed_and_prints_plain_lines(small: TrainConfig, variables: dict):
    config = replace(small, max_steps=2)
    process = start(config, FORCE_COLOR="1", **variables)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "\x1b" not in output
    assert "step 2/2" in output
    assert str(paths_of(config).report) in output


def test_dry_run_tells_what_the_run_would_take_and_writes_nothing(small: TrainConfig, tmp_path: Path, capsys):
    assert run(replace(small, dry_run=True)) == 0
    told = capsys.readouterr().out
    assert '"block_out_channels"' in told
    assert re.search(r"steps: +8 per epoch, 16 in 2 epochs", told)
    for word in ("parameters:", "memory per process:", "disk:", "precision:"):
        assert word in told
    assert list(tmp_path.iterdir()) == []


def train_as_one_of_several(config: TrainConfig) -> int:
    return run(config)


def test_two_processes_with_half_the_batch_make_the_same_run(small: TrainConfig):
    assert run(small) == 0
    halves = replace(small, batch_size=small.batch_size // 2, run_name="two")
    assert in_processes(train_as_one_of_several, 2, halves) == [0, 0]
    alone, together = rows(small).drop(columns=TIMES), rows(halves).drop(columns=TIMES)
    pd.testing.assert_frame_equal(alone, together, rtol=1e-4)
    assert json.loads(paths_of(halves).json.read_text())["environment"]["world_size"] == 2
    assert final_state(halves).keys() == final_state(small).keys()  # no prefix of DDP in any name


def test_validation_sampling_and_checkpoints_leave_training_untouched(small: TrainConfig):
    busy = replace(small, sample_every=1, run_name="busy")
    quiet = replace(small, val_every=0, checkpoint_every=2, run_name="quiet")
    assert run(busy) == run(quiet) == 0
    one, two = final_state(busy), final_state(quiet)
    assert all(one[name].equal(two[name]) for name in one)


def test_a_run_continued_at_an_epoch_boundary_is_the_run_that_never_stopped(small: TrainConfig):
    whole, parts = replace(small, lr_schedule="constant"), replace(small, lr_schedule="constant", run_name="parts")
    assert run(whole) == 0
    assert run(replace(parts, epochs=1)) == 0
    assert run(parts) == 0
    assert_same_run(whole, parts)
    document = json.loads(paths_of(parts).json.read_text())
    assert [begin["cause"] for begin in document["starts"]] == ["started", "resumed from step_00000008"]
    assert document["summary"]["restarts"] == 1


def test_a_run_continued_within_an_epoch_covers_the_whole_epoch(small: TrainConfig):
    whole, parts = replace(small, lr_schedule="constant"), replace(small, lr_schedule="constant", run_name="parts")
    assert run(whole) == 0
    assert run(replace(parts, max_steps=11)) == 0
    assert rows(parts)["step"].tolist() == [8, 11]
    assert run(parts) == 0
    assert_same_run(whole, parts)


def test_a_finished_run_is_left_alone_when_asked_for_again(small: TrainConfig, capsys):
    assert run(small) == 0
    before = paths_of(small).json.read_text()
    assert run(small) == 0
    assert "is finished" in capsys.readouterr().out
    assert paths_of(small).json.read_text() == before


def test_a_run_killed_before_its_report_is_finished_by_the_same_command(small: TrainConfig):
    config = replace(small, max_steps=11)
    assert run(config) == 0
    paths = paths_of(config)
    paths.report.unlink()
    before = rows(config)
    paths.status.write_text(json.dumps({**status(config), "state": "running", "heartbeat": 0}))
    assert run(config) == 0
    assert paths.report.exists()
    assert status(config)["state"] == "finished"
    pd.testing.assert_frame_equal(rows(config), before)


def test_a_report_that_cannot_be_made_does_not_cost_the_training(small: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    def broken(_):
        raise ValueError("an odd picture")

    monkeypatch.setattr(train, "write_report", broken)
    assert run(small) == 0
    assert status(small)["state"] == "finished"
    assert "an odd picture" in paths_of(small).log.read_text()
    assert "python -m metrics.report small" in paths_of(small).log.read_text()


def test_an_error_at_the_start_is_in_the_status(small: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    def broken(*_):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(train.data, "load", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(small)
    assert (status(small)["state"], status(small)["exit_code"]) == ("failed", 1)
    assert "out of memory" in status(small)["message"]


def test_an_error_in_training_is_in_the_status_with_the_place(small: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(train.Trainer, "step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(small)
    assert (status(small)["state"], status(small)["total_steps"]) == ("failed", 16)
    assert json.loads(paths_of(small).json.read_text())["state"] == "failed"


def test_beginning_anew_sets_the_old_run_aside(small: TrainConfig):
    assert run(small) == 0
    assert run(replace(small, resume="never", epochs=1)) == 0
    paths = paths_of(small)
    (old,) = paths.metrics.parent.glob("small.before-*")
    assert len(pd.read_csv(old / "training_metrics.csv")) == 2
    assert (next(paths.checkpoints.parent.glob("small.before-*")) / "step_00000016" / "meta.json").exists()
    assert len(rows(small)) == 1


def test_a_command_that_contradicts_the_run_changes_nothing(small: TrainConfig, capsys):
    assert run(replace(small, epochs=1)) == 0
    before = {path: path.stat().st_mtime_ns for path in small.output_root.rglob("*")}
    assert run(replace(small, prediction_type="epsilon")) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert "prediction type was v_prediction, now epsilon" in told[0]
    assert {path: path.stat().st_mtime_ns for path in small.output_root.rglob("*")} == before


def test_a_run_that_is_alive_is_left_alone(small: TrainConfig):
    config = replace(small, epochs=100, val_every=0, checkpoint_every=100)
    process = start(config)
    try:
        wait_for_line(process, "step 3/")
        second, _ = start(config).communicate(timeout=60)
        assert f"error: small is being trained by process {process.pid} on" in second
        assert not list(paths_of(config).metrics.parent.glob("small.before-*"))
        process.kill()  # as the cluster may: nobody says that it is over
        process.communicate()
        assert run(replace(config, epochs=1)) == 0
    finally:
        process.kill()


def test_dry_run_needs_no_data(small: TrainConfig, tmp_path: Path, capsys):
    assert run(replace(small, data_root=tmp_path / "nothing", dry_run=True)) == 0
    assert "112,800 (not here yet)" in capsys.readouterr().out


def test_missing_data_are_told_in_one_line_and_in_the_status(small: TrainConfig, tmp_path: Path, capsys):
    config = replace(small, data_root=tmp_path / "nothing")
    assert run(config) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert "--download" in told[0]
    assert (status(config)["state"], status(config)["exit_code"]) == ("failed", 2)


def test_one_of_several_processes_speaks_for_all(small: TrainConfig, tmp_path: Path):
    for config in (replace(small, data_root=tmp_path / "nothing"), replace(small, batch_size=200)):
        output, _ = start(config, *TORCHRUN).communicate(timeout=120)
        assert len(re.findall(r"^error: ", output, re.MULTILINE)) == 1
    ended = subprocess.run([*TORCHRUN, "train.py", "--lr", "fast"], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert len(re.findall(r"^error: ", ended.stderr, re.MULTILINE)) == 1


def test_a_folder_that_cannot_be_written_is_found_before_training(small: TrainConfig, tmp_path: Path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert run(replace(small, output_root=tmp_path / "file")) == 2
    assert "--output-root" in capsys.readouterr().err


def test_a_gradient_that_stays_non_finite_ends_the_run_with_the_last_checkpoint_in_place(small: TrainConfig):
    good = replace(small, epochs=1)
    assert run(good) == 0
    latest = (paths_of(good).checkpoints / "latest").resolve()
    assert run(replace(small, epochs=50, lr=1e30, grad_clip=0, checkpoint_every=50)) == 1
    assert (paths_of(good).checkpoints / "latest").resolve() == latest
    assert (status(small)["state"], status(small)["exit_code"]) == ("failed", 1)
    assert "25 steps in a row" in status(small)["message"]
    assert "step_00000008" in status(small)["message"]
    assert json.loads(paths_of(small).json.read_text())["state"] == "failed"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_within_an_epoch_saves_and_the_same_command_continues(small: TrainConfig, name: str):
    whole = replace(small, epochs=30, val_every=0, checkpoint_every=30, run_name="whole")
    parts = replace(whole, run_name="parts")
    process = start(parts)
    wait_for_line(process, r"step 11/240")
    process.send_signal(getattr(signal, name))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert f"stopped by {name}" in status(parts)["message"]
    assert (status(parts)["state"], status(parts)["exit_code"]) == ("stopped", 75)
    stopped_at = json.loads((paths_of(parts).checkpoints / "latest" / "meta.json").read_text())["progress"]["step"]
    assert 11 <= stopped_at < 240
    assert not list(parts.output_root.rglob("*.tmp"))
    if name == "SIGUSR1":
        assert run(parts) == run(whole) == 0
        assert_same_run(whole, parts)


def test_a_signal_before_training_began_is_not_lost(small: TrainConfig):
    config = replace(small, epochs=30)
    process = start(config)
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
        workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        os.kill(int(workers[-1]), signal.SIGUSR1)
        output, _ = process.communicate(timeout=90)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert status(config)["state"] == "stopped"
    assert (paths_of(config).checkpoints / "latest" / "meta.json").exists()


def test_ctrl_c_on_torchrun_saves_before_it_gives_up(small: TrainConfig):
    """As a terminal does it: SIGINT to torchrun and all workers, which torchrun then passes on once more."""
    config = replace(small, batch_size=16, epochs=200, val_every=0, checkpoint_every=200)
    command = [*TORCHRUN, "train.py", *as_arguments(config)]
    process = subprocess.Popen(
        command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        wait_for_line(process, r"step 11/")
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=90)
    finally:
        process.kill()
    assert status(config)["state"] == "stopped", output
    assert (paths_of(config).checkpoints / "latest" / "meta.json").exists()
    assert not list(config.output_root.rglob("*.tmp"))


@pytest.mark.parametrize("name", ["small", "medium", "large", "xl"])
def test_every_preset_takes_steps(name: str, small_data: Path, tmp_path: Path):
    config = preset(name, data_root=small_data, output_root=tmp_path, batch_size=1, max_steps=2, val_images=2)
    config = replace(config, samples_per_class=0)
    assert run(config) == 0
    assert rows(config)["step"].tolist() == [2]


def test_a_cpu_is_not_asked_for_hours_of_pictures():
    """What validation and samples would take is bounded on a CPU, unless it is asked for."""
    cpu = torch.device("cpu")
    tiny, large = choose(preset("tiny"), cpu, 0.4e9), choose(preset("large"), cpu, 254.7e9)
    assert (tiny.val_images, tiny.samples_per_class) == (500, 8)
    assert (large.val_images, large.samples_per_class) == (117, 0)
    assert "TFLOP" in large.in_words()["samples_per_class"]
    assert choose(preset("large", val_images=2000, samples_per_class=2), cpu, 254.7e9).samples_per_class == 2


def test_real_emnist_trains(emnist: Path, small: TrainConfig):
    config = replace(small, data_root=emnist, epochs=2, batch_size=128, max_steps=200, log_every=50)
    assert run(config) == 0
    assert rows(config)["val_loss_ema"].is_monotonic_decreasing
    assert rows(config)["val_loss_ema"].iloc[-1] < 0.5
