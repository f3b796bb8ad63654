"""The pictures of a comparison: true to the rows and samples of its runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

from ddpm.data.others import CLOTHES
from ddpm.run.metrics import METRICS, RCA, VAL_LOSS_EMA
from ddpm.run.paths import RunPaths
from metrics.compare.figures import read_runs
from metrics.compare.plots import draw_curves, draw_samples
from metrics.samples import SHOWN
from tests.pages.compare.compared import draw_grid, make_run, page_of, save, tables


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


def test_all_values_that_are_drawn_are_on_the_plot_also_those_of_before_another_guidance(root: Path):
    slow = RunPaths(root, "slow")
    document = json.loads(slow.json.read_text())
    document["epochs"][1]["rca"] = 0.8
    document["starts"].append({"time": "2026-05-04T01:20:00+00:00", "step": 600, "cause": "x",
                               "altered": {"guidance_scale": 2}})  # fmt: skip
    save(slow, document)
    runs, _ = read_runs([slow, RunPaths(root, "fast")])
    axes = draw_curves(runs, RCA).axes[0]
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.8], []]
    assert axes.get_ylim()[0] <= 0.8 <= axes.get_ylim()[1]


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
