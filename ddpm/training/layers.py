"""Layers of the network that a compiled model runs differently: in fewer passes over the activations, or in a shape for
which there are fast kernels. Weights, and results but for rounding, are those of torch's layers, and uncompiled they
are torch's layers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.upsampling import Upsample2D

FAST_CHANNELS = 8  # tensor-core convolutions of half precision read and write channels by the eight


def replace_layers(model: torch.nn.Module, channels_last: bool) -> None:
    """Let the layers of a model be the ones below, where these pay; its parameters stay the same objects."""
    for layer in model.modules():
        if type(layer) is torch.nn.GroupNorm:
            layer.__class__ = GroupNorm
        elif type(layer) is torch.nn.SiLU:
            layer.__class__ = SiLU
        elif channels_last and type(layer) is Upsample2D:
            layer.__class__ = Upsample
        elif channels_last and type(layer) is torch.nn.Conv2d:
            layer.__class__ = Conv2d


class Conv2d(torch.nn.Conv2d):
    """A convolution in NHWC for tensor cores. One channel (of gray images) becomes eight, seven of them zero."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[B, in_channels, H, W] → [B, out_channels, H', W']."""
        if not torch.compiler.is_compiling():
            return super().forward(input)
        more_in, more_out = (
            FAST_CHANNELS - 1 if channels == 1 else 0 for channels in (self.in_channels, self.out_channels)
        )
        weight = F.pad(self.weight, (0, 0, 0, 0, 0, more_in, 0, more_out))
        input = F.pad(input, (0, 0, 0, 0, 0, more_in)).contiguous(memory_format=torch.channels_last)
        return add_bias(self._conv_forward(input, weight, None)[:, : self.out_channels], self.bias)


class AddBias(torch.autograd.Function):
    """Add a value to each channel of an image. Its gradient is summed image by image first, which the compiler does
    where it writes that gradient; the sum over all at once would read it again."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return input + bias.to(input.dtype).view(-1, 1, 1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return grad, _sums(grad.float()).sum(0)


class Upsample(Upsample2D):
    """Doubles the resolution of an image in NHWC, and convolves.

    The gradient of torch's interpolation is traced as additions in any order (atomic ones, in float32).
    """

    def forward(self, hidden_states: torch.Tensor, output_size: int | None = None) -> torch.Tensor:
        """[B, C, H, W] → [B, C, 2H, 2W], or as diffusers does it where `output_size` asks for another size."""
        if not torch.compiler.is_compiling() or output_size is not None:
            return super().forward(hidden_states, output_size)
        image = hidden_states.permute(0, 2, 3, 1)
        batch, height, width, channels = image.shape
        image = image[:, :, None, :, None].expand(-1, -1, 2, -1, 2, -1).reshape(batch, 2 * height, 2 * width, channels)
        return dense_gradient(self.conv(image.permute(0, 3, 1, 2)))


class DenseGradient(torch.autograd.Function):
    """The identity, with a gradient in NHWC without gaps: where the output becomes a part of a larger tensor, the
    gradient is a part of one too, which the convolution before would copy."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor) -> torch.Tensor:
        return input.view_as(input)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad.contiguous(memory_format=torch.channels_last)


