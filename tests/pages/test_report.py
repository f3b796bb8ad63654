"""The report: every figure from the JSON file, rebuilt at any time, and honest about what the run is."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest
import yaml
from PIL import Image

from ddpm.run.errors import RequestError
from ddpm.run.paths import PROJECT_ROOT, RunPaths
from metrics.page import Table, markdown_table, to_markdown
from metrics.plots import PLOTS, new_figure
from metrics.report import main, report_page, write_report
from metrics.run_reader import load_run, read_run
from metrics.training_log.log import log_page
from tests.support.metrics_documents import make_document


def publish(root: Path, document: dict, samples: int = 0) -> RunPaths:
    """A run's folder as training leaves it: the JSON file and some sample grids."""
    paths = RunPaths(root, document["run"])
    paths.samples.mkdir(parents=True)
    paths.json.write_text(json.dumps(document))
    for index in range(1, samples + 1):
        Image.new("L", (8, 8)).save(paths.samples / f"{document['data']}_epoch_{10 * index:04d}.png")
    return paths


def report_of(paths: RunPaths) -> str:
    """The text of the report, without drawing the plots."""
    return to_markdown(report_page(load_run(paths)), paths.metrics)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def section(report: str, name: str) -> str:
    return re.split(r"^## ", report.split(f"\n## {name}\n", 1)[1], flags=re.MULTILINE)[0]


def rows_of(text: str) -> list[list[str]]:
    return [cells(line) for line in text.splitlines() if line.startswith("|")]


def test_the_summary_follows_from_the_rows(tmp_path: Path) -> None:
    document = make_document(12)
    rows = pd.DataFrame(document["epochs"])
    report = report_of(publish(tmp_path, document))
    summary = {row[0].strip("`"): row[1] for row in rows_of(section(report, "Summary"))[2:]}
    assert list(summary)[:10] == [
        "total_epochs", "total_samples", "total_time_sec", "total_time_human", "best_epoch", "best_loss", "final_loss",
        "final_lr", "avg_throughput_sps", "peak_gpu_mem_mb",
    ]  # fmt: skip
    assert summary["total_epochs"] == "12"
    assert summary["total_samples"] == f"{rows.images_seen.iloc[-1]:,}"
    assert summary["total_time_sec"] == f"{rows.epoch_time_sec.sum():,.1f}"
    assert summary["best_epoch"] == str(rows.epoch[rows.loss_mean.idxmin()])
    assert summary["best_loss"] == f"{rows.loss_mean.min():.5f}"
    assert summary["final_loss"] == f"{rows.loss_mean.iloc[-1]:.5f}"
    assert summary["final_lr"] == "1.000e-04"
    assert summary["avg_throughput_sps"] == f"{rows.train_images.sum() / rows.train_time_sec.sum():,.1f}"
    assert summary["peak_gpu_mem_mb"] == f"{rows.gpu_mem_peak_mb.max():,.0f}"
    assert summary["best_val_loss_ema"] == f"{rows.val_loss_ema.min():.5f}"


def test_the_summary_has_the_best_of_the_swa_weights_where_there_are_any(tmp_path: Path) -> None:
    document = make_document(5)
    assert "swa" not in section(report_of(publish(tmp_path / "without", document)), "Summary")
    for row, loss in zip(document["epochs"][2:], (0.4, 0.2, 0.3), strict=True):
        row["val_loss_swa"] = loss
    summary = dict(row[:2] for row in rows_of(section(report_of(publish(tmp_path, document)), "Summary")))
    assert (summary["`best_swa_epoch`"], summary["`best_val_loss_swa`"]) == ("4", "0.20000")


