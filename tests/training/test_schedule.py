"""How long a run is: arithmetic on global batches."""

import itertools
import random

import pytest
import torch

from ddpm.run.config import preset
from ddpm.run.errors import RequestError
from ddpm.training.schedule import TrainingSchedule


def make_schedule(world_size: int = 1, images: int = 1000, **settings) -> TrainingSchedule:
    return TrainingSchedule(preset("tiny", **{"batch_size": 64, "epochs": 3, **settings}), world_size, images)


def test_only_whole_global_batches_count():
    assert make_schedule().steps_per_epoch == 15  # 15 * 64 = 960 of 1000 images
    assert make_schedule(world_size=2, batch_size=32).steps_per_epoch == 15
    assert make_schedule(world_size=4).steps_per_epoch == 3


def test_max_steps_can_end_the_run_within_an_epoch():
    cut = make_schedule(max_steps=20)
    assert (cut.total_steps, cut.epochs) == (20, 2)
    assert [cut.epoch_end(0), cut.epoch_end(1)] == [15, 20]
    assert make_schedule(max_steps=10_000).total_steps == 45


def test_the_same_number_of_images_is_seen_whatever_the_number_of_processes():
    assert (
        make_schedule(world_size=1, batch_size=64).images_seen(7)
        == make_schedule(world_size=4, batch_size=16).images_seen(7)
        == 448
    )


def test_learning_rate_warms_up_and_ends_near_zero():
    schedule = make_schedule(lr=1e-3, lr_schedule="cosine", warmup_steps=5)
    rates = [schedule.learning_rate(step) for step in range(schedule.total_steps)]
    assert rates[0] == pytest.approx(1e-3 / 5)
    assert max(rates) < 1e-3
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 1e-5
    constant = make_schedule(lr=1e-3, lr_schedule="constant", warmup_steps=0)
    assert {constant.learning_rate(step) for step in range(45)} == {1e-3}


@pytest.mark.parametrize("schedule", ["constant", "cosine", "cosine_restarts", "step"])
def test_the_learning_rate_after_so_many_images_is_that_of_any_number_of_processes(schedule):
    settings = dict(lr=1e-3, lr_schedule=schedule, warmup_steps=7, lr_step_epochs=0.5)
    alone, four = make_schedule(batch_size=64, **settings), make_schedule(world_size=4, batch_size=16, **settings)
    for step in range(alone.total_steps):
        assert alone.images_seen(step) == four.images_seen(step)
        assert alone.learning_rate(step) == four.learning_rate(step)


@pytest.mark.parametrize("mode", ["lower", "higher"])
@pytest.mark.parametrize("cooldown", [0, 2])
def test_plateaus_lower_the_learning_rate_as_torch_does(mode: str, cooldown: int):
    name = {"lower": "val_loss_ema", "higher": "rca"}[mode]
    generator = random.Random(cooldown)
    for patience, factor, lowest in itertools.product((0, 1, 3), (0.5, 0.1), (0.0, 2e-4)):
        values = [generator.choice([0.3, 0.30001, 0.29, 0.5 - 0.01 * epoch, 0.6]) for epoch in range(30)]
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([parameter], lr=1e-3)
        theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, {"lower": "min", "higher": "max"}[mode], factor, patience, cooldown=cooldown, min_lr=lowest
        )
        settings = dict(
            lr=1e-3, lr_schedule="plateau", warmup_steps=0, epochs=30, plateau_metric=name, plateau_factor=factor,
            plateau_patience=patience, plateau_cooldown=cooldown, plateau_lowest=lowest, eval_every=1,
        )  # fmt: skip
        schedule, rows = make_schedule(**settings), []
        for epoch, value in enumerate(values, 1):
            assert schedule.learning_rate(15 * (epoch - 1)) == pytest.approx(optimizer.param_groups[0]["lr"])
            rows.append({"epoch": epoch, "step": 15 * epoch, name: value})
            schedule.follow(schedule.reductions_by(rows))
            theirs.step(value)
        again = make_schedule(world_size=4, **settings | {"batch_size": 16})
        again.follow(again.reductions_by(rows))
        assert [again.learning_rate(step) for step in range(450)] == [schedule.learning_rate(s) for s in range(450)]


def test_epochs_without_the_figure_do_not_count_towards_a_plateau():
    rows = [{"epoch": epoch, "step": 15 * epoch, "val_loss_ema": None} for epoch in range(1, 9)]
    rows[0]["val_loss_ema"] = rows[7]["val_loss_ema"] = 0.3
    schedule = make_schedule(lr=1e-3, lr_schedule="plateau", plateau_patience=0, warmup_steps=0, epochs=9)
    (lowered,) = schedule.reductions_by(rows)
    assert (lowered.epoch, lowered.step, lowered.rate) == (8, 120, 1e-4)
    assert lowered.reason == "val_loss_ema has not improved on 0.30000 (epoch 1) by epoch 8"
    assert make_schedule(lr_schedule="constant").reductions_by(rows) == []


