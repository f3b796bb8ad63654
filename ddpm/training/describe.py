"""A run in words and numbers, for its JSON file, its first log lines and `--dry-run`."""

from __future__ import annotations

import json
import platform
import shlex
import socket
import subprocess
import sys
from typing import Any

import diffusers
import torch

from ddpm.data.classes import MOST_SHOWN
from ddpm.data.contact_sheet import part_words
from ddpm.data.folder import FolderSet
from ddpm.data.sets import dataset
from ddpm.run.config import TrainConfig
from ddpm.run.datasets import data_words
from ddpm.run.format import plural
from ddpm.run.paths import PROJECT_ROOT
from ddpm.training import data
from ddpm.training.machine import compiler, hardware
from ddpm.training.machine.compiler import USUAL
from ddpm.training.machine.distributed import DistContext
from ddpm.training.machine.hardware import Choices
from ddpm.training.machine.threads import Threads
from ddpm.training.model import POWER_WIDTHS, activation_bytes, build_unet, count_parameters, flops_per_image
from ddpm.training.optimizers import NAMES, state_values
from ddpm.training.schedule import PLATEAU, TrainingSchedule


def describe_run(
    config: TrainConfig,
    choices: Choices,
    world: DistContext,
    schedule: TrainingSchedule,
    flops: float,
    train: data.Images,
    test: data.Images,
    data_sha256: str,
    threads: Threads,
    by_step: list[dict[str, int | None]],
) -> dict[str, Any]:
    """Settings, environment, data and model of a run, as `training_metrics.json` holds them.

    Args:
        flops: per image, forward and backward.
        data_sha256: of the training images and labels.
        threads: of torch on a CPU.
        by_step: how many threads, from which step on (see `Progress.threads`).
    """
    return {
        "run": config.run,
        "data": config.data_name,
        "settings": config.to_dict(),
        "hyperparameters": hyperparameters(
            config, choices, schedule, train.num_classes, on_gpu=world.device.type == "cuda"
        ),
        "environment": environment(choices, world, threads, by_step),
        "data_summary": {
            **data_summary(train, test), "sha256": data_sha256, "remarks": dataset(config).remarks(),
        },
        "model": {
            "parameters": count_parameters(build_unet(config, train.num_classes, "meta")),
            "flops_per_image": flops,
            "peak_flops": hardware.peak_flops(world.device),
        },
    }  # fmt: skip


def data_summary(train: data.Images, test: data.Images) -> dict[str, Any]:
    """The classes, and how many images each split has, in all and of each class."""
    return {
        "train_images": len(train),
        "test_images": len(test),
        "class_names": list(train.class_names),
        "train_counts": train.counts(),
        "test_counts": test.counts(),
    }


def hyperparameters(
    config: TrainConfig, choices: Choices, schedule: TrainingSchedule, num_classes: int, on_gpu: bool
) -> dict[str, Any]:
    """The settings, named as in the report of the reference run, and those that this report does not have."""
    return {
        "model_name": config.model_name,
        "size_name": config.preset,
        "recipe": config.recipe,
        "image_resolution": config.resolution,
        "patch_size": config.patch_size,
        "batch_size_per_gpu": config.batch_size,
        "block_out_channels": list(config.block_out_channels),
        "dataset_split": config.split if config.data == "emnist" else data_words(config.data_name),
        "balance": "classes" if config.balanced else "none",
        "invert": config.invert if config.data == "folder" else None,
        "epochs": config.epochs,
        "images_per_epoch": schedule.train_images,
        "learning_rate": schedule.peak_lr,
        "diffusion_steps": config.diffusion_steps,
        "beta_schedule": config.beta_schedule,
        "ema_decay": config.ema_decay,
        "cfg_dropout_prob": config.cfg_dropout_prob,
        "num_classes": num_classes,
        "null_class_index": num_classes,
        "num_gpus": schedule.world_size if on_gpu else 0,
        "optimizer": NAMES[config.optimizer],
        "mixed_precision": choices.precision,
        "num_processes": schedule.world_size,
        "grad_accum": config.grad_accum,
        "global_batch_size": schedule.global_batch,
        "steps_per_epoch": schedule.steps_per_epoch,
        "total_steps": schedule.total_steps,
        "layers_per_block": config.layers_per_block,
        "resnet_time_scale_shift": config.resnet_time_scale_shift,
        "prediction_type": config.prediction_type,
        "timestep_sampling": config.timestep_sampling,
        "timestep_power": config.timestep_power,
        "loss_weighting": config.loss_weighting,
        "scale_lr": config.scale_lr,
        "lr_schedule": config.lr_schedule,
        "lr_cycles": config.lr_cycles if config.lr_schedule == "cosine_restarts" else None,
        "lr_step_epochs": config.lr_step_epochs if config.lr_schedule == "step" else None,
        "lr_step_factor": config.lr_step_factor if config.lr_schedule == "step" else None,
        **{name: getattr(config, name) if config.lr_schedule == "plateau" else None for name in PLATEAU},
        "warmup_steps": config.warmup_steps,
        "weight_decay": config.weight_decay,
        "grad_clip": config.grad_clip,
        "swa_start_epoch": config.swa_start_epoch,
        "early_stop_patience": config.early_stop_patience,
        "early_stop_metric": config.early_stop_metric if config.early_stop_patience else None,
        "min_delta": config.min_delta if config.early_stop_patience else None,
        "seed": config.seed,
        "compile": choices.compile,
        "channels_last": choices.channels_last,
        "deterministic": config.deterministic,
        "val_images": choices.val_images,
        "eval_every": choices.eval_every,
        "best_by": config.best_by,
        "samples_per_class": choices.samples_per_class,
        "sample_steps": config.sample_steps,
        "guidance_scale": config.guidance_scale,
    }


