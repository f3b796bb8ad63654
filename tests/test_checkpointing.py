"""Saving while training goes on: the snapshot, failures, which checkpoints are kept."""

import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ddpm.training import checkpoint, checkpointing
from ddpm.training.resume import find_latest
from tests.conftest import replace
from tests.disks import small_disk
from tests.savers import STEPS_PER_EPOCH, Saver


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
    severities = [severity for message, severity in saver.said if "could not be written" in message]
    assert severities == ["error", "info"]
    assert "step 12 could not be written" in saver.keeper.unsaved
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

    monkeypatch.setattr(checkpointing.shutil, "rmtree", refused)
    for step in (1, 2, 3, 4):
        saver.save(step)
    assert saver.keeper.unsaved is None
    assert ("old checkpoint" in saver.said[-1][0], saver.said[-1][1]) == (True, "warning")
    assert find_latest(saver.root)[0].step == 4


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
