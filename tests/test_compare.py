"""The comparison of runs: its figures are those of the CSV files, and it says what cannot be compared."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from ddpm.data.emnist import CLASS_NAMES
from ddpm.data.others import CLOTHES
from ddpm.run.format import duration, timestamp
from ddpm.run.metrics import (
    GPU_MEM_PEAK_MB,
    LOSS_MIN,
    LR,
    METRICS,
    MFU,
    RCA,
    SAMPLES_PER_SEC,
    TRAIN_TIME_SEC,
    VAL_LOSS_EMA,
)
from ddpm.run.paths import PROJECT_ROOT, RunPaths
from metrics.compare.__main__ import main
from metrics.compare.comparison import PAGE
from metrics.compare.figures import ComparedRun, by_data, loss_levels, reached, read_runs
from metrics.compare.plots import draw_curves, draw_samples
from metrics.page import Page, Section, to_markdown
from metrics.run_data import read_run
from metrics.samples import SHOWN
from metrics.training_log.baseline import baseline_section, target_section
from metrics.trends import over_epochs
from tests.metrics_documents import make_document

TINY = {"preset": "tiny", "seed": 0, "lr": 0.003, "prediction_type": "v_prediction", "run_name": "x"}


def make_run(root: Path, name: str, epochs: int = 4, factor: float = 1.0, data: str = "emnist", **settings) -> RunPaths:
    """A run whose losses are `factor` times those of the others."""
    document = make_document(epochs, gpu=False, data=data, run=name)
    document["settings"] |= TINY | {"run_name": name, "data": data} | settings
    for row in document["epochs"]:
        for column in ("loss_mean", "val_loss", "val_loss_ema"):
            row[column] *= factor
    paths = RunPaths(root, name)
    paths.samples.mkdir(parents=True)
    save(paths, document)
    return paths


def save(paths: RunPaths, document: dict) -> None:
    paths.json.write_text(json.dumps(document))
    pd.DataFrame(document["epochs"], columns=list(METRICS)).to_csv(paths.csv, index=False)


def draw_grid(paths: RunPaths, epoch: int, resolution: int = 28) -> None:
    pixels = np.full((len(CLASS_NAMES), resolution, resolution), epoch, np.uint8)
    np.savez(paths.samples / f"emnist_epoch_{epoch:04d}.npz", x=pixels, y=np.arange(len(CLASS_NAMES)))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An output root with the runs `slow` and `fast`, which is better."""
    make_run(tmp_path, "slow", lr=0.001)
    make_run(tmp_path, "fast", epochs=6, factor=0.9)
    return tmp_path


@pytest.fixture(autouse=True)
def few_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take longer than all the rest; the tests that look at them draw them themselves."""
    monkeypatch.setattr("metrics.compare.comparison.draw_plots", lambda runs, metric: {})


def page_of(root: Path, *arguments: str) -> str:
    assert main([*arguments, "--output-root", str(root), "--out", str(root / "page")]) == 0
    return (root / "page" / PAGE).read_text()


def refusal(capsys: pytest.CaptureFixture, root: Path, *arguments: str) -> str:
    assert main([*arguments, "--output-root", str(root), "--out", str(root / "page")]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    assert not (root / "page").exists()
    return line


def tables(page: str) -> list[list[list[str]]]:
    """The cells of every table of the page."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", page, re.MULTILINE)
    lines = [[line for line in block.splitlines() if "---" not in line] for block in blocks]
    return [[[cell.strip("`* ") for cell in line.strip("|").split("|")] for line in block] for block in lines]


def table_headed(page: str, heading: str) -> dict[str, dict[str, str]]:
    """The rows of the first table that has the heading, by their first or second cell."""
    heads, *rows = next(table for table in tables(page) if heading in table[0])
    return {row[0] if not row[0].isdigit() else row[1]: dict(zip(heads, row, strict=True)) for row in rows}


def number(cell: str) -> float:
    return float(re.match(r"[\d.,e+-]+", cell)[0].replace(",", ""))


def markdown_of(root: Path, section: Section) -> str:
    return to_markdown(Page("", [section]), root)


