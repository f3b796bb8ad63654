"""Layers as the compiled model runs them: in bf16, beside the same in float64."""

import copy

import pytest
import torch
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from ddpm.run.config import preset
from ddpm.training import layers
from ddpm.training.compilation import FUSE_MORE, SUM_IN_LOOPS
from ddpm.training.model import build_unet, meta_inputs, set_layout

BATCH = 96
ROUNDING = 2**-8  # of bf16, relative


def normal(*shape: int, mean: float = 0.0, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + mean


def gradients(layer: nn.Module, input: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """Output, and gradients of input and parameters, all float64."""
    input = input.detach().requires_grad_()
    parameters = list(layer.parameters())
    output = layer(input)
    found = torch.autograd.grad(output, [input, *parameters], grad.to(output.dtype))
    return tuple(each.detach().double() for each in (output, *found))


def compiled(plain: nn.Module) -> nn.Module:
    """The layer's own version, as it is trained with."""
    own = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    layers.replace_layers(own, channels_last=True)
    torch._dynamo.reset()
    return torch.compile(own, dynamic=False, fullgraph=True, options=FUSE_MORE | SUM_IN_LOOPS)


def errors(layer: nn.Module, plain: nn.Module, input: Tensor, grad: Tensor) -> list[float]:
    """The relative errors (L2) of `layer` in bf16, against `plain` in float64."""
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(layer, input.bfloat16(), grad.bfloat16())
    exact = gradients(copy.deepcopy(plain).double(), input.bfloat16().double(), grad.bfloat16().double())
    return [((a - b).norm() / b.norm()).item() for a, b in zip(found, exact, strict=True)]


def errors_beside_torch(plain: nn.Module, *images: Tensor) -> list[float]:
    """The errors of the layer's own version: of bf16's rounding, or no larger than torch's own in bf16, which on
    processors without bf16 arithmetic loses more in the gradient of a convolution's weight."""
    found, of_torch = (errors(each, plain, *images) for each in (compiled(plain), plain))
    assert all(own < max(2 * ROUNDING, 1.1 * other) for own, other in zip(found, of_torch, strict=True))
    return found


@pytest.mark.parametrize("mean", [0.0, 30.0])
@pytest.mark.parametrize("shape", [(BATCH, 64, 14, 14), (BATCH, 96, 12, 12), (BATCH, 64, 49)])
def test_a_norm_and_its_gradients_are_as_exact_as_their_input(shape: tuple[int, ...], mean: float):
    """Also of the bias and weight, summed over all images, and where the mean is far from zero."""
    norm = nn.Sequential(nn.GroupNorm(32, shape[1]), nn.SiLU())
    with torch.no_grad():
        norm[0].weight.copy_(normal(shape[1], mean=1, seed=1))
        norm[0].bias.copy_(normal(shape[1], seed=2))
    output, of_input, of_weight, of_bias = errors(
        compiled(norm), norm, normal(*shape, mean=mean), normal(*shape, seed=3)
    )
    assert output < 1e-4
    assert of_input < ROUNDING
    assert of_weight < 1e-4
    assert of_bias < 1e-4


@pytest.mark.parametrize(("channels", "out"), [(1, 16), (16, 1), (16, 24)])
def test_a_convolution_is_one_whatever_its_channels(channels: int, out: int):
    layer = nn.Conv2d(channels, out, 3, padding=1)
    found = errors_beside_torch(layer, normal(BATCH, channels, 14, 14), normal(BATCH, out, 14, 14, seed=1))
    assert found[-1] < 1e-4  # the bias: its sum over all images and positions is one of float32


def test_a_bias_is_summed_as_precisely_as_float64_to_seven_digits():
    """A sum of 96 · 784 values of bf16 would lose all digits in bf16."""
    grad = normal(BATCH, 8, 28, 28, mean=1).bfloat16()
    _, summed = layers.AddBias.backward(None, grad)
    torch.testing.assert_close(summed.double(), grad.double().sum((0, 2, 3)), rtol=1e-6, atol=0)


def test_a_doubled_image_is_what_diffusers_makes_of_it():
    layer = Upsample2D(16, use_conv=True)
    errors_beside_torch(layer, normal(BATCH, 16, 7, 7), normal(BATCH, 16, 14, 14, seed=1))


def test_the_layers_are_all_there_and_uncompiled_those_of_torch(small):
    plain, own = build_unet(small, 47), build_unet(small, 47)
    set_layout(own, channels_last=True)
    types = {type(layer) for layer in own.modules()}
    assert {layers.Conv2d, layers.GroupNorm, layers.SiLU, layers.Upsample} <= types
    assert not types & {nn.Conv2d, nn.GroupNorm, nn.SiLU, Upsample2D}
    assert own.state_dict().keys() == plain.state_dict().keys()
    images, numbers = normal(*meta_inputs(small, 4)[0].shape), torch.arange(4)
    with torch.no_grad():
        torch.testing.assert_close(own(images, numbers, numbers).sample, plain(images, numbers, numbers).sample)


def test_kernels_of_one_pixel_have_the_strides_that_ddp_gives_their_gradients():
    unet = build_unet(preset("tiny"), 47)
    set_layout(unet, channels_last=True)
    shortcuts = [each.weight for name, each in unet.named_modules() if name.endswith("conv_shortcut")]
    assert len(shortcuts) > 2
    assert all(weight.stride() == (weight.shape[1], 1, weight.shape[1], weight.shape[1]) for weight in shortcuts)
