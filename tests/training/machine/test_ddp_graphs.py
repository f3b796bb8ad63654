"""A compiled model under DistributedDataParallel falls into as many graphs as there are buckets of gradients.

torch.compile makes the cuts before it generates code for any device, so they can be counted without a GPU.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from torch.fx import GraphModule
from torch.nn.parallel import DistributedDataParallel

from ddpm.run.config import PRESETS, preset
from ddpm.training.compilation import cut_at_buckets
from ddpm.training.model import EMA, build_unet, set_layout

SIDE = 32  # pixels; the graphs are the same at any resolution


@pytest.fixture
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def graphs_and_buckets(name: str, wrap: Callable[[DistributedDataParallel], torch.nn.Module]) -> tuple[int, int]:
    """The graphs that the model of a preset is compiled to, and the buckets in which its gradients are exchanged."""
    graphs = []

    def backend(graph: GraphModule, _: list) -> Callable:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model = build_unet(preset(name, resolution=SIDE), 47)
    set_layout(model, channels_last=True)
    EMA(model, decay=0.999)  # makes all parameters views of one tensor
    network = torch.compile(model, backend=backend, dynamic=False)
    network = DistributedDataParallel(network, gradient_as_bucket_view=True)
    cap = network.bucket_bytes_cap
    limits = [dist._DEFAULT_FIRST_BUCKET_BYTES, cap]
    buckets, _ = dist._compute_bucket_assignment_by_size(list(model.parameters())[::-1], limits)
    wrap(network)(
        torch.randn(1, model.config.in_channels, SIDE, SIDE), torch.tensor([1]), class_labels=torch.tensor([3])
    )
    return len(graphs), len(buckets)


@pytest.mark.parametrize("name", PRESETS)
def test_a_compiled_model_has_no_more_graphs_than_buckets(name: str, process_group: None):
    graphs, buckets = graphs_and_buckets(name, cut_at_buckets)
    assert 1 <= graphs <= buckets
    if name == "tiny":
        assert graphs < graphs_and_buckets(name, lambda network: network)[0], "torch would cut at every parameter"
