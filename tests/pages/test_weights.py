"""Every tensor of a checkpoint: its figures are right, and what is wrong with it is found and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ddpm.run.errors import RequestError
from ddpm.run.files import sha256_file
from ddpm.training.checkpoint import STATE, WEIGHTS, amend, inspect
from ddpm.training.optimizers import is_hidden
from metrics.health.checker import main
from metrics.health.tensors import read_weights
from metrics.health.thresholds import Thresholds
from metrics.health.weights import weights_component
from tests.conftest import SMALL, preset
from tests.support.checked import RUN, learning, publish
from tests.support.savers import Saver, flip_a_bit

LIMITS = Thresholds(fresh_steps=1)  # the run makes two steps


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a run that has made two steps."""
    saver = Saver(preset("tiny", **SMALL), tmp_path_factory.mktemp("checkpoints"))
    saver.learn()
    saver.learn()
    return saver.save(2, 0.5)


@pytest.fixture
def checkpoint(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, as the checkpoint of a published run that is otherwise healthy."""
    paths = publish(tmp_path, learning(12))
    folder = paths.checkpoints / trained.name
    shutil.copytree(trained, folder)
    (paths.checkpoints / "latest").symlink_to(folder.name)
    return folder


def poison(folder: Path, change: Callable[[dict], None], file: str = STATE) -> None:
    """Change a file of a checkpoint, and its hash, so that it is whole as before."""
    path = folder / file
    if file == STATE:
        content = torch.load(path, weights_only=True)
        change(content)
        torch.save(content, path)
    else:
        content = load_file(path)
        change(content)
        save_file(content, path, metadata={"format": "pt"})
    files = json.loads((folder / "meta.json").read_text())["files"]
    amend(folder, files=files | {file: sha256_file(path)})
    inspect(folder)


def judged(folder: Path, limits: Thresholds = LIMITS) -> dict[str, str]:
    """What is said of the weights, and how bad it is."""
    section = weights_component(read_weights(folder, limits), folder.name, limits)
    return {finding.note: finding.status for finding in section.findings}


def said(findings: dict[str, str], words: str) -> str | None:
    """How bad the finding is that has these words; None if there is none."""
    return next((status for note, status in findings.items() if words in note), None)


def test_every_tensor_has_its_figures(trained: Path) -> None:
    weights = read_weights(trained, LIMITS)
    state, ema = torch.load(trained / STATE, weights_only=True), load_file(trained / WEIGHTS)
    assert [tensor.name for tensor in weights.tensors] == list(state["model"])
    for index, figures in enumerate(weights.tensors):
        live, moments = state["model"][figures.name], state["optimizer"]["state"][index]
        assert figures.norm == pytest.approx(live.norm().item())
        assert figures.largest == live.abs().max().item()
        assert figures.numbers == live.numel() and (figures.nan, figures.inf, figures.moments_bad) == (0, 0, 0)
        kind = "momentum" if is_hidden(figures.name, live) else "exp_avg"  # of Muon, or of AdamW
        assert figures.moment == moments[kind].abs().max().item()
        if figures.norm:
            assert figures.ema_distance == pytest.approx((ema[figures.name] - live).norm().item() / figures.norm)
    apart = torch.cat([(ema[name] - live).flatten() for name, live in state["model"].items()]).norm().item()
    assert weights.ema_distance * weights.live_norm == pytest.approx(apart, rel=1e-4)
    assert (weights.step, weights.optimizer_steps) == (2, 2)


def test_a_sound_checkpoint_is_healthy_and_fresh_layers_have_grown_by_nothing(trained: Path) -> None:
    findings = judged(trained)
    assert set(findings.values()) <= {"healthy", "–"}, findings
    by_name = {tensor.name: tensor for tensor in read_weights(trained, LIMITS).tensors}
    for name in ("conv_in.weight", "class_embedding.weight", "mid_block.resnets.0.norm1.weight", "conv_out.weight"):
        assert by_name[name].growth == pytest.approx(1, abs=0.25), name


def fill(name: str, value: float, start: int = 0, stop: int | None = None) -> Callable[[dict], None]:
    return lambda state: state["model"][name][start:stop].fill_(value)


POISONS = {
    "NaN": (fill("conv_out.weight", float("nan")), "unhealthy", "conv_out.weight (288 NaN, 0 Inf of 288)"),
    "Inf": (fill("conv_in.bias", float("inf"), 0, 1), "unhealthy", "conv_in.bias (0 NaN, 1 Inf of 8)"),
    "moments": (
        lambda state: state["optimizer"]["state"][0]["exp_avg"].fill_(float("nan")),
        "unhealthy", "the optimizer's moments are not finite",
    ),
    "negative squares": (
        lambda state: state["optimizer"]["state"][0]["exp_avg_sq"].fill_(-1.0), "unhealthy", "squares below zero",
    ),
    "no gradient": (
        lambda state: [state["optimizer"]["state"][0][name].zero_() for name in ("exp_avg", "exp_avg_sq")],
        "warning", "1 tensor never had a gradient: conv_in.weight",
    ),
    "constant": (fill("conv_in.weight", 0.1), "warning", "zero variance, which have learned nothing: conv_in.weight"),
    "dead channels": (fill("conv_in.weight", 0.0, 0, 3), "warning", "conv_in.weight (37.5%)"),
    "large": (fill("conv_in.weight", 70.0, 0, 1), "warning", "largest weight 70, in conv_in.weight (limit 50)"),
    "blown up": (fill("conv_in.weight", -1e4, 0, 1), "unhealthy", "blown up: largest weight 1e+04"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "status", "words"), POISONS.values(), ids=POISONS)
def test_what_is_wrong_is_named(checkpoint: Path, change: Callable, status: str, words: str) -> None:
    poison(checkpoint, change)
    assert said(judged(checkpoint), words) == status


def test_averaged_weights_are_looked_at_too(checkpoint: Path) -> None:
    poison(checkpoint, lambda ema: ema["conv_in.bias"].fill_(float("nan")), WEIGHTS)
    assert said(judged(checkpoint), "averaged weights in unet/: 1 bad tensor: conv_in.bias (8 NaN") == "unhealthy"


def test_constant_tensors_are_normal_at_the_start_only(checkpoint: Path) -> None:
    poison(checkpoint, fill("conv_in.bias", 0.0))
    assert said(judged(checkpoint), "zero variance") == "warning"
    assert said(judged(checkpoint, Thresholds(fresh_steps=3)), "as biases and GroupNorm are at the start") == "–"


def test_nan_in_a_whole_checkpoint_makes_the_run_unhealthy(checkpoint: Path, capsys) -> None:
    root = ["--output-root", str(checkpoint.parents[2])]
    assert main([RUN, *root]) == 0
    assert "1 whole checkpoint" in capsys.readouterr().out
    poison(checkpoint, fill("conv_out.weight", float("nan")))
    assert main([RUN, *root, "--checkpoint", checkpoint.name, "--json"]) == 2
    answer = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    states = {part["component"]: part["status"] for part in answer["components"]}
    assert states["weights"] == "unhealthy" and states["checkpoints"] == states["losses"] == "healthy"
    tensors = {tensor["name"]: tensor for tensor in answer["weights"]["tensors"]}
    assert tensors["conv_out.weight"]["nan"] == 288 and tensors["conv_in.weight"]["nan"] == 0


def test_a_damaged_checkpoint_is_said_to_be_so(checkpoint: Path, capsys) -> None:
    flip_a_bit(checkpoint / STATE)
    assert main([RUN, "--output-root", str(checkpoint.parents[2])]) == 2
    assert f"{checkpoint.name} (latest) is not whole" in " ".join(capsys.readouterr().out.split())


def test_code_in_a_file_is_never_run(checkpoint: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "boom",))

    torch.save({"model": Bomb()}, checkpoint / STATE)
    with pytest.raises(RequestError, match="not a training state that is safe to load"):
        read_weights(checkpoint, LIMITS)
    assert not (tmp_path / "boom").exists()
