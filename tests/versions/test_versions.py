"""Runs and exports that other versions of torch and diffusers have made: continued, and drawn with.

`make test-versions` runs this with the oldest and the newest versions. tests/versions/saved_run.py made them.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import sample
from benchmarks import golden
from benchmarks.common.step_recorder import recorded
from ddpm.run.arguments import parse_args
from ddpm.sampling.load import load_model
from ddpm.training.trainer import StepBuffer
from tests.support.exports import card_of, example_on
from tests.support.runs import paths_of, run
from tests.versions import saved_run

SAVED = sorted(file.parent for file in saved_run.FOLDER.glob("*/expected.json"))
each_saved = pytest.mark.parametrize("saved", SAVED, ids=lambda folder: folder.name)


def drawn(model: Path | str, root: Path) -> np.ndarray:
    """The images, uint8 [10, 28, 28], that sample.py draws with `model`."""
    assert sample.main(saved_run.draw(model, root / "drawn.png", root)) == 0
    return np.load(root / "drawn.npz")["x"]


@each_saved
@pytest.mark.usefixtures("quick_reports")
def test_a_run_is_continued_as_the_version_that_began_it_would(saved: Path, tmp_path: Path):
    config = parse_args(saved_run.flags(saved_run.write_data(tmp_path / "data"), tmp_path))
    shutil.copytree(saved / saved_run.HALF, paths_of(config).checkpoints / saved_run.HALF)
    with recorded(StepBuffer) as steps:
        assert run(config) == 0
    expected = json.loads((saved / "expected.json").read_text())
    assert len(steps["losses"]) == 4
    assert golden.difference(golden.document(steps, config), expected, golden.TOLERANCE) is None
    assert f"resumed from {saved_run.HALF}" in paths_of(config).log.read_text()
    assert drawn(saved_run.RUN, tmp_path).shape == (10, 28, 28)


@each_saved
def test_an_export_draws_what_it_drew(saved: Path, tmp_path: Path):
    images, expected = drawn(saved / "export", tmp_path), np.load(saved / "drawn.npz")["x"]
    assert np.abs(images.astype(int) - expected).max() <= 1  # of 255


@each_saved
def test_the_code_in_an_export_draws_as_this_project_does(saved: Path, tmp_path: Path):
    """The example on its card, in a process that does not know this project."""
    shutil.copytree(saved / "export", tmp_path / "export")
    saving = '.save("hello.png")'
    page = card_of(saved / "export")[1].replace(saving, f'{saving}\nnp.save("drawn.npy", np.stack(images))')
    example_on(page, tmp_path)
    ours = load_model(str(saved / "export"), torch.device("cpu")).pipeline
    expected = ours("0123456789", generator=torch.Generator().manual_seed(0), output_type="np").images
    assert np.array_equal(np.load(tmp_path / "drawn.npy"), expected)
