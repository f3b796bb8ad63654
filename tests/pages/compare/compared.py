"""Runs to compare, and what stands on the page of their comparison."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ddpm.data.emnist import CLASS_NAMES
from ddpm.run.metrics import METRICS
from ddpm.run.paths import RunPaths
from metrics.compare.__main__ import main
from metrics.compare.comparison import PAGE
from metrics.page import Page, Section, to_markdown
from tests.support.metrics_documents import make_document

TINY = {"preset": "tiny", "seed": 0, "lr": 0.003, "prediction_type": "v_prediction", "run_name": "x"}


def make_run(root: Path, name: str, epochs: int = 4, factor: float = 1.0, data: str = "emnist", **settings) -> RunPaths:
    """A run whose losses are `factor` times those of the others."""
    document = make_document(epochs, gpu=False, data=data, run=name)
    document["settings"] |= TINY | {"run_name": name, "data": data} | settings
    for row in document["epochs"]:
        for column in ("loss_mean", "val_loss", "val_loss_ema"):
            row[column] *= factor
    paths = RunPaths(root, name)
    paths.samples.mkdir(parents=True)
    save(paths, document)
    return paths


def save(paths: RunPaths, document: dict) -> None:
    paths.json.write_text(json.dumps(document))
    pd.DataFrame(document["epochs"], columns=list(METRICS)).to_csv(paths.csv, index=False)


def draw_grid(paths: RunPaths, epoch: int, resolution: int = 28) -> None:
    pixels = np.full((len(CLASS_NAMES), resolution, resolution), epoch, np.uint8)
    np.savez(paths.samples / f"emnist_epoch_{epoch:04d}.npz", x=pixels, y=np.arange(len(CLASS_NAMES)))


def page_of(root: Path, *arguments: str) -> str:
    assert main([*arguments, "--output-root", str(root), "--out", str(root / "page")]) == 0
    return (root / "page" / PAGE).read_text()


def refusal(capsys: pytest.CaptureFixture, root: Path, *arguments: str) -> str:
    assert main([*arguments, "--output-root", str(root), "--out", str(root / "page")]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    assert not (root / "page").exists()
    return line


def tables(page: str) -> list[list[list[str]]]:
    """The cells of every table of the page."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", page, re.MULTILINE)
    lines = [[line for line in block.splitlines() if "---" not in line] for block in blocks]
    return [[[cell.strip("`* ") for cell in line.strip("|").split("|")] for line in block] for block in lines]


def table_headed(page: str, heading: str) -> dict[str, dict[str, str]]:
    """The rows of the first table that has the heading, by their first or second cell."""
    heads, *rows = next(table for table in tables(page) if heading in table[0])
    return {row[0] if not row[0].isdigit() else row[1]: dict(zip(heads, row, strict=True)) for row in rows}


def number(cell: str) -> float:
    return float(re.match(r"[\d.,e+-]+", cell)[0].replace(",", ""))


def markdown_of(root: Path, section: Section) -> str:
    return to_markdown(Page("", [section]), root)


def csv(root: Path, run: str) -> pd.DataFrame:
    return pd.read_csv(RunPaths(root, run).csv, index_col="epoch")
