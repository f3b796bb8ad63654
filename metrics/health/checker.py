"""Is the run healthy? Its progress, losses, GPUs, speed, data, model, checkpoints and weights, judged from what it has
published: of a run that has finished, goes on or has died, from any shell or node that sees its files.

python -m metrics.health RUN [--watch | --json] [--checkpoint step_…] [--threshold name=value …] [--output-root DIR]

Ends with 0 (healthy), 1 (warnings) or 2 (unhealthy, or the request is wrong). Writes `health.md` beside the report, and
nothing else. With --watch it looks again every few seconds, until Ctrl-C or until the run has ended.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.live import Live
from tyro.conf import UseAppendAction, arg

from ddpm.run import cli, kinds
from ddpm.run.command import RunCommand
from ddpm.run.errors import RequestError
from ddpm.run.files import atomic_write, real, why
from ddpm.run.format import number
from ddpm.run.paths import RunPaths
from ddpm.run.program import flush
from metrics.health import checks
from metrics.health.files import CheckpointReader, data, model
from metrics.health.losses import losses
from metrics.health.page import Health, to_console, to_json, to_markdown, to_table, verdict
from metrics.health.speed import performance
from metrics.health.thresholds import Thresholds, parse_thresholds
from metrics.live.status import read_json
from metrics.run_state import CLOCK_SKEW, RunReader, RunState

LOOK_AGAIN = 5.0  # seconds between two looks of --watch
BEAT = 6.0  # seconds in which a living run renews its heartbeat
PLAIN_WIDTH = 120  # columns where there is no terminal to ask
PARTS = ("settings", "environment", "model", "data_summary")


def in_one_word(state: RunState, settings: dict[str, Any] | None = None) -> str:
    """`healthy`, `warnings` or `unhealthy`: the verdict on the published files alone (progress, losses, GPUs, speed).

    Cheap enough to be asked every second: no file is read, no checkpoint opened. `settings` are the run's, if known.
    """
    return verdict(_published(state, None, settings or {}, Thresholds()))


def _published(
    state: RunState, starts: list[dict[str, Any]] | None, settings: dict[str, Any], limits: Thresholds
) -> list[checks.Section]:
    rows = _rows(state)
    return [
        checks.progress(state, starts, limits),
        losses(rows, settings, limits, state.ended),
        checks.gpus(state, limits),
        performance(rows, limits),
    ]


def _rows(state: RunState) -> list[dict[str, Any]]:
    return [row for row in state.epochs if number(row.get("epoch")) is not None]


class HealthChecker:
    """Looks at a run, again and again if need be; what has not changed is not read again.

    Args:
        checkpoint: whose weights are looked at; the newest one if left out.
    """

    def __init__(self, paths: RunPaths, limits: Thresholds, checkpoint: Path | None = None) -> None:
        self._paths, self._limits, self._checkpoint = paths, limits, checkpoint
        self._reader, self._checkpoints = RunReader(paths), CheckpointReader(paths)
        self._data: tuple[Any, checks.Section] | None = None
        self._weights: tuple[Any, checks.Section, dict[str, Any] | None] | None = None
        self.ended = False

    def look(self) -> Health:
        """The run's health now."""
        state, limits = self._state(), self._limits
        self.ended = state.ended
        document, damaged = self._document()
        settings, rows = document["settings"], _rows(state)
        chosen = self._checkpoint or self._checkpoints.newest()
        sections = _published(state, document["starts"], settings, limits)
        sections[0].findings.extend(damaged)
        sections += [self._data_section(document, chosen), model(document, rows, state)]
        sections.append(self._checkpoints.section(rows, settings, chosen))
        weights, figures = self._weights_section(chosen)
        return Health(
            run=self._paths.run,
            data=document.get("data") or (state.status or {}).get("data"),
            state="silent" if state.dead else str((state.status or {}).get("state") or "not known"),
            place=checks.place(state, "epoch"),
            when=time.strftime("%Y-%m-%d %H:%M:%S %Z"),
            again=self._paths.command("python -m metrics.health"),
            sections=[*sections, weights],
            limits=limits,
            checkpoint=chosen.name if chosen else None,
            weights=figures,
        )

    def _document(self) -> tuple[dict[str, Any], list[checks.Finding]]:
        """What training_metrics.json holds, empty where there is none, and what is wrong with it."""
        from metrics.run_data import load_document  # with pandas, which the dashboard's one word does without

        try:
            document = load_document(self._paths)
        except RequestError as error:
            empty = {**{name: {} for name in PARTS}, "starts": []}
            return empty, [checks.warning(str(error))] if os.path.lexists(self._paths.json) else []
        return document, [checks.warning(document["damaged"])] if document["damaged"] else []

    def _state(self) -> RunState:
        """The published state. A heartbeat that is only a little too old may be a clock's fault: does it beat?"""
        state = self._reader.read()
        if not state.ended and 0 < state.heartbeat_age - self._limits.heartbeat_sec < CLOCK_SKEW:
            time.sleep(BEAT)
            state = self._reader.read()
        return state

    def _data_section(self, document: dict[str, Any], chosen: Path | None) -> checks.Section:
        identity = ((read_json(chosen / "meta.json") if chosen else None) or {}).get("identity")
        identity = kinds.mapping(kinds.text)(identity)
        key = (document.get("data"), document["data_summary"], document["settings"].get("data_root"), identity)
        if self._data is None or self._data[0] != key:
            self._data = key, data(document, identity, self._limits)
        return self._data[1]

    def _weights_section(self, chosen: Path | None) -> tuple[checks.Section, dict[str, Any] | None]:
        if chosen is None:
            return checks.Section("weights", [checks.Finding("–", "no checkpoint to look into")]), None
        from metrics.health.tensors import read_weights  # with torch, which the dashboard does without
        from metrics.health.weights import weights_section

        try:
            if problem := self._checkpoints.problem(chosen):
                raise RequestError(f"not looked into: {problem}")
            key = (chosen, [path.stat().st_mtime_ns for path in sorted(chosen.rglob("*"))])
            if self._weights is None or self._weights[0] != key:
                weights = read_weights(chosen, self._limits)
                section = weights_section(weights, chosen.name, self._limits)
                self._weights = key, section, weights.to_dict()
        except (RequestError, OSError) as error:
            if not os.path.lexists(chosen):
                note = f"{chosen.name} was removed by the run while it was being read: look again"
                return checks.Section("weights", [checks.Finding("–", note)]), None
            words = why(error) if isinstance(error, OSError) else str(error)
            return checks.Section("weights", [checks.Finding("unhealthy", words)]), None
        return self._weights[1:]


