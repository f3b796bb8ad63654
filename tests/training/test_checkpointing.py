"""Saving while training goes on: the snapshot, failures, which checkpoints are kept."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.run.metrics import (
    CHECKPOINT_TIME_SEC,
    EPOCH_TIME_SEC,
    GRAD_NORM,
    LOSS_MEAN,
    RCA,
    TRAIN_IMAGES,
    TRAIN_TIME_SEC,
    VAL_LOSS,
)
from ddpm.training import checkpoint, checkpointing
from ddpm.training.progress import Progress
from tests.conftest import ONE, replace
from tests.support.disks import largest_file, small_disk
from tests.support.savers import Saver, continued


@pytest.fixture
def held_back(saver: Saver, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Writing waits until this event is set."""
    go = threading.Event()
    monkeypatch.setattr(checkpointing, "write", lambda *args: go.wait(60) and checkpoint.write(*args))
    return go


def begin_to_save(saver: Saver, step: int) -> None:
    saver.progress.step = step
    saver.keeper.save(saver.trainer, saver.progress, [])


def test_training_goes_on_while_the_state_of_the_moment_is_written(saver: Saver, held_back: threading.Event):
    saver.learn()
    then = {name: weight.clone() for name, weight in saver.trainer.model.state_dict().items()}
    averaged = {name: weight.clone() for name, weight in saver.trainer.ema.model.state_dict().items()}
    begin_to_save(saver, 1)
    saver.learn()
    held_back.set()
    saver.keeper.wait()
    state, averages = checkpoint.inspect(saver.root / "latest").load()
    assert all(state["model"][name].equal(weight) for name, weight in then.items())
    assert all(averages["unet"][name].equal(weight) for name, weight in averaged.items())
    assert not all(weight.equal(then[name]) for name, weight in saver.trainer.model.state_dict().items())


def test_one_is_written_at_a_time(saver: Saver, held_back: threading.Event):
    begin_to_save(saver, 1)
    assert saver.names() == [] if saver.root.exists() else True
    threading.Timer(0.3, held_back.set).start()
    begin_to_save(saver, 2)  # waits for the first
    assert "step_00000001" in saver.names()
    saver.keeper.wait()
    assert (saver.root / "latest").resolve().name == "step_00000002"


@pytest.mark.parametrize("size", [10, 100_000, 400_000])  # not even settings; no averaged weights; no training state
def test_a_full_disk_is_told_loudly_once_and_the_next_save_tries_again(saver: Saver, size: int):
    saver.learn()
    saver.save(4)
    with largest_file(size):
        saver.save(8)
        saver.save(12)
    first, second = ((message, severity) for message, severity in saver.said if "could not be written" in message)
    assert ("training goes on" in first[0], first[1]) == (True, "error")
    assert ("training goes on" in second[0], second[1]) == (False, "info")
    assert "step 12 could not be written" in saver.keeper.unsaved
    assert ("is the disk or the quota full?" in saver.keeper.unsaved) is (size > 10), "a library's error says less"
    assert saver.names() == ["latest", "step_00000004"]
    assert checkpoint.inspect(saver.root / "latest").step == 4
    saver.save(16)
    assert saver.keeper.unsaved is None
    assert (saver.root / "latest").resolve().name == "step_00000016"


def test_a_really_full_disk(small, tmp_path: Path):
    """A file system of 1.6 MB holds two checkpoints of this size, and not three."""
    with small_disk(tmp_path / "disk", "1600k"):
        saver = Saver(small, tmp_path / "disk" / "checkpoints")
        saver.learn()
        for step in (1, 2, 3):
            saver.save(step)
        assert "disk or the quota full" in saver.keeper.unsaved
        assert saver.names() == ["latest", "step_00000001", "step_00000002"]
        checkpoint.inspect(saver.root / "step_00000001")
        checkpoint.inspect(saver.root / "latest")


def test_the_time_of_a_checkpoint_within_an_epoch_is_not_training_time():
    progress = Progress(ONE.device, global_batch=100)
    progress.count_step()
    progress.count_step()
    progress.note(np.ones(1), np.ones(1))
    with progress.spending(CHECKPOINT_TIME_SEC):
        time.sleep(0.5)
    progress.count_step()
    progress.note(np.ones(1), np.ones(1))
    times = progress.times()
    assert times[CHECKPOINT_TIME_SEC] >= 0.5 and times[TRAIN_IMAGES] == 200
    assert times[TRAIN_TIME_SEC] <= times[EPOCH_TIME_SEC] - times[CHECKPOINT_TIME_SEC]
    assert progress.recent_images_per_sec > 100 / 0.5


