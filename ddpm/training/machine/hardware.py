"""What the device can do, and the settings that are chosen for it. Every choice is logged with its reason."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ddpm.data.classes import MOST_SHOWN
from ddpm.run.config import TrainConfig
from ddpm.run.config.rules import EVALUATED, USUAL_EVAL_EVERY, USUAL_VAL_IMAGES, asked_of, parse_target
from ddpm.training.machine import compiler

# Dense bf16/fp16 tensor-core peaks in TFLOP/s, from NVIDIA's data sheets, by words in the GPU's name; the first match
# counts. A GPU that is not here gets no MFU rather than a guess.
PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200 NVL": 835.0,
    "H200": 989.0,
    "GH200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "A40": 149.7,
    "A30": 165.0,
    "A10": 125.0,
    "RTX 6000 Ada": 364.2,
    "RTX A6000": 154.8,
    "V100-PCIE": 112.0,
    "V100": 125.0,
    "T4": 65.0,
}

ASKED = "set by flag or preset"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


SMALL_NETWORK = 0.5e9  # FLOP per image, forward and backward: a CPU spends much of a step between the convolutions
MANY_STEPS = 2000  # of such a network, in which compiling it on a CPU saves more than the half minute that it takes
CPU_BUDGET = 20e12  # FLOP that a validation or a sample grid may take on a CPU: about a minute on two cores


@dataclass(frozen=True)
class Choices:
    """The settings as they are used on this device, and why."""

    precision: str
    compile: bool
    channels_last: bool
    val_images: int
    samples_per_class: int
    eval_every: int
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]

    def values(self) -> dict[str, Any]:
        """The settings, without the reasons."""
        return {name: value for name, value in vars(self).items() if name != "reasons"}

    def for_test_images(self, number: int) -> Choices:
        """With the number of images that validation really has, where the test split has fewer than were chosen."""
        if number >= self.val_images:
            return self
        return replace(self, val_images=number, reasons=self.reasons | {"val_images": "all test images"})

    def in_words(self) -> dict[str, str]:
        """Setting → value and reason."""
        return {name: f"{getattr(self, name)} ({reason})" for name, reason in self.reasons.items()}


def choose(
    config: TrainConfig,
    num_classes: int,
    device: torch.device,
    flops_per_image: float,
    gather: Callable[[object], list] = lambda value: [value],
    steps: int = 0,
) -> Choices:
    """Choose what the settings leave open: precision, compilation, memory layout, how much to validate, draw and
    evaluate.

    Args:
        flops_per_image: of forward and backward.
        gather: returns the values of all processes, on every process. Left out: a single process.
        steps: optimizer steps of the whole run; compiling pays in a long one.

    Raises:
        RequestError: compilation is asked for and cannot work.
    """
    precision = _agreed_precision(config.precision, device, gather)
    picked = {
        "precision": precision,
        "compile": _compilation(config.compile, device, gather, flops_per_image, steps),
        "channels_last": _channels_last_pays(device, precision[0]),
        "val_images": _affordable(USUAL_VAL_IMAGES, 2 * flops_per_image / 3, device),  # two models, forward only
        "samples_per_class": _affordable(
            8, min(num_classes, MOST_SHOWN) * config.sample_steps * 2 * flops_per_image / 3, device, at_least=0
        ),
        "eval_every": _evaluation_pays(config, device),
    }
    for name in picked:
        if name != "precision" and getattr(config, name) is not None:
            picked[name] = getattr(config, name), ASKED
    values = {name: value for name, (value, _) in picked.items()}
    return Choices(**values, reasons={name: reason for name, (_, reason) in picked.items()})


def pick_precision(name: str, device: torch.device) -> tuple[str, str]:
    """The autocast type (bf16, fp16 or fp32) for a value of `--precision` on the device, and why."""
    if name != "auto":
        return name, ASKED
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "the GPU has bf16"
        return "fp16", "the GPU has no bf16; fp16 with loss scaling"
    if torch.cpu._is_avx512_bf16_supported():
        return "bf16", "the CPU has AVX512-BF16"
    return "fp32", "the CPU has no bf16 arithmetic"


def _agreed_precision(name: str, device: torch.device, gather: Callable[[object], list]) -> tuple[str, str]:
    """The same for all processes: those on CPUs may have different ones, which their names do not tell."""
    mine = pick_precision(name, device)
    if len(set(gather(mine[0]))) > 1:
        return "fp32", "not every process's CPU has bf16 arithmetic"
    return mine


def set_up(device: torch.device, deterministic: bool) -> None:
    """Set torch up for speed. On a GPU: TF32 in fp32 products, and cuDNN times its algorithms; if `deterministic`, only
    algorithms whose results repeat. On a CPU: freed memory is kept."""
    if device.type != "cuda":
        keep_freed_memory()
        return
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = not deterministic  # pays, as shapes are fixed; the choice differs from run to run
    torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)


def keep_freed_memory() -> None:
    """Let the process keep the memory that it frees. glibc hands large blocks back to the system, and a tenth of every
    step on a CPU would go into getting the same pages again, zeroed. With another C library this does nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)  # never


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"


