"""Plots of an evaluation, and the strip of samples through training."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib import style
from matplotlib.text import Annotation
from PIL import Image

import evaluate
from metrics.evaluation.plots import EVALUATION_PLOTS
from metrics.plots import draw_plot, plots_of
from metrics.samples import SHOWN, samples_through_training
from metrics.style import STYLE
from tests.support.evaluations import SAMPLERS, make_evaluation, publish, save_grid
from tests.support.metrics_documents import make_document, make_run


def test_each_sampler_is_named_at_its_point_and_no_name_hides_another() -> None:
    with style.context(STYLE):
        figure = EVALUATION_PLOTS["samplers"](make_evaluation())
        figure.draw_without_rendering()
    labels = figure.findobj(Annotation)
    for axes in figure.axes:
        names = [label for label in labels if label.axes is axes]
        assert sorted(label.get_text() for label in names) == sorted(f"{name} {steps}" for name, steps in SAMPLERS)
        boxes = [label.get_window_extent() for label in names]
        assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])


def test_times_that_are_close_together_are_plain_numbers_too() -> None:
    evaluation = make_evaluation()
    evaluation["samplers"] = evaluation["samplers"][3:]  # less than a decade
    with style.context(STYLE):
        figure = EVALUATION_PLOTS["samplers"](evaluation)
        figure.draw_without_rendering()
    said = [label.get_text() for axes in figure.axes for label in axes.get_xticklabels(which="both")]
    assert {"0.02", "0.05", "0.1"} <= set(said) and all(re.fullmatch(r"[\d.]*", text) for text in said)


def with_measurements(document: dict, every: int) -> dict:
    document = copy.deepcopy(document)
    for row in document["epochs"]:
        row |= {f"val_loss_band{band}": 0.2 / band + 0.1 / row["epoch"] for band in (1, 2, 3, 4)}
        if row["epoch"] % every == 0:
            row |= {"rca": 0.5 + 0.04 * row["epoch"], "top1": 0.4, "top5": 0.8, "fid_features": 90 / row["epoch"]}
    return document


def test_plots_of_what_was_measured_in_training_are_there_if_it_was() -> None:
    document = with_measurements(make_document(10, run="a_run"), every=2)
    run = make_run(document)
    assert plots_of(run)[-2:] == ("loss_by_noise_level", "quality")
    with style.context(STYLE):
        left, right = draw_plot("quality", run).axes
        (bands,) = draw_plot("loss_by_noise_level", run).axes
    rca, distance = (axes.lines[0].get_xydata() for axes in (left, right))
    assert (
        rca[:, 0].tolist() == distance[:, 0].tolist() == [2, 4, 6, 8, 10]
    )  # epochs that were not measured are no gaps
    assert rca[-1, 1] == pytest.approx(0.9) and distance[-1, 1] == pytest.approx(9)
    last = [line.get_ydata()[-1] for line in bands.lines]
    assert last == pytest.approx([0.21, 0.11, 0.2 / 3 + 0.01, 0.06])
    short = make_run(with_measurements(make_document(3, run="a_run"), every=5))  # not long enough to be evaluated
    assert "loss_by_noise_level" in plots_of(short) and "quality" not in plots_of(short)


def test_the_strip_shows_twelve_epochs_from_the_first_to_the_last(tmp_path: Path, monkeypatch) -> None:
    paths = publish(tmp_path, None)
    for index in range(20):
        save_grid(paths, 5 * (index + 1), 10 * index)
    drawn = {}
    monkeypatch.setattr("metrics.samples._draw", lambda rows, epochs, document: drawn.update(rows=rows, epochs=epochs))
    monkeypatch.setattr("metrics.samples.png", lambda *_, **__: b"")
    samples_through_training(paths)
    assert len(drawn["epochs"]) == 12 and drawn["epochs"][0] == 5 and drawn["epochs"][-1] == 100
    for row, epoch in zip(drawn["rows"], drawn["epochs"], strict=True):
        assert row.names == tuple(SHOWN)
        assert row.pixels.shape == (len(SHOWN), 28, 28) and (row.pixels == 10 * (epoch // 5 - 1)).all()


def test_the_strip_passes_over_what_it_cannot_read(tmp_path: Path) -> None:
    paths = publish(tmp_path, None)
    first, last = save_grid(paths, 10, 60), save_grid(paths, 30, 180)
    (paths.samples / "emnist_epoch_0020.npz").write_bytes(first.read_bytes()[:200])
    np.savez(paths.samples / "emnist_epoch_0025.npz", x=np.zeros((3, 28, 28), np.uint8), y=np.arange(3))
    shutil.copy(first, paths.samples / "emnist_epoch_last.npz")  # somebody's own
    picture = samples_through_training(paths)
    assert Image.open(picture).info["Description"] == "characters", "shown as they are, as sample grids"
    assert picture == paths.plots / "samples_through_training.png"
    with Image.open(picture) as opened:
        grey = set(np.unique(np.asarray(opened.convert("L"))))
    assert {60, 180} <= grey
    last.unlink()
    assert samples_through_training(paths) is None and not picture.exists()  # one row tells nothing


def test_an_evaluation_is_also_told_in_the_training_log_whose_criteria_it_may_decide(tmp_path: Path, monkeypatch):
    paths = publish(tmp_path, make_evaluation(sweeps=False))
    document = json.loads(paths.json.read_text())
    document["settings"]["criterion"] = ["even: share of every class in 0..100 of uniform"]
    paths.json.write_text(json.dumps(document))
    monkeypatch.setattr("metrics.report.write_report", lambda paths: paths.report)  # drawing its plots takes seconds
    said: list[str] = []
    evaluate.publish(SimpleNamespace(
        model=SimpleNamespace(paths=paths), config=SimpleNamespace(out=None), log=said.append, say=said.append,
        json=paths.evaluation, folder=tmp_path,
    ))  # fmt: skip
    assert "every class is drawn" in paths.training_log.read_text()
