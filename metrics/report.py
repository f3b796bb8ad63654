"""`training_report.md`, the same as a web page, and the plots of a run, made from its `training_metrics.json` and the
files beside it.

python -m metrics.report RUN [--output-root DIR]        rebuild them, at any time, also for a run in progress
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from huggingface_hub import EvalResult

from ddpm.run import cli
from ddpm.run.files import atomic_write, real
from ddpm.run.metrics import EPOCH_TABLE, METRICS
from ddpm.run.paths import RunPaths, find_run
from ddpm.run.program import run_program
from ddpm.sampling.model_card import card_data
from metrics import strip as strips
from metrics.evaluation_section import evaluation_section, model_index, write_evaluation_plots
from metrics.html import write_html
from metrics.live.status import read_status
from metrics.markdown import link, picture, table
from metrics.plots import make_plots, plots_of, stopped_early
from metrics.run_data import epochs_frame, load_document, planned_epochs
from metrics.style import DASH, data_words, device_words, human_number, shown

LARGE_SAMPLES = 4  # the newest sample grids stand in the report, older ones are linked

SUMMARY = {  # row: (format, what it is)
    "total_epochs": (".0f", "epochs with a row below"),
    "total_samples": (",.0f", "training images seen, repeats included, by all processes"),
    "total_time_sec": (",.1f", "seconds of all starts together, with validation, samples and checkpoints"),
    "total_time_human": ("", "the same, to read"),
    "best_epoch": (".0f", "the epoch of `best_loss`"),
    "best_loss": (".5f", "smallest mean training loss of an epoch"),
    "final_loss": (".5f", "mean training loss of the last epoch"),
    "final_lr": (".3e", "learning rate of the last step"),
    "avg_throughput_sps": (",.1f", "images per second of training of the whole job: sum of images / sum of seconds"),
    "peak_gpu_mem_mb": (",.0f", "most memory allocated on one GPU, in MB of 2^20 bytes"),
    "best_val_epoch": (".0f", "the epoch of `best_val_loss_ema`"),
    "best_val_loss_ema": (
        ".5f",
        "smallest validation loss of the EMA weights; decides what is `best` unless --best-by does",
    ),
    "best_swa_epoch": (".0f", "the epoch of `best_val_loss_swa`"),
    "best_val_loss_swa": (".5f", "smallest validation loss of the SWA weights, averaged from --swa-start-epoch on"),
    "final_rca": (".3f", "RCA of the last evaluation in training: Top-1 of drawn characters / of test images"),
    "best_rca": (".3f", "the largest of them"),
    "final_fid_features": (".3f", "Fréchet distance to test images, in the classifier's features, likewise"),
    "nonfinite_steps": (".0f", "steps that were skipped because the gradient was not finite"),
    "restarts": (".0f", "how often the run was taken up again"),
}
IF_MEASURED = ("best_swa_epoch", "best_val_loss_swa")  # of these, no row without a value


def front_matter(document: dict, results: Sequence[EvalResult] = ()) -> str:
    """A model card's front matter, with the `results` of an evaluation."""
    return f"---\n{card_data(document['run'], document['data'], results).to_yaml()}\n---"


