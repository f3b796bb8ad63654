"""Plans of runs: checked before anything starts, trained one after the other or as a job array, compared at the end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from ddpm.run.arguments import parse_args
from ddpm.run.errors import RequestError
from ddpm.run.paths import PROJECT_ROOT, RunPaths
from metrics.jobs import sweep
from metrics.jobs.sweep_plan import read_plan
from metrics.note.notes import add_note
from tests.submit_stand_ins import executable, fill
from tests.test_submit import ARRAY, FINISH, ONE_NODE, launches, run

# In place of train.py: leaves the figures of a finished run, or ends as --epochs tells it to.
TRAINING = """
import json, signal, sys, time
from ddpm.run.arguments import parse_args
from ddpm.run.paths import RunPaths
from tests.metrics_documents import make_document
config = parse_args(sys.argv[1:])
paths = RunPaths(config.output_root, config.run)
paths.metrics.mkdir(parents=True, exist_ok=True)
def end(state, code):
    message = "the loss is not finite\\nat step 7" if state == "failed" else None
    paths.status.write_text(json.dumps({"state": state, "exit_code": code, "message": message}))
    sys.exit(code)
if config.epochs == 100:
    signal.signal(signal.SIGTERM, lambda *_: end("stopped", 75))
    (config.output_root / "ready").touch()
    time.sleep(30)
if config.epochs == 74:  # fails within its first epoch
    paths.json.write_text(json.dumps(make_document(0, gpu=False, data=config.data, run=config.run, state="failed")))
    end("failed", 1)
if config.epochs > 74:
    end({75: "stopped", 76: "failed", 77: "stopped"}[config.epochs], {75: 75, 76: 1, 77: 0}[config.epochs])
document = make_document(config.epochs, gpu=False, data=config.data, run=config.run)
document["settings"] |= config.to_dict()
paths.json.write_text(json.dumps(document))
end("finished", 0)
"""
FAILS_EARLY, STOPPED, FAILS, STOPPED_UNDER_TORCHRUN, WAITS = 74, 75, 76, 77, 100  # epochs

# Keeps how it was called, and answers with job numbers; refuses calls that hold a word of the file "refuse".
SBATCH = """
import json, os, pathlib, sys
folder = pathlib.Path(__file__).parent
with open(folder / "calls", "a") as file:
    print(json.dumps([sys.argv[1:], os.environ.get("NPROC_PER_NODE"), os.getcwd()]), file=file)
refused = folder / "refuse"
if refused.exists() and refused.read_text() in " ".join(sys.argv):
    sys.exit("sbatch: error: invalid partition")
print(f"{len((folder / 'calls').read_text().splitlines())}00;cluster")
"""

# Tells which elements of an array are still queued, by the file "queue" (array -> elements); knows nothing of others.
SQUEUE = """
import json, pathlib, sys
queue = json.loads((pathlib.Path(__file__).parent / "queue").read_text())
array = next(word for word in sys.argv if word.startswith("--jobs=")).removeprefix("--jobs=")
if array not in queue:
    sys.exit("slurm_load_jobs error: Invalid job id specified")
