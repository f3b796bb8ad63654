"""Makes diffusers' UNet2DModel faster on a device without changing what it computes, how it is saved, or its source."""

from __future__ import annotations

import warnings

import torch
from diffusers.models.resnet import ResnetBlock2D


def set_layout(model: torch.nn.Module, channels_last: bool) -> None:
    """Let a UNet2DModel keep its activations in NHWC if `channels_last`; its parameters stay the same objects."""
    if channels_last:
        model.to(memory_format=torch.channels_last)
        # In training mode diffusers' shortcuts go back to NCHW. Nothing else differs, as there is no dropout.
        model.eval()
    for norm in model.modules():
        if type(norm) is torch.nn.GroupNorm:
            norm.__class__ = TracedGroupNorm


def compiled(model: torch.nn.Module) -> torch.nn.Module:
    """The model compiled for one shape of batch at a time, not for any."""
    # diffusers asks for torch's version while it is traced; the answer stays the same
    warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`-wrapped function")
    return torch.compile(model, dynamic=False)


class TracedGroupNorm(torch.nn.GroupNorm):
    """A GroupNorm that torch.compile sees as arithmetic, which it fuses in the layout that it finds.

    On a GPU, torch's own copies its input to NCHW, also when it is traced, and each convolution after it copies back.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[B, C, …] of any dtype → the same shape; while tracing float32, as autocast has it on a GPU."""
        if not torch.compiler.is_compiling():
            return super().forward(input)
        grouped = input.float().unflatten(1, (self.num_groups, -1))
        inner = tuple(range(2, grouped.dim()))
        variance, mean = torch.var_mean(grouped, dim=inner, correction=0, keepdim=True)
        normalized = ((grouped - mean) * torch.rsqrt(variance + self.eps)).flatten(1, 2)
        per_channel = (-1, *[1] * (input.dim() - 2))
        return normalized * self.weight.view(per_channel) + self.bias.view(per_channel)


def skip_unit_scales(model: torch.nn.Module) -> None:
    """Spare an eager model its divisions by 1: diffusers divides the output of every residual block by a factor that is
    1 in a UNet2DModel, a pass over the activations and another one over their gradients.

    Not for a model that is compiled: it has them fused with what stands before, and this cannot be traced.
    """
    for block in model.modules():
        if isinstance(block, ResnetBlock2D) and block.output_scale_factor == 1:
            block.output_scale_factor = _Unscaled()


class _Unscaled:
    """A divisor that stands for 1: what is divided by it stays the tensor that it is."""

    def __rtruediv__(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor
