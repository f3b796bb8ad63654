"""The health check: verdicts of runs that are well, ill, dead or under way, from their published files alone."""

from __future__ import annotations

import json
import re
import shlex
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ddpm.data.emnist import emnist as emnist_files
from ddpm.data.idx import read_idx, write_idx
from ddpm.run.paths import RunPaths
from metrics.health.checker import main, verdict_of
from metrics.health.files import data
from metrics.health.thresholds import Thresholds
from metrics.live.gpus import GpuSampler
from metrics.run_reader import read_run
from tests.support.checked import GPU, RUN, RUNNING, check, learning, publish
from tests.support.metrics_documents import make_document, make_run
from tests.support.nvml import FakeNvml, eventually


def test_a_healthy_run_says_so_at_the_top_and_at_the_end(tmp_path: Path, capsys) -> None:
    paths = publish(tmp_path, learning(12), gpus=[GPU])
    code, page = check(paths)
    assert code == 0
    assert page.splitlines()[2] == "**Verdict: healthy**" == page.splitlines()[-1]
    printed = capsys.readouterr().out
    assert "✓ finished (exit code 0)" in printed and printed.count("Verdict: healthy") == 2
    assert verdict_of(read_run(paths)) == ("healthy", None)
    for component in ("progress", "losses", "GPUs", "performance", "data", "model", "checkpoints", "weights"):
        assert f"| {component} | " in page


def rising_by_heart(epoch: int) -> float:
    return 0.03 + 0.001 * abs(epoch - 10)


CASES = {
    "learning rate 100 times too high": (
        learning(8, loss_mean=lambda epoch: 1.02, val_loss=lambda epoch: 1.01, val_loss_ema=lambda epoch: 0.99),
        {}, 2, "it has learned next to nothing: validation loss (live) 1.0100 after epoch 8",
    ),
    "blown up": (learning(3, loss_mean=lambda epoch: 162.0), {}, 2, "blown up: training loss 162 in epoch 3"),
    "diverging": (
        learning(12, loss_mean=lambda epoch: 0.05 if epoch < 9 else 0.05 * epoch),
        {}, 2, "diverging: training loss 0.6 at epoch 12, 12.00 times its best, 0.05 at epoch 1",
    ),
    "not finite": (
        learning(9, nonfinite_steps=lambda epoch: 40 * (epoch == 8)),
        {}, 2, "40 steps skipped because the gradient was not finite, most in epoch 8 (40)",
    ),
    "no figure": (learning(4, val_loss=lambda epoch: None if epoch == 4 else 0.1), {}, 2,
                  "epoch 4 has no finite validation loss (live)"),
    "plateau": (
        learning(30, val_loss_ema=lambda epoch: 0.02 + 0.2 / epoch**3 + 1e-5 * (epoch % 2)),
        {}, 1, "validation loss (EMA): plateau since epoch ",
    ),
    "plateau of a learning rate that has come down": (
        learning(30, val_loss_ema=lambda epoch: 0.02 + 0.2 / epoch**3, lr=lambda epoch: 1e-4 * (1 - epoch / 31)),
        {}, 0, "the learning rate is 3.226e-06: a plateau is expected",
    ),
    "overfitting": (
        learning(30, val_loss=rising_by_heart, val_loss_ema=rising_by_heart),
        {}, 2, "overfitting: since epoch 10 validation loss (live) rose from 0.0310 to 0.0490 (+58.1%)",
    ),
    "degrading": (
        learning(12, val_loss_ema=lambda epoch: 0.03 + 0.001 * abs(epoch - 7)),
        {}, 1, "degrading for 5 epochs: validation loss (EMA): best 0.03000 at epoch 7, now 0.03500 (+16.7%)",
    ),
    "spikes": (learning(9, loss_max=lambda epoch: 2.0 if epoch == 6 else 0.1), {}, 1, "loss spikes in 1 epoch"),
    "in progress": (learning(12), RUNNING, 0, "running, phase 'training' (node vn1, pid 7)"),
    "just begun": ([], RUNNING | {"phase": "starting"}, 0, "no epoch is done yet"),
    "the average still lags": (
        learning(3, step=lambda epoch: 100 * epoch, val_loss_ema=lambda epoch: 0.5), RUNNING, 0, "this passes",
    ),
    "the average lagged to the end": (
        learning(3, step=lambda epoch: 100 * epoch, val_loss_ema=lambda epoch: 0.5),
        {}, 1, "spans about 1,000 steps, of 300 so far (limit 1.2)",
    ),
    "stopped": (learning(12), {"state": "stopped", "exit_code": 75}, 1, "run the same command again to continue"),
    "failed": (learning(12), {"state": "failed", "exit_code": 1, "message": "no more disk"}, 2, "no more disk"),
}  # fmt: skip


