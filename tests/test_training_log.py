"""`training_log.md`: its figures are recomputed from the run's rows, and odd data never keep it from being written."""

import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ddpm.run.format import duration
from ddpm.run.paths import PROJECT_ROOT, RunPaths
from metrics.training_log.__main__ import main
from metrics.training_log.log import write_training_log
from tests.metrics_documents import make_document

START = "2026-05-04T01:00:00+00:00"
EVENTS_FROM = 1_777_860_000.0  # 2026-05-04 02:00:00 UTC, when the first epoch of `events` ends


def put(root: Path, document: dict, name: str = "night") -> RunPaths:
    """The files that a run of this `document` would have left."""
    paths = RunPaths(root, name)
    paths.metrics.mkdir(parents=True)
    paths.json.write_text(json.dumps({**document, "run": name}))
    rows = [row for row in document["epochs"] if isinstance(row, dict)]
    pd.DataFrame(rows).to_csv(paths.csv, index=False)
    return paths


def written(root: Path, document: dict, **asked) -> str:
    return write_training_log(put(root, document), **asked).read_text()


def rows_of(paths_or_root: Path) -> pd.DataFrame:
    """The rows, from the CSV file alone."""
    return pd.read_csv(RunPaths(paths_or_root, "night").csv, index_col="epoch")


def section(page: str, title: str) -> str:
    return page.split(f"\n## {title}", 1)[1].split("\n## ", 1)[0]