def test_cosine_restarts_begins_each_cycle_at_the_top():
    schedule = make_schedule(
        lr=1e-3, lr_schedule="cosine_restarts", lr_cycles=3, warmup_steps=0
    )  # 45 steps, 15 a cycle
    rates = [schedule.learning_rate(step) for step in range(45)]
    assert [step for step in range(45) if rates[step] == pytest.approx(1e-3)] == [0, 15, 30]
    assert rates[:15] == pytest.approx(rates[15:30])
    assert rates[14] < 2e-5


def test_the_step_schedule_falls_by_its_factor_every_few_epochs():
    schedule = make_schedule(lr=1e-3, lr_schedule="step", lr_step_epochs=1, lr_step_factor=0.5, warmup_steps=0)
    assert [schedule.learning_rate(step) for step in (0, 14, 15, 29, 30, 44)] == pytest.approx(
        [1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4, 2.5e-4]
    )


@pytest.mark.parametrize(("rule", "power"), [("none", 0), ("linear", 1), ("sqrt", 0.5)])
def test_scale_lr_follows_the_global_batch(rule: str, power: float):
    for world_size, grad_accum in ((1, 1), (4, 1), (2, 3)):
        config = preset("tiny", lr=1e-3, lr_schedule="constant", warmup_steps=0, scale_lr=rule, grad_accum=grad_accum)
        scaled = TrainingSchedule(config, world_size, 10_000)
        assert scaled.learning_rate(3) == pytest.approx(1e-3 * (world_size * grad_accum) ** power)


def test_a_global_batch_larger_than_the_data_set_is_refused():
    with pytest.raises(RequestError, match=r"global batch of 128, but there are only 100"):
        make_schedule(world_size=2, images=100)


@pytest.mark.parametrize(
    "settings", [{"warmup_steps": 1_000_000}, {"warmup_steps": 45}, {"warmup_steps": 21, "max_steps": 20}]
)
def test_a_warm_up_that_never_ends_is_refused(settings):
    with pytest.raises(RequestError, match="learning rate would never reach its peak"):
        make_schedule(**settings)
    assert make_schedule(warmup_steps=44).remarks() == []


def test_a_presets_own_warm_up_is_only_remarked_where_a_run_is_short():
    (remark,) = make_schedule(max_steps=20).remarks()
    assert "--warmup-steps 100 are more than the 20 steps" in remark
    fast = preset("small", recipe="fast", batch_size=32)  # a recipe's own, which this preset has not
    assert any("--warmup-steps 100 are more" in remark for remark in TrainingSchedule(fast, 1, 32).remarks())


def test_the_lowest_rate_of_plateaus_is_judged_by_the_scaled_rate():
    asked = dict(lr=1e-4, lr_schedule="plateau", warmup_steps=0)
    for lowest, more, refused in (
        (1e-3, {}, "1e-04"),
        (2e-4, {"scale_lr": "linear", "grad_accum": 4}, None),
        (5e-5, {"scale_lr": "linear", "batch_size": 8}, "2.5e-05"),
    ):
        if refused is None:
            make_schedule(**asked, plateau_lowest=lowest, **more)
        else:
            with pytest.raises(RequestError, match=f"must be below the learning rate, {float(refused):g}"):
                make_schedule(**asked, plateau_lowest=lowest, **more)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"max_steps": 46}, "--max-steps 46 does nothing: --epochs 3 end at step 45"),
        ({"max_steps": 29, "swa_start_epoch": 2}, "--swa-start-epoch 2"),
        ({"max_steps": 15, "lr_schedule": "step", "lr_step_epochs": 1}, "--lr-step-epochs 1"),
    ],
)
def test_what_the_end_of_the_run_cuts_off_is_remarked(settings, told):
    (remark,) = make_schedule(warmup_steps=0, **settings).remarks()
    assert told in remark


def test_more_cycles_than_steps_are_refused():
    with pytest.raises(RequestError, match="--lr-cycles 50: the run has only 45 steps"):
        make_schedule(warmup_steps=0, lr_schedule="cosine_restarts", lr_cycles=50)


def lowered(values: list[float | None], name: str = "val_loss_ema", **settings) -> list:
    """The reductions that epochs with these values of the figure ask for, from a rate of 1e-3 on."""
    rows = [{"epoch": epoch, "step": 15 * epoch, name: value} for epoch, value in enumerate(values, 1)]
    asked = dict(lr=1e-3, lr_schedule="plateau", warmup_steps=0, epochs=30, plateau_metric=name, plateau_patience=0)
    return make_schedule(**asked | settings).reductions_by(rows)


