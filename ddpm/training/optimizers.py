"""The optimizers: AdamW, and Muon for hidden layers with AdamW for the rest.

Muon: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon. It moves a matrix of weights along the nearest
matrix with orthonormal rows (or columns) to its momentum: equally far in every direction that the gradients agree on,
where AdamW mostly follows the few that dominate. So weights grow in every direction, unless weight decay limits them
(Liu et al. 2025, https://arxiv.org/abs/2502.16982): with steps of 1 × lr, to singular values of 1 / decay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ddpm.run.config import TrainConfig

MOMENTUM = 0.95
NAMES = {"adamw": "AdamW", "muon": "Muon, and AdamW for what is not hidden"}
HIDDEN = 7.0  # the learning rate of hidden layers over that of AdamW: 0.02 and 3e-3 are the usual ones of the two
FIRST_AND_LAST = ("conv_in.", "conv_out.", "class_embedding.")  # between pixels or classes and hidden channels
QUINTIC = (3.4445, -4.7750, 2.0315)  # five rounds of it take singular values from 0.003 to 1 near 1 (Jordan et al.)
ROUNDS = 5
A_GROUP = 3e7  # multiplications that take as long as the dozens of small operations of another group


def make_optimizer(config: TrainConfig, model: torch.nn.Module, dtype: torch.dtype) -> torch.optim.AdamW:
    """The optimizer of `--optimizer`. Its state numbers the parameters in the model's order.

    Args:
        dtype: of the network's matrix products. Muon's are in bf16 too if these are, else in fp32.
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


class Group(NamedTuple):
    """Weights that Muon updates together, as matrices of equal size: narrower ones are filled up with zero columns."""

    parameters: list[torch.nn.Parameter]
    weights: list[torch.Tensor]  # the same memory, as `wide` gives it
    momenta: torch.Tensor  # float32 [N, rows, columns]
    factors: torch.Tensor  # on the steps of each, float32 [N, 1, 1]

    def parts(self, together: torch.Tensor) -> list[torch.Tensor]:
        """The part of [N, rows, columns] that belongs to each weight."""
        return [part[:, : matrix.shape[1]] for part, matrix in zip(together, self.weights, strict=True)]


