"""Checkpoints on disk: whole or absent, verified, set aside when damaged, loadable by diffusers."""

import errno
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel

from ddpm.run.errors import RequestError
from ddpm.training import checkpoint
from ddpm.training.checkpoint import Checkpoint, inspect, sweep
from ddpm.training.checkpointing import Checkpoints
from ddpm.training.resume import choose_start, damaged_checkpoints, find_latest
from tests.support.savers import Saver, flip_a_bit


def test_diffusers_loads_the_averaged_weights_and_the_schedule(saver: Saver):
    saver.learn()
    folder = saver.save(1)
    unet = UNet2DModel.from_pretrained(folder, subfolder="unet")
    inputs = torch.randn(2, 4, 14, 14), torch.tensor([3, 50]), torch.tensor([0, 47])
    with torch.no_grad():
        assert unet(*inputs).sample.equal(saver.trainer.ema.model(*inputs).sample)
        assert not unet(*inputs).sample.equal(saver.trainer.model(*inputs).sample)
    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    assert scheduler.config.beta_schedule == "squaredcos_cap_v2"
    assert scheduler.alphas_cumprod.equal(saver.trainer.scheduler.alphas_cumprod)


def test_a_trainer_that_loads_a_checkpoint_goes_on_as_the_one_that_wrote_it(saver: Saver, small):
    saver.learn()
    saver.save(1)
    other = Saver(small, saver.root)
    other.learn()
    other.learn()
    state, averages = inspect(saver.root / "latest").load()
    other.trainer.load_state_dict(state, averages)
    other.progress.load_state_dict(state["progress"])
    for each in (saver, other):
        each.learn()
    for a, b in zip(saver.trainer.model.parameters(), other.trainer.model.parameters(), strict=True):
        assert a.equal(b)
    for a, b in zip(saver.trainer.ema.model.parameters(), other.trainer.ema.model.parameters(), strict=True):
        assert a.equal(b)


def test_meta_tells_settings_place_metrics_and_the_hash_of_every_file(saver: Saver, small):
    folder = saver.save(6, val_loss_ema=0.5)
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["settings"] == small.to_dict()
    assert meta["progress"]["images_seen"] == 6 * 32
    assert (meta["progress"]["epoch"], meta["progress"]["batch"]) == (1, 2)
    assert meta["metrics"]["val_loss_ema"] == 0.5
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert set(meta["files"]) == files - {"meta.json"}
    assert (folder / checkpoint.WEIGHTS).stat().st_mode == (folder / "meta.json").stat().st_mode


def smuggle(folder: Path, payload: object) -> None:
    """Put a pickle in the place of the training state, with the hash that fits."""
    torch.save({"progress": payload}, folder / checkpoint.STATE)
    meta = json.loads((folder / "meta.json").read_text())
    meta["files"][checkpoint.STATE] = checkpoint.sha256_file(folder / checkpoint.STATE)
    (folder / "meta.json").write_text(json.dumps(meta))


class Payload:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return (os.mkdir, (str(self.folder),))


