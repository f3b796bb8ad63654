"""The verdicts of every kind of success criterion: met, missed, open, cannot be judged."""

from __future__ import annotations

import math

import pytest

from metrics.criteria.course import Course
from metrics.criteria.in_training import out_of_reach
from metrics.criteria.of_run import cell
from metrics.criteria.verdicts import counts_words, verdicts
from tests.support.judged import losses, verdict


def test_a_threshold_is_met_at_the_first_epoch_that_reaches_it():
    found = verdict("val_loss_ema <= 0.3", losses(0.5, 0.3, 0.4))
    assert (found.state, found.epoch, found.brief) == ("met", 2, "epoch 2")
    assert verdict("val_loss_ema < 0.3", losses(0.5, 0.3, 0.4)).state == "open"
    assert verdict("rca >= 0.9", losses(0.5, 0.91, name="rca")).epoch == 2


def test_a_threshold_is_missed_at_the_end_or_at_its_deadline_and_by_how_much():
    found = verdict("val_loss_ema <= 0.3", losses(0.5, 0.35, 0.4), over=True)
    assert (found.state, found.brief) == ("missed", "by 0.05 (stopped early)")
    assert "0.35000 (epoch 2)" in found.words
    found = verdict("val_loss_ema <= 0.3 by epoch 2", losses(0.5, 0.35, 0.2))
    assert (found.state, found.epoch, found.brief) == ("missed", 2, "by 0.05")
    assert verdict("val_loss_ema <= 0.3", losses(*[0.4] * 6)).state == "missed", "the last epoch has a row"


def test_an_open_threshold_tells_how_far_and_when_at_the_present_slope():
    found = verdict("val_loss_ema <= 0.1", losses(0.5, 0.4, 0.3), last_epoch=20)
    assert (found.state, found.brief) == ("open", "0.2 to go")
    assert "reached at about epoch 5 (5 to 5), and epoch 20 is the last" in found.words
    assert "not reached" in verdict("val_loss_ema <= 0.1", losses(0.3, 0.4, 0.5), last_epoch=20).words
    assert "takes three values" in verdict("val_loss_ema <= 0.1", losses(0.3), last_epoch=20).words
    assert verdict("val_loss_ema <= 0.1 by epoch 4", losses(None, None)).state == "open"


def test_a_threshold_on_what_was_never_measured_cannot_be_judged():
    assert verdict("rca >= 0.9", losses(0.5, 0.4), over=True).state == "cannot be judged"
    assert (
        verdict("val_loss_ema <= 0.1", [], over=True).words == "val_loss_ema was not measured, as no epoch has figures"
    )
    assert verdict("val_loss_ema <= 0.1 by epoch 2", losses(None, None, 0.05)).state == "cannot be judged"


def speed(*pairs: tuple[float, float]) -> list[dict]:
    return [{"epoch": epoch, "train_images": images, "train_time_sec": seconds, "total_time_sec": seconds * epoch,
             "samples_per_sec": images / seconds} for epoch, (images, seconds) in enumerate(pairs, 1)]  # fmt: skip


def test_a_figure_of_the_whole_run_is_decided_at_its_end():
    asked = "samples_per_sec >= 400"
    slow_start = [(100, 1), (1000, 1), (1000, 1)]
    assert verdict(asked, speed(*slow_start)).state == "open"
    assert "which would meet it; decided after epoch 6" in verdict(asked, speed(*slow_start)).words
    assert verdict(asked, speed(*slow_start[:1])).brief == "300 images/s to go"
    found = verdict(asked, speed(*slow_start), last_epoch=3)
    assert (found.state, found.epoch) == ("met", 3)
    found = verdict(asked, speed(*slow_start[:1]), over=True)
    assert (found.state, found.brief) == ("missed", "by 300 images/s")
    assert verdict(asked, losses(0.5), over=True).state == "cannot be judged"
    assert verdict("samples_per_sec >= 500 by epoch 2", speed(*slow_start)).state == "met"


def test_what_only_grows_is_decided_as_soon_as_it_cannot_change_back():
    skipped = losses(0, 2, 0, name="nonfinite_steps")
    found = verdict("nonfinite_steps <= 1", skipped)
    assert (found.state, found.epoch, found.brief) == ("missed", 2, "by 1 step")
    assert verdict("nonfinite_steps <= 2", skipped).state == "open"
    assert verdict("nonfinite_steps <= 2", skipped, over=True).state == "met"
    peak = losses(900, 1200, 800, name="gpu_mem_peak_mb")
    assert verdict("gpu_mem_peak_mb <= 1000", peak).epoch == 2
    assert verdict("images_seen >= 3000", losses(2000, 4000, name="images_seen")).epoch == 2


