"""An average of any length, rebuilt from those that checkpoints hold, and the commands that take it."""

import io
import json
import shutil
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import sample
from ddpm.export import main as export
from ddpm.run.config import TrainConfig
from ddpm.run.errors import RequestError
from ddpm.run.files import sha256_file
from ddpm.run.paths import RunPaths
from ddpm.sampling.ema_length import ROUGH, USELESS, ema_length, responses, solve
from ddpm.sampling.load import load_model
from ddpm.training.checkpoint import WEIGHTS, amend, read_meta
from ddpm.training.model import POWER_EVERY, power_exponent
from tests.conftest import SMALL, preset
from tests.support.savers import Saver, flip_a_bit

CPU = torch.device("cpu")
NAME = "conv_in.weight"


def train(saver: Saver, steps: int, every: int) -> dict[int, torch.Tensor]:
    """Train, save after each `every` steps; returns the states of a weight that are averaged, step → values."""
    states = {}
    for step in range(steps):
        saver.progress.step = step
        saver.learn()
        if (step + 1) % POWER_EVERY == 0:
            states[step + 1] = saver.trainer.model.get_parameter(NAME).detach().double().clone()
        if (step + 1) % every == 0:
            saver.save(step + 1)
    return states


def directly(states: list[torch.Tensor], width: float) -> torch.Tensor:
    """The power-function average of states, by its definition: the integral of i^γ over each one's interval."""
    power, count = power_exponent(width) + 1, len(states)
    return sum(((i / count) ** power - ((i - 1) / count) ** power) * state for i, state in enumerate(states, 1))


@pytest.fixture(scope="module")
def trained(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, dict[int, torch.Tensor]]:
    """A run of 160 steps, 20 of them averaged, with checkpoints after each 40; and the averaged states of a weight."""
    root = tmp_path_factory.mktemp("runs")
    config = preset("tiny", **SMALL | {"epochs": 40, "keep_last": 9}, data_root=small_data, output_root=root,
                    run_name="long")  # fmt: skip
    return config, train(Saver(config, RunPaths(root, "long").checkpoints), steps=160, every=40)


@pytest.fixture
def run(trained: tuple, tmp_path: Path) -> TrainConfig:
    """A copy of the run."""
    config = replace(trained[0], output_root=tmp_path)
    shutil.copytree(trained[0].output_root, tmp_path, dirs_exist_ok=True, symlinks=True)
    return config


def folders(config: TrainConfig) -> list[Path]:
    return sorted(RunPaths(config.output_root, config.run).checkpoints.glob("step_*"))


# ---- how it is rebuilt -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0.02, 0.05, 0.1, 0.25])
def test_a_response_has_the_width_it_is_called_by(width: float):
    """The standard deviation of the time of the averaged states, over the time of them all."""
    (response,) = responses([(4000, width)], 5000)
    times = np.arange(5000) + 0.5
    mean = response @ times
    assert response.sum() == pytest.approx(1)
    assert not response[4000:].any()
    assert np.sqrt(response @ (times - mean) ** 2) / 4000 == pytest.approx(width, rel=1e-3)


def test_a_stored_average_is_rebuilt_as_itself():
    factors, error = solve([(300, 0.05), (300, 0.1), (400, 0.05), (400, 0.1)], 0.05)
    np.testing.assert_allclose(factors, [0, 0, 1, 0], atol=1e-8)
    assert error < 1e-8


@pytest.mark.parametrize("length", [0.03, 0.075, 0.15])
def test_the_fit_is_the_best_and_more_checkpoints_make_it_better(length: float):
    errors = []
    for checkpoints in (1, 2, 4):
        stored = [(100 * k, width) for k in range(5 - checkpoints, 5) for width in (0.05, 0.1)]
        factors, error = solve(stored, length)
        known, wanted = responses(stored, 400), responses([(400, length)], 400)[0]
        assert factors.sum() == pytest.approx(1)
        for other in np.eye(len(stored))[1:] - np.eye(len(stored))[:-1]:  # any other sum of factors that is 1
            for change in (-1e-3, 1e-3):
                assert np.linalg.norm((factors + change * other) @ known - wanted) > error * np.linalg.norm(wanted)
        errors.append(error)
    assert errors[0] >= errors[1] >= errors[2]


@pytest.mark.parametrize("length", [0.05, 0.06, 0.08, 0.1, 0.12, 0.15])
def test_a_rebuilt_length_is_near_the_average_that_training_would_have_kept(trained: tuple, length: float):
    """The difference is at most what the error of the response allows."""
    config, states = trained
    newest = folders(config)[-1]
    rebuilt = ema_length(newest, read_meta(newest), length)
    expected, sampled = directly(list(states.values()), length), torch.stack(list(states.values()))
    found = rebuilt.weights()[NAME]
    assert found.dtype == torch.float32
    assert len(rebuilt.stored) == 8 and rebuilt.error < ROUGH
    (response,) = responses([(len(states), length)], len(states))
    apart = (sampled - expected).flatten(1).norm()  # Cauchy-Schwarz: the factors sum to 1
    assert (found - expected).norm() <= rebuilt.error * np.linalg.norm(response) * apart + 1e-5
    assert (found - expected).norm() < 0.1 * (found - sampled[-1]).norm()


def test_one_checkpoint_is_enough_for_lengths_near_its_own(run: TrainConfig):
    first = folders(run)[0]
    rebuilt = ema_length(first, read_meta(first), 0.075)
    assert len(rebuilt.stored) == 2 and rebuilt.error < ROUGH and "rough" not in str(rebuilt)


