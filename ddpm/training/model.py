"""The network (diffusers' UNet2DModel), the moving averages of its weights, its cost, and changes for speed."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from torch.utils.flop_counter import FlopCounterMode

from ddpm.run.config import TrainConfig
from ddpm.training.layers import replace_layers
from ddpm.training.seeding import Stream, derive


def build_unet(config: TrainConfig, num_classes: int, device: torch.device | str = "cpu") -> UNet2DModel:
    """A UNet with initial weights that depend on nothing but the settings and their seed. On the device "meta" it has
    shapes only.

    It takes noisy images [B, P², R/P, R/P] in patches (pixel_unshuffle), timesteps [B] and class labels [B] (the
    one after the last class is the null class, "any"), and returns predictions of the same shape.
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
            num_class_embeds=num_classes + 1,
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
        self.live, self._average = as_one_tensor(model), as_one_tensor(self.model)

    def update(self, apply: torch.Tensor) -> None:
        """Average the live weights in if `apply` (0-dim float tensor on the device) is 1; change nothing if it is 0."""
        self._average.lerp_(self.live, (1 - self.decay) * apply)

    def delta_norm(self) -> float:
        """The L2 distance between live and averaged weights."""
        return torch.dist(self.live, self._average).item()


POWER_WIDTHS = {"unet_power_05": 0.05, "unet_power_10": 0.10}  # folder in a checkpoint → relative width, as in EDM2
# Optimizer steps between updates. An update moves nearly as many bytes as AdamW's step: after each it would cost too
# much. The averages reach over hundreds of steps, for which a sample of every 8th is enough.
POWER_EVERY = 8


def power_exponent(width: float) -> float:
    """The exponent γ of the power function whose relative width (standard deviation over length) is `width`, which has
    to be below 12^-0.5 = 0.289 (Karras et al. 2024, arXiv 2312.02696, equation 126)."""
    inverse = width**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


class PowerEMA:
    """Averages of a model's weights with power functions as profiles, one for each of `POWER_WIDTHS`, in copies of the
    model that are never trained. An average of another length can be rebuilt from them (ddpm/sampling/ema_length.py).

    The weights after every `POWER_EVERY`-th step are averaged. After t updates, those of update i count in proportion
    to i^(γ+1) - (i-1)^(γ+1): the profile grows with the run and forgets its beginning (equation 127 in its appendix C).
    """

    def __init__(self, ema: EMA) -> None:
        self.models = {name: copy.deepcopy(ema.model) for name in POWER_WIDTHS}
        self.first_step: int | None = None  # the first step whose weights were offered
        self._live, self._averages = ema.live, [as_one_tensor(model) for model in self.models.values()]
        powers = [power_exponent(width) + 1 for width in POWER_WIDTHS.values()]
        self._powers = torch.tensor(powers, dtype=torch.float64, device=ema.live.device)
        self._updates = torch.zeros((), dtype=torch.float64, device=ema.live.device)

    def update(self, step: int, apply: torch.Tensor) -> None:
        """Average the live weights in if it is the turn of `step` (from 1) and `apply` (0-dim float tensor on the
        device) is 1; change nothing if it is 0."""
        if step % POWER_EVERY:
            return
        if self.first_step is None:
            self.first_step = step
        self._updates += apply
        kept = torch.log1p(-1 / self._updates.clamp(min=1))  # log (1 - 1/t): nothing is kept by the first update
        shares = -torch.expm1(self._powers * kept) * apply
        for average, share in zip(self._averages, shares.float().unbind(), strict=True):
            average.lerp_(self._live, share)

    def state_dict(self) -> dict[str, Any]:
        """All but the averages themselves: the number of updates, float64, and the step of the first."""
        return {"updates": self._updates, "first_step": self.first_step}

    def load_state_dict(self, state: dict[str, Any], averages: dict[str, dict[str, torch.Tensor]]) -> None:
        """Continue from a state and the averaged weights by folder."""
        for name, model in self.models.items():
            model.load_state_dict(averages[name])
        self._updates.copy_(state["updates"])
        self.first_step = state["first_step"]


def count_parameters(model: torch.nn.Module) -> int:
    """The number of values in all parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def flops_per_image(config: TrainConfig) -> float:
    """Floating-point operations (a multiply-add is two) of forward and backward for one image; computes nothing."""
    unet = build_unet(config, 1, "meta")  # more classes are no more operations
    with FlopCounterMode(display=False) as counter:
        unet(*meta_inputs(config, 1)).sample.sum().backward()
    return float(counter.get_total_flops())


def activation_bytes(config: TrainConfig, batch_size: int) -> int:
    """Bytes that autograd keeps between forward and backward of a batch, in fp32."""
    unet, saved = build_unet(config, 1, "meta"), {}
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
