"""The benchmark of sampling draws what sample.py draws, and what it says follows from the seconds in its file."""

import json
import statistics
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel

from benchmarks import sampling
from benchmarks.sampling import SamplingSetup, Side
from ddpm.run.config import TrainConfig
from ddpm.sampling.pipeline import CharacterPipeline
from tests.conftest import as_arguments, replace

CPU = torch.device("cpu")


@pytest.fixture
def little(small: TrainConfig) -> TrainConfig:
    """Settings of a network that takes a millisecond, with enough noise levels for the slow manner."""
    return replace(small, block_out_channels=(4,), norm_num_groups=2, resolution=8, diffusion_steps=600, compile=False)


def measured(config: TrainConfig, out: Path, rounds: int, *manners: str) -> dict:
    options = ["--manners", *manners, "--images", "2", "--rounds", str(rounds), "--out", str(out)]
    sampling.main([*options, *as_arguments(config)])
    return json.loads(out.read_text())


def spread(values: list[float]) -> dict:
    return pytest.approx({"median": statistics.median(values), "low": min(values), "high": max(values)})


def quotients(over: list[float], under: list[float]) -> list[float]:
    return [a / b for a, b in zip(over, under, strict=True)]


def test_figures_follow_from_the_seconds_of_the_rounds(little: TrainConfig, tmp_path: Path, capsys):
    said = measured(little, tmp_path / "out.json", 3, "ddim-5", "dpm++-2")
    seconds, told = said["seconds"], said["figures"]
    assert list(seconds) == list(told) == ["ddim-5", "dpm++-2", "dpm++-2, two passes"]
    for name, rounds in seconds.items():
        assert len(rounds) == 3
        assert told[name]["ms_per_image"] == spread([1000 * each / 2 for each in rounds])
    figure = told["dpm++-2"]["two passes take"]
    assert figure == spread(quotients(seconds["dpm++-2, two passes"], seconds["dpm++-2"]))
    assert f"{figure['median']:.2f}×" in capsys.readouterr().out
    assert said["ddpm-600 over dpm++-20"] == {}, "neither was measured"


def test_the_slow_manner_is_measured_whole_and_compared_with_the_fast_one(
    little: TrainConfig, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    asked, forward = [], UNet2DModel.forward
    monkeypatch.setattr(
        UNet2DModel, "forward", lambda *inputs, **options: asked.append(1) or forward(*inputs, **options)
    )
    said = measured(replace(little, guidance_scale=1.0), tmp_path / "out.json", 1, "ddpm-600", "dpm++-20")
    assert list(said["seconds"]) == ["ddpm-600", "dpm++-20"], "without guidance there is one pass in any case"
    to_count_flops, to_warm_up = 1, 2 * 2
    assert len(asked) == to_count_flops + to_warm_up + 600 + 20, "a step was left out"
    (slow,), (fast,) = said["seconds"].values()
    figure = said["ddpm-600 over dpm++-20"]["dpm++-20"]
    assert figure["median"] == pytest.approx(slow / fast)
    assert (figure["target"], figure["met"]) == (25, slow / fast >= 25)
    assert ("met" if figure["met"] else "missed") in capsys.readouterr().out


def test_compiled_sides_are_measured_where_compilation_is_on(little: TrainConfig):
    names = list(sampling.choose_sides(["dpm++-20", "ddim-30"], little, compiled=True))
    one_by_one = ["dpm++-20", "ddim-30", "dpm++-20, two passes"]
    assert names == [
        *one_by_one,
        *(name.replace("20", "20, compiled").replace("30", "30, compiled") for name in one_by_one),
    ]
    seconds = dict(zip(names, ([float(number)] for number in range(1, 7)), strict=True))
    told = sampling.figures(sampling.choose_sides(["dpm++-20", "ddim-30"], little, compiled=True), seconds, images=1)
    assert told["ddim-30, compiled"]["not compiled takes"]["median"] == 2 / 5
    assert told["dpm++-20, compiled"]["two passes take"]["median"] == 6 / 4
    assert "not compiled takes" not in told["ddim-30"]


@pytest.mark.parametrize("manner", ["ddpm-4", "ddim-4", "dpm++-4"])
def test_it_draws_as_the_pipeline_does_and_in_two_passes_the_same(little: TrainConfig, manner: str):
    setup = SamplingSetup(little, images=3, device=CPU)
    side = Side(manner)
    with torch.no_grad():
        setup.networks[False].class_embedding.weight *= 30  # fresh ones say next to nothing
    pipeline = CharacterPipeline(setup.networks[False], setup.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    drawn = setup.draw(side)
    expected = pipeline(
        [0, 1, 2], sampler=side.sampler, num_inference_steps=side.steps, guidance_scale=little.guidance_scale,
        generator=torch.Generator().manual_seed(little.seed), output_type="pt",
    ).images  # fmt: skip
    assert drawn.std() > 0.1
    torch.testing.assert_close(drawn, expected)
    torch.testing.assert_close(setup.draw(replace(side, two_passes=True)), drawn, rtol=1e-4, atol=1e-4)


def test_two_passes_are_two_of_half_the_size(little: TrainConfig):
    setup, sizes = SamplingSetup(little, images=3, device=CPU), []
    setup.networks[False].register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    setup.draw(Side("ddim-5"))
    assert sizes == [6] * 5
    sizes.clear()
    setup.draw(Side("ddim-5", two_passes=True))
    assert sizes == [3] * 10


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--manners", "ddpm-601"], "601 steps"),
        (["--manners", "euler-20"], "'euler'"),
        (["--manners", "ddpm"], "'ddpm' is not"),
        (["--images", "0"], "--images"),
        (["--preset", "giant"], "giant"),
    ],
)
def test_a_wrong_request_is_answered_in_a_line(
    little: TrainConfig, tmp_path: Path, capsys, options: list[str], why: str
):
    with pytest.raises(SystemExit) as end:
        sampling.main([*as_arguments(little), "--out", str(tmp_path / "out.json"), *options])
    assert end.value.code == 2
    assert why in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out.json").exists()
