"""An unsound state never replaces a sound one: what counts as unsound, what is kept, and the way back."""

import json
import math
import shlex
import sys
from pathlib import Path

import pytest
import torch

import train
from ddpm.run.arguments import parse_args
from ddpm.run.config import TrainConfig
from ddpm.run.metrics import LOSS_MEAN
from ddpm.run.signals import StopRequest
from ddpm.training import soundness
from ddpm.training.checkpoint import read_meta
from ddpm.training.resume import choose_start, find_latest, without
from metrics.run_reader import read_run
from tests.conftest import as_arguments, replace
from tests.support.runs import paths_of, rows, run, status
from tests.support.savers import Saver

EARLIER = [{"loss_mean": 0.5, "val_loss": 0.4}, {"loss_mean": 0.2, "val_loss": 0.1}]


@pytest.mark.parametrize(
    ("losses", "sound"),
    [
        ({"loss_mean": 0.2, "val_loss": 0.1, "val_loss_ema": 0.1}, True),
        ({"loss_mean": 0.2, "val_loss": None, "val_loss_ema": 0.1}, False),  # the average still stands
        ({"loss_mean": math.nan}, False),
        ({"loss_mean": 0.9, "val_loss": 0.5, "val_loss_ema": 0.1}, False),  # 4.5 and 5 times the best
        ({"loss_mean": 0.1, "val_loss": 0.5, "val_loss_ema": 0.5}, True),  # overfitting is no blow-up
        ({"loss_mean": 0.9}, False),  # an epoch without validation
        ({"loss_mean": 0.2, "val_loss": 40.0, "val_loss_ema": 0.1}, False),
        ({"loss_mean": 0.2, "val_loss": 0.1, "val_loss_ema": 4.0}, True),  # a long average near its random beginning
    ],
)
def test_losses_that_are_not_finite_or_have_blown_up_are_unsound(losses: dict, sound: bool):
    assert (soundness.blown_up(losses, EARLIER) is None) == sound


def test_a_first_epoch_has_nothing_to_be_compared_with():
    assert soundness.blown_up({"loss_mean": 1.2, "val_loss": 1.1, "val_loss_ema": 1.4}, []) is None
    assert "zero gives about 1" in soundness.blown_up({"loss_mean": 1e6, "val_loss": 1e6}, [])


def test_steps_that_are_skipped_throughout_are_unsound_and_a_few_at_the_start_of_fp16_are_not():
    assert soundness.skipping([True] * 4) is None
    assert soundness.skipping([True] * 4 + [False] * 6) is None
    assert soundness.skipping([False] * 12 + [True] * 13) is not None


@pytest.fixture
def saver(small: TrainConfig, tmp_path: Path) -> Saver:
    return Saver(replace(small, keep_last=2), tmp_path / "checkpoints")


def spoil_weights(saver: Saver) -> None:
    saver.trainer.model.conv_in.weight.data[0, 0, 0, 0] = math.nan


def spoil_moments(saver: Saver) -> None:
    saver.trainer.optimizer.state[saver.trainer.model.conv_in.weight]["exp_avg_sq"].fill_(math.inf)


def spoil_power_average(saver: Saver) -> None:
    saver.trainer.power_ema.first_step = 8
    saver.trainer.power_ema.models["unet_power_05"].conv_in.weight.data[0, 0, 0, 0] = math.nan


def blow_up(saver: Saver) -> None:
    for weight in saver.trainer.model.parameters():
        weight.data *= 1e6


@pytest.mark.parametrize("spoil", [spoil_weights, spoil_moments, spoil_power_average, blow_up])
def test_a_checkpoint_of_bad_tensors_says_so_and_is_neither_latest_nor_best(saver: Saver, spoil):
    saver.learn()
    good = saver.save(4, val_loss_ema=0.5)
    spoil(saver)
    bad = saver.save(8, val_loss_ema=0.1)
    assert read_meta(good)["unsound"] is None
    assert read_meta(bad)["unsound"] == saver.keeper.unsound
    assert [(saver.root / name).resolve() for name in ("latest", "best")] == [good, good]
    assert saver.said[-1][1] == "warning"
    assert find_latest(saver.root)[0].folder == good


def test_unsound_checkpoints_never_displace_sound_ones(saver: Saver):
    """--keep-last 2 counts sound ones; of the unsound ones only the newest of all is kept."""
    saver.learn()
    for step in (4, 8):
        saver.save(step)
    for step in (12, 16, 20):
        saver.save(step, unsound="its losses say so")
    assert saver.names() == ["latest", "step_00000004", "step_00000008", "step_00000020"]
    saver.save(24)  # it has recovered
    assert saver.names() == ["latest", "step_00000008", "step_00000024"]