@pytest.mark.parametrize(("rows", "status", "code", "words"), CASES.values(), ids=CASES)
def test_verdicts(tmp_path: Path, rows: list[dict], status: dict, code: int, words: str) -> None:
    paths = publish(tmp_path, rows, **status)
    found, page = check(paths)
    assert (found, words in page) == (code, True), page
    assert verdict_of(read_run(paths))[0] == ("healthy", "warnings", "unhealthy")[code]


def test_what_was_due_in_an_epoch_is_judged_by_the_settings_of_its_start(tmp_path: Path) -> None:
    """Trained with --val-every 5 up to epoch 7, and continued with --val-every 1."""
    unmeasured = {"val_loss": None, "val_loss_ema": None, "val_time_sec": 0.0}
    rows = [row if row["epoch"] % 5 == 0 else row | unmeasured for row in learning(7, val_time_sec=lambda epoch: 3.0)]
    assert "no finite" not in check(publish(tmp_path / "skipped", rows, **RUNNING))[1]
    rows[-1]["val_time_sec"] = 3.0
    page = check(publish(tmp_path / "lost", rows, **RUNNING))[1]
    assert "epoch 7 has no finite validation loss (live) and no finite validation loss (EMA)" in page


@pytest.mark.parametrize(("device", "told"), [("cuda", "not measured yet"), ("cpu", "not measured on a CPU")])
def test_memory_of_a_gpu_is_not_called_that_of_a_cpu_before_its_first_epoch(tmp_path: Path, device, told) -> None:
    document = make_document(1)
    paths = publish(tmp_path, [], document={"environment": document["environment"] | {"device": device}}, **RUNNING)
    assert f"memory: {told}" in check(paths)[1]


def test_a_killed_run_is_unhealthy_and_says_since_when(tmp_path: Path) -> None:
    beat = time.time() - 3 * 3600
    paths = publish(tmp_path, learning(12), **RUNNING, heartbeat=beat)
    code, page = check(paths)
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(beat))
    assert code == 2 and f"no heartbeat for 3h 00m 00s, since {since}" in page and "has probably died" in page
    assert "time left" not in page
    code, page = check(paths, "--threshold", "heartbeat_sec=20000", "step_sec=20000")
    assert code == 0 and "time left, by the run's own estimate: 10m 00s" in page
    assert "the run is running" in page and "the run is silent" not in page  # the head goes by the same limit


def test_a_stalled_run_is_unhealthy_and_says_since_when(tmp_path: Path) -> None:
    step = time.time() - 1200
    paths = publish(tmp_path, learning(12), **RUNNING, progress_time=step, phase_time=step - 50)
    assert "has stalled: no step for 20m 00s" in check(paths)[1]
    word, reason = verdict_of(read_run(paths))
    assert word == "unhealthy" and "has stalled" in reason


