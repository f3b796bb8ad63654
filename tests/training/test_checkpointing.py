"""Saving while training goes on: the snapshot, failures, which checkpoints are kept."""

import errno
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.run.files import real
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
from ddpm.training import checkpoint, checkpointing, keeping
from ddpm.training.keeping import update_best
from ddpm.training.progress import Progress
from ddpm.training.resume import find_latest
from tests.conftest import ONE, replace
from tests.support.disks import small_disk
from tests.support.savers import STEPS_PER_EPOCH, Saver


@pytest.fixture
def saver(small, tmp_path: Path) -> Saver:
    return Saver(small, tmp_path / "checkpoints")


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


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to let files grow beyond `size` bytes, as a quota would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


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


def test_an_old_one_that_cannot_be_removed_costs_nothing(saver: Saver, monkeypatch: pytest.MonkeyPatch):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(keeping.shutil, "rmtree", refused)
    for step in (1, 2, 3, 4):
        saver.save(step)
    assert saver.keeper.unsaved is None
    problem = f"old checkpoint {saver.root / 'step_00000001'} could not be removed: Permission denied"
    assert saver.said[-1] == (problem, "warning")
    assert find_latest(saver.root)[0].step == 4


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


def test_newest_best_and_every_nth_are_kept(small, tmp_path: Path):
    saver = Saver(replace(small, keep_last=2, keep_every=3), tmp_path / "kept")
    for epoch, loss in enumerate([0.9, 0.2, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3], start=1):
        saver.save(epoch * STEPS_PER_EPOCH, loss)
    kept = [int(name[5:]) // STEPS_PER_EPOCH for name in saver.names() if name.startswith("step_")]
    assert kept == [2, 3, 6, 7, 8]
    assert (saver.root / "best").resolve().name == f"step_{2 * STEPS_PER_EPOCH:08d}"
    assert (saver.root / "latest").resolve().name == f"step_{8 * STEPS_PER_EPOCH:08d}"
    assert not os.path.isabs(os.readlink(saver.root / "latest"))  # the folder can be moved


@pytest.mark.parametrize(("best_by", "best"), [("val_loss", 1), ("rca", 2), ("fid_features", 3)])
def test_best_is_what_it_is_asked_to_be(small, tmp_path: Path, best_by: str, best: int):
    """The lowest loss, the highest accuracy, the lowest distance; checkpoints that were not evaluated do not count."""
    saver = Saver(replace(small, keep_last=9, best_by=best_by), tmp_path / "kept")
    saver.save(1, 0.1)
    saver.save(2, 0.3, rca=0.9, fid_features=7.0)
    saver.save(3, 0.2, rca=0.8, fid_features=5.0)
    saver.save(4, 0.4, rca=0.8, fid_features=9.0)
    assert (saver.root / "best").resolve().name == f"step_{best:08d}"


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


def test_a_checkpoint_that_tells_nothing_is_not_the_best_and_costs_no_work(saver: Saver):
    saver.save(4, val_loss_ema=0.1)
    (saver.root / "step_00000004" / "meta.json").write_text("{")
    saver.save(8, val_loss_ema=0.9)
    assert (saver.root / "best").resolve().name == "step_00000008"
    saver.save(12, val_loss_ema=0.9)
    assert (saver.root / "best").resolve().name == "step_00000008"
    saver.save(16, val_loss_ema=0.2)
    assert (saver.root / "best").resolve().name == "step_00000016"


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


def continued(saver: Saver, small, root: Path | None = None, begin: str = "latest", **changes) -> Saver:
    """A run that goes on from a checkpoint of `saver`."""
    config, start = replace(small, **changes), checkpoint.inspect(saver.root / begin)
    other = Saver(config, root or saver.root)
    other.rows = list(saver.rows)
    other.keeper = checkpointing.Checkpoints(
        other.root, config, other.schedule, other.identity, start, lambda *said: other.said.append(said)
    )
    return other


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


def test_a_disk_that_cannot_be_read_costs_no_checkpoint(small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A failed read of its meta.json, as a network drive has now and then, cost `best` and that of --keep-every."""
    saver = Saver(replace(small, keep_last=1, keep_every=1), tmp_path / "kept")
    best = saver.save(STEPS_PER_EPOCH, val_loss_ema=0.1)
    read = checkpoint.checked_meta

    def fails(folder: Path, needed):
        if folder == best:
            raise OSError(errno.EIO, "Input/output error")
        return read(folder, needed)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "checked_meta", fails)
        for epoch in (2, 3):
            newest = saver.save(epoch * STEPS_PER_EPOCH, val_loss_ema=0.5)
            assert real(saver.root / "latest") == newest
            assert "could not tidy up" in saver.said[-1][0] and "Input/output" in saver.said[-1][0]
    saver.save(4 * STEPS_PER_EPOCH, val_loss_ema=0.4)
    assert best.is_dir() and real(saver.root / "best") == best


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
    meta = checkpoint.read_meta(saver.root / "latest")
    del meta["settings"]["loss_weighting"], meta["progress"]["altered"]  # as older versions wrote it
    checkpoint.amend(saver.root / "step_00000012", **meta)
    assert continued(weighted, small, loss_weighting="min_snr").keeper.altered == {}
    meta["progress"]["losses_since"] = 2
    checkpoint.amend(saver.root / "step_00000012", **meta)
    assert continued(weighted, small, loss_weighting="min_snr").keeper.altered == {"loss_weighting": 2}


def test_best_is_not_of_another_guidance_once_one_of_this_is_there(saver: Saver, small):
    """Guidance 2 draws more typical characters than guidance 1: its RCA stayed the best for good."""
    for step, rca in ((4, 1.02), (8, 1.03)):
        saver.save(step, rca=rca)
    guided = dict(best_by="rca", guidance_scale=small.guidance_scale + 1)
    other = continued(saver, small, **guided)
    assert update_best(saver.root, replace(small, **guided)).name == "step_00000008", "better than none"
    for step, rca in ((12, 0.8), (16, 0.7)):
        other.save(step, rca=rca)
    assert real(saver.root / "best").name == "step_00000012"


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


def test_a_link_that_cannot_be_made_costs_no_work(saver: Saver):
    saver.save(4)
    (saver.root / "best").mkdir()
    saver.save(8, val_loss_ema=0.1)
    message, severity = saver.said[-1]
    assert severity == "warning" and "could not tidy up" in message
    assert saver.keeper.unsaved is None and (saver.root / "latest").resolve().name == "step_00000008"


def test_of_equal_checkpoints_the_oldest_is_best_and_its_link_stays_untouched(saver: Saver, small):
    saver.save(4, 0.5)
    link = (saver.root / "best").lstat().st_ino
    saver.save(8, 0.5)
    assert (saver.root / "best").readlink() == Path("step_00000004")
    assert (saver.root / "best").lstat().st_ino == link
    nothing = replace(small, best_by="rca")
    assert keeping.update_best(saver.root, nothing) is None
    assert keeping.update_best(saver.root, nothing) is None, "also where there is no link"
    assert not (saver.root / "best").is_symlink()


def test_checkpoints_are_sorted_by_what_they_are_judged_by(small):
    def cost(best_by: str, row: dict, **settings) -> tuple[float, ...] | None:
        return keeping.selection_cost(row, replace(small, best_by=best_by, **settings))

    row = {"val_loss_ema": 0.3, "rca": 0.9}
    assert (cost("val_loss", row), cost("rca", row)) == ((0.3,), (-0.9,))
    assert cost("rca", {"val_loss_ema": 0.3}) is None
    criteria = dict(criterion=("val_loss_ema <= 0.4", "rca >= 0.8", "rca >= 0.95"))
    assert cost("criteria", row, **criteria) == (-2, 0.3)
    assert cost("criteria", {"rca": 0.99}, **criteria) == (-2, float("inf"))
    assert cost("criteria", {}, **criteria) is None


def test_only_the_ends_of_epochs_are_kept_for_keep_every(small, tmp_path: Path):
    saver = Saver(replace(small, keep_last=1, keep_every=1), tmp_path / "kept")
    for step in (2, 4, 6, 8, 9, 10):
        saver.save(step)
    assert [int(name[5:]) for name in saver.names() if name.startswith("step_")] == [4, 8, 10]


def test_what_is_pruned_is_gone_and_the_newest_stays_where_none_is_sound(small, tmp_path: Path):
    saver = Saver(replace(small, keep_last=1), tmp_path / "kept")
    saver.save(4)
    saver.save(8)
    assert saver.names() == ["latest", "step_00000008"], "nothing half deleted is left"
    (saver.root / "step_00000008" / "meta.json").unlink()
    assert keeping.prune(saver.root, 1, 0) == []
    assert "step_00000008" in saver.names(), "what cannot be read may be of use to someone"


def test_what_cannot_be_read_is_not_pruned_among_the_newest(small, tmp_path: Path):
    saver = Saver(replace(small, keep_last=2), tmp_path / "kept")
    for step in (4, 8):
        saver.save(step)
    (saver.root / "step_00000008" / "meta.json").unlink()
    saver.save(12)
    assert [name for name in saver.names() if name.startswith("step_")] == [
        "step_00000004", "step_00000008", "step_00000012",
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