def test_where_no_checkpoint_is_sound_none_is_latest_and_the_run_begins_anew(saver: Saver):
    saver.save(4, unsound="its losses say so")
    assert saver.names() == ["step_00000004"]
    assert choose_start(saver.root, "auto", saver.identity) == (None, {})


def test_a_figure_that_comes_later_can_call_the_checkpoint_unsound(saver: Saver):
    """Asked to stop while it validated, the run learns only in its next start that the loss is not finite."""
    older = saver.save(4)
    saver.progress.step = 8
    saver.keeper.save(saver.trainer, saver.progress, saver.rows)
    saver.save(8, unsound="val_loss is not finite")
    assert (saver.root / "latest").resolve() == older


@pytest.mark.usefixtures("quick_reports")
def test_a_run_that_blows_up_keeps_its_sound_checkpoints_and_goes_on_with_a_smaller_rate(small: TrainConfig, capsys):
    """Its gradients are never finite for 25 steps in a row, so it reaches its end, but it is not called finished."""
    config = replace(small, lr_schedule="constant", keep_last=2, samples_per_class=0)
    assert run(config) == 0
    assert run(replace(config, epochs=4, lr=1e12)) == 1
    paths, said = paths_of(config), capsys.readouterr().out
    assert status(config)["state"] == "failed"
    assert not status(config)["retry"]
    assert [said.count(f"warning  after epoch {epoch} the state is unsound") for epoch in (3, 4)] == [1, 1]
    kept = ["step_00000008", "step_00000016", "step_00000032"]
    assert sorted(folder.name for folder in paths.checkpoints.glob("step_*")) == kept
    assert {(paths.checkpoints / name).resolve().name for name in ("latest", "best")} == {"step_00000016"}
    assert str(paths.checkpoints / "step_00000016") in status(config)["message"]

    assert run(replace(config, epochs=4)) == 0
    assert rows(config)["val_loss"].notna().all()
    assert len(list(paths.checkpoints.glob("abandoned-*/step_00000032"))) == 1, "set aside, not deleted"


@pytest.mark.usefixtures("quick_reports")
def test_the_command_that_a_failed_run_advises_works(small: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    config = replace(small, lr_schedule="constant", samples_per_class=0, val_every=0)
    assert run(replace(config, epochs=1)) == 0
    too_high = replace(config, lr=1e30, epochs=9)
    monkeypatch.setattr(sys, "argv", ["train.py", *as_arguments(too_high)])
    assert run(too_high) == 1
    advised = parse_args(shlex.split(status(config)["message"].rpartition("python train.py ")[2]))
    assert advised == replace(too_high, lr=1e-3)  # that of the sound checkpoint
    assert run(replace(advised, epochs=2)) == 0
    assert rows(config)["nonfinite_steps"].sum() == 0


@pytest.mark.usefixtures("quick_reports")
def test_a_loss_is_only_compared_with_losses_of_the_same_kind(small: TrainConfig):
    """Another weighting makes another quantity of the training loss, for that start and all that follow."""
    config = replace(small, samples_per_class=0, val_every=0)
    latest = paths_of(config).checkpoints / "latest"
    since, compared = [], []
    for epochs, weighting in ((1, "none"), (2, "min_snr"), (3, "min_snr"), (4, "none")):
        assert run(replace(config, epochs=epochs, loss_weighting=weighting)) == 0
        since.append(read_meta(latest)["progress"]["altered"].get("loss_weighting", 0))
        compared.append(read_run(paths_of(config)).curve(LOSS_MEAN).epochs.tolist())
    assert since == [0, 1, 1, 3]
    assert compared == [[1], [2], [2, 3], [4]]
    assert read_run(paths_of(config)).summary["best_epoch"] == 4


@pytest.mark.usefixtures("quick_reports")
def test_a_run_is_not_stopped_early_by_losses_of_another_kind(small: TrainConfig):
    """Those of min-SNR are smaller: the first epoch without it looked like one without improvement."""
    config = replace(small, samples_per_class=0, val_every=0, early_stop_metric="loss_mean", early_stop_patience=1)
    assert run(replace(config, epochs=1, loss_weighting="min_snr")) == 0
    assert run(replace(config, epochs=3)) == 0
    assert len(rows(config)) == 3 and rows(config)["loss_mean"][1] > rows(config)["loss_mean"][0]


@pytest.mark.usefixtures("quick_reports")
def test_a_run_that_is_stopped_while_it_is_unsound_says_so_and_what_to_type(small: TrainConfig):
    config = replace(small, lr_schedule="constant", samples_per_class=0, log_every=1)
    assert run(replace(config, epochs=1)) == 0

    class AfterTheRow(StopRequest):
        @property
        def requested(self) -> bool:
            return len(rows(config)) > 1

    assert train.main(replace(config, epochs=9, lr=1e12), AfterTheRow()) == 75
    assert "the state is unsound" in status(config)["message"] and "--lr 0.001" in status(config)["message"]
    assert (paths_of(config).checkpoints / "latest").resolve().name == "step_00000008"


@pytest.mark.usefixtures("quick_reports")
@pytest.mark.parametrize("name", ["latest", "training_metrics.json", "training_metrics.csv"])
def test_a_folder_in_the_place_of_a_file_is_refused_before_anything_is_trained(small: TrainConfig, name: str, capsys):
    config = replace(small, epochs=1, samples_per_class=0)
    assert run(config) == 0
    paths = paths_of(config)
    place = (paths.checkpoints if name == "latest" else paths.metrics) / name
    place.unlink()
    place.mkdir()
    assert run(replace(config, epochs=2)) == 2
    said = capsys.readouterr().err
    assert str(place) in said and "move it away" in said
    assert not (paths.checkpoints / "step_00000016").exists()


def test_flags_are_left_out_however_they_were_typed():
    typed = ["--lr", "3", "--preset", "tiny", "--resume=never", "--lr=2", "--epochs", "4"]
    assert without(typed, "--lr", "--resume") == ["--preset", "tiny", "--epochs", "4"]


@pytest.mark.usefixtures("quick_reports")
def test_what_lies_beyond_the_point_of_return_is_set_aside(small: TrainConfig, capsys):
    """`best` and the pictures are those of the line that is trained, and pruning counts no other checkpoints."""
    config = replace(small, epochs=4, keep_last=9, sample_every=1, lr_schedule="constant")
    assert run(config) == 0
    paths = paths_of(config)
    (paths.checkpoints / "export").mkdir()
    (paths.checkpoints / "export" / "meta.json").write_text(json.dumps({"progress": {"step": 32}}))
    paths.evaluation.write_text(json.dumps({"step": 32}))
    back = replace(config, resume=str(paths.checkpoints / "step_00000008"), max_steps=12, keep_last=1)
    assert run(back) == 0
    assert "going back to step_00000008" in capsys.readouterr().out
    assert {(paths.checkpoints / name).resolve().name for name in ("latest", "best")} == {"step_00000012"}
    [aside] = paths.checkpoints.glob("abandoned-*")
    assert sorted(entry.name for entry in aside.iterdir()) == [
        "export", "step_00000016", "step_00000024", "step_00000032",
    ]  # fmt: skip
    assert not paths.evaluation.exists()
    assert sorted(path.name for path in paths.samples.glob("*.png")) == [
        f"emnist_epoch_{epoch:04d}.png" for epoch in (1, 2)
    ]
    assert rows(config)["step"].tolist() == [8, 12]
    assert rows(config)["val_loss_ema"].iloc[-1] == read_meta(paths.checkpoints / "best")["metrics"]["val_loss_ema"]


@pytest.mark.usefixtures("quick_reports")
def test_a_finished_run_can_go_back_to_its_last_step_but_one(small: TrainConfig):
    """Even where no step is left to train: the pages are then of the checkpoint that was asked for."""
    config = replace(small, lr_schedule="constant")
    assert run(config) == 0
    assert run(replace(config, resume=str(paths_of(config).checkpoints / "step_00000008"), max_steps=8)) == 0
    assert rows(config)["step"].tolist() == [8]


@pytest.mark.usefixtures("quick_reports")
def test_a_start_from_another_runs_checkpoint_sets_all_of_its_own_aside(small: TrainConfig):
    """Its pictures and its evaluation too: they were shown as those of the other line, as far as the epochs agreed."""
    other, config = replace(small, run_name="other", epochs=1), replace(small, epochs=1, sample_every=1)
    assert run(other) == run(config) == 0
    paths = paths_of(config)
    paths.evaluation.write_text(json.dumps({"step": 8}))
    assert run(replace(config, resume=str(paths_of(other).checkpoints / "best"), max_steps=10, epochs=2)) == 0
    assert not paths.evaluation.exists()
    drawn = sorted(path.name for path in paths.samples.rglob("*.png"))
    assert drawn == ["emnist_epoch_0001.png", "emnist_epoch_0002.png"], "both of the other line"
    [aside] = paths.metrics.parent.glob("small.before-*")
    assert [path.name for path in aside.glob("samples/*.png")] == ["emnist_epoch_0001.png"]
    assert (aside / "evaluation.json").is_file()
    assert [folder.name for folder in paths.checkpoints.parent.glob("small.before-*/step_*")] == ["step_00000008"]
    assert (paths.checkpoints / "latest").readlink() == Path("step_00000010")


def test_a_sum_of_large_finite_weights_is_not_taken_for_infinity():
    state = {"model": {"w": torch.full((10,), 3e38)}, "optimizer": {"state": {}}}
    assert soundness.broken(state, {"unet": state["model"]}) is None
