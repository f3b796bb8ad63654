"""Do the pages of a run say what its CSV says? Their figures are computed here again, by means of their own.

`metrics.verify` makes each page again from the data and compares. It cannot see a mistake that both times is made by
the same function. So here the CSV is read with Python's own reader, and the best, the last and the sum are looked for
row by row. Only the digits are the registry's: `Metric.text`.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ddpm.run.format import DASH
from ddpm.run.metrics import (
    EPOCH,
    EPOCH_TABLE,
    IMAGES_SEEN,
    LOSS_MEAN,
    LR,
    METRICS,
    NONFINITE_STEPS,
    SAMPLES_PER_SEC,
    STEP,
    TRAIN_IMAGES,
    TRAIN_TIME_SEC,
    VAL_LOSS,
    VAL_LOSS_EMA,
    Metric,
    headline,
)
from ddpm.run.paths import RunPaths
from metrics.health.checker import HealthChecker
from metrics.health.losses import COLUMNS as OF_HEALTH
from metrics.health.losses import LAST
from metrics.health.page import to_page
from metrics.health.thresholds import Thresholds
from metrics.live.panels import epoch_columns
from metrics.live.terminal import snapshot
from metrics.page import to_markdown
from metrics.run_reader import read_run
from metrics.verify.__main__ import checks

WIDTH = 120  # columns of the dashboard: its panels lie below each other
CELLS = re.compile(r"(?<!\\)\|")
FIGURE = re.compile(r"\**([^\s*]+?)\**(?: \([^)]*\))?(?:, epoch (\d+))?")

Row = dict[str, float | None]


def contradictions(paths: RunPaths) -> list[str]:
    """What the pages of a run say otherwise than its CSV, a line each, by page."""
    rows = read_rows(paths.csv)
    run = read_run(paths)
    found = [str(check) for check in checks(run) if check.differs]
    if not rows:
        return found
    for page, wrong in {
        "report": _report(paths, rows),
        "training log": _training_log(paths, rows),
        "dashboard": _dashboard(paths, rows),
        "health": _health(paths, rows),
    }.items():
        found += [f"{page}: {line}" for line in wrong]
    return found


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV of figures; None for an empty cell.

    Raises:
        ValueError: it is damaged: a cell is no number, or a row has another number of cells than the first line.
    """
    with open(path, encoding="utf-8", newline="") as file:
        heads, *lines = csv.reader(file)
    if heads != list(METRICS):
        raise ValueError(f"{path.name}: its first line does not name the columns")
    known = [dict(zip(heads, line, strict=True)) for line in lines]
    return [{name: float(cell) if cell else None for name, cell in row.items() if name != "data"} for row in known]


# ---- what the rows say -----------------------------------------------------------------------------------------------


def measured(rows: Sequence[Row], metric: Metric) -> list[tuple[int, float]]:
    """Epoch and value of each row that has the figure."""
    return [(int(row["epoch"]), row[metric.name]) for row in rows if row[metric.name] is not None]


def best(rows: Sequence[Row], metric: Metric) -> tuple[int, float] | None:
    """Epoch and value of the best; of equal ones the first."""
    found = None
    for epoch, value in measured(rows, metric):
        if found is None or (value > found[1] if metric.larger_is_better else value < found[1]):
            found = epoch, value
    return found


def total(rows: Sequence[Row], metric: Metric) -> float:
    return math.fsum(value for _, value in measured(rows, metric))


def text_of_best(rows: Sequence[Row], metric: Metric) -> tuple[str, str]:
    """The best value and its epoch as a page shows them; dashes where nothing was measured."""
    found = best(rows, metric)
    return (metric.text(found[1]), str(found[0])) if found else (DASH, DASH)


# ---- pages -----------------------------------------------------------------------------------------------------------


def tables(page: str) -> dict[str, list[list[str]]]:
    """The tables of a Markdown page by the heading above them; a second one below the same heading has ` 2` added."""
    found: dict[str, list[list[str]]] = {}
    heading, name, before = "", "", ""
    for line in page.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        if line.startswith("| "):
            if not before.startswith("| "):
                number = sum(known == heading or known.startswith(f"{heading} ") for known in found) + 1
                name = heading if number == 1 else f"{heading} {number}"
            cells = [cell.strip() for cell in CELLS.split(line)[1:-1]]
            if set("".join(cells)) - set("-:"):
                found.setdefault(name, []).append(cells)
        before = line
    return found


