"""What settings must obey: every rule with the one line that says how to mend it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ddpm.run.metrics import names
from ddpm.run.paths import LONGEST_NAME, name_taken

if TYPE_CHECKING:
    from ddpm.run.config import TrainConfig

BOUNDS = {  # smallest value → settings
    1: "epochs max_steps batch_size grad_accum log_every checkpoint_every keep_last sample_steps val_images "
    "resolution layers_per_block norm_num_groups lr_cycles",
    0: "val_every eval_every sample_every samples_per_class keep_every warmup_steps seed weight_decay "
    "grad_clip guidance_scale checkpoint_minutes swa_start_epoch early_stop_patience min_delta",
}
EXAMPLES = {  # what must be above 0 and finite → a value that is
    "lr": "1e-4", "timestep_power": "0.6 (1 for even timesteps)", "hang_minutes": "10", "lr_step_epochs": "30",
}  # fmt: skip
EVALUATED = names(group="quality")  # measured by --eval-every
SELECTABLE = names(selectable=True)
USUAL_EVAL_EVERY = 10  # epochs, where --eval-every is left out and an evaluation is wanted
USUAL_VAL_IMAGES = 2000  # where --val-images is left out; fewer where a CPU would take long
BETAS = 1e-4, 0.02  # the first and last of linear and scaled_linear at 1000 steps (Ho et al. 2020)


def flag(name: str) -> str:
    """The command-line flag of a setting: `batch_size` → `--batch-size`."""
    return "--" + name.replace("_", "-")


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
