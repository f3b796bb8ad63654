"""`training_log.md`: notes on a run for researchers: milestones, best results, phases, target, baseline, curves.

Training writes it after every epoch. It is made from `training_metrics.json` and, for the times of milestones,
`events.jsonl` and `status.json` beside it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ddpm.run.files import atomic_write
from ddpm.run.format import DASH, duration, plural
from ddpm.run.metrics import (
    BANDS,
    EPOCH_TIME_SEC,
    LR,
    RCA,
    SAMPLES_PER_SEC,
    Metric,
    headline,
    names,
)
from ddpm.run.paths import RunPaths
from metrics import sections, trends
from metrics.criteria.of_run import criteria_section
from metrics.curves import USUAL, charts
from metrics.files import ENDED
from metrics.note.notes import notes_section
from metrics.page import Block, Bullets, Code, Facts, Note, Page, Section, Table, code, link, to_markdown
from metrics.phases import FAST, FLAT, FLAT_IN_ALL, FLAT_NOW, SHORTEST, UNSURE, Phase, find_phases, rate_words
from metrics.run_data import RunData
from metrics.run_reader import load_run
from metrics.starts import computed
from metrics.training_log.baseline import baseline_section, target_section
from metrics.training_log.milestones import milestones_section

FILES = ("report", "metrics", "plots", "samples", "best checkpoint", "export", "evaluation", "log")
COMMANDS = {
    "python pretty_logger.py": "the dashboard, live",
    "python -m metrics.health": "is it healthy?",
    "python -m metrics.curves": "the curves in this terminal",
    "python -m metrics.report": "rebuild report and plots",
    "python -m metrics.training_log": "rebuild this page",
    "python sample.py": "draw images",
    "python evaluate.py": "measure how good they are",
}
PHASES_NOTE = (
    "Found by straight lines through the logarithm, as many as the Bayesian information criterion asks for. Change: "
    f"the slope ± its standard error. A fast descent is more than {FAST:.0%} per epoch; a plateau is less than "
    f"{FLAT:.1%} per epoch and {FLAT_IN_ALL:.0%} in all, or not distinguishable from 0 (two standard "
    f"errors, each less than {UNSURE:.1%}), or at the end less than {FLAT_NOW:.0%} over {trends.WINDOW} "
    "measured epochs or more; its ± is the standard deviation of the values. Learning rates are those at the end of "
    "the first and of the last epoch."
)


def write_training_log(paths: RunPaths, target: str | None = None, baseline: RunPaths | None = None) -> Path:
    """Write `training_log.md` beside the report; returns its path. Figures that are missing become dashes.

    Args:
        target, baseline: used instead of the settings of these names.

    Raises:
        RequestError: `training_metrics.json` is missing or is not one; nothing is written then.
        OSError: the run's folder cannot be written.
    """
    run = load_run(paths)
    target = target or run.settings.get("target")
    if baseline is None and run.settings.get("baseline"):
        baseline = RunPaths(paths.root, str(run.settings["baseline"]))
    atomic_write(paths.training_log, to_markdown(log_page(run, target, baseline), paths.metrics))
    return paths.training_log


def log_page(run: RunData, target: str | None, baseline: RunPaths | None) -> Page:
    """The page."""
    metric = trends.main_loss([run.rows], SHORTEST)
    phases = find_phases(run.curve(metric))
    status, state = run.status, run.document["state"]
    later = status.get("state") in ENDED and status["state"] != state and state != "running"
    said = f": {status['message']}" if status.get("message") else ""
    blocks: list[Block | None] = [
        *sections.warnings(run),
        Note(f"The latest start {status['state']}{said}.") if later else None,
        quick_reference(run),
        criteria_section(run),
        best_results(run),
        notes_section(run.paths),
        milestones_section(run, trends.main_loss([run.rows]), metric, phases, target),
        phases_section(run, metric, phases),
        target_section(run, target) if target else None,
        baseline_section(run, baseline) if baseline else None,
        time_section(run),
        curves_section(run),
    ]
    return Page(f"Training log: {run.run}", blocks)


def quick_reference(run: RunData) -> Section:
    paths, known, state = run.paths, run.environment, run.outcome
    shown = f"in progress as of {sections.as_of(run)}" if state == "running" else state
    facts = {
        "Run": f"`{run.run}`, {run.data_words}",
        "State": f"{shown}: {sections.progress(run)}",
        "Time": _time_words(run),
        "Best" if state == "finished" else "Best so far": _best_words(run),
        "Machine": f"{sections.machine(run)}, {known.get('host') or DASH}",
        "Files": ", ".join(_links(paths)),
        "Started by": code(known["command"]) if known.get("command") else None,
    }
    commands = [(paths.command(program), what) for program, what in COMMANDS.items()]
    width = max(len(command) for command, _ in commands)
    listed = "\n".join(f"{command:<{width}}   # {what}" for command, what in commands)
    return Section("Quick reference", [Facts(facts), Code(listed)])


def _time_words(run: RunData) -> str:
    """The time that all starts took, and an estimate of the time left."""
    took = computed(run.starts, None).seconds
    words = [f"{duration(took)} over {plural(len(run.starts), 'start')}"] if took is not None else []
    each = run.curve(EPOCH_TIME_SEC).values[-trends.WINDOW :]
    left = (run.planned_epochs or 0) - run.last.get("epoch", 0)
    if len(each):
        median = float(np.median(each))
        latest = f"the last {len(each)} epochs" if len(each) > 1 else "the last epoch"
        words.append(f"{latest} took {median:,.1f} s" + (" each (median)" if len(each) > 1 else ""))
        if run.document["state"] == "running" and left > 0:
            to_come = f"the {left} to come would take about {duration(left * median)}"
            alive = run.lives or not run.status
            words = (
                [*words[:-1], f"{words[-1]}, so {to_come}"] if alive else [*words, f"if it is started again, {to_come}"]
            )
    return "; ".join(words) or DASH


def _best_words(run: RunData) -> str | None:
    found = {metric: trends.best(run.curve(metric)) for metric in (trends.main_loss([run.rows]), RCA)}
    shown = (f"`{metric.name}` {metric.text(at.value)} (epoch {at.epoch})" for metric, at in found.items() if at)
    return ", ".join(shown) or None


def _links(paths: RunPaths) -> list[str]:
    there = {label: paths.root / place for label, place in paths.artifacts().items()}
    return [link(label, there[label], paths.metrics) for label in FILES if label in there]


def best_results(run: RunData) -> Section:
    rows = []
    for metric in (*headline(), *BANDS):
        curve = run.curve(metric)
        if not (best := trends.best(curve)):
            continue
        smooth, last = trends.best_smoothed(curve), curve.last
        means = (metric.text(smooth.value), f"{smooth.first}–{smooth.last}") if smooth else (DASH, DASH)
        away = f" ({last.value / best.value - 1:+.1%})" if best.value and last.epoch != best.epoch else ""
        rows.append((f"`{metric.name}`", metric.text(best.value), best.epoch, *means,
                     f"{metric.text(last.value)}{away}", last.epoch))  # fmt: skip
    if not rows:
        return Section("Best results", ["No loss has been measured yet."])
    heads = ["Figure", "Best", "Epoch", "Best smoothed", "Epochs", "Last (against the best)", "Epoch"]
    larger = ", ".join(f"`{name}`" for name in names(over_epochs="best", better="higher"))
    note = f"Smoothed: the mean of {trends.SMOOTH} measured values in a row, {DASH} where there are fewer. Larger is "
    return Section("Best results", [Table("", heads, rows), f"{note}better for {larger}, smaller for the others."])


def phases_section(run: RunData, metric: Metric, phases: list[Phase]) -> Section:
    if not phases:
        few = f"No phases yet: `{metric.name}` has fewer than {SHORTEST} values."
        return Section("Phases", [few])
    rates, rows = {row["epoch"]: LR.text_of(row) for row in run.rows}, []
    for phase in phases:
        rate, plateau = phase.rate, phase.kind == "plateau"
        what = phase.kind + (f" at {metric.text(phase.mean)} ± {phase.deviation:.2g}" if plateau else "")
        values = f"{metric.text(phase.begin)} → {metric.text(phase.end)}"
        lr = " → ".join(rates[epoch] for epoch in (rate.first, rate.last))
        rows.append((f"{rate.first}–{rate.last}", what, values, rate_words(rate), lr))
    heads = ["Epochs", "What", f"`{metric.name}`", "Change", "Learning rate"]
    return Section(f"Phases of `{metric.name}`", [Table("", heads, rows), PHASES_NOTE])


def time_section(run: RunData) -> Section | None:
    """Where the time went, and which epochs took longer than the others."""
    curve = run.curve(EPOCH_TIME_SEC)
    if not curve.values.sum() > 0:
        return None
    lines = []
    if len(curve) > 2:
        slowest = curve.point(int(curve.values.argmax()))
        usual = f"median of all {np.median(curve.values):,.1f} s"
        lines.append(f"Slowest epoch: {slowest.epoch}, {slowest.value:,.1f} s; {usual}.")
    if (pace := trends.over_epochs(run.rows, SAMPLES_PER_SEC)) is not None:
        lines.append(f"{SAMPLES_PER_SEC.text(pace)} images per second of training.")
    _, shares = sections.time_shares(run)
    return Section(shares.title, [replace(shares, title=""), Bullets(lines) if lines else None])


def curves_section(run: RunData) -> Section:
    drawn = charts({run.run: run}, USUAL, log=None)
    return Section("Curves", [Code("\n\n".join(drawn), "text") if drawn else "Nothing to draw yet."])