def _differ(said: dict[str, str], should: dict[str, str]) -> Iterator[str]:
    for name, expected in should.items():
        if said.get(name) != expected:
            yield f"{name} is {said.get(name, 'not there')}, should be {expected}"


def _table(said: Sequence[Sequence[str]], should: Sequence[Sequence[str]], what: str) -> Iterator[str]:
    """What differs in a table, its heads included."""
    if len(said) != len(should):
        yield f"{what}: {len(said) - 1} rows, should be {len(should) - 1}"
    for mine, expected in zip(said, should, strict=False):
        if list(mine) != list(expected):
            yield f"{what}: {' '.join(mine)}, should be {' '.join(expected)}"


def _texts(rows: Sequence[Row], columns: Sequence[Metric]) -> list[list[str]]:
    return [[metric.text(row[metric.name]) for metric in columns] for row in rows]


def _report(paths: RunPaths, rows: Sequence[Row]) -> Iterator[str]:
    known, last = tables(paths.report.read_text(encoding="utf-8")), rows[-1]
    starts = json.loads(paths.json.read_text(encoding="utf-8"))["starts"]
    seconds = total(rows, TRAIN_TIME_SEC)
    best_loss, best_val = text_of_best(rows, LOSS_MEAN), text_of_best(rows, VAL_LOSS_EMA)
    summary = {
        "total_epochs": EPOCH.text(last["epoch"]),
        "total_samples": f"{last['images_seen']:,.0f}",
        "total_time_sec": f"{last['total_time_sec']:,.1f}",
        "best_loss": best_loss[0],
        "best_epoch": best_loss[1],
        "final_loss": LOSS_MEAN.text(last["loss_mean"]),
        "final_lr": LR.text(last["lr"]),
        "avg_throughput_sps": f"{total(rows, TRAIN_IMAGES) / seconds:,.1f}" if seconds else DASH,
        "best_val_loss_ema": best_val[0],
        "best_val_epoch": best_val[1],
        "nonfinite_steps": f"{total(rows, NONFINITE_STEPS):.0f}",
        "restarts": str(len(starts) - 1),
    }
    yield from _differ({name.strip("`"): value for name, value, _ in known["Summary"]}, summary)
    columns = [metric for metric in EPOCH_TABLE if measured(rows, metric)]
    should = [[metric.heading for metric in columns], *_texts(rows, columns)]
    yield from _table(known["Per-Epoch Metrics"], should, "table of epochs")


def _training_log(paths: RunPaths, rows: Sequence[Row]) -> Iterator[str]:
    said = {
        cells[0].strip("`"): cells for cells in tables(paths.training_log.read_text(encoding="utf-8"))["Best results"]
    }
    for metric in headline():
        values = measured(rows, metric)
        if not values:
            continue
        *_, cell, last_epoch = said.get(metric.name, [DASH] * 7)
        mine = [*said.get(metric.name, [DASH] * 7)[1:3], cell.partition(" ")[0], last_epoch]
        epoch, value = values[-1]
        should = [*text_of_best(rows, metric), metric.text(value), str(epoch)]
        if mine != should:
            yield f"{metric.name}: {' '.join(mine)}, should be {' '.join(should)}"


def _dashboard(paths: RunPaths, rows: Sequence[Row]) -> Iterator[str]:
    """The table of epochs and its legend, the trend, and how far the run is, of one that is not running."""
    run = read_run(paths)
    lines = [line.strip("│╭╮╰╯─ ") for line in snapshot(run, WIDTH).splitlines()]
    columns = epoch_columns(run, WIDTH)
    shown = [line.removeprefix("★").split() for line in lines if re.match(r"★? *\d+ +\S+ +\S+ +\S+", line)]
    expected = _texts(rows, columns)
    if not shown or shown != expected[-len(shown) :]:
        yield f"table of epochs: {shown}, should be the last of {expected}"
    text = "\n".join(lines)
    value, epoch = text_of_best(rows, VAL_LOSS_EMA)
    wanted = [f"lowest {VAL_LOSS_EMA.heading} {value}, epoch {epoch}"] if value != DASH else []
    if run.state == "finished" and re.search(r" seen \d", text):  # left out where there is no room
        wanted.append(f" seen {rows[-1][IMAGES_SEEN.name]:,.0f}")
    for words in wanted:
        if words not in text:
            yield f"{words!r} is not there"
    losses = [value for _, value in measured(rows, LOSS_MEAN)]
    trend = next((line.split() for line in lines if line.startswith("trend ")), None)
    ends = [LOSS_MEAN.text(losses[0]), LOSS_MEAN.text(losses[-1])]
    if len(losses) > 1 and (trend is None or [trend[1], trend[-1]] != ends):
        yield f"the trend is {trend}, should go from {' to '.join(ends)}"


