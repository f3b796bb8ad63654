"""The milestones of a training log: starts, checkpoints, learning rates, averages, and how it ended."""

import json
import time

from ddpm.run.format import duration
from metrics.training_log.log import write_training_log
from tests.pages.logged import EVENTS_FROM, START, milestones, publish, put, rows_of, table_of, written
from tests.support.metrics_documents import make_document


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
