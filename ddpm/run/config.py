"""The settings of a run: one frozen dataclass, its presets and its rules.

The command line (ddpm/run/arguments.py), `--help` and the table of flags are made from the dataclass.

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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ddpm.run.cli import flag
from ddpm.run.criteria import Criterion, parse_criteria
from ddpm.run.datasets import UNEQUAL, DataName, Invert, SplitName, published_name
from ddpm.run.errors import RequestError
from ddpm.run.files import plain
from ddpm.run.metrics import DASH, VAL_LOSS, VAL_LOSS_SWA, names
from ddpm.run.paths import LONGEST_NAME, PROJECT_ROOT, name_taken
from ddpm.run.program import run_program

SELECTABLE = names(selectable=True)  # the figures that a user can choose by
EVALUATED = names(group="quality")  # measured by --eval-every
START_ONLY = ("config", "criteria", "download", "dry_run", "find_batch_size", "resume")  # asked of one start
NO_RECIPE = (  # say nothing of what is trained
    *START_ONLY, "run_name", "data_root", "output_root", "target", "baseline", "wandb", "power_ema",
    "criterion", "problem", "why", "expect", "note",
)  # fmt: skip

PresetName = Literal["tiny", "small", "medium", "large", "xl"]
RecipeName = Literal["reference", "fast"]


@dataclass(frozen=True)
class TrainConfig:
    """Train a class-conditional diffusion model (DDPM) of handwritten characters."""

    preset: PresetName = "large"
    """Model size, resolution and batch size; sets the defaults of the flags below. tiny trains on two CPU cores."""
    recipe: RecipeName = "reference"
    """How it learns; sets defaults too. reference: as the run this project grew from. fast: in minutes; tiny's own."""
    data: DataName = "emnist"
    """EMNIST, Kuzushiji-MNIST, Fashion-MNIST, a folder of your own images (docs/your-data.md), or glyphs from fonts."""
    split: SplitName = "balanced"
    """The split of EMNIST."""
    balance: Literal["none", "classes"] | None = None
    """classes: draw every class equally often in an epoch. Left out: for bymerge and byclass, which are unequal."""
    data_root: Path = PROJECT_ROOT / "data"
    """Folder with EMNIST/raw/, KMNIST/raw/, FashionMNIST/raw/ or glyphs/. For --data folder: a subfolder per class."""
    invert: Invert = "auto"
    """For --data folder. auto: turn light backgrounds black. yes: invert every image. no: keep all as they are."""
    download: bool = False
    """Download the data set into --data-root if it is not there."""

    resolution: int = 96
    """Height and width of the images, in pixels; divisible by --patch-size times 2^(levels - 1)."""
    patch_size: int = 1
    """Side of the squares of pixels that the network takes as the channels of one (Hoogeboom et al. 2023)."""
    block_out_channels: tuple[int, ...] = (96, 192, 384, 384)
    """Channels of each UNet level, from the resolution of the patches down; each level halves the resolution."""
    layers_per_block: int = 2
    """Residual blocks per level of the UNet."""
    norm_num_groups: int = 32
    """Groups of each GroupNorm; must divide every entry of --block-out-channels."""
    mid_attention: bool = True
    """Self-attention at the lowest resolution."""
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    """Timestep and class are added in each residual block, or scale and shift its second norm (Dhariwal & Nichol)."""

    epochs: int = 100
    """Epochs, each of one pass over the training images or, if these are few, of several."""
    passes_per_epoch: int | None = None
    """Passes over the training images in an epoch. Left out: 1, but for --data folder enough to draw 18,800 images."""
    max_steps: int | None = None
    """Stop after this many optimizer steps, even within an epoch."""
    batch_size: int = 96
    """Images per process in one forward pass; the global batch is this times the processes times --grad-accum."""
    grad_accum: int = 1
    """Forward passes whose gradients are accumulated for one optimizer step."""
    seed: int = 0
    """Seed of data order, noise, timesteps, label dropout and initial weights."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw, or Muon (Jordan et al. 2024) for the weights of hidden layers and AdamW for the rest."""
    lr: float = 1e-4
    """Peak learning rate."""
    scale_lr: Literal["none", "linear", "sqrt"] = "none"
    """Multiply --lr by the global batch / the preset's --batch-size (Goyal et al. 2017), or by its square root."""
    lr_schedule: Literal["constant", "cosine", "cosine_restarts", "step", "plateau"] = "constant"
    """After warm-up: constant, half a cosine to zero, several half cosines, steps, or lowered where a figure stalls."""
    lr_cycles: int = 4
    """Number of cosines of cosine_restarts, of equal length (Loshchilov & Hutter 2017)."""
    lr_step_epochs: float = 30.0
    """Epochs between the steps of the step schedule."""
    lr_step_factor: float = 0.1
    """Factor on the learning rate at each step of the step schedule."""
    plateau_metric: Literal[SELECTABLE] = "val_loss_ema"
    """The column of training_metrics.csv that the plateau schedule watches."""
    plateau_factor: float = 0.1
    """Factor on the learning rate at each plateau."""
    plateau_patience: int = 10
    """Measured epochs without an improvement that are endured; after one more the learning rate is lowered."""
    plateau_cooldown: int = 0
    """Measured epochs after a change of the learning rate that do not count towards --plateau-patience."""
    plateau_lowest: float = 0.0
    """Lowest learning rate of the plateau schedule."""
    warmup_steps: int = 0
    """Optimizer steps over which the learning rate rises linearly from zero."""
    weight_decay: float = 0.01
    """Decoupled weight decay (Loshchilov & Hutter 2019)."""
    grad_clip: float = 1.0
    """Maximum L2 norm of the gradient; larger gradients are scaled down to it. 0: no clipping."""
    ema_decay: float = 0.999
    """Decay per step of the exponential moving average (EMA) of the weights, in [0, 1)."""
    power_ema: bool = True
    """Keep two more averages of the weights in checkpoints, from which --ema-length makes others after training."""
    swa_start_epoch: int = 0
    """First epoch whose final weights enter the stochastic weight average, SWA (Izmailov et al. 2018). 0: no SWA."""
    early_stop_patience: int = 0
    """End the run after this many epochs without an improvement of --early-stop-metric. 0: train to the end."""
    early_stop_metric: Literal[SELECTABLE] = "val_loss_ema"
    """The column of training_metrics.csv that --early-stop-patience watches."""
    min_delta: float = 0.0
    """A value is an improvement if it is better than the best one by more than this."""

    diffusion_steps: int = 600
    """Timesteps of the forward process."""
    beta_schedule: Literal["squaredcos_cap_v2", "linear", "scaled_linear"] = "squaredcos_cap_v2"
    """Noise schedule, by its diffusers name; squaredcos_cap_v2 is the cosine; others scale betas by 1000 / steps."""
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    """Prediction target of the network: the noise, or the velocity (Salimans & Ho 2022)."""
    timestep_sampling: Literal["uniform", "stratified"] = "uniform"
    """uniform: independent draws. stratified: one from each of N equal bands, for a global batch of N images."""
    timestep_power: float = 1.0
    """Draw timesteps as u^p with u uniform in [0, 1): p below 1 favours noisy timesteps, above 1 clean ones."""
    loss_weighting: Literal["none", "min_snr"] = "none"
    """none: the plain mean over timesteps. min_snr: clean images' error, weighted by min(SNR, 5) (Hang et al. 2023)."""
    cfg_dropout_prob: float = 0.1
    """Probability that a label is replaced by the null class, for classifier-free guidance."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if one is granted or present (an error if it cannot be used), else the CPU. cpu: always the CPU."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Autocast type of forward and backward pass; auto: bf16 where supported, else fp16 on a GPU and fp32 on a CPU."""
    compile: bool | None = None
    """Use torch.compile, or --no-compile. Left out: on a GPU where it can work, and in long runs of tiny on a CPU."""
    channels_last: bool | None = None
    """Keep activations in NHWC memory order, or --no-channels-last. Left out: on CUDA devices only."""
    deterministic: bool = False
    """Use deterministic GPU kernels only: slower, and a resumed run is bit-identical, as it always is on a CPU."""

    run_name: str | None = None
    """Name of the run and its folders. Left out: built from the settings."""
    output_root: Path = PROJECT_ROOT
    """Folder under which checkpoints/, metrics/output/ and logs/ are written."""
    resume: str = "auto"
    """auto: continue the run of this name from its latest checkpoint. never: start afresh. Or a checkpoint folder."""
    log_every: int = 50
    """Steps between progress lines; the host waits for the device only there."""
    val_every: int = 1
    """Epochs between validations. 0: no validation."""
    val_images: int | None = None
    """Maximum number of test images used for validation. Left out: 2000, or what a CPU can do in about a minute."""
    eval_every: int | None = None
    """Epochs between evaluations of generated images (CAS, RCA, …). 0: none. Left out: 10, or 0 on a CPU."""
    sample_every: int = 10
    """Epochs between sample grids; one is always drawn at the end. 0: only at the end."""
    samples_per_class: int | None = None
    """Characters per class in a sample grid. 0: no grids. Left out: 8, or what a CPU can draw in about a minute."""
    sample_steps: int = 50
    """DDIM steps for the sample grids."""
    guidance_scale: float = 2.0
    """Classifier-free guidance for the sample grids: 1 is none; larger is more typical and less varied."""
    checkpoint_every: int = 1
    """Epochs between checkpoints; one is always written at the end."""
    checkpoint_minutes: float = 15.0
    """Minutes after which the next progress line writes a checkpoint, also within an epoch. 0: only after epochs."""
    best_by: Literal["val_loss", "rca", "rca_unguided", "cas", "fid_features", "criteria"] = "val_loss"
    """What makes `best`: validation loss of the EMA weights, a figure of --eval-every, or the criteria it meets."""
    keep_last: int = 3
    """Number of newest checkpoints to keep. The best one is always kept."""
    keep_every: int = 0
    """Save the checkpoint of every N-th epoch and never delete it. 0: none."""
    export: bool = True
    """At the end, write checkpoints/<run>/export/: a folder that diffusers loads, with samples and a model card."""
    hang_minutes: float = 10.0
    """Timeout in minutes for collective operations; start-up and compilation get 30."""
    target: str | None = None
    """A figure to reach, such as val_loss=0.004; training_log.md shows the distance to it. Does not stop the run."""
    criterion: tuple[str, ...] = ()
    """A success criterion, such as "val_loss_ema <= 0.14 by epoch 4" or "name: rca >= 0.9"; repeat for more."""
    criteria: Path | None = None
    """A plan (YAML) whose criteria and stop_when this run takes over; docs/plans.md describes them."""
    stop_when: Literal["missed"] | None = None
    """missed: end the run when a criterion can no longer be met. Left out: train to the end."""
    problem: str | None = None
    """The question that the run is to answer, in words; its pages show it."""
    why: str | None = None
    """Why the run has these settings, in words."""
    expect: str | None = None
    """What is expected of the run, in words; comparisons show it beside what came."""
    note: tuple[str, ...] = ()
    """A remark for the run's pages, with its time; repeat for more. python -m metrics.note adds others later."""
    baseline: str | None = None
    """A run under the same --output-root with which training_log.md compares this one."""
    wandb: bool = False
    """Also log to Weights & Biases; needs the package wandb."""
    config: Path | None = None
    """A YAML or JSON file of settings, such as a run's training_metrics.json. Typed flags take precedence over it."""
    dry_run: bool = False
    """Print the resolved settings and the memory, disk and steps that the run needs, then exit."""
    find_batch_size: bool = False
    """Try batch sizes on this device, print how fast each is and the memory that it takes, then exit."""

    def __post_init__(self) -> None:
        for mistake in mistakes(self):
            raise RequestError(mistake)

    @property
    def model_name(self) -> str:
        """The recipe as the reference run names it; it begins with the data, of EMNIST with the split alone."""
        split = self.split if self.data == "emnist" else self.data_name
        cfg = "cfg" if self.cfg_dropout_prob > 0 else "nocfg"
        schedule = "cosine" if self.beta_schedule == "squaredcos_cap_v2" else self.beta_schedule
        ema = "ema" if self.ema_decay > 0 else "noema"
        return f"{split}_{cfg}_{schedule}_{ema}_{self.diffusion_steps}_steps"

    @property
    def data_name(self) -> str:
        """The data set, as files and pages name it."""
        return published_name(self.data, self.split, self.data_root)

    @property
    def balanced(self) -> bool:
        """Is every class drawn equally often in an epoch?"""
        if self.balance is None:
            return self.data == "emnist" and self.split in UNEQUAL
        return self.balance == "classes"

    @property
    def run(self) -> str:
        """The run's name: `--run-name`, else built from the settings."""
        return self.run_name or f"{self.model_name}_{self.preset}"

    @property
    def only_asks(self) -> bool:
        """Does the start train nothing, but print something?"""
        return self.dry_run or self.find_batch_size

    @property
    def usual_batch(self) -> int:
        """The preset's batch size on one process, for which `--scale-lr` takes `--lr` to be meant."""
        return PRESETS[self.preset].get("batch_size", TrainConfig.batch_size)

    @property
    def images_per_step(self) -> int:
        """Images that one process contributes to each optimizer step."""
        return self.batch_size * self.grad_accum

    @property
    def parsed_criteria(self) -> tuple[Criterion, ...]:
        """The criteria of `--criterion`."""
        return parse_criteria(self.criterion)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON can hold them."""
        return plain(dataclasses.asdict(self))


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(
        recipe="fast", resolution=28, patch_size=2, batch_size=32, block_out_channels=(32, 64), layers_per_block=1,
        norm_num_groups=8, mid_attention=False, epochs=6, sample_steps=20, val_images=500, sample_every=3,
        samples_per_class=8,
    ),
    "small": dict(resolution=28, batch_size=2048, block_out_channels=(64, 128, 256)),
    "medium": dict(resolution=64, batch_size=384, block_out_channels=(64, 128, 256, 256)),
    "large": dict(resolution=96, batch_size=96, block_out_channels=(96, 192, 384, 384)),
    "xl": dict(resolution=128, batch_size=32, block_out_channels=(128, 256, 512, 512)),
}  # fmt: skip


RECIPES: dict[str, dict[str, Any]] = {
    "reference": {},
    "fast": dict(
        optimizer="muon", lr=3e-3, lr_schedule="cosine", warmup_steps=100, ema_decay=0.995,
        prediction_type="v_prediction", timestep_sampling="stratified", timestep_power=0.45,
        resnet_time_scale_shift="scale_shift",
    ),
}  # fmt: skip


def in_todays_words(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings from the file of a run, those of older versions in the words of this one."""
    if isinstance(scaled := settings.get("scale_lr"), bool):
        return settings | {"scale_lr": "linear" if scaled else "none"}
    return settings