def test_the_figures_can_be_recomputed_from_the_csv(tmp_path: Path) -> None:
    parts = {"val_time_sec": 3.0, "eval_time_sec": 1.0, "sample_time_sec": 0.5, "checkpoint_time_sec": 0.25}
    paths = publish(tmp_path, [{**row, **parts} for row in learning(30)])
    page = check(paths)[1]
    rows = pd.read_csv(paths.csv)

    first, percent = re.search(r"validation loss \(EMA\): \S+ descent since epoch (\d+) \((\S+)% ±", page).groups()
    phase = rows[rows["epoch"] >= int(first)]
    slope = np.polyfit(phase["epoch"], np.log(phase["val_loss_ema"]), 1)[0]
    assert float(percent) == pytest.approx(100 * np.expm1(slope), rel=0.01)
    best = rows["val_loss_ema"].idxmin()
    assert f"best {rows['val_loss_ema'][best]:.5f} at epoch {rows['epoch'][best]}" in page

    speed = rows["train_images"].sum() / rows["train_time_sec"].sum()
    step = (1000 / rows["batches_per_sec"]).median()
    assert f"{speed:,.1f} images/s over 30 epochs of training, {step:,.1f} ms a step (median)" in page
    assert f"MFU {rows['mfu'].median():.1%} (median)" in page
    total = rows["epoch_time_sec"].sum()
    for name, key in {
        "training": "train_time_sec",
        "evaluation of drawn images": "eval_time_sec",
        "validation": "val_time_sec",
    }.items():
        assert f"| {name} | {rows[key].sum():,.1f} | {rows[key].sum() / total:.1%} |" in page
    rest = total - rows[["train_time_sec", *parts]].sum().sum()
    assert f"reports | {rest:,.1f} | {rest / total:.1%} |" in page


def test_the_page_names_a_command_that_checks_again(tmp_path: Path) -> None:
    paths = publish(tmp_path / "a place", learning(12))
    (command,) = re.findall("`(python -m metrics.health .*?)` checks it again", check(paths)[1])
    paths.health.unlink()
    assert main(shlex.split(command)[3:]) == 0 and paths.health.is_file()


def test_a_small_network_has_an_arithmetic_above_zero(tmp_path: Path) -> None:
    tiny = {"model": {"parameters": 68_089, "flops_per_image": 2.288e7}}
    assert "0.02288 GFLOP per image" in check(publish(tmp_path, learning(3), document=tiny))[1]


def test_slow_epochs_and_slow_processes_are_named(tmp_path: Path) -> None:
    rows = learning(12, slowest_rank=lambda epoch: 3, slowest_rank_ratio=lambda epoch: 1.3 + epoch / 100)
    rows[10] |= {"epoch_time_sec": 500.0, "train_time_sec": 480.0}
    code, page = check(publish(tmp_path, rows))
    assert code == 1
    assert "process 3 was the slowest in 10 of 10 epochs, up to 1.42 times the median process" in page
    usual = np.median([row["epoch_time_sec"] for row in rows])
    assert f"1 slow epoch, above 1.5 times the median of {usual:.1f} s: epoch 11 500.0 s (+" in page
    assert "s of training)" in page


@pytest.mark.parametrize(
    ("trouble", "code", "words"),
    [
        ({"temperature_c": 88}, 1, "vn1 GPU 0: 88 °C (limit 85)"),
        ({"temperature_c": 95}, 2, "vn1 GPU 0: 95 °C (limit 92)"),
        ({"ecc_uncorrected": 2}, 2, "2 uncorrected memory errors"),
        ({"throttle": ["hw_thermal"]}, 1, "slowed down: hw_thermal"),
        ({"throttle": ["sw_power_cap"]}, 0, "as is usual under full load"),
        ({"memory_used_mb": 45_900.0}, 1, "memory 100% full"),
        ({"memory_used_mb": 4_600.0}, 1, "memory 10% full (least 25%): `python train.py --find-batch-size` tells"),
        ({"utilization": 7}, 1, "in use 7%"),
        (dict.fromkeys(GPU, None), 0, "NVML gives no figures for it"),
    ],
)
def test_gpus(tmp_path: Path, trouble: dict, code: int, words: str) -> None:
    found, page = check(publish(tmp_path, learning(12), gpus=[GPU | trouble], **RUNNING))
    assert (found, words in page) == (code, True), page


def test_gpus_publish_why_they_are_slowed_down_and_their_memory_errors(tmp_path: Path) -> None:
    class Newer(FakeNvml):
        def nvmlDeviceGetCurrentClocksEventReasons(self, handle):
            return self._whole(handle, 0x1 | 0x4 | 0x40)

        def nvmlDeviceGetTotalEccErrors(self, handle, kind, counter):
            return self._whole(handle, {(0, 0): 12, (1, 0): 1}[kind, counter])

    paths = RunPaths(tmp_path, RUN)
    sampler = GpuSampler(paths, "vn1", ["aaa", "MIG-bbb"], interval=0.02, nvml=Newer())
    sampler.start()
    whole, part = eventually(lambda: sampler.path.exists() and json.loads(sampler.path.read_text()))["gpus"]
    sampler.stop()
    assert whole["throttle"] == ["sw_power_cap", "hw_thermal"]
    assert (whole["ecc_corrected"], whole["ecc_uncorrected"]) == (12, 1)
    assert not {"throttle", "ecc_corrected"} & part.keys()  # a MIG slice does not tell


