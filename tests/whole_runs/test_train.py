"""The training script from end to end: real processes, real files."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from benchmarks.faults.runs import some_of
from ddpm.run.config import PRESETS, TrainConfig, preset
from ddpm.training.machine.hardware import choose
from ddpm.training.model import flops_per_image
from metrics.plots import PLOTS
from tests.conftest import replace
from tests.support.processes import Command
from tests.support.runs import TORCHRUN, crew, environment, final_state, paths_of, rows, run, start, start_anew, status


def test_a_run_leaves_everything_the_design_promises(small: TrainConfig, tmp_path: Path):
    config = replace(small, sample_every=1, export=True)
    assert run(config) == 0
    paths = paths_of(config)
    assert {plot.stem for plot in paths.plots.iterdir()} >= set(PLOTS)
    assert [file.name for file in sorted(paths.samples.iterdir())] == [
        "emnist_epoch_0001.npz",
        "emnist_epoch_0001.png",
        "emnist_epoch_0002.npz",
        "emnist_epoch_0002.png",
    ]
    with np.load(paths.samples / "emnist_epoch_0002.npz") as raw:
        assert raw["x"].shape == (47, config.resolution, config.resolution)
        assert raw["y"].tolist() == list(range(47))
    assert (paths.checkpoints / "export" / "model_index.json").exists()
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


def test_figures_that_are_not_measured_every_epoch_are_left_out_where_they_are_not(small: TrainConfig, quick_reports):
    config = replace(small, val_every=2)
    assert run(config) == 0
    assert "could not write" not in paths_of(config).log.read_text()
    assert rows(config)["val_loss_ema"].notna().tolist() == [False, True]
    board = EventAccumulator(str(paths_of(config).tensorboard)).Reload()
    assert [event.step for event in board.Scalars("loss/loss_mean")] == [256, 512]
    assert [event.step for event in board.Scalars("loss/val_loss_ema")] == [512]
    assert [event.step for event in board.Scalars("loss_by_noise_level/val_loss_band4")] == [512]


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


@pytest.mark.parametrize(
    ("start", "variables"), [(start_anew, {}), (start, {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"})],
)  # fmt: skip
def test_it_starts_as_typed_and_prints_plain_lines(small: TrainConfig, start: Callable, variables: dict):
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
    assert float(re.search(r"compute: +(\S+) GFLOP", told)[1]) == pytest.approx(flops_per_image(small) / 1e9, rel=1e-3)
    for word in ("parameters:", "memory per process:", "disk:", "precision:"):
        assert word in told
    assert list(tmp_path.iterdir()) == []


def test_validation_sampling_and_checkpoints_leave_training_untouched(small: TrainConfig):
    busy = replace(small, sample_every=1, run_name="busy")
    quiet = replace(small, val_every=0, checkpoint_every=2, run_name="quiet")
    assert run(busy) == run(quiet) == 0
    one, two = final_state(busy), final_state(quiet)
    assert all(one[name].equal(two[name]) for name in one)


def test_a_report_that_cannot_be_made_does_not_cost_the_training(small: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    def broken(_):
        raise ValueError("an odd picture")

    monkeypatch.setattr("metrics.report.write_report", broken)
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
    monkeypatch.setattr("ddpm.training.trainer.Trainer.step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(small)
    assert (status(small)["state"], status(small)["total_steps"]) == ("failed", 16)
    assert json.loads(paths_of(small).json.read_text())["state"] == "failed"


def test_dry_run_needs_no_data(small: TrainConfig, tmp_path: Path, capsys):
    assert run(replace(small, data_root=tmp_path / "nothing", dry_run=True)) == 0
    assert "112,800 (not here yet)" in capsys.readouterr().out


def test_dry_run_refuses_what_a_run_would_and_remarks_what_does_nothing(small: TrainConfig, capsys):
    assert run(replace(small, dry_run=True, warmup_steps=1_000_000)) == 2
    assert "has only 16 steps" in capsys.readouterr().err
    assert run(replace(small, dry_run=True, lr_cycles=9)) == 0
    assert "--lr-cycles 9 has no effect" in capsys.readouterr().out


def test_missing_data_are_told_in_one_line_and_in_the_status(small: TrainConfig, tmp_path: Path, capsys):
    config = replace(small, data_root=tmp_path / "nothing")
    assert run(config) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert "--download" in told[0]
    assert (status(config)["state"], status(config)["exit_code"]) == ("failed", 2)


def test_one_of_several_processes_speaks_for_all(small: TrainConfig, tmp_path: Path):
    for config in (replace(small, data_root=tmp_path / "nothing"), replace(small, batch_size=200)):
        with crew(config) as processes:
            output = "".join(process.communicate(timeout=120)[0] for process in processes)
        assert [process.returncode for process in processes] == [2, 2]
        assert len(re.findall(r"^error: ", output, re.MULTILINE)) == 1
    torchrun = Command([*TORCHRUN, "train.py", "--lr", "fast"], environment())
    assert len(re.findall(r"^error: ", torchrun.communicate(timeout=120)[0], re.MULTILINE)) == 1
    assert torchrun.returncode == 1


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "tiny"])
def test_every_preset_takes_a_step(name: str, small_data: Path, tmp_path: Path, quick_reports: None):
    config = preset(name, data_root=small_data, output_root=tmp_path, batch_size=1, max_steps=1, val_every=0)
    config = replace(config, samples_per_class=0, export=False)
    assert run(config) == 0
    assert rows(config)["step"].tolist() == [1]


def test_a_cpu_is_not_asked_for_hours_of_pictures():
    """What validation and samples would take is bounded on a CPU, unless it is asked for."""
    cpu = torch.device("cpu")
    tiny, large = choose(preset("tiny"), 47, cpu, 0.4e9), choose(preset("large"), 47, cpu, 254.7e9)
    assert (tiny.val_images, tiny.samples_per_class) == (500, 8)
    assert (large.val_images, large.samples_per_class) == (117, 0)
    assert "TFLOP" in large.in_words()["samples_per_class"]
    assert choose(preset("large", val_images=2000, samples_per_class=2), 47, cpu, 254.7e9).samples_per_class == 2


def test_real_emnist_trains(emnist: Path, small: TrainConfig, tmp_path: Path, quick_reports: None):
    some = some_of(emnist, tmp_path / "data", {"train": 6016, "test": 500})
    config = replace(small, data_root=some, epochs=4, batch_size=64, log_every=50, lr=4e-3)
    assert run(config) == 0
    assert rows(config)["val_loss_ema"].is_monotonic_decreasing
    assert rows(config)["val_loss_ema"].iloc[-1] < 0.5
