"""What the benchmarks share: sides measured in turn, their medians and spread, the machine, a table and a JSON file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import diffusers
import torch
from rich.console import Console
from rich.table import Table

from ddpm.run.arguments import parse_args
from ddpm.run.config import TrainConfig
from ddpm.run.errors import RequestError
from ddpm.run.files import atomic_write
from ddpm.run.paths import PROJECT_ROOT
from ddpm.training.machine.hardware import device_name, synchronize

RESULTS = PROJECT_ROOT / "benchmarks" / "results"
ALL = "all of these"  # all parts of a step that are not learning
WIDTH = 130  # columns of a table, also in a batch job's output


def seconds(task: Callable[[], Any], device: torch.device) -> float:
    """How long `task` takes, with all that the device has to do for it."""
    synchronize(device)
    began = time.perf_counter()
    task()
    synchronize(device)
    return time.perf_counter() - began


def in_turn(sides: Mapping[str, Callable[[], float]], rounds: int, passes: int = 1) -> dict[str, list[float]]:
    """Call every side in turn, and reverse the order each time, so that a slow minute of the machine affects all.

    Args:
        passes: calls of each side in a round. More of them average out the machine's fluctuations.

    Returns the mean of what each side returned in a round, by round.
    """
    measured: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds * passes):
        for name in list(sides) if number % 2 == 0 else reversed(sides):
            measured[name].append(sides[name]())
    return {
        name: [statistics.fmean(each[first : first + passes]) for first in range(0, len(each), passes)]
        for name, each in measured.items()
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest of the rounds."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def ratio(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """The spread of the quotients of two sides, round by round."""
    return spread([a / b for a, b in zip(over, under, strict=True)])


def words(figure: Mapping[str, float], digits: int = 1, unit: str = "") -> str:
    """A spread as text: `161.8 (160.9 – 163.0)`."""
    return f"{figure['median']:,.{digits}f}{unit} ({figure['low']:,.{digits}f} – {figure['high']:,.{digits}f})"


def machine(device: torch.device) -> dict[str, Any]:
    """The machine and the versions that are measured."""
    return {
        "device": device_name(device), "cpu": _cpu_name(), "cores": os.cpu_count(),
        "threads": torch.get_num_threads(), "torch": torch.__version__, "diffusers": diffusers.__version__,
        "python": platform.python_version(), "load_before": os.getloadavg()[0],
    }  # fmt: skip


def _cpu_name() -> str:
    """The processor, with the best instruction set that it has for half precision or vectors."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    name = re.search(r"model name\s*: (.+)", cpuinfo)
    arithmetic = next((flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if f" {flag}" in cpuinfo), "")
    return f"{name[1] if name else platform.machine()}, {arithmetic}"


class Parser(argparse.ArgumentParser):
    """Reports a wrong request in one line, with exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def arguments(description: str, rounds: int) -> argparse.ArgumentParser:
    """A parser with the flags of every benchmark; flags that it does not know belong to train.py."""
    parser = Parser(
        description=description, epilog="Other flags are those of train.py: --preset, --data-root, --batch-size, …"
    )
    parser.add_argument("--rounds", type=int, default=rounds, help=f"measurements of each side (default {rounds})")
    parser.add_argument("--out", type=Path, help="the JSON file (default: in benchmarks/results/)")
    return parser


def settings(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> tuple[Any, TrainConfig]:
    """The benchmark's own flags, and the settings that the other flags give for train.py."""
    options, rest = parser.parse_known_args(argv)
    if options.rounds < 1:
        parser.error("--rounds: at least 1")
    try:
        return options, parse_args(rest)
    except RequestError as error:
        parser.error(str(error))


def publish(name: str, device: torch.device, document: Mapping[str, Any], out: Path | None, table: Table) -> Path:
    """Print the table, and write the figures, with machine and versions, as JSON. Returns the file's path."""
    place = out or RESULTS / f"{name}_{slug(device)}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    whole = {"benchmark": name, "measured": datetime.now(UTC).isoformat(timespec="seconds"), **document}
    atomic_write(place, json.dumps(whole, indent=2) + "\n")
    console = Console(width=max(WIDTH, Console().width))
    console.print(table)
    console.print(f"[dim]{place}[/dim]", soft_wrap=True)
    return place


def slug(device: torch.device) -> str:
    """The device in a file's name: cpu, nvidia-l40s."""
    return "cpu" if device.type == "cpu" else re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
