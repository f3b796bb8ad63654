"""What `python -m metrics.compare` is asked for, and what it says where that cannot be had."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ddpm.run.paths import PROJECT_ROOT
from metrics.compare.__main__ import main
from metrics.compare.comparison import PAGE
from tests.pages.compare.compared import make_run, page_of, refusal, save
from tests.support.metrics_documents import make_document


def test_a_damaged_run_and_one_without_rows_are_left_out_with_a_line(root: Path, capsys):
    make_run(root, "empty", epochs=0)
    make_run(root, "damaged").json.write_text('{"run": ')
    page = page_of(root, "slow", "damaged", "empty", "fast")
    left_out = [line for line in page.splitlines() if "Left out: " in line]
    assert [line.split()[4] for line in left_out] == ["damaged:", "empty:"]
    assert "Left out: empty" in capsys.readouterr().out
    assert page.startswith("<!--") and "# Comparison of 2 runs" in page


def test_a_run_that_failed_before_its_first_epoch_ended_is_said_to_have_failed(root: Path):
    paths = make_run(root, "broken", epochs=0)
    failed = {"state": "failed", "exit_code": 1, "heartbeat": 1.0, "message": "CUDA out of memory", "epoch": 1}
    paths.status.write_text(json.dumps(failed))
    page = page_of(root, "slow", "broken", "fast")
    (line,) = [line for line in page.splitlines() if "Left out: broken: " in line]
    assert "failed (exit code 1)" in line and "CUDA out of memory" in line
    paths.json.unlink()
    assert line in page_of(root, "slow", "broken", "fast"), "also where it has not come to write any figures"
    save(paths, make_document(0, state="running"))
    paths.status.write_text(json.dumps({"state": "running", "heartbeat": time.time()}))
    (line,) = [line for line in page_of(root, "slow", "broken", "fast").splitlines() if "Left out: broken: " in line]
    assert "no epoch has finished yet" in line and "failed" not in line


def test_one_run_is_no_comparison(root: Path, capsys):
    make_run(root, "empty", epochs=0)
    line = refusal(capsys, root, "slow", "slow", "empty")
    assert "two different runs" in line and "empty" in line


@pytest.mark.parametrize(("arguments", "mend"), [
    (["slow", "fastt"], "the runs there are: fast, slow"),
    (["slow", "fast", "--rank-by", "quality"], "there are step"),
    (["slow", "fast", "--rank-by", "grad_norm"], "grad_norm:down"),
    (["slow", "fast", "--rank-by", "rca"], "there are values of val_loss_ema"),
    (["slow", "fast", "--loss-levels", "0.1", "x"], "--loss-levels: "),
    (["slow", "fast", "--loss-levels", "-1"], "--loss-levels -1: give losses"),
    (["slow", "fast", "--loss-levels", "nan"], "--loss-levels nan: give losses"),
])  # fmt: skip
def test_a_wrong_request_is_one_line_that_says_what_to_do(root: Path, capsys, arguments: list[str], mend: str):
    assert mend in refusal(capsys, root, *arguments)


def test_a_folder_that_is_no_comparison_is_not_written_over_and_a_comparison_is(root: Path, capsys):
    (root / "page").mkdir()
    (root / "page" / PAGE).write_text("my notes")
    assert main(["slow", "fast", "--output-root", str(root), "--out", str(root / "page")]) == 2
    assert (root / "page" / PAGE).read_text() == "my notes"
    (root / "page" / PAGE).unlink()
    assert page_of(root, "slow", "fast") != ""
    assert "best by training loss" in page_of(root, "slow", "fast", "--rank-by", "loss_mean")


def test_a_reader_that_leaves_ends_the_program_quietly_and_the_page_is_written(root: Path):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "metrics.compare", "slow", "fast", "--output-root", root, "--out", root / "page"]
    done = subprocess.run(command, cwd=PROJECT_ROOT, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")
    assert (root / "page" / PAGE).read_text().count("\n## ") >= 6


def test_runs_may_be_folders_of_several_output_roots_and_need_no_names_of_their_own(root: Path, tmp_path_factory):
    other = make_run(tmp_path_factory.mktemp("other"), "fast", factor=0.5)
    page = page_of(root, "fast", str(other.metrics))
    assert "`fast (2)` is best" in page
