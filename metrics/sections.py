"""The sections that several pages of a run share: warnings, facts, summary, epochs, starts, time, data, artifacts."""

from __future__ import annotations

import json
from typing import Any

from ddpm.run.criteria import parse_criteria
from ddpm.run.files import real
from ddpm.run.format import DASH, count, duration, shown, timestamp
from ddpm.run.metrics import EPOCH_TABLE, EPOCH_TIME_SEC, VAL_LOSS, VAL_LOSS_SWA, chosen_by, select
from metrics.criteria.of_run import purpose_of
from metrics.page import Block, Bullets, Code, Note, Section, Table, code, link
from metrics.run_data import RunData
from metrics.starts import computed, stamp_of, why_started
from metrics.trends import best

SUMMARY = {  # row: (format, what it is)
    "total_epochs": (".0f", "epochs with a row below"),
    "total_samples": (",.0f", "training images seen up to the last epoch, repeats included, by all processes"),
    "total_time_sec": (",.1f", "seconds of these epochs, with validation, samples and checkpoints; the time of all "
                               "starts is under Starts"),
    "total_time_human": ("", "the same in hours, minutes and seconds"),
    "best_epoch": (".0f", "the epoch of `best_loss`"),
    "best_loss": (".5f", "smallest mean training loss of an epoch"),
    "final_loss": (".5f", "mean training loss of the last epoch"),
    "final_lr": (".3e", "learning rate of the last step"),
    "avg_throughput_sps": (",.1f", "images per second of training of the whole job: sum of images / sum of seconds"),
    "peak_gpu_mem_mb": (",.0f", "most memory allocated on one GPU, in MB of 2^20 bytes"),
    "best_val_epoch": (".0f", "the epoch of `best_val_loss_ema`"),
    "best_val_loss_ema": (".5f", "smallest validation loss of the EMA weights; `best` is the saved checkpoint in "
                                 "which it is smallest, unless --best-by is given"),
    "best_swa_epoch": (".0f", "the epoch of `best_val_loss_swa`"),
    "best_val_loss_swa": (".5f", "smallest validation loss of the SWA weights, averaged from --swa-start-epoch on"),
    "final_rca": (".3f", "RCA of the last evaluation in training: Top-1 of drawn images / of test images"),
    "best_rca": (".3f", "largest RCA of the evaluations in training"),
    "final_fid_features": (".3f", "Fréchet distance to test images in the classifier's features, last evaluation"),
    "nonfinite_steps": (".0f", "steps that were skipped because the gradient was not finite"),
    "restarts": (".0f", "how often the run was continued"),
    **{metric.name: (metric.format, metric.meaning) for metric in select(group="cost")},
}  # fmt: skip


def warnings(run: RunData) -> list[Note]:
    """Warnings: trained on glyphs, damaged files, a run that is dead or has stalled."""
    notes = []
    if run.data == "glyphs":
        words = "The characters were drawn from fonts; no figure here says anything about handwriting."
        notes.append(Note(f"**Trained on the embedded glyphs, not EMNIST.** {words}"))
    notes += [Note(f"**{finding.note}**: this page shows what can be read.") for finding in run.findings]
    if run.condition.status == "unhealthy":
        notes.append(Note(f"**Warning:** {run.condition.note}."))
    return notes


def as_of(run: RunData) -> str:
    """The time at which the run was as far as `progress` says."""
    return timestamp(run.status.get("heartbeat") or stamp_of(run.generated))


def progress(run: RunData) -> str:
    """How far the run is: `epoch 3 of 6, step 423 of 846, 13,536 images seen`."""
    done = run.last.get("epoch", 0)
    words = [f"epoch {done} of {run.planned_epochs or DASH}"]
    at_hand = {name: run.status.get(name, run.last.get(name)) for name in ("step", "images_seen")}
    return ", ".join([*words, f"step {count(at_hand['step'])}", f"{count(at_hand['images_seen'])} images seen"])


def machine(run: RunData) -> str:
    """The processors of the whole job, how many and of what kind: `4 × NVIDIA L40S`."""
    known = run.environment
    name = known.get("gpu") or {"cpu": "CPU process", "cuda": "GPU"}.get(known.get("device"), "process")
    return f"{known.get('world_size') or 1} \N{MULTIPLICATION SIGN} {name}"


def best_checkpoint(run: RunData) -> str | None:
    """Which checkpoint `best` is and why; None if it does not belong to an epoch of this run."""
    step = real(run.paths.checkpoints / "best").name
    row = next((row for row in run.rows if step == f"step_{row.get('step') or 0:08}"), None)
    by = run.settings.get("best_by") or VAL_LOSS.name
    metric = chosen_by(by)
    if row is not None and by == "criteria":
        asked = [criterion for criterion in parse_criteria(purpose_of(run).criteria) if criterion.of_weights]
        met = f"criteria of checkpoints met: {sum(one.met_by_weights(row) for one in asked)} of {len(asked)}"
        how = f"`--best-by {by}` takes the epoch, of those that were saved, that meets most, then by validation loss"
        return f"`{step}`, after epoch {row['epoch']}, {met}; {how}"
    if row is None or metric is None or metric.of(row) is None:
        return None
    most = "largest" if metric.larger_is_better else "smallest"
    chosen = f"`--best-by {by}` takes the {most} `{metric.name}` of the epochs that were saved"
    return f"`{step}`, after epoch {row['epoch']}, `{metric.name}` {metric.text_of(row)}; {chosen}"