def preset(name: str, **changes: Any) -> TrainConfig:
    """The settings of the preset `name` and its recipe, or that of `changes`, with `changes`.

    Raises:
        RequestError: there is no such preset or recipe, or a setting is out of range.
    """
    if name not in PRESETS:
        raise RequestError(f"--preset {name}: no such preset; there are {', '.join(PRESETS)}")
    settings = {"preset": name, **PRESETS[name], **changes}
    recipe = settings.get("recipe", TrainConfig.recipe)
    if recipe not in RECIPES:
        raise RequestError(f"--recipe {recipe}: no such recipe; there are {', '.join(RECIPES)}")
    return TrainConfig(**{**RECIPES[recipe], **settings})


# ---- rules -----------------------------------------------------------------------------------------------------------

BOUNDS = {  # smallest value → settings
    1: "epochs passes_per_epoch max_steps batch_size grad_accum log_every checkpoint_every keep_last sample_steps "
    "val_images resolution patch_size layers_per_block norm_num_groups lr_cycles",
    0: "val_every eval_every sample_every samples_per_class keep_every warmup_steps seed weight_decay "
    "grad_clip guidance_scale checkpoint_minutes swa_start_epoch early_stop_patience min_delta "
    "plateau_patience plateau_cooldown plateau_lowest",
}
EXAMPLES = {  # settings that must be above 0 and finite → an example
    "lr": "1e-4", "timestep_power": "0.6 (1 for uniform timesteps)", "hang_minutes": "10", "lr_step_epochs": "30",
}  # fmt: skip
USUAL_VAL_IMAGES = 2000  # where --val-images is left out; fewer where a CPU would take long
USUAL_EVAL_EVERY = 10  # epochs, where --eval-every is left out and an evaluation is wanted
BETAS = 1e-4, 0.02  # the first and last of linear and scaled_linear at 1000 steps (Ho et al. 2020)


