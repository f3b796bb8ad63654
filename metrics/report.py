"""`training_report.md`, the same as a web page, and the plots of a run, made from its `training_metrics.json` and the
files beside it.

python -m metrics.report RUN [--output-root DIR]        rebuild them, at any time, also for a run in progress
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ddpm.run import cli
from ddpm.run.command import RunCommand
from ddpm.run.files import atomic_write
from ddpm.run.format import DASH, count, plural, timestamp
from ddpm.run.paths import RunPaths, by_epoch, grid_epoch
from ddpm.run.program import run_program
from metrics import sections
from metrics.criteria.of_run import criteria_section
from metrics.note.notes import notes_section
from metrics.page import Block, Facts, Note, Page, Picture, Section, code, link, to_markdown
from metrics.run_data import RunData
from metrics.run_reader import load_run
from metrics.starts import stamp_of

LARGE_SAMPLES = 4  # number of sample grids shown in the report; older ones are linked


def report_page(run: RunData) -> Page:
    """The report. Pictures are shown if they are there: draw them first."""
    from ddpm.sampling.model_card import card_data
    from metrics import samples as grids  # here and below, as Matplotlib takes a while to load
    from metrics.evaluation.section import evaluation_section, model_index
    from metrics.plots import TITLES, plots_of

    paths, pictures = run.paths, by_epoch(run.paths.samples.glob("*.png"))[::-1]
    newest, large, linked = pictures[:1], pictures[1:LARGE_SAMPLES], pictures[LARGE_SAMPLES:]
    history = paths.plots / f"{grids.NAME}.png"
    blocks: list[Block | None] = [*head(run)]
    if os.path.isfile(history):
        blocks.append(Picture(history, history.stem, "Images drawn from the same noise at different epochs."))
    blocks += [_grid(picture, "The newest sample grid: a row per class, EMA weights.") for picture in newest]
    blocks += [criteria_section(run), notes_section(paths), sections.summary(run)]
    drawn = [name for name in plots_of(run) if os.path.isfile(paths.plots / f"{name}.png")]
    if "dashboard" in drawn:
        blocks.append(_plot(run, "dashboard"))
    blocks += [evaluation_section(paths), sections.hyperparameters(run), sections.starts(run), sections.epochs(run)]
    plots = [Section(TITLES[name], [_plot(run, name)]) for name in drawn if name != "dashboard"]
    blocks.append(Section("Plots", plots or ["There is nothing to draw before an epoch has finished."]))
    if large:
        earlier = [Section(_epoch_of(picture), [_grid(picture)]) for picture in large]
        links = ", ".join(link(_epoch_of(picture), picture, paths.metrics) for picture in linked)
        blocks.append(Section("Samples", [*earlier, f"Earlier: {links}" if linked else None]))
    written = {"report": paths.report, "report (HTML)": paths.report_html}  # about to be written
    blocks += [sections.data(run), sections.artifacts(run, written)]
    front_matter = card_data(run.run, run.document["data"], model_index(paths)).to_yaml()
    return Page(f"Training Report: {run.run}", blocks, f"---\n{front_matter}\n---")


def head(run: RunData) -> list[Block]:
    """Warnings, and facts about the run and its machine."""
    known, paths = run.environment, run.paths
    versions = [f"{name} {known[name]}" for name in ("python", "diffusers") if known.get(name)]
    nodes = plural(known["nodes"], "node") if known.get("nodes") else DASH
    facts = {
        "Figures as of": timestamp(stamp_of(run.generated)), "Data": run.data_words, "Host": known.get("host"),
        "Platform": known.get("platform"), "PyTorch": known.get("torch"), "Other versions": ", ".join(versions),
        "GPU": sections.machine(run) if known.get("gpu") else "none (CPU)",
        "Processes": f"{known.get('world_size') or DASH} on {nodes}",
        "Parameters": count((run.document.get("model") or {}).get("parameters")),
        "Command": code(known["command"]) if known.get("command") else None,
        "Commit": known.get("commit"),
        "Best checkpoint": sections.best_checkpoint(run),
    }  # fmt: skip
    state, done = run.outcome, sections.progress(run)
    notes = sections.warnings(run)
    if state == "running":
        again = code(paths.command("python -m metrics.report"))
        notes.append(Note(f"**In progress** as of {sections.as_of(run)}: {done}. {again} updates this report."))
    elif state != "finished":
        notes.append(Note(f"**The run {state} before its end**: {done}."))
    elif run.stopped_early:
        _, colon, why = run.stopped_early.partition(": ")
        notes.append(Note(f"**Stopped early after epoch {run.last['epoch']} of {run.planned_epochs}**{colon}{why}."))
    return [*notes, Facts(facts)]


def _plot(run: RunData, name: str) -> Picture:
    return Picture(run.paths.plots / f"{name}.png", name)


def _grid(picture: Path, caption: str = "") -> Picture:
    return Picture(picture, picture.stem, caption)


def _epoch_of(picture: Path) -> str:
    """`Epoch 10`, of a sample grid's file; its name where that says no epoch."""
    epoch = grid_epoch(picture)
    return picture.stem if epoch is None else f"Epoch {epoch}"


def write_report(paths: RunPaths) -> Path:
    """Draw the plots and write the report of a run, as Markdown and as a web page; returns the Markdown's path.

    Raises:
        RequestError: `training_metrics.json` is missing or is not one; nothing has been written then.
        OSError: the run's folder cannot be written.
    """
    from metrics.evaluation.section import write_evaluation_plots
    from metrics.html import write_html
    from metrics.plots import make_plots
    from metrics.samples import samples_through_training

    run = load_run(paths)
    make_plots(run)
    samples_through_training(paths)
    write_evaluation_plots(paths.evaluation, paths.evaluation_files)
    atomic_write(paths.report, to_markdown(report_page(run), paths.metrics))
    write_html(paths)
    return paths.report


@dataclass(frozen=True)
class ReportConfig(RunCommand):
    """Rebuild a run's plots and report from its training_metrics.json."""


@cli.in_one_line
def main(arguments: Sequence[str] | None = None) -> int:
    print(write_report(cli.parse(ReportConfig, arguments, "python -m metrics.report").paths))
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
