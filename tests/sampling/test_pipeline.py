"""Samplers, guidance, and the pipeline that draws characters."""

from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch

from ddpm.data.emnist import CLASS_NAMES
from ddpm.run.config import TrainConfig, preset
from ddpm.sampling.options import SamplerName
from ddpm.sampling.pipeline import SAMPLERS, CharacterPipeline, denoise, listed, make_sampler, sample, to_bytes
from ddpm.training import data
from ddpm.training.diffusion import make_scheduler
from ddpm.training.model import build_unet
from tests.conftest import random_images


class Stub:
    """Stands in for the UNet: predicts what `answer(images, timestep, labels)` says."""

    dtype, config = torch.float32, SimpleNamespace(num_class_embeds=47 + 1, in_channels=1)

    def __init__(self, answer) -> None:
        self.answer, self.batches = answer, []

    def __call__(self, images, timestep, class_labels, return_dict):
        self.batches.append(len(images))
        return (self.answer(images, timestep, class_labels),)


def pipeline_of(config: TrainConfig) -> CharacterPipeline:
    pipeline = CharacterPipeline(build_unet(config, 47).eval(), make_scheduler(config), num_inference_steps=4)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_patches_are_cut_for_the_model_alone(small: TrainConfig):
    """A model that answers with what it sees, pixel by pixel, is the same for patches of any size."""
    noise, labels = torch.randn(3, 1, 28, 28), torch.tensor([1, 2, 3])
    scheduler, drawn, shapes = make_scheduler(small), [], set()

    def same(images, timestep, labels):
        shapes.add(tuple(images.shape[1:]))
        return images

    for channels in (1, 4, 16):
        model = Stub(same)
        model.config = SimpleNamespace(num_class_embeds=47 + 1, in_channels=channels)
        drawn.append(sample(model, scheduler, labels, noise, steps=4, guidance_scale=2.0))
    assert drawn[0].equal(drawn[1])
    assert drawn[0].equal(drawn[2])
    assert shapes == {(1, 28, 28), (4, 14, 14), (16, 7, 7)}


def test_every_sampler_can_be_asked_for():
    assert get_args(SamplerName) == tuple(SAMPLERS)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_takes_as_many_even_steps_as_it_is_asked_for(name: str):
    """Every count from 1 to all of them, none twice, from the noisiest on (diffusers' own spacing gets 29 of the 600
    wrong), at the noise levels of the training."""
    scheduler = make_scheduler(preset("large"))
    for steps in (1, 2, 7, 20, 61, 122, 250, 350, 599, 600):
        sampler, timesteps = make_sampler(name, scheduler, steps)
        assert len(timesteps) == len(sampler.timesteps) == steps
        assert timesteps[0] == 599
        gaps = -timesteps.diff()
        assert steps == 1 or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)
        assert sampler.alphas_cumprod.flip(0).equal(scheduler.alphas_cumprod[timesteps])


def test_a_sampler_that_is_not_there_is_refused():
    scheduler = make_scheduler(preset("large"))
    with pytest.raises(ValueError, match="euler"):
        make_sampler("euler", scheduler, 20)
    with pytest.raises(ValueError, match="1 to 600"):
        make_sampler("ddim", scheduler, 601)


@pytest.mark.parametrize("steps", [20, 37])
@pytest.mark.parametrize("name", SAMPLERS)
def test_sampling_inverts_a_perfect_model(name: str, steps: int):
    """A model that knows the one image there is leads every sampler to that image."""
    scheduler = make_scheduler(preset("large", diffusion_steps=100))
    truth = data.to_model_input(random_images(1).pixels, 28)

    def noise_in(images, timestep, labels):
        a = scheduler.alphas_cumprod[timestep]
        return (images - a.sqrt() * truth) / (1 - a).sqrt()

    labels, noise = torch.zeros(3, dtype=torch.long), torch.randn(3, 1, 28, 28)
    drawn = sample(Stub(noise_in), scheduler, labels, noise, steps=steps, guidance_scale=1.0, sampler=name)
    torch.testing.assert_close(drawn, truth.expand(3, -1, -1, -1), atol=2e-2, rtol=0)


