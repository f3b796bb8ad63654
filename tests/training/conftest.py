from pathlib import Path

import pytest

from ddpm.run.config import TrainConfig
from tests.support.savers import Saver


@pytest.fixture
def saver(small: TrainConfig, tmp_path: Path) -> Saver:
    return Saver(small, tmp_path / "checkpoints")
