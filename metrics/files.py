"""The files that a run publishes, read back: training_metrics.json and .csv, status.json, events.jsonl, gpus/*.json.

No function raises for a bad file: what is missing, torn or of the wrong kind is read as missing.
"""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ddpm.run import kinds
from ddpm.run.files import open_regular, parse_json, read_file, read_text, why
from ddpm.run.files import read_json as read_any_json
from ddpm.run.format import duration, finite, number, plural
from ddpm.run.metrics import GRAD_NORM, LOSS_MEAN, LR, SAMPLES_PER_SEC
from ddpm.run.paths import RunPaths
from metrics.tracker import summarise

SEVERITIES = ("debug", "info", "success", "warning", "error")
ENDED = ("finished", "stopped", "failed")
TAIL_BYTES = 64 * 1024
NOW = {"loss": LOSS_MEAN} | {metric.name: metric for metric in (LR, GRAD_NORM, SAMPLES_PER_SEC)}  # of the latest steps
STATUS = kinds.record(
    state=kinds.one_of("running", *ENDED),
    **dict.fromkeys(("run", "data", "phase", "message", "host", "slurm_job_id", "slurm_restart"), kinds.text),
    **dict.fromkeys(("torchrun", "device"), kinds.text),
    **dict.fromkeys(("started", "heartbeat", "progress_time", "phase_time"), kinds.stamp),
    **dict.fromkeys(("pid", "world_size", "nodes", "epoch", "epochs", "batch", "batches"), kinds.count),
    **dict.fromkeys(("step", "total_steps", "images_seen", "exit_code"), kinds.count),
    **dict.fromkeys(("gpus", "start_step", "start_images"), kinds.count),
    **dict.fromkeys((*NOW, "eta_sec"), kinds.amount),
    retry=kinds.flag,
)
EVENT = kinds.record(
    time=kinds.stamp, kind=kinds.text, severity=kinds.one_of(*SEVERITIES), message=kinds.text,
    row=lambda row: next(iter(kinds.rows([row])[0]), None),
)  # fmt: skip
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
GPU = kinds.record(
    index=kinds.count, name=kinds.text, throttle=kinds.some(kinds.text),
    **dict.fromkeys(("utilization", "memory_used_mb", "memory_total_mb", "power_w", "power_limit_w"), kinds.amount),
    temperature_c=kinds.figure, **dict.fromkeys(("ecc_corrected", "ecc_uncorrected"), kinds.count),
)  # fmt: skip
NODE = kinds.record(
    time=kinds.stamp, node=kinds.text, gpus=kinds.some(GPU), note=kinds.text, starts=kinds.some(kinds.anything(dict))
)  # fmt: skip
PARTS = {
    "settings": kinds.settings,
    "hyperparameters": lambda part: {**part, **HYPERPARAMETERS(part)} if isinstance(part, dict) else {},
    "environment": kinds.record(
        **dict.fromkeys(("host", "platform", "python", "torch", "diffusers", "device", "gpu"), kinds.text),
        **dict.fromkeys(("precision", "command", "commit"), kinds.text),
        **dict.fromkeys(("world_size", "nodes"), kinds.count), compile=kinds.flag, choices=kinds.mapping(kinds.text),
    ),
    "data_summary": kinds.record(
        class_names=kinds.every(kinds.text), **dict.fromkeys(("train_counts", "test_counts"), kinds.every(kinds.count)),
        **dict.fromkeys(("train_images", "test_images"), kinds.count), sha256=kinds.text,
    ),
    "model": kinds.record(parameters=kinds.count, flops_per_image=kinds.amount, peak_flops=kinds.amount),
    "artifacts": kinds.mapping(kinds.text),
}  # fmt: skip
HYPERPARAMETERS = kinds.record(
    **dict.fromkeys(("total_steps", "steps_per_epoch", "global_batch_size", "val_images"), kinds.count)
)
STARTS = kinds.some(
    kinds.record(time=kinds.text, step=kinds.count, epoch=kinds.count, cause=kinds.text, losses_since=kinds.count,
                 altered=kinds.mapping(kinds.count))
)  # fmt: skip


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, None where there is none to be read (missing, foreign, damaged)."""
    try:
        value = read_any_json(path)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def read_status(paths: RunPaths) -> dict[str, Any] | None:
    """The content of `status.json`; None if it is missing or has no state. A field of the wrong kind is None."""
    status = STATUS(read_json(paths.status))
    return status if status and status.get("state") else None


def read_events(paths: RunPaths, last: int = 200) -> list[dict[str, Any]]:
    """The latest events, oldest first: at most `last`, and of the file's last 64 KiB; torn lines are left out."""
    try:
        lines = read_file(paths.events, tail=TAIL_BYTES).split(b"\n")
    except OSError:
        return []
    return [event for line in lines[-last - 1 :] if (event := read_event(line))][-last:]


