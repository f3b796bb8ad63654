"""A training log with a target or a baseline, of odd data, and as its command writes it."""

import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ddpm.run.format import duration
from ddpm.run.paths import PROJECT_ROOT, RunPaths
from metrics.training_log.__main__ import main
from metrics.training_log.log import write_training_log
from tests.pages.logged import milestones, put, rows_of, section, table_of, with_losses, written
from tests.support.metrics_documents import make_document


def test_a_target_that_was_reached_tells_when(tmp_path):
    values = [0.5, 0.3, 0.19, 0.25, 0.1]
    page, rows = written(tmp_path, with_losses(values), target="val_loss_ema=0.2"), rows_of(tmp_path)
    at = rows.loc[3]
    after = f"after {at['images_seen']:,.0f} images and {duration(at['total_time_sec'])}"
    assert f"**Reached at epoch 3**: validation loss (EMA) 0.19000, {after}." in section(page, "Target")
    assert "is 0.10000 (epoch 5), the last 0.10000 (epoch 5)." in page
    assert "target reached: `val_loss_ema` 0.19000, asked for 0.20000" in milestones(page)


def test_a_target_ahead_has_a_distance_and_an_honest_time(tmp_path):
    values = np.linspace(0.5, 0.3, 41) + np.random.default_rng(0).normal(scale=1e-3, size=41)
    document = with_losses(values.tolist(), state="running")
    document["settings"]["target"] = "val_loss_ema=0.25"
    words = section(written(tmp_path, document), "Target")
    curve = rows_of(tmp_path)["val_loss_ema"]
    (slope, _), covariance = np.polyfit(curve.index[-10:], curve.iloc[-10:], 1, cov=True)
    error, left = math.sqrt(covariance[0, 0]), 0.25 - curve.iloc[-1]
    epochs = [math.ceil(41 + left / rate) for rate in (slope, slope - 2 * error, slope + 2 * error)]
    assert f"{curve.min() / 0.25 - 1:.1%} above" in words
    assert f"the curve changes by {slope:+.3g} ± {error:.2g} (standard error) per epoch" in words
    assert "about epoch {} ({} to {} within two standard errors of the slope)".format(*epochs) in words
    assert "the run is planned for 100" in words


@pytest.mark.parametrize(
    ("values", "target", "words"),
    [
        ([0.3] * 12, "val_loss_ema=0.1", "At this rate the target is not reached"),
        ([0.3] * 12, "val_loss_ema=0.1", "3 times"),
        ([0.3, 0.2], "val_loss_ema=0.1", "A slope takes three values; there are 2."),
        ([None, None], "val_loss_ema=0.1", "validation loss (EMA) has not been measured yet"),
        ([0.3, 0.2], "fame=1", "This is no target"),
    ],
)
def test_a_target_that_cannot_be_told_of(tmp_path, values, target, words):
    assert words in section(written(tmp_path, with_losses(values), target=target), "Target")


def test_a_baseline_is_compared_at_the_same_images_and_at_the_best(tmp_path):
    ours = with_losses([0.5, 0.4, 0.3, 0.35])
    theirs = with_losses([0.6, 0.45, 0.4, 0.38, 0.33, 0.36])
    ours["settings"] |= {"baseline": "before", "lr": 1e-3}
    theirs["settings"]["lr"] = 1e-4
    put(tmp_path, theirs, "before")
    page = written(tmp_path, ours)
    told = [row[1:] for row in table_of(page, "Baseline: before") if row[0] == "validation loss (EMA)"]
    images = rows_of(tmp_path)["images_seen"]
    assert told == [
        [f"up to {images[4]:,} images", "0.35000 (epoch 4)", "0.38000 (epoch 4)", "-0.03 (-7.9%), better"],
        ["last", "0.35000 (epoch 4)", "0.36000 (epoch 6)", "-0.01 (-2.8%), better"],
        ["best", "0.30000 (epoch 3)", "0.33000 (epoch 5)", "-0.03 (-9.1%), better"],
    ]
    words = section(page, "Baseline: before")
    assert f"first at epoch 3 ({images[3]:,} images and " in words
    assert "`lr`: 0.001, 0.0001" in words


def test_losses_of_other_things_are_not_called_comparable(tmp_path):
    put(tmp_path, make_document(3, data="glyphs"), "before")
    page = written(tmp_path, make_document(3), baseline=RunPaths(tmp_path, "before"))
    assert "**Not all of these runs are comparable**" in page and "**Data differ**" in page


