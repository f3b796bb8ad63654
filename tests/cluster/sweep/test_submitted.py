"""The runs of a plan as a job array."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from ddpm.run.arguments import parse_args
from ddpm.run.paths import PROJECT_ROOT
from metrics.jobs import sweep
from metrics.jobs.sweep_plan import read_plan
from tests.cluster.sweep.plans import FAILS, calls, train, write_plan
from tests.support.submit_stand_ins import ARRAY, FINISH, ONE_NODE, executable, fill, launches, run


def test_submitted_they_are_an_array_and_a_job_that_waits_for_it(root: Path, sbatch: Path, capsys):
    options = ["--submit", "--at-once", "1", "--nproc-per-node", "2", "--", "--time=01:00:00", "--gres=gpu:1"]
    assert sweep.main([str(write_plan(root)), *options]) == 0
    (runs, processes, where), (comparison, _, _) = calls(sbatch)
    assert {"--array=0-1%1", "--time=01:00:00", "--gres=gpu:1"} <= set(runs)
    assert (processes, where) == ("2", str(PROJECT_ROOT))
    assert "--dependency=afterany:100" in comparison
    assert comparison.index("--gres=none") > comparison.index("--gres=gpu:1"), "the last one counts"
    assert "--output=logs/slurm-%A_%a.out" in runs
    assert "rates-fast: 100_1, output in logs/slurm-100_1.out" in capsys.readouterr().out

    file = runs[-1]
    for number, planned in enumerate(read_plan(root / "plan.yaml").runs):
        config = parse_args(["--config", file.replace("%a", str(number))])
        assert replace(config, config=None) == replace(planned.config, run_name=planned.name)
    assert read_plan(Path(comparison[-2])).folder == root / "metrics" / "comparisons" / "rates"


def test_submitted_again_only_what_is_not_finished_or_queued_is_queued(root: Path, sbatch: Path, capsys):
    names = {name: {} for name in ("done", "runs", "waits", "failed", "killed", "more")}
    plan = write_plan(root, runs=names)
    assert sweep.main([str(plan), "--submit"]) == 0
    train(plan, 0)
    (sbatch / "queue").write_text(json.dumps({"100": [1, 2]}))
    capsys.readouterr()
    assert sweep.main([str(plan), "--submit", "--dry-run"]) == 0
    dry = capsys.readouterr().out
    assert "--array=3-5" in dry and "rates-runs: 100_1 already" in dry and "dry run: 3 runs" in dry
    assert sweep.main([str(plan), "--submit", "--", "--output=mine.out"]) == 0
    _, _, (runs, *_), (comparison, *_) = calls(sbatch)
    assert "--array=3-5" in runs
    assert runs.index("--output=mine.out") > runs.index("--output=logs/slurm-%A_%a.out"), "the last one counts"
    assert "--dependency=afterany:100:300" in comparison
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:7] == ["rates-done: finished", "rates-runs: 100_1 already", "rates-waits: 100_2 already",
                          "rates-failed: 300_3", "rates-killed: 300_4", "rates-more: 300_5"]  # fmt: skip

    (sbatch / "queue").write_text(json.dumps({"100": [1, 2], "300": [3, 4, 5]}))
    assert sweep.main([str(plan), "--submit"]) == 0
    assert len(calls(sbatch)) == 4, "all the rest is queued"


def test_when_all_runs_are_finished_they_are_compared_at_once(root: Path, sbatch: Path, capsys):
    plan = write_plan(root)
    train(plan, 0)
    train(plan, 1)
    assert sweep.main([str(plan), "--submit"]) == 0
    assert not (sbatch / "calls").exists()
    page = root / "metrics" / "comparisons" / "rates" / "comparison.md"
    assert str(page) in capsys.readouterr().out
    assert sweep.main([str(write_plan(root, base={"epochs": 3})), "--submit"]) == 0
    assert "--array=0-1" in calls(sbatch)[0][0], "finished, but with fewer epochs than the plan has now"


def test_another_plan_of_the_same_name_leaves_the_settings_of_queued_runs_alone(root: Path, sbatch: Path):
    sweep.main([str(write_plan(root)), "--submit"])
    sweep.main([str(write_plan(root, runs={"slow": {"lr": 0.1}, "fast": {}})), "--submit"])
    (first, *_), _, (second, *_), _ = calls(sbatch)
    assert first[-1] != second[-1]
    assert json.loads(Path(first[-1].replace("%a", "0")).read_text())["lr"] == 0.001


def test_what_another_version_of_the_plan_has_queued_is_not_queued_again(root: Path, sbatch: Path, capsys):
    """A reason that was corrected, or a run that was added, queued all that still ran a second time."""
    sweep.main([str(write_plan(root)), "--submit"])
    (sbatch / "queue").write_text(json.dumps({"100": [0, 1]}))
    capsys.readouterr()
    plan = write_plan(
        root, runs={"more": {}, "fast": {"lr": 0.003, "why": "it may learn sooner"}, "slow": {"lr": 0.001}}
    )
    assert sweep.main([str(plan), "--submit"]) == 0
    _, _, (runs, *_), (comparison, *_) = calls(sbatch)
    assert "--array=0" in runs and "--dependency=afterany:100:300" in comparison
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:4] == ["rates-more: 300_0, output in logs/slurm-300_0.out",
                          "rates-fast: 100_1 already, output in logs/slurm-100_1.out",
                          "rates-slow: 100_0 already, output in logs/slurm-100_0.out"]  # fmt: skip


def test_a_run_that_was_trained_otherwise_is_not_queued_for_what_it_cannot_become(root: Path, sbatch: Path, capsys):
    """Its job ended at once, and the next --submit queued it again."""
    plan = write_plan(root)
    train(plan, 0)
    plan = write_plan(root, runs={"slow": {"lr": 0.002}, "fast": {"lr": 0.003}})
    assert sweep.main([str(plan), "--submit"]) == 0
    assert "--array=1" in calls(sbatch)[0][0]
    assert "rates-slow: finished; it was trained with `lr` 0.001 instead of 0.002" in capsys.readouterr().out


@pytest.mark.parametrize(("refused", "code", "words"), [
    ("--array", 2, "nothing was queued"),
    ("--dependency", 1, "the runs are queued as job 100"),
])  # fmt: skip
def test_what_sbatch_refuses_is_said(root: Path, sbatch: Path, capsys, refused: str, code: int, words: str):
    (sbatch / "refuse").write_text(refused)
    assert sweep.main([str(write_plan(root)), "--submit"]) == code
    assert words in capsys.readouterr().err


def test_without_slurm_it_says_so(root: Path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(root))
    assert sweep.main([str(write_plan(root)), "--submit"]) == 2
    assert "no sbatch here" in capsys.readouterr().err


def test_the_page_can_be_written_before_all_have_ended(root: Path, capsys):
    plan = write_plan(root, runs={"slow": {}, "fast": {"epochs": 3}, "later": {"epochs": FAILS}})
    assert sweep.main([str(plan), "--compare"]) == 1
    assert "no comparison: " in capsys.readouterr().err
    for planned in read_plan(plan).runs[:2]:
        subprocess.run([*sweep.launcher(None), *planned.arguments], check=True)
    assert sweep.main([str(plan), "--compare"]) == 0
    assert "Left out: rates-later" in (root / "metrics" / "comparisons" / "rates" / "comparison.md").read_text()


def test_in_an_array_each_job_gets_its_own_number_for_the_placeholder(tmp_path: Path):
    fill(tmp_path)
    code, output = run(tmp_path, ONE_NODE | ARRAY, "--config", "plan/%a.json", "--run-name", "%a of %a", *FINISH)
    assert code == 0, output
    [launch] = launches(tmp_path)
    assert launch["argv"][3:] == ["--config", "plan/4.json", "--run-name", "4 of 4", *FINISH]


def test_outside_an_array_the_placeholder_stays(tmp_path: Path):
    fill(tmp_path)
    run(tmp_path, ONE_NODE, "--run-name", "100%a", *FINISH)
    assert launches(tmp_path)[0]["argv"][3:5] == ["--run-name", "100%a"]


def test_any_command_can_be_run_in_the_environment(tmp_path: Path):
    fill(tmp_path)
    executable(tmp_path / ".venv" / "bin" / "there", "\nimport sys; print('told', sys.argv[1:]); sys.exit(7)\n")
    code, output = run(tmp_path, ONE_NODE, "run", "there", "two words")
    assert code == 7
    assert re.search(r"told \['two words'\]", output)
    assert not (tmp_path / "torchrun.jsonl").exists() and not (tmp_path / "requeue.jsonl").exists()