def csv(root: Path, run: str) -> pd.DataFrame:
    return pd.read_csv(RunPaths(root, run).csv, index_col="epoch")


# ---- figures ---------------------------------------------------------------------------------------------------------


def test_the_winner_is_the_smallest_loss_of_the_csv_files_and_the_gap_is_their_difference(root: Path):
    page = page_of(root, "slow", "fast")
    slow, fast = csv(root, "slow")["val_loss_ema"], csv(root, "fast")["val_loss_ema"]
    gap = slow.min() - fast.min()
    sentence = next(line for line in page.splitlines() if "is best by" in line)
    assert sentence == (
        f"**`fast` is best by validation loss (EMA)**, smaller is better: {fast.min():.5f} (epoch {fast.idxmin()}). "
        f"Next is `slow` with {slow.min():.5f}, {gap:.3g} more ({100 * gap / fast.min():.2f}% of the best)."
    )
    places = table_headed(page, "Behind")
    assert list(places) == ["fast", "slow"]
    assert number(places["slow"]["% of best"]) == pytest.approx(100 * gap / fast.min(), abs=0.006)
    assert f"({places['slow']['% of best']} of the best)" in sentence


def test_what_is_larger_is_better_for_throughput_which_is_all_images_over_all_seconds(root: Path):
    page = page_of(root, "slow", "fast", "--rank-by", "samples_per_sec")
    expected = {}
    for run in ("slow", "fast"):
        rows = csv(root, run)
        expected[run] = rows["train_images"].sum() / rows["train_time_sec"].sum()
    places = table_headed(page, "Behind")
    assert list(places) == sorted(expected, key=expected.get, reverse=True)
    for run, value in expected.items():
        assert number(places[run]["Samples/s"]) == pytest.approx(value, abs=0.05)


def test_the_best_rca_is_the_largest_and_the_final_one_the_last_that_was_measured(root: Path):
    for run, values in {"slow": [0.5, None, 0.9, 0.8], "fast": [None, 0.7, None, None, None, 0.75]}.items():
        document = json.loads(RunPaths(root, run).json.read_text())
        for row, value in zip(document["epochs"], values, strict=True):
            row["rca"] = value
        save(RunPaths(root, run), document)
    page = page_of(root, "slow", "fast", "--rank-by", "rca")
    assert (
        "`slow` is best by RCA**, larger is better: 0.900 (epoch 3). Next is `fast` with 0.750, 0.15 less (16.67% of "
        "the best)." in page
    )
    assert "| best RCA | **0.900**, epoch 3 | 0.750 (-0.15), epoch 6 |" in page
    assert "| final RCA | **0.800** | 0.750 (-0.05) |" in page


def test_best_and_final_figures_and_their_distance_from_the_first_run(root: Path):
    page = page_of(root, "slow", "fast")
    for which, pick in {"best": "min", "final": "last"}.items():
        name = f"{which} {VAL_LOSS_EMA.label}"
        heads, *rows = next(t for t in tables(page) if any(row[0] == name for row in t))
        row = dict(zip(heads, next(row for row in rows if row[0] == name), strict=True))
        values = {r: csv(root, r)["val_loss_ema"] for r in ("slow", "fast")}
        values = {r: v.min() if pick == "min" else v.iloc[-1] for r, v in values.items()}
        for run, value in values.items():
            assert number(row[run]) == pytest.approx(value, abs=5e-6)
        delta = float(re.search(r"\(-([\d.e-]+)\)", row["fast"])[1])
        assert delta == pytest.approx(values["slow"] - values["fast"], rel=1e-2)


def test_a_loss_counts_as_reached_at_the_end_of_the_first_epoch_below_it(root: Path):
    slow, fast = csv(root, "slow"), csv(root, "fast")
    level = float(f"{slow['val_loss_ema'].iloc[2]:.4g}") * 1.001
    page = page_of(root, "slow", "fast", "--loss-levels", str(level), "1e-9")
    kinds = [table for table in tables(page) if table[0][0] in ("Time", "Images", "FLOP")]
    assert [table[0][0] for table in kinds] == ["Time", "Images", "FLOP"]
    for rows, (_, *cells) in ((slow, kinds[1][1]), (fast, kinds[1][2])):
        first = rows[rows["val_loss_ema"] <= level].iloc[0]
        assert number(cells[0]) == first["images_seen"]
        assert cells[1] == "–", "nobody reached it"
    runs, _ = read_runs([RunPaths(root, "slow"), RunPaths(root, "fast")])
    figures = reached(runs[0], VAL_LOSS_EMA, level)
    first = slow[slow["val_loss_ema"] <= level].iloc[0]
    assert figures["seconds"] == pytest.approx(first["total_time_sec"])
    assert figures["flop"] == first["images_seen"] * runs[0].published.document["model"]["flops_per_image"]


