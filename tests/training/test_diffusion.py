"""Noise schedule, draws and losses."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from ddpm.run.config import preset
from ddpm.run.metrics import SLOWEST_RANK, SLOWEST_RANK_RATIO
from ddpm.sampling.pipeline import make_sampler
from ddpm.training import data
from ddpm.training.diffusion import (
    Draws,
    StepDraws,
    Validation,
    ValidationLoss,
    denoising_errors,
    make_scheduler,
    min_snr_weights,
    training_loss,
)
from ddpm.training.machine.distributed import DistContext, connect
from ddpm.training.model import build_unet
from ddpm.training.seeding import Stream, derive
from tests.conftest import ONE, random_images, replace
from tests.support.processes import in_processes


class Remembers(torch.nn.Module):
    """Stands in for the UNet: predicts zeros and remembers what it was asked."""

    def forward(self, sample, timestep, class_labels, return_dict):
        self.sample, self.timestep, self.labels = sample, timestep, class_labels
        return (torch.zeros_like(sample),)


def test_noising_follows_the_cosine_schedule():
    """x_t = sqrt(a) x_0 + sqrt(1 - a) noise, with a from Nichol & Dhariwal's cosine, betas capped at 0.999."""
    scheduler, model = make_scheduler(preset("large")), Remembers()

    def f(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - f((t + 1) / 600) / f(t / 600), 0.999) for t in range(600)]
    alphas_cumprod = torch.tensor([1 - beta for beta in betas], dtype=torch.float64).cumprod(0)
    images, noise = torch.rand(4, 1, 8, 8) * 2 - 1, torch.randn(4, 1, 8, 8)
    timesteps = torch.tensor([0, 100, 400, 599])
    denoising_errors(model, scheduler, images, torch.zeros(4), timesteps, noise)
    a = alphas_cumprod[timesteps].view(4, 1, 1, 1)
    torch.testing.assert_close(model.sample.double(), a.sqrt() * images + (1 - a).sqrt() * noise, atol=1e-5, rtol=1e-4)
    assert model.sample.equal(scheduler.add_noise(images, noise, timesteps))


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear"])
@pytest.mark.parametrize("steps", [25, 100, 200, 600, 1000, 4000])
def test_a_linear_schedule_ends_in_noise_with_any_number_of_steps(schedule: str, steps: int):
    """Signal and noise at the same part of the way are those of diffusers' 1000 steps."""
    config = preset("large", beta_schedule=schedule, diffusion_steps=steps, sample_steps=10)
    ours, theirs = make_scheduler(config), DDPMScheduler(1000, beta_schedule=schedule)
    left = ours.alphas_cumprod[-1].sqrt()
    assert left < 1.2 * theirs.alphas_cumprod[-1].sqrt()
    assert left < 0.035
    if steps >= 100:
        halfway = ours.alphas_cumprod[steps // 2 - 1].sqrt().item()
        assert halfway == pytest.approx(theirs.alphas_cumprod[499].sqrt().item(), rel=0.05)
    if steps == 1000:
        assert ours.betas.equal(theirs.betas)
    assert ours.betas.max() < 1


def test_the_saved_schedule_needs_nothing_else(tmp_path):
    """An export, or a checkpoint of an older version, is drawn with its own betas."""
    config = preset("large", beta_schedule="linear", diffusion_steps=100)
    make_scheduler(config).save_pretrained(tmp_path)
    assert DDPMScheduler.from_pretrained(tmp_path).betas.equal(make_scheduler(config).betas)
    old, _ = make_sampler("ddpm", DDPMScheduler(100, beta_schedule="linear"), 100)
    assert old.alphas_cumprod[-1].sqrt().item() == pytest.approx(0.60, abs=0.01)


def test_the_cosine_is_as_it_was():
    plain = DDPMScheduler(600, beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing")
    assert make_scheduler(preset("large")).betas.equal(plain.betas)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_target_is_the_noise_or_the_velocity(prediction_type: str):
    scheduler = make_scheduler(preset("large", prediction_type=prediction_type))
    images, noise, timesteps = torch.rand(3, 1, 8, 8), torch.randn(3, 1, 8, 8), torch.tensor([5, 300, 590])
    errors = denoising_errors(Remembers(), scheduler, images, torch.zeros(3), timesteps, noise)
    a = scheduler.alphas_cumprod[timesteps].view(3, 1, 1, 1)
    target = noise if prediction_type == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * images
    torch.testing.assert_close(errors, target.pow(2).mean(dim=(1, 2, 3)))


def test_patches_change_what_the_model_sees_and_not_the_loss():
    scheduler, model = make_scheduler(preset("large")), Remembers()
    images, noise, timesteps = torch.rand(3, 1, 8, 8), torch.randn(3, 1, 8, 8), torch.tensor([5, 300, 590])
    whole, cut = (denoising_errors(model, scheduler, images, torch.zeros(3), timesteps, noise, side) for side in (1, 2))
    torch.testing.assert_close(whole, cut)
    corners = scheduler.add_noise(images, noise, timesteps)[:, 0, ::2, ::2]
    assert model.sample.shape == (3, 4, 4, 4)
    assert model.sample[:, 0].equal(corners)


@pytest.mark.parametrize("probability", [0.0, 0.1, 1.0])
def test_labels_are_dropped_to_the_null_class_at_the_given_rate(probability: float):
    config = preset("tiny", batch_size=500, resolution=4, cfg_dropout_prob=probability, guidance_scale=1.0)
    draws, scheduler, model = StepDraws(config, ONE), make_scheduler(config), Remembers()
    images, labels = torch.zeros(500, 1, 4, 4), torch.arange(500) % 47
    dropped = 0
    for step in range(40):
        training_loss(model, scheduler, images, labels, 47, draws(step * 500))
        kept = model.labels != 47
        assert model.labels[kept].equal(labels[kept])
        dropped += (~kept).sum().item()
    deviation = math.sqrt(20_000 * probability * (1 - probability))
    assert abs(dropped - 20_000 * probability) <= 4 * deviation


def of_rank(draws: Draws) -> list[torch.Tensor]:
    return [draws.timesteps, draws.noise, draws.dropped]


@pytest.mark.parametrize("timestep_sampling", ["uniform", "stratified"])
def test_draws_of_a_step_do_not_depend_on_the_number_of_processes(timestep_sampling: str):
    whole = preset("tiny", batch_size=24, resolution=8, timestep_sampling=timestep_sampling)
    expected = of_rank(StepDraws(whole, ONE)(images_seen=4800))
    for world_size in (2, 3, 4):
        share = replace(whole, batch_size=24 // world_size)
        parts = [
            of_rank(StepDraws(share, DistContext(rank, rank, world_size, world_size, ONE.device))(images_seen=4800))
            for rank in range(world_size)
        ]
        for together, one in zip(zip(*parts, strict=True), expected, strict=True):
            assert torch.cat(together).equal(one)


def test_draws_repeat_at_the_same_place_and_differ_elsewhere():
    config = preset("tiny", batch_size=16, resolution=8)
    here, again = StepDraws(config, ONE)(640), StepDraws(config, ONE)(640)
    assert all(a.equal(b) for a, b in zip(of_rank(here), of_rank(again), strict=True))
    assert not here.noise.equal(StepDraws(config, ONE)(656).noise)
    assert not here.noise.equal(StepDraws(replace(config, seed=1), ONE)(640).noise)


def test_timesteps_cover_all_levels_evenly():
    config = preset("tiny", batch_size=1000, resolution=4, diffusion_steps=10, sample_steps=5, timestep_power=1.0)
    uniform = StepDraws(replace(config, timestep_sampling="uniform"), ONE)(0).timesteps
    stratified = StepDraws(replace(config, timestep_sampling="stratified"), ONE)(0).timesteps
    assert stratified.bincount(minlength=10).tolist() == [100] * 10  # one from each of 1000 bands
    assert not stratified.sort().values.equal(stratified)  # in no order, so that no process gets the easy ones
    assert 60 < uniform.bincount(minlength=10).min() < 100


def test_a_power_below_one_draws_more_of_the_noisy_timesteps():
    """u^0.5 is below a half for a quarter of all u."""
    config = preset("tiny", batch_size=1000, resolution=4, diffusion_steps=10, sample_steps=5, timestep_power=0.5)
    timesteps = StepDraws(config, ONE)(0).timesteps
    assert (timesteps < 5).sum() == pytest.approx(250, abs=1)  # stratified
    assert timesteps.max() == 9


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_weights_the_error_of_the_clean_image_by_at_most_five(prediction_type: str):
    """A prediction that is off by d is off by d² / SNR (epsilon) or d² / (SNR + 1) (velocity) in the clean image."""
    scheduler = make_scheduler(preset("large", prediction_type=prediction_type))
    timesteps = torch.arange(600)
    a = scheduler.alphas_cumprod.double()
    snr = a / (1 - a)
    in_clean_image = snr if prediction_type == "epsilon" else snr + 1
    weights = min_snr_weights(scheduler, timesteps) * in_clean_image
    torch.testing.assert_close(weights, snr.clamp(max=5), rtol=1e-3, atol=1e-9, check_dtype=False)


def test_the_training_loss_takes_the_weights(small):
    images, noise = torch.zeros(2, 1, 28, 28), torch.ones(2, 1, 28, 28)
    draws = Draws(torch.tensor([3, 90]), noise, torch.tensor([False, False]))
    scheduler = make_scheduler(replace(small, prediction_type="epsilon"))
    plain = training_loss(Remembers(), scheduler, images, torch.tensor([1, 2]), 47, draws)
    weighted = training_loss(Remembers(), scheduler, images, torch.tensor([1, 2]), 47, draws, "min_snr")
    assert plain == 1  # zeros predicted, ones true
    assert weighted == pytest.approx(min_snr_weights(scheduler, draws.timesteps).mean().item())


def validation_loss(config, models: int) -> list[ValidationLoss]:
    with connect() as world:
        test = random_images(1050, seed=3)
        unet = build_unet(config, 47)
        return Validation(config, test, 1050, make_scheduler(config), world)(*[unet] * models)


def test_validation_is_the_same_figure_for_any_number_of_processes(small):
    config = small
    alone = in_processes(validation_loss, 1, config, 2)[0]
    assert alone[0] == alone[1]
    assert alone[0].mean == pytest.approx(np.mean(alone[0].bands), rel=0.05)  # as many images in each, but for a chunk
    for world_size in (2, 3):
        assert in_processes(validation_loss, world_size, config, 2) == [alone] * world_size


def test_validation_uses_at_most_the_images_asked_for_and_ignores_the_seed(small):
    test, scheduler = random_images(300), make_scheduler(small)
    unet = build_unet(small, 47)
    first = Validation(small, test, 120, scheduler, ONE)(unet)
    assert first == Validation(replace(small, seed=9), test, 120, scheduler, ONE)(unet)
    assert first != Validation(small, test, 60, scheduler, ONE)(unet)


def test_the_loss_is_also_told_by_noise_level(small):
    """A model that predicts no noise is wrong by the noise's variance, 1, in every band; one that is right only at the
    upper half of the timesteps has no loss there."""
    test, scheduler = random_images(200), make_scheduler(small)

    def half_right(noisy, timestep, class_labels, return_dict):
        a = scheduler.alphas_cumprod[timestep].view(-1, 1, 1, 1)
        clean = data.to_model_input(test.pixels[chosen], small.resolution)[: len(noisy)]
        truth = (noisy - a.sqrt() * clean) / (1 - a).sqrt()
        return (truth * (timestep >= small.diffusion_steps // 2).view(-1, 1, 1, 1),)

    config = replace(small, prediction_type="epsilon", patch_size=1)
    chosen = torch.randperm(200, generator=torch.Generator().manual_seed(0))[:100]
    scheduler = make_scheduler(config)
    (loss,) = Validation(config, test, 100, scheduler, ONE)(half_right)
    assert loss.bands == pytest.approx((1, 1, 0, 0), abs=0.05)
    assert loss.mean == pytest.approx(0.5, abs=0.05)


def test_the_draws_of_a_step_are_those_of_every_run_so_far():
    """A run is continued with the draws that it began with."""
    config = preset("tiny", batch_size=3, resolution=4, diffusion_steps=1000, timestep_power=1.0, cfg_dropout_prob=0.5)
    stratified = StepDraws(config, ONE)(640)
    uniform = StepDraws(replace(config, timestep_sampling="uniform"), ONE)(640)
    assert (stratified.timesteps.tolist(), uniform.timesteps.tolist()) == ([156, 752, 365], [470, 258, 95])
    assert stratified.dropped.tolist() == uniform.dropped.tolist() == [False, True, True]
    corners = torch.stack([stratified.noise[:, 0, 0, 0], uniform.noise[:, 0, 0, 0]])
    expected = torch.tensor([[-0.8839, 0.5801, -1.4441], [-0.2855, -0.4618, -0.3246]])
    torch.testing.assert_close(corners, expected, atol=1e-3, rtol=0)


def test_accumulated_passes_share_the_draws_of_a_step():
    draws = StepDraws(preset("tiny", batch_size=5, resolution=4), ONE)(0)
    parts = draws.split(2)
    assert [len(part.timesteps) for part in parts] == [2, 2, 1]
    for together, whole in zip(zip(*map(of_rank, parts), strict=True), of_rank(draws), strict=True):
        assert torch.cat(together).equal(whole)


def test_a_step_draws_for_all_its_passes():
    whole = StepDraws(preset("tiny", batch_size=6, resolution=4), ONE)(0)
    twice = StepDraws(preset("tiny", batch_size=3, grad_accum=2, resolution=4), ONE)(0)
    assert all(a.equal(b) for a, b in zip(of_rank(whole), of_rank(twice), strict=True))


class Process:
    """One of several processes, without the others: sums are its own share."""

    device = ONE.device

    def __init__(self, rank: int, world_size: int, seconds_of_others: tuple[float | None, ...] = ()) -> None:
        self.rank, self.world_size, self._seconds = rank, world_size, seconds_of_others

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def gather(self, seconds: float | None) -> list[float | None]:
        self.seconds = seconds
        return [*self._seconds, seconds]


@pytest.fixture
def predicts_zeros(small):
    """Settings for noise as the target; validation on the first images of a process; a model that always says zero."""
    config = replace(small, prediction_type="epsilon", patch_size=1)
    scheduler = make_scheduler(config)

    def validation(images: int, world=ONE) -> Validation:
        return Validation(config, random_images(max(images, 300), seed=3), images, scheduler, world)

    return config, validation


def chunk_noise(number: int, count: int) -> torch.Tensor:
    source = torch.Generator().manual_seed(derive(0, Stream.VALIDATION, number))
    return torch.randn(count, 1, 28, 28, generator=source)


def test_the_validation_loss_is_the_mean_over_the_images_in_chunks_of_250(predicts_zeros):
    """A model that always says zero is wrong by the noise: that of each chunk is a function of its number."""
    _, validation = predicts_zeros
    errors = torch.cat([chunk_noise(0, 250), chunk_noise(1, 50)]).double().square().mean((1, 2, 3))
    (loss,) = validation(300)(Remembers())
    assert loss.mean == pytest.approx(errors.mean().item(), rel=1e-6)
    band = (torch.arange(300) + 0.5) / 300 * len(loss.bands)  # timesteps rise evenly with the image
    for number, found in enumerate(loss.bands):
        assert found == pytest.approx(errors[band.long() == number].mean().item(), rel=1e-6)


def test_validation_asks_for_every_timestep_alike_without_gradients(predicts_zeros):
    config, validation = predicts_zeros
    asked = []

    def model(noisy, timestep, class_labels, return_dict):
        asked.append((timestep, class_labels, torch.is_grad_enabled()))
        return (torch.zeros_like(noisy),)

    assert len(validation(100)(model, model)) == 2
    for timesteps, labels, gradients in asked:
        assert timesteps.tolist() == [*range(config.diffusion_steps)]
        assert labels.equal(data.split_test(random_images(300, seed=3), 100)[0].labels)
        assert not gradients


def test_the_chunks_of_a_validation_are_shared_among_the_processes(predicts_zeros):
    _, validation = predicts_zeros
    (alone,) = validation(1050)(Remembers())
    shares = [validation(1050, Process(rank, 2))(Remembers())[0].mean for rank in range(2)]
    assert sum(shares) == pytest.approx(alone.mean)
    errors = [chunk_noise(number, 250).double().square().mean((1, 2, 3)).sum().item() for number in (1, 3)]
    assert shares[1] == pytest.approx(sum(errors) / 1050, rel=1e-6), "the second process has chunks 1 and 3 of 5"


def test_a_validation_that_is_interrupted_has_no_result(predicts_zeros):
    _, validation = predicts_zeros
    answers = iter([False, True, True])
    assert validation(1050)(Remembers(), interrupted=lambda: next(answers)) is None
    assert list(answers) == [True], "asked before each chunk"


def test_the_slowest_process_is_named_with_its_time_over_the_median(predicts_zeros):
    _, validation = predicts_zeros

    def told(*seconds: float | None) -> dict:
        judged = validation(300, Process(0, 1, seconds))
        judged(Remembers())
        return judged.slowest_rank()

    assert told() == {}
    assert told(1e6, None) == {}
    assert told(1e6, 3e6, 2e6, 1e6) == {SLOWEST_RANK: 1, SLOWEST_RANK_RATIO: 3.0}
    idle = Process(3, 4, (1.0, 2.0, 3.0))
    judged = validation(300, idle)
    assert judged(Remembers()) and judged.slowest_rank() == {}, "its share is empty: there are two chunks"
    assert idle.seconds is None


def test_the_time_of_a_chunk_is_the_median_of_its_calls(predicts_zeros, monkeypatch: pytest.MonkeyPatch):
    _, validation = predicts_zeros
    clock = iter([0.0, 1.0, 10.0, 12.0, 20.0, 29.0])  # chunks of 1, 2 and 9 seconds
    monkeypatch.setattr("ddpm.training.diffusion.time.monotonic", lambda: next(clock))
    world = Process(0, 1)
    judged = validation(700, world)
    judged(Remembers())
    judged.slowest_rank()
    assert world.seconds == 2.0


def test_the_ends_of_the_random_numbers_are_the_first_and_the_last_timestep(monkeypatch: pytest.MonkeyPatch):
    config = preset("tiny", batch_size=4, resolution=4, timestep_sampling="uniform", timestep_power=0.5)
    never = StepDraws(replace(config, cfg_dropout_prob=0.0, guidance_scale=1.0), ONE)
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, 1 - 2**-24))  # its root rounds to 1
    assert never(0).timesteps.tolist() == [config.diffusion_steps - 1] * 4
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.zeros(shape))
    assert never(0).timesteps.tolist() == [0] * 4
    assert not never(0).dropped.any()


def test_a_model_without_patches_sees_the_pixels_as_they_are(small):
    images, model = torch.zeros(2, 1, 28, 28), Remembers()
    draws = Draws(torch.tensor([3, 90]), torch.ones(2, 1, 28, 28), torch.tensor([False, False]))
    training_loss(model, make_scheduler(small), images, torch.tensor([1, 2]), 47, draws)
    assert model.sample.shape == images.shape