def test_a_rate_at_its_floor_is_lowered_no_further():
    found = lowered([0.3] * 9, plateau_factor=0.1, plateau_lowest=2e-4)
    assert [(each.epoch, each.before, each.rate) for each in found] == [(2, 1e-3, 2e-4)]


@pytest.mark.parametrize(("name", "start", "threshold"), [("val_loss_ema", 0.3, 1 - 1e-4), ("rca", 0.3, 1 + 1e-4)])
def test_an_improvement_by_the_threshold_and_no_more_is_none(name: str, start: float, threshold: float):
    at, beyond = start * threshold, start * (1 + 1.01 * (threshold - 1))
    assert [each.epoch for each in lowered([start, at], name, eval_every=1)] == [2]
    assert lowered([start, beyond], name, eval_every=1) == []


def test_an_epoch_that_the_last_step_cut_short_does_not_count_towards_a_plateau():
    rows = [{"epoch": 1, "step": 15, "val_loss_ema": 0.3}, {"epoch": 2, "step": 20, "val_loss_ema": 0.3}]
    schedule = make_schedule(lr_schedule="plateau", plateau_patience=0, warmup_steps=0, max_steps=20)
    assert schedule.reductions_by(rows) == []
    assert schedule.reductions_by([rows[0], {**rows[1], "step": None}]) == []
    assert len(schedule.reductions_by([rows[0], {**rows[1], "step": 30}])) == 1


def test_a_global_batch_may_be_the_whole_data_set():
    whole = make_schedule(images=64, warmup_steps=0)
    assert (whole.steps_per_epoch, whole.total_steps, whole.epochs) == (1, 3, 3)


def test_a_criterion_beyond_the_last_step_is_refused():
    asked = dict(warmup_steps=0, criterion=("val_loss_ema <= 0.13 by epoch 3",))
    with pytest.raises(RequestError, match=r"epoch 3 is beyond the end, epoch 2 \(--max-steps 20"):
        make_schedule(max_steps=20, **asked)
    assert make_schedule(max_steps=31, **asked).epochs == 3


def test_what_fits_the_run_to_the_last_step_is_not_remarked():
    for settings in (
        {"max_steps": 45},
        {"max_steps": 30, "swa_start_epoch": 2},
        {"max_steps": 31, "swa_start_epoch": 2},
        {"max_steps": 16, "lr_schedule": "step", "lr_step_epochs": 1},
        {"lr_schedule": "step", "lr_step_epochs": 2},
        {"lr_schedule": "plateau", "plateau_patience": 1},
        {"lr_schedule": "cosine_restarts", "lr_cycles": 45},
    ):
        assert make_schedule(warmup_steps=0, **settings).remarks() == [], settings


@pytest.mark.parametrize(("patience", "max_steps"), [(2, None), (3, None), (1, 30)])
def test_a_patience_of_the_whole_run_is_remarked(patience: int, max_steps: int | None):
    settings = {"plateau_patience": patience, "max_steps": max_steps}
    (remark,) = make_schedule(warmup_steps=0, lr_schedule="plateau", **settings).remarks()
    assert "too short for the learning rate to be lowered" in remark


def test_a_warm_up_and_a_schedule_multiply():
    schedule = make_schedule(lr=1e-3, lr_schedule="step", lr_step_epochs=1, lr_step_factor=0.5, warmup_steps=20)
    found = [schedule.learning_rate(step) for step in (0, 14, 15, 19, 20, 30)]
    assert found == pytest.approx([1e-3 / 20, 1e-3 * 15 / 20, 5e-4 * 16 / 20, 5e-4, 5e-4, 2.5e-4])


def test_a_schedule_is_a_value_and_takes_over_reductions_as_they_are():
    schedule, other = make_schedule(lr_schedule="plateau"), make_schedule(lr_schedule="plateau")
    reductions = lowered([0.3, 0.3, 0.3])
    schedule.follow(reductions)
    schedule.follow(reductions)
    assert schedule.reductions == reductions and other.reductions == []
    assert schedule == other, "the same run, whatever it has been through"


def test_a_step_of_the_schedule_may_take_several_epochs_or_a_part_of_one():
    for epochs, first in ((2, 30), (0.5, 8)):
        schedule = make_schedule(lr=1e-3, lr_schedule="step", lr_step_epochs=epochs, lr_step_factor=0.5, warmup_steps=0)
        assert [schedule.learning_rate(step) for step in (first - 1, first)] == pytest.approx([1e-3, 5e-4])


def test_a_presets_own_warm_up_that_ends_with_the_run_is_remarked():
    (remark,) = make_schedule(epochs=9, max_steps=100).remarks()
    assert "--warmup-steps 100" in remark
    assert make_schedule(epochs=9, max_steps=101).remarks() == []