def test_data_are_checked_where_they_are_within_reach(tmp_path: Path, small_data: Path) -> None:
    images, labels = emnist_files(small_data).files("train")
    inverted = 255 - read_idx(images, 3)
    for split in ("train", "test"):
        places = emnist_files(tmp_path / "data").files(split)
        places[0].parent.mkdir(parents=True, exist_ok=True)
        write_idx(places[0], inverted)
        write_idx(places[1], read_idx(labels, 1))
    document = {"data_summary": {"train_counts": [6] * 46 + [3], "test_counts": [6] * 47}}
    paths = publish(tmp_path, learning(12), document=document)
    made = json.loads(paths.json.read_text())
    made["settings"]["data_root"] = str(tmp_path / "data")
    paths.json.write_text(json.dumps(made))
    code, page = check(paths)
    assert code == 1
    assert "labels run from 0 to 46" in page
    assert "282 of 282 test images (100.00%) are training images too" in page
    assert "train: 279 images in 47 classes, not balanced: 3 to 6 a class" in page
    pixels = inverted / 255
    assert f"▲ training pixels, 0 to 1: mean {pixels.mean():.4f}, standard deviation {pixels.std():.4f}" in page


def test_classes_of_other_data_need_not_be_equally_large(tmp_path: Path) -> None:
    def said(high: int, **settings) -> str:
        document = make_document(12, data="folder-leaves")
        document["data_summary"] |= {"train_counts": [60] * 46 + [high], "test_counts": [6] * 46 + [high]}
        document["settings"] |= {"data": "folder", **settings}
        findings = data(make_run(document, tmp_path), {}, Thresholds()).findings
        return " ".join(f"{finding.status}: {finding.note}" for finding in findings)

    assert "healthy: train: 2,960 images in 47 classes, 60 to 200 in each" in said(200)
    assert "warning: train: 3,460 images in 47 classes, not balanced: 60 to 700 a class, 11.67 times" in said(700)
    assert "healthy: train: 3,460 images" in said(700, balance="classes")


def test_an_error_is_counted_until_the_next_start_however_long_the_log_is(tmp_path: Path) -> None:
    paths = publish(tmp_path, learning(12))
    began = json.loads(paths.status.read_text())["started"]
    error = {"kind": "log", "severity": "error", "message": "the disk was full", "time": began + 1}
    later = {"kind": "log", "severity": "info", "message": "x" * 400, "time": began + 2}
    paths.events.write_text("".join(json.dumps(event) + "\n" for event in [error, *[later] * 300]))
    assert "1 error in the log since this start, the last at" in check(paths)[1]


def test_glyphs_are_never_called_emnist(tmp_path: Path, capsys) -> None:
    page = check(publish(tmp_path, learning(12, data="glyphs"), document={"data": "glyphs"}))[1]
    assert "> **Trained on the embedded glyphs, not EMNIST.**" in page
    assert "embedded glyphs, not EMNIST" in capsys.readouterr().out
    assert "EMNIST Balanced" not in page.split("## Thresholds")[0]


def test_a_training_loss_of_another_weighting_is_no_divergence(tmp_path: Path) -> None:
    rows = learning(12, loss_mean=lambda epoch: 0.05 if epoch < 9 else 0.6)
    begun = {"time": "2026-01-01T00:00:00+00:00", "step": 0, "epoch": 0, "cause": "started"}
    code, page = check(publish(tmp_path / "same", rows, document={"starts": [begun]}))
    assert code == 2 and "diverging" in page
    again = {**begun, "step": 2000, "epoch": 8, "losses_since": 8}
    code, page = check(publish(tmp_path / "other", rows, document={"starts": [begun, again]}))
    assert "diverging" not in page