class SiLU(torch.nn.SiLU):
    """SiLU by the sigmoid, for which there are fast instructions."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(input)
        return input * torch.sigmoid(input)


class GroupNorm(torch.nn.GroupNorm):
    """A GroupNorm (Wu & He 2018) that torch.compile sees as arithmetic, with a backward pass of its own.

    On a GPU, memory limits normalization: what counts is how often an activation is read or written. torch's GroupNorm
    copies its input to NCHW, even if traced, and the convolution after it copies back. If autograd derives the backward
    pass, each mean and variance becomes a pass of its own.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[B, C, …] of any dtype → the same shape; while tracing float32, as autocast has it on a GPU."""
        if not torch.compiler.is_compiling():
            return super().forward(input)
        return group_norm(input, self.weight, self.bias, self.num_groups, self.eps)


class ClosedFormGroupNorm(torch.autograd.Function):
    """GroupNorm in float32, with its gradient in closed form. Each way is a pass that sums by channel and one that
    multiplies and adds, by factors of each image and channel.

    The compiler fuses both with what is before and after, SiLU included, and keeps the memory layout of the input.
    """

    @staticmethod
    def forward(
        ctx: Any, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, eps: float
    ) -> torch.Tensor:
        """[B, C, …] → float32 of the same shape."""
        # Half as many instructions as torch.var_mean. What cancels is far below the rounding of bf16.
        values = input.float()
        mean, square = (
            _sums(each).unflatten(1, (groups, -1)).sum(2, keepdim=True) * (groups / input[0].numel())  # [B, groups, 1]
            for each in (values, values.square())
        )
        rstd = torch.rsqrt((square - mean.square()).clamp(min=0) + eps)
        scale = rstd * weight.unflatten(0, (groups, -1))  # [B, groups, C / groups]
        shift = bias.unflatten(0, (groups, -1)) - mean * scale
        scale, shift = _by_channel(scale, input), _by_channel(shift, input)
        ctx.save_for_backward(input, weight, mean, rstd, scale)
        return values * scale + shift

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of input, weight and bias. With x̂ the normalized input and g = weight · grad, that of the input is
        rstd · (g - mean(g) - x̂ · mean(g · x̂)), the means being over each group."""
        input, weight, mean, rstd, scale = ctx.saved_tensors
        groups = mean.shape[1]
        weight, per_group = weight.unflatten(0, (groups, -1)), input[0].numel() // groups
        grad, values = grad.float(), input.float()
        sums = _sums(grad).unflatten(1, (groups, -1))  # [B, groups, C / groups]
        products = (_sums(grad * values).unflatten(1, (groups, -1)) - mean * sums) * rstd  # of grad and x̂
        slope = -rstd.square() * (weight * products).sum(2, keepdim=True) / per_group
        offset = -rstd * (weight * sums).sum(2, keepdim=True) / per_group - slope * mean
        slope, offset = (_by_channel(each.expand_as(sums), input) for each in (slope, offset))
        grad_input = (grad * scale + values * slope + offset).to(input.dtype)
        return grad_input, products.sum(0).flatten(), sums.sum(0).flatten(), None, None


def _sums(values: torch.Tensor) -> torch.Tensor:
    """Sums over all positions: [B, C, …] → [B, C]."""
    return values.sum(tuple(range(2, values.dim())))


def _by_channel(factors: torch.Tensor, input: torch.Tensor) -> torch.Tensor:
    """Factors [B, groups, C / groups] in a shape to combine with the input: [B, C, 1, …].

    Inductor writes what as_strided is applied to into memory. Otherwise it would compute the factors anew for each
    value of the activation, and on an H100 or H200 these instructions take longer than the memory.
    """
    batch, channels = input.shape[:2]
    kept = factors.reshape(batch, channels).as_strided((batch, channels), (channels, 1))
    return kept.view(batch, channels, *[1] * (input.dim() - 2))


ONE_NODE: list[Callable[..., torch.Tensor]] = []


def one_node(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Let Dynamo take each call as one node of its graph, which AOTAutograd traces if its cache does not have it.

    Otherwise Dynamo would trace both passes of every call at every start: two thirds of its time for `large`.
    """
    ONE_NODE.append(function)
    return torch.compiler.allow_in_graph(function)


@one_node
def add_bias(input: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return AddBias.apply(input, bias)


@one_node
def dense_gradient(input: torch.Tensor) -> torch.Tensor:
    return DenseGradient.apply(input)


@one_node
def group_norm(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, eps: float) -> torch.Tensor:
    return ClosedFormGroupNorm.apply(input, weight, bias, groups, eps)


def cache_keys() -> dict[str, str]:
    """The functions of `one_node` by their full name, each with a digest of this file: compiled code of theirs is valid
    as long as it stays the same."""
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    return {f"{each.__module__}.{each.__name__}": digest for each in ONE_NODE}
