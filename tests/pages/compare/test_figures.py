"""The comparison of runs: its figures are those of the CSV files."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from ddpm.run.format import duration
from ddpm.run.metrics import GPU_MEM_PEAK_MB, LOSS_MIN, LR, MFU, RCA, SAMPLES_PER_SEC, TRAIN_TIME_SEC, VAL_LOSS_EMA
from ddpm.run.paths import RunPaths
from metrics.compare.figures import loss_levels, reached, read_runs
from metrics.run_reader import read_run
from metrics.training_log.baseline import baseline_section, target_section
from metrics.trends import over_epochs
from tests.pages.compare.compared import TINY, csv, make_run, markdown_of, number, page_of, save, table_headed, tables


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


def test_what_learns_alike_is_told_by_the_global_batch_and_a_seed_that_ran_twice_counts_once(root: Path):
    """One GPU with 96 images a step and four with 24 each learn the same; four with 96 each do not."""

    def trained(name: str, processes: int, batch: int, **settings) -> None:
        paths = make_run(root, name, batch_size=batch, **settings)
        document = json.loads(paths.json.read_text())
        document["environment"]["world_size"] = processes
        document["hyperparameters"]["global_batch_size"] = processes * batch
        save(paths, document)

    trained("one", 1, 96, factor=1.0)
    trained("four", 4, 24, factor=0.8)
    trained("other", 2, 48, factor=0.7, seed=1)
    trained("larger", 4, 96, factor=0.5, seed=1)
    page = page_of(root, "one", "four", "other", "larger")
    values = {run: csv(root, run)["val_loss_ema"].min() for run in ("one", "four", "other")}
    rows = {row[0].replace("`", ""): row[1:] for row in tables(page.split("## Over seeds")[1].split("\n## ")[0])[0][1:]}
    same, larger = rows["global_batch_size 96"], rows["global_batch_size 384"]
    assert same[0] == "0 (2 runs), 1" and larger[0] == "1"
    of_seeds = np.mean([values["one"], values["four"]]), values["other"]
    assert number(same[1]) == pytest.approx(np.mean(of_seeds), abs=5e-6)
    assert number(same[2]) == pytest.approx(np.std(of_seeds, ddof=1), rel=5e-3)
    assert "## Over seeds" not in page_of(root, "one", "four"), "two machines are not two seeds"
    by_speed = page_of(root, "one", "four", "other", "larger", "--rank-by", "samples_per_sec")
    assert "## Over seeds" not in by_speed, "nor is the speed of one that of the other"


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
