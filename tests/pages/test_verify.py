"""`python -m metrics.verify`: pages say what their data say, and a changed figure is found and named."""

import json
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

import evaluate
from ddpm.run.config import TrainConfig
from ddpm.run.paths import RunPaths
from ddpm.training.trainer import Trainer
from metrics.compare.comparison import compare
from metrics.health.checker import main as check_health
from metrics.report import write_report
from metrics.training_log.log import write_training_log
from metrics.verify.__main__ import main
from tests.conftest import SMALL, preset, replace
from tests.support.runs import paths_of, run, start, status, wait_for_line


@pytest.fixture(scope="module")
def resumed(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run of two starts, the first of which ended within an epoch; evaluated by evaluate.py."""
    root = tmp_path_factory.mktemp("verified")
    config = preset("tiny", **SMALL, data_root=small_data, output_root=root, run_name="small", target="val_loss=0.9")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "end_epoch", lambda trainer, epoch: time.sleep(0.8))  # "0s" is no time of the run then
        with patch.context() as first:
            first.setattr("metrics.report.write_report", lambda paths: None)
            assert run(replace(config, max_steps=11)) == 0
        assert run(config) == 0
    assert main(["small", "--output-root", str(root)]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ddpm.evaluation.measures.FRECHET_ROUNDS", 4)
        patch.setattr("ddpm.evaluation.measures.KERNEL_ROUNDS", 4)
        few = ["--samples-per-class", "1", "--steps", "2", "--device", "cpu", "--no-sweeps", "--no-cas"]
        assert evaluate.main(["small", *few, "--output-root", str(root)]) == 0
    return config


@pytest.fixture
def copied(resumed: TrainConfig, tmp_path: Path) -> RunPaths:
    """Its files, to be tampered with."""
    ours = paths_of(resumed)
    theirs = RunPaths(tmp_path, ours.run)
    shutil.copytree(ours.root, tmp_path, dirs_exist_ok=True, symlinks=True)
    return theirs


def verify(paths: RunPaths, capsys: pytest.CaptureFixture) -> tuple[int, str]:
    """Exit code and the last line printed."""
    capsys.readouterr()
    code = main([paths.run, "--output-root", str(paths.root)])
    said = capsys.readouterr()
    lines = (said.out + said.err).splitlines()
    assert len(lines) == 1, lines
    return code, lines[0]


def change(path: Path, pattern: str, by: str) -> None:
    """Replace the first match of `pattern` in a file."""
    text = path.read_text()
    changed = re.sub(pattern, by, text, count=1, flags=re.MULTILINE)
    assert changed != text
    path.write_text(changed)


def change_json(path: Path, value: object, *place: str | int) -> None:
    document = part = json.loads(path.read_text())
    for key in place[:-1]:
        part = part[key]
    assert part[place[-1]] != value
    part[place[-1]] = value
    path.write_text(json.dumps(document))


def test_a_resumed_and_evaluated_run_is_as_its_data_say(copied: RunPaths, capsys):
    code, line = verify(copied, capsys)
    assert code == 0, line
    counted = re.fullmatch(
        r"([\d,]+) figures are as they should be: .*evaluation.json.*training_log.md; not checked: .*", line
    )
    assert int(counted[1].replace(",", "")) > 500
    assert "Evaluation" in copied.report.read_text() and "Target" in copied.training_log.read_text()


def test_a_stopped_run_verifies_also_after_its_pages_are_made_again(small: TrainConfig, capsys):
    config = replace(small, epochs=40, samples_per_class=0)
    process = start(config)
    wait_for_line(process, r"step 11/")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 75 and status(config)["state"] == "stopped"
    paths = paths_of(config)
    code, line = verify(paths, capsys)
    assert code == 0 and "training_report.md" in line, line
    time.sleep(1.1)
    write_report(paths)
    write_training_log(paths)
    code, line = verify(paths, capsys)
    assert code == 0, line


def test_a_killed_run_verifies_though_its_training_log_is_of_before(copied: RunPaths, capsys, monkeypatch):
    copied.report.unlink()  # it comes at the end only
    copied.report_html.unlink()
    told = json.loads(copied.status.read_text())
    copied.status.write_text(json.dumps({**told, "state": "running", "exit_code": None}))
    later = time.time() + 3600
    monkeypatch.setattr("time.time", lambda: later)
    code, line = verify(copied, capsys)
    assert code == 0, line


def test_a_run_that_was_killed_within_an_epoch_verifies(small: TrainConfig, capsys, monkeypatch):
    process = start(replace(small, epochs=40, samples_per_class=0))
    wait_for_line(process, r"step 14/")
    process.kill()
    process.communicate()
    later = time.time() + 3600
    monkeypatch.setattr("time.time", lambda: later)
    code, line = verify(paths_of(small), capsys)
    assert code == 0 and "training_log.md" in line, line
    change(paths_of(small).training_log, r"(?<=, step )[\d,]+(?=, )", "7")
    code, line = verify(paths_of(small), capsys)
    assert code == 1 and line.startswith("training_log.md: last step says 7, should be 8 to "), line
    change(paths_of(small).training_log, r"(?<=, step )7(?=, )", "1")  # as in "epoch 1"
    code, line = verify(paths_of(small), capsys)
    assert code == 1 and line.startswith("training_log.md: last step says 1, should be 8 to "), line


@pytest.mark.parametrize(
    ("page", "pattern"),
    [
        ("training_log.md", r"(?<=^- \*\*Time:\*\* )\d+[^o]*?(?= over)"),
        ("training_report.md", r"(?<=^All starts together took )[^,]+"),
    ],
)
@pytest.mark.parametrize("time_said", ["0s", "9h 00m 00s"])
def test_a_time_that_the_rows_exclude_is_found(copied: RunPaths, capsys, page: str, pattern: str, time_said: str):
    if page == "training_report.md":
        copied.report_html.unlink()
    change(copied.metrics / page, pattern, time_said)
    code, line = verify(copied, capsys)
    assert code == 1 and line.startswith(f"{page}: time of all starts says {time_said}, should be "), line


def test_the_health_page_is_checked_unless_it_is_of_before(copied: RunPaths, capsys):
    check_health([copied.run, "--output-root", str(copied.root)])
    code, line = verify(copied, capsys)
    assert code == 0 and re.search(r"\d+ of health.md; not checked: plots and samples, health.md on data, ", line), line
    page = copied.health.read_text()
    change(copied.health, r"(?<=✓ )[\d,.]+(?= images/s over)", "9,999.9")
    code, line = verify(copied, capsys)
    assert code == 1 and line.startswith("health.md: ") and "9,999.9" in line, line
    copied.health.write_text(re.sub("Checked 20", "Checked 19", page))
    code, line = verify(copied, capsys)
    assert code == 0 and "not checked: plots and samples, health.md, older than the run's end" in line, line


def test_comparisons_are_checked_unless_they_are_of_before(copied: RunPaths, capsys, monkeypatch):
    other = RunPaths(copied.root, "other")
    shutil.copytree(copied.metrics, other.metrics)
    monkeypatch.setattr("metrics.compare.comparison.draw_plots", lambda runs, column: {})
    page = compare([other, copied], copied.root / "metrics" / "comparisons" / "both")
    code, line = verify(copied, capsys)
    assert code == 0 and re.search(r"\d\d of both/comparison.md; not checked: .*, criteria, levels and", line), line
    text = page.read_text()
    change(page, r"(?<=\| final validation loss \(EMA\) \| )[\d.]+", "0.12345")
    code, line = verify(copied, capsys)
    assert code == 1 and line.startswith("both/comparison.md: ") and "0.12345" in line, line
    page.write_text(text)
    change_json(other.json, "2020-01-01T00:00:00+00:00", "generated")
    code, line = verify(copied, capsys)
    assert code == 0 and line.endswith("the comparison both, older than its runs"), line


def test_a_changed_row_is_named_by_column_and_epoch(copied: RunPaths, capsys):
    heads, first, *others = copied.csv.read_text().splitlines()
    cells = first.split(",")
    place = heads.split(",").index("val_loss_ema")
    true, cells[place] = cells[place], "0.123"
    copied.csv.write_text("\n".join([heads, ",".join(cells), *others, ""]))
    assert verify(copied, capsys) == (
        1, f"training_metrics.csv: val_loss_ema of epoch 1 says 0.123, should be {float(true)}",
    )  # fmt: skip


def test_a_row_that_is_changed_in_both_files_does_not_add_up(copied: RunPaths, capsys):
    rows = json.loads(copied.json.read_text())["epochs"]
    change_json(copied.json, 1.5, "epochs", 0, "epoch_time_sec")
    change(copied.csv, re.escape(str(rows[0]["epoch_time_sec"])), "1.5")
    code, line = verify(copied, capsys)
    assert code == 1 and line.startswith("training_metrics.csv: total_time_sec of epoch 1 says")
    assert line.endswith("should be 1.5")


def test_a_missing_row_is_found(copied: RunPaths, capsys):
    copied.csv.write_text("\n".join([*copied.csv.read_text().splitlines()[:-1], ""]))
    assert verify(copied, capsys) == (1, "training_metrics.csv: number of rows says 1, should be 2")


def test_a_changed_summary_is_named(copied: RunPaths, capsys):
    true = json.loads(copied.json.read_text())["summary"]["best_val_loss_ema"]
    change_json(copied.json, 0.001, "summary", "best_val_loss_ema")
    line = f"training_metrics.json: summary.best_val_loss_ema says 0.001, should be {true}"
    assert verify(copied, capsys) == (1, line)


def test_a_changed_figure_of_the_report_is_named(copied: RunPaths, capsys):
    true = json.loads(copied.json.read_text())["summary"]["best_loss"]
    change(copied.report, r"^\| `best_loss` \| [\d.]+", "| `best_loss` | 0.00012")
    line = f"training_report.md: Summary, `best_loss` says 0.00012, should be {true:.5f}"
    assert verify(copied, capsys) == (1, line)


@pytest.mark.parametrize(
    ("page", "pattern", "by", "named"),
    [
        ("training_report.md", r"^- \*\*Parameters:\*\* [\d,]+", "- **Parameters:** 1", "training_report.md: "),
        ("training_report.md", r"^\| 2 \| 0", "| 2 | 7", "training_report.md: Per-Epoch Metrics, 2 says 7"),
        ("training_report.html", r"<code>best_loss</code></td>\n<td[^>]*>0", r"\g<0>9", "training_report.html: "),
        ("training_log.md", r"asked for 0\.9", "asked for 0.8", "training_log.md: Milestones, "),
        ("training_log.md", r"\d+ images and", "1 images and", "training_log.md: Target: val_loss=0.9 says"),
    ],
)
def test_a_changed_figure_of_any_page_is_found(copied: RunPaths, capsys, page: str, pattern: str, by: str, named: str):
    change(copied.metrics / page, pattern, by)
    code, line = verify(copied, capsys)
    assert code == 1 and line.startswith(named), line


@pytest.mark.parametrize(
    ("place", "named"),
    [
        (("conditional", "rca", "value"), "conditional.rca.value says 7.0, should be "),
        (("conditional", "per_class", 3, "top1"), "conditional.per_class.3.top1 says"),
        (("class_balance", "total_variation", "value"), "class_balance.total_variation.value says"),
    ],
)
def test_a_changed_figure_of_the_evaluation_is_named(copied: RunPaths, capsys, place: tuple, named: str):
    change_json(copied.evaluation, 7.0 if place[-1] == "value" else 0.77, *place)
    code, line = verify(copied, capsys)
    assert code == 1 and line.startswith(f"evaluation.json: {named}"), line


def test_what_comes_after_the_report_does_not_make_it_wrong(copied: RunPaths, capsys):
    (copied.checkpoints / "export").mkdir(exist_ok=True)
    (copied.checkpoints / "export" / "model_index.json").write_text("{}")
    assert verify(copied, capsys)[0] == 0


def test_a_run_that_is_running_or_not_there_is_a_wrong_request(copied: RunPaths, capsys):
    now = time.time()
    alive = json.loads(copied.status.read_text()) | {"state": "running", "heartbeat": now}
    copied.status.write_text(json.dumps(alive))
    code, line = verify(copied, capsys)
    assert code == 2 and "is running" in line
    code, line = verify(RunPaths(copied.root, "other"), capsys)
    assert code == 2 and "no run called 'other'" in line
    copied.json.write_text("{")
    copied.status.unlink()
    assert verify(copied, capsys)[0] == 2
