"""Is a training state worth continuing from? Decided when a checkpoint is written, and kept in its meta.json.

A state is unsound if its weights or the optimizer's moments are not finite or have blown up, if its validation loss is
not finite or has blown up, or if steps are being skipped because gradients are not finite. It is written all the same,
but `latest` and `best` never point at it, and it never displaces a sound checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ddpm.run.metrics import LOSS_MEAN, VAL_LOSS, VAL_LOSS_EMA

BLOWN_LOSS = 3.0  # a network that always answers zero has a loss of about 1, both for noise and for velocity
BLOWN_FACTOR = 3.0  # validation and training loss over the best so far; overfitting raises only the first
BLOWN_NORM = 10.0  # norm of the live weights over that of their average, which follows a blow-up only slowly
FEWEST_STEPS = 8  # fp16 begins with a few skipped steps, until the scale of the loss fits


def skipping(skipped: Sequence[bool]) -> str | None:
    """Why a state is unsound after these steps; None if it is not.

    Args:
        skipped: for each of the latest steps: was it skipped, as its gradient was not finite?
    """
    if len(skipped) < FEWEST_STEPS or 2 * sum(skipped) < len(skipped):
        return None
    return f"{sum(skipped)} of the last {len(skipped)} steps were skipped, as their gradients were not finite"


def blown_up(losses: Mapping[str, float | None], earlier: Iterable[Mapping[str, Any]]) -> str | None:
    """Why a state with these losses is unsound; None if it is not.

    Args:
        losses: `loss_mean` and, where it was measured, `val_loss` and `val_loss_ema`; None stands for not finite.
        earlier: the rows of the epochs before.
    """
    for name, loss in losses.items():
        if loss is None or not math.isfinite(loss):
            return f"{name} is not finite"
    for name, loss in losses.items():
        if loss > BLOWN_LOSS and name != VAL_LOSS_EMA.name:  # the average may still be near its random beginning
            return f"{name} is {loss:.4g}, where always answering zero gives about 1"
    ratios = {}
    earlier = list(earlier)
    for name in losses.keys() & {LOSS_MEAN.name, VAL_LOSS.name}:
        before = [row[name] for row in earlier if row.get(name)]
        ratios[name] = losses[name] / min(before, default=math.inf)
    if ratios and min(ratios.values()) > BLOWN_FACTOR:
        return "; ".join(f"{name} is {ratio:.1f} times its best so far" for name, ratio in sorted(ratios.items()))
    return None


def broken(state: Mapping[str, Any], averages: Mapping[str, Mapping[str, torch.Tensor]]) -> str | None:
    """Why the tensors of a checkpoint, in host memory, are unsound; None if they are not.

    Args:
        state: as `Trainer.state_dict` gives it; what it lacks is not judged.
        averages: averaged weights by folder, `unet` (EMA) among them.
    """
    live = state.get("model", {})
    moments = {
        f"{name}.{index}": moment
        for index, parameter in state.get("optimizer", {}).get("state", {}).items()
        for name, moment in parameter.items()
        if isinstance(moment, torch.Tensor)
    }
    for what, tensors in {"weights": live, "the optimizer's moments": moments, **averages}.items():
        bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not _finite(tensor)]
        if bad:
            return f"{what} are not finite in {len(bad)} of {len(tensors)} tensors, such as {bad[0]}"
    norm, averaged = (_norm(weights.values()) for weights in (live, averages["unet"]))
    if norm > BLOWN_NORM * averaged:
        return f"the weights have blown up: their norm is {norm:.4g}, that of their average {averaged:.4g}"
    return None


def _finite(tensor: torch.Tensor) -> bool:
    """Are all values finite? Needs no tensor of bools: a sum of float32 in float64 is finite only if all values are."""
    return math.isfinite(tensor.sum(dtype=torch.float64).item())


def _norm(tensors: Iterable[torch.Tensor]) -> float:
    """The L2 norm of all values together."""
    return math.hypot(*(torch.linalg.vector_norm(tensor.double()).item() for tensor in tensors))
