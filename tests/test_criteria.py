"""Success criteria: the language, checked whole before anything starts, and the verdicts of every kind of criterion."""

from __future__ import annotations

import io
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ddpm.run.arguments import parse_args
from ddpm.run.config import preset
from ddpm.run.config.rules import without_effect
from ddpm.run.criteria import EXAMPLES, ClassShares, Improves, NoNewWorst, Threshold, parse_criterion
from ddpm.run.errors import RequestError
from ddpm.run.files import real
from ddpm.training.checkpointing import selection_cost, update_best
from ddpm.training.schedule import TrainingSchedule
from metrics.criteria.course import Course
from metrics.criteria.in_training import changed, out_of_reach
from metrics.criteria.of_run import cell, count_of
from metrics.criteria.verdicts import Verdict, counts_words, verdicts
from metrics.health.criteria import criteria
from metrics.live.panels import progress_panel
from metrics.note.__main__ import main as note
from metrics.note.notes import read_notes
from metrics.page import to_markdown
from metrics.report import report_page
from metrics.run_data import read_run
from metrics.sections import best_checkpoint
from tests.metrics_documents import make_document, make_run
from tests.runs import paths_of, rows, run, status


def losses(*values: float | None, name: str = "val_loss_ema") -> list[dict]:
    """Rows whose figure has these values from epoch 1 on; None: not measured."""
    return [{"epoch": epoch, name: value} for epoch, value in enumerate(values, 1)]


def verdict(text: str, rows: list[dict], **course) -> Verdict:
    return verdicts([text], Course(rows, **{"last_epoch": 6, **course}))[0]


# ---- the language ----------------------------------------------------------------------------------------------------


def test_every_kind_of_condition_is_read():
    kinds = [parse_criterion(text).conditions[0] for text in EXAMPLES]
    assert kinds == [
        Threshold(EXAMPLES[0], "val_loss_ema", "<=", 0.13),
        Threshold(EXAMPLES[1], "val_loss_ema", "<=", 0.14, by=4),
        NoNewWorst(EXAMPLES[2], "val_loss_ema", 3, 6),
        Improves(EXAMPLES[3], "val_loss_ema", 5),
        ClassShares(EXAMPLES[4], 0.5, 2.0),
    ]


def test_conditions_are_joined_and_a_criterion_has_a_name():
    named = parse_criterion("good and  fast: rca>=.95 and samples_per_sec > 4e2")
    assert named.name == "good and fast"
    assert [(each.name, each.sign, each.value) for each in named.conditions] == [
        ("rca", ">=", 0.95), ("samples_per_sec", ">", 400.0),
    ]  # fmt: skip
    assert parse_criterion("rca >= 0.95").name == "rca >= 0.95"


@pytest.mark.parametrize(("text", "words"), [
    ("val_los <= 0.13", "no figure val_los; did you mean val_loss or"),
    ("beauty >= 1", "no figure beauty; metrics/README.md lists them"),
    ("epoch >= 3", "no figure epoch"),
    ("val_loss_ema == 0.13", "is no condition; write one like 'val_loss_ema <= 0.13'"),
    ("__import__('os') <= 1", "is no condition"),
    ("val_loss_ema <= 0.13 or rca >= 1", "is no condition"),
    ("val_loss_ema <= nan", "is no condition"),
    ("val_loss_ema <= 1e999", "is not finite"),
    ("val_loss_ema >= 0.13", "lower is better: write val_loss_ema <= 0.13"),
    ("rca < 0.5", "higher is better: write rca > 0.5"),
    ("val_loss_ema <= 0.13 by epoch 0", "is no condition"),
    ("no new worst of rca in epochs 6-3", "6-3 is no range of epochs"),
    ("no new worst of lr in epochs 3-6", "of lr neither lower nor higher is better"),
    ("lr improves from epoch 2 on", "of lr neither lower nor higher is better"),
    ("improves from epoch 2 on", "is no condition; write one like"),
    ("share of every class in 2..0.5 of uniform", "give the smaller number first"),
    ("", "is no condition"),
    ("gpu_utilization >= 25", "gpu_utilization is always 0 to 1, never 25; 25% is 0.25"),
    ("top1 >= 140%", "top1 is always 0 to 1, never 1.4"),
    ("val_loss_ema <= -0.1", "val_loss_ema is always 0 or more, never -0.1"),
    ("slowest_rank_ratio <= 0.9", "slowest_rank_ratio is always 1 or more, never 0.9"),
    ("val_loss_ema <= 13%", "val_loss_ema is no share: write a number without %"),
    ("samples_per_sec <= 1234567", "write samples_per_sec >= 1234567"),
    ("share of every class in 2..3 of uniform", "the mean over the classes is 1"),
])  # fmt: skip
def test_what_is_no_criterion_is_refused_in_one_line(text: str, words: str):
    with pytest.raises(RequestError) as error:
        parse_criterion(text)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_shares_and_ratios_may_be_given_in_percent():
    texts = ("gpu_utilization >= 25%", "rca>=95% by epoch 2", "mfu >= 0.4")
    assert [parse_criterion(text).conditions[0].value for text in texts] == [0.25, 0.95, 0.4]


