"""What only a GPU can show: the step, runs, and the programs. Without one these tests are skipped."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import train
from ddpm.evaluation.classifier import Recipe, augmented, to_input
from ddpm.run.paths import PROJECT_ROOT, RunPaths
from ddpm.run.signals import StopRequest
from ddpm.sampling.pipeline import SAMPLERS, CharacterPipeline
from ddpm.training.checkpointing import HostCopy
from ddpm.training.data import Images
from ddpm.training.diffusion import make_scheduler
from ddpm.training.machine.distributed import DistContext
from ddpm.training.machine.hardware import choose
from ddpm.training.model import build_unet
from ddpm.training.trainer import Trainer
from metrics.files import read_gpus
from tests.conftest import CLASSES, random_images, replace
from tests.support.curves_of_steps import assert_same_curve, loss_curve
from tests.support.runs import assert_same_run, final_state, rows, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def world() -> DistContext:
    return DistContext(rank=0, local_rank=0, world_size=1, local_world_size=1, device=torch.device("cuda", 0))


def on(device: torch.device, images: Images) -> Images:
    return Images(images.pixels.to(device), images.labels.to(device), images.class_names)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "settings",
    [{"precision": "bf16"}, {"precision": "fp16"}, {"precision": "fp32"}, {"optimizer": "adamw", "precision": "bf16"},
     {"loss_weighting": "min_snr", "precision": "bf16"}],
    ids=lambda settings: "-".join(settings.values()),
)  # fmt: skip
def test_a_step_never_waits_for_the_device(small, world: DistContext, settings: dict[str, str], compiled: bool):
    config = replace(small, **settings, compile=compiled, log_every=100, resolution=64)
    trained = Trainer(config, CLASSES, choose(config, 47, world.device, 1e8), world)
    images = on(world.device, random_images(256))
    chosen = torch.arange(32, device=world.device)
    for step in range(3):  # compiling and cuDNN's timing of algorithms may wait
        trained.step(images, chosen, 32 * step, 1e-3)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(3, 6):
            trained.step(images, chosen, 32 * step, 1e-3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    losses, norms = trained.record.take()
    assert np.isfinite(losses).all()
    assert np.isfinite(norms).all()


def test_the_classifier_distorts_its_images_without_waiting_for_the_device(world: DistContext):
    images, source = to_input(random_images(128).pixels.to(world.device)), torch.Generator().manual_seed(0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        distorted = augmented(images, Recipe(), source)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    on_the_cpu = augmented(images.cpu(), Recipe(), torch.Generator().manual_seed(0))
    torch.testing.assert_close(distorted.cpu(), on_the_cpu, rtol=0, atol=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_fifty_steps_of_the_fast_path_learn_as_fifty_plain_ones_in_fp32_do(small, world: DistContext, precision: str):
    """Compiled, in NHWC and half precision against eager, NCHW, fp32."""
    exact = loss_curve(replace(small, precision="fp32", channels_last=False, compile=False), world)
    fast = loss_curve(replace(small, precision=precision, channels_last=True, compile=True), world)
    assert exact[-10:].mean() < 0.8 * exact[:10].mean()
    assert_same_curve(fast, exact)


def test_a_run_on_the_gpu_reports_its_memory_and_its_checkpoint_resumes(small):
    config = replace(small, precision="auto", lr_schedule="constant")
    assert train.main(replace(config, epochs=1), StopRequest()) == 0
    assert train.main(config, StopRequest()) == 0
    rows = pd.read_csv(RunPaths(config.output_root, config.run).csv)
    assert rows["epoch"].tolist() == [1, 2]
    assert (rows["gpu_mem_peak_mb"] > 0).all()
    assert rows["loss_mean"].is_monotonic_decreasing


def test_a_non_finite_gradient_changes_nothing_on_the_gpu_either(small, world: DistContext):
    trained = Trainer(small, CLASSES, choose(small, 47, world.device, 1e8), world)
    images, chosen = on(world.device, random_images(64)), torch.arange(32, device=world.device)
    trained.step(images, chosen, 0, 1e-3)
    before = [tensor.clone() for tensor in (*trained.model.parameters(), *trained.ema.model.parameters())]
    hook = trained.model.conv_in.bias.register_hook(lambda gradient: gradient * torch.nan)
    trained.step(images, chosen, 32, 1e-3)
    hook.remove()
    after = (*trained.model.parameters(), *trained.ema.model.parameters())
    assert all(a.equal(b) for a, b in zip(before, after, strict=True))


def test_with_deterministic_kernels_a_resumed_run_is_bit_identical(small):
    whole = replace(small, deterministic=True, compile=False, lr_schedule="constant", run_name="whole")
    parts = replace(whole, run_name="parts")
    assert run(whole) == 0
    assert run(replace(parts, max_steps=11)) == 0
    assert run(parts) == 0
    assert_same_run(whole, parts)


def test_the_copy_in_host_memory_is_of_the_moment(small, world: DistContext):
    trained = Trainer(small, CLASSES, choose(small, 47, world.device, 1e8), world)
    images, chosen = on(world.device, random_images(64)), torch.arange(32, device=world.device)
    trained.step(images, chosen, 0, 1e-3)
    then = [weight.cpu().clone() for weight in trained.model.state_dict().values()]
    copied = HostCopy()(trained.state_dict())
    trained.step(images, chosen, 32, 1e-3)
    torch.cuda.synchronize()
    assert all(place.is_pinned() for place in copied["model"].values())
    for place, weight in zip(copied["model"].values(), then, strict=True):
        assert place.equal(weight)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_gpu_draws_what_a_cpu_draws(small, world: DistContext, sampler: str):
    """The same noise, by a generator on the CPU, and sums of another order: a pixel may tip to the next grey level."""
    drawn = []
    for device in ("cpu", world.device):
        pipeline = CharacterPipeline(build_unet(small, 47, device).eval(), make_scheduler(small), num_inference_steps=8)
        pipeline.set_progress_bar_config(disable=True)
        source = torch.Generator().manual_seed(0)
        drawn.append(pipeline("Hello", sampler=sampler, generator=source, output_type="np").images.astype(int))
    assert np.abs(drawn[0] - drawn[1]).max() <= 2


def test_evaluations_leave_no_trace_in_what_is_learned(small):
    without = replace(small, deterministic=True, compile=False, eval_every=0, run_name="without")
    judged = replace(without, eval_every=1, run_name="judged")
    assert run(without) == run(judged) == 0
    expected, found = final_state(without), final_state(judged)
    assert all(found[name].equal(tensor) for name, tensor in expected.items())
    assert rows(judged)["rca"].notna().all()


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_compiled_model_with_attention_learns_in_bf16(small, world: DistContext, deterministic: bool):
    config = replace(small, mid_attention=True, precision="bf16", compile=True, deterministic=deterministic)
    try:
        curve = loss_curve(config, world)
    finally:
        torch.use_deterministic_algorithms(False)
    assert np.isfinite(curve).all()
    assert curve[-10:].mean() < 0.8 * curve[:10].mean()


def test_a_checkpoint_of_the_gpu_goes_on_on_a_cpu_and_back(small):
    config = replace(small, epochs=3, lr_schedule="constant", precision="fp32", compile=False)
    for epoch, device in enumerate(("cuda", "cpu", "cuda"), start=1):
        assert run(replace(config, epochs=epoch, device=device)) == 0
    assert rows(config)["loss_mean"].is_monotonic_decreasing
    assert rows(config)["gpu_mem_peak_mb"].notna().tolist() == [True, False, True]


def test_a_full_gpu_is_told_in_one_line_and_the_run_goes_on_later(small, capsys):
    config = replace(small, compile=False)
    assert run(replace(config, epochs=1)) == 0
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-4)
    try:
        assert run(config) == 2
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("error: ")
    assert "--batch-size" in line
    assert run(config) == 0
    assert rows(config)["epoch"].tolist() == [1, 2]


def test_nvml_tells_of_the_gpu_that_trains(small):
    config = replace(small, compile=False, epochs=20)
    assert run(config) == 0
    paths = RunPaths(config.output_root, config.run)
    ((gpu,),) = (node["gpus"] for node in read_gpus(paths))
    assert gpu["memory_used_mb"] > 0
    assert gpu["name"] in torch.cuda.get_device_name()
    assert json.loads(paths.json.read_text())["environment"]["gpu"] == torch.cuda.get_device_name()


def program(*arguments: str | Path) -> str:
    """The output of a program of this project."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_characters_are_drawn_evaluated_and_exported_on_the_gpu(small, tmp_path: Path):
    assert run(replace(small, compile=False, precision="auto")) == 0
    root = ("--output-root", small.output_root)
    said = program("sample.py", small.run, "--chars", "A", "--out", tmp_path / "a.png", "--device", "cuda", *root)
    assert torch.cuda.get_device_name() in said
    assert (tmp_path / "a.png").exists()
    few = ("--samples-per-class", "2", "--no-sweeps", "--device", "cuda")
    assert torch.cuda.get_device_name() in program("evaluate.py", small.run, *few, *root)
    assert "export" in program("-m", "ddpm.export", small.run, *root)
