"""`training_log.md`: what a researcher would write down after a night of training. Milestones, phases, words, curves.

python -m metrics.training_log RUN [--output-root DIR] [--target NAME=VALUE] [--baseline RUN]

Training writes it after every epoch; by hand it can be made at any time, with another target or baseline. It is made
from `training_metrics.json` and, for the times of milestones, `events.jsonl` and `status.json` beside it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from tyro.conf import arg

from ddpm.run import cli
from ddpm.run.command import RunCommand
from ddpm.run.config import SELECTABLE, data_words, parse_target
from ddpm.run.errors import RequestError
from ddpm.run.files import atomic_write
from ddpm.run.format import number
from ddpm.run.metrics import METRICS, headline, names
from ddpm.run.paths import RunPaths, find_run
from ddpm.run.program import run_program
from metrics import trends
from metrics.baseline import baseline_section, target_section
from metrics.curves import USUAL, charts
from metrics.live.status import ENDED, read_status
from metrics.markdown import link, table
from metrics.milestones import DASH, Clock, milestones_section, read_clock
from metrics.run_data import epochs_frame, load_document, planned_epochs
from metrics.run_state import RunState
from metrics.tracker import human_time

FILES = ("report", "metrics", "plots", "samples", "best checkpoint", "export", "evaluation", "log")
COMMANDS = {
    "python pretty_logger.py": "the dashboard, live",
    "python -m metrics.health": "is it healthy?",
    "python -m metrics.curves": "the curves in this terminal",
    "python -m metrics.report": "report and plots anew",
    "python -m metrics.training_log": "this page anew",
    "python sample.py": "draw characters",
    "python evaluate.py": "how good they are",
}


def write_training_log(paths: RunPaths, target: str | None = None, baseline: RunPaths | None = None) -> Path:
    """Write `training_log.md` beside the report; returns its path. Odd figures become dashes.

    Args:
        target, baseline: in place of the settings of these names.

    Raises:
        RequestError: `training_metrics.json` is missing or is not one; nothing is written then.
        OSError: the run's folder cannot be written.
    """
    document = load_document(paths)
    settings = document["settings"]
    target = target or settings.get("target")
    if baseline is None and settings.get("baseline"):
        baseline = RunPaths(paths.root, str(settings["baseline"]))
    page = render(document, paths, read_clock(paths), read_status(paths) or {}, target, baseline)
    atomic_write(paths.training_log, page)
    return paths.training_log


def render(
    document: dict[str, Any],
    paths: RunPaths,
    clock: Clock,
    status: dict[str, Any],
    target: str | None,
    baseline: RunPaths | None,
) -> str:
    """The page as Markdown."""
    frame = epochs_frame(document)
    best_of, column = main_loss(frame), main_loss(frame, trends.SHORTEST)
    found = trends.phases(frame[column])
    beat = number(status.get("heartbeat"))
    age = max(0.0, time.time() - beat) if beat else 0.0
    run = RunState(document["run"], time.time(), status=status or None, heartbeat_age=age)
    sections = [*head(document, run), quick_reference(document, frame, paths, run), best_results(frame)]
    sections.append(milestones_section(document, frame, clock, status, best_of, column, found, target))
    sections.append(phases_section(frame, column, found))
    if target:
        sections.append(target_section(frame, target, planned_epochs(document)))
    if baseline:
        sections.append(baseline_section(document, frame, baseline, itself=baseline == paths))
    sections += [time_section(frame), curves_section(document, frame)]
    return "\n\n".join(filter(None, sections)) + "\n"


def main_loss(frame: pd.DataFrame, least: int = 1) -> str:
    """The loss that most says how good the run is, of those with `least` values."""
    return next((name for name in ("val_loss_ema", "val_loss") if frame[name].count() >= least), "loss_mean")


def head(document: dict[str, Any], run: RunState) -> list[str]:
    """Title, and what must not be overlooked."""
    parts = [f"# Training log: {document['run']}"]
    if document["data"] != "emnist":
        parts.append(
            f"> **Trained on the {data_words(document['data'])}.** No figure here says anything about handwriting."
        )
    if document["damaged"]:
        parts.append(f"> **{document['damaged']}**: what is told below is of the others.")
    status = run.status or {}
    state, now = document["state"], status.get("state")
    if run.notice:
        parts.append(f"> **Take care:** {' '.join(run.notice.split())}.")
    elif now in ENDED and now != state and state != "running":
        parts.append(f"> The latest start {now}" + (f": {status['message']}." if status.get("message") else "."))
    return parts


def quick_reference(document: dict[str, Any], frame: pd.DataFrame, paths: RunPaths, run: RunState) -> str:
    environment, planned = document["environment"], planned_epochs(document)
    done = int(frame.index[-1]) if len(frame) else 0
    states = {"running": f"in progress as of {document.get('generated') or DASH}"}
    facts = [f"epoch {done} of {planned or DASH}"]
    if len(frame):
        facts += [f"step {_count(frame['step'].iloc[-1])}", f"{_count(frame['images_seen'].iloc[-1])} images seen"]
    machine = f"{environment.get('world_size') or DASH} × {environment.get('gpu') or environment.get('device') or DASH}"
    lines = {
        "Run": f"`{document['run']}`, {data_words(document['data'])}",
        "State": f"{states.get(document['state'], document['state'])}: {', '.join(facts)}",
        "Time": _time_words(document, frame, planned, alive=not (run.dead or run.ended)),
        "Best" if document["state"] == "finished" else "Best so far": _best_words(frame),
        "Machine": f"{machine}, {environment.get('host') or DASH}",
        "Files": ", ".join(_links(paths)),
        "Started by": f"`{environment['command']}`" if environment.get("command") else None,
    }
    commands = [(paths.command(program), what) for program, what in COMMANDS.items()]
    width = max(len(command) for command, _ in commands)
    listed = "\n".join(f"{command:<{width}}   # {what}" for command, what in commands)
    body = "\n".join(f"- **{name}:** {words}" for name, words in lines.items() if words)
    return f"## Quick reference\n\n{body}\n\n```\n{listed}\n```"


def _time_words(document: dict[str, Any], frame: pd.DataFrame, planned: int | None, alive: bool) -> str:
    total, each = frame["total_time_sec"].dropna(), frame["epoch_time_sec"].dropna().iloc[-trends.WINDOW :]
    if total.empty:
        return DASH
    starts = max(len(document["starts"]), 1)
    words = f"{human_time(total.iloc[-1])} over {starts} start{'s' * (starts > 1)}"
    left = (planned or 0) - int(frame.index[-1])
    if len(each):
        latest = f"the last {len(each)} epochs" if len(each) > 1 else "the last epoch"
        words += f"; {latest} took {each.median():,.1f} s" + (" each (median)" if len(each) > 1 else "")
        if document["state"] == "running" and left > 0:
            words += ", so" if alive else "; if it is started again,"
            words += f" the {left} to come would take about {human_time(left * each.median())}"
    return words


def _best_words(frame: pd.DataFrame) -> str | None:
    shown = (main_loss(frame), "rca")
    found = {name: trends.best(frame[name], METRICS[name].larger_is_better) for name in shown}
    return ", ".join(f"`{name}` {_figure(at[1])} (epoch {at[0]})" for name, at in found.items() if at) or None


def _links(paths: RunPaths) -> list[str]:
    there = {label: paths.root / place for label, place in paths.artifacts().items()}
    return [f"[{label}]({link(paths, there[label])})" for label in FILES if label in there]


def best_results(frame: pd.DataFrame) -> str:
    rows = []
    for name in (*headline(), *names(group="loss_by_noise_level")):
        larger = METRICS[name].larger_is_better
        if not (found := trends.best(frame[name], larger)):
            continue
        smooth, last = trends.best_smoothed(frame[name], larger), frame[name].dropna()
        means = (_figure(smooth.value), f"{smooth.first}–{smooth.last}") if smooth else (DASH, DASH)
        away = f" ({last.iloc[-1] / found[1] - 1:+.1%})" if found[1] and last.index[-1] != found[0] else ""
        rows.append(
            (f"`{name}`", _figure(found[1]), found[0], *means, f"{_figure(last.iloc[-1])}{away}", last.index[-1])
        )
    if not rows:
        return "## Best results\n\nNo loss has been measured yet."
    heads = ["Figure", "Best", "Epoch", "Best smoothed", "Epochs", "Last (against the best)", "Epoch"]
    note = (
        f"Smoothed: the mean of {trends.SMOOTH} measured values in a row, {DASH} where there are fewer. Larger is "
        f"better of {', '.join(f'`{name}`' for name in names(over_epochs='best', better='higher'))}, smaller of the "
        "others."
    )
    return f"## Best results\n\n{table(heads, rows)}\n\n{note}"


def phases_section(frame: pd.DataFrame, column: str, found: list[trends.Phase]) -> str:
    if not found:
        return f"## Phases\n\nNo phases yet: `{column}` has fewer than {trends.SHORTEST} values."
    rows = []
    for phase in found:
        rate = phase.rate
        what = phase.kind + (f" at {_figure(phase.mean)} ± {phase.deviation:.2g}" if phase.kind == "plateau" else "")
        lr = " → ".join(_figure(value, 3) for value in frame["lr"].loc[[rate.first, rate.last]])
        values = f"{_figure(phase.begin)} → {_figure(phase.end)}"
        each = f"{100 * rate.value:+.3g} % ± {100 * rate.error:.2g} %"
        rows.append((f"{rate.first}–{rate.last}", what, values, each, lr))
    note = (
        "Found by straight lines through the logarithm, as many as the Bayesian information criterion is for. Per "
        f"epoch: the slope ± its standard error. A fast descent is more than {trends.FAST:.0%} per epoch; a plateau is "
        f"less than {trends.FLAT:.1%} per epoch and {trends.FLAT_IN_ALL:.0%} in all, or not told from 0 by two "
        f"standard errors of less than {trends.UNSURE:.1%}; its ± is the standard deviation of the values. Learning "
        "rates are those at the end of the first and of the last epoch."
    )
    heads = ["Epochs", "What", f"`{column}`", "Per epoch", "Learning rate"]
    return f"## Phases of `{column}`\n\n{table(heads, rows)}\n\n{note}"


def time_section(frame: pd.DataFrame) -> str | None:
    """Where the time went, and which epochs took longer than the others."""
    total = frame["epoch_time_sec"].sum()
    if not total > 0:
        return None
    spent = {METRICS[name].label: frame[name].sum() for name in names(group="time", over_epochs="sum")}
    parts = {words: seconds for words, seconds in spent.items() if seconds > 0}
    parts["everything else"] = total - sum(parts.values())
    listed = ", ".join(f"{words} {human_time(spent)} ({spent / total:.1%})" for words, spent in parts.items())
    lines = [f"- Of {human_time(total)}: {listed}."]
    each = frame["epoch_time_sec"].dropna()
    if len(each) > 2:
        slowest = each.idxmax()
        lines.append(f"- Slowest epoch: {slowest}, {each[slowest]:,.1f} s; median of all {each.median():,.1f} s.")
    both = frame[["train_images", "train_time_sec"]].dropna().sum()
    if both["train_time_sec"] > 0:
        lines.append(f"- {both['train_images'] / both['train_time_sec']:,.1f} images per second of training.")
    return "## Where the time went\n\n" + "\n".join(lines)


def curves_section(document: dict[str, Any], frame: pd.DataFrame) -> str:
    drawn = charts({document["run"]: frame}, USUAL, log=None)
    if not drawn:
        return "## Curves\n\nNothing to draw yet."
    return "## Curves\n\n```text\n" + "\n\n".join(drawn) + "\n```"


def _figure(value: float, digits: int = 5) -> str:
    return DASH if pd.isna(value) else f"{value:.{digits}g}"


def _count(value: float | None) -> str:
    return DASH if value is None or pd.isna(value) else f"{value:,.0f}"


@dataclass(frozen=True)
class TrainingLogConfig(RunCommand):
    """Rebuild a run's training_log.md, with milestones and curves."""

    target: Annotated[str | None, arg(metavar="NAME=VALUE")] = None
    """A figure to reach, such as val_loss=0.004."""
    baseline: Annotated[str | None, arg(metavar="RUN")] = None
    """A run to compare with: its name, or its folder."""

    def __post_init__(self) -> None:
        if self.target and not parse_target(self.target):
            known = ", ".join(SELECTABLE)
            raise RequestError(f"--target {self.target}: give one of {known}, = and a number, such as val_loss=0.004")


@cli.in_one_line
def main(arguments: Sequence[str] | None = None) -> int:
    config = cli.parse(TrainingLogConfig, arguments, "python -m metrics.training_log")
    baseline = find_run(config.baseline, config.paths.root) if config.baseline else None
    print(write_training_log(config.paths, config.target, baseline))
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
