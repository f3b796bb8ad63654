"""The network as the step calls it: compiled, and with gradients that are averaged over the processes."""

from __future__ import annotations

import math
import os
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ddpm.training.layers import cache_keys
from ddpm.training.machine.compiler import set_caches

# Inductor writes an intermediate result to memory if many operations, or operations on many tensors, lead to it. With
# its defaults (30, 4, 8) that happens all along the backward pass of GroupNorm and SiLU: twice the bytes in all.
FUSE_MORE = {"realize_opcount_threshold": 400, "realize_reads_threshold": 32, "realize_acc_reads_threshold": 64}
# By default a kernel that sums few values, such as those of 7 × 7 positions, holds all of them in registers. On an H200
# loops make a step of `small` shorter, and leave one of `large` as long (docs/speed.md).
SUM_IN_LOOPS = {"triton.persistent_reductions": False}


def compiled(model: torch.nn.Module) -> torch.nn.Module:
    """The model compiled separately for each batch shape, which is faster than one version for all shapes."""
    return torch.compile(model, **_options())


def compile_in_place(model: torch.nn.Module) -> None:
    """Let the model itself be compiled like that, when it is called."""
    model.compile(**_options())


def _options() -> dict[str, Any]:
    set_caches()
    # A run on a CPU may change its threads, up to all cores; after so many versions torch would compile no more.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 2 * (os.cpu_count() or 1))
    # diffusers reads torch's version while it is traced, which is harmless: the version stays the same
    warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`-wrapped function")
    return {
        "dynamic": False,
        "options": {
            **FUSE_MORE,
            **SUM_IN_LOOPS,
            "unsafe_marked_cacheable_functions": cache_keys(),  # else a start with filled caches traces all again
            "cpp.dynamic_threads": True,  # a run may change their number
        },
    }


def cut_at_buckets(network: DistributedDataParallel) -> DistributedDataParallel:
    """Let torch.compile cut the model into as many graphs as DDP has buckets of gradients, not one per parameter.

    It ends a graph where the parameters in it fill a bucket, so that the exchange of one overlaps with the backward
    pass of the next. For the size of a parameter it takes that of its storage, and here all parameters share one (EMA).
    Each graph then gets as many parameters as a bucket holds on average, except the first and the last, which are
    smaller. Call it before the first forward pass.
    """
    parameters = list(network.parameters())
    size = parameters[0].untyped_storage().nbytes()
    graphs = max(1, size // network.bucket_bytes_cap - 1)
    network.bucket_bytes_cap = math.ceil(len(parameters) / graphs) * size  # read by the compiler only: DDP has its own
    return network


def averaging(network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """The network, whose backward pass averages the gradients over the processes, if there is a group of them."""
    if not dist.is_initialized():
        return network
    device_ids = [device.index] if device.type == "cuda" else None
    return cut_at_buckets(DistributedDataParallel(network, device_ids=device_ids, gradient_as_bucket_view=True))