def environment(
    choices: Choices, world: DistContext, threads: Threads, by_step: list[dict[str, int | None]]
) -> dict[str, Any]:
    """The host, the software, the device, and the choices made for it. (The log leaves out those that are as usual.)"""
    on_gpu = world.device.type == "cuda"
    counted = {} if on_gpu else {"threads": f"{threads.number} ({threads.reason})"}
    compiling = compiler.in_words(world.local_world_size) if choices.compile else {}
    chosen = {"device": f"{world.device.type} ({world.why_device})", **choices.in_words(), **compiling, **counted}
    return {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "device": world.device.type,
        "gpu": hardware.device_name(world.device) if on_gpu else None,
        "world_size": world.world_size,
        "nodes": world.nodes,
        "precision": choices.precision,
        "compile": choices.compile,
        "threads": by_step,  # the last bits of results depend on them
        "choices": chosen,
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit(),
    }


def in_words(description: dict[str, Any]) -> list[str]:
    """The first lines of a run's log: model, data, processes, steps, and what was chosen for the device."""
    settings, machine, model = description["settings"], description["environment"], description["model"]
    schedule = description["hyperparameters"]
    return [
        f"run {description['run']}: UNet of {model['parameters'] / 1e6:.2f} M parameters, {settings['resolution']} px, "
        f"{model['flops_per_image'] / 1e9:,.4g} GFLOP per image",
        counts_in_words(description["data"], description["data_summary"]),
        *description["data_summary"].get("remarks", []),
        *_passes_in_words(description["data_summary"]["train_images"], schedule["images_per_epoch"]),
        f"{plural(machine['world_size'], 'process')} on {machine['gpu'] or 'CPU'}, "
        f"global batch {schedule['global_batch_size']}, {plural(schedule['steps_per_epoch'], 'step')} per epoch, "
        f"{plural(schedule['total_steps'], 'step')}",
        *_lr_in_words(settings, schedule),
        *_balance_in_words(schedule["balance"], description["data_summary"]["train_counts"]),
        "; ".join(f"{name} {why}" for name, why in machine["choices"].items() if not why.endswith(f"({USUAL})")),
    ]


def _passes_in_words(images: int, drawn: int) -> list[str]:
    """A line if an epoch draws every image several times."""
    passes = round(drawn / images)
    return [f"an epoch passes over the training images {passes:,} times (--passes-per-epoch)"] if passes > 1 else []


def _lr_in_words(settings: dict[str, Any], schedule: dict[str, Any]) -> list[str]:
    """A line with the learning rate that `--scale-lr` gives; none without the flag."""
    if settings["scale_lr"] == "none":
        return []
    factor = schedule["learning_rate"] / settings["lr"]
    return [f"learning rate {schedule['learning_rate']:.3g}: --lr {settings['lr']:g} times {factor:g} (--scale-lr)"]


def _balance_in_words(balance: str, counts: list[int]) -> list[str]:
    """A line if `--balance classes` changes what an epoch draws, with the reason; `counts` are training images."""
    if balance == "none" or min(counts) == max(counts):
        return []
    ratio = f"{max(counts) / min(counts):,.3g} times"
    return [f"every class is drawn equally often (--balance classes), as the largest has {ratio} the training images "
            "of the smallest: the model would hardly learn small classes otherwise"]  # fmt: skip