def test_the_levels_are_chosen_so_that_all_reach_one_and_only_the_best_the_last(root: Path):
    runs, _ = read_runs([RunPaths(root, "slow"), RunPaths(root, "fast")])
    levels = loss_levels(runs, VAL_LOSS_EMA)
    reach = [[not math.isnan(reached(run, VAL_LOSS_EMA, level)["images"]) for run in runs] for level in levels]
    assert levels == sorted(levels, reverse=True)
    assert [True, True] in reach
    assert reach[-1] == [False, True]


def test_only_settings_that_differ_are_shown_and_the_others_counted(root: Path):
    page = page_of(root, "slow", "fast")
    section = page.split("## Settings that differ")[1].split("##")[0]
    shown = [row[0] for table in tables(section) for row in table]
    assert "lr" in shown and "preset" not in shown and "run_name" not in section
    same = {name for name in TINY if name not in ("lr", "run_name")} | {"grad_clip", "data"}
    assert f"{len(same)} settings are the same." in section


def test_over_seeds_there_is_a_mean_and_a_standard_deviation(root: Path):
    make_run(root, "fast-1", epochs=6, factor=0.95, seed=1)
    page = page_of(root, "slow", "fast", "fast-1")
    values = [csv(root, run)["val_loss_ema"].min() for run in ("fast", "fast-1")]
    row = next(row for table in tables(page) for row in table if row[1] == "0, 1")
    assert number(row[2]) == pytest.approx(np.mean(values), abs=5e-6)
    assert number(row[3]) == pytest.approx(np.std(values, ddof=1), rel=5e-3)
    assert "`fast` is best by" in page, "of slow there is one seed only, so runs are compared"


@pytest.mark.parametrize("rank_by", ["val_loss_ema", "samples_per_sec"])
def test_settings_win_over_their_seeds_in_the_headline_and_are_ranked_by_their_means(root: Path, rank_by: str):
    make_run(root, "fast-1", epochs=6, factor=0.95, seed=1)
    make_run(root, "slow-1", lr=0.001, seed=1, factor=1.02)
    page = page_of(root, "slow", "slow-1", "fast", "fast-1", "--rank-by", rank_by)
    values = {lr: [csv(root, run)["val_loss_ema"].min() for run in runs]
              for lr, runs in {"0.003": ("fast", "fast-1"), "0.001": ("slow", "slow-1")}.items()}  # fmt: skip
    section = page.split("## Over seeds")[1].split("\n## ")[0]
    means = [number(row[2]) for row in tables(section)[0][1:]]
    assert means == sorted(means, reverse=rank_by == "samples_per_sec")
    if rank_by == "samples_per_sec":
        assert "has the best mean images per second**, larger is better" in page
        return
    first, second = values["0.003"], values["0.001"]
    gap = np.mean(second) - np.mean(first)
    assert (
        f"`lr` 0.003 has the best mean validation loss (EMA)**, smaller is better: {np.mean(first):.5f} ± "
        f"{np.std(first, ddof=1):.3g} over 2 seeds. Next is `epochs` 4, `lr` 0.001 with {np.mean(second):.5f} ± "
        in page
    )
    assert f"over 2 seeds, {gap:.3g} more ({100 * gap / np.mean(first):.2f}% of the best)" in page
    assert f"The best single run is `fast`: {min(first):.5f} (epoch 6)." in page
    assert "may be chance" not in page