DAMAGES = {
    "a flipped bit": lambda folder: flip_a_bit(folder / checkpoint.STATE),
    "a flipped bit in the average": lambda folder: flip_a_bit(folder / checkpoint.WEIGHTS),
    "a truncated file": lambda folder: os.truncate(folder / checkpoint.STATE, 1000),
    "a missing file": lambda folder: (folder / "scheduler" / "scheduler_config.json").unlink(),
    "no meta.json": lambda folder: (folder / "meta.json").unlink(),
    "half a meta.json": lambda folder: os.truncate(folder / "meta.json", 100),
    "a foreign meta.json": lambda folder: (folder / "meta.json").write_text('["hello"]'),
    "no hashes": lambda folder: (folder / "meta.json").write_text(
        '{"files": {}, "progress": {"step": 8}, "identity": {}}'
    ),
    "a pickle": lambda folder: smuggle(folder, Payload(folder / "ran")),
    "a pipe": lambda folder: ((folder / "meta.json").unlink(), os.mkfifo(folder / "meta.json")),
    "a loop of links": lambda folder: ((folder / "meta.json").unlink(), (folder / "meta.json").symlink_to("meta.json")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_set_aside_and_the_one_before_it_is_taken(saver: Saver, damage: str):
    older, newer = saver.save(4), saver.save(8)
    DAMAGES[damage](newer)
    before = {path.relative_to(newer): path.read_bytes() for path in newer.rglob("*") if path.is_file()}
    with pytest.raises(RequestError, match=newer.name):
        inspect(newer)
    found, damaged = find_latest(saver.root)
    assert found.folder == older
    assert list(damaged) == [newer]
    [told] = damaged_checkpoints(saver.root, found, damaged)
    aside = saver.root / "damaged_step_00000008"
    assert str(newer) in told and aside.name in told and older.name in told
    assert {path.relative_to(aside): path.read_bytes() for path in aside.rglob("*") if path.is_file()} == before
    assert (saver.root / "latest").resolve() == older
    assert not (aside / "ran").exists(), "nothing in a pickle is run"
    assert find_latest(saver.root) == (found, {})


def test_a_training_state_that_would_run_code_runs_none_and_is_told_in_one_line(saver: Saver, tmp_path: Path):
    folder = saver.save(4)
    smuggle(folder, Payload(tmp_path / "ran"))
    with pytest.raises(RequestError) as refused:
        inspect(folder)
    (line,) = str(refused.value).splitlines()
    assert "(Weights only load failed" in line, "the first of torch's many lines"
    with pytest.raises(pickle.UnpicklingError):
        Checkpoint(folder, {}).load()
    assert not (tmp_path / "ran").exists()


def test_what_is_damaged_again_is_set_aside_beside_the_first(saver: Saver):
    saver.save(4)
    for expected in ("damaged_step_00000008", "damaged_step_00000008+"):
        flip_a_bit(saver.save(8) / checkpoint.STATE)
        damaged_checkpoints(saver.root, *find_latest(saver.root))
        saver.keeper._saved = None
        assert expected in saver.names()


def test_a_run_whose_only_checkpoint_is_damaged_does_not_silently_begin_anew(saver: Saver):
    flip_a_bit(saver.save(4) / checkpoint.STATE)
    with pytest.raises(RequestError, match="--resume never"):
        choose_start(saver.root, "auto", saver.identity)
    assert "step_00000004" in saver.names()


def test_a_damaged_checkpoint_of_the_first_epoch_is_passed_over_if_it_is_the_only_one(saver: Saver):
    flip_a_bit(saver.save(4) / checkpoint.STATE)
    found, damaged = choose_start(saver.root, "auto", saver.identity, begun=False)
    assert found is None and [folder.name for folder in damaged] == ["step_00000004"]
    flip_a_bit(saver.save(8) / checkpoint.STATE)
    with pytest.raises(RequestError, match="--resume never"):
        choose_start(saver.root, "auto", saver.identity, begun=False)


def test_resume_can_name_a_checkpoint(saver: Saver):
    first = saver.save(4)
    saver.save(8)
    assert choose_start(saver.root, str(first), saver.identity)[0].step == 4
    assert choose_start(saver.root, str(saver.root), saver.identity)[0].step == 8
    with pytest.raises(RequestError, match="auto, never or a step_ folder"):
        choose_start(saver.root, "elsewhere", saver.identity)


def test_the_newest_is_continued_even_if_a_kill_came_before_latest_pointed_at_it(saver: Saver):
    saver.save(4)
    saver.save(8)
    checkpoint.replace_link(saver.root / "latest", "step_00000004")
    found, damaged = find_latest(saver.root)
    assert (found.step, damaged) == (8, {})


def test_what_a_killed_job_left_half_done_is_never_taken_and_swept_away(saver: Saver):
    saver.save(4)
    for half in (".step_00000008.77.tmp", ".step_00000002.77.old"):
        (saver.root / half / "unet").mkdir(parents=True)
    assert find_latest(saver.root)[0].step == 4
    sweep(saver.root)
    assert saver.names() == ["latest", "step_00000004"]


def test_all_is_on_the_disk_before_the_checkpoint_has_its_name(saver: Saver, monkeypatch: pytest.MonkeyPatch):
    """A power cut then leaves the whole checkpoint or none."""
    synced: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(Path(os.readlink(f"/proc/self/fd/{file}"))))
    folder = saver.save(4)
    hidden = f".{folder.name}.{os.getpid()}.tmp"
    aside = {path.relative_to(saver.root / hidden) for path in synced if hidden in path.parts[:-1]}
    assert aside >= {path.relative_to(folder) for path in folder.rglob("*")} - {Path("meta.json")}
    assert saver.root / hidden in synced, "the names of its files"
    assert saver.root in synced, "its own name"


def test_a_process_that_has_lost_the_run_writes_no_checkpoint(saver: Saver, small):
    def lost() -> None:
        raise OSError("another process has the run now")

    saver.save(4)
    before = {path: path.read_bytes() for path in saver.root.rglob("*") if path.is_file()}
    with pytest.raises(OSError, match="another process"):
        checkpoint.amend(saver.root / "step_00000004", lost, metrics={"val_loss": 1.0})
    saver.keeper = Checkpoints(saver.root, small, saver.schedule, saver.identity, None, {}, lambda *said: None, lost)
    saver.save(8)
    assert "another process has the run now" in saver.keeper.unsaved
    assert {path: path.read_bytes() for path in saver.root.rglob("*") if path.is_file()} == before


def test_a_disk_that_cannot_be_read_is_not_taken_for_damage(saver: Saver, monkeypatch: pytest.MonkeyPatch):
    """The checkpoint may be intact: a later start can take it."""
    folder = saver.save(4)
    for name in ("checked_meta", "sha256_file"):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output") as refusal:
            patch.setattr(checkpoint, name, failing(OSError(errno.EIO, "Input/output error")))
            inspect(folder)
        assert not isinstance(refusal.value, RequestError)
    for error in (OSError(errno.EIO, "Input/output error"), MemoryError()):
        with monkeypatch.context() as patch, pytest.raises(type(error)):
            patch.setattr(checkpoint.torch, "load", failing(error))
            inspect(folder)
    with monkeypatch.context() as patch, pytest.raises(RequestError, match=r"safe to load \(EOFError\(\)\)"):
        patch.setattr(checkpoint.torch, "load", failing(EOFError()))
        inspect(folder)


def failing(error: BaseException):
    def fail(*_, **__):
        raise error

    return fail


def test_a_file_that_is_not_there_has_no_digest(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"abc")
    assert checkpoint.digest_of(tmp_path / "file").startswith("ba7816bf")
    (tmp_path / "loop").symlink_to("loop")
    for missing in ("none", "file/below", ".", "loop"):
        assert checkpoint.digest_of(tmp_path / missing) is None
    with pytest.raises(OSError, match="too long"):
        checkpoint.digest_of(tmp_path / ("n" * 300))


def test_what_cannot_be_read_has_no_meta_and_is_not_sound(saver: Saver):
    first, second, third = saver.save(4), saver.save(8), saver.save(12)
    (first / "meta.json").unlink()
    (second / "meta.json").write_text("{")
    assert checkpoint.read_meta(first) == checkpoint.read_meta(second) == {}
    assert checkpoint.sound_folders(saver.root) == [third]
    (third / "meta.json").unlink()
    checkpoint.point_latest(saver.root)
    checkpoint.point_latest(saver.root)
    assert not (saver.root / "latest").is_symlink()


def test_a_sweep_removes_half_made_links_and_leaves_what_it_does_not_know(saver: Saver):
    saver.save(4)
    (saver.root / ".latest.host.77.tmp").symlink_to("step_00000008")
    (saver.root / ".meta.json.host.77.tmp").write_text("{")
    (saver.root / ".step_00000008.77.tmp").write_text("")  # a file where a folder is expected
    (saver.root / ".mine.tmp").mkdir()
    (saver.root / ".notes").write_text("")
    sweep(saver.root)
    assert saver.names() == [".mine.tmp", ".notes", "latest", "step_00000004"]


def test_a_checkpoint_is_written_where_no_folder_is_yet(small, tmp_path: Path):
    folder = Saver(small, tmp_path / "new" / "run" / "checkpoints").save(4)
    found = inspect(folder)
    assert (found.step, found.unsound) == (4, None)
    assert {file.name for file in folder.iterdir()} == {"meta.json", "scheduler", checkpoint.STATE, "unet"}


def test_a_disk_that_was_full_from_the_start_is_told_as_that(saver: Saver, monkeypatch: pytest.MonkeyPatch):
    """No folder could be made, so there is none to remove."""
    monkeypatch.setattr(UNet2DModel, "save_config", failing(OSError(errno.ENOSPC, "No space left on device")))
    model, scheduler = saver.trainer.model, saver.trainer.scheduler
    contents = checkpoint.Contents({}, {"unet": model.state_dict()}, model, scheduler, {"progress": {"step": 4}})
    with pytest.raises(OSError) as full:
        checkpoint.write(saver.root, contents)
    assert full.value.errno == errno.ENOSPC
    assert saver.names() == []