class Muon(torch.optim.AdamW):
    """Muon for the weights of hidden convolutions and linear layers, fused AdamW for the other parameters.

    As fused AdamW, it divides gradients by `grad_scale`, and changes nothing where `found_inf` is 1: tensors on the
    device, for which no step waits.
    """

    def __init__(self, model: torch.nn.Module, *, lr: float, weight_decay: float, dtype: torch.dtype) -> None:
        super().__init__(model.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
        self._dtype = dtype
        self._groups = in_groups([each for name, each in model.named_parameters() if is_hidden(name, each)])
        self._steps = self._groups[0].momenta.new_zeros(())  # that were not skipped
        self._share_momenta()

    def _share_momenta(self) -> None:
        """Let the momentum of each hidden weight be its part of the momenta of its group, shaped as the weight."""
        for group in self._groups:
            for parameter, part in zip(group.parameters, group.parts(group.momenta), strict=True):
                self.state[parameter] = {"step": self._steps, "momentum": as_weights(part, parameter)}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Update the weights. The gradients of hidden ones are freed."""
        (settings,) = self.param_groups
        rate = HIDDEN * settings["lr"]
        keep = 1 - getattr(self, "found_inf", torch.zeros_like(self._steps))
        scale = getattr(self, "grad_scale", None)
        self._steps += keep
        for group in self._groups:
            gradients = torch.zeros_like(group.momenta)
            torch._foreach_copy_(group.parts(gradients), [wide(parameter.grad) for parameter in group.parameters])
            if scale is not None:
                gradients /= scale
            gradients.nan_to_num_(0, 0, 0)  # of a skipped step, which changes nothing as long as all is finite
            group.momenta.lerp_(gradients, (1 - MOMENTUM) * keep)
            steps = orthonormal(gradients.lerp_(group.momenta, MOMENTUM), self._dtype)
            steps *= group.factors * (-rate * keep)
            torch._foreach_mul_(group.weights, 1 - rate * settings["weight_decay"] * keep)
            torch._foreach_add_(group.weights, group.parts(steps))
            for parameter in group.parameters:
                parameter.grad = None  # AdamW passes over parameters without a gradient
        super().step(closure)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state of `state_dict()`, from a run with the same parameters."""
        super().load_state_dict(state_dict)
        for group in self._groups:
            for parameter, part in zip(group.parameters, group.parts(group.momenta), strict=True):
                loaded = torch.empty_like(parameter, requires_grad=False).copy_(self.state[parameter]["momentum"])
                part.copy_(wide(loaded))
                self._steps.copy_(self.state[parameter]["step"])
        self._share_momenta()


def in_groups(parameters: list[torch.nn.Parameter]) -> list[Group]:
    """Hidden weights in groups by the shape of their matrices.

    A shape joins a wider one with the same number of rows if multiplying the zeros that this adds takes less time than
    the operations of another group.
    """
    by_shape: dict[tuple[int, int], list[torch.nn.Parameter]] = {}
    for parameter in parameters:
        by_shape.setdefault(tuple(wide(parameter).shape), []).append(parameter)
    groups: dict[tuple[int, int], list[torch.nn.Parameter]] = {}
    for rows, columns in sorted(by_shape, reverse=True):
        joined = min((shape for shape in groups if shape[0] == rows), default=None)
        added = joined and len(by_shape[rows, columns]) * 2 * ROUNDS * rows**2 * (joined[1] - columns)
        shape = joined if joined and added < A_GROUP else (rows, columns)
        groups.setdefault(shape, []).extend(by_shape[rows, columns])
    made = []
    for shape, those in groups.items():
        sizes = [as_matrix(each).shape for each in those]
        factors = torch.tensor([max(1, rows / columns) ** 0.5 for rows, columns in sizes], device=those[0].device)
        momenta = those[0].new_zeros(len(those), *shape)
        made.append(Group(those, [wide(each) for each in those], momenta, factors.view(-1, 1, 1)))
    return made


def as_matrix(weights: torch.Tensor) -> torch.Tensor:
    """Weights [out, in, k, k] or [out, in], or gradients of them, as a matrix [out, in·k·k] without copying them.

    Its columns are in the order in which NHWC weights lie in memory. Muon is the same for any order of them.
    """
    weights = weights.detach()
    if weights.dim() == 4 and weights.is_contiguous(memory_format=torch.channels_last):
        weights = weights.permute(0, 2, 3, 1)
    return weights.flatten(1)


def wide(weights: torch.Tensor) -> torch.Tensor:
    """The matrix of `as_matrix`, transposed if it has more rows than columns."""
    matrix = as_matrix(weights)
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix


def as_weights(matrix: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A matrix of the form of `wide(parameter)`, seen in the shape of the parameter."""
    if matrix.shape[0] != len(parameter):
        matrix = matrix.mT
    if parameter.dim() == 2:
        return matrix
    _, channels, *kernel = parameter.shape
    if parameter.is_contiguous(memory_format=torch.channels_last):
        return matrix.unflatten(1, (*kernel, channels)).permute(0, 3, 1, 2)
    return matrix.unflatten(1, (channels, *kernel))


def orthonormal(matrices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """U Vᵀ of each matrix U S Vᵀ, but for singular values of about 0.7 to 1.2 in the place of ones.

    Args:
        matrices: float32 [N, rows, columns], with no more rows than columns.
        dtype: of the products.
    """
    x = (matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)  # no singular value is above 1 then
    a, b, c = QUINTIC
    for _ in range(ROUNDS):  # Newton-Schulz: a X + b (X Xᵀ) X + c (X Xᵀ)² X
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.to(matrices.dtype)
