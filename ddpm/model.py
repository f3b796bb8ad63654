"""The network (diffusers' UNet2DModel), the moving average of its weights, and what it costs."""

from __future__ import annotations

import copy

import torch
from diffusers import UNet2DModel
from torch.utils.flop_counter import FlopCounterMode

from ddpm.config import NUM_CLASSES, TrainConfig
from ddpm.seeding import Stream, derive


def build_unet(config: TrainConfig, device: torch.device | str = "cpu") -> UNet2DModel:
    """A UNet with fresh weights, which follow from `config.seed` alone.

    Takes noisy images [B, 1, R, R], timesteps [B] and class labels [B] (47 is the null class); returns [B, 1, R, R].
    """
    levels = len(config.block_out_channels)
    with torch.random.fork_rng(devices=[]), torch.device("meta" if str(device) == "meta" else "cpu"):
        torch.manual_seed(derive(config.seed, Stream.INIT))
        unet = UNet2DModel(
            sample_size=config.resolution,
            in_channels=1,
            out_channels=1,
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            norm_num_groups=config.norm_num_groups,
            add_attention=config.mid_attention,
            down_block_types=("DownBlock2D",) * levels,
            up_block_types=("UpBlock2D",) * levels,
            num_class_embeds=NUM_CLASSES + 1,
        )
    return unet.to(device)


ALIGNED = 64  # floats between the beginnings of two parameters: a multiple of it, as vector instructions like


def as_one_tensor(model: torch.nn.Module) -> torch.Tensor:
    """Move the parameters (float32) into one tensor, of which they become views in the layout that they have.

    What is done to all of them alike is then one operation on what this returns: float32 [at least their number].
    """
    parameters = list(model.parameters())
    sizes = [-(-parameter.numel() // ALIGNED) * ALIGNED for parameter in parameters]
    whole = torch.zeros(sum(sizes), device=parameters[0].device)
    for parameter, part in zip(parameters, whole.split(sizes), strict=True):
        parameter.data = part.as_strided(parameter.size(), parameter.stride()).copy_(parameter.data)
    return whole


class EMA:
    """An exponential moving average of a model's weights, in a copy of the model that is never trained.

    The parameters of both become views of one tensor each.
    """

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self._live, self._average = as_one_tensor(model), as_one_tensor(self.model)

    def update(self, apply: torch.Tensor) -> None:
        """Average the live weights in if `apply` (0-dim float tensor on the device) is 1; change nothing if it is 0."""
        self._average.lerp_(self._live, (1 - self.decay) * apply)

    def delta_norm(self) -> float:
        """The L2 distance between live and averaged weights."""
        return torch.dist(self._live, self._average).item()


def count_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def flops_per_image(config: TrainConfig) -> float:
    """Floating-point operations (a multiply-add is two) of forward and backward for one image, counted on no device."""
    unet = build_unet(config, "meta")
    with FlopCounterMode(display=False) as counter:
        unet(*_meta_inputs(config, 1)).sample.sum().backward()
    return float(counter.get_total_flops())


def activation_bytes(config: TrainConfig, batch_size: int) -> int:
    """Bytes that autograd keeps between forward and backward of a batch, in fp32."""
    unet, saved = build_unet(config, "meta"), {}
    weights = {id(parameter) for parameter in unet.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in weights:
            saved[id(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
        kept.append(tensor)  # ids are only distinct while the tensors live
        return tensor

    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        unet(*_meta_inputs(config, 1))
    return batch_size * sum(saved.values())


def _meta_inputs(config: TrainConfig, batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    images = torch.empty(batch, 1, config.resolution, config.resolution, device="meta")
    numbers = torch.zeros(batch, dtype=torch.long, device="meta")
    return images, numbers, numbers