@pytest.mark.parametrize("name", ["ddim", "dpm++"])
def test_clipping_keeps_image_and_noise_in_step(name: str):
    """A model that always means an image of 3, which no image can be: the samplers go straight to 1, along one noise.
    (diffusers' DDIM clips the image but keeps the noise that belongs to 3; strong guidance then ruins the pictures.)"""
    scheduler, noise = make_scheduler(preset("large", diffusion_steps=100)), torch.randn(1, 1, 8, 8)

    def means_three(images, timestep, labels):
        a = scheduler.alphas_cumprod[timestep]
        return (images - a.sqrt() * 3) / (1 - a).sqrt()

    _, timesteps = make_sampler(name, scheduler, 10)
    steps = denoise(
        Stub(means_three), scheduler, torch.tensor([0]), noise, steps=10, guidance_scale=1.0, sampler=name
    )  # fmt: skip
    for images, timestep in zip(steps, [*timesteps[1:], None], strict=True):
        a = torch.tensor(1.0) if timestep is None else scheduler.alphas_cumprod[timestep]
        torch.testing.assert_close(images, (a.sqrt() + (1 - a).sqrt() * noise), atol=2e-3, rtol=0)


@pytest.mark.parametrize(("guidance_scale", "expected"), [(0.0, 5.0), (1.0, 3.0), (2.0, 1.0)])
def test_guidance_mixes_the_predictions_with_and_without_label(guidance_scale: float, expected: float):
    """uncond + scale * (cond - uncond), with the predictions 3 (with a label) and 5 (null class), in one batch."""
    scheduler, noise, labels = make_scheduler(preset("large")), torch.randn(2, 1, 8, 8), torch.tensor([1, 2])
    model, constant = Stub(by_label), Stub(lambda images, timestep, labels: torch.full_like(images, expected))
    guided = sample(model, scheduler, labels, noise, steps=5, guidance_scale=guidance_scale)
    assert guided.equal(sample(constant, scheduler, labels, noise, steps=5, guidance_scale=1.0))
    assert model.batches == [4 if guidance_scale == 2 else 2] * 5


def by_label(images, timestep, labels):
    """3 with a label, 5 without."""
    return torch.where(labels == 47, 5.0, 3.0).view(-1, 1, 1, 1).expand_as(images)


def test_guidance_in_an_interval_leaves_the_other_steps_alone_and_saves_their_cost():
    """Of ten steps, at the levels 1, 0.9, … 0.1, those at 0.8 to 0.4 are guided: 5 + 2 * (3 - 5) there, elsewhere 3."""
    scheduler, noise, labels = make_scheduler(preset("large")), torch.randn(2, 1, 8, 8), torch.tensor([1, 2])

    def by_hand(images, timestep, labels):
        return torch.full_like(images, 1.0 if 0.3 < (timestep + 1) / 600 <= 0.8 else 3.0)

    model, expected = Stub(by_label), Stub(by_hand)
    guided = sample(model, scheduler, labels, noise, steps=10, guidance_scale=2.0, guidance_interval=(0.3, 0.8))
    assert guided.equal(sample(expected, scheduler, labels, noise, steps=10, guidance_scale=1.0))
    assert model.batches == [2, 2, 4, 4, 4, 4, 4, 2, 2, 2]


