"""The settings of a run: one frozen dataclass. The command line, `--help` and the README table are made from it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from ddpm import cli
from ddpm.errors import RequestError
from ddpm.paths import PROJECT_ROOT

NUM_CLASSES = 47
NULL_CLASS = NUM_CLASSES  # the label that stands for "no label" (classifier-free guidance)

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
    lr_schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after warm-up: constant, or falling to zero along half a cosine at the last step."""
    warmup_steps: int = 0
    """Optimizer steps over which the learning rate rises linearly from zero."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    grad_clip: float = 1.0
    """Largest L2 norm of the gradient; larger ones are scaled down to it. 0 turns clipping off."""
    ema_decay: float = 0.999
    """Decay per step of the exponential moving average of the weights, in [0, 1)."""

    diffusion_steps: int = 600
    """Noise levels of the forward process."""
    beta_schedule: Literal["squaredcos_cap_v2", "linear", "scaled_linear"] = "squaredcos_cap_v2"
    """Noise schedule, by its diffusers name; squaredcos_cap_v2 is the cosine schedule."""
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

    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Autocast type of forward and backward; auto takes bf16 where the device has it, else fp16 (GPU) or fp32."""
    compile: Annotated[bool | None, "flag"] = None
    """torch.compile the model, or --no-compile; left out, it is used on CUDA devices."""
    channels_last: Annotated[bool | None, "flag"] = None
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
    """Keep the checkpoint of every N-th epoch for good. 0: none."""
    export: bool = True
    """At the end, make checkpoints/<run>/export/: a folder that diffusers loads, with pictures and a model card."""
    hang_minutes: float = 10.0
    """Give up when a process has not answered the others for so long; starting and compiling may take 30 minutes."""
    dry_run: bool = False
    """Print the resolved settings and what the run would need, then exit."""

    def __post_init__(self) -> None:
        for wrong, message in self._mistakes():
            if wrong:
                raise RequestError(message)

    def _mistakes(self) -> list[tuple[bool, str]]:
        """Every rule on the settings as (is it broken, what to say then)."""
        levels = len(self.block_out_channels)
        factor = 2 ** max(levels - 1, 0)
        bounds = {
            1: "epochs max_steps batch_size grad_accum log_every checkpoint_every keep_last sample_steps val_images "
            "resolution layers_per_block norm_num_groups",
            0: "val_every eval_every sample_every samples_per_class keep_every warmup_steps seed weight_decay "
            "grad_clip guidance_scale checkpoint_minutes",
        }
        return [
            *(
                (value is not None and not bound <= value < math.inf, f"{flag(name)} {value}: must be {bound} or more")
                for bound, names in bounds.items()
                for name, value in ((name, getattr(self, name)) for name in names.split())
            ),
            (
                not 0 < self.timestep_power < math.inf,
                f"--timestep-power {self.timestep_power}: must be above 0, such as 0.6 (1 for even timesteps)",
            ),
            (not 0 < self.lr < math.inf, f"--lr {self.lr}: must be above 0 and finite, such as 1e-4"),
            (not 0 <= self.ema_decay < 1, f"--ema-decay {self.ema_decay}: must lie in [0, 1), such as 0.999"),
            (not 0 <= self.cfg_dropout_prob <= 1, f"--cfg-dropout-prob {self.cfg_dropout_prob}: must lie in [0, 1]"),
            (not 0 < self.hang_minutes < math.inf, f"--hang-minutes {self.hang_minutes}: must be above 0, such as 10"),
            (self.diffusion_steps < 2, f"--diffusion-steps {self.diffusion_steps}: must be 2 or more"),
            (
                self.sample_steps > self.diffusion_steps,
                f"--sample-steps {self.sample_steps}: must be at most --diffusion-steps, {self.diffusion_steps}",
            ),
            (
                self.best_by != "val_loss" and self.eval_every == 0,
                f"--best-by {self.best_by} is measured by evaluations: give --eval-every 1 or more",
            ),
            (
                min(self.block_out_channels, default=0) < 1,
                "--block-out-channels: give one or more widths, such as 64 128 256",
            ),
            (
                self.resolution % factor != 0,
                f"--resolution {self.resolution} cannot be halved {levels - 1} times, as the {levels} levels of "
                f"--block-out-channels ask for: take a multiple of {factor}, or fewer levels",
            ),
            (
                any(width % max(self.norm_num_groups, 1) for width in self.block_out_channels),
                f"--norm-num-groups {self.norm_num_groups}: must divide every width of --block-out-channels",
            ),
            (
                self.run_name is not None and not re.fullmatch(r"[A-Za-z0-9][\w.+=-]*", self.run_name),
                f"--run-name {self.run_name}: use letters, digits and . _ + = - only, a letter or digit first",
            ),
        ]

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
    def images_per_step(self) -> int:
        """Images that one process contributes to each optimizer step."""
        return self.batch_size * self.grad_accum

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON can hold them."""
        return {name: _plain(value) for name, value in dataclasses.asdict(self).items()}


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(
        resolution=28, batch_size=64, block_out_channels=(16, 32, 64), layers_per_block=1, norm_num_groups=8,
        mid_attention=False, epochs=10, lr=3e-3, lr_schedule="cosine", warmup_steps=100, ema_decay=0.995,
        prediction_type="v_prediction", timestep_sampling="stratified", sample_steps=20,
        val_images=500, sample_every=5, samples_per_class=8,
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


def parse_args(argv: Sequence[str] | None = None) -> TrainConfig:
    """The settings that a command line asks for: the preset's, and over them what is typed.

    Raises:
        RequestError: a flag or value is wrong, with the one line to tell the user.
        SystemExit: `--help` was asked for and printed.
    """
    arguments = _with_values(list(sys.argv[1:] if argv is None else argv))
    return cli.parse(TrainConfig, arguments, "train.py", preset(_asked_preset(arguments)))


def data_words(name: str) -> str:
    """What the data set of `--data` is called where people read it; glyphs are never taken for EMNIST."""
    return "EMNIST Balanced" if name == "emnist" else "embedded glyphs, not EMNIST"


def flag(name: str) -> str:
    """The command-line flag of a field: `batch_size` → `--batch-size`."""
    return "--" + name.replace("_", "-")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _with_values(arguments: list[str]) -> list[str]:
    """Give the three-state switches a value: `--no-compile` → `--compile=False`; left out, they choose themselves."""
    switches = {}
    for name, hint in get_type_hints(TrainConfig, include_extras=True).items():
        if "flag" in getattr(hint, "__metadata__", ()):
            switches |= {flag(name): f"{flag(name)}=True", f"--no-{flag(name)[2:]}": f"{flag(name)}=False"}
    values = ("None", "True", "False")
    return [
        argument if following in values else switches.get(argument, argument)
        for argument, following in itertools.pairwise([*arguments, ""])
    ]


def _asked_preset(arguments: list[str]) -> str:
    """The value of the last `--preset`; the other defaults depend on it, so it is read first."""
    asked = TrainConfig.preset
    for argument, following in itertools.pairwise([*arguments, ""]):
        name, equals, value = argument.partition("=")
        if name == "--preset":
            asked = value if equals else following
    return asked


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
    print(markdown_table())
