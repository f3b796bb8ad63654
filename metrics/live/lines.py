"""A run as plain lines: those of `logs/<run>.log` and of the output of a batch job."""

from __future__ import annotations

from typing import Any

from ddpm.run.format import DASH, clock, duration
from ddpm.run.metrics import (
    EPOCH,
    EPOCH_TIME_SEC,
    GRAD_NORM,
    LOSS_MEAN,
    LR,
    SAMPLES_PER_SEC,
    VAL_LOSS,
    VAL_LOSS_EMA,
    Metric,
)
from metrics.files import NOW

FIELDS = {metric: field for field, metric in NOW.items()}
SHORT = {
    LOSS_MEAN: "loss", VAL_LOSS: "val", VAL_LOSS_EMA: "val EMA", LR: "lr", GRAD_NORM: "grad",
    SAMPLES_PER_SEC: "images/s",
}  # fmt: skip


def plain_line(stamp: float, severity: str, message: str) -> str:
    """A message with its time and severity."""
    return f"{clock(stamp, '%Y-%m-%d %H:%M:%S')}  {severity:<7}  {message}"


def now(status: dict[str, Any], metric: Metric) -> str:
    """A figure of the moment, from the fields of `status.json`."""
    return metric.text(status.get(FIELDS[metric]))


def part(status: dict[str, Any], name: str, whole: str) -> str:
    """How much of a whole is done, two fields of `status.json`: `3/100`."""
    done, total = (status.get(field) for field in (name, whole))
    return f"{DASH if done is None else done}/{DASH if total is None else total}"


def progress_line(status: dict[str, Any]) -> str:
    """Where the run stands, from the fields of `status.json`."""
    wholes = {"epoch": "epochs", "batch": "batches", "step": "total_steps"}
    places = [f"{name} {part(status, name, whole)}" for name, whole in wholes.items()]
    figures = [_fact(SHORT[metric], now(status, metric)) for metric in NOW.values()]
    return _line(*places, *figures, _fact("ETA", duration(status.get("eta_sec"))))


def epoch_line(row: dict[str, Any], epochs: Any = None) -> str:
    """An epoch's row, keyed by the columns of the CSV, in a line."""
    figures = [_fact(words, metric.text_of(row)) for metric, words in SHORT.items()]
    of = f"/{epochs}" if epochs else ""
    return _line(
        f"epoch {EPOCH.text_of(row)}{of} done",
        *figures,
        _fact("time", duration(EPOCH_TIME_SEC.of(row))),
    )


def ending_line(status: dict[str, Any]) -> str:
    """How a run ended: `finished (exit code 0)`."""
    code = "" if status.get("exit_code") is None else f" (exit code {status['exit_code']})"
    return f"{status.get('state')}{code}" + (f": {status['message']}" if status.get("message") else "")


def _fact(name: str, value: str) -> str:
    return "" if value == DASH else f"{name} {value}"


def _line(*facts: str) -> str:
    """The facts side by side, without those that have no value."""
    return "  ".join(filter(None, facts))
