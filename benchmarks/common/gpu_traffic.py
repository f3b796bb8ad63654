"""Bytes that a compiled training step moves through a GPU's memory, counted on the shapes of a model's layers.

Convolutions, matrix products and attention are not in it: these are counted in FLOP. The rest is kernels that read and
write activations, in bf16 and NHWC, with the layers of ddpm/training/layers.py. `PASSES` says how often.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_blocks import UpBlock2D
from diffusers.models.upsampling import Upsample2D

from ddpm.data.emnist import CLASS_NAMES
from ddpm.run.config import TrainConfig
from ddpm.training.model import build_unet, meta_inputs

BF16, FP32 = 2, 4  # bytes of a value

# The compiler sums a tensor by channel in two stages, in kernels of their own, if all its images together have fewer
# channels than this, and each channel more positions (torch/_inductor: Reduction.num_splits; an H100 or H200 has 132
# multiprocessors).
FEW_CHANNELS, MANY_POSITIONS = 64 * 132, 128


@dataclass(frozen=True)
class Passes:
    """How often a kind of work reads or writes the values of a tensor. Below 0: another kind's passes that it saves."""

    tensor: str
    value: int  # bytes
    forward: int
    backward: int
    why: str


PASSES = {
    "norm and SiLU": Passes(
        "input of a GroupNorm", BF16, 3, 5,
        "read for the sums; read and written. Backward: input and gradient read for the sums; both read, one written",
    ),
    "norm of a sum": Passes(
        "input of a norm", BF16, -1, 0, "the kernel that adds the two branches before the norm also forms its sums"
    ),
    "sum of two branches": Passes("output of a block or attention", BF16, 3, 0, "two read, one written"),
    "gradient of the other branch": Passes(
        "input of a block or attention", BF16, 0, 1, "read by the kernel that writes the gradient of the norm's input"
    ),
    "skip connection": Passes(
        "tensor that is kept for an up block", BF16, 1, -1,
        "written once more, into the concatenation. Backward: that part of the concatenation's gradient is not "
        "written, but computed where it is added",
    ),
    "convolution that is a skip connection": Passes(
        "its output", BF16, 1, 0, "no kernel before the norm adds the bias: read or written once more"
    ),
    "downsampling": Passes(
        "its input", BF16, 0, 2, "its gradient is read, that of the skip connection added, and the sum written"
    ),
    "upsampling": Passes(
        "its input", BF16, 3, 5, "written four times instead of once. Backward: four read, one written"
    ),
    "convolution after upsampling": Passes("its output", BF16, 1, 0, "bias added, written into the concatenation"),
    "attention": Passes(
        "its input", BF16, 0, 8,
        "three gradients (of query, key and value) are read twice instead of one; four more are read for biases",
    ),
    "factors of a norm": Passes(
        "channels of each image", FP32, 8, 14, "sums, and the factors made from them, written and read"
    ),
    "bias of a convolution": Passes(
        "channels of each image", FP32, 0, 2, "sum of the gradient, formed where that is written; written and read"
    ),
    "sum over few images": Passes(
        "output of a convolution", BF16, 0, 1, "for the bias, where the kernel that writes the gradient cannot form it"
    ),
    "image": Passes("pixels", BF16, 12, 10, "to eight channels and back: fp32 in, bf16 out"),
    "weights": Passes("weights of convolutions and products", BF16, 3, 3, "fp32 to bf16, and the gradient back"),
    "clipping, AdamW and EMA": Passes(
        "parameters", FP32, 0, 12,
        "the gradient's norm reads 1; AdamW reads 4 and writes 4 (weight, gradient, two moments); the EMA 2 and 1",
    ),
}  # fmt: skip
OPTIMIZER = "clipping, AdamW and EMA"
FIXED = ("weights", OPTIMIZER)  # the same for every batch