@pytest.mark.parametrize(("arguments", "words"), [
    (["--target", "top1=95"], "--target top1=95: top1 is always 0 to 1, never 95; 95% is 0.95"),
    (["--criterion", "val_loss_ema <= 0.1 by epoch 9", "--epochs", "8"], "epoch 9 is beyond the end, epoch 8"),
    (["--criterion", "rca >= 0.9", "--eval-every", "0"], "(rca) needs evaluations: give --eval-every 1 or more"),
    (["--criterion", "val_loss_band1 <= 0.9", "--val-every", "0"], "needs validation: give --val-every 1 or more"),
    (["--criterion", "val_loss_swa <= 0.9"], "needs SWA"),
    (["--criterion", "rca >= 0.9 by epoch 5"], "rca is measured every 10 epochs only, so not in epochs 1 to 5"),
    (["--criterion", "a: rca >= 0.9", "--criterion", "a: rca >= 0.8"], "two criteria are called 'a'"),
    (["--stop-when", "missed"], "--stop-when missed needs criteria"),
    (["--best-by", "criteria"], "--best-by criteria needs criteria"),
    (["--criteria", "nowhere.yaml"], "--criteria nowhere.yaml: "),
    (["--lr-schedule", "plateau", "--lr", "1e-4", "--plateau-lowest", "1e-3"], "must be below --lr 0.0001"),
])  # fmt: skip
def test_criteria_that_cannot_be_judged_are_refused_before_anything_starts(arguments: list[str], words: str):
    with pytest.raises(RequestError) as error:
        parse_args(arguments)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", EXAMPLES)
def test_every_kind_of_criterion_is_a_setting(text: str):
    assert parse_args(["--criterion", text, "--epochs", "6"]).criterion == (text,)


def test_max_steps_ends_a_run_before_the_epoch_that_a_criterion_names():
    config = preset("tiny", epochs=6, max_steps=20, batch_size=64, criterion=("val_loss_ema <= 0.1 by epoch 3",))
    with pytest.raises(RequestError, match=r"epoch 3 is beyond the end, epoch 2 .--max-steps 20"):
        TrainingSchedule(config, 1, 1000)


def test_criteria_are_given_one_by_one_or_by_a_plan_and_typed_ones_replace_those_of_a_file(tmp_path: Path):
    first, second = "val_loss_ema <= 0.1", "name: rca >= 0.9"
    assert parse_args(["--criterion", first, f"--criterion={second}"]).criterion == (first, second)
    assert parse_args(["--criterion", first, second, "--epochs", "3"]).criterion == (first, second)
    plan = tmp_path / "plan.yaml"
    plan.write_text("criteria: [val_loss_ema <= 0.1, {name: rca >= 0.9}]\nstop_when: missed\nproblem: which rate?\n")
    config = parse_args(["--criteria", str(plan), "--criterion", "loss_mean <= 1"])
    assert config.criterion == (first, second, "loss_mean <= 1")
    assert (config.stop_when, config.problem) == ("missed", "which rate?")
    settings = tmp_path / "settings.yaml"
    settings.write_text("criterion: ['val_loss_ema <= 0.1', 'rca >= 0.5']\n")
    assert parse_args(["--config", str(settings)]).criterion == (first, "rca >= 0.5")
    assert parse_args(["--config", str(settings), "--criterion", second]).criterion == (second,)
    plan.write_text("runs: {}\n")
    with pytest.raises(RequestError, match="it has no part `criteria`"):
        parse_args(["--criteria", str(plan)])


# ---- verdicts: every kind, each of the four --------------------------------------------------------------------------


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
    told = out_of_reach(["val_loss_ema <= 0.5 by epoch 1"], rows, 3)
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


# ---- while it trains -------------------------------------------------------------------------------------------------


def test_the_log_tells_of_each_criterion_once_when_it_is_decided():
    texts, rows = ["good: val_loss_ema <= 0.3", "val_loss_ema <= 0.2 by epoch 2"], losses(0.5, 0.3, 0.25)
    assert list(changed(texts, rows[:1], 6)) == []
    (met, success), (missed, warning) = changed(texts, rows[:2], 6)
    assert met.startswith("criterion met: good: ") and success == "success"
    assert missed.startswith("criterion missed: val_loss_ema <= 0.2 by epoch 2: ") and warning == "warning"
    assert list(changed(texts, rows, 6)) == []