def head(document: dict, paths: RunPaths) -> str:
    """Title, what must not be overlooked, and where the run ran."""
    environment, rows, planned = document["environment"], document["epochs"], planned_epochs(document)
    parts = [f"# Training Report: {document['run']}"]
    if document["data"] != "emnist":
        parts.append("> **Trained on the embedded glyphs, not EMNIST.** The characters were drawn from fonts; "
                     "no figure here says anything about handwriting.")  # fmt: skip
    if document["damaged"]:
        parts.append(f"> **{document['damaged']}**: what is told below is of the others.")
    done = f"{rows[-1]['epoch'] if rows else 0} of {planned or DASH} epochs have finished"
    if document["state"] == "running":
        when, again = document.get("generated") or DASH, paths.command("python -m metrics.report")
        parts.append(f"> **In progress** as of {when}: {done}. `{again}` brings this report up to date.")
    elif document["state"] != "finished":
        parts.append(f"> **The run {document['state']} before its end**: {done}.")
    elif stopped_early(document):
        parts.append(f"> **Stopped early after epoch {rows[-1]['epoch']} of {planned}**{why_stopped(paths)}.")
    versions = [f"{name} {environment[name]}" for name in ("python", "diffusers") if environment.get(name)]
    facts = {
        "Generated": document.get("generated"), "Data": data_words(document), "Host": environment.get("host"),
        "Platform": environment.get("platform"), "PyTorch": environment.get("torch"),
        "Other versions": ", ".join(versions),
        "GPU": device_words(document) if environment.get("gpu") else "none (CPU)",
        "Processes": f"{environment.get('world_size') or DASH} on {environment.get('nodes') or DASH} node(s)",
        "Parameters": shown(document["model"].get("parameters"), ",.0f"),
        "Command": f"`{environment['command']}`" if environment.get("command") else None,
        "Commit": environment.get("commit"),
        "Best checkpoint": best_words(document, paths),
    }  # fmt: skip
    parts.append("\n".join(f"- **{name}:** {value}" for name, value in facts.items() if value))
    return "\n\n".join(parts)


def why_stopped(paths: RunPaths) -> str:
    """What the run said of it at its end; nothing if another start has said something since."""
    status = read_status(paths) or {}
    _, colon, why = (status.get("message") or "").partition(": ")
    return colon + why if status.get("state") == "finished" else ""


def best_words(document: dict, paths: RunPaths) -> str | None:
    """Which checkpoint `best` is and why; None where there is none of an epoch of this run."""
    step = real(paths.checkpoints / "best").name
    row = next((row for row in document["epochs"] if step == f"step_{row.get('step') or 0:08}"), None)
    by = document["settings"].get("best_by", "val_loss")
    column = "val_loss_ema" if by == "val_loss" else by
    if row is None or row.get(column) is None:
        return None
    most = "largest" if METRICS[column].larger_is_better else "smallest"
    chosen = f"`--best-by {by}` takes the {most} `{column}` of the epochs that were saved"
    return f"`{step}`, after epoch {row['epoch']}, `{column}` {human_number(row[column], 5)}; {chosen}"


def summary_section(document: dict) -> str:
    summary, swa = document["summary"], epochs_frame(document)["val_loss_swa"].dropna()
    if len(swa):
        summary = {**summary, "best_swa_epoch": swa.idxmin(), "best_val_loss_swa": swa.min()}
    rows = [
        (f"`{key}`", shown(summary.get(key), form), meaning)
        for key, (form, meaning) in SUMMARY.items()
        if key in summary or key not in IF_MEASURED
    ]
    rows += [(f"`{key}`", DASH if value is None else value, "") for key, value in summary.items() if key not in SUMMARY]
    return "## Summary\n\n" + table(["Figure", "Value", "What it is"], rows)


def hyperparameters_section(document: dict) -> str:
    text = json.dumps(document["hyperparameters"], indent=2, ensure_ascii=False)
    choices = document["environment"].get("choices") or {}
    chosen = "".join(f"\n- {name}: {why}" for name, why in choices.items())
    return f"## Hyperparameters\n\n```json\n{text}\n```" + (f"\n\nChosen for this device:\n{chosen}" if chosen else "")


def starts_section(document: dict) -> str:
    names = ("time", "cause", "epoch", "step")
    rows = [[DASH if start.get(name) is None else start[name] for name in names] for start in document["starts"]]
    return "## Starts\n\n" + table(["Time", "Cause", "Epochs done", "Steps done"], rows)


def epochs_section(document: dict) -> str:
    epochs = document["epochs"]
    if not epochs:
        return "## Per-Epoch Metrics\n\nNo epoch has finished yet."
    columns = [METRICS[name] for name in EPOCH_TABLE if any(row.get(name) is not None for row in epochs)]
    cells = [[column.text(row.get(column.name)) for column in columns] for row in epochs]
    body = table([column.heading for column in columns], cells, numbers=True)
    notes = "\n".join(f"- **{column.heading}**: {column.meaning}." for column in columns[1:])
    return f"## Per-Epoch Metrics\n\n{body}\n\n{notes}"