def test_settings_that_are_nearer_than_their_seeds_are_said_to_be_so(root: Path):
    for name, factor, settings in (("a", 0.8, {}), ("b", 1.2, {"seed": 1}), ("c", 0.85, {"lr": 0.002}),
                                   ("d", 1.2, {"lr": 0.002, "seed": 1})):  # fmt: skip
        make_run(root, name, factor=factor, **settings)
    assert "may be chance" in page_of(root, "a", "b", "c", "d")


@pytest.mark.parametrize(("metric", "expected"), [
    (VAL_LOSS_EMA, 0.2), (RCA, 0.9), (LR, 0.1), (TRAIN_TIME_SEC, 7.0), (MFU, 0.4), (GPU_MEM_PEAK_MB, 30),
    (LOSS_MIN, None), (SAMPLES_PER_SEC, 100 / 3),
])  # fmt: skip
def test_epochs_become_one_figure_of_the_run_as_the_figure_is_declared(metric, expected):
    """The best, the last, the sum, the median, the largest; images over seconds, where both were measured."""
    rows = [
        {"val_loss_ema": 0.3, "rca": 0.9, "lr": 0.3, "train_time_sec": 1.0, "train_images": 60, "mfu": 0.1},
        {"val_loss_ema": 0.2, "rca": 0.5, "lr": 0.2, "train_time_sec": 2.0, "train_images": 40, "mfu": 0.4},
        {"val_loss_ema": 0.4, "rca": None, "lr": 0.1, "train_time_sec": 4.0, "mfu": 0.5, "gpu_mem_peak_mb": 30},
    ]
    rows = [{"epoch": epoch, "samples_per_sec": 1.0, **row} for epoch, row in enumerate(rows, 1)]
    assert over_epochs(rows, metric) == (None if expected is None else pytest.approx(expected))


# ---- a target, and a comparison of two -------------------------------------------------------------------------------


def test_a_baseline_is_compared_at_the_same_images_at_the_end_and_at_the_best(root: Path):
    section = markdown_of(root, baseline_section(read_run(RunPaths(root, "slow")), RunPaths(root, "fast")))
    slow, fast = csv(root, "slow"), csv(root, "fast")
    _, *rows = tables(section)[0]
    found = {
        where: (number(ours), number(theirs)) for what, where, ours, theirs, _ in rows if what == VAL_LOSS_EMA.label
    }
    ours, theirs = slow["val_loss_ema"], fast["val_loss_ema"]
    assert found == {
        f"up to {slow['images_seen'][4]:,} images": pytest.approx((ours[4], theirs[4]), abs=5e-6),
        "last": pytest.approx((ours[4], theirs[6]), abs=5e-6),
        "best": pytest.approx((ours.min(), theirs.min()), abs=5e-6),
    }
    assert "This run has not been as good as the baseline's best validation loss (EMA)" in section
    assert "`lr`: 0.001, 0.003" in section
    again = markdown_of(root, baseline_section(read_run(RunPaths(root, "fast")), RunPaths(root, "slow")))
    first = fast[theirs <= ours.min()].iloc[0]
    assert (
        f"first at epoch {first.name} ({first['images_seen']:,.0f} images and {duration(first['total_time_sec'])})"
        in again
    )


def test_a_baseline_has_the_cautions_of_a_comparison(root: Path):
    make_run(root, "drawn", data="glyphs", resolution=16)
    page = page_of(root, "slow", "drawn")
    section = markdown_of(root, baseline_section(read_run(RunPaths(root, "slow")), RunPaths(root, "drawn")))
    cautions = [line.removeprefix("> ") for line in page.splitlines() if line.startswith("> - ")]
    assert len(cautions) > 2 and set(cautions) <= set(section.splitlines())


@pytest.mark.parametrize(("name", "words"), [
    ("slow", "is this run itself"), ("nosuch", "Not compared: "), ("empty", "no epoch has finished yet"),
])  # fmt: skip
def test_a_baseline_without_figures_costs_a_line(root: Path, name: str, words: str):
    make_run(root, "empty", epochs=0)
    assert words in markdown_of(root, baseline_section(read_run(RunPaths(root, "slow")), RunPaths(root, name)))


