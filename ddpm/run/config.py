"""The settings of a run: one frozen dataclass, its presets and its rules.

The command line, `--help` and the table of flags are made from it; ddpm/run/arguments.py reads them.

    python -m ddpm.run.config      the table of flags
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ddpm.run.cli import flag
from ddpm.run.errors import RequestError
from ddpm.run.metrics import names
from ddpm.run.paths import LONGEST_NAME, PROJECT_ROOT, name_taken
from ddpm.run.program import run_program

NUM_CLASSES = 47
NULL_CLASS = NUM_CLASSES  # the label that stands for "no label" (classifier-free guidance)

SELECTABLE = names(selectable=True)  # the figures that a user can choose by
EVALUATED = names(group="quality")  # measured by --eval-every
START_ONLY = ("config", "download", "dry_run", "resume")  # settings that are asked of one start
NO_RECIPE = (*START_ONLY, "run_name", "output_root", "target", "baseline", "wandb")  # say nothing of what is trained

PresetName = Literal["tiny", "small", "medium", "large", "xl"]


@dataclass(frozen=True)
class TrainConfig:
    """Train a class-conditional diffusion model (DDPM) of handwritten characters on EMNIST Balanced."""

    preset: PresetName = "large"
    """Size of model, resolution and batch; sets the defaults of the flags below. tiny learns on two CPU cores."""
    data: Literal["emnist", "glyphs"] = "emnist"
    """EMNIST Balanced, or the embedded set of characters drawn from fonts (needs no download)."""
    data_root: Path = PROJECT_ROOT / "data"
    """Folder that holds EMNIST/raw/ (emnist) or glyphs/ (drawn on first use)."""
    download: bool = False
    """Fetch EMNIST into --data-root if it is not there."""

    resolution: int = 96
    """Height and width of the images, in pixels; divisible by 2^(levels - 1)."""
    block_out_channels: tuple[int, ...] = (96, 192, 384, 384)
    """Channels of the UNet's levels, from full resolution down; each level halves the resolution."""
    layers_per_block: int = 2
    """Residual blocks per level of the UNet."""
    norm_num_groups: int = 32
    """Groups of each GroupNorm; divides every entry of --block-out-channels."""
    mid_attention: bool = True
    """Self-attention at the lowest resolution."""

    epochs: int = 100
    """Passes over the training images."""
    max_steps: int | None = None
    """Stop after this many optimizer steps, even within an epoch."""
    batch_size: int = 96
    """Images per process in one forward pass; the global batch is this times processes times --grad-accum."""
    grad_accum: int = 1
    """Forward passes whose gradients are added up to one optimizer step."""
    seed: int = 0
    """Data order, noise, timesteps, label dropout and initial weights follow from it."""

    lr: float = 1e-4
    """Peak learning rate of AdamW."""
    scale_lr: bool = False
    """Multiply --lr by the global batch over the preset's --batch-size (Goyal et al. 2017)."""
    lr_schedule: Literal["constant", "cosine", "cosine_restarts", "step"] = "constant"
    """Learning rate after warm-up: constant, half a cosine to zero at the last step, several of them, or in steps."""
    lr_cycles: int = 4
    """Cosines of cosine_restarts, of equal length (Loshchilov & Hutter 2017)."""
    lr_step_epochs: float = 30.0
    """Epochs between the steps of the step schedule."""
    lr_step_factor: float = 0.1
    """What each step of the step schedule multiplies the learning rate by."""
    warmup_steps: int = 0
    """Optimizer steps over which the learning rate rises linearly from zero."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    grad_clip: float = 1.0
    """Largest L2 norm of the gradient; larger ones are scaled down to it. 0 turns clipping off."""
    ema_decay: float = 0.999
    """Decay per step of the exponential moving average of the weights, in [0, 1)."""
    swa_start_epoch: int = 0
    """From the end of this epoch on, also average the weights at the end of each (Izmailov et al. 2018). 0: never."""
    early_stop_patience: int = 0
    """End the run when --early-stop-metric has not improved for so many epochs. 0: train to the end."""
    early_stop_metric: Literal[SELECTABLE] = "val_loss_ema"
    """The column of training_metrics.csv that --early-stop-patience watches."""
    min_delta: float = 0.0
    """What counts as an improvement: better than the best by more than this."""

    diffusion_steps: int = 600
    """Noise levels of the forward process."""
    beta_schedule: Literal["squaredcos_cap_v2", "linear", "scaled_linear"] = "squaredcos_cap_v2"
    """Noise schedule, by its diffusers name; squaredcos_cap_v2 is the cosine, the others scale with 1000 / steps."""
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    """What the network predicts: the noise, or the velocity (Salimans & Ho 2022)."""
    timestep_sampling: Literal["uniform", "stratified"] = "uniform"
    """Timesteps drawn independently, or one from each of as many equal bands as the global batch has images."""
    timestep_power: float = 1.0
    """Draw timesteps as u^p with u even in [0, 1): below 1 there are more noisy ones, above 1 fewer."""
    loss_weighting: Literal["none", "min_snr"] = "none"
    """none: every timestep's error counts alike. min_snr: by min(SNR, 5), as of clean images (Hang et al. 2023)."""
    cfg_dropout_prob: float = 0.1
    """Probability that a label is replaced by the null class, for classifier-free guidance."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if one is granted or there (refused if it cannot be used), else the CPU. cpu: the CPU is meant."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Autocast type of forward and backward; auto takes bf16 where the device has it, else fp16 (GPU) or fp32."""
    compile: bool | None = None
    """torch.compile the model, or --no-compile; left out, it is used on CUDA devices."""
    channels_last: bool | None = None
    """Keep activations in NHWC memory order, or --no-channels-last; left out, it is used on CUDA devices."""
    deterministic: bool = False
    """Only deterministic GPU kernels, so that a resumed run is bit-identical there too; slower. CPUs always are."""

    run_name: str | None = None
    """Name of the run and its folders; left out, it is built from the settings."""
    output_root: Path = PROJECT_ROOT
    """Folder under which checkpoints/, metrics/output/ and logs/ are written."""
    resume: str = "auto"
    """auto continues the run of this name if it has a checkpoint; never starts afresh; else a checkpoint folder."""
    log_every: int = 50
    """Steps between progress lines; the host waits for the device only then."""
    val_every: int = 1
    """Epochs between validations. 0 turns validation off."""
    val_images: int | None = None
    """At most this many test images are used for validation. Left out: 2000, or what a CPU can do in about a minute."""
    eval_every: int | None = None
    """Epochs between evaluations of drawn characters (RCA, Fréchet distance). 0: none. Left out: 10, 0 on a CPU."""
    sample_every: int = 10
    """Epochs between sample grids; one is always drawn at the end. 0: only at the end."""
    samples_per_class: int | None = None
    """Characters per class in a sample grid, 0 for no grids. Left out: 8, or what a CPU can draw in about a minute."""
    sample_steps: int = 50
    """DDIM steps of the sample grids."""
    guidance_scale: float = 2.0
    """Classifier-free guidance of the sample grids: 1 is none, larger is more typical and less varied."""
    checkpoint_every: int = 1
    """Epochs between checkpoints; one is always written at the end."""
    checkpoint_minutes: float = 15.0
    """Also write one at the first progress line after this many minutes without, within an epoch too. 0: never."""
    best_by: Literal["val_loss", "rca", "fid_features"] = "val_loss"
    """What `best` is chosen by: the validation loss of the EMA weights, or a figure of --eval-every."""
    keep_last: int = 3
    """How many of the newest checkpoints are kept. The best one is always kept."""
    keep_every: int = 0
    """Save the checkpoint of every N-th epoch and keep it for good. 0: none."""
    export: bool = True
    """At the end, make checkpoints/<run>/export/: a folder that diffusers loads, with pictures and a model card."""
    hang_minutes: float = 10.0
    """Give up when a process has not answered the others for so long; starting and compiling may take 30 minutes."""
    target: str | None = None
    """A figure to reach, such as val_loss=0.004; training_log.md tells how far it is. Training goes on all the same."""
    baseline: str | None = None
    """A run of the same --output-root that training_log.md compares this one with."""
    wandb: bool = False
    """Log to Weights & Biases too, if the package wandb is installed."""
    config: Path | None = None
    """A YAML or JSON file of settings, such as a run's training_metrics.json; flags that are typed go before it."""
    dry_run: bool = False
    """Print the resolved settings and what the run would need, then exit."""

    def __post_init__(self) -> None:
        for mistake in mistakes(self):
            raise RequestError(mistake)

    @property
    def model_name(self) -> str:
        """The recipe in words, as the reference run names it; glyphs are never called balanced."""
        split = "balanced" if self.data == "emnist" else self.data
        cfg = "cfg" if self.cfg_dropout_prob > 0 else "nocfg"
        schedule = "cosine" if self.beta_schedule == "squaredcos_cap_v2" else self.beta_schedule
        ema = "ema" if self.ema_decay > 0 else "noema"
        return f"{split}_{cfg}_{schedule}_{ema}_{self.diffusion_steps}_steps"

    @property
    def run(self) -> str:
        """The run's name: `--run-name`, else built from the settings."""
        return self.run_name or f"{self.model_name}_{self.preset}"

    @property
    def usual_batch(self) -> int:
        """The preset's batch on one process: what `--lr` is meant for, as `--scale-lr` has it."""
        return PRESETS[self.preset].get("batch_size", TrainConfig.batch_size)

    @property
    def images_per_step(self) -> int:
        """Images that one process contributes to each optimizer step."""
        return self.batch_size * self.grad_accum

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON can hold them."""
        return {name: _plain(value) for name, value in dataclasses.asdict(self).items()}


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(
        resolution=28, batch_size=32, block_out_channels=(16, 32, 64), layers_per_block=1, norm_num_groups=8,
        mid_attention=False, epochs=6, lr=3e-3, lr_schedule="cosine", warmup_steps=100, ema_decay=0.995,
        prediction_type="v_prediction", timestep_sampling="stratified", timestep_power=0.45, sample_steps=20,
        val_images=500, sample_every=3, samples_per_class=8,
    ),
    "small": dict(resolution=28, batch_size=2048, block_out_channels=(64, 128, 256)),
    "medium": dict(resolution=64, batch_size=384, block_out_channels=(64, 128, 256, 256)),
    "large": dict(resolution=96, batch_size=96, block_out_channels=(96, 192, 384, 384)),
    "xl": dict(resolution=128, batch_size=32, block_out_channels=(128, 256, 512, 512)),
}  # fmt: skip


def preset(name: str, **changes: Any) -> TrainConfig:
    """The settings of the preset `name`, with `changes`.

    Raises:
        RequestError: there is no such preset, or a setting is out of range.
    """
    if name not in PRESETS:
        raise RequestError(f"--preset {name}: no such preset; there are {', '.join(PRESETS)}")
    return TrainConfig(**{"preset": name, **PRESETS[name], **changes})


def data_words(name: str) -> str:
    """What the data set of `--data` is called where people read it; glyphs are never taken for EMNIST."""
    return "EMNIST Balanced" if name == "emnist" else "embedded glyphs, not EMNIST"


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


# ---- rules -----------------------------------------------------------------------------------------------------------

BOUNDS = {  # smallest value → settings
    1: "epochs max_steps batch_size grad_accum log_every checkpoint_every keep_last sample_steps val_images "
    "resolution layers_per_block norm_num_groups lr_cycles",
    0: "val_every eval_every sample_every samples_per_class keep_every warmup_steps seed weight_decay "
    "grad_clip guidance_scale checkpoint_minutes swa_start_epoch early_stop_patience min_delta",
}
EXAMPLES = {  # what must be above 0 and finite → a value that is
    "lr": "1e-4", "timestep_power": "0.6 (1 for even timesteps)", "hang_minutes": "10", "lr_step_epochs": "30",
}  # fmt: skip
USUAL_EVAL_EVERY = 10  # epochs, where --eval-every is left out and an evaluation is wanted
BETAS = 1e-4, 0.02  # the first and last of linear and scaled_linear at 1000 steps (Ho et al. 2020)


def mistakes(config: TrainConfig) -> Iterator[str]:
    """What is wrong with the settings, a line each; nothing if all is well."""
    for bound, settings in BOUNDS.items():
        for name in settings.split():
            value = getattr(config, name)
            if value is not None and not bound <= value < math.inf:
                yield f"{flag(name)} {value}: must be {bound} or more"
    for name, example in EXAMPLES.items():
        if not 0 < getattr(config, name) < math.inf:
            yield f"{flag(name)} {getattr(config, name)}: must be above 0 and finite, such as {example}"
    for broken, message in (*_of_training(config), *_of_the_model(config), *_of_names(config)):
        if broken:
            yield message


def beta_range(config: TrainConfig) -> tuple[float, float] | None:
    """The first and last beta of a linear or scaled_linear schedule; None for a schedule that has none to choose.

    They are those of 1000 steps times 1000 / steps, so that any number of steps ends in noise (Dhariwal & Nichol 2021,
    guided-diffusion `get_named_beta_schedule`). As they are, 100 steps would leave 0.60 of the signal.
    """
    if config.beta_schedule == "squaredcos_cap_v2":
        return None
    scale = 1000 / max(config.diffusion_steps, 1)
    return scale * BETAS[0], scale * BETAS[1]


def _of_training(config: TrainConfig) -> list[tuple[bool, str]]:
    """Rules as (is it broken, what to say then)."""
    watched, patience = config.early_stop_metric, config.early_stop_patience > 0
    target = (parse_target(config.target or "") or ("",))[0]
    measured_every = 1 if watched == "loss_mean" else config.val_every
    if watched in EVALUATED:
        measured_every = USUAL_EVAL_EVERY if config.eval_every is None else config.eval_every
    return [
        (not 0 <= config.ema_decay < 1, f"--ema-decay {config.ema_decay}: must lie in [0, 1), such as 0.999"),
        (not 0 <= config.cfg_dropout_prob <= 1, f"--cfg-dropout-prob {config.cfg_dropout_prob}: must lie in [0, 1]"),
        (not 0 < config.lr_step_factor <= 1, f"--lr-step-factor {config.lr_step_factor}: must lie in (0, 1]"),
        (config.diffusion_steps < 2, f"--diffusion-steps {config.diffusion_steps}: must be 2 or more"),
        (
            config.sample_steps > config.diffusion_steps,
            f"--sample-steps {config.sample_steps}: must be at most --diffusion-steps, {config.diffusion_steps}",
        ),
        (
            config.best_by in EVALUATED and config.eval_every == 0,
            f"--best-by {config.best_by} is measured by evaluations: give --eval-every 1 or more",
        ),
        (
            patience and watched in EVALUATED and config.eval_every == 0,
            f"--early-stop-metric {watched} is measured by evaluations: give --eval-every 1 or more",
        ),
        (
            patience and watched.startswith("val_loss") and config.val_every == 0,
            f"--early-stop-metric {watched} is measured by validation: give --val-every 1 or more",
        ),
        (
            patience and watched == "val_loss_swa" and not config.swa_start_epoch,
            "--early-stop-metric val_loss_swa needs an average of weights: give --swa-start-epoch",
        ),
        (
            patience and config.early_stop_patience < measured_every,
            f"--early-stop-patience {config.early_stop_patience}: {watched} is measured every {measured_every} epochs "
            f"only; give {measured_every} or more",
        ),
        (
            target in EVALUATED and config.eval_every == 0,
            f"--target {config.target}: {target} is measured by evaluations: give --eval-every 1 or more",
        ),
        (
            target.startswith("val_loss") and config.val_every == 0,
            f"--target {config.target}: {target} is measured by validation: give --val-every 1 or more",
        ),
        (
            target == "val_loss_swa" and not config.swa_start_epoch,
            f"--target {config.target}: it needs an average of weights: give --swa-start-epoch",
        ),
        (
            config.lr_schedule == "step" and config.lr_step_epochs >= config.epochs,
            f"--lr-step-epochs {config.lr_step_epochs:g}: the run ends before its first step, after epoch "
            f"{config.epochs}",
        ),
        (
            (beta_range(config) or BETAS)[1] >= 1,
            f"--diffusion-steps {config.diffusion_steps}: too few for --beta-schedule {config.beta_schedule}, the last "
            f"beta would not be below 1: give more than {1000 * BETAS[1]:g}, or --beta-schedule squaredcos_cap_v2",
        ),
        (
            config.swa_start_epoch > config.epochs,
            f"--swa-start-epoch {config.swa_start_epoch}: the run ends before, after epoch {config.epochs}",
        ),
    ]


def _of_the_model(config: TrainConfig) -> list[tuple[bool, str]]:
    levels = len(config.block_out_channels)
    factor = 2 ** max(levels - 1, 0)
    return [
        (
            min(config.block_out_channels, default=0) < 1,
            "--block-out-channels: give one or more widths, such as 64 128 256",
        ),
        (
            config.resolution % factor != 0,
            f"--resolution {config.resolution} cannot be halved {levels - 1} times, as the {levels} levels of "
            f"--block-out-channels ask for: take a multiple of {factor}, or fewer levels",
        ),
        (
            any(width % max(config.norm_num_groups, 1) for width in config.block_out_channels),
            f"--norm-num-groups {config.norm_num_groups}: must divide every width of --block-out-channels",
        ),
    ]


def _of_names(config: TrainConfig) -> list[tuple[bool, str]]:
    name = config.run_name or ""
    return [
        (
            config.run_name is not None and not re.fullmatch(r"[A-Za-z0-9][\w.+=-]*", config.run_name),
            f"--run-name {config.run_name}: use letters, digits and . _ + = - only, a letter or digit first",
        ),
        (name_taken(name) is not None, f"--run-name {name}: {name_taken(name)}; take another name"),
        (
            len(name.encode()) > LONGEST_NAME,
            f"--run-name {name[:20]}…: {len(name.encode())} bytes; take at most {LONGEST_NAME}",
        ),
        (
            config.baseline is not None and config.baseline == config.run,
            f"--baseline {config.baseline}: that is this run itself; name another",
        ),
        (
            config.target is not None and parse_target(config.target) is None,
            f"--target {config.target}: give one of {', '.join(SELECTABLE)}, = and a number, such as val_loss=0.004",
        ),
    ]


def without_effect(config: TrainConfig, usual: TrainConfig) -> Iterator[str]:
    """Settings that were asked for and change nothing, a line each. They may be meant: a plan shares them among runs.

    Args:
        usual: the preset's settings.
    """
    grids = config.samples_per_class != 0
    needs = {  # settings → (do they do something?, what they need)
        "lr_cycles": (config.lr_schedule == "cosine_restarts", "--lr-schedule cosine_restarts"),
        "lr_step_epochs lr_step_factor": (config.lr_schedule == "step", "--lr-schedule step"),
        "early_stop_metric min_delta": (config.early_stop_patience > 0, "--early-stop-patience"),
        "sample_every": (grids, "--samples-per-class 1 or more"),
        "sample_steps guidance_scale": (grids or config.eval_every != 0, "--samples-per-class or --eval-every"),
        "val_images": (config.val_every > 0, "--val-every 1 or more"),
        "download": (config.data == "emnist", "--data emnist"),
        "keep_every": (config.keep_every <= config.epochs, f"{config.keep_every} epochs or more"),
    }
    for settings, (effective, need) in needs.items():
        for name in () if effective else settings.split():
            if getattr(config, name) != getattr(usual, name):
                yield f"{flag(name)} {getattr(config, name)} does nothing without {need}"
    if config.best_by == "val_loss" and config.val_every == 0:
        yield "without validation (--val-every 0) no checkpoint is called the best"
    if config.cfg_dropout_prob == 0 and config.guidance_scale != 1 and (grids or config.eval_every != 0):
        yield (f"--guidance-scale {config.guidance_scale:g} asks what the model draws without a label, which it never "
               "learns with --cfg-dropout-prob 0: give --guidance-scale 1")  # fmt: skip


def parse_target(text: str) -> tuple[str, float] | None:
    """`val_loss=0.004` → the column and its value; None if it is not one."""
    name, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        return None
    return (name, number) if name in SELECTABLE and math.isfinite(number) else None


# ---- the table of flags ----------------------------------------------------------------------------------------------


def field_help() -> dict[str, str]:
    """What each field's docstring says, by field name."""
    body = ast.parse(inspect.getsource(TrainConfig)).body[0].body
    pairs = itertools.pairwise(body)
    return {
        field.target.id: doc.value.value
        for field, doc in pairs
        if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr)
    }


def markdown_table() -> str:
    """Every flag, its default and its meaning, as the Markdown table of README."""
    rows = ["| flag | default (large) | meaning |", "|---|---|---|"]
    defaults = dataclasses.asdict(TrainConfig(data_root=Path("data"), output_root=Path(".")))
    for name, text in field_help().items():
        value = defaults[name]
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else "–" if value is None else value
        rows.append(f"| `{flag(name)}` | {shown} | {text} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(run_program(lambda: print(markdown_table())))
