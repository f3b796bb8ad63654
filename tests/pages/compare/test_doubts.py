"""What cannot be compared, what makes a comparison doubtful, and runs that did not end well."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ddpm.run.config import TrainConfig
from ddpm.run.format import duration, timestamp
from ddpm.run.metrics import MFU
from ddpm.run.paths import RunPaths
from metrics.compare.figures import ComparedRun, by_data
from metrics.run_reader import read_run
from metrics.training_log.baseline import baseline_section
from tests.pages.compare.compared import csv, make_run, markdown_of, page_of, save, table_headed, tables


def test_glyphs_and_emnist_are_not_ranked_against_each_other(root: Path):
    make_run(root, "drawn", data="glyphs", factor=0.1)
    page = page_of(root, "slow", "fast", "drawn")
    assert "**Not all of these runs are comparable**" in page
    assert (
        "`slow`, `fast` trained on EMNIST Balanced (47 classes); `drawn` trained on embedded glyphs, not EMNIST" in page
    )
    assert "`fast` is best" in page and "`drawn` is best" not in page


@pytest.mark.parametrize("rank_by", ["val_loss_ema", "samples_per_sec", "rca"])
def test_runs_of_different_data_are_ranked_by_nothing(root: Path, rank_by: str):
    make_run(root, "clothes", data="fashion", factor=0.1)
    for name in ("slow", "fast", "clothes"):
        document = json.loads(RunPaths(root, name).json.read_text())
        for row in document["epochs"]:
            row["rca"] = 0.5
        save(RunPaths(root, name), document)
    page = page_of(root, "slow", "fast", "clothes", "--rank-by", rank_by)
    assert "With `data` Fashion-MNIST: Only `clothes` has a value" in page
    assert "glyphs" not in page and "`clothes` trained on Fashion-MNIST (47 classes)" in page


def test_a_baseline_of_other_data_is_neither_better_nor_worse(root: Path):
    make_run(root, "clothes", data="fashion", factor=0.1)
    section = markdown_of(root, baseline_section(read_run(RunPaths(root, "slow")), RunPaths(root, "clothes")))
    assert "not comparable" in section and "**Data differ**" in section
    assert not re.search(r", (better|worse) \|", section) and "as good as the baseline" not in section


def test_folders_of_one_name_with_other_classes_are_different_data(root: Path):
    shared = {"data": "folder-x", "data_words": "images of x/"}
    runs = [
        ComparedRun(name, name, SimpleNamespace(**shared, document={"data_summary": {"class_names": names}}))
        for name, names in (("a", ["u", "v"]), ("b", ["u", "w"]))
    ]
    assert len(by_data(runs)) == 2 and len(by_data([runs[0], runs[0]])) == 1


def test_folders_of_one_name_with_other_images_are_told_apart(root: Path):
    for name, digest in (("slow", "ab" * 32), ("fast", "cd" * 32)):
        document = json.loads(RunPaths(root, name).json.read_text())
        document["data_summary"]["sha256"] = digest
        save(RunPaths(root, name), document)
    assert "The training images differ, though number and name of the data are the same" in page_of(
        root, "slow", "fast"
    )


def test_losses_of_different_targets_are_not_ranked_but_throughput_is(root: Path):
    make_run(root, "epsilon", factor=0.1, prediction_type="epsilon")
    page = page_of(root, "fast", "epsilon")
    assert "`epsilon` is best" not in page
    best = next(line for line in page.splitlines() if line.startswith("| best validation loss (EMA)"))
    assert "(" not in best.split("|", 2)[2] and "**" not in best, "no distance between what is not comparable"
    page = page_of(root, "fast", "epsilon", "--rank-by", "samples_per_sec")
    assert "is best by images per second" in page and "comparable** by images per second" not in page


@pytest.mark.parametrize(("changes", "words"), [
    ({"epochs": 9}, r"differ in length \(4, 9 epochs\)"),
    ({"seed": 3}, r"Seeds: 0, 3; no settings were trained with two seeds"),
])  # fmt: skip
def test_what_makes_a_comparison_doubtful_is_said(root: Path, changes: dict, words: str):
    make_run(root, "other", **changes)
    assert re.search(words, page_of(root, "slow", "other"))


def test_that_losses_cannot_be_compared_is_said_also_where_something_else_ranks_the_runs(root: Path):
    make_run(root, "coarse", resolution=16)
    page = page_of(root, "slow", "fast", "coarse", "--rank-by", "samples_per_sec")
    (line,) = [line for line in page.splitlines() if "they change what is measured: `resolution`: 96, 16." in line]
    assert "validation loss (EMA)" in line and "training loss" in line and "images per second" not in line


def test_when_losses_were_reached_is_told_of_each_group_that_can_be_compared(root: Path):
    make_run(root, "coarse", resolution=16)
    section = page_of(root, "slow", "fast", "coarse").split("## When losses were reached")[1].split("\n## ")[0]
    parts = dict(part.split("\n", 1) for part in section.split("### With ")[1:])
    assert list(parts) == ["`resolution` 96", "`resolution` 16"]
    for words, runs in zip(parts, (["slow", "fast"], ["coarse"]), strict=True):
        assert [[row[0] for row in table[1:]] for table in tables(parts[words])] == [runs] * 3
    assert "### With" not in page_of(root, "slow", "fast")


def test_runs_of_other_numbers_of_steps_differ_in_length_also_within_an_epoch(root: Path):
    for name, steps in (("short", 10), ("long", 90)):
        paths = make_run(root, name, epochs=1, max_steps=steps)
        document = json.loads(paths.json.read_text())
        document["epochs"][0] |= {"step": steps, "images_seen": 32 * steps}
        save(paths, document)
    assert "The runs differ in length (2,880 and 320 images)" in page_of(root, "long", "short")


def test_runs_of_other_batches_are_equally_long_though_they_leave_out_other_rests(root: Path):
    for name, batch in (("small", 32), ("large", 64)):
        paths = make_run(root, name, epochs=1, batch_size=batch)
        document = json.loads(paths.json.read_text())
        document["epochs"][0] |= {"step": 112_800 // batch, "images_seen": 112_800 // batch * batch}
        save(paths, document)
    assert "differ in length" not in page_of(root, "small", "large")


def test_seeds_of_versions_with_other_settings_belong_together(root: Path):
    """What an older version did not have is at its default."""
    for seed in (0, 1):
        paths = make_run(root, f"seed{seed}", seed=seed)
        document = json.loads(paths.json.read_text())
        if seed:
            document["settings"].pop("timestep_power", None)
        else:
            document["settings"]["timestep_power"] = TrainConfig.timestep_power
        save(paths, document)
    assert "no settings were trained with two seeds" not in page_of(root, "seed0", "seed1")


def test_readability_at_other_guidance_is_not_ranked(root: Path):
    for name, scale in (("plain", 1.0), ("guided", 3.0)):
        paths = make_run(root, name, guidance_scale=scale)
        document = json.loads(paths.json.read_text())
        for row in document["epochs"]:
            row |= {"rca": scale / 4, "rca_unguided": 0.5 + scale / 10}
        save(paths, document)
    assert "guidance_scale" in page_of(root, "plain", "guided", "--rank-by", "rca").partition("## ")[0]
    assert "`guided` is best" in page_of(root, "plain", "guided", "--rank-by", "rca_unguided")


def test_a_run_that_stopped_early_is_named_where_lengths_differ(root: Path):
    why = "stopped early after epoch 4: val_loss_ema has not improved for 2 epochs (best 0.0474, epoch 2)"
    status = {"state": "finished", "heartbeat": 1.0, "message": f"{why}; raise --early-stop-patience to train on"}
    paths = RunPaths(root, "slow")
    document = json.loads(paths.json.read_text())
    document["settings"]["epochs"] = 20
    save(paths, document)
    paths.status.write_text(json.dumps(status))
    assert f"differ in length (4, 6 epochs): compare them at the same images seen. `slow` {why}." in page_of(
        root, "slow", "fast"
    )


def test_a_run_in_progress_is_called_that(root: Path):
    save(paths := RunPaths(root, "slow"), json.loads(paths.json.read_text()) | {"state": "running"})
    assert "`slow` is not finished: running." in page_of(root, "slow", "fast")
    paths.status.write_text(json.dumps({"state": "running", "heartbeat": time.time()}))
    page = page_of(root, "slow", "fast")
    assert "`slow` is not finished: running." in page and "`fast` is not" not in page
    assert table_headed(page, "Behind")["slow"]["State"] == "running"


def test_a_run_whose_heart_stopped_is_not_in_progress_and_one_that_failed_has_failed(root: Path):
    save(paths := RunPaths(root, "slow"), json.loads(paths.json.read_text()) | {"state": "running"})
    beat = time.time() - 3600
    paths.status.write_text(json.dumps({"state": "running", "heartbeat": beat}))
    page = page_of(root, "slow", "fast")
    assert f"no heartbeat for 1h 00m 00s, since {timestamp(beat)}" in page.replace("00m 01s", "00m 00s")
    assert table_headed(page, "Behind")["slow"]["State"] == "silent"
    paths.status.write_text(json.dumps({"state": "failed", "heartbeat": beat, "message": "the disk is full"}))
    page = page_of(root, "slow", "fast")
    assert "`slow` is not finished: failed" in page and "the disk is full" in page
    assert table_headed(page, "Behind")["slow"]["State"] == "failed"


def test_the_work_of_a_start_that_was_killed_is_counted_and_what_was_trained_twice_is_told(root: Path):
    paths, rows = RunPaths(root, "slow"), csv(root, "slow")
    images, seconds = rows["images_seen"].iloc[-1], rows["total_time_sec"].iloc[-1]
    killed = {"kind": "start", "started": 1e9, "heartbeat": 1e9 + 600, "gpus": 0, "start_step": 0, "start_images": 0,
              "images_seen": 5000, "state": "running"}  # fmt: skip
    paths.events.write_text(json.dumps(killed) + "\n")
    stopped = killed | {"started": 1e9 + 1000, "heartbeat": 1e9 + 1000 + seconds, "start_step": 8,
                        "start_images": 1000, "images_seen": int(images) + 500, "state": "stopped"}  # fmt: skip
    paths.status.write_text(json.dumps(stopped))
    save(paths, json.loads(paths.json.read_text()) | {"starts": []})
    costs = table_headed(page_of(root, "slow", "fast").split("## Time and compute")[1], "slow")
    assert costs["time of the epochs"]["slow"] == duration(seconds)
    assert costs["computed time"]["slow"] == duration(seconds + 600)
    assert costs["images trained twice"]["slow"] == "4,000", "500 are of an epoch that is half done"
    assert costs["computed time"]["fast"] == "–", "nothing tells it"


def test_a_figure_reads_as_on_every_other_page(root: Path):
    for run in ("slow", "fast"):
        document = json.loads(RunPaths(root, run).json.read_text())
        for row in document["epochs"]:
            row["mfu"] = 0.412
        save(RunPaths(root, run), document)
    page = page_of(root, "slow", "fast", "--rank-by", "mfu")
    assert table_headed(page, "Behind")["fast"]["MFU"] == "41.2%"
    costs = table_headed(page.split("## Time and compute")[1], "slow")
    assert costs[MFU.label] == {"": MFU.label, "slow": "41.2%", "fast": "41.2%"}


def test_older_runs_without_the_newer_columns_and_settings_are_compared_all_the_same(root: Path):
    paths = RunPaths(root, "slow")
    document = json.loads(paths.json.read_text())
    for row in document["epochs"]:
        del row["val_loss_ema"], row["train_images"], row["mfu"]
    del document["settings"]["prediction_type"]
    save(paths, document)
    page = page_of(root, "slow", "fast")
    assert table_headed(page, "Behind")["slow"]["Val EMA"] == "–"
    assert "Not recorded by all runs" in page
