"""Markdown for the report: tables, links and pictures."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ddpm.run.paths import RunPaths


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]], numbers: bool = False) -> str:
    """A Markdown table; with `numbers` its columns are set to the right."""

    def line(cells: Sequence[Any]) -> str:
        return "| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(heads), line(["---:" if numbers else "---"] * len(heads)), *map(line, rows)])


def link(paths: RunPaths, target: Path) -> str:
    """A link to `target` that works from the report's folder."""
    return quote(Path(os.path.relpath(target, paths.metrics)).as_posix())


def picture(paths: RunPaths, target: Path) -> str:
    """The picture `target`, shown in the report."""
    return f"![{target.stem}]({link(paths, target)})"
