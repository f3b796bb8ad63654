"""Losses, gradient norms and validation of sixty steps, pinned: also of a resumed run, of two processes, and with
accumulated gradients. After a change that is meant: `python -m benchmarks.golden --data-root DIR --write`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import golden, loss_compare
from benchmarks.common.step_recorder import Steps, recorded
from benchmarks.golden import STEPS
from ddpm.run.arguments import parse_args
from ddpm.run.config import TrainConfig
from ddpm.run.errors import RequestError
from ddpm.training.trainer import StepBuffer
from tests.conftest import replace
from tests.support.processes import in_processes
from tests.support.runs import paths_of, run

pytestmark = pytest.mark.usefixtures("quick_reports")


def pinned(name: str) -> dict[str, Any]:
    return json.loads((golden.FOLDER / f"{name}.json").read_text())


def asked(name: str, emnist: Path, root: Path) -> TrainConfig:
    return parse_args(golden.flags(name, emnist, root))


def trained(config: TrainConfig) -> dict[str, Any]:
    with recorded(StepBuffer) as steps:
        assert run(config) == 0
    return golden.document(steps, config)


def check(found: dict[str, Any], name: str, tolerance: float | None = None) -> None:
    """Compare with what is pinned; within `tolerance`, or as near as this processor allows."""
    expected = pinned(name)
    if found["data_sha256"] != expected["data_sha256"]:
        pytest.skip("the images are not the ones that the losses are pinned for")
    exact = all(found[key] == expected[key] for key in golden.computed_on())
    if tolerance is None:
        tolerance = 0.0 if exact else golden.TOLERANCE
    assert golden.difference(found, expected, tolerance) is None


@pytest.mark.parametrize("name", golden.RUNS)
def test_sixty_steps_are_those_that_are_pinned(name: str, emnist: Path, tmp_path: Path):
    check(trained(asked(name, emnist, tmp_path)), name)


def test_a_resumed_run_is_the_same(emnist: Path, tmp_path: Path):
    config = asked("tiny", emnist, tmp_path)
    assert run(replace(config, checkpoint_minutes=1e-6, keep_last=STEPS)) == 0  # a checkpoint of every step
    again = trained(replace(config, resume=str(paths_of(config).checkpoints / "step_00000023")))
    expected = pinned("tiny")
    assert len(again["losses"]) == STEPS - 23
    check({**again, **{name: expected[name][:23] + again[name] for name in ("losses", "grad_norms")}}, "tiny")


def test_accumulated_gradients_are_those_of_the_whole_batch(emnist: Path, tmp_path: Path):
    config = asked("tiny", emnist, tmp_path)
    check(trained(replace(config, batch_size=8, grad_accum=4)), "tiny", golden.TOLERANCE)


def one_of_two(config: TrainConfig) -> Steps:
    with recorded(StepBuffer) as steps:
        assert run(config) == 0
    return steps


def test_two_processes_train_as_one(emnist: Path, tmp_path: Path):
    config = replace(asked("tiny", emnist, tmp_path), batch_size=16)
    steps, theirs = in_processes(one_of_two, 2, config)
    assert steps == theirs
    check(golden.document(steps, config), "tiny", golden.TOLERANCE)


def test_the_first_difference_is_named():
    expected = pinned("tiny")
    changed = {**expected, "losses": [*expected["losses"][:-1], expected["losses"][-1] * 1.001]}
    assert golden.difference(expected, expected, 0.0) is None
    assert golden.difference(changed, expected, golden.TOLERANCE).startswith("the loss of step 60 is")
    worse = {**expected, "validation": {**expected["validation"], "val_loss_ema": 2.0}}
    assert golden.difference(worse, expected, golden.TOLERANCE).startswith("val_loss_ema is 2, pinned is")


def test_two_sets_of_flags_are_compared(small_data: Path, monkeypatch, capsys):
    flags = f"--preset tiny --batch-size 8 --val-images 94 --device cpu --data-root {small_data}"
    command = ["loss_compare", ".", ".", "--steps", "3", "--flags", flags, "--second", "--grad-clip 1e-3"]
    monkeypatch.setattr("sys.argv", command)
    assert loss_compare.main() == 1
    assert "the first step that differs is 2 of 3" in capsys.readouterr().out  # a gradient is clipped after its loss
    same = {"losses": [1.0, 0.9], "grad_norms": [2.0, 1.0]}
    assert list(loss_compare.table(same, same))[-1] == "all 2 steps are equal"


def test_a_commit_that_is_not_there_is_one_line():
    with pytest.raises(RequestError, match=r"^nowhere: "), loss_compare.checkout("nowhere"):
        pass
