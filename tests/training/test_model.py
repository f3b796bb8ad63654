"""The network and the moving average of its weights."""

import pytest
import torch

from ddpm.run.config import PRESETS, preset
from ddpm.run.paths import PROJECT_ROOT
from ddpm.training.model import (
    EMA,
    POWER_EVERY,
    POWER_WIDTHS,
    PowerEMA,
    as_one_tensor,
    build_unet,
    count_parameters,
    flops_per_image,
    power_exponent,
)


def test_large_is_the_reference_model():
    """54 M parameters; 254.7 GFLOP per image, forward and backward."""
    assert count_parameters(build_unet(preset("large"), 47, "meta")) == pytest.approx(54e6, rel=0.002)
    assert flops_per_image(preset("large")) == pytest.approx(254.7e9, rel=0.001)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_takes_images_timesteps_and_labels(name: str):
    config = preset(name)
    unet = build_unet(config, 47, "meta")
    side, size = config.patch_size, config.resolution // config.patch_size
    images = torch.empty(2, side**2, size, size, device="meta")
    output = unet(images, torch.zeros(2, device="meta"), torch.full((2,), 47, device="meta")).sample
    assert output.shape == images.shape
    assert unet.config.num_class_embeds == 48


def test_weights_follow_from_the_seed_alone(small):
    torch.manual_seed(1)
    state_before = torch.get_rng_state()
    first = build_unet(small, 47)
    assert torch.get_rng_state().equal(state_before)
    torch.manual_seed(2)
    second = build_unet(small, 47)
    assert all(a.equal(b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_parameters_become_views_of_one_tensor_and_stay_what_they_are(small, layout: torch.memory_format):
    model = build_unet(small, 47).to(memory_format=layout)
    before = [(each.detach().clone(), each.stride()) for each in model.parameters()]
    whole = as_one_tensor(model)
    for parameter, (value, stride) in zip(model.parameters(), before, strict=True):
        assert parameter.equal(value)
        assert parameter.stride() == stride
        assert parameter.data_ptr() % 64 == whole.data_ptr() % 64
    whole.zero_()
    assert not any(parameter.any() for parameter in model.parameters())


def test_ema_equals_its_closed_form():
    """After n steps: d^n theta_0 + (1 - d) sum_i d^(n - i) theta_i."""
    model, decay, steps = torch.nn.Linear(3, 2), 0.9, 20
    weights = [model.weight.detach().clone()]
    ema = EMA(model, decay)
    for _ in range(steps):
        with torch.no_grad():
            model.weight += torch.randn(2, 3)
        weights.append(model.weight.detach().clone())
        ema.update(torch.tensor(1.0))
    expected = decay**steps * weights[0]
    expected = expected + (1 - decay) * sum(decay ** (steps - i) * weights[i] for i in range(1, steps + 1))
    torch.testing.assert_close(ema.model.weight, expected)


def test_ema_of_a_step_that_is_left_out_stays():
    model = torch.nn.Linear(3, 2)
    ema = EMA(model, 0.9)
    before = ema.model.weight.clone()
    with torch.no_grad():
        model.weight += 1
    ema.update(torch.tensor(0.0))
    assert ema.model.weight.equal(before)


@pytest.mark.parametrize("left_out", [(), (1,), (5, 6)])
def test_power_averages_are_those_of_the_sampled_weights_by_their_definition(left_out: tuple[int, ...]):
    """Weights proportional to the integral of i^γ over each update's interval; what is left out counts as no update."""
    model = torch.nn.Linear(3, 2)
    averages, sampled = PowerEMA(EMA(model, 0.9)), []
    for step in range(1, 30 * POWER_EVERY + 1):
        with torch.no_grad():
            model.weight += torch.randn(2, 3)
        update, turn = divmod(step, POWER_EVERY)
        averages.update(step, torch.tensor(0.0 if update in left_out else 1.0))
        if turn == 0 and update not in left_out:
            sampled.append(model.weight.detach().double().clone())
    count = len(sampled)
    for name, width in POWER_WIDTHS.items():
        power = power_exponent(width) + 1
        parts = [(i / count) ** power - ((i - 1) / count) ** power for i in range(1, count + 1)]
        assert sum(parts) == pytest.approx(1)
        expected = sum(part * weight for part, weight in zip(parts, sampled, strict=True))
        torch.testing.assert_close(averages.models[name].weight.double(), expected, rtol=1e-5, atol=1e-5)
    assert averages.state_dict() == {"updates": count, "first_step": POWER_EVERY}


@pytest.mark.parametrize("width", POWER_WIDTHS.values())
def test_the_exponent_of_a_width_has_this_width(width: float):
    """Equation 123: the relative standard deviation of a power function."""
    power = power_exponent(width)
    assert ((power + 1) / (power + 2) ** 2 / (power + 3)) ** 0.5 == pytest.approx(width)


def test_delta_norm_is_the_distance_between_live_and_averaged_weights():
    model = torch.nn.Linear(3, 2)
    ema = EMA(model, 0.9)
    assert ema.delta_norm() == 0
    with torch.no_grad():
        model.weight += 2
        model.bias -= 1
    assert ema.delta_norm() == pytest.approx((6 * 4 + 2 * 1) ** 0.5)


@pytest.mark.parametrize("name", PRESETS)
def test_the_page_of_training_tells_the_size_of_every_preset(name: str):
    config = preset(name)
    size, cost = count_parameters(build_unet(config, 47, "meta")) / 1e6, flops_per_image(config) / 1e9
    channels = ", ".join(map(str, config.block_out_channels))
    row = f"| `{name}` | {config.resolution} | {config.batch_size} | {channels} | {size:.1f} M | {cost:.1f} |"
    assert row in (PROJECT_ROOT / "docs" / "training.md").read_text()


def test_a_model_of_patches_sees_and_predicts_pixels_as_channels():
    config = preset("small", patch_size=2, resolution=28, block_out_channels=(32, 64))
    unet = build_unet(config, 47, "meta")
    assert unet.conv_in.weight.shape[:2] == (32, 4)
    assert unet.config.sample_size == 14
    whole = flops_per_image(preset("small", resolution=28, block_out_channels=(32, 64)))
    assert flops_per_image(config) == pytest.approx(whole / 4, rel=0.05)
