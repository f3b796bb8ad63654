"""Plans of runs: checked before anything starts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from ddpm.run.arguments import parse_args
from ddpm.run.errors import RequestError
from ddpm.run.paths import PROJECT_ROOT
from metrics.jobs import sweep
from metrics.jobs.sweep_plan import read_plan
from tests.cluster.sweep.plans import write_plan


def test_a_plan_is_every_combination_of_runs_grid_and_seeds_over_the_base(root: Path):
    grid = {"weight-decay": [0, 0.01], "block_out_channels": [[16, 32], [32, 64]]}
    plan = read_plan(write_plan(root, grid=grid, seeds=[0, 1], base={"compile": False, "max-steps": None}))
    assert len(plan.runs) == 2 * 2 * 2 * 2
    assert plan.runs[0].name == "rates-slow-weight_decay=0-block_out_channels=16x32-seed=0"
    last = plan.runs[-1].config
    assert (last.lr, last.weight_decay, last.block_out_channels, last.seed) == (0.003, 0.01, (32, 64), 1)
    assert (last.preset, last.epochs, last.compile, last.max_steps) == ("tiny", 2, False, None)
    assert len({run.name for run in plan.runs}) == 16


def test_the_plan_of_the_docs_has_criteria_reasons_and_notes():
    plan = read_plan(PROJECT_ROOT / "plans" / "criteria.yaml")
    assert [run.config.expect for run in plan.runs][-1] == "misses the loss"
    assert all(len(run.config.criterion) == 3 and run.config.problem and run.config.note for run in plan.runs)
    page = (PROJECT_ROOT / "docs" / "plans.md").read_text()
    shown = yaml.safe_load(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])
    assert shown == yaml.safe_load((PROJECT_ROOT / "plans" / "criteria.yaml").read_text())


def test_a_run_has_criteria_of_its_own_written_as_those_of_the_plan(root: Path):
    own = ["val_loss <= 1", {"in time": "val_loss <= 2 by epoch 1"}]
    plan = read_plan(write_plan(root, criteria=["rca >= 1"], runs={"own": {"criterion": own}, "shared": {}}))
    criteria = [run.config.criterion for run in plan.runs]
    assert criteria == [("val_loss <= 1", "in time: val_loss <= 2 by epoch 1"), ("rca >= 1",)]


def test_two_runs_of_one_name_are_refused_and_none_is_lost(tmp_path: Path):
    path = tmp_path / "plan.yaml"
    path.write_text("base: {preset: tiny}\nruns:\n  a: {}\n  b: {lr: 0.002}\n  b: {lr: 0.001}\n")
    with pytest.raises(RequestError, match="'b' stands twice in a mapping, again in line 5"):
        read_plan(path)


def test_the_example_is_a_plan():
    plan = read_plan(PROJECT_ROOT / "plans" / "example.yaml")
    assert len(plan.runs) == 8
    assert {run.config.data for run in plan.runs} == {"glyphs"}


@pytest.mark.parametrize(("parts", "words"), [
    ({"runs": {"slow": {"lr": -1}, "fast": {}}}, "run rates-slow: --lr -1"),
    ({"runs": {"slow": {"learning-rate": 1}, "fast": {}}}, "run 'slow': there is no setting 'learning_rate'"),
    ({"base": {"epoch": 3}}, "base: there is no setting 'epoch'; did you mean epochs?"),
    ({"base": {"run-name": "x"}}, "run_name cannot stand here"),
    ({"runs": {"slow": {"output-root": "x"}, "fast": {}}}, "all runs share it"),
    ({"grid": {"lr": 0.1}}, "must be a list of values"),
    ({"grid": {"lr": ["much"]}}, "run rates-slow-lr=much:"),
    ({"runs": {"one": {}}}, "two or more runs"),
    ({"runs": {"a b": {}, "c": {}}}, "run rates-a b: --run-name"),
    ({"rank_by": "beauty"}, "rank_by: beauty: no such column"),
    ({"run": {}}, "there is no 'run' in a plan"),
    ({"seeds": 3}, "seeds: must be a list"),
    ({"criteria": ["val_los <= 1"]}, "criterion 'val_los <= 1': there is no figure val_los; did you mean val_loss"),
    ({"criteria": [3]}, "criteria: must be a list such as"),
    ({"criteria": ["val_loss <= 1 by epoch 3"]}, "run rates-slow: criterion 'val_loss <= 1 by epoch 3': epoch 3"),
    ({"base": {"criteria": "other.yaml"}}, "criteria cannot stand here"),
    ({"base": {"criterion": ["val_loss <= 1"]}}, "base: criterion cannot stand here: those of all runs stand in"),
    ({"runs": {"slow": {"why": False}, "fast": {}}}, "run 'slow': why: must be a text, not False: put it in quotes"),
    ({"criteria": [": val_loss <= 1"]}, "there is no name before the colon"),
    ({"base": {"find-batch-size": True}}, "find_batch_size cannot stand here"),
    ({"notes": [{"remark": "with a colon"}]}, "notes: {'remark': 'with a colon'} is no text; one with a colon needs"),
    ({"runs": {"slow": {"criterion": [3]}, "fast": {}}}, "run 'slow': criterion: must be a list such as"),
    ({"stop_when": "late"}, "stop-when"),
    ({"seeds": [1, 1]}, "two runs would be called rates-slow-seed=1"),
])  # fmt: skip
def test_what_is_wrong_with_a_plan_is_said_in_one_line_before_anything_starts(root: Path, capsys, parts, words):
    assert sweep.main([str(write_plan(root, **parts))]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    assert words in line
    assert sorted(file.name for file in root.iterdir()) == ["plan.yaml", "training.py"]


@pytest.mark.parametrize("text", ["[1, 2]", "name: [", "\x00"])
def test_what_is_no_plan_is_refused(root: Path, capsys, text: str):
    (root / "plan.yaml").write_text(text)
    assert sweep.main([str(root / "plan.yaml")]) == 2
    assert "plans/example.yaml" in capsys.readouterr().err


def test_a_dry_run_prints_commands_that_can_be_pasted_and_writes_nothing(tmp_path: Path, capsys):
    assert sweep.main([str(write_plan(tmp_path)), "--dry-run", "--nproc-per-node", "2"]) == 0
    first, second, _ = capsys.readouterr().out.splitlines()
    assert "--standalone --nproc_per_node=2" in first and "train.py" in first
    flags = second.split("train.py ")[1].split()
    assert parse_args(flags) == read_plan(tmp_path / "plan.yaml").runs[1].config
    assert [file.name for file in tmp_path.iterdir()] == ["plan.yaml"]


@pytest.mark.parametrize("other", ["--dry-run", "--submit"])
def test_a_comparison_that_starts_nothing_is_asked_for_alone(tmp_path: Path, capsys, other: str):
    assert sweep.main([str(write_plan(tmp_path)), "--compare", other]) == 2
    assert "--compare starts nothing" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["plan.yaml"]


def test_processes_of_a_run_share_the_cores(monkeypatch: pytest.MonkeyPatch):
    """torchrun gives each one thread, unless it is told."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 32)
    assert sweep.environment(2)["OMP_NUM_THREADS"] == "16"
    assert "OMP_NUM_THREADS" not in sweep.environment(None)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert sweep.environment(2)["OMP_NUM_THREADS"] == "3"


def test_a_run_that_yaml_does_not_call_by_its_name_is_refused(tmp_path: Path, capsys):
    (tmp_path / "plan.yaml").write_text("base: {data: glyphs}\nruns:\n  on: {lr: 0.1}\n  off: {}\n")
    assert sweep.main([str(tmp_path / "plan.yaml")]) == 2
    assert "YAML reads the name on, yes or true as True: put it in quotes" in capsys.readouterr().err