@pytest.mark.parametrize(("target", "words"), [
    ("val_loss_ema=0.06", "Reached at epoch 4"), ("val_loss_ema=0.04", "usually flatten"), ("fame=1", "no target"),
    ("val_loss_ema=0.04", "above the target"), ("val_loss_ema=0.001", "times the target"),
    ("rca=0.9", "not been measured"),
])  # fmt: skip
def test_a_target_is_reached_or_ahead_or_cannot_be_told_of(root: Path, target: str, words: str):
    assert words in markdown_of(root, target_section(read_run(RunPaths(root, "slow")), target))


# ---- what cannot be compared -----------------------------------------------------------------------------------------


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


# ---- requests --------------------------------------------------------------------------------------------------------


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


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_ten_runs_have_ten_different_lines_with_the_values_of_their_csv_files(root: Path):
    places = [make_run(root, f"a-plan-of-runs-lr={k}", factor=1 + k / 50) for k in range(10)]
    runs, _ = read_runs(places)
    figure = draw_curves(runs, VAL_LOSS_EMA)
    for axes, column in zip(figure.axes, ("images_seen", "step", "total_time_sec"), strict=True):
        assert axes.get_xlabel().startswith(METRICS[column].label)
        assert len({line.get_color() for line in axes.lines}) == 10
        assert len({(line.get_linestyle(), line.get_marker()) for line in axes.lines}) == 10, "without colour, too"
        for line, paths in zip(axes.lines, places, strict=True):
            rows = pd.read_csv(paths.csv)
            np.testing.assert_allclose(line.get_ydata(), rows["val_loss_ema"])
            x = np.asarray(line.get_xdata(), float)
            np.testing.assert_allclose(x / x[-1], rows[column] / rows[column].iloc[-1])
    assert figure.axes[0].get_ylabel() == VAL_LOSS_EMA.label
    assert runs[0].short == "…lr=0"
    page = page_of(root, *(paths.run for paths in places))
    assert max(len(table[0]) for table in tables(page)) <= 9


def test_samples_are_of_the_latest_epoch_that_all_runs_have(root: Path):
    slow, fast = RunPaths(root, "slow"), RunPaths(root, "fast")
    for paths, epochs in ((slow, (2, 4)), (fast, (2, 4, 6))):
        for epoch in epochs:
            draw_grid(paths, epoch, resolution=28 if paths is slow else 32)
    runs, _ = read_runs([slow, fast])
    figure = draw_samples(runs)
    shown = [np.ma.filled(axes.images[0].get_array(), 0) for axes in figure.axes]
    assert [picture.max() for picture in shown] == [4, 4]
    assert [picture.shape[0] for picture in shown] == [28, 32]


def test_samples_of_different_data_have_their_own_classes(root: Path):
    make_run(root, "clothes", data="fashion")
    draw_grid(RunPaths(root, "slow"), 4)
    arrays = {"x": np.zeros((10, 28, 28), np.uint8), "y": np.arange(10), "names": np.array(CLOTHES)}
    np.savez(RunPaths(root, "clothes").samples / "fashion_epoch_0004.npz", **arrays)
    runs, _ = read_runs([RunPaths(root, "slow"), RunPaths(root, "clothes")])
    figure = draw_samples(runs)
    names = [[text.get_text() for text in axes.get_xticklabels()] for axes in figure.axes]
    assert names == [list(SHOWN), list(CLOTHES)]


def test_without_samples_there_is_no_picture_of_them(root: Path):
    runs, _ = read_runs([RunPaths(root, "slow"), RunPaths(root, "fast")])
    (RunPaths(root, "slow").samples / "emnist_epoch_0004.npz").write_bytes(b"PK damaged")
    assert draw_samples(runs) is None


def test_the_page_shows_the_plots_that_are_there_and_old_ones_are_deleted(root: Path, monkeypatch):
    monkeypatch.setattr(
        "metrics.compare.comparison.draw_plots", lambda runs, metric: {metric.name: draw_curves(runs, metric)}
    )
    page_of(root, "slow", "fast", "--rank-by", "loss_mean")
    page = page_of(root, "slow", "fast")
    plots = sorted(file.name for file in (root / "page" / "plots").iterdir())
    assert plots == ["val_loss_ema.png"] and re.findall(r"!\[.*\]\((.*)\)", page) == ["plots/val_loss_ema.png"]
