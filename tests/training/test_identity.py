"""What makes a run the same run, and what may change between its starts."""

import pytest

from ddpm.run.errors import RequestError
from ddpm.training import checkpoint
from ddpm.training.checkpoint import Checkpoint
from ddpm.training.identity import changes, identity_of, refuse_other_run
from ddpm.training.resume import choose_start
from ddpm.training.schedule import TrainingSchedule
from tests.conftest import CLASSES, replace
from tests.support.savers import Saver


def test_another_run_is_refused_with_a_table_of_what_differs(saver: Saver, small):
    saver.save(4)
    asked = replace(small, diffusion_steps=50, prediction_type="epsilon")
    other = identity_of(asked, TrainingSchedule(asked, 2, 128), CLASSES, "4567")
    with pytest.raises(RequestError) as refusal:
        choose_start(saver.root, "auto", other)
    first, head, *table = str(refusal.value).splitlines()
    assert "step_00000004 is of another run" in first and "--grad-accum" in first and "--resume never" in first
    assert head.split() == ["the", "run", "so", "far", "asked", "for", "now"]
    assert [line.rsplit(maxsplit=2) for line in table] == [
        ["  diffusion steps", "100", "50"],
        ["  prediction type", "v_prediction", "epsilon"],
        ["  SHA-256 of the images", saver.identity["SHA-256 of the images"], "4567"],
        ["  global batch", "32", "64"],
    ]
    assert choose_start(saver.root, "never", other) == (None, {})


def test_old_betas_do_not_go_on_with_new_ones(saver: Saver, small):
    """Before they were scaled by the number of steps, a checkpoint's identity said nothing of betas."""
    saver.save(4)
    found, _ = choose_start(saver.root, "auto", saver.identity)
    for schedule, steps, goes_on in (("linear", 100, False), ("linear", 1000, True), ("squaredcos_cap_v2", 100, True)):
        config = replace(small, beta_schedule=schedule, diffusion_steps=steps)
        now = identity_of(config, saver.schedule, CLASSES, saver.identity["SHA-256 of the images"])
        old = Checkpoint(found.folder, {**found.meta, "identity": {k: v for k, v in now.items() if k != "betas"}})
        if goes_on:
            refuse_other_run(old, now)
        else:
            with pytest.raises(RequestError, match=r"betas +None +0\.001 – 0\.2"):
                refuse_other_run(old, now)


def test_what_may_change_is_told(saver: Saver, small):
    saver.save(4)
    found, _ = choose_start(saver.root, "auto", saver.identity)
    now = replace(small, epochs=9, log_every=1, batch_size=8, grad_accum=2, resume="never", dry_run=True)
    *settings, bits, rate = changes(found, now, TrainingSchedule(now, 2, 128))
    assert settings == ["epochs 2 → 9", "batch size 32 → 8", "grad accum 1 → 2", "log every 3 → 1", "processes 1 → 2"]
    assert "not bit for bit" in bits
    assert rate == f"learning rate at step 4 {TrainingSchedule(small, 1, 128).learning_rate(4):.3g} → 0.00097"
    assert changes(found, small, TrainingSchedule(small, 1, 128)) == []


def test_another_machine_and_what_it_chose_are_told(saver: Saver, small):
    """Four GPUs of a newer kind trained in bf16; the node after a requeue has older ones."""
    saver.save(4)
    found, schedule, used = checkpoint.inspect(saver.root / "latest"), saver.schedule, saver.trainer.choices.values()
    assert changes(found, small, schedule, used, device=found.meta["progress"]["device"]) == []
    *told, bits = changes(found, small, schedule, used | {"precision": "fp16", "val_images": 117}, device="V100")
    assert {words.rpartition(" ")[2] for words in told} == {"fp16", "117", "V100"} and "not bit for bit" in bits


def test_other_test_images_are_another_run(saver: Saver, small):
    """Their validation losses cannot be compared. Older checkpoints do not know them, and are continued."""
    saver.save(4)
    known = saver.identity["SHA-256 of the images"]
    saved, now = (identity_of(small, saver.schedule, CLASSES, known, digest) for digest in ("1234", "5678"))
    refuse_other_run(checkpoint.inspect(saver.root / "latest"), now)
    checkpoint.amend(saver.root / "step_00000004", identity=saved)
    refuse_other_run(checkpoint.inspect(saver.root / "latest"), saved)
    with pytest.raises(RequestError, match=r"images, or their order, have changed[^\0]*test images +1234 +5678"):
        refuse_other_run(checkpoint.inspect(saver.root / "latest"), now)
