"""The table of flags, as docs/flags.md has it: python -m ddpm.run.config."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import sys
from pathlib import Path

from ddpm.run.cli import flag
from ddpm.run.config import TrainConfig
from ddpm.run.metrics import DASH
from ddpm.run.program import run_program


def field_help() -> dict[str, str]:
    """The docstring of each field, by field name."""
    body = ast.parse(inspect.getsource(TrainConfig)).body[0].body
    pairs = itertools.pairwise(body)
    return {
        field.target.id: doc.value.value
        for field, doc in pairs
        if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr)
    }


def markdown_table() -> str:
    """The Markdown table of every flag, its default and its meaning."""
    rows = ["| flag | default (large) | meaning |", "|---|---|---|"]
    defaults = dataclasses.asdict(TrainConfig(data_root=Path("data"), output_root=Path(".")))
    for name, text in field_help().items():
        value = defaults[name]
        words = " ".join(map(str, value)) if isinstance(value, tuple) else value
        shown = DASH if value in (None, ()) else words
        rows.append(f"| `{flag(name)}` | {shown} | {text} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(run_program(lambda: print(markdown_table())))