def gpu_uuid(device: torch.device) -> str | None:
    """The UUID by which NVML knows the GPU, whatever CUDA_VISIBLE_DEVICES says; None on a CPU."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None


def peak_flops(device: torch.device) -> float | None:
    """The device's dense half-precision peak in FLOP/s, or None where it is not known, as of a slice of a GPU (MIG)."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    if re.search(r"\bMIG\b", name):
        return None
    return next((tflops * 1e12 for known, tflops in PEAK_TFLOPS.items() if re.search(rf"\b{known}\b", name)), None)


def flop_utilisation(flops_per_image: float, images_per_sec: float, device: torch.device, devices: int) -> float | None:
    """The share of the devices' peak that the model's arithmetic takes (MFU), or None where the peak is not known."""
    peak = peak_flops(device)
    return flops_per_image * images_per_sec / (peak * devices) if peak else None


def memory_mb(device: torch.device) -> list[float]:
    """[allocated, reserved, peak] memory of the GPU in MB (2^20 bytes); NaN on a CPU."""
    if device.type != "cuda":
        return [float("nan")] * 3
    used = torch.cuda.memory_allocated, torch.cuda.memory_reserved, torch.cuda.max_memory_allocated
    return [count(device) / 2**20 for count in used]


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all work that was issued to it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _affordable(usual: int, flops: float, device: torch.device, at_least: int = 20) -> tuple[int, str]:
    """How many units of work of `flops` each to do, and why: the usual number, or what `CPU_BUDGET` allows on a CPU."""
    affordable = max(at_least, int(CPU_BUDGET / flops))
    if device.type == "cuda" or affordable >= usual:
        return usual, "the usual number"
    return affordable, f"a CPU takes long: {round(flops / 1e12, 2):,} TFLOP each"


def _evaluation_pays(config: TrainConfig, device: torch.device) -> tuple[int, str]:
    """The default of `--eval-every` (0: never), and why."""
    if device.type == "cuda":
        return USUAL_EVAL_EVERY, "takes seconds on a GPU"
    if config.best_by in EVALUATED:
        return USUAL_EVAL_EVERY, "--best-by needs it"
    if config.early_stop_patience and config.early_stop_metric in EVALUATED:
        return USUAL_EVAL_EVERY, "--early-stop-metric needs it"
    if config.lr_schedule == "plateau" and config.plateau_metric in EVALUATED:
        return USUAL_EVAL_EVERY, "--plateau-metric needs it"
    if config.target and parse_target(config.target)[0] in EVALUATED:
        return USUAL_EVAL_EVERY, "--target needs it"
    if any(name in EVALUATED for name in asked_of(config.parsed_criteria).values()):
        return USUAL_EVAL_EVERY, "a criterion needs it"
    return 0, "takes minutes on a CPU"


def _channels_last_pays(device: torch.device, precision: str) -> tuple[bool, str]:
    if device.type == "cuda" and precision != "fp32":
        return True, "tensor cores work in NHWC"
    return False, "NCHW is faster here"


def _compilation(
    asked: bool | None, device: torch.device, gather: Callable[[object], list], flops_per_image: float, steps: int
) -> tuple[bool, str]:
    """Whether to compile, and why: where all processes can, and it is asked for or pays."""
    if asked is False:
        return False, ASKED
    on_gpu = device.type == "cuda"
    if asked is None and not on_gpu and (flops_per_image > SMALL_NETWORK or steps < MANY_STEPS):
        return False, "not worth its start-up time on a CPU"
    lacks = next(filter(None, gather(compiler.lacking(device))), None)
    if lacks and asked:
        raise compiler.refusal(lacks)
    if lacks:
        return False, lacks
    return True, "CUDA with Triton" if on_gpu else f"a small network, and {steps:,} steps"