def mistakes(config: TrainConfig) -> Iterator[str]:
    """The rules that the settings break, each as one line that says how to fix it."""
    for bound, settings in BOUNDS.items():
        for name in settings.split():
            value = getattr(config, name)
            if value is not None and not bound <= value < math.inf:
                yield f"{flag(name)} {value}: must be {bound} or more"
    for name, example in EXAMPLES.items():
        if not 0 < getattr(config, name) < math.inf:
            yield f"{flag(name)} {getattr(config, name)}: must be above 0 and finite, such as {example}"
    for rules in (_training_rules, _criteria_rules, _metric_rules, _model_rules, _name_rules):
        yield from (message for broken, message in rules(config) if broken)


def beta_range(config: TrainConfig) -> tuple[float, float] | None:
    """The first and last beta of a linear or scaled_linear schedule; None for squaredcos_cap_v2, which has no range.

    The betas for 1000 steps are scaled by 1000 / steps, so that any number of steps ends in noise (Dhariwal & Nichol
    2021, guided-diffusion `get_named_beta_schedule`). Unscaled, 100 steps would leave 0.60 of the signal.
    """
    if config.beta_schedule == "squaredcos_cap_v2":
        return None
    scale = 1000 / max(config.diffusion_steps, 1)
    return scale * BETAS[0], scale * BETAS[1]


