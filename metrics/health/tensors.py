"""The figures of every tensor of a checkpoint. Only formats that are safe to load are read."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ddpm.run.errors import RequestError
from ddpm.run.files import open_regular
from ddpm.training.checkpoint import STATE, WEIGHTS_NAME
from metrics.health.thresholds import Thresholds

CLASSES = "class_embedding.weight"


@dataclass(frozen=True)
class TensorFigures:
    """One tensor of the live weights. `growth` is its root mean square over that of its initial draw, None where that
    is zero; `dead` the share of its output channels that are next to zero; `ema_distance` the norm of EMA minus live
    over the norm of live; `moment`, `moment_sq` the largest absolute moments of the optimizer (Muon has no square)."""

    name: str
    shape: list[int]
    numbers: int
    nan: int
    inf: int
    norm: float
    largest: float
    std: float
    growth: float | None
    dead: float | None
    ema_distance: float | None = None
    moment: float | None = None
    moment_sq: float | None = None
    moments_bad: int = 0  # numbers of the moments that are not finite, or squares below zero

    @property
    def peak(self) -> float:
        """The largest weight over the root mean square: how far a single one stands out."""
        return self.largest * math.sqrt(self.numbers) / self.norm if self.norm else 0.0


@dataclass(frozen=True)
class Weights:
    """Figures of a checkpoint's weights and optimizer; `averages` maps a folder (unet is EMA) to its bad tensors."""

    step: int
    tensors: list[TensorFigures]
    averages: dict[str, dict[str, str]]
    ema_distance: float | None  # of all tensors together
    live_norm: float
    optimizer_steps: int | None
    class_rows: list[float] = field(default_factory=list)  # norms of the class embedding's rows

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_weights(folder: Path, limits: Thresholds) -> Weights:
    """The figures of every tensor in the checkpoint `folder`.

    Raises:
        RequestError: a file of it is missing or is no safe file of tensors; the message names it.
    """
    try:
        open_regular(folder / STATE).close()
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True, mmap=True)
        live, moments, step = state["model"], state["optimizer"]["state"], state["progress"]["step"]
        files = sorted(folder.glob(f"unet*/{WEIGHTS_NAME}"))
        averages = {path.parent.name: load_file(path) for path in files}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, EOFError, SafetensorError) as error:
        raise RequestError(
            f"{folder}: its weights cannot be read ({_first_line(error)}); give another --checkpoint"
        ) from error
    except Exception as error:  # what torch raises for an unsafe pickle depends on its version
        raise RequestError(
            f"{folder / STATE} is not a training state that is safe to load ({_first_line(error)}); give another "
            "--checkpoint"
        ) from error
    ema = averages.get("unet", {})
    # the optimizer numbers the parameters in the model's order, which is that of its state
    tensors = [
        _figures(name, tensor, ema.get(name), moments.get(index, {}), limits)
        for index, (name, tensor) in enumerate(live.items())
    ]
    bad = {where: _bad_tensors(weights, live) for where, weights in averages.items()}
    counts = [int(entry["step"]) for entry in moments.values() if "step" in entry]
    known = [t for t in tensors if t.ema_distance is not None]
    norm = math.hypot(*(t.norm for t in tensors))
    distance = math.hypot(*(t.ema_distance * t.norm for t in known)) / norm if known and norm else None
    classes = live.get(CLASSES)
    rows = [] if classes is None else classes.float().norm(dim=1).tolist()
    return Weights(int(step), tensors, bad, distance, norm, max(counts, default=None), rows)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [repr(error)])[0]


def _figures(
    name: str, tensor: torch.Tensor, ema: torch.Tensor | None, moments: dict[str, Any], limits: Thresholds
) -> TensorFigures:
    values = tensor.float()
    nan, inf = int(values.isnan().sum()), int(values.isinf().sum())
    finite = values[values.isfinite()] if nan or inf else values.flatten()
    norm = float(torch.linalg.vector_norm(finite))
    rms, first = norm / math.sqrt(max(finite.numel(), 1)), _initial_rms(name, tensor)
    figures: dict[str, Any] = {}
    if ema is not None and ema.shape == tensor.shape and norm and not (nan or inf):
        figures["ema_distance"] = float(torch.linalg.vector_norm(ema.float() - values)) / norm
    if "exp_avg" in moments:
        average, square = moments["exp_avg"].float(), moments["exp_avg_sq"].float()
        figures["moment"], figures["moment_sq"] = float(average.abs().max()), float(square.max())
        figures["moments_bad"] = int((~average.isfinite()).sum() + (~square.isfinite() | (square < 0)).sum())
    elif "momentum" in moments:  # of Muon, which has no squares
        momentum = moments["momentum"].float()
        figures["moment"], figures["moments_bad"] = float(momentum.abs().max()), int((~momentum.isfinite()).sum())
    return TensorFigures(
        name,
        list(tensor.shape),
        tensor.numel(),
        nan,
        inf,
        norm,
        float(finite.abs().max()) if finite.numel() else 0.0,
        float(finite.std(correction=0)) if finite.numel() else 0.0,
        rms / first if first else None,
        _dead(values, limits),
        **figures,
    )


def _initial_rms(name: str, tensor: torch.Tensor) -> float | None:
    """The root mean square of the initial draw: 1 for embeddings and GroupNorm's scales, else PyTorch's for linear and
    convolutional layers, uniform in ±1/√fan_in; None for biases, which are small or zero."""
    if name.endswith("bias"):
        return None
    if tensor.dim() < 2 or "class_embedding" in name:
        return 1.0
    return 1 / math.sqrt(3 * tensor[0].numel())


def _dead(values: torch.Tensor, limits: Thresholds) -> float | None:
    """The share of output channels (dimension 0) whose weights are next to zero, beside the median channel's."""
    if values.dim() < 2 or len(values) < 2:
        return None
    norms = values.flatten(1).norm(dim=1)
    return float((norms <= limits.dead_channel * norms.nanmedian()).float().mean())


def _bad_tensors(weights: dict[str, torch.Tensor], live: dict[str, torch.Tensor]) -> dict[str, str]:
    """What is wrong with averaged weights, by tensor."""
    bad = dict.fromkeys(live.keys() - weights.keys(), "missing")
    for name, tensor in weights.items():
        nan, inf = int(tensor.isnan().sum()), int(tensor.isinf().sum())
        if nan or inf:
            bad[name] = f"{nan:,} NaN, {inf:,} Inf of {tensor.numel():,}"
        elif name not in live or live[name].shape != tensor.shape:
            bad[name] = "not of the live model's shape"
    return bad
