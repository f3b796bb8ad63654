"""Success criteria: the language, checked whole before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddpm.run.arguments import parse_args
from ddpm.run.config import preset
from ddpm.run.criteria import EXAMPLES, ClassShares, Improves, NoNewWorst, Threshold, parse_criterion
from ddpm.run.errors import RequestError
from ddpm.training.schedule import TrainingSchedule


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
