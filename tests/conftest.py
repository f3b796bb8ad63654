"""What the tests share: a small data set in EMNIST's own files, small settings, real processes."""

import os
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch loads: several processes share the cores

import pytest
import torch

from ddpm.data import glyphs
from ddpm.data.emnist import CLASS_NAMES
from ddpm.data.emnist import emnist as emnist_files
from ddpm.data.idx import write_idx
from ddpm.run.config import TrainConfig, preset
from ddpm.run.paths import PROJECT_ROOT
from ddpm.training.data import Images
from ddpm.training.machine.distributed import DistContext

for name in ("VENV", "TORCH", "CONDA_ENV", "CONTAINER", "MODULES", "NPROC_PER_NODE", "MAX_REQUEUES"):
    os.environ.pop(name, None)  # `make VENV=… test` hands it on, and submit.sh would take it for the user's wish

TRAIN_PER_CLASS, TEST_PER_CLASS = 6, 3
CLASSES = tuple(CLASS_NAMES)
ONE = DistContext(rank=0, local_rank=0, world_size=1, local_world_size=1, device=torch.device("cpu"))


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root for `--data-root` with 282 training and 141 test images, written as EMNIST is."""
    root = tmp_path_factory.mktemp("data")
    for split, pixels in glyphs.draw({"train": TRAIN_PER_CLASS, "test": TEST_PER_CLASS}, seed=0).items():
        images, labels = emnist_files(root).files(split)
        images.parent.mkdir(parents=True, exist_ok=True)
        write_idx(images, pixels.transpose(0, 2, 1))
        write_idx(labels, (torch.arange(len(pixels)) % 47).byte().numpy())
    return root


@pytest.fixture
def small(small_data: Path, tmp_path: Path) -> TrainConfig:
    """Settings of a run of seconds: 2 epochs of 8 steps of 32 images, a UNet of 30 thousand weights, fp32."""
    return preset("tiny", **SMALL, data_root=small_data, output_root=tmp_path, run_name="small")


SMALL = {
    "block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1, "mid_attention": False, "epochs": 2,
    "batch_size": 32, "lr": 1e-3, "precision": "fp32", "log_every": 3, "val_images": 120, "samples_per_class": 1,
    "warmup_steps": 0, "sample_steps": 2, "diffusion_steps": 100, "sample_every": 0,
    "export": False, "compile": False,  # else a run of many steps is compiled first, which takes longer than the test
}  # fmt: skip


def as_arguments(config: TrainConfig) -> list[str]:
    """The command line that asks for `config`."""
    defaults = preset(config.preset, recipe=config.recipe)
    usual = preset(config.preset).recipe
    arguments = ["--preset", config.preset, *(["--recipe", config.recipe] if config.recipe != usual else [])]
    for name, value in vars(config).items():
        if value == getattr(defaults, name):
            continue
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(flag if value else f"--no-{flag[2:]}")
        else:
            arguments += [flag, *map(str, value if isinstance(value, tuple) else [value])]
    return arguments


@pytest.fixture
def quick_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process, and those of `runs.start`, end with an empty report: a real one takes longer than the run.

    Not by PYTHONPATH here: the server that test processes are forked from would have it ever after.
    """
    monkeypatch.setattr("metrics.report.write_report", lambda paths: paths.report.write_text(""))
    monkeypatch.setenv("QUICK_REPORTS", str(Path(__file__).parent / "support" / "quick_reports"))


@pytest.fixture(scope="session")
def emnist() -> Path:
    """The folder of the real EMNIST Balanced (a part of it will do), from EMNIST_ROOT or the usual places."""
    places = [os.environ.get("EMNIST_ROOT"), PROJECT_ROOT / "data", PROJECT_ROOT.parent / "shared" / "emnist"]
    for place in filter(None, places):
        if all(file.exists() for split in ("train", "test") for file in emnist_files(Path(place)).files(split)):
            return Path(place)
    pytest.skip("EMNIST is not here: set EMNIST_ROOT, or fetch it with train.py --download")


def random_images(count: int, seed: int = 0) -> Images:
    """`count` random pictures with labels, as a data set."""
    source = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 28, 28), generator=source, dtype=torch.uint8)
    return Images(pixels, torch.randint(0, 47, (count,), generator=source), CLASSES)


__all__ = ["CLASSES", "ONE", "as_arguments", "random_images", "replace"]
