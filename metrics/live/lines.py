"""A run as plain lines: those of `logs/<run>.log` and of the output of a batch job."""

from __future__ import annotations

from typing import Any

from ddpm.run.format import DASH, clock, duration
from ddpm.run.metrics import METRICS

NOW = {"loss": "loss_mean", "lr": "lr", "grad_norm": "grad_norm", "samples_per_sec": "samples_per_sec"}
SHORT = {"loss": "loss", "lr": "lr", "grad_norm": "grad", "samples_per_sec": "images/s"}  # fields of status.json
OF_AN_EPOCH = {
    "loss_mean": "loss", "val_loss": "val", "val_loss_ema": "val EMA", "lr": "lr", "grad_norm": "grad",
    "samples_per_sec": "images/s",
}  # fmt: skip


def plain_line(stamp: float, severity: str, message: str) -> str:
    """A message with its time and severity."""
    return f"{clock(stamp, '%Y-%m-%d %H:%M:%S')}  {severity:<7}  {message}"


def now(status: dict[str, Any], field: str) -> str:
    """A figure of the moment, a field of `status.json`, in the format of its column."""
    return METRICS[NOW[field]].text(status.get(field))


def progress_line(status: dict[str, Any]) -> str:
    """Where the run stands, from the fields of `status.json`."""
    places = {"epoch": "epochs", "batch": "batches", "step": "total_steps"}
    facts = [f"{part} {status.get(part)}/{status.get(whole)}" for part, whole in places.items()]
    facts += [_fact(words, now(status, field)) for field, words in SHORT.items()]
    return _line(*facts, _fact("ETA", duration(status.get("eta_sec"))))


def epoch_line(row: dict[str, Any], epochs: Any = None) -> str:
    """An epoch's row (the CSV's columns) in a line."""
    facts = [_fact(words, METRICS[name].text(row.get(name))) for name, words in OF_AN_EPOCH.items()]
    of = f"/{epochs}" if epochs else ""
    return _line(f"epoch {row.get('epoch')}{of} done", *facts, _fact("time", duration(row.get("epoch_time_sec"))))


def ending_line(status: dict[str, Any]) -> str:
    """How a run ended: `finished (exit code 0)`."""
    code = "" if status.get("exit_code") is None else f" (exit code {status['exit_code']})"
    return f"{status.get('state')}{code}" + (f": {status['message']}" if status.get("message") else "")


def _fact(name: str, value: str) -> str:
    return "" if value == DASH else f"{name} {value}"


def _line(*facts: str) -> str:
    """The facts side by side, without those that have no value."""
    return "  ".join(filter(None, facts))