def _health(paths: RunPaths, rows: Sequence[Row]) -> Iterator[str]:
    page = to_markdown(to_page(HealthChecker(paths, Thresholds()).check()), paths.metrics)
    should = [[metric.heading for metric in OF_HEALTH], *_texts(rows[-LAST:], OF_HEALTH)]
    yield from _table(tables(page)["Losses"], should, "table of losses")
    rates = [value for _, value in measured(rows, LR)]
    words = [f"learning rate {LR.text(rates[-1])}, at most {LR.text(max(rates))}"]
    leading = next(metric for metric in (VAL_LOSS_EMA, VAL_LOSS, LOSS_MEAN) if measured(rows, metric))
    value, epoch = text_of_best(rows, leading)
    if "degrading" in page or f"{leading.label}: best" in page:
        words.append(f"{leading.label}: best {value} at epoch {epoch}")
    yield from (f"{each!r} is not there" for each in words if each not in page)


def of_comparison(page: Path, runs: dict[str, RunPaths]) -> list[str]:
    """What a comparison says otherwise than the CSV of each run, a line each.

    Args:
        runs: name in the comparison → files.
    """
    known = tables(page.read_text(encoding="utf-8"))
    rows = {name: read_rows(paths.csv) for name, paths in runs.items()}
    found = []
    for title, table in known.items():
        heads, *lines = table
        names = [head.strip("`") for head in heads[1:]]
        for line in lines if names and set(names) <= rows.keys() else ():
            for name, cell in zip(names, line[1:], strict=True):
                should, said = _compared(line[0], rows[name]), FIGURE.fullmatch(cell)
                if should and (said is None or said.groups() != should):
                    found.append(f"comparison, {title}: {line[0]} of {name} is {cell}, should be {should}")
    ranking = known["Ranking"]
    for _, name, value, epoch, *_ in ranking[1:]:
        metric = next(metric for metric in METRICS.values() if metric.heading == ranking[0][2])
        if [value, epoch] != [*text_of_best(rows[name.strip("`")], metric)]:
            found.append(f"comparison, ranking: {name} has {value} at epoch {epoch}")
    places = [value for _, _, value, *_ in ranking[1:] if value != DASH]
    if places != sorted(places, key=float, reverse=metric.larger_is_better):
        found.append(f"comparison, ranking: {' '.join(places)} are not in order")
    return found


def _compared(what: str, rows: Sequence[Row]) -> tuple[str, str | None] | None:
    """What the comparison should say in the row `what`: value and epoch; None if that is not known here."""
    kind, _, label = what.partition(" ")
    metric = next((metric for metric in METRICS.values() if metric.label == label), None)
    if kind == "best" and metric:
        value, epoch = text_of_best(rows, metric)
        return value, None if epoch == DASH else epoch
    if kind == "final" and metric:
        values = measured(rows, metric)
        return metric.text(values[-1][1] if values else None), None
    last = {metric.label: metric.text(rows[-1][metric.name]) for metric in (STEP, IMAGES_SEEN)}
    seconds = total(rows, TRAIN_TIME_SEC)
    known = last | {
        "epochs": EPOCH.text(rows[-1]["epoch"]),
        NONFINITE_STEPS.label: NONFINITE_STEPS.text(total(rows, NONFINITE_STEPS)),
        SAMPLES_PER_SEC.label: SAMPLES_PER_SEC.text(total(rows, TRAIN_IMAGES) / seconds if seconds else None),
    }
    return (known[what], None) if what in known else None
