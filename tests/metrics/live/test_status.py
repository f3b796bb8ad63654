"""The published state: whole at any moment, renewed while the process lives, and never a danger to training."""

from __future__ import annotations

import csv
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.run.files import strict_json
from metrics.files import TAIL_BYTES, read_epochs, read_events, read_status
from metrics.live.status import StatusPublisher, append_line
from tests.support.disks import largest_file
from tests.support.nvml import eventually


def test_status_has_every_field_from_the_start_and_follows_updates(paths):
    publisher = StatusPublisher(paths, {"data": "glyphs", "epochs": 3}, interval=0.02)
    publisher.start()
    first = read_status(paths)
    expected = """run data state phase message host pid slurm_job_id slurm_restart torchrun world_size nodes device gpus
    started heartbeat progress_time phase_time epoch epochs batch batches step start_step total_steps images_seen
    start_images loss lr grad_norm samples_per_sec eta_sec exit_code retry"""
    assert set(first) == set(expected.split())
    assert (first["run"], first["data"], first["state"], first["phase"]) == ("a_run", "glyphs", "running", "starting")
    publisher.update(step=5, phase="training", loss=0.5)
    now = eventually(lambda: (status := read_status(paths))["step"] == 5 and status)
    assert now["progress_time"] > first["progress_time"] and now["phase_time"] > first["phase_time"]
    publisher.update(step=5, phase="training")
    assert publisher.fields()["progress_time"] == now["progress_time"]
    publisher.close("stopped", 75, "asked to stop")
    last = read_status(paths)
    assert (last["state"], last["exit_code"], last["message"], last["phase"]) == (
        "stopped",
        75,
        "asked to stop",
        "training",
    )


def test_a_line_that_a_full_disk_cut_is_told_and_costs_only_itself(tmp_path: Path):
    file = tmp_path / "events.jsonl"
    append_line(file, '{"kind": "first"}')
    with largest_file(30), pytest.raises(OSError, match="No space left"):
        append_line(file, '{"kind": "cut"}')
    append_line(file, '{"kind": "whole"}')
    assert file.read_text().splitlines() == ['{"kind": "first"}', '{"kind": "cu', '{"kind": "whole"}']


def test_values_that_json_does_not_know_are_null_or_plain(paths):
    publisher = StatusPublisher(paths)
    publisher.update(loss=float("nan"), grad_norm=np.float32("inf"), step=np.int64(7), lr=np.float32(0.5))
    publisher.start()
    status = json.loads(paths.status.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (status["loss"], status["grad_norm"], status["step"], status["lr"]) == (None, None, 7, 0.5)
    publisher.close("finished")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float32(0.5), "0.5"),
        (np.int64(7), "7"),
        (np.bool_(True), "true"),
        (torch.tensor(0.5), "0.5"),
        ([float("nan"), np.float64("inf"), -math.inf], "[null, null, null]"),
        (np.array([[1.0, math.nan]]), "[[1.0, null]]"),
        ({"a": (1, Path("b") / "c"), "d": {"e": None}}, '{"a": [1, "b/c"], "d": {"e": null}}'),
        (ValueError("odd"), '"odd"'),
        ("\udcff", r'"\udcff"'),
    ],
)
def test_any_value_is_strict_json(value, text):
    assert strict_json(value) == text


def test_a_reader_never_sees_half_a_status(paths):
    publisher = StatusPublisher(paths, interval=0.0005)
    publisher.start()
    steps, end = set(), time.monotonic() + 1.5
    while time.monotonic() < end:
        publisher.update(step=len(steps) + 1, message="x" * (len(steps) % 5000))
        steps.add(json.loads(paths.status.read_bytes())["step"])
    publisher.close("finished", 0)
    assert len(steps) > 10
    assert [path.name for path in paths.metrics.iterdir()] == ["status.json"]


def test_heartbeat_without_news_and_a_deleted_status_comes_back(paths):
    publisher = StatusPublisher(paths, interval=0.02, heartbeat=0.1)
    publisher.start()
    beat = read_status(paths)["heartbeat"]
    eventually(lambda: read_status(paths)["heartbeat"] > beat)
    paths.status.unlink()
    eventually(paths.status.exists)
    publisher.close("finished")


def test_a_failing_disk_is_said_once_and_outlived(paths, capsys):
    paths.metrics.parent.mkdir(parents=True)
    paths.metrics.write_text("a file where the folder should be")
    publisher = StatusPublisher(paths, interval=0.02, heartbeat=0.05)
    publisher.start()
    for _ in range(5):
        publisher.log("hello")
        time.sleep(0.03)
    assert "status.json" in publisher.writer.trouble or "events.jsonl" in publisher.writer.trouble
    paths.metrics.unlink()
    eventually(lambda: read_status(paths))
    publisher.log("again")
    publisher.close("finished")
    assert [event["message"] for event in read_events(paths)] == ["again"]
    assert capsys.readouterr().err.count("warning:") == 1


def test_events_are_read_from_the_end_without_torn_lines(paths):
    publisher = StatusPublisher(paths)
    for number in range(3000):
        publisher.log(f"message {number} " + "x" * 20, "info")
    publisher.epoch({"epoch": 1, "loss_mean": float("inf")})
    with open(paths.events, "a") as file:
        file.write('{"time": 1, "kind": "log", "mess')
    assert paths.events.stat().st_size > 2 * TAIL_BYTES
    events = read_events(paths, last=2)
    assert events[0]["message"].startswith("message 2999") and events[0]["severity"] == "info"
    assert events[1]["kind"] == "epoch" and events[1]["row"] == {"epoch": 1, "loss_mean": None}
    assert 100 < len(read_events(paths, last=100_000)) < 3000

    resumed = StatusPublisher(paths)  # a new start ends the torn line, so that nothing more is lost
    resumed.start()
    resumed.log("resumed", "success")
    resumed.close("finished")
    assert read_events(paths, last=1)[0]["message"] == "resumed"


def test_epochs_are_numbers_none_where_empty_and_half_a_row_is_left_out(paths):
    assert read_epochs(paths) == []
    paths.metrics.mkdir(parents=True)
    with open(paths.csv, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["epoch", "loss_mean", "mfu", "data"], [1, 0.5, "", "emnist"], [2, 0.25, "", "emnist"]])
        file.write("3,0.1")
    rows = read_epochs(paths)
    assert rows == [
        {"epoch": 1, "loss_mean": 0.5, "mfu": None, "data": "emnist"},
        {"epoch": 2, "loss_mean": 0.25, "mfu": None, "data": "emnist"},
    ]
    assert read_epochs(paths, last=1) == rows[1:]


def test_a_damaged_status_reads_as_none(paths):
    paths.metrics.mkdir(parents=True)
    for damage in (b"", b"{", b"[1]", b"\xff\xfe"):
        paths.status.write_bytes(damage)
        assert read_status(paths) is None