def test_a_row_per_epoch_with_dashes_for_what_is_missing(tmp_path: Path) -> None:
    document = make_document(3)
    document["epochs"][1].update(loss_mean=None, grad_norm=None)
    heads, _, *body = rows_of(section(report_of(publish(tmp_path, document)), "Per-Epoch Metrics"))
    assert heads == [
        "Epoch", "Loss mean", "Loss std", "Loss min", "Loss max", "Val", "Val EMA", "LR", "Grad Norm", "Samples/s",
        "GPU Peak MB", "EMA Δ", "Time (s)",
    ]  # fmt: skip
    assert [row[0] for row in body] == ["1", "2", "3"]
    assert (body[1][1], body[1][8]) == ("–", "–")
    first = document["epochs"][0]
    assert body[0][1] == f"{first['loss_mean']:.5f}" and body[0][12] == f"{first['epoch_time_sec']:,.1f}"
    assert body[0][5:7] == [f"{first[name]:.5f}" for name in ("val_loss", "val_loss_ema")]


def test_the_columns_and_notes_of_the_epochs_are_of_what_was_measured(tmp_path: Path) -> None:
    document = make_document(3, gpu=False)
    document["epochs"][1].update(rca=0.7, val_loss_swa=0.2)
    for row in document["epochs"]:
        row["val_loss"] = None
    text = section(report_of(publish(tmp_path, document)), "Per-Epoch Metrics")
    heads, _, *body = rows_of(text)
    assert heads[5:9] == ["Val EMA", "Val SWA", "RCA", "LR"] and "GPU Peak MB" not in heads
    assert [row[6:8] for row in body] == [["–", "–"], ["0.20000", "0.700"], ["–", "–"]]
    noted = set(re.findall(r"^- \*\*(.*?)\*\*", text, re.MULTILINE))
    assert noted <= set(heads) and {"Val EMA", "RCA"} <= noted


def test_the_model_card_head_is_yaml_and_names_the_data_truthfully(tmp_path: Path) -> None:
    def head(data: str) -> dict:
        report = report_of(publish(tmp_path, make_document(1, data=data, run=f"on: {data}")))
        return yaml.safe_load(report.split("---\n")[1])

    emnist, glyphs = head("emnist"), head("glyphs")
    assert emnist["library_name"] == "diffusers" and emnist["model_name"] == "on: emnist"
    assert emnist["datasets"] == ["emnist"]
    assert "datasets" not in glyphs and "emnist" not in glyphs["tags"] and "glyphs" in glyphs["tags"]


def test_glyphs_are_announced_before_the_first_figure(tmp_path: Path) -> None:
    report = report_of(publish(tmp_path, make_document(2, data="glyphs")))
    assert report.index("embedded glyphs, not EMNIST") < report.index("## Summary")
    assert "EMNIST Balanced" not in report


def test_title_hyperparameters_and_starts_are_those_of_the_document(tmp_path: Path) -> None:
    starts = [
        {"time": "2026-05-04T01:00:00+00:00", "step": 0, "epoch": 0, "cause": "started"},
        {"time": "2026-05-04T02:00:00+00:00", "step": 586, "epoch": 2, "cause": "stopped by SIGTERM"},
    ]
    document = make_document(4, starts=starts)
    report = report_of(publish(tmp_path, document))
    assert f"\n# Training Report: {document['run']}\n" in report
    assert json.loads(report.split("```json\n")[1].split("```")[0]) == document["hyperparameters"]
    assert [row[:3] for row in rows_of(section(report, "Starts"))[2:]] == [
        ["2026-05-04 01:00:00 UTC", "started", "0"],
        ["2026-05-04 02:00:00 UTC", "the start before: stopped by SIGTERM", "586"],
    ]  # fmt: skip
    for fact in ("node7", "Linux-6.8-x86_64", "2.14.1", "4 × NVIDIA L40S"):
        assert fact in report


def test_the_newest_grid_is_that_of_the_latest_epoch(tmp_path: Path) -> None:
    paths = publish(tmp_path, make_document(3))
    for epoch in (9980, 9990, 10000, 10010):
        Image.new("L", (8, 8)).save(paths.sample_grid("emnist", epoch))
    report = report_of(paths)
    order = [report.index(f"epoch_{epoch}.png") for epoch in (10010, 10000, 9990)]
    assert order == sorted(order)
    assert paths.artifacts()["samples"].endswith("emnist_epoch_10010.png")


