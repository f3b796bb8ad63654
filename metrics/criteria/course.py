"""How far a run is, for the verdicts on its criteria."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ddpm.run.metrics import Metric
from metrics.trends import Curve


@dataclass(frozen=True)
class Course:
    """How far a run is.

    `last_epoch`: the one that it is planned to end with, None if not known. `over`: no row will follow. `evaluation`:
    content of evaluation.json, None without one; `damage` says why it cannot be read. `gaps`: rows cannot be read.
    `altered`: settings that have changed, as `Metric.comparable_from` takes them.
    """

    rows: Sequence[Mapping[str, Any]]
    last_epoch: int | None = None
    over: bool = False
    evaluation: Mapping[str, Any] | None = None
    damage: str | None = None
    gaps: bool = False
    altered: Mapping[str, int] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """The last epoch that has a row."""
        return self.rows[-1]["epoch"] if self.rows else 0

    @property
    def closed(self) -> bool:
        return self.over or (self.last_epoch is not None and self.done >= self.last_epoch)

    @property
    def cut_short(self) -> bool:
        """Was it ended before the planned epoch, by `--early-stop-patience` or `--stop-when`?"""
        return self.over and not self.gaps and self.last_epoch is not None and 0 < self.done < self.last_epoch

    @property
    def end(self) -> str:
        """`epoch 5`, and that early stopping ended it there if so."""
        return f"epoch {self.done}" + (", where early stopping ended the run" if self.cut_short else "")

    def rows_of(self, metric: Metric) -> Sequence[Mapping[str, Any]]:
        """The rows whose figure was measured as it is now."""
        return self.rows[metric.comparable_from(self.altered) :]

    def curve(self, metric: Metric) -> Curve:
        return Curve.of(self.rows_of(metric), metric)

    def upto(self, epoch: int | None) -> Course:
        """The course up to the end of an epoch, as if the run were to end there."""
        if epoch is None:
            return self
        rows = [row for row in self.rows if row["epoch"] <= epoch]
        return replace(self, rows=rows, last_epoch=epoch, over=self.over or self.done >= epoch)
