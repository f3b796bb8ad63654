"""Evaluations as evaluate.py writes them, and the report's section of one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ddpm.run.evaluation_file import load_evaluation
from ddpm.run.paths import RunPaths
from metrics.evaluation.section import evaluation_section
from metrics.page import Page, plain, to_markdown
from metrics.report import report_page
from metrics.run_reader import load_run
from tests.support.metrics_documents import CLASSES, make_document

EVERY_PLOT = ["confusion", "per_class", "class_balance", "memorisation"]
PER_CLASS = 100
FEW = ["--samples-per-class", "1", "--steps", "2", "--device", "cpu"]  # to evaluate.py, as quick as can be
SAMPLERS = (("ddpm", 600), ("ddpm", 250), ("ddim", 100), ("ddim", 50), ("ddim", 25), ("dpm++", 30), ("dpm++", 20),
            ("dpm++", 15), ("dpm++", 10))  # fmt: skip


def text_of(paths: RunPaths) -> str:
    """The section as it stands in the report."""
    return to_markdown(Page("", [evaluation_section(paths)]), paths.metrics)


def report_of(paths: RunPaths) -> str:
    """The text of the report, without drawing the plots."""
    return to_markdown(report_page(load_run(paths)), paths.metrics)


def read(root: Path, evaluation: dict) -> dict:
    """The evaluation as pages get it."""
    return load_evaluation(publish(root, evaluation))


def estimate(value: float, half: float, count: int) -> dict:
    return {"value": value, "low": value - half, "high": value + half, "count": count}


def make_evaluation(*, data: str = "emnist", sweeps: bool = True) -> dict:
    """A plausible evaluation: `I`, `O` and `F` are misread as people misread them, the rest is mostly right."""
    confusion = np.full((47, 47), 0)
    for asked, read, times in (("I", "1", 38), ("O", "0", 33), ("F", "f", 24), ("L", "1", 20), ("q", "9", 11)):
        confusion[CLASSES.index(asked), CLASSES.index(read)] = times
    for label in range(47):
        confusion[label, (label * 7 + 3) % 47] += 2
        confusion[label, label] += PER_CLASS - confusion[label].sum()
    right = confusion.diagonal() / PER_CLASS
    tests = np.clip(right + 0.04 * np.sin(np.arange(47)), 0, 1)
    count, edges = 47 * PER_CLASS, np.linspace(0, 12, 61)
    bell = [np.round(1000 * np.exp(-(((edges[:-1] - middle) / 1.6) ** 2))) for middle in (5.1, 5.6)]
    rows = [
        {"rca": estimate(0.97 - 0.2 / steps, 0.03, 470), "frechet": estimate(3 + 30 / steps, 0.5, 470),
         "sampler": sampler, "steps": steps, "seconds_per_image": 0.0021 * steps}
        for sampler, steps in SAMPLERS
    ]  # fmt: skip
    scales = [
        {"guidance_scale": scale, "rca": estimate(0.9 - 0.7 * np.exp(-2 * scale), 0.03, 470),
         "top1": estimate(0.8, 0.03, 470), "frechet": estimate(4 + (scale - 1.6) ** 2, 0.6, 470),
         "frechet_real": estimate(1.9, 0.3, 470)}
        for scale in (0.0, 1.0, 1.5, 2.0, 3.0, 5.0)
    ]  # fmt: skip
    take = {"sampler": "dpm++", "steps": 15, "why": "the fastest that cannot be told from the best of 9 measured"}
    return {
        "generated": "2026-05-04T03:02:01+0000", "run": "a_run", "checkpoint": "step_00028200", "step": 28200,
        "data": data, "device": "NVIDIA L40S", "torch": "2.14.1", "command": "python evaluate.py a_run --seed 3",
        "seed": 3, "samples_per_class": PER_CLASS,
        "test_images": {"total": 18800, "validation": 2000, "evaluation": 16800},
        "classifier": {
            "top1": estimate(0.8893, 0.004, 16800), "top5": estimate(0.991, 0.001, 16800), "train_images": 112800,
            "test_images": 16800, "epochs": 12, "seconds": 210.0, "data_sha256": "0" * 64,
            "per_class_top1": tests.tolist(),
        },
        "sampler": {"name": "ddim", "steps": 50, "guidance_scale": 2.0, "seconds_per_image": 0.0123},
        "conditional": {
            "top1": estimate(right.mean(), 0.01, count), "top5": estimate(0.98, 0.004, count),
            "rca": estimate(right.mean() / 0.8893, 0.012, count),
            "per_class": [
                {"name": name, "top1": ours, "real_top1": real, "rca": ours / real, "count": PER_CLASS,
                 "real_count": 357}
                for name, ours, real in zip(CLASSES, right, tests, strict=True)
            ],
            "confusion": confusion.tolist(),
        },
        "class_balance": {
            "shares": ((1 + 0.3 * np.sin(np.arange(47))) / 47).tolist(), "real_shares": [1 / 47] * 47,
            "total_variation": estimate(0.0931, 0.006, count), "real_total_variation": estimate(0.031, 0.004, count),
            "count": count,
        },
        "distances": {
            "frechet": estimate(3.24, 0.21, count), "frechet_real": estimate(0.81, 0.05, count),
            "kernel": estimate(0.0123, 0.001, 1000), "kernel_real": estimate(0.0001, 0.0002, 1000),
            "precision": estimate(0.873, 0.01, count), "recall": estimate(0.702, 0.012, count),
            "density": estimate(0.95, 0.03, count), "density_real": estimate(1.01, 0.02, count),
            "coverage": estimate(0.88, 0.01, 8400), "coverage_real": estimate(0.97, 0.01, 8400),
            "feature_size": 128, "reference_images": 8400,
        },
        "memorisation": {
            "generated": {"p01": 2.5, "p05": 3.1, "p50": 5.2, "p95": 7.9},
            "heldout": {"p01": 2.6, "p05": 3.3, "p50": 5.6, "p95": 8.4},
            "closer_than_heldout_p01": estimate(0.0104, 0.003, count),
            "histogram": {"edges": edges.tolist(), "generated": bell[0].tolist(), "heldout": bell[1].tolist()},
            "train_images": 112800,
        },
        "unguided": {"top1": estimate(0.7, 0.02, count), "rca": estimate(0.79, 0.02, count),
                     "frechet": estimate(5.2, 0.3, count), "frechet_real": estimate(0.81, 0.05, count)},
        "learning": {
            "images": count, "seeds": 3, "accuracy": estimate(0.704, 0.01, 16800),
            "real_accuracy": estimate(0.851, 0.008, 16800), "cas": estimate(0.827, 0.02, 16800),
            "cas_unguided": estimate(0.809, 0.02, 16800), "augmented": estimate(1.012, 0.01, 16800),
            "worth": estimate(812, 60, count),
            "curve": [{"images": count // 2**part, "accuracy": 0.851 - 0.05 * part} for part in (3, 2, 1, 0)],
            "per_class": [
                {"name": name, "accuracy": 0.9 * ours, "real_accuracy": real, "cas": 0.9 * ours / real}
                for name, ours, real in zip(CLASSES, right, tests, strict=True)
            ],
        },
        "guidance": scales if sweeps else [], "samplers": rows if sweeps else [],
        "recommended": take if sweeps else None,
    }  # fmt: skip


def publish(root: Path, evaluation: dict | str | None) -> RunPaths:
    """A run's folder with its metrics and, as evaluate.py leaves it, an evaluation."""
    paths = RunPaths(root, "a_run")
    paths.metrics.mkdir(parents=True)
    paths.json.write_text(json.dumps(make_document(2, run="a_run")))
    if evaluation is not None:
        paths.evaluation.write_text(evaluation if isinstance(evaluation, str) else json.dumps(evaluation))
    return paths


def section(root: Path, evaluation: dict | str | None) -> str:
    return text_of(publish(root, evaluation))


def cells(text: str, figure: str) -> list[str]:
    """The row of the table of figures that begins with `figure`."""
    (row, *_) = [line for line in text.splitlines() if line.startswith(f"| {figure} |")]
    return [plain(cell.strip()).replace("\\", "") for cell in row.strip("|").split("|")]


def below(text: str, figure: str) -> list[str]:
    """The row below that one, of test images."""
    lines = text.splitlines()
    place = next(index for index, line in enumerate(lines) if line.startswith(f"| {figure} |"))
    return cells("\n".join(lines[place + 1 :]), "– of test images")


def save_grid(paths: RunPaths, epoch: int, shade: int) -> Path:
    """As training saves it: two of each class, the first of `shade`."""
    paths.samples.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((94, 28, 28), np.uint8)
    pixels[::2] = shade
    file = paths.samples / f"emnist_epoch_{epoch:04d}.npz"
    np.savez_compressed(file, x=pixels, y=np.arange(47).repeat(2))
    return file