@pytest.mark.parametrize("state", ["running", "stopped", "failed"])
def test_an_unfinished_run_says_so(tmp_path: Path, state: str) -> None:
    report = report_of(publish(tmp_path, make_document(3, state=state)))
    word = "In progress" if state == "running" else f"The run {state} before its end"
    assert word in report and "epoch 3 of 100, step 879" in report
    finished = report_of(publish(tmp_path / "other", make_document(3)))
    assert "In progress" not in finished and "before its end" not in finished


def test_a_run_that_could_not_write_its_end_is_not_in_progress(tmp_path: Path) -> None:
    """Process 0 was killed for its memory, and another one said so."""
    paths = publish(tmp_path, make_document(3, state="running"))
    paths.status.write_text(json.dumps({"state": "failed", "heartbeat": time.time() - 900, "epoch": 4}))
    report = report_of(paths)
    assert "**The run failed before its end**" in report and "In progress" not in report
    run = read_run(paths)
    assert "**State:** failed" in to_markdown(log_page(run, None, None), paths.metrics)
    assert "failed" in "".join(text.get_text() for text in new_figure(10, 5, run).texts)


def test_a_run_that_stopped_early_says_so_first_and_why(tmp_path: Path) -> None:
    document = make_document(6, settings={"epochs": 12})
    paths = publish(tmp_path, document)
    told = "\n> **Stopped early after epoch 6 of 12**"
    assert f"{told}.\n" in report_of(paths)  # its status is not there
    message = "stopped early after epoch 6: val_loss has not improved for 2 epochs"
    paths.status.write_text(json.dumps({"state": "finished", "message": message}))
    report = report_of(paths)
    assert f"{told}: val_loss has not improved for 2 epochs.\n" in report
    assert report.index("Stopped early") < report.index("Figures as of")
    paths.status.write_text(json.dumps({"state": "failed", "message": "OSError: of a later start"}))
    assert f"{told}.\n" in report_of(paths)


def test_a_run_that_did_all_of_its_steps_did_not_stop_early(tmp_path: Path) -> None:
    """Neither by --epochs nor by --max-steps, which may end it within an epoch."""
    assert "Stopped early" not in report_of(publish(tmp_path / "epochs", make_document(12)))
    steps = {"total_steps": 450, "steps_per_epoch": 73}
    document = make_document(7, settings={"epochs": 12}, hyperparameters=steps)
    assert "Stopped early" not in report_of(publish(tmp_path / "steps", document))


def test_the_command_it_names_brings_it_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metrics.plots.make_plots", lambda *_: [])
    paths = publish(tmp_path / "a place", make_document(3, state="running"))
    (command,) = re.findall(r"`(python -m metrics\.report .*?)`", report_of(paths))
    assert main(shlex.split(command)[3:]) == 0 and paths.report.is_file()


@pytest.mark.parametrize(
    ("by", "words"),
    [
        ("rca", "epoch 2, `rca` 0.700; `--best-by rca` takes the largest `rca`"),
        ("val_loss", "epoch 2, `val_loss_ema` 0.50000; `--best-by val_loss` takes the smallest `val_loss_ema`"),
    ],
)
def test_it_says_which_checkpoint_is_the_best_and_by_what(tmp_path: Path, by: str, words: str) -> None:
    document = make_document(3)
    document["settings"]["best_by"] = by
    document["epochs"][1].update(rca=0.7, val_loss_ema=0.5)
    paths = publish(tmp_path, document)
    assert "Best checkpoint" not in report_of(paths)  # there is none
    paths.checkpoints.mkdir(parents=True)
    (paths.checkpoints / "best").symlink_to("step_00000586")
    assert f"- **Best checkpoint:** `step_00000586`, after {words} of the epochs that were saved\n" in report_of(paths)


