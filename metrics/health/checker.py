"""Is the run healthy? Checks its progress, losses, GPUs, speed, data, model, checkpoints and weights.

Works on running, finished and crashed runs, from any machine that can read the run's folder.

python -m metrics.health RUN [--watch | --json] [--checkpoint step_…] [--threshold name=value …] [--output-root DIR]

Exit codes: 0 healthy, 1 warnings, 2 unhealthy or a wrong request. Writes `health.md` beside the report, and nothing
else. With --watch it checks every few seconds until Ctrl-C (130 before the first check) or the end of the run.
"""

from __future__ import annotations

import itertools
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
from ddpm.run.files import atomic_write, plain, real, strict_json, why
from ddpm.run.paths import RunPaths
from ddpm.run.program import flush
from metrics.files import read_json
from metrics.health import checks
from metrics.health.criteria import criteria
from metrics.health.files import CheckpointReader, data, model
from metrics.health.losses import losses
from metrics.health.page import Health, reasons, to_console, to_json, to_page, to_table, verdict
from metrics.health.speed import performance
from metrics.health.thresholds import Thresholds, parse_thresholds
from metrics.page import to_markdown
from metrics.run_data import RunData
from metrics.run_reader import RunReader

LOOK_AGAIN = 5.0  # seconds between two looks of --watch
PLAIN_WIDTH = 120  # columns where there is no terminal to ask


def verdict_of(run: RunData) -> tuple[str, str | None]:
    """`healthy`, `warnings` or `unhealthy`, and the worst finding if it is not healthy: the verdict on the published
    files alone (progress, losses, GPUs, speed). Cheap enough to be asked every second: no file is read."""
    components = published(run, Thresholds())
    return verdict(components), next(iter(reasons(components)), None)


def published(run: RunData, limits: Thresholds) -> list[checks.Component]:
    """The components that are made from the run's published files alone."""
    judged = [checks.progress(run, limits), losses(run, limits), checks.gpus(run, limits), performance(run, limits)]
    return [*judged, *criteria(run)]


class HealthChecker:
    """Checks a run, again and again if need be; what has not changed is not read again.

    Args:
        checkpoint: whose weights are examined; the newest one if left out.
    """

    def __init__(self, paths: RunPaths, limits: Thresholds, checkpoint: Path | None = None) -> None:
        self._paths, self._limits, self._checkpoint = paths, limits, checkpoint
        self._reader, self._checkpoints = RunReader(paths, limits=limits.of_liveness), CheckpointReader(paths)
        self._data: tuple[Any, checks.Component] | None = None
        self._weights: tuple[Any, checks.Component, dict[str, Any] | None] | None = None
        self.ended = False

    def check(self) -> Health:
        """The run's health now."""
        run, limits = self._reader.read_surely(), self._limits
        self.ended = run.ended
        chosen = self._checkpoint or self._checkpoints.newest()
        components = [*published(run, limits), self._data_component(run, chosen), model(run)]
        components.append(self._checkpoints.component(run, chosen))
        weights, figures = self._weights_component(chosen)
        now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(run.now))
        return Health(run, now, [*components, weights], limits, chosen.name if chosen else None, figures)

    def _data_component(self, run: RunData, chosen: Path | None) -> checks.Component:
        identity = ((read_json(chosen / "meta.json") if chosen else None) or {}).get("identity")
        identity = kinds.mapping(kinds.text)(identity)
        key = (run.data, run.document.get("data_summary"), run.settings.get("data_root"), identity)
        if self._data is None or self._data[0] != key:
            self._data = key, data(run, identity, self._limits)
        return self._data[1]

    def _weights_component(self, chosen: Path | None) -> tuple[checks.Component, dict[str, Any] | None]:
        if chosen is None:
            return checks.Component("weights", [checks.fact("no checkpoint to examine")]), None
        from metrics.health.tensors import read_weights  # here, as it loads torch, which the dashboard does not need
        from metrics.health.weights import weights_component

        try:
            if problem := self._checkpoints.problem(chosen):
                raise RequestError(f"not examined: {problem}")
            key = (chosen, [path.stat().st_mtime_ns for path in sorted(chosen.rglob("*"))])
            if self._weights is None or self._weights[0] != key:
                weights = read_weights(chosen, self._limits)
                component = weights_component(weights, chosen.name, self._limits)
                self._weights = key, component, plain(weights.to_dict())
        except (RequestError, OSError) as error:
            if not os.path.lexists(chosen):
                note = f"{chosen.name} was removed by the run while it was being read: check again"
                return checks.Component("weights", [checks.fact(note)]), None
            words = why(error) if isinstance(error, OSError) else str(error)
            return checks.Component("weights", [checks.unhealthy(words)]), None
        return self._weights[1:]


def find_checkpoint(paths: RunPaths, name: str | None) -> Path | None:
    """The folder that `--checkpoint` names, a checkpoint of the run or any path; None if `name` is None.

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
    """Write health.md beside the report. Returns a warning if it could not be written, else None."""
    page = paths.health
    try:
        atomic_write(page, to_markdown(to_page(health), paths.metrics))
    except OSError as error:
        return f"warning: {page} could not be written ({error.strerror or error}); the check goes on without it"
    return None


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH, color_system=None)


def _watch(paths: RunPaths, checker: HealthChecker, seconds: float) -> Health | None:
    """Show the overview until Ctrl-C or the run's end; the last check, None if there was no time for one."""
    console, health = _console(), None
    terminal = console.is_terminal
    try:
        with Live(console=console, auto_refresh=False) if terminal else nullcontext() as live:
            while health is None or not checker.ended:
                if health:
                    time.sleep(seconds)
                health = checker.check()
                problem = write_page(paths, health)
                live.update(to_table(health), refresh=True) if live else console.print(to_table(health))
                if problem:
                    console.print(problem, highlight=False)
    except KeyboardInterrupt:
        pass
    return health


def _print(health: Health, as_json: bool, page: Path | None) -> None:
    if as_json:
        print(strict_json(to_json(health), indent=2))
    else:
        console = _console()
        with console.capture() as captured:  # Rich itself would end the process on a closed pipe
            console.print(to_console(health))
        print(captured.get(), end="")
        if page:
            print(f"\nas a page: {page}")


@dataclass(frozen=True)
class HealthConfig(RunCommand):
    """Check whether a run is healthy: progress, losses, GPUs, speed, data, model, checkpoints and weights."""

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
    health = checker.check()
    problem = write_page(paths, health)
    try:
        _print(health, config.json, None if problem else paths.health)
    except BrokenPipeError:  # the reader, such as `head`, closed the pipe; the exit code still counts
        flush()
    if problem:
        print(problem, file=sys.stderr)
    return health.exit_code