def test_a_baseline_that_is_not_there_costs_a_line(tmp_path):
    document = make_document(3)
    document["settings"]["baseline"] = "before"
    assert "Not compared: " in section(written(tmp_path, document), "Baseline: before")
    (tmp_path / "own").mkdir()
    document["settings"]["baseline"] = "night"
    assert "this run itself" in section(written(tmp_path / "own", document), "Baseline: night")


NOTHING = dict.fromkeys(make_document(1)["epochs"][0])
ODD = {
    "no rows": make_document(0, state="running"),
    "one row": make_document(1),
    "rows without figures": make_document(1) | {"epochs": [{**NOTHING, "epoch": epoch} for epoch in range(1, 30)]},
    "rows without columns": make_document(1) | {"epochs": [{"epoch": 1}, {"epoch": 2, "loss_mean": 0.1}]},
    "foreign rows": make_document(1) | {"epochs": [None, 3, {"epoch": "x"}, {"step": 1}, {"epoch": 4, "lr": "fast"}]},
    "huge and tiny": with_losses([1e300, 1e-300, 1e300, 1e-300, 0.0, -1.0, 5.0]),
    "zeros": with_losses([0.0] * 12),
    "parts missing": {name: make_document(3)[name] for name in ("data", "state", "epochs", "summary")},
    "foreign parts": make_document(3) | {"settings": 3, "starts": [None, {"step": "x", "time": 5}], "environment": []},
    "foreign settings": make_document(3) | {"settings": {"warmup_steps": "x", "swa_start_epoch": "x", "epochs": "x"}},
    "epochs twice": make_document(3) | {"epochs": make_document(3)["epochs"] * 2},
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_odd_data_are_told_as_far_as_they_go(tmp_path, name):
    document = ODD[name]
    paths = RunPaths(tmp_path, "night")
    paths.metrics.mkdir(parents=True)
    paths.json.write_text(json.dumps(document))
    paths.events.write_bytes(
        b'{"kind": "epoch"\n\xff\n{"kind": "epoch", "time": null, "row": 3}\n[1, "checkpoint: "]\n'
    )
    paths.status.write_text(json.dumps({"state": "running", "heartbeat": "late", "step": None}))
    page = write_training_log(paths, target="val_loss=0.1", baseline=paths).read_text()
    assert page.startswith("# Training log: night\n")
    for title in ("Quick reference", "Best results", "Milestones", "Phases", "Target", "Baseline", "Curves"):
        assert f"\n## {title}" in page
    assert not re.search(r"\b(nan|inf|None|NaT)\b", page)


def test_a_hundred_epochs_are_written_between_two_steps(tmp_path):
    paths = put(tmp_path, make_document(100, state="running"))
    write_training_log(paths)
    spent = []
    for _ in range(3):
        began = time.process_time()
        write_training_log(paths)
        spent.append(time.process_time() - began)
    assert min(spent) < 0.1


def test_the_command_writes_the_page_without_torch_or_matplotlib(tmp_path):
    paths = put(tmp_path, make_document(5))
    program = (
        "import sys; from metrics.training_log.__main__ import main; code = main(sys.argv[1:]); "
        "assert not {'torch', 'matplotlib'} & set(sys.modules); sys.exit(code)"
    )
    asked = ["night", "--output-root", str(tmp_path), "--target", "loss_mean=0.05"]
    done = subprocess.run([sys.executable, "-c", program, *asked], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, str(paths.metrics / "training_log.md")), done.stderr
    assert "## Target: loss_mean=0.05" in Path(done.stdout.strip()).read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nobody"], "no run called 'nobody'"),
        (["night", "--target", "loss=1"], "--target loss=1: give one of loss_mean"),
        (["night", "--target", "val_loss"], "such as val_loss=0.004"),
        (["night", "--baseline", "nobody"], "no run called 'nobody'"),
    ],
)
def test_a_wrong_request_is_one_line_and_the_old_page_stays(tmp_path, capsys, arguments, words):
    page = put(tmp_path, make_document(2)).metrics / "training_log.md"
    page.write_text("old")
    assert main([*arguments, "--output-root", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert page.read_text() == "old"


def test_a_damaged_file_of_figures_is_told_and_the_old_page_stays(tmp_path, capsys):
    paths = put(tmp_path, make_document(2))
    (paths.metrics / "training_log.md").write_text("old")
    paths.json.write_text(paths.json.read_text()[:500])
    assert main(["night", "--output-root", str(tmp_path)]) == 2
    assert "cannot be read as metrics" in capsys.readouterr().err
    assert (paths.metrics / "training_log.md").read_text() == "old"