def table_of(page: str, title: str) -> list[list[str]]:
    """The cells of the first table of a section, without its heading."""
    lines = [line for line in section(page, title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def milestones(page: str) -> list[str]:
    return [row[-1] for row in table_of(page, "Milestones")]


def with_losses(values, column: str = "val_loss_ema", **changes) -> dict:
    document = make_document(len(values), **changes)
    for row, value in zip(document["epochs"], values, strict=True):
        row[column] = value
    return document


def publish(paths: RunPaths, *events: dict) -> None:
    paths.events.write_text("".join(json.dumps(event) + "\n" for event in events))


# ---- figures ---------------------------------------------------------------------------------------------------------


def test_best_results_are_those_of_the_csv(tmp_path):
    document = make_document(40)
    for row in document["epochs"][9::10]:
        row["rca"] = 1 - 1 / row["epoch"]
    page = written(tmp_path, document)
    rows = rows_of(tmp_path)
    found = {cells[0].strip("`"): cells[1:] for cells in table_of(page, "Best results")}
    assert set(found) == {"val_loss_ema", "val_loss", "loss_mean", "rca"}
    for name in ("val_loss_ema", "val_loss", "loss_mean"):
        means = rows[name].rolling(5).mean()
        best, epoch, smooth, epochs, last, _ = found[name]
        assert (best, epoch) == (f"{rows[name].min():.5f}", str(rows[name].idxmin()))
        assert (smooth, epochs) == (f"{means.min():.5f}", f"{means.idxmin() - 4}–{means.idxmin()}")
        assert last.split(" ")[0] == f"{rows[name].iloc[-1]:.5f}"
    assert found["rca"] == ["0.975", "40", "–", "–", "0.975", "40"]


def test_new_bests_stand_with_images_run_time_and_the_clock(tmp_path):
    paths = put(tmp_path, with_losses([0.5, 0.4, 0.45, 0.3]))
    ends = {epoch: EVENTS_FROM + 60 * (epoch - 1) for epoch in (1, 2, 3, 4)}
    publish(paths, *({"time": end, "kind": "epoch", "row": {"epoch": epoch}} for epoch, end in ends.items()))
    with open(paths.events, "a") as file:
        file.write('{"time": 17778, "kind": "epoch", "row": {"ep')  # torn by a crash
    page, rows = write_training_log(paths).read_text(), rows_of(tmp_path)
    bests = [row for row in table_of(page, "Milestones") if "val_loss_ema" in row[-1] and "best" in row[-1]]
    assert [row[-1] for row in bests] == [
        "new best `val_loss_ema`: 0.40000 (-20.0% on 0.50000)",
        "new best `val_loss_ema`: 0.30000 (-25.0% on 0.40000)",
    ]
    stamps = ["2026-05-04 02:01:00 UTC", "2026-05-04 02:03:00 UTC"]
    for row, epoch, stamp in zip(bests, (2, 4), stamps, strict=True):
        at = rows.loc[epoch]
        assert row[:4] == [stamp, duration(at["total_time_sec"]), str(epoch), f"{at['images_seen']:,}"]


def test_hundreds_of_new_bests_are_thinned_and_it_says_so(tmp_path):
    page = written(tmp_path, with_losses([1 / epoch for epoch in range(1, 301)]))
    bests = [what for what in milestones(page) if "`val_loss_ema`: " in what]
    assert bests[0] == "first `val_loss_ema`: 1.00000" and "0.00333" in bests[-1]
    assert len(bests) <= 8
    assert f"{len(bests)} of 300 new bests are shown" in page


def test_phases_are_fitted_to_the_csv(tmp_path):
    wiggles = np.random.default_rng(0).normal(scale=0.002, size=70)
    falls = np.concatenate([np.full(10, -0.15), np.full(60, 0.0)])
    page = written(tmp_path, with_losses((0.5 * np.exp(falls.cumsum() + wiggles)).tolist()))
    curve, phases = rows_of(tmp_path)["val_loss_ema"], table_of(page, "Phases")
    assert [cells[1].split(" at ")[0] for cells in phases] == ["fast descent", "plateau"]
    for epochs, what, values, rate, _ in phases:
        part = curve.loc[slice(*map(int, epochs.split("–")))]
        (slope, _), covariance = np.polyfit(part.index, np.log(part), 1, cov=True)
        error = 100 * math.exp(slope) * math.sqrt(covariance[0, 0])
        assert rate == f"{100 * math.expm1(slope):+.3g}% ± {error:.2g}% per epoch"
        assert values == f"{part.iloc[0]:.5f} → {part.iloc[-1]:.5f}"
        if "plateau" in what:
            assert what == f"plateau at {part.mean():.5f} ± {part.std():.2g}"
            assert f"plateau of `val_loss_ema` reached: about {part.mean():.5f} up to epoch 70" in milestones(page)


def test_a_loss_that_is_seldom_measured_leaves_the_phases_to_the_training_loss(tmp_path):
    page = written(tmp_path, with_losses([None] * 9 + [0.3], state="finished") | {"state": "finished"})
    assert "## Phases of `val_loss`" in page


def test_time_is_shared_out_to_the_last_second(tmp_path):
    document = make_document(5)
    for row in document["epochs"]:
        row["val_time_sec"] = 2.5
    shares = {row[0]: row[1:] for row in table_of(written(tmp_path, document), "Where the time went")}
    rows = rows_of(tmp_path)
    total, train = rows["epoch_time_sec"].sum(), rows["train_time_sec"].sum()
    rest = total - train - 12.5
    assert shares["training"] == [f"{train:,.1f}", f"{train / total:.1%}"]
    assert shares["validation"] == ["12.5", f"{12.5 / total:.1%}"]
    assert shares["other: start, compilation, reports"] == [f"{rest:,.1f}", f"{rest / total:.1%}"]


# ---- milestones ------------------------------------------------------------------------------------------------------


def test_starts_tell_their_causes(tmp_path):
    starts = [
        {"time": START, "step": 0, "epoch": 0, "cause": "started"},
        {"time": "2026-05-04T02:00:00+00:00", "step": 3 * 293, "epoch": 3, "cause": "stopped by SIGTERM (Slurm job 7)"},
        {"time": "2026-05-04T03:00:00+00:00", "step": 4 * 293 + 50, "epoch": 4, "cause": "killed without a message"},
    ]
    page = written(tmp_path, make_document(6, starts=starts))
    rows, told = rows_of(tmp_path), [row for row in table_of(page, "Milestones") if "start" in row[-1]]
    batch = 4 * 96
    assert told[0] == ["2026-05-04 01:00:00 UTC", "0s", "0", "0", "started"]
    at_row = [duration(rows.loc[3, "total_time_sec"]), "3", f"{3 * 293 * batch:,}"]
    assert told[1] == [
        "2026-05-04 02:00:00 UTC",
        *at_row,
        "start 2, from step 879; the start before: stopped by SIGTERM (Slurm job 7)",
    ]
    within = ["–", "4", f"{(4 * 293 + 50) * batch:,}"]
    assert told[2] == [
        "2026-05-04 03:00:00 UTC",
        *within,
        "start 3, from step 1,222; the start before: killed without a message",
    ]


def test_the_first_checkpoint_is_where_the_events_say(tmp_path):
    paths = put(tmp_path, make_document(3))
    say = {"kind": "log", "severity": "info"}
    publish(
        paths,
        {"time": EVENTS_FROM, **say, "message": "checkpoint: /some/where/step_00000293"},
        {"time": EVENTS_FROM + 99, **say, "message": "checkpoint: /some/where/step_00000586"},
    )
    row = next(row for row in table_of(write_training_log(paths).read_text(), "Milestones") if "checkpoint" in row[-1])
    assert (row[0], row[2], row[-1]) == ("2026-05-04 02:00:00 UTC", "1", "first checkpoint: `step_00000293`")


def test_learning_rates_that_step_restart_or_halve(tmp_path):
    document = make_document(12)
    document["settings"] |= {"lr_schedule": "step", "warmup_steps": 300}
    for row in document["epochs"]:
        row["lr"] = 1e-3 if row["epoch"] < 7 else 1e-4
    told = milestones(written(tmp_path / "step", document))
    assert "the first 300 steps (`--warmup-steps`) are done: learning rate 1.000e-03 at the end of epoch 2" in told
    assert [what for what in told if "learning rate fell" in what or "learning rate rose" in what] == [
        "learning rate fell from 1.000e-03 (end of epoch 6) to 1.000e-04 (end of epoch 7)"
    ]
    document["settings"]["lr_schedule"] = "cosine_restarts"
    for row in document["epochs"]:
        row["lr"] = 1e-3 * (1 - row["epoch"] % 6 / 6)
    told = milestones(written(tmp_path / "cosine", document))
    assert [what for what in told if "learning rate fell" in what or "learning rate rose" in what] == [
        "learning rate rose from 1.667e-04 (end of epoch 5) to 1.000e-03 (end of epoch 6)",
        "learning rate rose from 1.667e-04 (end of epoch 11) to 1.000e-03 (end of epoch 12)",
    ]
    assert "learning rate down to half or less: from 8.333e-04 (end of epoch 1) to 3.333e-04 (end of epoch 4)" in told


def test_a_rate_is_told_with_the_epoch_that_had_it_and_no_later_one_counts(tmp_path):
    """As of a resumed run: 1e-4 down to 2e-7, then 1e-3. Nothing is made up of what was between the ends of epochs."""
    document = make_document(7)
    document["settings"] |= {"lr_schedule": "cosine_restarts", "warmup_steps": 2 * 293}  # to the last step of epoch 2
    for row, rate in zip(document["epochs"], [None, None, 1e-4, 4e-5, 2e-7, 6e-7, 1e-3], strict=True):
        row["lr"] = rate
    rows = [(row[2], row[-1]) for row in table_of(written(tmp_path, document), "Milestones") if "rate" in row[-1]]
    assert rows == [
        ("3", "the first 586 steps (`--warmup-steps`) are done: learning rate 1.000e-04 at the end of epoch 3"),
        ("4", "learning rate down to half or less: from 1.000e-04 (end of epoch 3) to 4.000e-05 (end of epoch 4)"),
        ("6", "learning rate rose from 2.000e-07 (end of epoch 5) to 6.000e-07 (end of epoch 6)"),
        ("7", "learning rate rose from 6.000e-07 (end of epoch 6) to 1.000e-03 (end of epoch 7)"),
    ]


def test_averaging_skipped_steps_and_the_end(tmp_path):
    document = make_document(8)
    document["settings"]["swa_start_epoch"] = 5
    for epoch, count in ((3, 2), (6, 1)):
        document["epochs"][epoch - 1]["nonfinite_steps"] = count
    paths = put(tmp_path, document)
    message = "stopped early after epoch 8: val_loss has not improved for 3 epochs"
    paths.status.write_text(json.dumps({"state": "finished", "message": message, "step": 8 * 293}))
    page = write_training_log(paths).read_text()
    told = {row[-1]: row[2] for row in table_of(page, "Milestones")}
    assert told["stochastic weight averaging (SWA) begun"] == "5"
    assert told["first steps skipped, their gradient not finite: 2; 3 in 2 epochs up to now"] == "3"
    assert milestones(page)[-1] == f"finished: {message}"


def test_a_run_that_stopped_before_its_first_epoch_is_told_in_order(tmp_path):
    starts = [
        {"time": START, "step": 0, "epoch": 0, "cause": "started"},
        {"time": "2026-05-04T02:30:00+00:00", "step": 0, "epoch": 0, "cause": "stopped by SIGINT"},
    ]
    document = make_document(0, starts=starts, state="stopped")
    document["hyperparameters"]["global_batch_size"] = 256
    paths = put(tmp_path, document)
    publish(paths, {"time": EVENTS_FROM, "kind": "log", "message": "checkpoint: /some/where/step_00000000"})
    message = "stopped by SIGTERM; run the same command again to continue"
    paths.status.write_text(json.dumps({"state": "stopped", "message": message, "step": 7}))
    told = [(row[0][-12:-4], row[3], row[-1]) for row in table_of(write_training_log(paths).read_text(), "Milestones")]
    assert told == [
        ("01:00:00", "0", "started"),
        ("02:00:00", "0", "first checkpoint: `step_00000000`"),
        ("02:30:00", "0", "start 2, from step 0; the start before: stopped by SIGINT"),
        ("03:02:01", "1,792", message),
    ]


def test_what_happened_after_an_unknown_number_of_images_is_told_last(tmp_path):
    paths = put(tmp_path, make_document(0, state="stopped"))  # an old file: neither rows nor a global batch
    paths.status.write_text(json.dumps({"state": "stopped", "message": "stopped by SIGTERM", "step": 7}))
    assert milestones(write_training_log(paths).read_text()) == ["started", "stopped by SIGTERM"]


def test_only_a_finished_run_has_a_last_best(tmp_path):
    for state, words in {"finished": "- **Best:** ", "stopped": "- **Best so far:** "}.items():
        page = written(tmp_path / state, make_document(3, state=state))
        assert words + "`val_loss_ema` " in page


def test_a_run_in_progress_says_so_and_a_dead_one_too(tmp_path):
    paths = put(tmp_path, make_document(10, state="running"))
    page, rows = write_training_log(paths).read_text(), rows_of(tmp_path)
    median = rows["epoch_time_sec"].median()
    assert "in progress as of 2026-05-04 03:02:01 UTC: epoch 10 of 100" in page
    assert f"the last 10 epochs took {median:.1f} s each (median), so the 90 to come would take" in page
    assert duration(90 * median) in page and "Warning" not in page
    old = {"state": "running", "host": "node7", "pid": 5, "heartbeat": time.time() - 7200, "phase": "training"}
    paths.status.write_text(json.dumps(old))
    page = write_training_log(paths).read_text()
    assert "**Warning:** no heartbeat for 2h 00m 00s, since" in page
    assert f"; if it is started again, the 90 to come would take about {duration(90 * median)}" in page
    paths.status.write_text(json.dumps({**old, "state": "failed", "message": "out of memory"}))  # the file was too late
    assert "; if it is started again, the 90 to come" in write_training_log(paths).read_text()


def test_glyphs_are_never_taken_for_emnist(tmp_path):
    page = written(tmp_path, make_document(2, data="glyphs"))
    assert page.count("embedded glyphs, not EMNIST") == 2
    assert "EMNIST Balanced" not in page


# ---- target and baseline ---------------------------------------------------------------------------------------------


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


# ---- odd data, speed, the command ------------------------------------------------------------------------------------

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
