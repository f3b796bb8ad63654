"""Runs whose training log is written, and what stands in it."""

import json
from pathlib import Path

import pandas as pd

from ddpm.run.paths import RunPaths
from metrics.training_log.log import write_training_log
from tests.support.metrics_documents import make_document

START = "2026-05-04T01:00:00+00:00"
EVENTS_FROM = 1_777_860_000.0  # 2026-05-04 02:00:00 UTC, when the first epoch of `events` ends


def put(root: Path, document: dict, name: str = "night") -> RunPaths:
    """The files that a run of this `document` would have left."""
    paths = RunPaths(root, name)
    paths.metrics.mkdir(parents=True)
    paths.json.write_text(json.dumps({**document, "run": name}))
    rows = [row for row in document["epochs"] if isinstance(row, dict)]
    pd.DataFrame(rows).to_csv(paths.csv, index=False)
    return paths


def written(root: Path, document: dict, **asked) -> str:
    return write_training_log(put(root, document), **asked).read_text()


def rows_of(paths_or_root: Path) -> pd.DataFrame:
    """The rows, from the CSV file alone."""
    return pd.read_csv(RunPaths(paths_or_root, "night").csv, index_col="epoch")


def section(page: str, title: str) -> str:
    return page.split(f"\n## {title}", 1)[1].split("\n## ", 1)[0]


def table_of(page: str, title: str) -> list[list[str]]:
    """The cells of the first table of a section, without its heading."""
    lines = [line for line in section(page, title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def milestones(page: str) -> list[str]:
    return [row[-1] for row in table_of(page, "Milestones")]


def with_losses(values, column: str = "val_loss_ema", **changes) -> dict:
    document = make_document(len(values), **changes)
    for row, value in zip(document["epochs"], values, strict=True):
        row[column] = value
    return document


def publish(paths: RunPaths, *events: dict) -> None:
    paths.events.write_text("".join(json.dumps(event) + "\n" for event in events))
