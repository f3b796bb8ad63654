"""The model that is trained is diffusers' own, made faster: the same results from less work."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table
from torch.fx import GraphModule, Node

from ddpm.run.config import TrainConfig
from ddpm.training.model import build_unet, meta_inputs, set_layout, skip_unit_scales
from tests.conftest import replace

aten = torch.ops.aten


def inputs(config: TrainConfig) -> tuple[Tensor, Tensor, Tensor]:
    noisy = torch.randn(meta_inputs(config, 2)[0].shape, generator=torch.Generator().manual_seed(0))
    return noisy, torch.tensor([1, 9]), torch.tensor([3, 47])


def gradients(model: torch.nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters()]


def operations(work: Callable) -> Counter:
    with torch.profiler.profile() as profile:
        work()
    return Counter({each.key: each.count for each in profile.key_averages()})


@pytest.mark.parametrize("channels_last", [False, True])
def test_an_eager_model_computes_the_same_without_its_divisions_by_one(small, channels_last: bool):
    plain, ours = build_unet(small, 47), build_unet(small, 47)
    set_layout(ours, channels_last)
    skip_unit_scales(ours)
    for model in (plain, ours):
        model(*inputs(small)).sample.square().mean().backward()
    torch.testing.assert_close(ours(*inputs(small)).sample, plain(*inputs(small)).sample)
    torch.testing.assert_close(gradients(ours), gradients(plain), rtol=1e-4, atol=1e-6)
    assert ours.config == plain.config
    assert ours.state_dict().keys() == plain.state_dict().keys()
    blocks = sum(isinstance(each, ResnetBlock2D) for each in plain.modules())
    divisions = [operations(lambda model=model: model(*inputs(small)))["aten::div"] for model in (plain, ours)]
    assert divisions[0] - divisions[1] == blocks


def norm_of_a_gpu(input: Tensor, *rest) -> tuple[Tensor, Tensor, Tensor]:
    """torch's GroupNorm as it is traced on a GPU: over a copy in NCHW."""
    return torch._refs.native_group_norm(input.contiguous(), *rest)


def traced(model: torch.nn.Module, config: TrainConfig) -> list[GraphModule]:
    """What torch.compile hands to its code generator for a GPU: the graphs of forward and backward."""
    graphs = []

    def keep(graph: GraphModule, _: list) -> Callable:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    backend = aot_autograd(
        fw_compiler=keep, bw_compiler=keep, partition_fn=min_cut_rematerialization_partition,
        decompositions={**select_decomp_table(), aten.native_group_norm.default: norm_of_a_gpu},
    )  # fmt: skip
    torch._dynamo.reset()
    with torch.autocast("cpu", torch.bfloat16):
        compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=False)
        compiled(*inputs(config), return_dict=False)[0].float().square().mean().backward()
    return graphs


def in_nchw(node: Node) -> bool:
    value = node.meta["val"]
    return value.is_contiguous() and not value.is_contiguous(memory_format=torch.channels_last)


def test_a_compiled_model_is_one_graph_in_which_activations_stay_in_nhwc(small):
    small = replace(small, mid_attention=True)
    as_it_comes, ours = build_unet(small, 47).to(memory_format=torch.channels_last), build_unet(small, 47)
    set_layout(ours, channels_last=True)
    for model, stay in ((as_it_comes, False), (ours, True)):
        forward, backward = traced(model, small)
        read = [node.args[0] for node in forward.graph.nodes if node.target is aten.convolution.default]
        read += [node.args[1] for node in backward.graph.nodes if node.target is aten.convolution_backward.default]
        assert len(read) > 40
        assert (sum(map(in_nchw, read)) == 0) is stay


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_traced_norm_is_a_norm(small, channels_last: bool):
    plain, ours = build_unet(small, 47), build_unet(small, 47)
    set_layout(ours, channels_last)
    torch._dynamo.reset()
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True, dynamic=False)
    for model in (plain, compiled):
        model(*inputs(small)).sample.square().mean().backward()
    torch.testing.assert_close(compiled(*inputs(small)).sample, plain(*inputs(small)).sample)
    torch.testing.assert_close(gradients(ours), gradients(plain), rtol=1e-4, atol=1e-6)
    assert ours.state_dict().keys() == plain.state_dict().keys()
