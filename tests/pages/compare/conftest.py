from __future__ import annotations

from pathlib import Path

import pytest

from tests.pages.compare.compared import make_run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An output root with the runs `slow` and `fast`, which is better."""
    make_run(tmp_path, "slow", lr=0.001)
    make_run(tmp_path, "fast", epochs=6, factor=0.9)
    return tmp_path


@pytest.fixture(autouse=True)
def few_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take longer than all the rest; the tests that look at them draw them themselves."""
    monkeypatch.setattr("metrics.compare.comparison.draw_plots", lambda runs, metric: {})
