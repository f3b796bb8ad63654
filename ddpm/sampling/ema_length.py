"""An average of the weights of any length, rebuilt after training from the power-function averages of checkpoints.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models" (arXiv 2312.02696), section 3
and appendix C. An average is a weighted sum of the states of the weights that were sampled in training; how much each
counts is its response. A wanted response is approximated by a sum of the stored ones, and the same factors then
combine the stored averages. The length is the relative width: standard deviation of the response over training time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from ddpm.run.errors import RequestError
from ddpm.run.files import why_and_cure
from ddpm.run.format import plural
from ddpm.training.checkpoint import WEIGHTS_NAME, digest_of, read_meta, sound_folders
from ddpm.training.model import POWER_EVERY, POWER_WIDTHS, power_exponent

ROUGH, USELESS = 0.1, 0.3  # errors of the fit that are mentioned, and refused
HELP = "take a length nearer to 0.05 or 0.1, or keep more checkpoints in training (--keep-every)"


def responses(stored: Sequence[tuple[int, float]], updates: int) -> np.ndarray:
    """How much each sampled state of the weights counts in power-function averages: float64 [averages, updates]. They
    are exact for the updates that `PowerEMA` in ddpm/training/model.py makes, and each row sums to 1.

    Args:
        stored: for each average the number of its updates and its relative width.
        updates: the largest of these numbers.
    """
    times = np.arange(updates + 1, dtype=np.float64)
    rows = [np.diff(np.minimum(times / count, 1.0) ** (power_exponent(width) + 1)) for count, width in stored]
    return np.stack(rows)


def solve(stored: Sequence[tuple[int, float]], length: float) -> tuple[np.ndarray, float]:
    """The factors, float64 [averages], with which `stored` averages best make the one of `length` at the latest update,
    by least squares over the responses. Also the fit's error: the L2 norm of the difference over that of the response.

    The factors sum to 1, as an average of weights must; so the last is 1 minus the others. The responses themselves are
    solved for, not their inner products: these would square the condition number.
    """
    updates = max(count for count, _ in stored)
    known, wanted = responses(stored, updates), responses([(updates, length)], updates)[0]
    others, *_ = np.linalg.lstsq((known[:-1] - known[-1]).T, wanted - known[-1], rcond=None)
    factors = np.append(others, 1 - others.sum())
    return factors, float(np.linalg.norm(factors @ known - wanted) / np.linalg.norm(wanted))


@dataclass(frozen=True)
class StoredAverage:
    """A power-function average in a checkpoint."""

    file: Path
    sha256: str | None
    updates: int
    width: float


@dataclass(frozen=True)
class EmaLength:
    """The average of one length, as a sum of stored ones."""

    length: float
    stored: list[StoredAverage]
    factors: np.ndarray  # float64 [averages]
    error: float

    def __str__(self) -> str:
        checkpoints = len({average.file.parents[1] for average in self.stored})
        rough = f"; this is rough: {HELP}" if self.error > ROUGH else ""
        return (
            f"EMA length {self.length:g}, rebuilt from {plural(len(self.stored), 'average')} of "
            f"{plural(checkpoints, 'checkpoint')} with an error of {self.error:.1%}{rough}"
        )

    def weights(self) -> dict[str, torch.Tensor]:
        """The average, float32 by name, on the CPU; summed in float64.

        Raises:
            RequestError: a file of a stored average is damaged or cannot be read.
        """
        total: dict[str, torch.Tensor] = {}
        for average, factor in zip(self.stored, self.factors.tolist(), strict=True):
            try:
                if digest_of(average.file) != average.sha256:
                    raise RequestError(f"{average.file} is missing or damaged: move that checkpoint elsewhere")
                tensors = load_file(average.file)
            except OSError as error:
                raise RequestError(f"{average.file} cannot be read: {why_and_cure(error)}") from error
            for name, tensor in tensors.items():
                part = factor * tensor.double()
                total[name] = total[name] + part if name in total else part
        return {name: tensor.float() for name, tensor in total.items()}


def has_averages(meta: dict[str, Any]) -> bool:
    """Does the checkpoint with this meta.json hold power-function averages, updated at least once?"""
    listed = all(f"{name}/{WEIGHTS_NAME}" in meta["files"] for name in POWER_WIDTHS)
    return listed and bool((meta.get("power_ema") or {}).get("updates"))


def ema_length(folder: Path, meta: dict[str, Any], length: float) -> EmaLength:
    """The average of relative width `length` at the checkpoint `folder`, made of its power-function averages and those
    of all earlier sound checkpoints beside it.

    Args:
        meta: the content of its meta.json.

    Raises:
        RequestError: it has no such averages, or they are too far from this length.
    """
    if not has_averages(meta):
        raise RequestError(
            f"--ema-length: {folder} has no power-function averages; the checkpoints of a run with --power-ema have "
            f"them from step {POWER_EVERY} on, exports do not"
        )
    found = _closest(folder, meta, length)
    if found.error > USELESS:
        raise RequestError(
            f"--ema-length {length:g}: made of the {len(found.stored)} averages there are, it has an error of "
            f"{found.error:.0%}: {HELP}"
        )
    return found


def made_well(folder: Path, meta: dict[str, Any], lengths: Sequence[float]) -> list[EmaLength]:
    """The averages of those `lengths` that the checkpoint `folder` and earlier ones make with a small error."""
    averages = [_closest(folder, meta, length) for length in lengths] if has_averages(meta) else []
    return [average for average in averages if average.error <= ROUGH]


def _closest(folder: Path, meta: dict[str, Any], length: float) -> EmaLength:
    stored = []
    for other, its in [(folder, meta), *((each, read_meta(each)) for each in sound_folders(folder.parent))]:
        earlier = its is meta or _step(its) < _step(meta)
        if earlier and _history(its) == _history(meta) and has_averages(its):
            for name, width in POWER_WIDTHS.items():
                file = f"{name}/{WEIGHTS_NAME}"
                stored.append(StoredAverage(other / file, its["files"][file], its["power_ema"]["updates"], width))
    factors, error = solve([(average.updates, average.width) for average in stored], length)
    return EmaLength(length, stored, factors, error)


def _step(meta: dict[str, Any]) -> int:
    return (meta.get("progress") or {}).get("step", 0)


def _history(meta: dict[str, Any]) -> tuple:
    """Equal for checkpoints whose averages are of the same states of the weights, up to the earlier one."""
    return meta.get("run"), meta.get("identity"), (meta.get("power_ema") or {}).get("first_step")