def test_only_sound_checkpoints_of_the_same_averages_up_to_the_chosen_one_are_used(run: TrainConfig):
    one, two, three, _ = folders(run)
    amend(one, unsound="its losses say so")
    assert {each.file.parents[1] for each in ema_length(three, read_meta(three), 0.08).stored} == {two, three}
    amend(two, power_ema={"updates": 10, "first_step": 16})  # they began anew after it
    assert {each.file.parents[1] for each in ema_length(three, read_meta(three), 0.08).stored} == {three}


def test_a_length_that_is_made_roughly_is_told_and_one_that_cannot_be_made_is_refused(run: TrainConfig):
    first = folders(run)[0]
    stored = [(5, 0.05), (5, 0.1)]
    assert ROUGH < solve(stored, 0.16)[1] < USELESS < solve(stored, 0.25)[1]
    assert "this is rough" in str(ema_length(first, read_meta(first), 0.16))
    with pytest.raises(RequestError, match=r"--ema-length 0\.25: .*--keep-every"):
        ema_length(first, read_meta(first), 0.25)


# ---- the commands ----------------------------------------------------------------------------------------------------


def draw(config: TrainConfig, *arguments: str) -> int:
    common = ["--output-root", str(config.output_root), "--device", "cpu", "--precision", "fp32"]
    return sample.main([*arguments, *common, "--out", str(config.output_root / "a.png"), "--npz"])


def test_sample_draws_with_the_rebuilt_weights_and_says_so(run: TrainConfig, capsys: pytest.CaptureFixture):
    newest = folders(run)[-1]
    pictures = []
    for arguments in ([], ["--ema-length", "0.08"], ["--ema-length", "0.1"]):
        assert draw(run, str(newest), "--chars", "0-9", *arguments) == 0
        pictures.append(np.load(run.output_root / "a.npz")["x"])
    assert not np.array_equal(pictures[0], pictures[1]) and not np.array_equal(pictures[1], pictures[2])
    said = capsys.readouterr().out
    assert "EMA length 0.08 weights" in said
    assert "EMA length 0.08, rebuilt from 8 averages of 4 checkpoints with an error of" in said
    model = load_model(str(newest), CPU, length=0.1)
    stored = load_file(newest / "unet_power_10" / Path(WEIGHTS).name)
    assert all(torch.allclose(weight, stored[name], atol=1e-6) for name, weight in
               model.pipeline.unet.state_dict().items())  # fmt: skip


def test_an_export_holds_the_rebuilt_weights_and_every_page_of_it_says_so(run: TrainConfig, capsys):
    newest = folders(run)[-1]
    assert export([str(newest), "--output-root", str(run.output_root), "--ema-length", "0.08"]) == 0
    folder = RunPaths(run.output_root, run.run).checkpoints / "export"
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["ema_length"] == 0.08
    files = {str(path.relative_to(folder)): sha256_file(path) for path in folder.rglob("*") if path.is_file()}
    del files["meta.json"]
    assert meta["files"] == files
    expected = load_model(str(newest), CPU, length=0.08).pipeline.unet.state_dict()
    assert all(expected[name].equal(weight) for name, weight in load_file(folder / WEIGHTS).items())
    again = load_model(str(folder), CPU)
    assert again.weights == "ema length 0.08"
    card = (folder / "README.md").read_text()
    assert "EMA length 0.08 weights" in card  # the caption of the samples
    assert "| weights | average of length 0.08, rebuilt after training" in card
    assert "model-index" not in card  # the validation loss is of other weights
    assert "EMA length 0.08, rebuilt from" in capsys.readouterr().out


def test_a_guide_of_the_same_step_and_another_length_is_called_by_its_length(run: TrainConfig):
    newest, shorter = str(folders(run)[-1]), run.output_root / "shorter"
    assert export([newest, "--output-root", str(run.output_root), "--ema-length", "0.05", "--out", str(shorter)]) == 0
    model = load_model(newest, CPU, length=0.1, guide=str(shorter))
    assert model.weights == "ema length 0.1" and model.guide
    assert model.guide.name == "step_00000160 (EMA length 0.05 weights)"
    assert load_model(newest, CPU, length=0.1, guide=newest).guide.name == "step_00000160"  # the EMA of the training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ema-length", "0.3"], "--ema-length 0.3: give a relative width from 0.02 to 0.25"),
        (["--ema-length", "0.01"], "--ema-length 0.01: give"),
        (["--ema-length", "nan"], "--ema-length nan: give"),
        (["--ema-length", "0.08", "--weights", "swa"], "--weights swa and --ema-length: give one of them"),
    ],
)
def test_a_wrong_request_is_one_line(run: TrainConfig, capsys, arguments: list[str], message: str):
    assert draw(run, "long", *arguments) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    if "swa" not in arguments:
        assert export(["long", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_a_run_without_such_averages_and_damaged_ones_are_refused_in_one_line(run: TrainConfig, tmp_path: Path, capsys):
    Saver(replace(run, power_ema=False), tmp_path / "checkpoints" / "plain").save(8)
    for name in ("plain", str(folders(run)[-1])):
        if name != "plain":
            flip_a_bit(folders(run)[0] / "unet_power_05" / Path(WEIGHTS).name)
        for command in (draw, lambda config, *given: export([*given, "--output-root", str(config.output_root)])):
            with redirect_stdout(io.StringIO()):
                assert command(run, name, "--ema-length", "0.08") == 2
            said = capsys.readouterr().err
            assert said.count("\n") == 1
            assert ("no power-function averages" in said) if name == "plain" else ("missing or damaged" in said)