def find_checkpoint(paths: RunPaths, name: str | None) -> Path | None:
    """The checkpoint folder that `--checkpoint` names: one of the run's, or any; None if it names none.

    Raises:
        RequestError: there is no such folder; the message lists those there are.
    """
    if name is None:
        return None
    for folder in (paths.checkpoints / name, Path(name)):
        if os.path.lexists(folder / "meta.json") or os.path.lexists(folder / "train_state.pt"):
            return real(folder)
    known = ", ".join(sorted(path.name for path in paths.checkpoints.glob("step_*"))) or "none"
    raise RequestError(f"--checkpoint {name}: no such checkpoint in {paths.checkpoints}; there are: {known}")


def write_page(paths: RunPaths, health: Health) -> str | None:
    """Write health.md beside the report; why it could not be written, if so: the check goes on all the same."""
    page = paths.health
    try:
        atomic_write(page, to_markdown(health))
    except OSError as error:
        return f"warning: {page} could not be written ({error.strerror or error}); the check goes on without it"
    return None


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH, color_system=None)


def _watch(paths: RunPaths, examiner: HealthChecker, seconds: float) -> Health | None:
    """Show the overview until Ctrl-C or the run's end; the last check, None if there was no time for one."""
    console, health = _console(), None
    terminal = console.is_terminal
    try:
        with Live(console=console, auto_refresh=False) if terminal else nullcontext() as live:
            while health is None or not examiner.ended:
                if health:
                    time.sleep(seconds)
                health = examiner.look()
                problem = write_page(paths, health)
                live.update(to_table(health), refresh=True) if live else console.print(to_table(health))
                if problem:
                    console.print(problem, highlight=False)
    except KeyboardInterrupt:
        pass
    return health


def _print(health: Health, as_json: bool, page: Path | None) -> None:
    if as_json:
        print(json.dumps(to_json(health), indent=2, allow_nan=False))
    else:
        console = _console()
        with console.capture() as told:  # as Rich ends the process itself where nobody reads on
            console.print(to_console(health))
        print(told.get(), end="")
        if page:
            print(f"\nas a page: {page}")


@dataclass(frozen=True)
class HealthConfig(RunCommand):
    """Judge a run by its published files: is it healthy?"""

    watch: bool = False
    """Check again every few seconds, until Ctrl-C or the end of the run."""
    json: bool = False
    """Print one JSON object instead of the page."""
    checkpoint: Annotated[str | None, arg(metavar="step_…")] = None
    """Checkpoint whose weights are examined. Left out: the newest."""
    threshold: Annotated[UseAppendAction[tuple[tuple[str, ...], ...]], arg(metavar="NAME=VALUE [NAME=VALUE ...]")] = ()
    """Change thresholds; health.md lists them all."""

    def __post_init__(self) -> None:
        if self.watch and self.json:
            raise RequestError("--watch and --json: give one of them")


@cli.in_one_line
def main(arguments: Sequence[str] | None = None) -> int:
    config = cli.parse(HealthConfig, arguments, "python -m metrics.health")
    limits, paths = parse_thresholds(itertools.chain.from_iterable(config.threshold)), config.paths
    checker = HealthChecker(paths, limits, find_checkpoint(paths, config.checkpoint))
    if config.watch:
        health = _watch(paths, checker, LOOK_AGAIN)
        return health.exit_code if health else 130
    health = checker.look()
    problem = write_page(paths, health)
    try:
        _print(health, config.json, None if problem else paths.health)
    except BrokenPipeError:  # the reader, `head` say, has seen enough; the exit code tells the rest
        flush()
    if problem:
        print(problem, file=sys.stderr)
    return health.exit_code
