"""Noise schedule, draws, losses and sampling."""

import math

import pytest
import torch

from ddpm import data
from ddpm.config import NULL_CLASS, preset
from ddpm.diffusion import Draws, StepDraws, Validation, denoising_errors, make_scheduler, sample, training_loss
from ddpm.distributed import World, connect
from ddpm.model import build_unet
from tests.conftest import ONE, random_images, replace
from tests.processes import in_processes


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


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_target_is_the_noise_or_the_velocity(prediction_type: str):
    scheduler = make_scheduler(preset("large", prediction_type=prediction_type))
    images, noise, timesteps = torch.rand(3, 1, 8, 8), torch.randn(3, 1, 8, 8), torch.tensor([5, 300, 590])
    errors = denoising_errors(Remembers(), scheduler, images, torch.zeros(3), timesteps, noise)
    a = scheduler.alphas_cumprod[timesteps].view(3, 1, 1, 1)
    target = noise if prediction_type == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * images
    torch.testing.assert_close(errors, target.pow(2).mean(dim=(1, 2, 3)))


@pytest.mark.parametrize("probability", [0.0, 0.1, 1.0])
def test_labels_are_dropped_to_the_null_class_at_the_given_rate(probability: float):
    config = preset("tiny", batch_size=500, resolution=4, cfg_dropout_prob=probability)
    draws, scheduler, model = StepDraws(config, ONE), make_scheduler(config), Remembers()
    images, labels = torch.zeros(500, 1, 4, 4), torch.arange(500) % 47
    dropped = 0
    for step in range(40):
        training_loss(model, scheduler, images, labels, draws(step * 500))
        kept = model.labels != NULL_CLASS
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
            of_rank(StepDraws(share, World(rank, rank, world_size, world_size, ONE.device))(images_seen=4800))
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
    config = preset("tiny", batch_size=1000, resolution=4, diffusion_steps=10, sample_steps=5)
    uniform = StepDraws(replace(config, timestep_sampling="uniform"), ONE)(0).timesteps
    stratified = StepDraws(replace(config, timestep_sampling="stratified"), ONE)(0).timesteps
    assert stratified.bincount(minlength=10).tolist() == [100] * 10  # one from each of 1000 bands
    assert not stratified.sort().values.equal(stratified)  # in no order, so that no process gets the easy ones
    assert 60 < uniform.bincount(minlength=10).min() < 100


def validation_loss(config, models: int) -> list[float]:
    with connect() as world:
        test = random_images(1050, seed=3)
        unet = build_unet(config)
        return Validation(config, test, 1050, make_scheduler(config), world)(*[unet] * models)


def test_validation_is_the_same_figure_for_any_number_of_processes(small):
    config = small
    alone = in_processes(validation_loss, 1, config, 2)[0]
    assert alone[0] == alone[1] > 0
    for world_size in (2, 3):
        assert in_processes(validation_loss, world_size, config, 2) == [alone] * world_size


def test_validation_uses_at_most_the_images_asked_for_and_ignores_the_seed(small):
    test, scheduler = random_images(300), make_scheduler(small)
    unet = build_unet(small)
    first = Validation(small, test, 120, scheduler, ONE)(unet)
    assert first == Validation(replace(small, seed=9), test, 120, scheduler, ONE)(unet)
    assert first != Validation(small, test, 60, scheduler, ONE)(unet)


def test_sampling_inverts_a_perfect_model():
    """A model that knows the one image there is leads DDIM to that image."""
    config = preset("large", diffusion_steps=100)
    scheduler = make_scheduler(config)
    truth = data.to_model_input(random_images(1).pixels, 28)

    def knows(sample, timestep, class_labels, return_dict):
        a = scheduler.alphas_cumprod[timestep]
        return ((sample - a.sqrt() * truth) / (1 - a).sqrt(),)

    drawn = sample(knows, scheduler, torch.zeros(3, dtype=torch.long), torch.randn(3, 1, 28, 28), 20, 1.0)
    torch.testing.assert_close(drawn, truth.expand(3, -1, -1, -1), atol=2e-2, rtol=0)


@pytest.mark.parametrize(("guidance_scale", "expected"), [(0.0, 5.0), (1.0, 3.0), (2.0, 1.0)])
def test_guidance_mixes_the_predictions_with_and_without_label(guidance_scale: float, expected: float):
    """uncond + scale * (cond - uncond), with the predictions 3 (with a label) and 5 (null class)."""
    scheduler = make_scheduler(preset("large"))
    noise, seen = torch.randn(2, 1, 8, 8), []

    def model(sample, timestep, class_labels, return_dict):
        seen.append(len(sample))
        return (torch.where(class_labels == NULL_CLASS, 5.0, 3.0).view(-1, 1, 1, 1).expand_as(sample),)

    def constant(sample, timestep, class_labels, return_dict):
        return (torch.full_like(sample, expected),)

    labels = torch.tensor([1, 2])
    guided = sample(model, scheduler, labels, noise, 5, guidance_scale)
    assert guided.equal(sample(constant, scheduler, labels, noise, 5, 1.0))
    assert seen == [2 if guidance_scale == 1 else 4] * 5