print(*queue[array], sep="\\n")
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output root; what is trained there is trained by the stand-in, and the plots are left out."""
    (tmp_path / "training.py").write_text(TRAINING)
    monkeypatch.setenv("PYTHONPATH", str(PROJECT_ROOT))
    monkeypatch.setattr(sweep, "launcher", lambda nproc: [sys.executable, str(tmp_path / "training.py")])
    monkeypatch.setattr("metrics.compare.comparison.draw_plots", lambda runs, column: {})
    return tmp_path


def write_plan(root: Path, **parts) -> Path:
    """A plan called `rates` of tiny runs, changed by `parts`."""
    base = {"preset": "tiny", "data": "glyphs", "output-root": str(root), "epochs": 2}
    plan = {"name": "rates", "base": base, "runs": {"slow": {"lr": 0.001}, "fast": {"lr": 0.003}}} | parts
    plan["base"] = base | plan["base"]
    (root / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    return root / "plan.yaml"


# ---- the plan --------------------------------------------------------------------------------------------------------


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


# ---- one after the other ---------------------------------------------------------------------------------------------


def test_the_runs_are_trained_and_compared(root: Path, capsys):
    assert sweep.main([str(write_plan(root))]) == 0
    page = (root / "metrics" / "comparisons" / "rates" / "comparison.md").read_text()
    assert "# Comparison of 2 runs" in page and "| lr | 0.001 | 0.003 |" in page
    assert "[2/2] rates-fast: " in capsys.readouterr().out


CRITERIA = [{"good": "val_loss_ema <= 0.3"}, "val_loss_ema <= 0.2 by epoch 1"]


def test_the_page_tells_first_what_was_asked_why_and_what_came(root: Path, capsys):
    runs = {"slow": {"lr": 0.001, "why": "it may be | too fast", "expect": "a lower loss"}, "fast": {}}
    plan = write_plan(root, runs=runs, criteria=CRITERIA, problem="which <rate>?", base={"lr": 0.003})
    assert sweep.main([str(plan)]) == 3
    output = " ".join(capsys.readouterr().out.split())
    assert "criteria of 2 runs: 2 met, 2 missed" in output
    assert "rates-fast: missed: val_loss_ema <= 0.2 by epoch 1: best val_loss_ema" in output
    page = (root / "metrics" / "comparisons" / "rates" / "comparison.md").read_text()
    assert page.index("## Criteria") < page.index("Before you compare") < page.index("## Ranking")
    section = page[page.index("## Criteria") : page.index("Before you compare")]
    assert "good: `val_loss_ema <= 0.3`." in section
    assert "**Problem:** which \\<rate\\>?" in section
    assert "| Run | good | `val_loss_ema <= 0.2 by epoch 1` |" in section
    assert re.search(r"\| `rates-slow` \| ✓ met, epoch 1 \| ✗ missed by 0.079 \|", section)
    changed = r"\| `rates-slow` \| `lr` 0.001 \(base 0.003\) \| it may be \\\| too fast \| a lower loss \| val\\?_loss"
    assert re.search(changed, section)
    assert "| `rates-fast` | nothing: the base | – | – |" in section


def test_the_exit_code_is_0_when_every_run_meets_every_criterion(root: Path, capsys):
    assert sweep.main([str(write_plan(root, criteria=CRITERIA[:1]))]) == 0
    assert "criteria of 2 runs: 2 met" in capsys.readouterr().out
    plan = write_plan(root, criteria=["val_loss_ema <= 1e-9"])
    assert sweep.main([str(plan), "--compare"]) == 3, "judged by the plan as it is now, without training again"
    runs = {"slow": {}, "bad": {"epochs": FAILS}, "fast": {}}
    assert sweep.main([str(write_plan(root, criteria=CRITERIA[:1], runs=runs))]) == 1
    page = (root / "metrics" / "comparisons" / "rates" / "comparison.md").read_text()
    assert re.search(r"\| `rates-bad` \| · open, not measured yet \|", page), "a run without figures has its row too"
    capsys.readouterr()
    assert sweep.main([str(root / "plan.yaml"), "--compare"]) == 1, "as when it was trained"
    assert "1 of 3 runs failed: rates-bad" in capsys.readouterr().out


def test_a_run_that_was_trained_before_its_settings_changed_is_told(root: Path, capsys):
    train(write_plan(root, criteria=CRITERIA[:1]), 0)
    train(root / "plan.yaml", 1)
    plan = write_plan(root, criteria=CRITERIA[:1], runs={"slow": {"lr": 0.002}, "fast": {"lr": 0.003}})
    assert sweep.main([str(plan), "--compare"]) == 0
    words = "it was trained with `lr` 0.001 instead of 0.002"
    assert f"rates-slow: not as the plan has it now: {words}" in capsys.readouterr().out
    page = (root / "metrics" / "comparisons" / "rates" / "comparison.md").read_text()
    assert page.count(words) == 1 and f"`lr` 0.002 (base 0.003); but {words}" in page


def test_a_remark_that_a_run_has_twice_is_listed_once(root: Path):
    plan = write_plan(root, criteria=CRITERIA[:1])
    train(plan, 0)
    train(plan, 1)
    for _ in range(2):
        add_note(RunPaths(root, "rates-slow"), "the node was slow")
    assert sweep.main([str(plan), "--compare"]) == 0
    assert (
        "- `rates-slow`: the node was slow"
        in (root / "metrics" / "comparisons" / "rates" / "comparison.md").read_text()
    )


def test_a_run_that_its_criteria_have_ended_is_trained_on_when_these_change(root: Path):
    changes = {"stop_when": "missed", "base": {"epochs": 2}}
    train(write_plan(root, criteria=CRITERIA[:1], **changes), 0)
    assert read_plan(write_plan(root, criteria=CRITERIA[:1], **changes)).runs[0].is_finished
    assert not read_plan(write_plan(root, criteria=CRITERIA[1:], **changes)).runs[0].is_finished
    assert not read_plan(write_plan(root, criteria=CRITERIA[:1], base={"epochs": 2})).runs[0].is_finished


def test_a_run_that_fails_is_reported_and_the_others_go_on(root: Path, capsys):
    runs = {"bad": {"epochs": FAILS}, "slow": {"lr": 0.001}, "fast": {}}
    assert sweep.main([str(write_plan(root, runs=runs, rank_by="rca"))]) == 1
    output = capsys.readouterr().out
    assert "rates-bad failed with exit code 1" in output and "1 of 3 runs failed: rates-bad" in output
    assert "ranked by the loss instead" in output, "nobody had an rca, and the page is written all the same"
    page = (root / "metrics" / "comparisons" / "rates" / "comparison.md").read_text()
    assert "Left out: rates-bad" in page and "# Comparison of 2 runs" in page


@pytest.mark.parametrize("how", [FAILS, FAILS_EARLY])
def test_the_page_says_how_a_run_without_figures_ended(root: Path, capsys, how: int):
    """Whether it failed before it wrote training_metrics.json, or within its first epoch."""
    assert sweep.main([str(write_plan(root, runs={"bad": {"epochs": how}, "slow": {"lr": 0.001}, "fast": {}}))]) == 1
    page = (root / "metrics" / "comparisons" / "rates" / "comparison.md").read_text()
    (line,) = (line for line in page.splitlines() if "Left out: " in line)
    assert (
        "rates-bad: it has no epoch: failed (exit code 1) at " in line and ": the loss is not finite at step 7" in line
    )
    assert "the loss is not finite at step 7" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("how", [STOPPED, STOPPED_UNDER_TORCHRUN])
def test_a_run_that_is_stopped_ends_the_sweep_which_can_be_taken_up_again(root: Path, capsys, how: int):
    plan = write_plan(root, runs={"first": {}, "second": {"epochs": how}, "third": {}})
    assert sweep.main([str(plan)]) == 75
    assert "run the same command again" in capsys.readouterr().out
    assert not RunPaths(root, "rates-third").metrics.exists()
    assert not (root / "metrics" / "comparisons").exists()


def test_a_signal_reaches_the_training_which_saves_and_ends_the_sweep(root: Path):
    plan = write_plan(root, runs={"first": {"epochs": WAITS}, "second": {}})

    def stop_it() -> None:
        while not (root / "ready").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=stop_it, daemon=True).start()
    assert sweep.main([str(plan)]) == 75
    assert json.loads(RunPaths(root, "rates-first").status.read_text())["state"] == "stopped"
    assert not RunPaths(root, "rates-second").metrics.exists()
    assert signal.getsignal(signal.SIGTERM) is before


# ---- on a cluster ----------------------------------------------------------------------------------------------------


@pytest.fixture
def sbatch(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a stand-in for sbatch keeps its calls."""
    folder = root / "bin"
    folder.mkdir()
    executable(folder / "sbatch", SBATCH)
    executable(folder / "squeue", SQUEUE)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def calls(folder: Path) -> list[tuple[list[str], str | None, str]]:
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


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


def train(plan: Path, number: int) -> None:
    subprocess.run([*sweep.launcher(None), *read_plan(plan).runs[number].arguments], check=True)


def test_submitted_again_only_what_is_not_finished_or_queued_is_queued(root: Path, sbatch: Path, capsys):
    names = {name: {} for name in ("done", "runs", "waits", "failed", "killed", "more")}
    plan = write_plan(root, runs=names)
    assert sweep.main([str(plan), "--submit"]) == 0
    train(plan, 0)
    (sbatch / "queue").write_text(json.dumps({"100": [1, 2]}))
    capsys.readouterr()
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


# ---- submit.sh -------------------------------------------------------------------------------------------------------


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