def test_what_only_grows_is_told_as_it_was_at_the_epoch_that_decided():
    found = verdict("nonfinite_steps <= 0", losses(1, 5, 20, name="nonfinite_steps"))
    assert (found.epoch, found.words) == (1, "nonfinite_steps 1, 1 step above 0, at epoch 1")
    assert (
        "gpu_hours 0.110, 0.01 h above 0.1, at epoch 2"
        in verdict("gpu_hours <= 0.1", losses(0.05, 0.11, 0.15, name="gpu_hours")).words
    )
    assert verdict("step >= 10", losses(8, 16, 24, name="step")).words == "step 16 at epoch 2"


@pytest.mark.parametrize(("asked", "value", "words"), [
    ("samples_per_sec >= 100000", 100.0, "samples_per_sec 100.0, 99,900 images/s below 100,000, at epoch 1"),
    ("gpu_mem_peak_mb <= 1000", 21999.0, "gpu_mem_peak_mb 21,999, 20,999 MB above 1,000, at epoch 1"),
    ("mfu >= 40%", 0.38, "mfu 38.0%, 2% below 40%, at epoch 1"),
    ("grad_norm <= 1234567", 2e6, "grad_norm 2,000,000, 765,433 above 1,234,567, at epoch 1"),
    ("lr <= 1e-4", 3e-4, "lr 3.000e-04, 2e-4 above 1e-4, at epoch 1"),
])  # fmt: skip
def test_numbers_are_written_out_with_their_units(asked: str, value: float, words: str):
    name = asked.split()[0]
    rows = speed((value, 1)) if name == "samples_per_sec" else losses(value, name=name)
    found = verdict(asked, rows, last_epoch=1)
    assert (found.state, found.words) == ("missed", words)


@pytest.mark.parametrize(("asked", "state"), [
    ("val_loss_ema <= 0.1", "missed"),
    ("val_loss_ema <= 0.1 by epoch 5", "missed"),
    ("val_loss_ema improves from epoch 5 on", "cannot be judged"),
    ("rca >= 0.9 by epoch 5", "cannot be judged"),
    ("lr <= 1e-4", "missed"),
])  # fmt: skip
def test_of_a_run_that_was_stopped_early_the_reason_is_told(asked: str, state: str):
    rows = [row | {"lr": 1e-3} for row in losses(0.5, 0.4, 0.4)]
    found = verdict(asked, rows, over=True)
    assert (found.state, "epoch 3, where early stopping ended the run" in found.words) == (state, True)


def test_epochs_after_an_early_end_cannot_be_judged():
    asked = "no new worst of val_loss_ema in epochs 2-5"
    found = verdict(asked, losses(0.5, 0.4, 0.4), over=True)
    assert found.state == "cannot be judged"
    assert found.words == "early stopping ended the run after epoch 3, before epoch 5"
    assert cell(found) == "▲ cannot be judged, ended after epoch 3"
    assert cell(verdict("val_loss_ema <= 0.1", losses(0.5, 0.4), over=True)) == "✗ missed by 0.3 (stopped early)"


def test_a_deadline_before_the_early_end_is_not_blamed_on_it():
    found = verdict("val_loss_ema <= 0.1 by epoch 2", losses(0.5, 0.4, 0.4), over=True)
    assert (found.state, found.epoch) == ("missed", 2) and "early" not in found.words


@pytest.mark.parametrize(
    "asked", ["no new worst of val_loss_ema in epochs 2-3", "val_loss_ema improves from epoch 2 on"]
)
def test_a_validation_without_a_finite_result_is_a_miss(asked: str):
    rows = losses(0.9, None, 0.8)
    assert verdict(asked, rows, last_epoch=3).state == "met", "not measured at epoch 2"
    found = verdict(asked, [row | {"val_time_sec": 1.0} for row in rows], last_epoch=3)
    assert (found.state, found.epoch) == ("missed", 2)


def test_a_run_that_diverged_ends_where_it_can_no_longer_meet_a_criterion():
    rows = [{"epoch": 1, "step": 8, "val_loss_ema": math.nan, "val_time_sec": 0.1}]
    told = out_of_reach(["val_loss_ema <= 0.5 by epoch 1"], Course(rows, 3))
    assert "val_loss_ema was no finite number at epoch 1" in told


