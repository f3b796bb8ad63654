"""The runs of a plan, trained one after the other and compared at the end."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from ddpm.run.paths import RunPaths
from metrics.jobs import sweep
from metrics.jobs.sweep_plan import read_plan
from metrics.note.notes import add_note
from tests.cluster.sweep.plans import FAILS, FAILS_EARLY, STOPPED, STOPPED_UNDER_TORCHRUN, WAITS, train, write_plan


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
