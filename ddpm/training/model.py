"""The network (diffusers' UNet2DModel), the moving average of its weights, its cost, and changes for speed."""

from __future__ import annotations

import copy

import torch
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from torch.utils.flop_counter import FlopCounterMode

from ddpm.run.config import NUM_CLASSES, TrainConfig
from ddpm.training.layers import replace_layers
from ddpm.training.seeding import Stream, derive


def build_unet(config: TrainConfig, device: torch.device | str = "cpu") -> UNet2DModel:
    """A UNet with initial weights that depend on nothing but the settings and their seed. On the device "meta" it has
    shapes only.

    It takes noisy images [B, P², R/P, R/P] in patches (pixel_unshuffle), timesteps [B] and class labels [B] (47 is the
    null class), and returns predictions of the same shape.
    """
    levels, pixels = len(config.block_out_channels), config.patch_size**2
    with torch.random.fork_rng(devices=[]), torch.device("meta" if str(device) == "meta" else "cpu"):
        torch.manual_seed(derive(config.seed, Stream.INIT))
        unet = UNet2DModel(
            sample_size=config.resolution // config.patch_size,
            in_channels=pixels,
            out_channels=pixels,
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            norm_num_groups=config.norm_num_groups,
            add_attention=config.mid_attention,
            resnet_time_scale_shift=config.resnet_time_scale_shift,
            down_block_types=("DownBlock2D",) * levels,
            up_block_types=("UpBlock2D",) * levels,
            num_class_embeds=NUM_CLASSES + 1,
        )
    return unet.to(device)


ALIGNED = 64  # each parameter begins at a multiple of this number of floats, where vector instructions are fastest


def as_one_tensor(model: torch.nn.Module) -> torch.Tensor:
    """Move the parameters (float32) into one tensor. They become views of it, and keep their memory layout.

    Returns:
        That tensor, float32 [values of all parameters, and zeros for alignment]: one operation on it acts on them all.
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
    """The number of values in all parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def flops_per_image(config: TrainConfig) -> float:
    """Floating-point operations (a multiply-add is two) of forward and backward for one image; computes nothing."""
    unet = build_unet(config, "meta")
    with FlopCounterMode(display=False) as counter:
        unet(*meta_inputs(config, 1)).sample.sum().backward()
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
        unet(*meta_inputs(config, 1))
    return batch_size * sum(saved.values())


def meta_inputs(config: TrainConfig, batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images in patches, timesteps and labels for the network, on the device "meta": shapes only."""
    size = config.resolution // config.patch_size
    images = torch.empty(batch, config.patch_size**2, size, size, device="meta")
    numbers = torch.zeros(batch, dtype=torch.long, device="meta")
    return images, numbers, numbers


# ---- speed: with the same results and saved weights, and without changing diffusers' source --------------------------


def set_layout(model: torch.nn.Module, channels_last: bool) -> None:
    """Let a UNet2DModel keep its activations in NHWC if `channels_last`; its parameters stay the same objects."""
    if channels_last:
        model.to(memory_format=torch.channels_last)
        for parameter in model.parameters():
            if parameter.dim() == 4:  # the step above passes over 1×1 kernels, and DDP would copy their gradients
                strides = torch.empty(parameter.shape, device="meta", memory_format=torch.channels_last).stride()
                parameter.data = parameter.data.as_strided(parameter.shape, strides)
        # In training mode diffusers' shortcuts go back to NCHW. Nothing else differs, as there is no dropout.
        model.eval()
    replace_layers(model, channels_last)


def skip_unit_scales(model: torch.nn.Module) -> None:
    """Remove divisions by 1 from a model that is not compiled. diffusers divides the output of every residual block by
    a factor that is 1 in a UNet2DModel, which costs a pass over the activations and one over their gradients.

    Not for a compiled model: there the division is fused and costs nothing, and the replacement cannot be traced.
    """
    for block in model.modules():
        if isinstance(block, ResnetBlock2D) and block.output_scale_factor == 1:
            block.output_scale_factor = _Unscaled()


class _Unscaled:
    """A divisor equal to 1: `tensor / _Unscaled()` is `tensor` itself."""

    def __rtruediv__(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor
