"""Runs with success criteria and notes: when they end, what is best, and where their pages tell of it."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ddpm.run.arguments import parse_args
from ddpm.run.config import preset
from ddpm.run.config.rules import without_effect
from ddpm.run.files import real
from ddpm.training.keeping import selection_cost, update_best
from metrics.criteria.course import Course
from metrics.criteria.in_training import changed, out_of_reach
from metrics.criteria.of_run import count_of
from metrics.health.criteria import criteria
from metrics.live.panels import progress_panel
from metrics.note.__main__ import main as note
from metrics.note.notes import read_notes
from metrics.page import to_markdown
from metrics.report import report_page
from metrics.run_reader import read_run
from metrics.sections import best_checkpoint
from tests.support.judged import losses
from tests.support.metrics_documents import make_document, make_run
from tests.support.runs import paths_of, rows, run, status


def test_the_log_tells_of_each_criterion_once_when_it_is_decided():
    texts, rows = ["good: val_loss_ema <= 0.3", "val_loss_ema <= 0.2 by epoch 2"], losses(0.5, 0.3, 0.25)
    assert list(changed(texts, Course(rows[:1], 6))) == []
    (met, success), (missed, warning) = changed(texts, Course(rows[:2], 6))
    assert met.startswith("criterion met: good: ") and success == "success"
    assert missed.startswith("criterion missed: val_loss_ema <= 0.2 by epoch 2: ") and warning == "warning"
    assert list(changed(texts, Course(rows, 6))) == []


def test_the_log_tells_what_an_early_end_decides():
    texts, rows = ["val_loss_ema <= 0.2", "loss_mean <= 1"], losses(0.5, 0.3)
    assert list(changed(texts, Course(rows, 6))) == []
    ((line, severity),) = changed(texts, Course(rows, 6, over=True))
    assert severity == "warning" and "up to epoch 2, where early stopping ended the run" in line


def test_a_run_stops_only_when_a_criterion_can_no_longer_be_met():
    texts = ["fast: val_loss_ema <= 0.2 by epoch 2", "val_loss_ema <= 0.1"]
    assert out_of_reach(texts, Course(losses(0.5), 6)) is None
    assert out_of_reach(texts, Course(losses(0.5, 0.4), 6)).startswith(
        "stopped early after epoch 2: the criterion 'fast' can no longer be met (best val_loss_ema 0.40000 (epoch 2)"
    )
    assert out_of_reach(texts, Course(losses(0.5, 0.4), 2)) is None, "it is at its end anyway"


def test_the_checkpoint_that_meets_most_is_best_and_of_equal_ones_the_one_with_the_smallest_loss():
    texts = ("rca >= 0.9", "val_loss_ema <= 0.2 by epoch 1", "fid_features <= 9 and samples_per_sec >= 1e9",
             "val_loss_ema improves from epoch 2 on")  # fmt: skip
    config = preset("tiny", criterion=texts, best_by="criteria", eval_every=1)
    rows = {
        "readable": {"val_loss_ema": 0.3, "rca": 0.95, "fid_features": 30},
        "close": {"val_loss_ema": 0.19, "rca": 0.95, "fid_features": 8, "samples_per_sec": 10},
        "low loss": {"val_loss_ema": 0.1, "rca": 0.5, "fid_features": 30},
        "lower, as many": {"val_loss_ema": 0.25, "rca": 0.95, "fid_features": 30},
        "unmeasured": {"loss_mean": 0.1},
    }
    order = sorted(rows, key=lambda name: selection_cost(rows[name], config))
    assert order == ["close", "low loss", "lower, as many", "readable", "unmeasured"]
    assert selection_cost({}, config) is None


@pytest.mark.usefixtures("quick_reports")
def test_a_run_that_misses_a_criterion_ends_if_asked_to_and_goes_on_without(small, capsys):
    texts = ("fast: val_loss_ema <= 1e-9 by epoch 1", "loss_mean <= 100", "later: val_loss_ema <= 1e-9 by epoch 3")
    config = replace(small, epochs=4, criterion=texts, stop_when="missed", why="made to miss", expect="epoch 1")
    assert run(config) == 0
    assert rows(config)["epoch"].tolist() == [1]
    ended = status(config)
    assert (ended["state"], ended["exit_code"]) == ("finished", 0)
    assert ended["message"].startswith("stopped early after epoch 1: the criterion 'fast' can no longer be met ")
    log = paths_of(config).log.read_text()
    assert "criterion missed: fast: " in log and "criterion met: loss_mean <= 100: " in log
    assert re.search("criterion missed: later: .* epoch 1, where early stopping ended the run", log)
    page = paths_of(config).training_log.read_text()
    section = page[page.index("## Purpose and criteria") :].partition("## Best")[0]
    assert "made to miss" in section and "1 met, 2 missed." in section
    assert re.search(r"\| fast: `val_loss_ema <= 1e-9 by epoch 1` \| ✗ missed \|", section)
    assert "criterion missed: fast" in page[page.index("## Milestones") :]

    assert run(config) == 0
    assert "leave out --stop-when to train on" in capsys.readouterr().out
    assert len(rows(config)) == 1
    assert run(replace(config, stop_when=None, epochs=2, criterion=texts[:2])) == 0
    assert rows(config)["epoch"].tolist() == [1, 2]


@pytest.mark.usefixtures("quick_reports")
def test_best_by_criteria_links_the_checkpoint_that_meets_most(small):
    of_run = ("samples_per_sec >= 1e9", "loss_mean improves from epoch 2 on")
    config = replace(small, epochs=3, keep_last=9, best_by="criteria", criterion=("loss_mean <= 100", *of_run))
    assert run(config) == 0
    assert "criteria of checkpoints met: 1 of 1;" in best_checkpoint(read_run(paths_of(config)))
    steps = rows(config).set_index("step")

    def best() -> int:
        return int(real(paths_of(config).checkpoints / "best").name.removeprefix("step_"))

    assert best() == steps["val_loss_ema"].idxmin(), "all meet it: the smallest loss decides"
    for step in steps.index:
        limit = steps["loss_min"].loc[step]
        update_best(paths_of(config).checkpoints, replace(config, criterion=(f"loss_min <= {limit:.17g}",)))
        meeting = steps[steps["loss_min"] <= limit]
        assert best() == meeting["val_loss_ema"].idxmin()


@pytest.mark.usefixtures("quick_reports")
def test_best_of_a_finished_run_stays_where_the_command_leaves_out_what_chose_it(small, capsys):
    config = replace(small, epochs=3, keep_last=9, best_by="criteria", criterion=("loss_min <= 100",), lr=3e-2)
    assert run(config) == 0
    root, settings = paths_of(config).checkpoints, lambda: json.loads(paths_of(config).json.read_text())["settings"]
    other = next(folder for folder in sorted(root.glob("step_*")) if folder != real(root / "best"))
    (root / "best").unlink()
    (root / "best").symlink_to(other.name)  # as if that met more
    assert run(replace(config, best_by="val_loss", criterion=())) == 0
    said = capsys.readouterr().out
    assert "`best` stays as --best-by criteria chose it: val_loss is what a command without the flag means" in said
    assert "taken over" not in said and "note: " not in said
    assert settings()["best_by"] == "criteria" and real(root / "best") == other
    assert run(replace(config, best_by="val_loss", criterion=("loss_min <= 1e9",))) == 0, "other criteria choose anew"
    assert real(root / "best") != other


@pytest.mark.parametrize(
    ("texts", "remarks"), [(["samples_per_sec >= 1", "lr <= 1"], 1), (["lr <= 1 and rca >= 0"], 0)]
)
def test_best_by_criteria_of_which_none_is_of_checkpoints_is_remarked(texts: list[str], remarks: int):
    config = parse_args(["--best-by", "criteria", "--eval-every", "1", "--criterion", *texts])
    found = [line for line in without_effect(config, preset("large")) if "validation loss chooses `best`" in line]
    assert len(found) == remarks


@pytest.mark.usefixtures("quick_reports")
def test_a_finished_run_takes_over_criteria_reasons_and_notes(small, capsys):
    config = replace(small, epochs=1)
    assert run(config) == 0
    figures = paths_of(config).csv.read_text()
    later = replace(config, criterion=("loss_mean <= 100", "no: loss_mean <= 1e-9"), note=("seen",), why="it was asked",
                    target="val_loss=0.5")  # fmt: skip
    capsys.readouterr()
    assert run(later) == 0
    said = capsys.readouterr().out
    assert "taken over without training: --criterion, --why, --target" in said and "note: seen" in said
    assert "criterion met: loss_mean <= 100: loss_mean " in said and "criterion missed: no: best loss_mean" in said
    page = paths_of(config).training_log.read_text()
    assert "1 met, 1 missed." in page and "it was asked" in page and "## Target: val_loss=0.5" in page
    published = read_run(paths_of(config))
    assert (count_of(published), len(published.starts), published.state) == ("1 met, 1 missed", 1, "finished")

    assert run(later) == 0 and run(config) == 0, "nothing new, and nothing given"
    said = capsys.readouterr().out
    assert "is finished" in said and "taken over" not in said and "note: " not in said
    assert count_of(read_run(paths_of(config))) == "1 met, 1 missed"
    late = ("--criterion loss_mean <= 100; no: loss_mean <= 1e-9", "--why it was asked", "--target val_loss=0.5")
    remarks = ["seen", *(f"given after the end of training: {each}" for each in late)]
    assert [each.text for each in read_notes(paths_of(config))] == remarks
    assert paths_of(config).csv.read_text() == figures


def test_dashboard_and_health_count_the_criteria(tmp_path: Path):
    document = make_document(6)
    document["settings"]["criterion"] = ["val_loss_ema <= 0.2", "readable: rca >= 0.9", "written by a later version"]
    published = make_run(document, tmp_path)
    assert count_of(published) == "1 met, 1 cannot be judged"
    shown = Console(width=120, file=io.StringIO(), record=True)
    shown.print(progress_panel(replace(published, status={"state": "running"}), 100))
    assert "criteria 1 met, 1 cannot be judged" in shown.export_text()
    document["settings"]["criterion"] = ["val_loss_ema <= 0.2", "val_loss_ema <= 1e-9"]
    (component,) = criteria(make_run(document, tmp_path))
    assert [finding.status for finding in component.findings] == ["healthy", "warning"]
    document["settings"].pop("criterion")
    assert criteria(make_run(document, tmp_path)) == [] and count_of(make_run(document, tmp_path)) == ""


def test_a_note_is_added_with_its_time_to_log_report_and_comparison(small, quick_reports, capsys, monkeypatch):
    config = replace(small, epochs=1, note=("begun by the plan",))
    assert run(config) == 0
    assert "note: begun by the plan" in paths_of(config).log.read_text()
    root = ["--output-root", str(config.output_root)]
    assert note(["small", "a <b>bold</b> | remark\nof two lines", *root]) == 0
    with paths_of(config).notes.open("a") as file:
        file.write('{"time": 1, "text": "torn')
    assert note(["small", "begun by the plan", *root]) == 0, "the same remark, later"
    page = paths_of(config).training_log.read_text()
    times = r"\| 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC \|"
    assert len(re.findall(f"{times} begun by the plan \\|", page)) == 2
    assert re.search(times + r" a \\<b\\>bold\\</b\\> \\\| remark of two lines \|", page)
    assert run(config) == 0, "the same command again"
    assert [each.text for each in read_notes(paths_of(config))] == [
        "begun by the plan",
        "a <b>bold</b> | remark of two lines",
        "begun by the plan",
    ]
    assert note(["small", " ", *root]) == 2 and "give a text in quotes" in capsys.readouterr().err
    monkeypatch.undo()
    assert "a \\<b\\>bold" in to_markdown(report_page(read_run(paths_of(config))), config.output_root)


def test_a_run_whose_notes_cannot_be_written_trains_on(small, quick_reports):
    config = replace(small, epochs=1)
    assert run(replace(config, max_steps=5)) == 0
    paths_of(config).notes.mkdir()
    assert run(replace(config, note=("lost",))) == 0
    assert "could not write the notes: IsADirectoryError" in paths_of(config).log.read_text()