def test_time_makes_a_checkpoint_due(small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    saver = Saver(replace(small, checkpoint_minutes=10), tmp_path)
    never = Saver(replace(small, checkpoint_minutes=0), tmp_path)
    began = checkpointing.time.monotonic()
    monkeypatch.setattr(checkpointing.time, "monotonic", lambda: began + 590)
    assert not saver.keeper.overdue
    monkeypatch.setattr(checkpointing.time, "monotonic", lambda: began + 610)
    assert saver.keeper.overdue
    assert not never.keeper.overdue
    saver.save(1)
    assert not saver.keeper.overdue


def test_none_is_due_while_one_is_being_written_to_a_slow_disk(small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Training would wait for the disk, and the other processes for this one."""
    saver, written = Saver(replace(small, checkpoint_minutes=1e-9), tmp_path), threading.Event()
    monkeypatch.setattr(checkpointing, "write", lambda *given: written.wait(60) and checkpoint.write(*given))
    saver.keeper.save(saver.trainer, saver.progress, [])
    assert not saver.keeper.overdue
    written.set()
    saver.keeper.wait()
    assert saver.keeper.overdue


def test_a_stop_just_after_a_checkpoint_keeps_it_as_it_is(saver: Saver):
    folder = saver.save(4, val_loss_ema=0.5)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    saver.keeper.save(saver.trainer, saver.progress, saver.rows)
    saver.keeper.wait()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert saver.names() == ["best", "latest", "step_00000004"]


def test_figures_that_come_after_the_checkpoint_are_added_to_it(saver: Saver):
    """Asked to stop while it validated, the run made the epoch's row only after it was taken up again."""
    begin_to_save(saver, 4)
    folder = saver.save(4, val_loss_ema=0.5)
    assert checkpoint.inspect(folder).meta["metrics"]["val_loss_ema"] == 0.5
    assert [row["step"] for row in checkpoint.inspect(folder).meta["history"]] == [4]
    assert saver.names() == ["best", "latest", "step_00000004"]


def test_figures_that_come_later_are_kept_with_the_settings_they_were_measured_with(saver: Saver, small):
    """The run was taken up again with another guidance before the epoch's row was made."""
    begin_to_save(saver, 4)
    saver.keeper.wait()
    other = continued(saver, small, guidance_scale=small.guidance_scale + 1)
    meta = checkpoint.read_meta(other.save(4, rca=0.9))
    assert meta["metrics"]["rca"] == 0.9 and meta["settings"]["guidance_scale"] == small.guidance_scale + 1
    assert meta["progress"]["step"] == 4


def test_a_thread_that_writes_does_not_keep_the_program_from_ending(saver: Saver, held_back: threading.Event):
    begin_to_save(saver, 1)
    (writer,) = [thread for thread in threading.enumerate() if thread.name == "checkpoint"]
    assert writer.daemon
    held_back.set()
    saver.keeper.wait()
    assert not writer.is_alive()


@pytest.mark.parametrize("minutes", [10, 0.5])
def test_a_checkpoint_is_due_once_its_minutes_are_over(
    small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: float
):
    now = 1000.0
    monkeypatch.setattr(checkpointing.time, "monotonic", lambda: now)
    saver = Saver(replace(small, checkpoint_minutes=minutes), tmp_path)
    now += 60 * minutes
    assert not saver.keeper.overdue
    now += 1
    assert saver.keeper.overdue


def test_meta_tells_the_place_in_the_run(saver: Saver):
    saver.progress.threads = [{"step": 0, "threads": 2}, {"step": 2, "threads": 4}, {"step": 3, "threads": 1}]
    places = [checkpoint.read_meta(saver.save(step))["progress"] for step in (5, 8, 20)]
    assert [(place["step"], place["epoch"], place["batch"]) for place in places] == [(5, 1, 1), (8, 2, 0), (20, 5, 0)]
    assert {(place["global_batch"], place["world_size"], place["threads"]) for place in places} == {(32, 1, 1)}
    rates = [saver.schedule.learning_rate(step) for step in (5, 7, 7)]  # the run ends with step 8
    assert [place["lr"] for place in places] == [
        {"step": step, "rate": rate, "hidden": 7} for step, rate in zip((5, 7, 7), rates, strict=True)
    ]


def test_a_checkpoint_within_an_epoch_has_no_figures_of_its_own(saver: Saver):
    saver.save(4, val_loss_ema=0.5)
    saver.progress.step = 6
    saver.keeper.save(saver.trainer, saver.progress, saver.rows)
    saver.keeper.wait()
    meta = checkpoint.read_meta(saver.root / "step_00000006")
    assert (meta["metrics"], [row["step"] for row in meta["history"]]) == ({}, [4])


def test_a_run_that_ends_where_it_began_writes_nothing(saver: Saver, small, tmp_path: Path):
    folder = saver.save(4, val_loss_ema=0.5)
    written = (folder / "meta.json").stat().st_ino
    other, elsewhere = continued(saver, small), continued(saver, small, tmp_path / "elsewhere")
    for each in (other, elsewhere):
        each.progress.step = 4
        each.keeper.save(each.trainer, each.progress, each.rows)
        each.keeper.wait()
    assert (folder / "meta.json").stat().st_ino == written and other.said == []
    assert "step_00000004" in elsewhere.names(), "a run that begins with the checkpoint of another has none yet"


def test_figures_are_compared_from_the_start_on_that_changed_what_they_depend_on(saver: Saver, small):
    assert saver.keeper.altered == {}
    saver.save(4)
    saver.save(8)
    assert continued(saver, small).keeper.altered == {}
    weighted = continued(saver, small, loss_weighting="min_snr")
    assert weighted.keeper.altered == {"loss_weighting": 2}
    weighted.save(12)
    later = continued(weighted, small, loss_weighting="min_snr", guidance_scale=1.0, lr=1.0).keeper.altered
    assert later == {"loss_weighting": 2, "guidance_scale": 3}
    assert [metric.comparable_from(later) for metric in (LOSS_MEAN, VAL_LOSS, RCA, GRAD_NORM)] == [2, 0, 3, 0]
    fewer = continued(weighted, small, loss_weighting="min_snr", val_images=small.val_images // 2).keeper.altered
    assert [metric.comparable_from(fewer) for metric in (LOSS_MEAN, VAL_LOSS, RCA, GRAD_NORM)] == [2, 3, 3, 0]
    meta = checkpoint.read_meta(saver.root / "latest")
    del meta["settings"]["loss_weighting"], meta["progress"]["altered"]  # as older versions wrote it
    checkpoint.amend(saver.root / "step_00000012", **meta)
    assert continued(weighted, small, loss_weighting="min_snr").keeper.altered == {}
    meta["progress"]["losses_since"] = 2
    checkpoint.amend(saver.root / "step_00000012", **meta)
    assert continued(weighted, small, loss_weighting="min_snr").keeper.altered == {"loss_weighting": 2}


@pytest.mark.parametrize("started_again", [False, True])
def test_what_was_unsound_stays_so_when_its_figures_come(saver: Saver, small, started_again: bool):
    saver.progress.step = 4
    saver.keeper.save(saver.trainer, saver.progress, [], "its losses say so")
    if started_again:
        saver.keeper.wait()
        saver = continued(saver, small, begin="step_00000004")
    folder = saver.save(4, val_loss_ema=0.1)
    assert checkpoint.read_meta(folder)["unsound"] == "its losses say so"
    assert [severity for _, severity in saver.said] == ["warning"] * (1 if started_again else 2)
    assert "there is no sound one yet" in saver.said[0][0]
    sound = saver.save(8, val_loss_ema=0.5)
    saver.save(12, unsound="its losses say so")
    assert f"stays at {sound.name}" in saver.said[-1][0]
    assert saver.keeper.unsound == "its losses say so"


def test_every_checkpoint_is_told_and_the_best_is_called_that(saver: Saver):
    for step, loss in ((4, 0.5), (8, 0.4), (12, 0.6)):
        saver.save(step, loss)
    told = [(message.partition(": ")[0], message[-8:], severity) for message, severity in saver.said]
    assert told == [
        ("checkpoint", "00000004", "info"), ("best so far", "00000004", "info"),
        ("checkpoint", "00000008", "info"), ("best so far", "00000008", "info"), ("checkpoint", "00000012", "info"),
    ]  # fmt: skip


def test_a_copy_is_of_the_moment_and_takes_its_memory_again():
    copy, weight = checkpointing.HostCopy(), torch.arange(6.0)
    tree = {"weights": [weight, {"bias": torch.ones(2, dtype=torch.int64)}], "epoch": 3, "name": None}
    first = copy(tree)
    weight.mul_(2)
    assert first["weights"][0].tolist() == [0, 1, 2, 3, 4, 5]
    assert first["weights"][1]["bias"].equal(torch.ones(2, dtype=torch.int64))
    assert (first["epoch"], first["name"]) == (3, None)
    place = first["weights"][0].data_ptr()
    second = copy(tree)
    assert second["weights"][0].data_ptr() == place and second["weights"][0].equal(weight)
    tree["weights"][0] = weight.view(2, 3)
    assert copy(tree)["weights"][0].shape == (2, 3)
    tree["weights"][0] = weight.double().view(2, 3)
    assert copy(tree)["weights"][0].dtype == torch.float64
    assert copy({"epoch": 3}) == {"epoch": 3}