@pytest.mark.parametrize(
    ("guidance_scale", "expected", "of_model", "of_guide"), [(0.0, 7.0, 0, 4), (1.0, 3.0, 4, 0), (2.5, -3.0, 4, 4)]
)
def test_autoguidance_takes_the_guides_prediction_for_the_same_labels(
    guidance_scale: float, expected: float, of_model: int, of_guide: int
):
    """weak + scale * (cond - weak), with the predictions 3 of the model and 7 of the guide, each in a batch of its
    own; neither is asked where it has no part."""
    scheduler, noise, labels = make_scheduler(preset("large")), torch.randn(2, 1, 8, 8), torch.tensor([1, 2])
    seen = []
    model, guide = Stub(by_label), Stub(lambda images, t, given: seen.append(given) or torch.full_like(images, 7.0))
    constant = Stub(lambda images, timestep, labels: torch.full_like(images, expected))
    guided = sample(model, scheduler, labels, noise, steps=4, guidance_scale=guidance_scale, guide=guide)
    assert guided.equal(sample(constant, scheduler, labels, noise, steps=4, guidance_scale=1.0))
    assert (model.batches, guide.batches) == ([2] * of_model, [2] * of_guide)
    assert all(given.equal(labels) for given in seen)


def test_a_guide_is_asked_only_in_the_interval():
    scheduler, noise, labels = make_scheduler(preset("large")), torch.randn(2, 1, 8, 8), torch.tensor([1, 2])
    times = []
    guide = Stub(lambda images, timestep, labels: times.append(int(timestep)) or torch.zeros_like(images))
    options = {"steps": 4, "guidance_scale": 2.0, "guidance_interval": (0.25, 0.75)}
    sample(Stub(by_label), scheduler, labels, noise, **options, guide=guide)
    assert times == [449, 299]  # 0.75 and 0.5 of 600


@pytest.mark.parametrize("interval", [(0.5, 0.5), (0.8, 0.3), (-0.1, 0.5), (0.3, 1.1), (float("nan"), 1.0)])
def test_an_interval_that_is_none_is_refused(interval: tuple[float, float]):
    noise = torch.randn(1, 1, 8, 8)
    options = {"steps": 2, "guidance_scale": 2.0, "guidance_interval": interval}
    with pytest.raises(ValueError, match="the lower one first"):
        sample(Stub(by_label), make_scheduler(preset("large")), torch.tensor([0]), noise, **options)


