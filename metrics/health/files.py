"""Checks of the data set, of the model as the run describes it, and of the checkpoints."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np

from ddpm.data.sets import dataset, sha256
from ddpm.run.datasets import DataName, drawn_equally
from ddpm.run.errors import RequestError
from ddpm.run.files import real, why
from ddpm.run.format import DASH, plural, shown
from ddpm.run.metrics import GPU_MEM_PEAK_MB, VAL_LOSS_EMA
from ddpm.run.paths import RunPaths, readable_folder
from metrics.health.checks import Component, fact, healthy, unhealthy, warning
from metrics.health.thresholds import Thresholds
from metrics.page import Finding, Table, code
from metrics.run_data import RunData

SPLITS = ("train", "test")
EMNIST_MEAN, EMNIST_STD = 0.1751, 0.3332  # pixels in 0..1 of the 112,800 training images of EMNIST Balanced
MEGABYTE = 1e6


def data(run: RunData, identity: dict[str, Any], limits: Thresholds) -> Component:
    """Counts and balance as the run published them, and the images themselves where the folder can be read.

    Args:
        identity: of a checkpoint; its SHA-256 tells whether the files are still those that were trained on.
    """
    found, summary = [fact(f"trained on: {run.data_words}")], run.document.get("data_summary") or {}
    counts = {split: values for split in SPLITS if (values := summary.get(f"{split}_counts"))}
    found += [_sizes(run, split, values, limits) for split, values in counts.items()]
    names = summary.get("class_names") or []
    rows = [(code(name), *numbers) for name, *numbers in zip(names, *counts.values(), strict=False)]
    tables = [Table("Images of each class", ["Class", *counts], rows, folded=True)] if counts else []
    try:
        if not run.settings.get("data_root") or not run.data:
            raise RequestError("the run's settings name no folder")
        found += _images(run, identity, limits)
    except (RequestError, OSError, ValueError) as error:
        words = "the images could not be read from here, so only the counts that the run published are shown"
        found.append(fact(f"{words} ({error})"))
    return Component("data", found, tables)


def _sizes(run: RunData, split: str, counts: Sequence[int], limits: Thresholds) -> Finding:
    """Sizes of the classes. Only those of EMNIST Balanced have to be equal; others may be drawn equally often."""
    low, high = min(counts), max(counts)
    words = f"{split}: {sum(counts):,} images in {len(counts)} classes"
    if not low:
        return unhealthy(f"{words}; {plural(sum(not count for count in counts), 'class')} without any")
    equal = run.data == "emnist"
    limit = limits.class_imbalance if equal else limits.class_spread
    asked = (run.settings.get(name) for name in ("balance", "data", "split"))
    if high / low > limit and (equal or (split == "train" and not drawn_equally(*asked))):
        ratio = f"{high / low:.2f} times (limit {limit:g})"
        return warning(f"{words}, not balanced: {low:,} to {high:,} a class, {ratio}")
    return healthy(f"{words}, {low:,} to {high:,} in each" if low < high else f"{words}, {low:,} in each")


def _images(run: RunData, identity: dict[str, Any], limits: Thresholds) -> list[Finding]:
    """Range of labels, statistics of pixels, duplicates, and whether they are the images that were trained on.

    Raises:
        RequestError: a file is missing or damaged.
    """
    usual = {"data": run.data, "split": "balanced", "invert": "auto", "resolution": None}
    settings = SimpleNamespace(**{**usual, **run.settings, "output_root": run.paths.root})
    if settings.data not in get_args(DataName):
        raise RequestError("the run's settings name no data set")
    source = dataset(settings)
    images, labels = {}, {}
    for split in SPLITS:
        source.check(split)
        images[split], labels[split] = source.read(split)
    least, most = min(x.min() for x in labels.values()), max(x.max() for x in labels.values())
    found = [healthy(f"labels run from {least} to {most}, one for each of {len(source.class_names)} classes")]
    found += [_pixels(run.data, images["train"], limits), _duplicates(images, limits)]
    if expected := identity.get("SHA-256 of the images"):
        if sha256(images["train"], labels["train"]).startswith(expected):
            found.append(healthy(f"the files are those that were trained on (SHA-256 {expected}…)"))
        else:
            words = f"the files in {run.settings['data_root']} are no longer those that were trained on"
            found.append(warning(f"{words} (SHA-256 {expected}…)"))
    return found


def _pixels(name: str, images: np.ndarray, limits: Thresholds) -> Finding:
    """Mean and standard deviation of the training pixels, uint8 [N, S, S], as numbers from 0 to 1."""
    shades, levels = np.bincount(np.asarray(images).ravel(), minlength=256), np.arange(256) / 255
    mean = (shades * levels).sum() / shades.sum()
    std = np.sqrt((shades * (levels - mean) ** 2).sum() / shades.sum())
    words = f"training pixels, 0 to 1: mean {mean:.4f}, standard deviation {std:.4f}"
    if name != "emnist":
        return fact(f"{words} (not EMNIST Balanced, so there is nothing to compare with)")
    far = abs(mean - EMNIST_MEAN) > limits.pixel_mean or abs(std - EMNIST_STD) > limits.pixel_std
    return Finding("warning" if far else "healthy", f"{words}; all of EMNIST Balanced: {EMNIST_MEAN} and {EMNIST_STD}")


def _duplicates(images: dict[str, np.ndarray], limits: Thresholds) -> Finding:
    train = {image.tobytes() for image in images["train"]}
    shared = sum(image.tobytes() in train for image in images["test"])
    total, repeated = len(images["test"]), len(images["train"]) - len(train)
    note = f"{shared:,} of {total:,} test images ({shared / total:.2%}) are training images too, pixel by pixel "
    note += f"(limit {limits.duplicates:.1%}); {repeated:,} training images repeat another one"
    return Finding("warning" if shared / total > limits.duplicates else "healthy", note)


def model(run: RunData) -> Component:
    """Size, FLOP, precision and memory of the model."""
    about, machine = run.document.get("model") or {}, run.environment
    parameters, flops = about.get("parameters"), about.get("flops_per_image")
    if parameters is None:
        return Component("model", [fact("training_metrics.json does not describe it")])
    why = (machine.get("choices") or {}).get("precision", machine.get("precision") or DASH)
    device = machine.get("gpu") or machine.get("device") or run.status.get("device") or DASH
    size = f"{parameters:,} parameters, {parameters * 4 / MEGABYTE:,.1f} MB of float32 weights"
    cost = f"{shown(flops and flops / 1e9, ',.4g')} GFLOP per image, forward and backward"
    where = f"{plural(machine.get('world_size') or 1, 'process')} on {device}"
    found = [healthy(f"{size}; {cost}"), fact(f"precision {why}; compiled: {machine.get('compile')}; {where}")]
    peak = run.curve(GPU_MEM_PEAK_MB)
    if not len(peak):
        why = "not measured on a CPU" if machine.get("device") == "cpu" else "not measured yet"
        return Component("model", [*found, fact(f"memory: {why}")])
    most = peak.point(int(peak.values.argmax()))
    words = f"at most {most.value:,.0f} MB of 2^20 bytes in use on one GPU (epoch {most.epoch})"
    return Component("model", [*found, fact(words)])


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
        """The folder of the newest checkpoint: `latest`, or a later one whose state is unsound."""
        return max(self._paths.checkpoints.glob("step_*"), default=None)

    def component(self, run: RunData, chosen: Path | None) -> Component:
        """The run's checkpoints: what is in them, and which are whole. `chosen`: the one whose files are listed."""
        root = self._paths.checkpoints
        try:
            readable_folder(root)
        except OSError as error:
            return Component("checkpoints", [warning(f"not examined: {why(error)}")])
        links = {name: real(root / name) for name in ("best", "latest")}
        found, cells, whole = [], [], []
        for folder in sorted(root.glob("step_*")):
            try:
                problem, size = self.problem(folder), _size(folder)
            except OSError as error:
                if os.path.lexists(folder):
                    found.append(warning(f"{folder.name} could not be read: {error.strerror or error}"))
                continue
            if problem and not os.path.lexists(folder):  # pruned by the run in the meantime
                continue
            pointed = [name for name, target in links.items() if target == real(folder)]
            found += _checkpoint_findings(folder, problem, pointed)
            cells.append(_cells(folder, problem, pointed, size))
            whole += [] if problem else [folder]
        found.insert(0, _overall(run, root, whole))
        for pattern, what in {"damaged_*": "as damaged", "abandoned-*": "when it went back"}.items():
            if aside := sorted(path.name for path in root.glob(pattern)):
                found.append(fact(f"set aside {what} by an earlier start: {', '.join(aside)}"))
        heads = ["Checkpoint", "Epochs done", "Size", "Links", VAL_LOSS_EMA.heading, "Whole", "Sound"]
        tables = [Table("Checkpoints", heads, cells)] if cells else []
        return Component("checkpoints", found, tables + (_contents(chosen) if chosen else []))


def _overall(run: RunData, root: Path, whole: Sequence[Path]) -> Finding:
    if whole:
        many = f"{plural(len(whole), 'whole checkpoint')}, every file as its SHA-256 says"
        return healthy(f"{many}; the newest is {whole[-1].name}")
    if run.rows and run.settings and run.settings.get("checkpoint_every", 1) == 1:
        done = plural(len(run.rows), "epoch")
        return unhealthy(f"no whole checkpoint in {root}, though {done} are done: a crash would lose them all")
    return fact(f"none in {root}")


def _checkpoint_findings(folder: Path, problem: str | None, pointed: Sequence[str]) -> list[Finding]:
    """What is wrong with a checkpoint. `pointed`: the links (best, latest) that point to it."""
    from ddpm.training.checkpoint import read_meta

    found, unsound = [], read_meta(folder).get("unsound")
    if unsound:
        found.append(unhealthy(f"the state of {folder.name} is unsound: {unsound}"))
    if problem:
        note = f"{folder.name} ({' and '.join(pointed) or 'an older one'}) is not whole: {problem}"
        found.append(Finding("unhealthy" if pointed else "warning", note))
    return found


def _cells(folder: Path, problem: str | None, pointed: Sequence[str], size: int) -> tuple[Any, ...]:
    from ddpm.training.checkpoint import read_meta

    meta = read_meta(folder)
    done, loss = (meta.get("progress") or {}).get("epoch", DASH), VAL_LOSS_EMA.text_of(meta.get("metrics") or {})
    state = ("damaged" if problem else "yes", "no" if meta.get("unsound") else "yes")
    return (folder.name, done, f"{size / MEGABYTE:,.1f} MB", ", ".join(pointed) or DASH, loss, *state)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _contents(folder: Path) -> list[Table]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    rows = [(path.relative_to(folder).as_posix(), f"{path.stat().st_size:,}") for path in files]
    return [Table(f"Files of {folder.name}", ["File", "Bytes"], rows, folded=True)]