def _training_rules(config: TrainConfig) -> list[tuple[bool, str]]:
    """Rules as (is it broken?, message)."""
    return [
        (not 0 <= config.ema_decay < 1, f"--ema-decay {config.ema_decay}: must lie in [0, 1), such as 0.999"),
        (not 0 <= config.cfg_dropout_prob <= 1, f"--cfg-dropout-prob {config.cfg_dropout_prob}: must lie in [0, 1]"),
        (not 0 < config.lr_step_factor <= 1, f"--lr-step-factor {config.lr_step_factor}: must lie in (0, 1]"),
        (
            not 0 < config.plateau_factor < 1,
            f"--plateau-factor {config.plateau_factor}: must lie in (0, 1), such as 0.5",
        ),
        (config.diffusion_steps < 2, f"--diffusion-steps {config.diffusion_steps}: must be 2 or more"),
        (
            config.sample_steps > config.diffusion_steps,
            f"--sample-steps {config.sample_steps}: must be at most --diffusion-steps, {config.diffusion_steps}",
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


def beyond_the_end(criteria: Iterable[Criterion], epochs: int, limit: str) -> str | None:
    """A message if a criterion names an epoch after the last of `epochs`; `limit` says what ends the run."""
    for criterion in criteria:
        for condition in criterion.conditions:
            if condition.last_named > epochs:
                named = f"criterion {criterion.name!r}: epoch {condition.last_named} is beyond the end"
                return f"{named}, epoch {epochs} ({limit})"
    return None


def asked_of(criteria: Iterable[Criterion]) -> dict[str, str]:
    """What asks for a figure of the rows → the column: a figure that is never measured makes no criterion."""
    return {
        f"criterion {criterion.name!r} ({condition.metric.name})": condition.metric.name
        for criterion in criteria
        for condition in criterion.conditions
        if condition.metric
    }


def _criteria_rules(config: TrainConfig) -> Iterator[tuple[bool, str]]:
    beyond = beyond_the_end(config.parsed_criteria, config.epochs, f"--epochs {config.epochs}")
    yield beyond is not None, str(beyond)
    without = "needs criteria: give one with --criterion, or a plan of criteria with --criteria"
    yield config.stop_when is not None and not config.criterion, f"--stop-when {config.stop_when} {without}"
    for criterion in config.parsed_criteria:
        for condition in criterion.conditions:
            every = _measured_every(config, condition.metric.name) if condition.window else 0
            first, last = condition.window or (0, 0)
            missed = every > 0 and last // every == (first - 1) // every and last < config.epochs
            yield (
                missed,
                (
                    f"criterion {criterion.name!r}: {condition.metric.name} is measured every {every} epochs only, so "
                    f"not in epochs {first} to {last}: name other epochs, or measure it more often"
                ),
            )
    yield config.best_by == "criteria" and not config.criterion, f"--best-by criteria {without}"


def _measured_every(config: TrainConfig, name: str) -> int:
    """Epochs between measurements of a figure; 0 if it is never measured. The last epoch is always measured."""
    if name in EVALUATED:
        return USUAL_EVAL_EVERY if config.eval_every is None else config.eval_every
    return config.val_every if name.startswith("val_loss") else 1


def _metric_rules(config: TrainConfig) -> Iterator[tuple[bool, str]]:
    """A figure that decides something, or is a target, must be measured."""
    watched, target = config.early_stop_metric, parse_target(config.target or "")
    asked = asked_of(config.parsed_criteria)
    asked |= {f"--best-by {config.best_by}": config.best_by} if config.best_by in EVALUATED else {}
    if target:
        asked[f"--target {config.target}"] = target[0]
    if config.lr_schedule == "plateau":
        asked[f"--plateau-metric {config.plateau_metric}"] = config.plateau_metric
    if config.early_stop_patience > 0:
        asked[f"--early-stop-metric {watched}"] = watched
    for option, metric in asked.items():
        evaluated, validated = metric in EVALUATED, metric.startswith("val_loss")
        yield evaluated and config.eval_every == 0, f"{option} needs evaluations: give --eval-every 1 or more"
        yield validated and config.val_every == 0, f"{option} needs validation: give --val-every 1 or more"
        yield metric == VAL_LOSS_SWA.name and not config.swa_start_epoch, f"{option} needs SWA: give --swa-start-epoch"
    every = _measured_every(config, watched)
    yield (
        0 < config.early_stop_patience < every,
        f"--early-stop-patience {config.early_stop_patience}: {watched} is measured every {every} epochs only; give "
        f"{every} or more",
    )


def _model_rules(config: TrainConfig) -> list[tuple[bool, str]]:
    levels = len(config.block_out_channels)
    factor = config.patch_size * 2 ** max(levels - 1, 0)
    return [
        (
            min(config.block_out_channels, default=0) < 1,
            "--block-out-channels: give one or more widths, such as 64 128 256",
        ),
        (
            config.patch_size > 0 and config.resolution % factor != 0,
            f"--resolution {config.resolution} cannot be cut into patches of {config.patch_size} and halved "
            f"{levels - 1} times, as the {levels} levels of --block-out-channels ask for: take a multiple of {factor}, "
            "or fewer levels",
        ),
        (
            any(width % max(config.norm_num_groups, 1) for width in config.block_out_channels),
            f"--norm-num-groups {config.norm_num_groups}: must divide every width of --block-out-channels",
        ),
    ]


def _name_rules(config: TrainConfig) -> list[tuple[bool, str]]:
    name = config.run_name or ""
    return [
        (
            config.data == "folder" and config.data_root == TrainConfig.data_root,
            "--data folder needs --data-root: the folder that has a subfolder of images for each class",
        ),
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
    """Remarks on settings that have no effect, a line each. Not an error: a plan may share them among runs.

    Args:
        usual: the preset's settings.
    """
    grids = config.samples_per_class != 0
    needs = {  # settings → (have they an effect?, what they need for one)
        "lr_cycles": (config.lr_schedule == "cosine_restarts", "--lr-schedule cosine_restarts"),
        "plateau_metric plateau_factor plateau_patience plateau_cooldown plateau_lowest": (
            config.lr_schedule == "plateau",
            "--lr-schedule plateau",
        ),
        "lr_step_epochs lr_step_factor": (config.lr_schedule == "step", "--lr-schedule step"),
        "early_stop_metric min_delta": (config.early_stop_patience > 0, "--early-stop-patience"),
        "sample_every": (grids, "--samples-per-class 1 or more"),
        "sample_steps guidance_scale": (grids or config.eval_every != 0, "--samples-per-class or --eval-every"),
        "val_images": (config.val_every > 0, "--val-every 1 or more"),
        "download": (config.data not in ("folder", "glyphs"), "--data emnist, kmnist or fashion"),
        "split": (config.data == "emnist", "--data emnist"),
        "invert": (config.data == "folder", "--data folder"),
        "keep_every": (config.keep_every <= config.epochs, f"{config.keep_every} epochs or more"),
    }
    for settings, (effective, need) in needs.items():
        for name in () if effective else settings.split():
            if getattr(config, name) != getattr(usual, name):
                yield f"{flag(name)} {getattr(config, name)} has no effect without {need}"
    if config.best_by == VAL_LOSS.name and config.val_every == 0:
        yield "without validation (--val-every 0) no checkpoint becomes `best`"
    if config.cfg_dropout_prob == 0 and config.guidance_scale != 1 and (grids or config.eval_every != 0):
        yield (f"--guidance-scale {config.guidance_scale:g} needs predictions without a label, which the model "
               "never learns with --cfg-dropout-prob 0: give --guidance-scale 1")  # fmt: skip


def parse_target(text: str) -> tuple[str, float] | None:
    """`val_loss=0.004` → the column and its value; None if the text is no target."""
    name, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        return None
    return (name, number) if name in SELECTABLE and math.isfinite(number) else None


# ---- the table of flags ----------------------------------------------------------------------------------------------


def field_help() -> dict[str, str]:
    """The docstring of each field, by field name."""
    body = ast.parse(inspect.getsource(TrainConfig)).body[0].body
    pairs = itertools.pairwise(body)
    return {
        field.target.id: doc.value.value
        for field, doc in pairs
        if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr)
    }


def markdown_table() -> str:
    """The Markdown table of every flag, its default and its meaning."""
    rows = ["| flag | default (large) | meaning |", "|---|---|---|"]
    defaults = dataclasses.asdict(TrainConfig(data_root=Path("data"), output_root=Path(".")))
    for name, text in field_help().items():
        value = defaults[name]
        words = " ".join(map(str, value)) if isinstance(value, tuple) else value
        shown = DASH if value in (None, ()) else words
        rows.append(f"| `{flag(name)}` | {shown} | {text} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(run_program(lambda: print(markdown_table())))
