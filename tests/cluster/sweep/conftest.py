from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from ddpm.run.paths import PROJECT_ROOT
from metrics.jobs import sweep
from tests.cluster.sweep.plans import SBATCH, SQUEUE, TRAINING
from tests.support.submit_stand_ins import executable


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output root; what is trained there is trained by the stand-in, and the plots are left out."""
    (tmp_path / "training.py").write_text(TRAINING)
    monkeypatch.setenv("PYTHONPATH", str(PROJECT_ROOT))
    monkeypatch.setattr(sweep, "launcher", lambda nproc: [sys.executable, str(tmp_path / "training.py")])
    monkeypatch.setattr("metrics.compare.comparison.draw_plots", lambda runs, column: {})
    return tmp_path


@pytest.fixture
def sbatch(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a stand-in for sbatch keeps its calls."""
    folder = root / "bin"
    folder.mkdir()
    executable(folder / "sbatch", SBATCH)
    executable(folder / "squeue", SQUEUE)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder
