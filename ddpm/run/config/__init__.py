"""The settings of a run: one frozen dataclass. Its presets and recipes are in presets.py, its rules in rules.py.

The command line (ddpm/run/arguments.py), `--help` and the table of flags (python -m ddpm.run.config) are made from the
dataclass.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ddpm.run.config.presets import EXCEPTIONS, PRESETS, RECIPES, PresetName, RecipeName
from ddpm.run.config.rules import SELECTABLE, mistakes
from ddpm.run.criteria import Criterion, parse_criteria
from ddpm.run.datasets import DataName, Invert, SplitName, drawn_equally, published_name
from ddpm.run.errors import RequestError
from ddpm.run.files import plain
from ddpm.run.paths import PROJECT_ROOT

START_ONLY = ("config", "criteria", "download", "dry_run", "find_batch_size", "resume")  # asked of one start
NO_RECIPE = (  # say nothing of what is trained
    *START_ONLY, "run_name", "data_root", "output_root", "target", "baseline", "wandb", "power_ema",
    "criterion", "problem", "why", "expect", "note",
)  # fmt: skip


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
    """Measured epochs without an improvement that are allowed; the next one lowers the learning rate."""
    plateau_cooldown: int = 0
    """Measured epochs after a change of the learning rate that do not count towards --plateau-patience."""
    plateau_lowest: float = 0.0
    """Lowest learning rate of the plateau schedule."""
    warmup_steps: int = 0
    """Optimizer steps over which the learning rate rises linearly from zero."""
    weight_decay: float = 0.01
    """Decoupled weight decay (Loshchilov & Hutter 2019): a step shrinks weights by this times their learning rate."""
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
    """Keep activations in NHWC memory order, or --no-channels-last. Left out: on a GPU, except in fp32."""
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
        return drawn_equally(self.balance, self.data, self.split)

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


def in_todays_words(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings from the file of a run, those of older versions in the words of this one."""
    todays = {}
    if isinstance(scaled := settings.get("scale_lr"), bool):
        todays["scale_lr"] = "linear" if scaled else "none"
    if settings.get("cfg_dropout_prob") == 0:  # older versions let such a model be guided by what it never learned
        todays["guidance_scale"] = 1.0
    return settings | todays


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
    return TrainConfig(**{**RECIPES[recipe], **EXCEPTIONS.get((name, recipe), {}), **settings})
