"""What only a GPU can show of speed: compiled graphs, kernels, DDP, memory. Without one these tests are skipped."""

import warnings
from collections.abc import Iterator
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

from benchmarks.common.variants import one_process_group
from benchmarks.kernels import KINDS, figures
from ddpm.run.config import PRESETS, TrainConfig, preset
from ddpm.training.data import Images
from ddpm.training.machine.distributed import DistContext
from ddpm.training.machine.hardware import choose, flop_utilisation
from ddpm.training.model import flops_per_image
from ddpm.training.trainer import Trainer
from tests.conftest import CLASSES, random_images, replace

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

FUSED_LAUNCHES = {"tiny": 319}  # per step, counted in the code that torch.compile generates for an H100


@pytest.fixture
def world() -> DistContext:
    return DistContext(rank=0, local_rank=0, world_size=1, local_world_size=1, device=torch.device("cuda", 0))


@pytest.fixture
def process_group(world: DistContext) -> Iterator[None]:
    with one_process_group(world.device):
        yield


class Steps:
    """A trainer and random images on the GPU, to train on."""

    def __init__(self, config: TrainConfig, world: DistContext) -> None:
        self.config = replace(config, log_every=1000)
        choices = choose(self.config, 47, world.device, flops_per_image(config))
        self.trainer = Trainer(self.config, CLASSES, choices, world)
        images = random_images(config.batch_size)
        self._images = Images(images.pixels.to(world.device), images.labels.to(world.device), images.class_names)
        self._chosen, self._done = torch.arange(config.batch_size, device=world.device), 0

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.trainer.step(self._images, self._chosen, self._done * self.config.batch_size, 1e-4)
            self._done += 1
        torch.cuda.synchronize()

    def seconds(self, steps: int) -> float:
        """Of a step."""
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        self.train(steps)
        ended.record()
        torch.cuda.synchronize()
        return begun.elapsed_time(ended) / 1000 / steps


@pytest.mark.xdist_group("memory")  # one at a time
@pytest.mark.parametrize("name", PRESETS)
def test_a_step_of_each_preset_fits(name: str, world: DistContext, capsys: pytest.CaptureFixture):
    """Not compiled, which takes more memory. Prints what the step takes."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    steps = Steps(preset(name, compile=False), world)
    steps.train(2)
    images_per_sec = steps.config.batch_size / steps.seconds(3)
    mfu = flop_utilisation(flops_per_image(steps.config), images_per_sec, world.device, devices=1)
    with capsys.disabled():
        peak = torch.cuda.max_memory_allocated() / 2**30
        print(f"\n{name}: {images_per_sec:,.0f} images/s, peak {peak:.1f} GB, MFU {mfu or float('nan'):.1%}")
    losses, norms = steps.trainer.record.take()
    assert np.isfinite(losses).all()
    assert np.isfinite(norms).all()


def test_under_ddp_a_compiled_model_has_few_graphs_and_copies_no_gradient(world: DistContext, process_group: None):
    torch._dynamo.reset()
    counters.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*do not match bucket view strides")
        steps = Steps(preset("tiny", compile=True), world)
        steps.train(3)
    assert isinstance(steps.trainer._network, DistributedDataParallel)
    assert counters["aot_autograd"]["total"] <= 3
    buckets = {parameter.grad.untyped_storage().data_ptr() for parameter in gradients(steps)}
    assert len(buckets) <= 3


def gradients(steps: Steps) -> list[torch.nn.Parameter]:
    """The parameters, with the gradients of one more step still in them."""
    trainer = steps.trainer
    trainer.backward(steps._images, steps._chosen, 0)
    return [each for each in trainer.model.parameters() if each.grad is not None]


def test_the_time_limit_of_nccl_is_what_is_asked_for_and_more(world: DistContext, process_group: None):
    replace_world = DistContext(0, 0, 2, 2, world.device)  # with two processes limits are set
    replace_world.expect_answers_within(timedelta(minutes=5))
    limits = [dist.group.WORLD._get_backend(torch.device(kind)).options._timeout for kind in ("cpu", "cuda")]
    assert limits == [timedelta(minutes=5), timedelta(minutes=7)]


def test_ddp_trains_the_weights_that_one_process_trains(world: DistContext, process_group: None):
    config = preset("tiny", compile=False, precision="fp32")
    under_ddp, alone = Steps(config, world), Steps(config, world)
    alone.trainer._network = alone.trainer.model
    for each in (under_ddp, alone):
        each.train(3)
    for a, b in zip(under_ddp.trainer.model.parameters(), alone.trainer.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_compiled_step_runs_the_kernels_that_were_counted_and_copies_no_layout(world: DistContext):
    steps = Steps(preset("tiny", compile=True), world)
    steps.train(3)
    compiled = counters["stats"]["unique_graphs"]
    activity = torch.profiler.ProfilerActivity.CUDA
    with torch.profiler.profile(activities=[activity], acc_events=True) as profiler:
        steps.train(4)
    assert counters["stats"]["unique_graphs"] == compiled, "it was compiled again after the warm-up"
    kinds = figures(profiler, 4, world.device)["kinds"]
    assert set(kinds) <= {*KINDS, "others"}
    assert "layout copies" not in kinds
    assert kinds["fused by the compiler"]["launches"] == pytest.approx(FUSED_LAUNCHES["tiny"], rel=0.1)