def test_a_run_without_an_epoch_has_a_report_too(tmp_path: Path) -> None:
    report = report_of(publish(tmp_path, make_document(0, state="running")))
    assert "No epoch has finished yet." in report
    assert {row[1] for row in rows_of(section(report, "Summary"))[3:5]} <= {"–", "0", "0.0"}


def test_every_link_leads_to_a_file(tmp_path: Path) -> None:
    document = make_document(2)
    paths = publish(tmp_path, document, samples=7)
    for place in (paths.log, paths.checkpoints / "step_00000586" / "meta.json"):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("{}")
    (paths.checkpoints / "latest").symlink_to("step_00000586")
    document["artifacts"]["gone"] = "checkpoints/removed"
    paths.json.write_text(json.dumps(document))
    report = write_report(paths).read_text()
    links = [unquote(target) for target in re.findall(r"\]\(([^)]*)\)", report)]
    assert all((paths.metrics / target).exists() for target in links)
    assert {f"plots/{name}.png" for name in PLOTS} <= set(links)
    assert {f"samples/{path.name}" for path in paths.samples.iterdir()} <= set(links)
    saved = {row[0]: row[1] for row in rows_of(section(report, "Saved Artifacts"))[2:]}
    assert "checkpoints/" in saved["checkpoint"] and "training_report.md" in saved["report"]
    assert "gone" not in saved and "best checkpoint" not in saved
    pictures = re.findall(r"!\[\w+\]\((samples/[^)]*)\)", report)
    assert pictures[0] == "samples/emnist_epoch_0070.png"  # the newest, above all tables
    assert report.index(pictures[0]) < report.index("## Summary")
    assert len(set(pictures)) == 4  # older ones are linked
    assert report_of(paths) == report  # the same file gives the same report


def test_class_counts_say_whether_they_are_equal(tmp_path: Path) -> None:
    document = make_document(1)
    equal = section(report_of(publish(tmp_path, document)), "Data")
    assert "2,400 in each of 47 classes (equal)" in equal
    document["data_summary"]["train_counts"][10] = 7
    skewed = section(report_of(publish(tmp_path / "other", document)), "Data")
    assert "**not equal**: from 7 (`A`) to 2,400 (`0`)" in skewed
    assert ["`A`", "7", "400"] in rows_of(skewed)


def test_cells_cannot_break_a_table() -> None:
    assert markdown_table(Table("", ["a"], [["x|y\nz"]])).splitlines()[2] == "| x\\|y z |"


def test_rebuilt_from_the_command_line(tmp_path: Path) -> None:
    """In a process of its own, which needs neither torch nor a display."""
    paths = publish(tmp_path, make_document(3, gpu=False, data="glyphs", state="running"), samples=1)
    code = (
        "import sys, metrics.report; code = metrics.report.main(); "
        "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, paths.run, "--output-root", str(tmp_path)]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, str(paths.report), "")
    assert "# Training Report" in paths.report.read_text()
    assert sorted(path.stem for path in paths.plots.iterdir()) == sorted(PLOTS)


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"run": "r"}', '{"run": 1}'])
def test_a_missing_or_damaged_file_is_one_line_and_writes_nothing(tmp_path: Path, capsys, content: str | None) -> None:
    paths = RunPaths(tmp_path, "r")
    paths.metrics.mkdir(parents=True)
    if content is not None:
        paths.json.write_text(content)
    before = sorted(tmp_path.rglob("*"))
    assert main(["r", "--output-root", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and "training_metrics.json" in err
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(RequestError):
        write_report(paths)


def test_an_unknown_run_ends_the_process_with_2_and_names_the_known(tmp_path: Path) -> None:
    publish(tmp_path, make_document(1, run="known"))
    command = [sys.executable, "-m", "metrics.report", "unknown", "--output-root", str(tmp_path)]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ") and "known" in done.stderr
    assert not (tmp_path / "metrics" / "output" / "unknown").exists()
