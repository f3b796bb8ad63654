"""Which checkpoints are kept, and which is best."""

import errno
import os
from pathlib import Path

import pytest

from ddpm.run.files import real
from ddpm.training import checkpoint, keeping
from ddpm.training.keeping import update_best
from ddpm.training.resume import find_latest
from tests.conftest import replace
from tests.support.savers import STEPS_PER_EPOCH, Saver, continued


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


def test_a_checkpoint_that_tells_nothing_is_not_the_best_and_costs_no_work(saver: Saver):
    saver.save(4, val_loss_ema=0.1)
    (saver.root / "step_00000004" / "meta.json").write_text("{")
    saver.save(8, val_loss_ema=0.9)
    assert (saver.root / "best").resolve().name == "step_00000008"
    saver.save(12, val_loss_ema=0.9)
    assert (saver.root / "best").resolve().name == "step_00000008"
    saver.save(16, val_loss_ema=0.2)
    assert (saver.root / "best").resolve().name == "step_00000016"


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


@pytest.mark.parametrize("meta", [{"progress": {"device": "NVIDIA L40S"}}, {"used": {"val_images": 2000}}, {}])
def test_a_checkpoint_of_an_older_version_does_not_tell_how_it_was_validated(meta: dict):
    """So that it counts as validated like a later one, whatever that was."""
    told = {"used": {"val_images": 500}, "progress": {"device": "CPU (x86_64)"}}
    assert keeping.measured_with(told)["validation"] == (500, True)
    assert "validation" not in keeping.measured_with(meta)
