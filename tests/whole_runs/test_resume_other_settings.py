"""Taking a run up again with averages, schedules and settings that its earlier start, or its version, had not."""

import json
import signal

import pytest
import torch
from safetensors.torch import load_file

import train
from ddpm.run.config import TrainConfig
from ddpm.run.errors import RequestError
from ddpm.run.signals import StopRequest
from ddpm.sampling.load import load_model
from ddpm.training.checkpoint import STATE, WEIGHTS_NAME
from ddpm.training.diffusion import Validation
from ddpm.training.schedule import TrainingSchedule
from tests.conftest import replace
from tests.support.runs import (
    assert_same_run,
    checkpoints_of,
    final_state,
    latest_step,
    log_of,
    paths_of,
    rows,
    run,
)

pytestmark = pytest.mark.usefixtures("quick_reports")


def test_stochastic_weight_averaging_is_the_mean_of_the_epochs_ends_and_survives_a_restart(small: TrainConfig):
    whole = replace(small, epochs=3, swa_start_epoch=2, lr_schedule="constant", keep_last=9)
    parts = replace(whole, run_name="parts")
    assert run(whole) == 0
    ends = [torch.load(each / STATE, weights_only=True)["model"] for each in checkpoints_of(whole)]
    swa = load_file(checkpoints_of(whole)[-1] / "unet_swa" / WEIGHTS_NAME)
    assert not (checkpoints_of(whole)[0] / "unet_swa").exists()
    for name, average in swa.items():
        torch.testing.assert_close(average, (ends[1][name] + ends[2][name]) / 2)
    assert rows(whole)["val_loss_swa"].notna().tolist() == [False, True, True]
    assert rows(whole)["val_loss_swa"][1] == pytest.approx(rows(whole)["val_loss"][1])  # of a single epoch so far

    assert run(replace(parts, epochs=2)) == 0
    assert run(parts) == 0
    assert_same_run(whole, parts)
    again = load_file(checkpoints_of(parts)[-1] / "unet_swa" / WEIGHTS_NAME)
    assert all(again[name].equal(swa[name]) for name in swa)

    ema, averaged = (load_model(whole.run, torch.device("cpu"), whole.output_root, of) for of in ("ema", "swa"))
    assert averaged.pipeline.unet.conv_in.weight.equal(swa["conv_in.weight"])
    assert not ema.pipeline.unet.conv_in.weight.equal(swa["conv_in.weight"])
    with pytest.raises(RequestError, match="--swa-start-epoch makes them"):
        load_model(str(checkpoints_of(whole)[0]), torch.device("cpu"), weights="swa")


def test_an_average_that_a_start_does_not_ask_for_is_kept_up(small: TrainConfig):
    whole = replace(
        small, batch_size=94, epochs=3, swa_start_epoch=1, lr_schedule="constant", val_images=20, keep_last=9
    )
    parts = replace(whole, run_name="parts")
    assert run(whole) == 0
    for epochs, flag in ((1, 1), (2, 0), (3, 1)):
        assert run(replace(parts, epochs=epochs, swa_start_epoch=flag)) == 0
    assert_same_run(whole, parts)
    swa, again = (load_file(checkpoints_of(each)[-1] / "unet_swa" / WEIGHTS_NAME) for each in (whole, parts))
    assert all(again[name].equal(swa[name]) for name in swa)
    assert "over the ends of 1 epoch is kept up, though --swa-start-epoch is 0 in this start" in log_of(parts)
    assert "lacks" not in log_of(parts)


