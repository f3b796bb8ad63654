"""A run that has stopped getting better ends by itself, if it was asked to."""

import json

import pytest

from ddpm.run.config import TrainConfig, preset
from ddpm.training.early_stop import out_of_patience
from tests.conftest import replace
from tests.support.processes import in_processes
from tests.support.runs import assert_same_run, latest_step, paths_of, rows, run, status, train_as_one_of_several

pytestmark = pytest.mark.usefixtures("quick_reports")


def told(values: list[float | None], **settings) -> str | None:
    config = preset("tiny", **{"early_stop_patience": 3, **settings})
    name = config.early_stop_metric
    return out_of_patience([{"epoch": epoch, name: value} for epoch, value in enumerate(values, start=1)], config)


def test_it_waits_for_so_many_epochs_without_an_improvement():
    assert told([0.5, 0.4, 0.41, 0.42]) is None
    words = "stopped early after epoch 5: val_loss_ema has not improved on 0.4 (epoch 2) for 3 epochs; raise "
    assert told([0.5, 0.4, 0.41, 0.42, 0.4]).startswith(words)
    assert told([0.5, 0.4, 0.41, 0.42, 0.39]) is None
    assert told([0.5, 0.4, 0.41, 0.42, 0.43], early_stop_patience=0) is None
    assert told([]) is None


def test_an_improvement_has_to_be_larger_than_min_delta():
    creeping = [0.5, 0.499, 0.498, 0.497]
    assert told(creeping) is None
    assert "has not improved on 0.5 (epoch 1) by more than 0.01 for 3 epochs;" in told(creeping, min_delta=0.01)


def test_a_value_that_was_too_little_better_is_not_denied():
    """0.21 is the best of all, as every other page says; only the value that --min-delta starts from is told."""
    words = told([0.33, 0.26, 0.224, 0.21], min_delta=0.02, early_stop_patience=1)
    assert "has not improved on 0.224 (epoch 3) by more than 0.02 for 1 epoch;" in words
    assert "best" not in words


def test_it_knows_which_way_is_better_and_skips_what_was_not_measured():
    assert told([0.1, 0.2, 0.3, 0.4], early_stop_metric="rca", eval_every=1) is None
    assert told([0.4, None, None, 0.3], early_stop_metric="rca", eval_every=3) is not None
    assert told([0.4, 0.3, 0.2, 0.1], early_stop_metric="fid_features", eval_every=1) is None


def test_a_run_ends_early_with_all_that_a_run_leaves_and_goes_on_with_more_patience(small: TrainConfig, capsys):
    config = replace(small, epochs=9, early_stop_patience=2, min_delta=1e3, checkpoint_every=9)  # nothing improves so
    assert run(config) == 0
    assert rows(config)["epoch"].tolist() == [1, 2, 3]
    assert latest_step(config) == rows(config)["step"].iloc[-1]
    ended = status(config)
    assert (ended["state"], ended["exit_code"]) == ("finished", 0)
    assert ended["message"].startswith("stopped early after epoch 3: val_loss_ema has not improved on ")
    assert " (epoch 1) by more than 1000 for 2 epochs; " in ended["message"]
    assert list(paths_of(config).samples.glob("*_epoch_0003.png"))
    assert json.loads(paths_of(config).json.read_text())["state"] == "finished"

    assert run(config) == 0  # the same command again
    assert "raise --early-stop-patience to train on" in capsys.readouterr().out
    assert len(rows(config)) == 3

    assert run(replace(config, early_stop_patience=4, epochs=5)) == 0
    assert rows(config)["epoch"].tolist() == [1, 2, 3, 4, 5]
    ended = status(config)
    assert (ended["state"], ended["message"]) == ("finished", None), "patience ends with the last epoch: not early"
    assert run(replace(config, early_stop_patience=4, epochs=5)) == 0
    assert "raise --epochs to train on" in capsys.readouterr().out


def test_the_epoch_by_which_a_run_ends_early_has_all_figures_of_a_last_epoch(small: TrainConfig):
    """Only then is it known to be the last; without a validation loss it could not be the best."""
    config = replace(small, epochs=9, early_stop_patience=2, min_delta=1e3, early_stop_metric="loss_mean", val_every=2)
    assert run(config) == 0
    assert rows(config)["val_loss_ema"].notna().tolist() == [False, True, True]
    assert len([line for line in paths_of(config).log.read_text().splitlines() if "epoch 3/9 done" in line]) == 1


def test_processes_that_end_early_by_what_only_the_first_has_measured_stay_together(small: TrainConfig):
    """The figures of drawn images are on process 0: the others waited for them again, for good."""
    config = replace(small, batch_size=small.batch_size // 2, epochs=9, early_stop_patience=1, min_delta=1e3,
                     early_stop_metric="rca", eval_every=1, val_every=2)  # fmt: skip
    assert in_processes(train_as_one_of_several, 2, config) == [0, 0]
    assert rows(config)["rca"].notna().tolist() == [True, True]
    config = replace(config, run_name="losses", early_stop_metric="loss_mean", eval_every=3, epochs=4)
    assert in_processes(train_as_one_of_several, 2, config) == [0, 0]
    assert rows(config)["rca"].notna().tolist() == [False, True], "the last epoch, by which it has ended"


def test_the_row_of_an_epoch_that_max_steps_cut_short_ends_no_run(small: TrainConfig):
    """That epoch is trained to its end by the next start; only then is it known whether the figure has improved."""
    whole = replace(small, epochs=4, early_stop_patience=1, min_delta=1e3, lr_schedule="constant", run_name="whole")
    parts = replace(whole, run_name="parts")
    assert run(whole) == 0
    assert run(replace(parts, max_steps=11)) == 0
    assert rows(parts)["step"].tolist() == [8, 11]
    assert run(parts) == 0
    assert rows(parts)["step"].tolist() == [8, 16]
    assert_same_run(whole, parts)
