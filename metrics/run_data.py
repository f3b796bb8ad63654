"""A run as its files describe it, read once by `run_reader.py`: settings, rows, status, messages, starts, GPUs.

Whether the run is alive is decided here, once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ddpm.run import kinds
from ddpm.run.command import same_command
from ddpm.run.datasets import data_words
from ddpm.run.errors import RequestError
from ddpm.run.format import count, duration, number, timestamp
from ddpm.run.metrics import FIGURES, Metric, altered_of
from ddpm.run.paths import RunPaths
from metrics.files import ENDED
from metrics.page import Finding
from metrics.starts import Start, training_starts
from metrics.trends import Curve

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Limits:
    """Seconds after which a run whose state is `running` counts as dead or stalled."""

    heartbeat_sec: float = 45.0  # it comes every 5, and a network file system may hold it back for some 30
    step_sec: float = 300.0  # without a step, in the phase `training`
    phase_sec: float = 1800.0  # in any other phase


@dataclass(frozen=True)
class RunData:
    """Everything a run has published, at the time `now` (seconds since 1970); `heartbeat_age` is in seconds.

    `document` is the content of `training_metrics.json`, missing parts empty; `unreadable` says why it cannot be read.
    `rows`: an epoch each; `logs`: the latest log events; `errors`: all errors in the log; `nodes`: GPU files.
    `trouble`: what the run itself could not write.
    """

    paths: RunPaths
    now: float
    limits: Limits = Limits()
    status: dict[str, Any] = field(default_factory=dict)
    document: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    logs: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    nodes: list[dict[str, Any]] = field(default_factory=list)
    heartbeat_age: float = 0.0
    trouble: str | None = None
    unreadable: str | None = None
    findings: list[Finding] = field(default_factory=list)

    # ---- what it is --------------------------------------------------------------------------------------------------

    @property
    def run(self) -> str:
        return self.paths.run

    @property
    def data(self) -> str | None:
        """The data set's name in files, such as `emnist` or `glyphs`; None if that is not known."""
        return self.document.get("data") or kinds.data_set(self.status.get("data"))

    @property
    def data_words(self) -> str:
        return data_words(self.data) if self.data else "data not known"

    @property
    def settings(self) -> dict[str, Any]:
        return self.document.get("settings") or {}

    @property
    def environment(self) -> dict[str, Any]:
        return self.document.get("environment") or {}

    @property
    def generated(self) -> str | None:
        """When the figures were written, as ISO 8601."""
        return self.document.get("generated")

    @property
    def summary(self) -> dict[str, Any]:
        return self.document.get("summary") or {}

    @property
    def training_images(self) -> int | None:
        return (self.document.get("data_summary") or {}).get("train_images")

    @property
    def planned_epochs(self) -> int | None:
        """Epochs that the run is to have, `--max-steps` included."""
        known = self.document.get("hyperparameters") or {}
        total, each = number(known.get("total_steps")), number(known.get("steps_per_epoch"))
        if total and each:
            return math.ceil(total / each)
        epochs = number(self.settings.get("epochs"))
        return int(epochs) if epochs else None

    @property
    def last(self) -> dict[str, Any]:
        """The row of the last epoch; empty before the first has ended."""
        return self.rows[-1] if self.rows else {}

    def row(self, epoch: int) -> dict[str, Any]:
        """The row of an epoch; empty if there is none."""
        return next((row for row in self.rows if row["epoch"] == epoch), {})

    @property
    def altered(self) -> Mapping[str, int]:
        """Settings that have changed since the run began, as `Metric.comparable_from` takes them."""
        return altered_of((self.document.get("starts") or [{}])[-1])

    def rows_of(self, metric: Metric) -> list[dict[str, Any]]:
        """The rows whose figure was measured as it is now: another guidance, for example, gives another RCA."""
        return self.rows[metric.comparable_from(self.altered) :]

    def curve(self, metric: Metric) -> Curve:
        """The measured values of a figure, as far as they can be compared with the last one."""
        return Curve.of(self.rows_of(metric), metric)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The rows by epoch, every column of figures there, as floats; NaN where no finite number was measured."""
        import pandas as pd

        frame = pd.DataFrame(self.rows, columns=["epoch", *FIGURES], dtype=object).apply(pd.to_numeric, errors="coerce")
        frame = frame.astype(float).replace([math.inf, -math.inf], math.nan).dropna(subset="epoch")
        return frame.astype({"epoch": int}).drop_duplicates("epoch", keep="last").set_index("epoch").sort_index()

    def series(self, metric: Metric) -> pd.Series:
        """A figure by epoch, as floats; NaN where it was not measured."""
        return self.frame[metric.name]

    @cached_property
    def starts(self) -> list[Start]:
        """The starts that trained, the oldest first."""
        return training_starts(self.paths, self.document.get("starts") or [], self.status)

    def need_figures(self) -> RunData:
        """This run.

        Raises:
            RequestError: `training_metrics.json` is missing, or is not one.
        """
        if self.unreadable:
            raise RequestError(self.unreadable)
        return self

    # ---- how it is doing ---------------------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        return self.status.get("state") in ENDED

    @property
    def silent(self) -> bool:
        """Its state is `running`, but the heartbeat is too old."""
        return bool(self.status) and not self.ended and self.heartbeat_age > self.limits.heartbeat_sec

    @property
    def lives(self) -> bool:
        return bool(self.status) and not self.ended and not self.silent

    @property
    def job_now(self) -> float:
        """The time by the clock of the run's node, which may differ from ours. Times that it wrote are judged by it."""
        heartbeat = number(self.status.get("heartbeat"))
        return self.now if heartbeat is None else heartbeat + self.heartbeat_age

    @property
    def idle_sec(self) -> float:
        """Seconds since the last step while training; in any other phase, since the phase began."""
        since = number(self.status.get("progress_time" if self.phase == "training" else "phase_time"))
        return self.job_now - max(since or self.job_now, number(self.status.get("phase_time")) or 0.0)

    @property
    def phase(self) -> str:
        return str(self.status.get("phase") or "unknown")

    @property
    def stalled(self) -> bool:
        """It is alive, but makes no progress."""
        most = self.limits.step_sec if self.phase == "training" else self.limits.phase_sec
        return self.lives and self.idle_sec > most

    @property
    def state(self) -> str:
        """`finished`, `stopped`, `failed`, `running`, `silent`, `stalled`; `unknown` if nothing is published."""
        if not self.status:
            return self.document.get("state") or "unknown"
        return "silent" if self.silent else "stalled" if self.stalled else self.status["state"]

    @property
    def outcome(self) -> str:
        """The state by its figures: `running`, or how it ended. A process that was lost could not write that there, but
        another one has told it in the status."""
        written = self.document["state"]
        return self.status["state"] if written == "running" and self.ended else written

    @property
    def stopped_early(self) -> str | None:
        """A sentence about a run that `--early-stop-patience` ended before its last epoch; None for any other run."""
        done, planned = self.last.get("epoch"), self.planned_epochs
        whole = self.document.get("state") == "finished" and not self.document.get("damaged")
        if not whole or not (done and planned) or done >= planned:
            return None
        said = str(self.status.get("message")).partition("; ")[0] if self.status.get("state") == "finished" else ""
        return said if said.startswith("stopped early") else f"stopped early after epoch {done} of {planned}"

    @property
    def _way_on(self) -> str:
        return f"{same_command(self.settings.get('resume'))} to continue"

    @property
    def condition(self) -> Finding:
        """Is it alive, and if not, how did it end?"""
        status, beat = self.status, timestamp(self.status.get("heartbeat"))
        if not status:
            known = f"training_metrics.json says {self.state}" if self.document else "the run may not have begun"
            return Finding("warning", self.trouble or f"status.json is not there or cannot be read; {known}")
        said = f": {status['message']}" if status.get("message") else ""
        if self.ended:
            code = f" (exit code {status['exit_code']})" if status.get("exit_code") is not None else ""
            resumable = self.state == "stopped" and "to continue" not in said
            again = f"; {self._way_on}" if resumable else ""
            judged = {"finished": "healthy", "stopped": "warning", "failed": "unhealthy"}[self.state]
            return Finding(judged, f"{self.state}{code} at {beat}{said}{again}")
        known = {"node": status.get("host"), "pid": status.get("pid"), "Slurm job": status.get("slurm_job_id")}
        who = ", ".join(f"{what} {value}" for what, value in known.items() if value) or "on an unknown node"
        if self.silent:
            note = f"no heartbeat for {duration(self.heartbeat_age)}, since {beat}: the job ({who}) has probably died"
            return Finding("unhealthy", f"{note}; {self._way_on} from its last checkpoint")
        heart = f"the heartbeat is {duration(self.heartbeat_age)} old"
        if self.stalled:
            note = f"the job ({who}) is alive ({heart}) but has stalled: no step for {duration(self.idle_sec)}"
            return Finding("unhealthy", f"{note}, in phase {self.phase!r}")
        return Finding("healthy", f"running, phase {self.phase!r} ({who}); {heart}")

    def place(self, *parts: str) -> str:
        """How far the run is: `epoch 7 of 12`, and the same of `batch` and `step` if these are among `parts`."""
        totals = {"epoch": "epochs", "batch": "batches", "step": "total_steps"}
        known = {part: (self.status.get(part), self.status.get(totals[part]) or None) for part in parts}
        return ", ".join(f"{part} {count(done)} of {count(total)}" for part, (done, total) in known.items())
