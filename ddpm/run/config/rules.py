"""The rules that settings keep, each with the one line that is said when it is broken."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

from ddpm.run.cli import flag
from ddpm.run.criteria import Criterion
from ddpm.run.metrics import METRICS, VAL_LOSS, VAL_LOSS_SWA, names
from ddpm.run.paths import LONGEST_NAME, name_taken

TrainConfig = Any  # the dataclass in __init__.py, which imports these rules
SELECTABLE = names(selectable=True)  # the figures that a user can choose by
EVALUATED = names(group="quality")  # measured by --eval-every
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
        (config.seed >= 2**63, f"--seed {config.seed}: must be below 2^63"),
        (not 0 <= config.ema_decay < 1, f"--ema-decay {config.ema_decay}: must lie in [0, 1), such as 0.999"),
        (not 0 <= config.cfg_dropout_prob <= 1, f"--cfg-dropout-prob {config.cfg_dropout_prob}: must lie in [0, 1]"),
        (
            config.cfg_dropout_prob == 0 and config.guidance_scale != 1,
            f"--guidance-scale {config.guidance_scale:g} needs predictions without a label, which the model never "
            "learns with --cfg-dropout-prob 0: give --guidance-scale 1",
        ),
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
            if not (condition.metric and condition.window):
                continue
            every = _measured_every(config, condition.metric.name)
            first, last = condition.window
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
            config.data == "folder" and config.data_root == type(config).data_root,
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
        ((wrong := target_problem(config.target)) is not None, str(wrong)),
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
        "val_images": (config.val_every > 0 or config.eval_every != 0, "--val-every or --eval-every 1 or more"),
        "download": (config.data not in ("folder", "glyphs"), "--data emnist, kmnist or fashion"),
        "split": (config.data == "emnist", "--data emnist"),
        "invert": (config.data == "folder", "--data folder"),
        "keep_every": (config.keep_every <= config.epochs, f"{config.keep_every} epochs or more"),
    }
    for settings, (effective, need) in needs.items():
        for name in () if effective else settings.split():
            if getattr(config, name) != getattr(usual, name):
                yield f"{flag(name)} {getattr(config, name)} has no effect without {need}"
    if config.best_by == "criteria" and not any(criterion.of_weights for criterion in config.parsed_criteria):
        yield "no criterion compares a loss or a figure of drawn images with a number: validation loss chooses `best`"
    if config.best_by == VAL_LOSS.name and config.val_every == 0:
        yield "without validation (--val-every 0) no checkpoint becomes `best`"


def target_problem(text: str | None) -> str | None:
    """What is wrong with a target, as one line; None if nothing is, or there is none."""
    if text is None:
        return None
    if (target := parse_target(text)) is None:
        return f"--target {text}: give one of {', '.join(SELECTABLE)}, = and a number, such as val_loss=0.004"
    never = METRICS[target[0]].out_of_range(target[1])
    return never and f"--target {text}: {never}"


def parse_target(text: str) -> tuple[str, float] | None:
    """`val_loss=0.004` → the column and its value; None if the text is no target."""
    name, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        return None
    return (name, number) if name in SELECTABLE and math.isfinite(number) else None
