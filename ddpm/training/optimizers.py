"""The optimizers: AdamW, and Muon for hidden layers with AdamW for the rest.

Muon: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon. It moves a matrix of weights along the nearest
matrix with orthonormal rows (or columns) to its momentum: equally far in every direction that the gradients agree on,
where AdamW mostly follows the few that dominate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ddpm.run.config import TrainConfig

MOMENTUM = 0.95
NAMES = {"adamw": "AdamW", "muon": "Muon, and AdamW for what is not hidden"}
HIDDEN = 7.0  # the learning rate of hidden layers over that of AdamW: 0.02 and 3e-3 are the usual ones of the two
FIRST_AND_LAST = ("conv_in.", "conv_out.", "class_embedding.")  # between pixels or classes and hidden channels
QUINTIC = (3.4445, -4.7750, 2.0315)  # five rounds of it take singular values from 0.003 to 1 near 1 (Jordan et al.)
ROUNDS = 5


def make_optimizer(config: TrainConfig, model: torch.nn.Module, dtype: torch.dtype) -> torch.optim.AdamW:
    """The optimizer of `--optimizer`. Its state numbers the parameters in the model's order.

    Args:
        dtype: of the network's matrix products, and so of Muon's.
    """
    settings = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "muon":
        return Muon(model, dtype=torch.bfloat16 if dtype == torch.bfloat16 else torch.float32, **settings)
    return torch.optim.AdamW(model.parameters(), fused=True, **settings)


def state_values(config: TrainConfig, model: torch.nn.Module) -> int:
    """The number of values in the optimizer's state: two moments of each parameter, one where Muon moves it."""
    muon = config.optimizer == "muon"
    return sum(
        parameter.numel() * (1 if muon and is_hidden(name, parameter) else 2)
        for name, parameter in model.named_parameters()
    )


def is_hidden(name: str, parameter: torch.Tensor) -> bool:
    """Is a parameter of a UNet2DModel the weight of a hidden convolution or linear layer?"""
    return parameter.dim() > 1 and not name.startswith(FIRST_AND_LAST)


class Muon(torch.optim.AdamW):
    """Muon for the weights of hidden convolutions and linear layers, fused AdamW for the other parameters.

    As fused AdamW, it divides gradients by `grad_scale`, and changes nothing where `found_inf` is 1: tensors on the
    device, for which no step waits. All weights of the same shape are computed together.
    """

    def __init__(self, model: torch.nn.Module, *, lr: float, weight_decay: float, dtype: torch.dtype) -> None:
        super().__init__(model.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
        self._dtype = dtype
        by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if is_hidden(name, parameter):
                by_shape.setdefault(as_matrix(parameter).shape, []).append(parameter)
        self._hidden = [(each, as_matrix(each[0]).new_zeros(len(each), *shape)) for shape, each in by_shape.items()]
        self._steps = self._hidden[0][1].new_zeros(())  # that were not skipped
        self._share_momenta()

    def _share_momenta(self) -> None:
        """Let the momentum of each hidden weight be its part of the momenta of that shape, shaped as the weight."""
        for parameters, momenta in self._hidden:
            for parameter, part in zip(parameters, momenta, strict=True):
                momentum = part.as_strided(parameter.shape, parameter.stride(), part.storage_offset())
                self.state[parameter] = {"step": self._steps, "momentum": momentum}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Update the weights. The gradients of hidden ones are freed."""
        (group,) = self.param_groups
        rate, decay = group["lr"], group["lr"] * group["weight_decay"]
        keep = 1 - getattr(self, "found_inf", torch.zeros_like(self._steps))
        scale = getattr(self, "grad_scale", None)
        self._steps += keep
        for parameters, momenta in self._hidden:
            _, rows, columns = momenta.shape
            gradients = torch.stack([as_matrix(parameter.grad) for parameter in parameters])
            if scale is not None:
                gradients /= scale
            gradients = torch.where(keep > 0, gradients, 0)
            momenta.lerp_(gradients, (1 - MOMENTUM) * keep)
            steps = orthonormal(gradients.lerp_(momenta, MOMENTUM), self._dtype)
            weights = [as_matrix(parameter) for parameter in parameters]
            torch._foreach_mul_(weights, 1 - decay * keep)
            torch._foreach_add_(weights, (steps * (-rate * HIDDEN * max(1, rows / columns) ** 0.5 * keep)).unbind())
            for parameter in parameters:
                parameter.grad = None  # AdamW passes over parameters without a gradient
        super().step(closure)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state of `state_dict()`, from a run with the same parameters."""
        super().load_state_dict(state_dict)
        for parameters, momenta in self._hidden:
            for parameter, momentum in zip(parameters, momenta, strict=True):
                loaded = torch.empty_like(parameter, requires_grad=False).copy_(self.state[parameter]["momentum"])
                momentum.copy_(as_matrix(loaded))
                self._steps.copy_(self.state[parameter]["step"])
        self._share_momenta()


def as_matrix(weights: torch.Tensor) -> torch.Tensor:
    """Weights [out, in, k, k] or [out, in], or gradients of them, as a matrix [out, in·k·k] without copying them.

    Its columns are in the order in which NHWC weights lie in memory. Muon is the same for any order of them.
    """
    weights = weights.detach()
    if weights.dim() == 4 and weights.is_contiguous(memory_format=torch.channels_last):
        weights = weights.permute(0, 2, 3, 1)
    return weights.flatten(1)


def orthonormal(matrices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """U Vᵀ of each matrix U S Vᵀ, but for singular values of about 0.7 to 1.2 in the place of ones.

    Args:
        matrices: float32 [N, rows, columns].
        dtype: of the products.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)  # no singular value is above 1 then
    a, b, c = QUINTIC
    for _ in range(ROUNDS):  # Newton-Schulz: a X + b (X Xᵀ) X + c (X Xᵀ)² X
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)
