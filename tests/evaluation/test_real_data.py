"""Which images a model is compared with."""

import pytest
import torch

from ddpm.evaluation.config import EvaluateConfig
from ddpm.evaluation.real_data import load_real_data
from ddpm.run.config import TrainConfig
from ddpm.run.errors import RequestError
from ddpm.sampling.load import TrainedModel, load_model

CPU = torch.device("cpu")


@pytest.fixture
def old(saved: TrainConfig) -> TrainedModel:
    """Of a checkpoint from before there was a choice of data: its settings do not name them."""
    model = load_model("small", CPU, saved.output_root)
    del model.meta["settings"]["data"]
    return model


def test_an_old_checkpoint_is_compared_with_the_images_of_its_training(old: TrainedModel, saved: TrainConfig):
    found = load_real_data(EvaluateConfig("small", output_root=saved.output_root), old, CPU, print)
    assert found.of_training and found.name == "emnist"


def test_an_old_checkpoint_is_not_compared_with_a_folder_that_nobody_has_named(old: TrainedModel, saved: TrainConfig):
    config = EvaluateConfig("small", data="folder", output_root=saved.output_root)
    with pytest.raises(RequestError, match="--data folder: give their folder with --data-root"):
        load_real_data(config, old, CPU, print)