def test_the_log_tells_what_an_early_end_decides():
    texts, rows = ["val_loss_ema <= 0.2", "loss_mean <= 1"], losses(0.5, 0.3)
    assert list(changed(texts, rows, 6)) == []
    ((line, severity),) = changed(texts, rows, 6, over=True)
    assert severity == "warning" and "up to epoch 2, where early stopping ended the run" in line


def test_a_run_stops_only_when_a_criterion_can_no_longer_be_met():
    texts = ["fast: val_loss_ema <= 0.2 by epoch 2", "val_loss_ema <= 0.1"]
    assert out_of_reach(texts, losses(0.5), 6) is None
    assert out_of_reach(texts, losses(0.5, 0.4), 6).startswith(
        "stopped early after epoch 2: the criterion 'fast' can no longer be met (best val_loss_ema 0.40000 (epoch 2)"
    )
    assert out_of_reach(texts, losses(0.5, 0.4), 2) is None, "it is at its end anyway"


def test_the_checkpoint_that_meets_most_is_best_and_of_equal_ones_the_one_with_the_smallest_loss():
    texts = ("rca >= 0.9", "val_loss_ema <= 0.2 by epoch 1", "fid_features <= 9 and samples_per_sec >= 1e9",
             "val_loss_ema improves from epoch 2 on")  # fmt: skip
    config = preset("tiny", criterion=texts, best_by="criteria", eval_every=1)
    rows = {
        "readable": {"val_loss_ema": 0.3, "rca": 0.95, "fid_features": 30},
        "close": {"val_loss_ema": 0.19, "rca": 0.95, "fid_features": 8, "samples_per_sec": 10},
        "low loss": {"val_loss_ema": 0.1, "rca": 0.5, "fid_features": 30},
        "lower, as many": {"val_loss_ema": 0.25, "rca": 0.95, "fid_features": 30},
        "unmeasured": {"loss_mean": 0.1},
    }
    order = sorted(rows, key=lambda name: selection_cost(rows[name], config))
    assert order == ["close", "low loss", "lower, as many", "readable", "unmeasured"]
    assert selection_cost({}, config) is None


# ---- whole runs ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_reports")
def test_a_run_that_misses_a_criterion_ends_if_asked_to_and_goes_on_without(small, capsys):
    texts = ("fast: val_loss_ema <= 1e-9 by epoch 1", "loss_mean <= 100", "later: val_loss_ema <= 1e-9 by epoch 3")
    config = replace(small, epochs=4, criterion=texts, stop_when="missed", why="made to miss", expect="epoch 1")
    assert run(config) == 0
    assert rows(config)["epoch"].tolist() == [1]
    ended = status(config)
    assert (ended["state"], ended["exit_code"]) == ("finished", 0)
    assert ended["message"].startswith("stopped early after epoch 1: the criterion 'fast' can no longer be met ")
    log = paths_of(config).log.read_text()
    assert "criterion missed: fast: " in log and "criterion met: loss_mean <= 100: " in log
    assert re.search("criterion missed: later: .* epoch 1, where early stopping ended the run", log)
    page = paths_of(config).training_log.read_text()
    section = page[page.index("## Purpose and criteria") :].partition("## Best")[0]
    assert "made to miss" in section and "1 met, 2 missed." in section
    assert re.search(r"\| fast: `val_loss_ema <= 1e-9 by epoch 1` \| ✗ missed \|", section)
    assert "criterion missed: fast" in page[page.index("## Milestones") :]

    assert run(config) == 0
    assert "leave out --stop-when to train on" in capsys.readouterr().out
    assert len(rows(config)) == 1
    assert run(replace(config, stop_when=None, epochs=2, criterion=texts[:2])) == 0
    assert rows(config)["epoch"].tolist() == [1, 2]


@pytest.mark.usefixtures("quick_reports")
def test_best_by_criteria_links_the_checkpoint_that_meets_most(small):
    of_run = ("samples_per_sec >= 1e9", "loss_mean improves from epoch 2 on")
    config = replace(small, epochs=3, keep_last=9, best_by="criteria", criterion=("loss_mean <= 100", *of_run))
    assert run(config) == 0
    assert "criteria of checkpoints met: 1 of 1;" in best_checkpoint(read_run(paths_of(config)))
    steps = rows(config).set_index("step")

    def best() -> int:
        return int(real(paths_of(config).checkpoints / "best").name.removeprefix("step_"))

    assert best() == steps["val_loss_ema"].idxmin(), "all meet it: the smallest loss decides"
    for step in steps.index:
        limit = steps["loss_min"].loc[step]
        update_best(paths_of(config).checkpoints, replace(config, criterion=(f"loss_min <= {limit:.17g}",)))
        meeting = steps[steps["loss_min"] <= limit]
        assert best() == meeting["val_loss_ema"].idxmin()