def test_a_pipeline_guides_as_its_config_says_and_as_a_call_says(small: TrainConfig):
    """One step straight to the clean image, computed by hand for two real networks."""
    whole_pixels = replace(small, patch_size=1)
    model, guide = (build_unet(replace(whole_pixels, seed=seed), 47).eval() for seed in (0, 1))
    scheduler = make_scheduler(small)
    for network in (model, guide):
        torch.nn.init.normal_(network.conv_out.weight, std=0.05)  # a new network's is zero
    pipeline = CharacterPipeline(model, scheduler, num_inference_steps=1, guidance_interval=[0.0, 0.9], guide=guide)
    pipeline.set_progress_bar_config(disable=True)
    noise, labels, last = {}, torch.tensor([3, 4]), scheduler.config.num_train_timesteps - 1

    def draw(**options) -> torch.Tensor:
        source = torch.Generator().manual_seed(0)
        return pipeline([3, 4], generator=source, output_type="pt", on_step=noise.setdefault, **options).images

    def clean(predictions: torch.Tensor) -> torch.Tensor:
        a = scheduler.alphas_cumprod[last]
        return (a.sqrt() * noise[0] - (1 - a).sqrt() * predictions).clamp(-1, 1)  # from the velocity

    def predicted(network: torch.nn.Module, labels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return network(noise[0], last, class_labels=labels).sample

    plain = draw()  # the only step is at level 1, outside of the interval
    strong, weak = predicted(model, labels), predicted(guide, labels)
    torch.testing.assert_close(plain, clean(strong), atol=1e-5, rtol=0)
    assert (plain.abs() < 1).any()  # the clipping leaves something to compare
    whole = {"guidance_scale": 3.0, "guidance_interval": (0, 1)}
    torch.testing.assert_close(draw(**whole), clean(weak + 3 * (strong - weak)), atol=1e-5, rtol=0)
    none = predicted(model, torch.full_like(labels, 47))
    torch.testing.assert_close(draw(**whole, use_guide=False), clean(none + 3 * (strong - none)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_batch_size_does_not_change_what_is_drawn(small: TrainConfig, name: str):
    """Up to the rounding of sums, which may tip a pixel to the next grey level."""
    pipeline = pipeline_of(small)

    def draw(batch_size: int) -> np.ndarray:
        source = torch.Generator().manual_seed(1)
        options = {"sampler": name, "generator": source, "batch_size": batch_size, "output_type": "np"}
        return pipeline("Hello World", **options).images.astype(int)

    assert draw(64).std() > 10
    for batch_size in (1, 3):
        assert np.abs(draw(batch_size) - draw(64)).max() <= 1


def test_text_and_labels_mean_the_same(small: TrainConfig):
    """Blanks are passed over; either case of a merged letter is its class."""
    pipeline = pipeline_of(small)
    by_text = pipeline("a Sx", generator=torch.Generator().manual_seed(0), output_type="pt").images
    labels = [CLASS_NAMES.index(name) for name in "aSX"]
    assert by_text.equal(pipeline(labels, generator=torch.Generator().manual_seed(0), output_type="pt").images)
    assert [image.size for image in pipeline("a").images] == [(small.resolution, small.resolution)]


@pytest.mark.parametrize(
    ("wrong", "message"), [("Größe", "'ö'"), ("  ", "nothing"), ([48], "0 to 47"), ([-1], "0 to 47")]
)
def test_what_the_model_cannot_draw_is_named(small: TrainConfig, wrong: str | list[int], message: str):
    with pytest.raises(ValueError, match=message):
        pipeline_of(small)(wrong)


def clothes(config: TrainConfig) -> CharacterPipeline:
    pipeline = CharacterPipeline(
        build_unet(config, 3).eval(), make_scheduler(config), ["Bag", "Coat", "T-shirt, long"], num_inference_steps=2
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_classes_are_drawn_by_their_names_or_labels(small: TrainConfig):
    pipeline = clothes(small)

    def draw(classes: list) -> torch.Tensor:
        return pipeline(classes, generator=torch.Generator().manual_seed(0), output_type="pt").images

    expected = draw([2, 0, 3])
    assert expected.equal(draw(["T-shirt, long", "Bag", 3])) and expected.equal(draw(torch.tensor([2, 0, 3])))
    assert pipeline_of(small)(["a", "S"]).images  # characters are names too


@pytest.mark.parametrize(
    ("wrong", "message"),
    [("Bag", "cannot draw a text: give a list of its classes, which are Bag, Coat, \"T-shirt, long\""),
     (["Hat"], "'Hat' is not among the classes of this model: Bag, Coat, \"T-shirt, long\""),
     ([4], "0 to 3"), ([], "nothing to draw")],
)  # fmt: skip
def test_classes_that_the_model_does_not_have_are_named(small: TrainConfig, wrong: str | list, message: str):
    with pytest.raises(ValueError, match=message):
        clothes(small)(wrong)


def test_a_message_names_some_of_many_classes():
    assert listed("0123,") == "0123,"
    assert listed(["Bag", "a, b", "Ankle boot", '"g']) == 'Bag, "a, b", "Ankle boot", """g"'
    assert listed([f"class_{number}" for number in range(1000)]).endswith(" more")
    assert len(listed([f"class {number}" for number in range(1000)])) < 320
    assert listed(["n" * 400, "o"]) == "n" * 400 + " and 1 more"


def test_the_steps_can_be_watched(small: TrainConfig):
    pipeline, seen = pipeline_of(small), {}
    images = pipeline("AB", output_type="pt", on_step=seen.__setitem__).images
    assert list(seen) == [0, 1, 2, 3, 4]
    assert seen[0].std() == pytest.approx(1, abs=0.1)  # the noise that it begins with
    assert seen[4].equal(images)
    assert not seen[3].equal(images)


def test_pixels_span_black_to_white():
    images = torch.tensor([-1.5, -1.0, 0.0, 1.0]).view(4, 1, 1, 1).expand(4, 1, 2, 2)
    assert to_bytes(images)[:, 0, 0].tolist() == [0, 0, 128, 255]