@dataclass(frozen=True)
class Traffic:
    """Values of the tensors of each kind of work, in one step."""

    values: dict[str, int]

    def forward(self, *kinds: str) -> int:
        """Bytes of these kinds, or of all but the optimizer's."""
        return sum(self.values[kind] * PASSES[kind].value * PASSES[kind].forward for kind in kinds or self._layers())

    def backward(self, *kinds: str) -> int:
        """Bytes of these kinds, or of all but the optimizer's."""
        return sum(self.values[kind] * PASSES[kind].value * PASSES[kind].backward for kind in kinds or self._layers())

    @property
    def layers(self) -> int:
        """Bytes that forward and backward pass move, which the compiler generates the kernels for."""
        return self.forward() + self.backward()

    @property
    def optimizer(self) -> int:
        """Bytes that clipping, AdamW and EMA move."""
        return self.backward(OPTIMIZER)

    def _layers(self) -> list[str]:
        return [kind for kind in PASSES if kind != OPTIMIZER]


def traffic(config: TrainConfig) -> Traffic:
    """Count the traffic of a step of `batch_size` images, on the device "meta": nothing is computed."""
    unet = build_unet(config, len(CLASS_NAMES), "meta")
    recorder = Recorder(unet, config.batch_size)
    unet(*meta_inputs(config, 1))
    values = recorder.values
    values["image"] = config.resolution**2
    values["weights"] = sum(each.numel() for each in unet.parameters() if each.dim() > 1)
    values[OPTIMIZER] = sum(each.numel() for each in unet.parameters())
    return Traffic({kind: values[kind] * (1 if kind in FIXED else config.batch_size) for kind in PASSES})


class Recorder:
    """Adds up the sizes of the tensors that a model's layers get, by kind of work, while it runs on one image."""

    def __init__(self, unet: UNet2DModel, images: int) -> None:
        self.images = images  # of the batch
        self.values: Counter[str] = Counter()
        self._sums: list[torch.Tensor] = []  # of two branches
        for layer in unet.modules():
            for kind, note in NOTES.items():
                if isinstance(layer, kind):
                    layer.register_forward_hook(
                        lambda layer, inputs, output, note=note: note(self, layer, inputs, output)
                    )
        unet.conv_in.register_forward_hook(lambda layer, inputs, output: self.kept_convolution(layer, inputs, output))

    def norm(self, layer: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        self.values["norm and SiLU"] += inputs[0].numel()
        self.values["factors of a norm"] += inputs[0].shape[1]
        if any(inputs[0] is each for each in self._sums) and not self.summed_apart(inputs[0]):
            self.values["norm of a sum"] += inputs[0].numel()

    def summed_apart(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor [1, C, H, W] is summed by channel in a kernel that only does this."""
        return self.images * tensor.shape[1] < FEW_CHANNELS and tensor[0, 0].numel() > MANY_POSITIONS

    def convolution(self, layer: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        self.values["bias of a convolution"] += output.shape[1]
        if self.summed_apart(output) and layer.kernel_size != (1, 1):  # a shortcut's gradient is that of its block
            self.values["sum over few images"] += output.numel()

    def block(self, layer: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        self.values["sum of two branches"] += output.numel()
        self.values["gradient of the other branch"] += inputs[0].numel()
        self._sums.append(output)

    def attention(self, layer: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        self.block(layer, inputs, output)
        self.values["attention"] += inputs[0].numel()

    def up_block(self, layer: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        self.values["skip connection"] += sum(each.numel() for each in inputs[1])

    def kept_convolution(self, layer: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        self.values["convolution that is a skip connection"] += output.numel()

    def downsampling(self, layer: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        self.values["downsampling"] += inputs[0].numel()
        self.kept_convolution(layer, inputs, output)

    def upsampling(self, layer: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        self.values["upsampling"] += inputs[0].numel()
        self.values["convolution after upsampling"] += output.numel()


NOTES = {
    torch.nn.GroupNorm: Recorder.norm,
    torch.nn.Conv2d: Recorder.convolution,
    ResnetBlock2D: Recorder.block,
    Attention: Recorder.attention,
    UpBlock2D: Recorder.up_block,
    Downsample2D: Recorder.downsampling,
    Upsample2D: Recorder.upsampling,
}