@pytest.mark.parametrize(
    ("texts", "remarks"), [(["samples_per_sec >= 1", "lr <= 1"], 1), (["lr <= 1 and rca >= 0"], 0)]
)
def test_best_by_criteria_of_which_none_is_of_checkpoints_is_remarked(texts: list[str], remarks: int):
    config = parse_args(["--best-by", "criteria", "--eval-every", "1", "--criterion", *texts])
    found = [line for line in without_effect(config, preset("large")) if "validation loss chooses `best`" in line]
    assert len(found) == remarks


@pytest.mark.usefixtures("quick_reports")
def test_a_finished_run_takes_over_criteria_reasons_and_notes(small, capsys):
    config = replace(small, epochs=1)
    assert run(config) == 0
    figures = paths_of(config).csv.read_text()
    later = replace(config, criterion=("loss_mean <= 100", "no: loss_mean <= 1e-9"), note=("seen",), why="it was asked",
                    target="val_loss=0.5")  # fmt: skip
    capsys.readouterr()
    assert run(later) == 0
    said = capsys.readouterr().out
    assert "taken over without training: --criterion, --why, --target" in said and "note: seen" in said
    assert "criterion met: loss_mean <= 100: loss_mean " in said and "criterion missed: no: best loss_mean" in said
    page = paths_of(config).training_log.read_text()
    assert "1 met, 1 missed." in page and "it was asked" in page and "## Target: val_loss=0.5" in page
    published = read_run(paths_of(config))
    assert (count_of(published), len(published.starts), published.state) == ("1 met, 1 missed", 1, "finished")

    assert run(later) == 0 and run(config) == 0, "nothing new, and nothing given"
    said = capsys.readouterr().out
    assert "is finished" in said and "taken over" not in said and "note: " not in said
    assert count_of(read_run(paths_of(config))) == "1 met, 1 missed"
    late = ("--criterion loss_mean <= 100; no: loss_mean <= 1e-9", "--why it was asked", "--target val_loss=0.5")
    remarks = ["seen", *(f"given after the end of training: {each}" for each in late)]
    assert [each.text for each in read_notes(paths_of(config))] == remarks
    assert paths_of(config).csv.read_text() == figures


def test_dashboard_and_health_count_the_criteria(tmp_path: Path):
    document = make_document(6)
    document["settings"]["criterion"] = ["val_loss_ema <= 0.2", "readable: rca >= 0.9", "written by a later version"]
    published = make_run(document, tmp_path)
    assert count_of(published) == "1 met, 1 cannot be judged"
    shown = Console(width=120, file=io.StringIO(), record=True)
    shown.print(progress_panel(replace(published, status={"state": "running"}), 100))
    assert "criteria 1 met, 1 cannot be judged" in shown.export_text()
    document["settings"]["criterion"] = ["val_loss_ema <= 0.2", "val_loss_ema <= 1e-9"]
    (component,) = criteria(make_run(document, tmp_path))
    assert [finding.status for finding in component.findings] == ["healthy", "warning"]
    document["settings"].pop("criterion")
    assert criteria(make_run(document, tmp_path)) == [] and count_of(make_run(document, tmp_path)) == ""


# ---- notes -----------------------------------------------------------------------------------------------------------


def test_a_note_is_added_with_its_time_to_log_report_and_comparison(small, quick_reports, capsys, monkeypatch):
    config = replace(small, epochs=1, note=("begun by the plan",))
    assert run(config) == 0
    assert "note: begun by the plan" in paths_of(config).log.read_text()
    root = ["--output-root", str(config.output_root)]
    assert note(["small", "a <b>bold</b> | remark\nof two lines", *root]) == 0
    with paths_of(config).notes.open("a") as file:
        file.write('{"time": 1, "text": "torn')
    assert note(["small", "begun by the plan", *root]) == 0, "the same remark, later"
    page = paths_of(config).training_log.read_text()
    times = r"\| 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC \|"
    assert len(re.findall(f"{times} begun by the plan \\|", page)) == 2
    assert re.search(times + r" a \\<b\\>bold\\</b\\> \\\| remark of two lines \|", page)
    assert run(config) == 0, "the same command again"
    assert [each.text for each in read_notes(paths_of(config))] == [
        "begun by the plan",
        "a <b>bold</b> | remark of two lines",
        "begun by the plan",
    ]
    assert note(["small", " ", *root]) == 2 and "give a text in quotes" in capsys.readouterr().err
    monkeypatch.undo()
    assert "a \\<b\\>bold" in to_markdown(report_page(read_run(paths_of(config))), config.output_root)


def test_a_run_whose_notes_cannot_be_written_trains_on(small, quick_reports):
    config = replace(small, epochs=1)
    assert run(replace(config, max_steps=5)) == 0
    paths_of(config).notes.mkdir()
    assert run(replace(config, note=("lost",))) == 0
    assert "could not write the notes: IsADirectoryError" in paths_of(config).log.read_text()