def test_a_run_without_power_averages_is_continued_and_they_begin_anew(small: TrainConfig, monkeypatch):
    validated, call = [], Validation.__call__
    monkeypatch.setattr(Validation, "__call__", lambda self, *models, **given: (
        validated.append(len(models)) or call(self, *models, **given)))  # fmt: skip
    config = replace(small, lr_schedule="constant", samples_per_class=0)
    whole = replace(config, run_name="whole")
    assert run(replace(config, epochs=1, power_ema=False)) == 0
    assert [path.name for path in checkpoints_of(config)[-1].glob("unet*")] == ["unet"]
    assert run(config) == 0
    assert "the power-function averages (--power-ema) begin anew" in log_of(config)
    meta = json.loads((checkpoints_of(config)[-1] / "meta.json").read_text())
    assert meta["power_ema"] == {"updates": 1, "first_step": 16}
    assert run(whole) == 0
    assert "begin anew" not in log_of(whole)
    state, again = final_state(whole), final_state(config)
    assert state.keys() == again.keys() and "unet_power_10.conv_in.weight" in state
    assert {name.partition(".")[0] for name in state if not state[name].equal(again[name])} == {
        "unet_power_05", "unet_power_10"
    }  # fmt: skip
    assert all(again[f"unet_power_10.{name}"].equal(again[name]) for name in ("conv_in.weight", "conv_out.bias"))
    assert set(validated) == {2}  # live and EMA weights, as ever


def test_a_learning_rate_that_another_schedule_changes_is_told_with_both_numbers(small: TrainConfig):
    config = replace(small, epochs=1, lr_schedule="cosine", val_every=0, samples_per_class=0)
    assert run(config) == 0
    stop = StopRequest()
    stop._handle(signal.SIGTERM, None)
    assert train.main(replace(config, epochs=2), stop) == 75
    half, whole = (TrainingSchedule(replace(config, epochs=epochs), 1, 282) for epochs in (1, 2))
    assert f"learning rate at step 7 {half.learning_rate(7):.3g} → {whole.learning_rate(7):.3g}" in log_of(config)


def test_a_run_whose_learning_rate_falls_at_plateaus_is_the_same_when_it_is_resumed(small: TrainConfig):
    """Nothing improves at such a small rate, so each epoch but the first lowers it."""
    plateau = dict(lr=1e-7, lr_schedule="plateau", plateau_patience=0, plateau_factor=0.5, plateau_metric="val_loss")
    whole = replace(small, run_name="whole", epochs=4, optimizer="adamw", **plateau)
    parts = replace(whole, run_name="parts")
    assert run(whole) == 0
    assert rows(whole)["lr"].tolist() == pytest.approx([1e-7, 1e-7, 5e-8, 2.5e-8])
    for steps in (16, 20, None):  # at the end of an epoch, within one
        assert run(replace(parts, max_steps=steps)) == 0
    assert_same_run(whole, parts)
    log = paths_of(whole).log.read_text()
    assert "learning rate 1.000e-07 → 5.000e-08 from step 16 on: val_loss has not improved on " in log
    page = paths_of(whole).training_log.read_text()
    assert "(end of epoch 3): val_loss has not improved on" in page


@pytest.mark.parametrize(("then", "now"), [(False, "none"), (True, "linear")])
def test_a_checkpoint_of_a_version_that_called_a_setting_otherwise_is_continued(
    small: TrainConfig, then: bool, now: str
):
    config = replace(small, scale_lr=now)
    assert run(replace(config, max_steps=5)) == 0
    file = paths_of(config).checkpoints / "latest" / "meta.json"
    meta = json.loads(file.read_text())
    meta["settings"]["scale_lr"] = then
    for name in ("split", "balance", "invert", "passes_per_epoch"):  # that it did not have
        del meta["settings"][name]
    del meta["class_names"]
    file.write_text(json.dumps(meta))
    assert load_model(config.run, torch.device("cpu"), config.output_root).meta["settings"]["scale_lr"] == now
    assert run(config) == 0
    assert latest_step(config) == 16
    assert "changed since: max steps 5 → None; learning rate" in paths_of(config).log.read_text()


def test_the_steps_of_an_older_muon_are_told(small: TrainConfig):
    config = replace(small, optimizer="muon")
    assert run(replace(config, max_steps=5)) == 0
    file = paths_of(config).checkpoints / "latest" / "meta.json"
    meta = json.loads(file.read_text())
    assert meta["progress"]["lr"].pop("hidden") == 7
    file.write_text(json.dumps(meta))
    assert run(config) == 0
    told = "learning rate of hidden layers over that of the others not known (older version) → 7"
    assert told in paths_of(config).log.read_text()
