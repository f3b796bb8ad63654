from pathlib import Path

import pytest

from ddpm.run.config import TrainConfig
from ddpm.run.paths import RunPaths
from tests.conftest import SMALL, preset, replace
from tests.support.savers import Saver


@pytest.fixture(scope="module")
def saved(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Checkpoints of hardly trained models: of a run that is called `small`, and of `weaker`."""
    root = tmp_path_factory.mktemp("root")
    config = preset("tiny", **SMALL, data_root=small_data, output_root=root, run_name="small")
    Saver(config, RunPaths(root, "small").checkpoints).save(4)
    Saver(replace(config, run_name="weaker", seed=1), RunPaths(root, "weaker").checkpoints).save(2)
    return config