def summary(run: RunData) -> Section:
    """The run in figures."""
    figures = dict(run.summary)
    if swa := best(run.curve(VAL_LOSS_SWA)):  # no row where it was not asked for
        figures |= {"best_swa_epoch": swa.epoch, "best_val_loss_swa": swa.value}
    rows = [
        (f"`{key}`", figures.get(key) or DASH if not form else shown(figures.get(key), form), meaning)
        for key, (form, meaning) in SUMMARY.items()
        if key in figures or "swa" not in key
    ]
    rows += [(f"`{key}`", DASH if value is None else value, "") for key, value in figures.items() if key not in SUMMARY]
    return Section("Summary", [Table("", ["Figure", "Value", "What it is"], rows)])


def hyperparameters(run: RunData) -> Section:
    text = json.dumps(run.document.get("hyperparameters") or {}, indent=2, ensure_ascii=False)
    choices = run.environment.get("choices") or {}
    chosen = (
        ["Chosen for this device:", Bullets([f"{name}: {why}" for name, why in choices.items()])] if choices else []
    )
    return Section("Hyperparameters", [Code(text, "json"), *chosen])


def epochs(run: RunData) -> Section:
    """A row for each epoch; columns that no epoch has are left out."""
    if not run.rows:
        return Section("Per-Epoch Metrics", ["No epoch has finished yet."])
    columns = [metric for metric in EPOCH_TABLE if any(row.get(metric.name) is not None for row in run.rows)]
    cells = [[metric.text_of(row) for metric in columns] for row in run.rows]
    notes = Bullets([f"**{metric.heading}**: {metric.meaning}." for metric in columns[1:]])
    return Section("Per-Epoch Metrics", [Table("", [metric.heading for metric in columns], cells, numbers=True), notes])


def starts(run: RunData) -> Section:
    """Every start up to its last heartbeat: why it was needed, what it computed, and what was trained twice."""
    heads = ["Began", "Cause", "From step", "Images trained", "Time", "GPU-hours"]
    rows = [
        (timestamp(start.began), why_started(start.cause), count(start.began_at), count(start.images),
         duration(start.seconds), shown(start.gpu_seconds / 3600 or None, ",.2f"))
        for start in run.starts
    ]  # fmt: skip
    seen = run.status.get("images_seen", run.last.get("images_seen"))
    total = computed(run.starts, seen)
    words = []
    if total.seconds is not None:
        words.append(f"All starts together took {duration(total.seconds)}, each up to its last heartbeat.")
    if total.repeated:
        words.append(
            f"Of {count(total.images)} images, {count(total.repeated)} were trained again after an interruption."
        )
    return Section("Starts", [Table("", heads, rows), " ".join(words) or None])


def time_shares(run: RunData) -> tuple[list[str], Table]:
    """What the seconds of the epochs went into, and which parts were not timed."""
    total = sum(run.curve(EPOCH_TIME_SEC).values)
    parts = {metric.label: run.curve(metric) for metric in select(group="time", over_epochs="sum")}
    spent = {label: sum(curve.values) for label, curve in parts.items() if len(curve)}
    unknown = [label for label in parts if label not in spent]
    spent["other: start, compilation, reports"] = max(total - sum(spent.values()), 0.0)
    cells = [(name, f"{value:,.1f}", shown(value / total if total else None, ".1%")) for name, value in spent.items()]
    return unknown, Table("Where the time went", ["Part", "Seconds", "Share"], cells)


def data(run: RunData) -> Section:
    """How many images of each class there are, and whether the classes are equal."""
    known, splits = run.document.get("data_summary") or {}, ("train", "test")
    names, words = known.get("class_names") or [], run.data_words
    counts = {split: values for split in splits if (values := known.get(f"{split}_counts"))}
    blocks: list[Block] = [f"{words[0].upper()}{words[1:]}."]
    if (run.document.get("hyperparameters") or {}).get("balance") == "classes":
        blocks.append("Every class is drawn equally often in an epoch (`--balance classes`), whatever its images.")
    if counts:
        blocks.append(Bullets([_balance(split, values, names) for split, values in counts.items()]))
    if len(counts) == len(splits):
        rows = [(code(name), *numbers) for name, *numbers in zip(names, *counts.values(), strict=True)]
        blocks.append(Table("Images of each class", ["Class", *splits], rows, folded=True))
    return Section("Data", blocks)


def _balance(split: str, counts: list[int], names: list[str]) -> str:
    low, high = min(counts), max(counts)
    if low == high:
        return f"{split}: {sum(counts):,} images, {low:,} in each of {len(counts)} classes (equal)"
    ends = [f"{extreme:,} ({code(names[counts.index(extreme)])})" for extreme in (low, high)]
    return f"{split}: {sum(counts):,} images; the classes are **not equal**: from {' to '.join(ends)}"


def artifacts(run: RunData, written: dict[str, Any]) -> Section:
    """Links to what exists, by paths relative to the output root. `written`: label → path, about to be written."""
    root, folder = run.paths.root, run.paths.metrics
    places = {label: path.relative_to(root) for label, path in written.items()}
    places |= {**(run.document.get("artifacts") or {}), **run.paths.artifacts()}
    there = {label: place for label, place in places.items() if label in written or (root / place).exists()}
    rows = [(label, link(code(place), root / place, folder)) for label, place in there.items()]
    return Section("Saved Artifacts", ["Paths are relative to the output root.", Table("", ["What", "Path"], rows)])