def counts_in_words(name: str, summary: dict[str, Any]) -> str:
    """How many images of each class there are, and whether the classes are equal; of many classes the fewest and the
    most."""
    words, names = [], summary["class_names"]
    for split in ("train", "test"):
        images, counts = summary[f"{split}_images"], summary[f"{split}_counts"]
        if min(counts) == max(counts):
            words.append(f"{split} {plural(images, 'image')}, {counts[0]:,} of each class")
        else:
            each = ", ".join(f"{name}:{count}" for name, count in zip(names, counts, strict=True))
            if len(names) > MOST_SHOWN:
                each = f"{min(counts):,} to {max(counts):,} images in {len(names):,} classes"
            words.append(f"{split} {plural(images, 'image')}, classes NOT equal: {each}")
    return f"{data_words(name)}: {'; '.join(words)}"


def dry_run(config: TrainConfig, world: DistContext) -> None:
    """Print the resolved settings and estimates of compute, memory and disk. Trains nothing and writes nothing, but
    prepares a folder of images, says what was found in it, and draws its contact sheet.

    Raises:
        RequestError: the data are damaged, or the batch is larger than the data set.
    """
    flops = flops_per_image(config)
    source, notes, written = dataset(config), [], "trained or written"
    if isinstance(source, FolderSet):
        notes += [counts_in_words(config.data_name, data_summary(*data.load(config, world))), *source.remarks()]
        written = "trained"
    num_classes = len(source.class_names)
    images = source.count()
    schedule = TrainingSchedule(config, world.world_size, data.images_per_epoch(config, images, num_classes))
    notes += [*_passes_in_words(images, schedule.train_images), *schedule.remarks()]
    choices = hardware.choose(config, num_classes, world.device, flops, world.gather, schedule.total_steps)
    choices = choices.for_test_images(source.count("test"))
    unet = build_unet(config, num_classes, "meta")
    parameters, moments = count_parameters(unet), state_values(config, unet)
    half = 1 if choices.precision == "fp32" else 2
    averages = 1 + bool(config.swa_start_epoch) + config.power_ema * len(POWER_WIDTHS)
    training_bytes = 4 * (parameters * (2 + averages) + moments)  # weights, gradients
    batch_bytes = activation_bytes(config, config.batch_size) // half
    checkpoint_bytes = 4 * (parameters * (1 + averages) + moments)
    kept = (
        min(config.keep_last, schedule.epochs) + 1 + (schedule.epochs // config.keep_every if config.keep_every else 0)
    )
    estimates = {
        "run": config.run,
        "device": f"{hardware.device_name(world.device)}, {plural(world.world_size, 'process')} ({world.why_device})",
        **choices.in_words(),
        "parameters": f"{parameters:,}",
        "compute": f"{flops / 1e9:,.4g} GFLOP per image, forward and backward",
        "global batch": plural(schedule.global_batch, "image"),
        "training images": f"{images:,}" + ("" if source.present() else " (not here yet)"),
        "learning rate": f"{schedule.peak_lr:.3g} ({config.lr_schedule})",
        "steps": f"{schedule.steps_per_epoch:,} per epoch, {schedule.total_steps:,} in "
        f"{plural(schedule.epochs, 'epoch')}",
        "memory per process": f"about {(training_bytes + batch_bytes) / 2**30:.1f} GiB "
        f"({training_bytes / 2**30:.1f} for the weights, {batch_bytes / 2**30:.1f} for the batch)",
        "disk": f"about {checkpoint_bytes / 2**30:.2f} GiB per checkpoint, {kept * checkpoint_bytes / 2**30:.1f} GiB "
        f"for the up to {kept} that are kept",
    }
    if world.is_main:
        print(json.dumps(config.to_dict(), indent=2))
        if isinstance(source, FolderSet):
            part = part_words(num_classes)
            sheet = f"{source.contact_sheet()}{part and f' ({part})'}"
            estimates |= {"prepared images": source.file, "contact sheet": sheet}
        for name, text in (*estimates.items(), *(("note", note) for note in notes)):
            print(f"{name + ':':<20} {text}")
        print(f"dry run: nothing was {written}")


def commit() -> str | None:
    """The project's git commit, with a + if files differ from it; None outside a repository."""
    command = ["git", "-C", str(PROJECT_ROOT), "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        return (
            subprocess.run(
                command, capture_output=True, encoding="utf-8", errors="replace", timeout=10, check=True
            ).stdout.strip()
            or None
        )
    except (OSError, subprocess.SubprocessError):
        return None
