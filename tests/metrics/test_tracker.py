"""MetricsTracker: rows of the whole job in CSV and JSON."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from ddpm.run.metrics import METRICS, RCA
from ddpm.run.paths import RunPaths
from metrics.run_reader import read_run
from metrics.tracker import MetricsTracker, loss_statistics, summarise

DESCRIPTION = {"run": "r", "data": "glyphs", "settings": {}, "environment": {}}


def row(epoch: int, **figures) -> dict:
    values = {"epoch": epoch, "step": 10 * epoch, "images_seen": 320 * epoch, "data": "glyphs", "lr": 1e-4}
    statistics = loss_statistics(np.linspace(1, 2, 10) / epoch, np.full(10, 0.5))
    values |= {metric.name: value for metric, value in statistics.items()}
    values |= {"samples_per_sec": 100.0, "train_images": 300, "train_time_sec": 3.0}
    values |= {"epoch_time_sec": 4.0, "total_time_sec": 4.0 * epoch, "val_loss_ema": 1 / epoch}
    return values | figures


@pytest.fixture
def paths(tmp_path) -> RunPaths:
    return RunPaths(tmp_path, "r")


def test_columns_are_those_of_the_design_in_its_order_and_new_ones_at_the_end():
    contract = """epoch, step, images_seen, loss_mean, loss_std, loss_min, loss_max, loss_median, val_loss,
    val_loss_ema, lr, grad_norm, grad_norm_max, nonfinite_steps, samples_per_sec, batches_per_sec, mfu,
    gpu_mem_allocated_mb, gpu_mem_reserved_mb, gpu_mem_peak_mb, ema_delta_norm, epoch_time_sec, total_time_sec"""
    assert list(METRICS)[:23] == [name.strip() for name in contract.split(",")]


def test_statistics_are_over_every_batch_and_only_finite_norms_are_averaged():
    losses, norms = [0.4, 0.1, 0.3, 0.2], [1.0, math.inf, 3.0, math.nan]
    figures = {metric.name: value for metric, value in loss_statistics(losses, norms).items()}
    assert figures["loss_mean"] == pytest.approx(np.mean(losses))
    assert figures["loss_std"] == pytest.approx(np.std(losses))
    assert (figures["loss_min"], figures["loss_max"]) == (0.1, 0.4)
    assert figures["loss_median"] == pytest.approx(0.25)
    assert (figures["grad_norm"], figures["grad_norm_max"], figures["nonfinite_steps"]) == (2.0, 3.0, 2)


def test_pandas_reads_back_what_was_written(paths: RunPaths):
    tracker = MetricsTracker(paths, DESCRIPTION)
    written = [tracker.add_epoch(row(epoch, val_loss=math.nan)) for epoch in (1, 2, 3)]
    frame = pd.read_csv(paths.csv)
    assert list(frame.columns) == list(METRICS)
    assert frame["val_loss"].isna().all()
    assert frame["mfu"].isna().all()
    assert set(frame["data"]) == {"glyphs"}
    document = json.loads(paths.json.read_text())
    assert document["epochs"] == written
    for name in METRICS:
        there = [each[name] for each in written if each[name] is not None]
        assert frame[name].dropna().tolist() == there
    assert "inf" not in paths.csv.read_text().lower()


def test_the_csv_grows_by_a_row_as_each_epoch_ends(paths: RunPaths):
    tracker = MetricsTracker(paths, DESCRIPTION)
    for epoch in (1, 2):
        tracker.add_epoch(row(epoch))
        assert len(paths.csv.read_text().splitlines()) == 1 + epoch
        assert json.loads(paths.json.read_text())["state"] == "running"


def test_a_row_that_could_not_be_written_comes_with_the_next(paths: RunPaths):
    tracker = MetricsTracker(paths, DESCRIPTION)
    tracker.add_epoch(row(1))
    paths.csv.unlink()
    paths.csv.mkdir()  # nothing can be written there
    with pytest.raises(OSError):
        tracker.add_epoch(row(2))
    paths.csv.rmdir()
    tracker.add_epoch(row(3))
    assert pd.read_csv(paths.csv)["epoch"].tolist() == [1, 2, 3]


def test_a_csv_that_somebody_moves_or_cuts_is_written_anew(paths: RunPaths):
    """As `mv metrics/output/RUN elsewhere` does while it trains: later rows stood there without a head."""
    tracker = MetricsTracker(paths, DESCRIPTION)
    tracker.add_epoch(row(1))
    paths.csv.unlink()
    tracker.add_epoch(row(2))
    assert pd.read_csv(paths.csv)["epoch"].tolist() == [1, 2]
    paths.csv.write_text(paths.csv.read_text()[:-10])
    tracker.write("finished")
    assert pd.read_csv(paths.csv)["epoch"].tolist() == [1, 2]


def test_the_summary_follows_from_the_csv(paths: RunPaths):
    tracker = MetricsTracker(paths, DESCRIPTION)
    for epoch, speed in ((1, 50), (2, 100), (3, 200)):
        tracker.add_epoch(row(epoch, train_images=speed * 3, train_time_sec=3.0, samples_per_sec=speed))
    summary, frame = tracker.write("finished")["summary"], pd.read_csv(paths.csv)
    assert summary["avg_throughput_sps"] == pytest.approx(frame["train_images"].sum() / frame["train_time_sec"].sum())
    assert summary["best_loss"] == frame["loss_mean"].min()
    assert summary["best_epoch"] == frame["epoch"][frame["loss_mean"].idxmin()]
    assert summary["final_loss"] == frame["loss_mean"].iloc[-1]
    assert summary["total_samples"] == frame["images_seen"].iloc[-1]
    assert summary["total_time_sec"] == frame["total_time_sec"].iloc[-1] == frame["epoch_time_sec"].sum()
    assert summary["total_epochs"] == 3
    assert summary["peak_gpu_mem_mb"] is None


def test_what_was_measured_with_other_settings_is_not_the_best(paths: RunPaths):
    rows = [row(epoch, rca=rca) for epoch, rca in ((1, 1.02), (2, 1.03))]
    tracker = MetricsTracker(paths, DESCRIPTION, 16, rows, "stopped by SIGTERM", {"guidance_scale": 2})
    tracker.add_epoch(row(3, rca=0.8))
    assert tracker.write("finished")["summary"]["best_rca"] == 0.8
    run = read_run(paths)
    assert run.curve(RCA).epochs.tolist() == [3] and run.summary["best_rca"] == 0.8
    assert run.series(RCA).tolist() == [1.02, 1.03, 0.8], "they are still shown"


def test_a_resumed_run_takes_up_its_rows_and_drops_those_it_trains_again(paths: RunPaths):
    tracker = MetricsTracker(paths, DESCRIPTION)
    for epoch in (1, 2, 3):
        tracker.add_epoch(row(epoch))
    with open(paths.csv, "a") as file:
        file.write("4,40,torn")  # killed while writing
    resumed = MetricsTracker(paths, DESCRIPTION, step=20, rows=tracker.rows[:2], cause="stopped by SIGTERM")
    resumed.add_epoch(row(3, loss_mean=0.25))
    frame = pd.read_csv(paths.csv)
    assert frame["epoch"].tolist() == [1, 2, 3]
    assert frame["loss_mean"].iloc[-1] == 0.25
    document = json.loads(paths.json.read_text())
    assert [start["step"] for start in document["starts"]] == [0, 20]
    assert document["summary"]["restarts"] == 1


def test_the_row_of_an_epoch_that_was_cut_short_is_replaced_when_it_is_complete(paths: RunPaths):
    tracker = MetricsTracker(paths, DESCRIPTION)
    tracker.add_epoch(row(1))
    tracker.add_epoch(row(2, step=15))
    resumed = MetricsTracker(paths, DESCRIPTION, step=15, rows=tracker.rows)
    assert pd.read_csv(paths.csv)["step"].tolist() == [10, 15]
    resumed.add_epoch(row(2))
    assert pd.read_csv(paths.csv)["step"].tolist() == [10, 20]


def test_a_run_without_an_epoch_has_a_summary_too():
    assert summarise([], [{}])["total_epochs"] == 0
