"""What lies on disk, for the health check: the data set, the model as the run describes it, and the checkpoints."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ddpm.run.config import data_words
from ddpm.run.errors import RequestError
from ddpm.run.files import real, why
from ddpm.run.format import number
from ddpm.run.paths import RunPaths, readable_folder
from ddpm.training.emnist import CLASS_NAMES, check_split, read_idx, split_files
from metrics.health.checks import DASH, Finding, Section, Table, column, fact, healthy, shown, unhealthy, warning
from metrics.health.thresholds import Thresholds
from metrics.run_state import RunState

SPLITS = ("train", "test")
EMNIST_MEAN, EMNIST_STD = 0.1751, 0.3332  # pixels in 0..1 of the 112,800 training images of EMNIST Balanced
MEGABYTE = 1e6


def data(document: dict[str, Any], identity: dict[str, Any], limits: Thresholds) -> Section:
    """Counts and balance as the run published them, and the images themselves where the folder is within reach.

    Args:
        document: training_metrics.json, or what there is of it.
        identity: of a checkpoint; its SHA-256 tells whether the files are still those that were trained on.
    """
    name, summary = document.get("data"), document.get("data_summary") or {}
    found = [fact(f"trained on: {data_words(name) if name else 'not known'}")]
    counts = {split: summary.get(f"{split}_counts") for split in SPLITS if summary.get(f"{split}_counts")}
    found += [_balance(split, values, limits) for split, values in counts.items()]
    names = summary.get("class_names") or CLASS_NAMES
    rows = [(label, *numbers) for label, *numbers in zip(names, *counts.values(), strict=False)]
    tables = [Table("Images of each class", ["Class", *counts], rows, folded=True)] if counts else []
    place = (document.get("settings") or {}).get("data_root")
    try:
        if not place or not name:
            raise RequestError("the run's settings name no folder")
        found += _images(name, Path(place), identity, limits)
    except (RequestError, OSError, ValueError) as error:
        found.append(
            fact(
                f"the images could not be read from here, so only the counts that the run published are shown ({error})"
            )
        )
    return Section("data", found, tables)


def _balance(split: str, counts: Sequence[int], limits: Thresholds) -> Finding:
    low, high = min(counts), max(counts)
    words = f"{split}: {sum(counts):,} images in {len(counts)} classes"
    if not low:
        return unhealthy(f"{words}; {sum(not count for count in counts)} class(es) have none")
    if high / low > limits.class_imbalance:
        return warning(
            f"{words}, not balanced: {low:,} to {high:,} a class, {high / low:.2f} times (limit "
            f"{limits.class_imbalance:g})"
        )
    return healthy(f"{words}, {low:,} to {high:,} in each" if low < high else f"{words}, {low:,} in each")


def _images(name: str, folder: Path, identity: dict[str, Any], limits: Thresholds) -> list[Finding]:
    """Range of labels, statistics of pixels, duplicates, and whether they are the images that were trained on.

    Raises:
        RequestError: a file is missing or damaged.
    """
    from ddpm.training.data import data_root  # torch is slow to import, and the dashboard never comes here

    root = data_root(SimpleNamespace(data=name, data_root=folder))
    images, labels = {}, {}
    for split in SPLITS:
        check_split(root, split)
        places = split_files(root, split)
        images[split], labels[split] = read_idx(places[0], 3), read_idx(places[1], 1)
    found = [
        healthy(
            f"labels run from {min(x.min() for x in labels.values())} to "
            f"{max(x.max() for x in labels.values())}, one for each of {len(CLASS_NAMES)} classes"
        )
    ]
    shades = np.bincount(np.asarray(images["train"]).ravel(), minlength=256)
    levels = np.arange(256) / 255
    mean = (shades * levels).sum() / shades.sum()
    std = np.sqrt((shades * (levels - mean) ** 2).sum() / shades.sum())
    words = f"training pixels, 0 to 1: mean {mean:.4f}, standard deviation {std:.4f}"
    if name == "emnist":
        far = abs(mean - EMNIST_MEAN) > limits.pixel_mean or abs(std - EMNIST_STD) > limits.pixel_std
        found.append(
            Finding("warning" if far else "healthy", f"{words}; all of EMNIST Balanced: {EMNIST_MEAN} and {EMNIST_STD}")
        )
    else:
        found.append(fact(f"{words} (not EMNIST, so there is nothing to compare with)"))
    found.append(_duplicates(images, limits))
    if expected := identity.get("SHA-256 of the images"):
        same = _digest(images["train"], labels["train"]).startswith(expected)
        found.append(
            healthy(f"the files are those that were trained on (SHA-256 {expected}…)")
            if same
            else warning(f"the files in {root} are no longer those that were trained on (SHA-256 {expected}…)")
        )
    return found


def _digest(images: np.ndarray, labels: np.ndarray) -> str:
    """As `ddpm.training.data.agreed_sha256` has it: of the upright pixels, then of the labels as int64."""
    content = hashlib.sha256(np.ascontiguousarray(images.transpose(0, 2, 1)))
    content.update(labels.astype(np.int64))
    return content.hexdigest()


def _duplicates(images: dict[str, np.ndarray], limits: Thresholds) -> Finding:
    train = {image.tobytes() for image in images["train"]}
    shared = sum(image.tobytes() in train for image in images["test"])
    total, repeated = len(images["test"]), len(images["train"]) - len(train)
    note = (
        f"{shared:,} of {total:,} test images ({shared / total:.2%}) are training images too, pixel by pixel "
        f"(limit {limits.duplicates:.1%}); "
    )
    note += f"{repeated:,} training images repeat another one"
    return Finding("warning" if shared / total > limits.duplicates else "healthy", note)


def model(document: dict[str, Any], rows: Sequence[dict[str, Any]], state: RunState) -> Section:
    """Size, arithmetic, precision and memory."""
    about, machine = document.get("model") or {}, document.get("environment") or {}
    parameters, flops = number(about.get("parameters")), number(about.get("flops_per_image"))
    if parameters is None:
        return Section("model", [fact("training_metrics.json does not describe it")])
    why = (machine.get("choices") or {}).get("precision", machine.get("precision") or DASH)
    device = machine.get("gpu") or machine.get("device") or (state.status or {}).get("device") or DASH
    found = [
        healthy(
            f"{parameters:,.0f} parameters, {parameters * 4 / MEGABYTE:,.1f} MB of float32 weights; "
            f"{shown(flops and flops / 1e9, ',.4g')} GFLOP per image, forward and backward"
        ),
        fact(
            f"precision {why}; compiled: {machine.get('compile')}; {machine.get('world_size') or 1} "
            f"process(es) on {device}"
        ),
    ]
    peak = column(rows, "gpu_mem_peak_mb")
    if np.isfinite(peak).any():
        worst = int(np.nanargmax(peak))
        found.append(
            fact(f"at most {peak[worst]:,.0f} MB of 2^20 bytes in use on one GPU (epoch {rows[worst].get('epoch')})")
        )
    else:
        found.append(fact("memory: not measured on a CPU"))
    return Section("model", found)


class CheckpointReader:
    """Inspects a run's checkpoints; one that has been found whole is not hashed again until it changes."""

    def __init__(self, paths: RunPaths) -> None:
        self._paths = paths
        self._known: dict[tuple[Path, int], str | None] = {}

    def problem(self, folder: Path) -> str | None:
        """Why a checkpoint is not whole; None if it is."""
        from ddpm.training.checkpoint import inspect

        stamps = [(path, path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.rglob("*"))]
        key = (folder, hash(tuple(stamps)))
        if key not in self._known:
            try:
                inspect(folder)
                self._known[key] = None
            except RequestError as error:
                self._known[key] = str(error).rpartition(": ")[0]
        return self._known[key]

    def newest(self) -> Path | None:
        """The folder of the newest checkpoint: `latest`, or one beyond it whose state is unsound."""
        return max(self._paths.checkpoints.glob("step_*"), default=None)

    def section(self, rows: Sequence[dict[str, Any]], settings: dict[str, Any], chosen: Path | None) -> Section:
        """The run's checkpoints: what is in them, and which are whole. `chosen`: the one whose files are listed."""
        from ddpm.training.checkpoint import read_meta

        root = self._paths.checkpoints
        try:
            readable_folder(root)
        except OSError as error:
            return Section("checkpoints", [warning(f"not looked into: {why(error)}")])
        links = {name: real(root / name) for name in ("best", "latest")}
        found, cells, whole = [], [], []
        for folder in sorted(root.glob("step_*")):
            try:
                problem = self.problem(folder)
                size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            except OSError as error:
                if os.path.lexists(folder):
                    found.append(warning(f"{folder.name} could not be read: {error.strerror or error}"))
                continue
            if problem and not os.path.lexists(folder):  # pruned by the run while we looked
                continue
            pointed = [name for name, target in links.items() if target == real(folder)]
            meta = read_meta(folder)
            place, figures, unsound = meta.get("progress") or {}, meta.get("metrics") or {}, meta.get("unsound")
            cells.append(
                (
                    folder.name,
                    place.get("epoch", DASH),
                    f"{size / MEGABYTE:,.1f} MB",
                    ", ".join(pointed) or DASH,
                    shown(figures.get("val_loss_ema"), ".5f"),
                    "damaged" if problem else "yes",
                    "no" if unsound else "yes",
                )
            )
            if unsound:
                found.append(unhealthy(f"the state of {folder.name} is unsound: {unsound}"))
            if problem:
                found.append(
                    Finding(
                        "unhealthy" if pointed else "warning",
                        f"{folder.name} ({' and '.join(pointed) or 'an older one'}) is not whole: {problem}",
                    )
                )
            else:
                whole.append(folder)
        if whole:
            found.insert(
                0,
                healthy(
                    f"{len(whole)} whole checkpoint(s), every file as its SHA-256 says; the newest is {whole[-1].name}"
                ),
            )
        elif rows and settings.get("checkpoint_every", 1) == 1:
            found.insert(
                0,
                unhealthy(
                    f"no whole checkpoint in {root}, though {len(rows)} epoch(s) are done: a crash would "
                    "cost all of them"
                ),
            )
        else:
            found.insert(0, fact(f"none in {root}"))
        for pattern, what in {"damaged_*": "as damaged", "abandoned-*": "when it went back"}.items():
            if aside := sorted(path.name for path in root.glob(pattern)):
                found.append(fact(f"set aside {what} by an earlier start: {', '.join(aside)}"))
        heads = ["Checkpoint", "Epochs done", "Size", "Is", "val_loss_ema", "Whole", "Sound"]
        tables = [Table("Checkpoints", heads, cells)] if cells else []
        return Section("checkpoints", found, tables + (_contents(chosen) if chosen else []))


def _contents(folder: Path) -> list[Table]:
    rows = [
        (path.relative_to(folder).as_posix(), f"{path.stat().st_size:,}")
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    return [Table(f"Files of {folder.name}", ["File", "Bytes"], rows, folded=True)]