def read_errors(paths: RunPaths) -> list[dict[str, Any]]:
    """All errors in the log, oldest first."""
    try:
        lines = read_file(paths.events).split(b"\n")
    except OSError:
        return []
    found = (read_event(line) for line in lines if b'"severity": "error"' in line)
    return [event for event in found if event and event["severity"] == "error"]


def read_event(line: bytes) -> dict[str, Any] | None:
    """The event in a line of `events.jsonl`; None if it is torn: cut by a seek or a crash, or still being written."""
    try:
        event = EVENT(parse_json(line))
    except ValueError:
        return None
    if event is None:
        return None
    whole = {"log": ("message",), "epoch": ("row",)}.get(event.get("kind"), ())
    if None in [event.get(name) for name in ("kind", "time", *whole)]:
        return None
    return {**event, "severity": event.get("severity") or SEVERITIES[1]}


def read_epochs(paths: RunPaths, last: int | None = None) -> list[dict[str, Any]]:
    """The latest rows of the CSV, oldest first, as numbers, None for an empty cell; half a row is left out."""
    rows, _ = read_csv(paths)
    return rows[-last:] if last else rows


def read_csv(paths: RunPaths) -> tuple[list[dict[str, Any]], str | None]:
    """The rows of the CSV, validated by `kinds.rows`, and a sentence about what cannot be read (None if all can).

    A last line without a line end is still being written and is not damage.
    """
    try:
        text = read_text(paths.csv)
        lines = list(csv.reader(text[: text.rfind("\n") + 1].splitlines()))
    except FileNotFoundError:
        return [], None
    except (OSError, ValueError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not a CSV text"
        return [], f"{paths.csv.name} cannot be read: {why}"
    heads = lines[0] if lines else []
    if lines and ("epoch" not in heads or len(set(heads)) < len(heads)):
        return [], f"{paths.csv.name} cannot be read: its first line does not name the columns"
    given = [dict(zip(heads, map(_cell, line), strict=True)) if len(line) == len(heads) else None for line in lines[1:]]
    rows, lost = kinds.rows(given)
    return rows, f"{paths.csv.name}: {' and '.join(lost)} cannot be read and are left out" if lost else None


def _cell(text: str) -> int | float | str | None:
    """A cell's number; its text where it is none."""
    if not NUMBER.fullmatch(text):
        return text or None
    return int(text) if text.isdigit() and len(text) < 20 else float(text)


def read_gpus(paths: RunPaths) -> list[dict[str, Any]]:
    """The content of every node's GPU file, in the order of their names; a file without a node's name is left out."""
    try:
        files = sorted(paths.gpus.glob("*.json"))
    except OSError:
        return []
    return [node for path in files if (node := NODE(read_json(path))) and node.get("node") and "gpus" in node]


def starts_of(record: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The entries of `starts` in a node's file that can be read."""
    starts = (record or {}).get("starts")
    return [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []


def mean_utilization(starts: Iterable[dict[str, Any]]) -> tuple[float | None, int]:
    """The mean utilisation in percent over all readings of `starts`, None if there are none; and how many there are."""
    total, readings = 0.0, 0
    for start in starts:
        mean, count = number(start.get("mean_utilization")), number(start.get("readings"))
        if mean is not None and count is not None and 0 <= mean <= 100 and 0 < count < math.inf:
            total, readings = total + mean * count, readings + int(count)
    return (total / readings if readings else None), readings


def energy_wh(starts: Iterable[dict[str, Any]]) -> float | None:
    """The energy in watt-hours that was used in `starts`; None if it was not measured. For starts of older versions,
    which kept no energy: mean power × duration up to the latest reading."""
    used = [found for start in starts if (found := _energy_of(start)) is not None]
    return sum(used) if used else None


def _energy_of(start: dict[str, Any]) -> float | None:
    energy, watts, seconds = (finite(start.get(name)) for name in ("energy_wh", "mean_power_w", "seconds"))
    if energy is None and None not in (watts, seconds):
        energy = watts * seconds / 3600 if min(watts, seconds) >= 0 else None
    return energy if energy is None or energy >= 0 else None


def last_words(status: dict[str, Any] | None) -> str:
    """How the start that wrote `status` ended, as the cause of the next start."""
    if status is None:
        return "nothing is known about the previous start"
    job = f" (Slurm job {status['slurm_job_id']})" if status.get("slurm_job_id") else ""
    if status.get("state") == "running":
        return f"killed without a message at step {status.get('step')} or later, on {status.get('host')}{job}"
    message = (status.get("message") or "").partition("; ")[0]
    return f"{message or status.get('state')}{job}"


def read_document(paths: RunPaths) -> tuple[dict[str, Any], str | None]:
    """The content of `training_metrics.json`, and None; or an empty one, and why it cannot be read.

    Parts and figures that are missing or of the wrong kind are empty. `run` is the folder's name, as commands take it.
    `damaged` says which rows of `epochs` were left out; if none were, the summary is computed again from the rows.
    """
    try:
        document = parse_json(read_file(paths.json))
        for name, kind in {"data": str, "state": str, "epochs": list, "summary": dict}.items():
            if not isinstance(document, dict) or not isinstance(document.get(name), kind):
                raise ValueError(f"{name!r} is not there, or of the wrong kind")
        if not kinds.data_set(document["data"]) or document["state"] not in ("running", *ENDED):
            raise ValueError(f"data {document['data']!r:.30}, state {document['state']!r:.30}")
    except FileNotFoundError:
        return {}, missing(paths)
    except (OSError, ValueError) as error:
        fix = "restore it from a backup, or let the run write it again at the end of its next epoch"
        words = why(error) if isinstance(error, OSError) else str(error)
        return {}, f"{paths.json} cannot be read as metrics ({words}); {fix}"
    parts = {name: kind(document.get(name)) or {} for name, kind in PARTS.items()}
    parts |= {"starts": STARTS(document.get("starts")), "generated": kinds.text(document.get("generated"))}
    class_names = parts["data_summary"].get("class_names")
    for name in ("train_counts", "test_counts"):  # counts that do not match the class names are useless
        if class_names is not None and len(parts["data_summary"].get(name) or class_names) != len(class_names):
            parts["data_summary"][name] = []
    parts["epochs"], lost = kinds.rows(document["epochs"])
    summary = {name: kinds.amount(value) for name, value in document["summary"].items()}
    summary |= {} if lost else summarise(parts["epochs"], parts["starts"])
    if "total_time_human" in summary:  # a text cannot be validated as an amount
        summary["total_time_human"] = duration(summary.get("total_time_sec"))
    damaged = f"{' and '.join(lost)} of {paths.json.name} cannot be read and are left out" if lost else None
    return {**document, **parts, "summary": summary, "run": paths.run, "damaged": damaged}, None


def says_finished(paths: RunPaths, status: dict[str, Any] | None, rows: list[dict[str, Any]]) -> bool:
    """Do all files of figures say that the run has finished, with as many rows as its checkpoint has, `rows`?"""
    document, _ = read_document(paths)
    states = {part.get("state") for part in (status or {}, document)}
    return states == {"finished"} and len(document["epochs"]) == len(read_csv(paths)[0]) == len(rows)


def missing(paths: RunPaths) -> str:
    return f"{paths.json} is not there: has the run {paths.run!r} begun to train?"


def faults(
    paths: RunPaths, status: dict[str, Any], document: dict[str, Any], unreadable: str | None,
    rows: list[dict[str, Any]], copied: list[dict[str, Any]], lost: str | None,
) -> list[str]:  # fmt: skip
    """Sentences about a run's files that are missing, damaged, or contradict each other.

    Args:
        document, unreadable: as `read_document` returns them.
        rows: the epochs of the document, or those of the CSV if it has none.
        copied, lost: as `read_csv` returns them.
    """
    found, unopened, ended = [], set(), status.get("state") in ENDED
    for path in (paths.status, paths.events, paths.csv):
        try:
            open_regular(path).close()
        except FileNotFoundError:
            continue
        except OSError as error:
            unopened.add(path)
            found.append(f"{path.name} cannot be read: {error.strerror}")
    if paths.status not in unopened and not status and os.path.lexists(paths.status):
        found.append(f"{paths.status.name} is damaged: it names no state")
    if unreadable and (os.path.lexists(paths.json) or ended):
        found.append(unreadable)
    elif document.get("damaged"):
        found.append(document["damaged"])
    finished = ended or document.get("state") in ENDED
    if lost and paths.csv not in unopened:
        found.append(lost)
    elif finished and not unreadable and len(copied) < len(rows) and paths.csv not in unopened:
        found.append(f"{paths.csv.name} has {len(copied)} of {plural(len(rows), 'row')}; {paths.json.name} has all")
    done = number(status.get("epoch")) or 0
    if ended and not rows and (done > 1 or (done == 1 and status["state"] == "finished")):
        found.append(f"no epoch has figures, though the run {status['state']} in epoch {done:.0f}")
    return found
