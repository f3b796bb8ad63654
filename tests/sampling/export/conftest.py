from pathlib import Path

import pytest

from ddpm.run.config import TrainConfig, preset
from tests.conftest import SMALL
from tests.support.exports import command, leave_checkpoint


@pytest.fixture
def small_run(tmp_path: Path) -> TrainConfig:
    """A run with one checkpoint of an untrained model, at step 8 of 16."""
    return leave_checkpoint(preset("tiny", **SMALL | {"sample_steps": 1}, output_root=tmp_path, run_name="small"))


@pytest.fixture
def guided(small_run: TrainConfig) -> Path:
    """The run's export by the command line, with an earlier checkpoint as its guide."""
    leave_checkpoint(small_run, step=4)
    (small_run.output_root / "checkpoints" / "small" / "best").symlink_to("step_00000008")
    how = ["--guide", "small/step_00000004", "--guidance-scale", "3", "--guidance-interval", "0.3", "1"]
    assert command(small_run, *how) == 0
    return small_run.output_root / "checkpoints" / "small" / "export"
