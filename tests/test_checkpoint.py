"""Checkpoints: whole or absent, verified, pruned, loadable by diffusers."""

import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import DDPMScheduler, UNet2DModel

from ddpm import checkpoint
from ddpm.checkpoint import Checkpoints, choose_start, find_latest, inspect
from ddpm.errors import RequestError
from ddpm.hardware import choose
from ddpm.plan import Plan
from ddpm.progress import Progress
from ddpm.step import Trainer
from tests.conftest import ONE, random_images, replace

STEPS_PER_EPOCH = 4


class Saver:
    """A run that saves: trains a step now and then, and writes checkpoints under `root`."""

    def __init__(self, config, root: Path) -> None:
        self.root, self.said = root, []
        self.plan = Plan(config, 1, STEPS_PER_EPOCH * config.batch_size)
        self.trainer = Trainer(config, choose(config, ONE.device, 1e8), ONE)
        self.progress = Progress(ONE.device, config.batch_size)
        self.keeper = Checkpoints(root, config, self.plan, None, lambda *said: self.said.append(said))

    def learn(self) -> None:
        self.trainer.step(random_images(64), torch.arange(32), self.progress.step * 32, 1e-3)
        self.trainer.record.take()

    def save(self, step: int, val_loss_ema: float | None = None) -> Path:
        self.progress.step = step
        self.keeper.save(self.trainer, self.progress, {"val_loss_ema": val_loss_ema})
        return self.root / f"step_{step:08d}"


@pytest.fixture
def saver(small, tmp_path: Path) -> Saver:
    return Saver(small, tmp_path / "checkpoints")


def folders(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir())


def test_diffusers_loads_the_averaged_weights_and_the_schedule(saver: Saver):
    saver.learn()
    folder = saver.save(1)
    unet = UNet2DModel.from_pretrained(folder, subfolder="unet")
    inputs = torch.randn(2, 1, 28, 28), torch.tensor([3, 50]), torch.tensor([0, 47])
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
    state, ema_weights = inspect(saver.root / "latest").load()
    other.trainer.load_state_dict(state, ema_weights)
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


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a flipped bit": lambda folder: flip_a_bit(folder / "train_state.pt"),
    "a flipped bit in the average": lambda folder: flip_a_bit(folder / checkpoint.WEIGHTS),
    "a truncated file": lambda folder: os.truncate(folder / "train_state.pt", 1000),
    "a missing file": lambda folder: (folder / "scheduler" / "scheduler_config.json").unlink(),
    "no meta.json": lambda folder: (folder / "meta.json").unlink(),
    "half a meta.json": lambda folder: os.truncate(folder / "meta.json", 100),
    "a foreign meta.json": lambda folder: (folder / "meta.json").write_text('["hello"]'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(saver: Saver, damage: str):
    older, newer = saver.save(4), saver.save(8)
    DAMAGES[damage](newer)
    found, problems = find_latest(saver.root)
    assert found.folder == older
    assert len(problems) == 1
    assert str(newer) in problems[0]
    with pytest.raises(RequestError, match=newer.name):
        inspect(newer)


def test_a_run_whose_only_checkpoint_is_damaged_does_not_silently_begin_anew(saver: Saver, small):
    flip_a_bit(saver.save(4) / "train_state.pt")
    with pytest.raises(RequestError, match="--resume never"):
        choose_start(saver.root, small, saver.plan.global_batch)


def test_a_pickle_in_place_of_the_state_is_not_run(saver: Saver, tmp_path: Path):
    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    folder = saver.save(4)
    torch.save(Payload(), folder / "train_state.pt")
    meta = json.loads((folder / "meta.json").read_text())
    meta["files"]["train_state.pt"] = checkpoint.sha256_file(folder / "train_state.pt")
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(Exception, match="weights_only"):
        inspect(folder).load()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("library", "error"),
    [
        (torch, OSError(28, "No space left on device")),
        (torch, RuntimeError("[enforce fail at inline_container.cc] . No space left on device")),
        (safetensors.torch, safetensors.SafetensorError("I/O error: No space left on device (os error 28)")),
    ],
)
def test_a_full_disk_is_told_and_leaves_the_old_ones(saver: Saver, library, error, monkeypatch: pytest.MonkeyPatch):
    saver.save(4)

    def full(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(library, "save" if library is torch else "save_file", full)
        saver.save(8)
    assert saver.keeper.unsaved and "No space left" in saver.keeper.unsaved
    assert saver.said[-1] == (saver.keeper.unsaved, "error")
    assert folders(saver.root) == ["latest", "step_00000004"]
    saver.save(12)
    assert saver.keeper.unsaved is None
    assert (saver.root / "latest").resolve().name == "step_00000012"


def test_newest_best_and_every_nth_are_kept(small, tmp_path: Path):
    saver = Saver(replace(small, keep_last=2, keep_every=3), tmp_path / "kept")
    for epoch, loss in enumerate([0.9, 0.2, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3], start=1):
        saver.save(epoch * STEPS_PER_EPOCH, loss)
    kept = [int(name[5:]) // STEPS_PER_EPOCH for name in folders(saver.root) if name.startswith("step_")]
    assert kept == [2, 3, 6, 7, 8]
    assert (saver.root / "best").resolve().name == f"step_{2 * STEPS_PER_EPOCH:08d}"
    assert (saver.root / "latest").resolve().name == f"step_{8 * STEPS_PER_EPOCH:08d}"
    assert not os.path.isabs(os.readlink(saver.root / "latest"))  # the folder can be moved


def test_another_run_is_refused_with_what_differs(saver: Saver, small):
    saver.save(4)
    asked = replace(small, diffusion_steps=50, prediction_type="epsilon")
    with pytest.raises(RequestError) as refusal:
        choose_start(saver.root, asked, saver.plan.global_batch)
    assert "diffusion steps was 100, now 50" in str(refusal.value)
    assert "prediction type was v_prediction, now epsilon" in str(refusal.value)
    with pytest.raises(RequestError, match="global batch was 32, now 64"):
        choose_start(saver.root, small, 64)
    longer = replace(small, epochs=9, lr=1e-5, log_every=1)
    assert choose_start(saver.root, longer, saver.plan.global_batch)[0].step == 4
    assert choose_start(saver.root, replace(asked, resume="never"), saver.plan.global_batch) == (None, [])


def test_resume_can_name_a_checkpoint(saver: Saver, small):
    first = saver.save(4)
    saver.save(8)
    named = replace(small, resume=str(first))
    assert choose_start(saver.root, named, saver.plan.global_batch)[0].step == 4
    assert choose_start(saver.root, replace(small, resume=str(saver.root)), saver.plan.global_batch)[0].step == 8
    with pytest.raises(RequestError, match="auto, never or a step_ folder"):
        choose_start(saver.root, replace(small, resume="elsewhere"), saver.plan.global_batch)


def test_latest_is_continued_even_if_an_abandoned_branch_went_further(saver: Saver):
    saver.save(4)
    saver.save(8)
    checkpoint.replace_link(
        saver.root / "latest", "step_00000004"
    )  # as --resume step_00000004 and a stop would leave it
    assert find_latest(saver.root)[0].step == 4


def test_a_stop_just_after_a_checkpoint_keeps_it_as_it_is(saver: Saver):
    folder = saver.save(4, val_loss_ema=0.5)
    before = (folder / "meta.json").read_text()
    saver.keeper.save(saver.trainer, saver.progress, {})
    assert (folder / "meta.json").read_text() == before
    assert folders(saver.root) == ["best", "latest", "step_00000004"]


def test_a_best_checkpoint_that_tells_nothing_is_replaced_and_a_broken_one_costs_no_work(saver: Saver):
    saver.save(4, val_loss_ema=0.5)
    meta = json.loads((saver.root / "best" / "meta.json").read_text())
    (saver.root / "best" / "meta.json").write_text(json.dumps({**meta, "metrics": {}}))
    saver.save(8, val_loss_ema=0.9)
    assert (saver.root / "best").resolve().name == "step_00000008"
    (saver.root / "best" / "meta.json").write_text("{")
    saver.save(12, val_loss_ema=0.1)
    assert saver.keeper.unsaved is None
    assert saver.said[-1][1] == "warning"