def data_section(document: dict) -> str:
    """How many images of each class there are, and whether the classes are equal."""
    data, words = document["data_summary"], data_words(document)
    lines = [f"## Data\n\n{words[0].upper()}{words[1:]}.\n"]
    names, splits = data.get("class_names") or [], ("train", "test")
    counts = {split: data.get(f"{split}_counts") or [] for split in splits}
    for split, values in counts.items():
        if values and min(values) == max(values):
            lines.append(f"- {split}: {sum(values):,} images, {values[0]:,} in each of {len(values)} classes (equal)")
        elif values:
            low, high = (f"{extreme(values):,} (`{names[values.index(extreme(values))]}`)" for extreme in (min, max))
            lines.append(f"- {split}: {sum(values):,} images; the classes are **not equal**: from {low} to {high}")
    if all(counts.values()):
        rows = [(f"`{name}`", *numbers) for name, *numbers in zip(names, *counts.values(), strict=True)]
        counted = table(["Class", *splits], rows)
        lines.append(f"\n<details><summary>Images of each class</summary>\n\n{counted}\n\n</details>")
    return "\n".join(lines)


def artifacts_section(document: dict, paths: RunPaths) -> str:
    """Links to what exists, by paths relative to the output root."""
    reports = {"report": paths.report, "report (HTML)": paths.report_html}  # written in a moment
    here = {label: path.relative_to(paths.root) for label, path in reports.items()}
    places = {**here, **(document.get("artifacts") or {}), **paths.artifacts()}
    rows = []
    for label, place in places.items():
        if os.path.exists(paths.root / place) or label in reports:
            rows.append((label, f"[`{place}`]({link(paths, paths.root / place)})"))
    return "## Saved Artifacts\n\nPaths are relative to the output root.\n\n" + table(["What", "Path"], rows)


def render(document: dict, paths: RunPaths) -> str:
    """The report as Markdown."""
    samples = sorted(paths.samples.glob("*.png"), reverse=True)
    large, linked = samples[:LARGE_SAMPLES], samples[LARGE_SAMPLES:]
    strip, show = paths.plots / f"{strips.NAME}.png", partial(picture, paths)
    sections = [front_matter(document, model_index(paths)), head(document, paths)]
    if os.path.isfile(strip):
        sections.append(f"{show(strip)}\n\nWhat the same noise became as training went on.")
    if samples:
        sections.append(f"{show(large[0])}\n\nThe newest sample grid: a row per class, EMA weights.")
    sections += [summary_section(document), show(paths.plots / "dashboard.png")]
    if evaluation := evaluation_section(paths):
        sections.append("\n".join(evaluation))
    sections += [hyperparameters_section(document), starts_section(document), epochs_section(document)]
    sections.append("## Plots")
    names = (name for name in plots_of(epochs_frame(document)) if name != "dashboard")
    sections += [f"### {name}\n\n{show(paths.plots / f'{name}.png')}" for name in names]
    if samples:
        sections.append("## Samples")
        sections += [f"### {path.stem}\n\n{show(path)}" for path in large]
    if linked:
        sections.append("Earlier: " + ", ".join(f"[{path.stem}]({link(paths, path)})" for path in linked))
    return "\n\n".join([*sections, data_section(document), artifacts_section(document, paths)]) + "\n"


def write_report(paths: RunPaths) -> Path:
    """Draw the plots and write the report of a run, as Markdown and as a web page; returns the Markdown's path.

    Raises:
        RequestError: `training_metrics.json` is missing or is not one; nothing has been written then.
        OSError: the run's folder cannot be written.
    """
    document = load_document(paths)
    make_plots(document, paths.plots)
    strips.samples_through_training(paths)
    write_evaluation_plots(paths)
    atomic_write(paths.report, render(document, paths))
    write_html(paths)
    return paths.report


@cli.in_one_line
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m metrics.report", description="Rebuild a run's plots and report from its training_metrics.json."
    )
    parser.add_argument("run", help="name of the run, or its folder under metrics/output/")
    parser.add_argument("--output-root", type=Path, help="where the run wrote to (default: the project folder)")
    options = parser.parse_args(arguments)
    print(write_report(find_run(options.run, options.output_root)))
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