def test_no_new_worst_has_four_verdicts():
    asked = "no new worst of val_loss_ema in epochs 3-4"
    found = verdict(asked, losses(0.5, 0.4, 0.45, 0.52, 0.1))
    assert (found.state, found.epoch, found.brief) == ("missed", 4, "by 0.02")
    assert verdict(asked, losses(0.5, 0.4, 0.45, 0.49, 0.9)).state == "met", "epoch 5 is outside"
    assert verdict(asked, losses(0.5, 0.6, 0.45, 0.55, 0.9)).epoch == 4
    found = verdict(asked, losses(0.5, 0.4, 0.45))
    assert (found.state, found.brief) == ("open", "none so far")
    assert "0.05 better than the worst; decided after epoch 4" in found.words
    assert verdict(asked, losses(0.5, 0.4, 0.45), over=True).state == "cannot be judged"
    assert verdict(asked, losses(0.5, 0.4, None, None)).state == "cannot be judged"
    assert verdict("no new worst of rca in epochs 2-3", losses(0.5, 0.6, 0.4, name="rca")).state == "missed"


def test_improves_has_four_verdicts():
    asked = "val_loss_ema improves from epoch 3 on"
    found = verdict(asked, losses(0.5, 0.6, 0.55, 0.57))
    assert (found.state, found.epoch, found.brief) == ("missed", 4, "by 0.02")
    assert verdict(asked, losses(0.5, 0.4, 0.4)).state == "missed", "an equal value is no improvement"
    found = verdict(asked, losses(0.5, 0.6, 0.55, None, 0.3, 0.2))
    assert (found.state, found.epoch) == ("met", 6)
    assert verdict(asked, losses(0.5, 0.6, 0.55)).state == "open"
    assert verdict(asked, losses(0.5, 0.6), over=True).state == "cannot be judged"
    assert verdict("rca improves from epoch 2 on", losses(0.1, 0.2, name="rca"), over=True).state == "met"


def evaluation(*shares: float | None) -> dict:
    return {"class_balance": {"shares": list(shares), "count": 400},
            "conditional": {"per_class": [{"name": name} for name in "ABCD"]}}  # fmt: skip


def test_the_share_of_classes_has_four_verdicts():
    asked = "share of every class in 0.5..2 of uniform"
    assert verdict(asked, losses(0.5), evaluation=evaluation(0.2, 0.3, 0.25, 0.25)).state == "met"
    found = verdict(asked, losses(0.5), evaluation=evaluation(0.6, 0.2, 0.1, 0.1))
    assert (found.state, found.brief, found.epoch) == ("missed", "by 0.4", None)
    assert "class A is drawn 2.4 times as often as uniform" in found.words
    assert verdict(asked, losses(0.5), evaluation=evaluation(0.04, 0.32, 0.32, 0.32)).brief == "by 0.34"
    assert verdict(asked, losses(0.5)).state == "open"
    assert verdict(asked, losses(0.5), over=True).state == "cannot be judged"
    assert verdict(asked, losses(0.5), evaluation=evaluation(None, 0.5, 0.3, 0.2)).state == "cannot be judged"
    assert "is torn" in verdict(asked, losses(0.5), damage="it is torn").words


def test_figures_of_other_settings_meet_no_criterion():
    """The first two epochs were drawn with another guidance."""
    rows = losses(1.02, 1.01, 0.7, 0.8, name="rca")
    assert verdict("rca >= 1", rows).state == "met"
    assert verdict("rca >= 1", rows, altered={"guidance_scale": 2}).state == "open"
    assert verdict("rca improves from epoch 2 on", rows).state == "missed"
    assert verdict("rca improves from epoch 2 on", rows, altered={"guidance_scale": 2}).state == "open"
    assert verdict("val_loss_ema <= 1", losses(0.5, 2), altered={"guidance_scale": 1}).state == "met"


def test_a_row_that_cannot_be_read_is_no_early_stop():
    asked, rows = "val_loss_ema <= 0.1", losses(0.5, 0.3)
    assert "early stopping ended the run" in verdict(asked, rows, over=True).words
    assert "early stopping" not in verdict(asked, rows, over=True, gaps=True).words
    assert "early stopping" not in verdict("val_loss_ema <= 0.1 by epoch 5", rows, over=True, gaps=True).words


def test_of_joined_conditions_the_worst_decides():
    asked = "val_loss_ema <= 0.3 and no new worst of val_loss_ema in epochs 2-3"
    found = verdict(asked, losses(0.5, 0.3, 0.4))
    assert (found.state, found.epoch) == ("met", 3)
    assert verdict(asked, losses(0.5, 0.3)).state == "open"
    found = verdict(asked, losses(0.5, 0.3, 0.6))
    assert (found.state, found.epoch) == ("missed", 3)
    assert verdict("val_loss_ema <= 0.3 and rca >= 1", losses(0.5, 0.2), over=True).state == "cannot be judged"


def test_the_count_names_only_the_states_that_there_are():
    course = Course(losses(0.5, 0.3), 6)
    assert counts_words(verdicts(["val_loss_ema <= 0.4", "val_loss_ema <= 0.1", "loss_mean <= 1"], course)) == (
        "1 met, 2 open"
    )
