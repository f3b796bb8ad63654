"""Our step without one of the changes that make it fast on a GPU, with one that may make it faster there, with one
that several processes need, or with another optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
import torch.distributed as dist

from ddpm.training import compilation, layers, model

NAMES = (
    "ours under DDP",
    "ours fusing less",
    "ours, norms derived",
    "ours, one channel",
    "ours, no own layers",
    "ours, sums in registers",
    "ours, CUDA graphs",
    "ours with Muon",
)
OPTIONS = {  # of the compiler, beside those that training gives it
    "ours, sums in registers": {"triton.persistent_reductions": True},
    "ours, CUDA graphs": {"triton.cudagraphs": True},  # their memory is missing in the peak
}
SETTINGS = {"ours with Muon": {"optimizer": "muon"}}  # of the run


@contextmanager
def variant(name: str, device: torch.device) -> Iterator[None]:
    """What of the project is changed while a side of that name trains; nothing for another name."""
    if name == "ours under DDP":
        with one_process_group(device):
            yield
    elif name == "ours fusing less":
        with patch.object(compilation, "FUSE_MORE", {}):
            yield
    elif name == "ours, norms derived":
        with patch.object(layers.GroupNorm, "forward", derived_group_norm):
            yield
    elif name == "ours, one channel":
        with patch.object(layers, "FAST_CHANNELS", 1):
            yield
    elif name == "ours, no own layers":
        with (
            patch.object(compilation, "FUSE_MORE", {}),
            patch.object(compilation, "SUM_IN_LOOPS", {}),
            patch.object(model, "replace_layers", only_norms),
        ):
            yield
    elif name in OPTIONS:
        with patch.dict(compilation.SUM_IN_LOOPS, OPTIONS[name]):
            yield
    else:
        yield


@contextmanager
def one_process_group(device: torch.device) -> Iterator[None]:
    """A process group of this process alone, as the processes of a run have one."""
    on_gpu = device.type == "cuda"
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo", store=dist.HashStore(), rank=0, world_size=1,
        device_id=device if on_gpu else None,
    )  # fmt: skip
    try:
        yield
    finally:
        dist.destroy_process_group()


def derived_group_norm(self: torch.nn.GroupNorm, input: torch.Tensor) -> torch.Tensor:
    """GroupNorm as arithmetic whose gradient autograd derives."""
    grouped = input.float().unflatten(1, (self.num_groups, -1))
    variance, mean = torch.var_mean(grouped, dim=tuple(range(2, grouped.dim())), correction=0, keepdim=True)
    normalized = ((grouped - mean) * torch.rsqrt(variance + self.eps)).flatten(1, 2)
    per_channel = (-1, *[1] * (input.dim() - 2))
    return normalized * self.weight.view(per_channel) + self.bias.view(per_channel)


class DerivedGroupNorm(torch.nn.GroupNorm):
    forward = derived_group_norm


def only_norms(network: torch.nn.Module, channels_last: bool) -> None:
    """Let the norms be arithmetic with a derived gradient, and the other layers torch's and diffusers'."""
    for layer in network.modules():
        if type(layer) is torch.nn.GroupNorm:
            layer.__class__ = DerivedGroupNorm
